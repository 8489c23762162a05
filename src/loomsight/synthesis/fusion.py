"""Stage 2: a generated defect becomes part of the cloth it is set into.

A hard paste has a seam, and its threads do not meet the cloth's. So a window around the defect is blanked,
the defect alone is pasted into it, and the fusion network T repairs the composite: the threads run up to
the defect and through it (Liu et al., Multistage GAN for Fabric Defect Detection, IEEE TIP 29, 2020, §III).

T learns from known fabrics, whose patches with a real defect it must give back. It sees

* *their own* defect, with its window blanked and its pixels changed as a generator would have them: hinge
  reconstruction, features, and its discriminator D_T judge the repair;
* a *foreign* one, of stage 1 or of another fabric, in good cloth: what the defect should look like there
  nobody knows, so only D_T judges it, while the cloth around it must be as it was.

Everything happens in the cloth's own :class:`~loomsight.synthesis.patches.Look`, where 0 is its mean.

Read top to bottom: the networks, the composite, the losses and the task, training, the refined mask, and
:class:`Stage12`, which makes the samples.
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
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.types import Mask, Picture
from loomsight.progress import Progress
from loomsight.synthesis.gan import Objective, discriminator_loss, generator_loss, spectral
from loomsight.synthesis.patches import SHAPES, DefectPatch, Look, PatchMaker
from loomsight.synthesis.samples import Sample
from loomsight.training.loop import History, TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

_DILATION = (4, 10)  # pixels that the blanked region reaches beyond the mask, at least and at most


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
    foreign: float = Field(default=0.4, ge=0, le=1)  # share of composites with a defect from elsewhere
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

    def forward(
        self,
        composite: Float[Tensor, "b 3 h w"],
        mask: Float[Tensor, "b 1 h w"],
        region: Float[Tensor, "b 1 h w"],
    ) -> Float[Tensor, "b 3 h w"]:
        """The repaired composite, in Look units; only what lies in ``region`` is meant to be used.

        Args:
            composite: cloth in [−1, 1], 0 in the region, and the defect under the mask.
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
    defect: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    region: Float[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
    """Blank, paste and repair.

    Args:
        cloth: what the defect is set into, in Look units.
        defect: its pixels, read under the mask only.
        mask, region: 0 or 1; the region contains the mask.

    Returns:
        What T says, and the picture: T inside the region, fading to the cloth over its last two pixels, and
        the cloth itself, bit for bit, outside.
    """
    said = network(torch.where(mask > 0, defect, cloth * (1 - region)), mask, region)
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
            said, fused = fuse(self._t, cloth, batch["defect"], mask, region)
        said, fused = said.float(), fused.float()
        losses: dict[str, Tensor] = {}
        if settings.adversarial:
            self._d.requires_grad_(True)
            real_at = region_around_tensor(batch["real_mask"])
            real = self._d(batch["real"], batch["real_mask"])[_cells(real_at)]
            fake = self._d(fused.detach(), mask)[_cells(region)]
            losses["discriminator"] = discriminator_loss(Objective.HINGE, real, fake)
            context.update(losses["discriminator"], "discriminator")
            self._d.requires_grad_(False)
            fake = self._d(fused, mask)[_cells(region)]
            losses["adversarial"] = generator_loss(Objective.HINGE, fake)

        truth_known = own.view(-1, 1, 1, 1).to(mask.dtype)
        weight = mask * truth_known + settings.ring * (region - mask)
        losses["reconstruction"] = hinge_reconstruction(said, cloth, weight, settings.margin)
        if self._features is not None and bool(own.any()):
            self._features.to(context.device)
            losses["features"] = self._features.distance(fused[own], cloth[own])
        parts = ("reconstruction", "features", "adversarial")
        loss = sum(getattr(settings, name) * losses[name] for name in parts if name in losses)
        context.update(torch.as_tensor(loss), "fusion")
        return losses


def region_around_tensor(mask: Float[Tensor, "b 1 h w"], dilation: int = 7) -> Float[Tensor, "b 1 h w"]:
    """The mask dilated by a square, as a tensor."""
    return F.max_pool2d(mask, 2 * dilation + 1, 1, dilation)


def _cells(region: Float[Tensor, "b 1 h w"]) -> Bool[Tensor, "b 1 i j"]:
    """Which logits of D_T look at the region."""
    return F.max_pool2d(region, 4) > 0


# ------------------------------------------------------------------------------------------- training


class DefectSource(Protocol):
    """What fusion needs of stage 1 (:class:`loomsight.synthesis.texture_gan.Stage1` is one)."""

    def generate(
        self, codes: Float[NDArray[np.float32], "n d"], shapes: Sequence[int], rng: np.random.Generator
    ) -> tuple[Float[NDArray[np.float32], "n 3 s s"], Float[NDArray[np.float32], "n s s"]]:
        """n defects in Look units, and where they are, in [0, 1]."""


class CompositeMaker:
    """Makes batch k of a fusion training from k alone.

    Args:
        patches: known fabrics.
        stage1: where foreign defects come from; without it they come from other patches of the batch.
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
                self._foreign += generate(stage1, [p.code for p in like], [p.shape for p in like], rng)

    def batch(self, k: int) -> Batch:
        """The batch of step ``k``."""
        rng = np.random.default_rng([self._seed, k, 13])
        found = self._patches.batch(k, self._settings.batch)
        seen = [Look.of(patch.image, patch.mask).encode(patch.image) for patch in found]
        rows = [self._row(found, seen, at, rng) for at in range(len(found))]
        names = ("cloth", "defect", "mask", "region", "own")
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
            cloth, own = Look.of(good).encode(good), False
            if self._foreign:
                defect, mask = self._foreign[int(rng.integers(len(self._foreign)))]
            else:
                other = (at + 1 + int(rng.integers(max(1, len(found) - 1)))) % len(found)
                defect, mask = seen[other], found[other].mask
            defect, mask = resized(defect, mask, rng, cloth.shape[1:])
            covered = mask
        region = region_around(covered, int(rng.integers(_DILATION[0], _DILATION[1] + 1)))
        masks = (mask[None].astype(np.float32), region[None].astype(np.float32))
        return cloth, defect, *masks, np.asarray(own)


def perturbed(
    image: Float[NDArray[np.float32], "3 h w"], mask: Mask, rng: np.random.Generator
) -> tuple[Float[NDArray[np.float32], "3 h w"], Mask]:
    """A defect as a generator would give it: a little off in place, size, tone and sharpness, and noisy."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    centre = (float(columns.mean()), float(rows.mean()))
    matrix = cv2.getRotationMatrix2D(centre, rng.normal(0, 2), float(np.exp(rng.normal(0, 0.05))))
    matrix[:, 2] += rng.uniform(-1.5, 1.5, 2)
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


def resized(
    defect: Float[NDArray[np.float32], "3 h w"],
    mask: Mask,
    rng: np.random.Generator,
    room: tuple[int, int],
    *,
    span: tuple[float, float] = (0.7, 1.3),
) -> tuple[Float[NDArray[np.float32], "3 i j"], Mask]:
    """A defect resized by a factor from ``span`` and set somewhere into ``room``: (height, width)."""
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    scale = float(np.exp(rng.uniform(*np.log(span))))
    wide, high = (max(2, min(round(n * scale), most)) for n, most in ((w, room[1]), (h, room[0])))
    cut, own = defect[:, y : y + h, x : x + w].transpose(1, 2, 0), mask[y : y + h, x : x + w]
    cut = cv2.resize(np.ascontiguousarray(cut), (wide, high), interpolation=cv2.INTER_LINEAR)
    own = cv2.resize(own.astype(np.float32), (wide, high), interpolation=cv2.INTER_LINEAR) > 0.5
    top, left = (int(rng.integers(0, most - n + 1)) for most, n in ((room[0], high), (room[1], wide)))
    out, placed = np.zeros((3, *room), np.float32), np.zeros(room, bool)
    out[:, top : top + high, left : left + wide] = cut.transpose(2, 0, 1)
    placed[top : top + high, left : left + wide] = own
    return out, placed


def generate(
    stage1: DefectSource,
    codes: Sequence[NDArray[np.float32]],
    shapes: Sequence[int],
    rng: np.random.Generator,
) -> list[tuple[NDArray[np.float32], Mask]]:
    """Defects of stage 1 with their masks; those without a mask are left out."""
    made, likely = stage1.generate(np.stack(codes), shapes, rng)
    return [(defect, where > 0.5) for defect, where in zip(made, likely, strict=True) if (where > 0.5).any()]


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
        stage1: makes the foreign defects; without it, they are other fabrics' real ones.

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


# ------------------------------------------------------------------------------------ the refined mask


def refine_mask(before: Picture, after: Picture, mask: Mask, region: Mask) -> Mask:
    """Where a defect is to be seen, from what changed.

    The change, \\|after − before\\| smoothed, is measured against the cloth's own variation in the region:
    a pixel of the mask that changed by less than a third of it is dropped, for nobody sees a defect there; a
    pixel outside that changed by more than 1½ times as much, more than threads that merely lie otherwise,
    is added if it touches the defect.

    Args:
        before, after: uint8 HWC.
        mask: bool HW, the defect as it was set in.
        region: bool HW, what may have changed; the result never leaves it.
    """
    change = np.abs(after.astype(np.float32) - before).max(axis=2)
    change = cv2.GaussianBlur(change, (0, 0), 0.8)
    cloth = before[region].astype(np.float32).mean(axis=-1)
    own = max(4.0, float(cloth.std())) if cloth.size else 4.0
    kept = mask & region & (change > max(3.0, own / 3))
    kept = cv2.morphologyEx(kept.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool)
    kept &= mask & region
    if not kept.any():
        return kept
    strong = region & ((change > 1.5 * own) | kept)
    _, labels = cv2.connectedComponents(strong.astype(np.uint8), connectivity=8)
    return np.asarray(kept | (strong & np.isin(labels, np.unique(labels[kept]))), bool)


# ------------------------------------------------------------------------------------------ the samples


class Stage12:
    """Stages 1 and 2 together: a :class:`~loomsight.synthesis.samples.Generator`.

    Args:
        stage1: makes the defects.
        network: T, trained.
    """

    name = "stage1+2"

    def __init__(self, stage1: DefectSource, network: FusionNetwork) -> None:
        self._stage1, self._network = stage1, network.eval()

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One fused defect in each window; see :class:`~loomsight.synthesis.samples.Generator`."""
        shapes = [int(shape) for shape in rng.integers(len(SHAPES), size=len(cloth))]
        made, likely = self._stage1.generate(np.repeat(code[None], len(cloth), 0), shapes, rng)
        defects = []
        for window, patch, where in zip(cloth, made, likely, strict=True):
            defects.append(
                resized(patch, where > 0.5, rng, window.shape[:2]) if (where > 0.5).any() else None
            )
        placed = iter(
            set_in(
                self._network,
                [w for w, d in zip(cloth, defects, strict=True) if d is not None],
                [d for d in defects if d is not None],
                rng,
            )
        )
        samples = []
        for window, shape, defect in zip(cloth, shapes, defects, strict=True):
            image, mask = (
                (window.copy(), np.zeros(window.shape[:2], bool)) if defect is None else next(placed)
            )
            samples.append(Sample(window, image, mask, shape, self.name))
        return samples


def set_in(
    network: nn.Module,
    cloth: Sequence[Picture],
    defects: Sequence[tuple[Float[NDArray[np.float32], "3 h w"], Mask]],
    rng: np.random.Generator,
) -> list[tuple[Picture, Mask]]:
    """Fuse each defect into its window.

    Args:
        cloth: uint8 HWC RGB windows of one size.
        defects: in Look units, at their place in a picture of the same size, with their masks.
        rng: decides how far around the mask T may change the cloth.

    Returns:
        For each, the picture and the refined mask. Outside the region the picture is the cloth bit for bit.
    """
    if not cloth:
        return []
    looks = [Look.of(window) for window in cloth]
    regions = [region_around(mask, int(rng.integers(_DILATION[0], _DILATION[1] + 1))) for _, mask in defects]

    def stacked(arrays: list[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    with torch.inference_mode():
        _, fused = fuse(
            network,
            stacked([look.encode(window) for look, window in zip(looks, cloth, strict=True)]),
            stacked([defect for defect, _ in defects]),
            stacked([mask[None].astype(np.float32) for _, mask in defects]),
            stacked([region[None].astype(np.float32) for region in regions]),
        )
    made = []
    for window, look, seen, (_, mask), region in zip(
        cloth, looks, fused.float().numpy(), defects, regions, strict=True
    ):
        new = look.decode(seen)
        if bool((window[..., :1] == window[..., 1:]).all()):  # a grey camera sees no colour
            new = to_rgb(to_grey(new))
        image = np.where(region[..., None], new, window)
        made.append((image, refine_mask(window, image, mask, region)))
    return made
