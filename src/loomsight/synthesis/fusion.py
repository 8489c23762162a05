"""Stage 2: a generated defect becomes part of the cloth it is set into.

A hard paste has a seam, and its threads do not meet the cloth's. So a window around the defect is blanked,
the defect alone is pasted into it, and the fusion network T repairs the composite: the threads run up to
the defect and through it (Liu et al., Multistage GAN for Fabric Defect Detection, IEEE TIP 29, 2020).

Where the paper's window is empty, here the cloth's own repeat continues into it
(:func:`~loomsight.synthesis.repeat.continued`): a weave is periodic, and a network that does not have to
reinvent it can be small and learn its seams in minutes. From an empty window it made a grey halo around each
defect, which a segmenter would have learned.

T learns from known fabrics, whose patches with a real defect it must give back. It sees

* *their own* defect, with its window blanked and its pixels changed as a generator would have them: hinge
  reconstruction, features, and its discriminator D_T judge the repair;
* a *foreign* one, of stage 1 or drawn by the loom, in good cloth: what the defect should look like there
  nobody knows, so D_T judges it, which has seen real ones only; it must stay a little like what was given
  (self-regularisation, Shrivastava et al., CVPR 2017), and the cloth around it must be as it was.

Everything happens in the cloth's own :class:`~loomsight.synthesis.patches.Look`, where 0 is its mean.

Read top to bottom: the networks, the composite, the losses and the task, training. The samples are made in
:mod:`~loomsight.synthesis.multistage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loomsight.backbones import efficientnet_lite, vgg
from loomsight.config import Config
from loomsight.fabric.types import Mask
from loomsight.progress import Progress
from loomsight.synthesis.edits import clean_mask, painted, placed
from loomsight.synthesis.gan import Objective, discriminator_loss, generator_loss, spectral
from loomsight.synthesis.patches import DefectPatch, Look, PatchMaker
from loomsight.synthesis.repeat import continued
from loomsight.training.loop import History, TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

DILATION = (4, 10)  # pixels that the blanked region reaches beyond the mask, at least and at most


class FusionSettings(Config):
    """T, D_T and how they learn."""

    width: PositiveInt = 16  # channels at half size; 2½ and 4 times as many at a quarter and an eighth
    batch: PositiveInt = 16
    lr: PositiveFloat = 5e-4
    margin: NonNegativeFloat = 0.03  # of the hinge reconstruction, in Look units: 2 to 6 grey levels
    ring: NonNegativeFloat = 2.0  # weight of a pixel of the region outside the mask; one inside has 1
    reconstruction: NonNegativeFloat = 10.0  # weights of the losses …
    features: NonNegativeFloat = 1.0
    adversarial: NonNegativeFloat = 0.2
    backbone: Literal["lite0", "vgg16"] = "lite0"  # of the features; VGG16 takes four times as long
    foreign: float = Field(default=0.5, ge=0, le=1)  # share of composites with a defect from elsewhere
    kept: NonNegativeFloat = 0.2  # weight of a pixel of such a defect in the reconstruction
    ema: float = Field(default=0.995, ge=0, lt=1)


def _conv(inp: int, out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inp, out, 3, stride=stride, padding=1), nn.LeakyReLU(0.2, inplace=True))


class _Residual(nn.Module):
    """x + two convolutions, at first the identity; no norm, which would take the contrast away."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y: Tensor = x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))
        return y


class FusionNetwork(nn.Module):
    """T: a U-Net over strides 2, 4 and 8, dilated at the bottom so that it sees the cloth on all sides."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        fine, middle, deep = width, 5 * width // 2, 4 * width
        self.enter = _conv(4 * 5, fine)
        self.down = nn.ModuleList([_conv(fine, middle, stride=2), _conv(middle, deep, stride=2)])
        self.encode = nn.ModuleList([_Residual(fine), _Residual(middle)])
        self.bottom = nn.Sequential(*(_Residual(deep, dilation) for dilation in (1, 2, 4)))
        self.up = nn.ModuleList([nn.Conv2d(deep, middle, 1), nn.Conv2d(middle, fine, 1)])
        self.decode = nn.ModuleList([_Residual(middle), _Residual(fine)])
        self.leave = nn.Conv2d(fine, 4 * 8, 1)
        self.finish = nn.Sequential(_conv(8 + 5, 16), nn.Conv2d(16, 3, 3, padding=1))
        for parameter in self.finish[1].parameters():
            nn.init.zeros_(parameter)  # it begins by leaving everything as it is

    def forward(
        self,
        composite: Float[Tensor, "b 3 h w"],
        mask: Float[Tensor, "b 1 h w"],
        region: Float[Tensor, "b 1 h w"],
    ) -> Float[Tensor, "b 3 h w"]:
        """The repaired composite, in Look units; only what lies in ``region`` is meant to be used.

        Args:
            composite: cloth in [−1, 1], its repeat in the region, and the defect under the mask.
            mask: 1 on the defect.
            region: 1 where T is to repair; it contains the mask.
        """
        x = torch.cat((composite, mask, region), 1)
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        fine = self.encode[0](self.enter(F.pixel_unshuffle(padded, 2)))
        middle = self.encode[1](self.down[0](fine))
        y = self.bottom(self.down[1](middle))
        for up, decode, skip in zip(self.up, self.decode, (middle, fine), strict=True):
            y = decode(F.interpolate(up(y), scale_factor=2.0, mode="nearest") + skip)
        y = torch.cat((F.pixel_shuffle(self.leave(y), 2), padded), 1)
        out: Tensor = self.finish(y)[..., :height, :width]
        return composite + out


class PatchDiscriminator(nn.Module):
    """D_T: does the cloth look right here, and like this mask? One logit for every 4 × 4 pixels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.judge = spectral(
            nn.Sequential(
                _conv(4 * 4, width),
                _conv(width, 2 * width, stride=2),
                _conv(2 * width, 2 * width),
                nn.Conv2d(2 * width, 1, 3, padding=1),
            )
        )

    def forward(
        self, image: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b 1 i j"]:
        """Logits, high for real cloth; h and w are multiples of 4."""
        logits: Tensor = self.judge(F.pixel_unshuffle(torch.cat((image, mask), 1), 2))
        return logits


def build_fusion(settings: FusionSettings | None = None) -> FusionNetwork:
    """T with random weights."""
    return FusionNetwork((settings or FusionSettings()).width)


# --------------------------------------------------------------------------------------- the composite


def region_around(mask: Mask, dilation: int) -> Mask:
    """The window to blank: the mask dilated by a disk of ``dilation`` pixels."""
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * dilation + 1, 2 * dilation + 1))
    return cv2.dilate(mask.astype(np.uint8), disk).astype(bool)


def fuse(
    network: nn.Module,
    cloth: Float[Tensor, "b 3 h w"],
    window: Float[Tensor, "b 3 h w"],
    *,
    defect: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    region: Float[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
    """Paste and repair.

    Args:
        cloth: what the defect is set into, in Look units.
        window: the same, the region blanked by :func:`continued`.
        defect: its pixels, read under the mask only.
        mask, region: 0 or 1; the region contains the mask.

    Returns:
        What T says, and the picture: T inside the region, fading to the cloth over its last two pixels, and
        the cloth itself, bit for bit, outside.
    """
    said = network(torch.where(mask > 0, defect, window), mask, region)
    outside = 1 - region
    grown = [F.max_pool2d(outside, 2 * reach + 1, 1, reach) for reach in (1, 2)]
    share = (3 - outside - grown[0] - grown[1]) / 3
    return said, torch.where(region > 0, cloth + share * (said - cloth), cloth)


# ------------------------------------------------------------------------------- the losses and the task


class Batch(TypedDict):
    """What a training step takes: b patches, in Look units, with masks of 0 and 1."""

    real: Float[Tensor, "b 3 h w"]  # a known fabric's patch with its defect
    real_mask: Float[Tensor, "b 1 h w"]
    cloth: Float[Tensor, "b 3 h w"]  # what is known to be right: the same patch, or good cloth
    window: Float[Tensor, "b 3 h w"]  # the cloth with its region blanked
    defect: Float[Tensor, "b 3 h w"]  # to be read under the mask
    mask: Float[Tensor, "b 1 h w"]
    region: Float[Tensor, "b 1 h w"]
    own: Bool[Tensor, " b"]  # the defect is the cloth's own: the truth under the mask is known too


def hinge_reconstruction(
    output: Float[Tensor, "b 3 h w"],
    truth: Float[Tensor, "b 3 h w"],
    weight: Float[Tensor, "b 1 h w"],
    margin: float,
) -> Float[Tensor, ""]:
    """Mean of max(0, \\|y − T(x)\\| − m), where pixels count by ``weight``; 0 if none does."""
    beyond = F.relu((truth - output).abs() - margin).mean(1, keepdim=True)
    return (beyond * weight).sum() / weight.sum().clamp(min=1e-6)


class Features(nn.Module):
    """φ: shallow activations of a fixed ImageNet network, of pictures in Look units.

    The first two levels of EfficientNet-Lite0, or VGG16 up to conv2_2, which the paper's φ is.
    """

    def __init__(self, backbone: Literal["lite0", "vgg16"] = "lite0") -> None:
        super().__init__()
        self._network: nn.Module
        if backbone == "vgg16":
            self._network = vgg.build(layers=("conv1_2", "conv2_2"))
        else:
            self._network = efficientnet_lite.build(stages=2).eval().requires_grad_(False)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c i j"]]:
        found = self._network(image * 0.5 + 0.5)
        return list(found.values()) if isinstance(found, dict) else found

    def distance(
        self, output: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        """(1/CHW)‖φ(T(x)) − φ(y)‖², over the mean square of φ(y), summed over the levels."""
        with torch.no_grad():
            wanted = self(truth)
        pairs = zip(self(output), wanted, strict=True)
        losses = [(a - b).square().mean() / b.square().mean().clamp(min=1e-6) for a, b in pairs]
        return torch.stack(losses).sum()


class FusionTask:
    """How the training loop trains T against D_T, by the hinge objective."""

    def __init__(self, network: FusionNetwork, settings: FusionSettings) -> None:
        self._t, self._d = network, PatchDiscriminator(settings.width)
        self.networks: Mapping[str, nn.Module] = {"fusion": self._t, "discriminator": self._d}
        self.optimizers = {
            "fusion": torch.optim.Adam(self._t.parameters(), lr=settings.lr, betas=(0.5, 0.99)),
            "discriminator": torch.optim.Adam(self._d.parameters(), lr=settings.lr, betas=(0.5, 0.99)),
        }
        self._settings = settings
        self._features = Features(settings.backbone) if settings.features else None

    def step(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        settings, own = self._settings, batch["own"]
        mask, region, cloth = batch["mask"], batch["region"], batch["cloth"]
        with context.autocast():
            said, fused = fuse(
                self._t, cloth, batch["window"], defect=batch["defect"], mask=mask, region=region
            )
        said, fused = said.float(), fused.float()
        losses: dict[str, Tensor] = {}
        if settings.adversarial:
            self._d.requires_grad_(True)
            real_at = _widened(batch["real_mask"])
            real = self._d(batch["real"], batch["real_mask"])[_cells(real_at)]
            fake = self._d(fused.detach(), mask)[_cells(region)]
            losses["discriminator"] = discriminator_loss(Objective.HINGE, real, fake)
            context.update(losses["discriminator"], "discriminator")
            self._d.requires_grad_(False)
            fake = self._d(fused, mask)[_cells(region)]
            losses["adversarial"] = generator_loss(Objective.HINGE, fake)

        truth_known = own.view(-1, 1, 1, 1).to(mask.dtype)
        weight = mask * torch.where(truth_known > 0, 1.0, settings.kept) + settings.ring * (region - mask)
        truth = torch.where((mask > 0) & (truth_known == 0), batch["defect"], cloth)
        losses["reconstruction"] = hinge_reconstruction(said, truth, weight, settings.margin)
        if self._features is not None and bool(own.any()):
            self._features.to(context.device)
            losses["features"] = self._features.distance(fused[own], cloth[own])
        parts = ("reconstruction", "features", "adversarial")
        loss = sum(getattr(settings, name) * losses[name] for name in parts if name in losses)
        context.update(torch.as_tensor(loss), "fusion")
        return losses


def _widened(mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """A mask with as much around it as a region has in the mean."""
    reach = sum(DILATION) // 2
    return F.max_pool2d(mask, 2 * reach + 1, 1, reach)


def _cells(region: Float[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 i j"]:
    """Which logits of D_T look at the region."""
    return F.max_pool2d(region, 4) > 0


# ------------------------------------------------------------------------------------------- training


class DefectSource(Protocol):
    """What fusion needs of stage 1 (:class:`loomsight.synthesis.multistage.Stage1` is one)."""

    def generate(
        self,
        codes: Float[NDArray[np.float32], "n d"],
        shapes: Sequence[int],
        rng: np.random.Generator,
        *,
        cells: int = 4,
    ) -> tuple[Float[NDArray[np.float32], "n 4 s s"], Float[NDArray[np.float32], "n s s"]]:
        """n edits of the cloth, 16 px a cell a side, and where they are defective, in [0, 1]."""


class CompositeMaker:
    """Makes batch k of a fusion training from k alone.

    Args:
        patches: known fabrics.
        stage1: where half of the foreign defects come from; without it all of them are drawn.
    """

    def __init__(
        self,
        patches: PatchMaker,
        settings: FusionSettings,
        *,
        stage1: DefectSource | None = None,
        seed: int = 0,
    ) -> None:
        self._patches, self._settings, self._seed = patches, settings, seed
        self._foreign: list[tuple[NDArray[np.float32], Mask]] = []
        if stage1 is not None:  # stage 1 no longer changes, so its defects are made once
            rng = np.random.default_rng([seed, 11])
            for k in range(16):
                like = patches.batch(1_000_000 + k, 16)
                made, likely = stage1.generate(np.stack([p.code for p in like]), [p.shape for p in like], rng)
                pairs = zip(made, map(clean_mask, likely), strict=True)
                self._foreign += [(one, mask) for one, mask in pairs if mask.any()]

    def batch(self, k: int) -> Batch:
        """The batch of step ``k``."""
        rng = np.random.default_rng([self._seed, k, 13])
        found = self._patches.batch(k, self._settings.batch, drawn=0.0)
        seen = [Look.of(patch.image, patch.mask).encode(patch.image) for patch in found]
        rows = [self._row(found, seen, at, rng) for at in range(len(found))]
        names = ("cloth", "window", "defect", "mask", "region", "own")
        columns = [np.stack(column) for column in zip(*rows, strict=True)]
        batch = {name: torch.from_numpy(column) for name, column in zip(names, columns, strict=True)}
        batch["real"] = torch.from_numpy(np.stack(seen))
        batch["real_mask"] = torch.from_numpy(np.stack([p.mask for p in found])[:, None].astype(np.float32))
        return batch  # type: ignore[return-value]

    def _row(
        self,
        found: list[DefectPatch],
        seen: list[NDArray[np.float32]],
        at: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float32], ...]:
        patch = found[at]
        good = self._patches.good(patch.fabric, rng) if rng.random() < self._settings.foreign else None
        if good is None:
            cloth, own = seen[at], True
            defect, mask = perturbed(seen[at], patch.mask, rng)
            covered = patch.mask | mask
        else:
            own = False
            if rng.random() < 0.5 or not self._foreign:
                drawn = self._patches.patch(rng, drawn=1.0)
                look, mask = Look.of(drawn.cloth), drawn.mask
                cloth, defect = look.encode(drawn.cloth), look.encode(drawn.image)
            else:
                cloth = Look.of(good).encode(good)
                edit, mask = self._foreign[int(rng.integers(len(self._foreign)))]
                edit, mask = placed(edit, mask, rng, cloth.shape[1:])
                defect = painted(cloth, edit)
            covered = mask
        region = region_around(covered, int(rng.integers(DILATION[0], DILATION[1] + 1)))
        masks = (mask[None].astype(np.float32), region[None].astype(np.float32))
        return cloth, continued(cloth, region), defect, *masks, np.asarray(own)


def perturbed(
    image: Float[NDArray[np.float32], "3 h w"], mask: Mask, rng: np.random.Generator
) -> tuple[Float[NDArray[np.float32], "3 h w"], Mask]:
    """A defect as a generator would give it: a little off in place, size, tone and sharpness, and noisy."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean()), float(rows.mean()))
    matrix = cv2.getRotationMatrix2D(centre, rng.normal(0, 2), float(np.exp(rng.normal(0, 0.05))))
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-1.5, 1.5, 2)
    out = cv2.warpAffine(image.transpose(1, 2, 0), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    moved = cv2.warpAffine(mask.astype(np.float32), matrix, (width, height)) > 0.5
    if not moved.any():  # it was moved out of the picture
        out, moved = np.ascontiguousarray(image.transpose(1, 2, 0)), mask
    if rng.random() < 0.5:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 1.2)))
    mean = out[moved].mean(axis=0)
    out = (out - mean) * np.exp(rng.normal(0, 0.15)) + mean + rng.normal(0, 0.05)
    if rng.random() < 0.5:
        out = out + rng.normal(0, rng.uniform(0.02, 0.1), (height, width, 1))
    return np.ascontiguousarray(np.clip(out, -1, 1).transpose(2, 0, 1), np.float32), moved


def train_fusion(
    patches: PatchMaker,
    settings: FusionSettings | None = None,
    *,
    stage1: DefectSource | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    run: Path | None = None,
    progress: Progress | None = None,
) -> tuple[FusionNetwork, History]:
    """Train T on known fabrics, for so many steps or so much time, whichever ends first.

    Args:
        patches: of known fabrics, a multiple of 8 pixels a side.
        stage1: makes half of the foreign defects; without it, all are drawn.

    Raises:
        TrainingError: it diverged.
        WeightsError: the weights of the features' backbone are missing.
    """
    settings = settings or FusionSettings()
    torch.manual_seed(seed)
    network = build_fusion(settings)
    maker = CompositeMaker(patches, settings, stage1=stage1, seed=seed)
    batches: Callable[[int], Batch] = maker.batch
    history = fit(
        FusionTask(network, settings),
        batches,
        TrainSettings(steps=steps, seconds=seconds, ema=settings.ema, clip_norm=5.0, seed=seed),
        run=run,
        progress=progress,
        about={"fusion": settings.model_dump(mode="json"), "stage1": stage1 is not None},
    )
    return network, history
