"""Diffusion: a defect is painted into good cloth by taking noise away, step by step.

The other way to a defect beside the GAN, with the same interface. What a defect changed in its cloth, x₀, is
drowned in noise,

    x_t = α_t x₀ + σ_t ε,   α_t² + σ_t² = 1,

and a network learns to see through it (Ho et al., NeurIPS 2020). Ours predicts v = α_t ε − σ_t x₀ (Salimans
and Ho, ICLR 2022), which is well defined at every t. It is told, as further channels, the cloth without the
defect, the region that may change, and where in it the defect is; and, as an embedding, the cloth's texture
code and the defect's shape class. So it need not learn to weave: it has the cloth, and paints the change.
Sampling is DPM-Solver++ (Lu et al., 2022): 12 calls of the network where the noising had 1,000 steps.

Masks are not invented: they are those of known and drawn defects, kept as bits beside the weights, mirrored
and scaled. Read top to bottom: pictures, noise, network, training step, training, masks, generation.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loomsight.config import Config
from loomsight.fabric.types import Mask, Picture
from loomsight.progress import Progress
from loomsight.synthesis.augment import flip_and_turn
from loomsight.synthesis.edits import refine_mask
from loomsight.synthesis.patches import SHAPES, DefectPatch, Look, PatchMaker, shape_class
from loomsight.synthesis.samples import Sample
from loomsight.synthesis.texture_gan import CodeProjection
from loomsight.training.loop import History, TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

_NOISE_STEPS = 1000
_BANK = 256  # masks kept with the weights
_FOLD = 2  # px: squares of so many pixels a side are one place of the network, which costs a quarter
_CONTEXTS = (64, 96, 128)  # px: the square of cloth that the network sees around a defect
_MARGIN = 10  # px of that square left around a mask
_LUMA, _CHROMA = (
    4.0,
    16.0,
)  # bring weave and tint, in a Look 0.18 and 0.03 to 0.1, to about the noise's strength
_FARTHEST = 6.0  # what a change is at most, scaled so
_BLEND = 3.0  # px over which the painted passes into the cloth at the region's edge


class DiffusionSettings(Config):
    """The network, its training, and how it is sampled."""

    channels: tuple[PositiveInt, ...] = (32, 64, 96)  # at 32, 16 and 8 places a side for a 64 px patch
    code_size: PositiveInt = 32  # of the compressed texture code
    batch: PositiveInt = 16
    lr: PositiveFloat = 6e-4
    ema: float = Field(0.998, ge=0, lt=1)
    snr_limit: PositiveFloat = 5.0  # of min-SNR weighting
    ring_weight: float = Field(0.4, ge=0)  # of the cloth between the mask and the region's edge
    sampling_steps: int = Field(12, ge=2, le=25)  # calls of the network for a generation


# Pictures


def seen_as(look: Look, image: Picture) -> Float[NDArray[np.float32], "3 h w"]:
    """A picture as the denoiser sees it: in its Look, as brightness and two differences of colour.

    Both of about unit variance, and so are changes of them. Of what is much weaker than the noise, v is
    little else than the noise, and a network that copies noise well learns nothing else.
    """
    red, green, blue = look.encode(image)
    both = (red + green) / 2
    return np.stack((_LUMA * (2 * both + blue) / 3, _CHROMA * (red - green) / 2, _CHROMA * (both - blue) / 2))


def shown(look: Look, seen: Float[NDArray[np.float32], "3 h w"]) -> Picture:
    """And back: uint8 HWC."""
    luma, first, second = seen[0] / _LUMA, seen[1] / _CHROMA, seen[2] / _CHROMA
    both = luma + second * (2 / 3)
    return look.decode(np.stack((both + first, both - first, both - 2 * second)))


def is_grey(image: Picture) -> bool:
    """Whether a grey camera took it: its three channels are one."""
    return bool((image[..., :1] == image[..., 1:]).all())


# Noise


@dataclass(frozen=True, slots=True)
class Noising:
    """How much of the picture and how much noise there is at each of 1,000 steps.

    The squared-cosine schedule (Nichol and Dhariwal, ICML 2021), which ends in noise alone.

    Attributes:
        alpha: (1000,), the picture's share; sigma: the noise's; alpha² + sigma² = 1.
    """

    alpha: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]

    @classmethod
    def cosine(cls, device: torch.device | str = "cpu") -> Noising:
        """The schedule, as diffusers' scheduler has it."""
        from diffusers import DDPMScheduler

        untyped: Any = DDPMScheduler
        kept: Tensor = untyped(**_schedule()).alphas_cumprod.to(device)
        return cls(kept.sqrt(), (1 - kept).sqrt())

    def at(self, t: Int[Tensor, " b"]) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
        """Alpha and sigma of each picture's step."""
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def noisy(self, x0: Tensor, noise: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """x_t."""
        alpha, sigma = self.at(t)
        return alpha * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """v, from the picture and the noise."""
        alpha, sigma = self.at(t)
        return alpha * noise - sigma * x0

    def picture(self, x_t: Tensor, v: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """x₀, from x_t and v."""
        alpha, sigma = self.at(t)
        return alpha * x_t - sigma * v

    def noise(self, x_t: Tensor, v: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """ε, from x_t and v."""
        alpha, sigma = self.at(t)
        return sigma * x_t + alpha * v

    def weight(self, t: Int[Tensor, " b"], limit: float) -> Float[Tensor, "b 1 1 1"]:
        """Min-SNR weights for a loss on v (Hang et al., ICCV 2023): steps with little noise count less."""
        alpha, sigma = self.at(t)
        snr = (alpha / sigma.clamp(min=1e-4)) ** 2
        return snr.clamp(max=limit) / (snr + 1)


def _schedule() -> dict[str, Any]:
    return {
        "num_train_timesteps": _NOISE_STEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }


# Network


class DefectDiffusion(nn.Module):
    """The denoiser, what it knows of known fabrics' codes, and its bank of masks.

    Attributes:
        masks: uint8 (256, size · size / 8), masks as packed bits; shapes: int64 (256,), their classes.
    """

    masks: UInt8[Tensor, "n bytes"]
    shapes: Int[Tensor, " n"]

    def __init__(self, settings: DiffusionSettings, code_length: int, size: int) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.settings, self.size = settings, size
        levels, width = len(settings.channels), 4 * settings.channels[0]
        untyped: Any = UNet2DModel
        self.unet = untyped(
            in_channels=(3 + 3 + 1 + 1) * _FOLD**2,
            out_channels=3 * _FOLD**2,
            block_out_channels=settings.channels,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            layers_per_block=1,
            attention_head_dim=32,
            norm_num_groups=8,
            class_embed_type="identity",  # what it is told of cloth and shape is embedded here
        )
        self.projection = CodeProjection(code_length, settings.code_size)
        told = settings.code_size + len(SHAPES)
        self.embed = nn.Sequential(nn.Linear(told, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("masks", torch.zeros((_BANK, size * size // 8), dtype=torch.uint8))
        self.register_buffer("shapes", torch.zeros(_BANK, dtype=torch.int64))

    def forward(  # noqa: PLR0917 — channels, then conditions
        self,
        noisy: Float[Tensor, "b 3 h w"],
        t: Int[Tensor, " b"],
        cloth: Float[Tensor, "b 3 h w"],
        region: Float[Tensor, "b 1 h w"],
        mask: Float[Tensor, "b 1 h w"],
        code: Float[Tensor, "b d"],
        shape: Int[Tensor, " b"],
    ) -> Float[Tensor, "b 3 h w"]:
        """The velocity v.

        Args:
            noisy: x_t, of a change of the cloth. Sides are multiples of 8.
            t: noising steps in [0, 999].
            cloth: without the defect, as seen_as gives it.
            region: 1 where it may change; mask: 1 on the defect.
            code: texture codes; shape: indices into SHAPES.
        """
        told = torch.cat([self.projection(code), F.one_hot(shape, len(SHAPES)).to(noisy.dtype)], 1)
        seen = torch.cat([noisy, cloth, region, mask], 1)
        out: Tensor = self.unet(F.pixel_unshuffle(seen, _FOLD), t, class_labels=self.embed(told)).sample
        return F.pixel_shuffle(out, _FOLD)

    def remember(self, patches: Sequence[DefectPatch]) -> None:
        """Keep the masks of patches, over and over if they are few."""
        kept = [patches[i % len(patches)] for i in range(_BANK)]
        self.masks.copy_(torch.from_numpy(np.stack([np.packbits(patch.mask) for patch in kept])))
        self.shapes.copy_(torch.tensor([patch.shape for patch in kept]))

    def known_mask(self, shape: int | None, rng: np.random.Generator) -> Mask:
        """A known mask of a class, cropped to the defect; of any class if there is none of it."""
        shapes = self.shapes.cpu().numpy()
        of = np.flatnonzero(shapes == shape) if shape is not None else np.arange(len(shapes))
        bits = self.masks[int(rng.choice(of if len(of) else len(shapes)))].cpu().numpy()
        mask = np.unpackbits(bits).reshape(self.size, self.size).astype(bool)
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        return mask[y : y + h, x : x + w]


def build_diffusion(
    settings: DiffusionSettings | None = None, *, code_length: int, size: int = 64
) -> DefectDiffusion:
    """An untrained network.

    Args:
        code_length: of the texture codes it will be told.
        size: pixels a side of the patches it learns from.
    """
    return DefectDiffusion(settings or DiffusionSettings(), code_length, size)


# Training


class Batch(TypedDict):
    """What a training step takes: cloth as :func:`seen_as` gives it, and how the defect changed that."""

    change: Float[Tensor, "b 3 h w"]
    cloth: Float[Tensor, "b 3 h w"]
    region: Float[Tensor, "b 1 h w"]
    mask: Float[Tensor, "b 1 h w"]
    code: Float[Tensor, "b d"]
    shape: Int[Tensor, " b"]


class DiffusionTask:
    """How the training loop trains it: AdamW on the squared error of v in the region."""

    def __init__(self, network: DefectDiffusion) -> None:
        self.networks: Mapping[str, nn.Module] = {"diffusion": network}
        self.optimizers = {
            "diffusion": torch.optim.AdamW(network.parameters(), lr=network.settings.lr, weight_decay=1e-2)
        }
        self._network, self._settings = network, network.settings
        self._noising: Noising | None = None

    def step(self, batch: Batch, context: Context) -> dict[str, Tensor]:
        if self._noising is None:
            self._noising = Noising.cosine(context.device)
        x0, noising = batch["change"], self._noising
        random: dict[str, Any] = {"generator": context.generator, "device": context.device}
        # One step from each of b equal parts of the schedule: the loss is steadier than with b free ones.
        place = torch.rand(1, **random) + torch.arange(len(x0), device=context.device) / len(x0)
        t = ((place % 1) * _NOISE_STEPS).long()
        noise = torch.randn(x0.shape, **random)
        region, mask = batch["region"], batch["mask"]
        with context.autocast():
            v = self._network(
                noising.noisy(x0, noise, t), t, batch["cloth"], region, mask, batch["code"], batch["shape"]
            )
        loss = diffusion_loss(
            v.float(), noising, x0=x0, noise=noise, t=t, region=region, mask=mask, settings=self._settings
        )
        context.update(loss)
        return {"loss": loss}


def diffusion_loss(
    v: Float[Tensor, "b 3 h w"],
    noising: Noising,
    *,
    x0: Float[Tensor, "b 3 h w"],
    noise: Float[Tensor, "b 3 h w"],
    t: Int[Tensor, " b"],
    region: Float[Tensor, "b 1 h w"],
    mask: Float[Tensor, "b 1 h w"],
    settings: DiffusionSettings,
) -> Float[Tensor, ""]:
    """Squared error of v, over the region, its ring counting less; each patch counts the same.

    Of grey cloth the colour is not counted: it is known.
    """
    coloured = (x0[:, 1:].abs().amax((1, 2, 3), keepdim=True) > 0).to(x0.dtype)
    error = (v - noising.velocity(x0, noise, t)) ** 2
    error = torch.cat((error[:, :1], error[:, 1:] * coloured), 1)
    where = mask + settings.ring_weight * (region - mask).clamp(min=0)
    each = (error.mean(1, keepdim=True) * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp(min=1e-3)
    return (each * noising.weight(t, settings.snr_limit)[:, 0, 0, 0]).mean()


def make_batch(maker: PatchMaker, k: int, settings: DiffusionSettings, seed: int) -> Batch:
    """The batch of step ``k``."""
    rng = np.random.default_rng([seed, k, 11])
    changes, cloths, regions, masks = [], [], [], []
    patches = maker.batch(k, settings.batch)
    for patch in patches:
        region = _around(patch.mask, int(rng.integers(4, 11)))
        look = Look.of(patch.image, region)
        cloths.append(seen_as(look, patch.cloth))
        changes.append((seen_as(look, patch.image) - cloths[-1]) * region)
        regions.append(region[None])
        masks.append(patch.mask[None])
    return {
        "change": torch.from_numpy(np.stack(changes)),
        "cloth": torch.from_numpy(np.stack(cloths)),
        "region": torch.from_numpy(np.stack(regions)).float(),
        "mask": torch.from_numpy(np.stack(masks)).float(),
        "code": torch.from_numpy(np.stack([patch.code for patch in patches])),
        "shape": torch.tensor([patch.shape for patch in patches]),
    }


def train_diffusion(
    patches: PatchMaker,
    settings: DiffusionSettings | None = None,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    run: Path | None = None,
    progress: Progress | None = None,
) -> tuple[DefectDiffusion, History]:
    """Train on patches of known fabrics.

    Args:
        patches: where they come from.
        settings: see :class:`DiffusionSettings`.
        steps: how long, or …
        seconds: … how long by the clock; whichever comes first.
        seed: of the weights and of everything random.
        run: folder for checkpoints; None keeps nothing on disk.
        progress: told of every step.

    Returns:
        The network in evaluation mode, and what happened.
    """
    settings = settings or DiffusionSettings()
    # Steps that no training reaches: what the bank is filled with, and what the code's compression sees.
    known = patches.batch(1 << 40, _BANK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_diffusion(settings, code_length=len(known[0].code), size=known[0].mask.shape[0])
    network.remember(known)
    network.projection.fit(np.stack(list({patch.fabric: patch.code for patch in known}.values())))
    how = TrainSettings(
        steps=steps, seconds=seconds, ema=settings.ema, warmup=100, seed=seed, workers=1, clip_norm=1.0
    )
    history = fit(
        DiffusionTask(network),
        lambda k: make_batch(patches, k, settings, seed),
        how,
        run=run,
        progress=progress,
        about={"diffusion": settings.model_dump(mode="json")},
    )
    return network, history


# Generation


class DiffusionStage:
    """Paints defects into good cloth; a :class:`loomsight.synthesis.samples.Generator`.

    Args:
        network: trained.
        steps: calls of the network for a generation, at most 25; default: as the network's settings say.
    """

    name = "diffusion"

    def __init__(self, network: DefectDiffusion, *, steps: int | None = None) -> None:
        self._network = network.eval()
        self._steps = steps or network.settings.sampling_steps
        if not 2 <= self._steps <= 25:
            raise ValueError(f"steps must be 2 to 25, got {self._steps}")
        self._noising = Noising.cosine(next(network.parameters()).device)

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One defect in each window of good cloth, all windows in one run of the sampler.

        Args:
            cloth: uint8 HWC RGB windows of one size, at least 64 px a side.
            code: the fabric's texture code, float32 (d,).
            rng: decides everything random.

        Raises:
            ValueError: windows too small, or a code that is not of the encoder it was trained with.
        """
        if not cloth:
            return []
        if code.shape != self._network.projection.mean.shape:
            raise ValueError(f"a code has {len(self._network.projection.mean)} numbers, got {code.shape}")
        room = min(cloth[0].shape[:2])
        if room < _CONTEXTS[0]:
            raise ValueError(f"windows must be {_CONTEXTS[0]} px a side or more, got {room}")
        contexts = [side for side in _CONTEXTS if side <= room]
        side = contexts[int(len(contexts) * rng.random() ** 2)]  # most defects are small
        plans = [self._plan(window, side, rng) for window in cloth]
        painted = self._paint(plans, cloth, code, rng)
        return [
            _finished(window, plan, patch) for window, plan, patch in zip(cloth, plans, painted, strict=True)
        ]

    def _plan(self, window: Picture, side: int, rng: np.random.Generator) -> _Plan:
        """A mask, and a square of the window with the mask in its middle."""
        top, left = (int(rng.integers(length - side + 1)) for length in window.shape[:2])
        place = np.s_[top : top + side, left : left + side]
        mask = _varied(self._network.known_mask(int(rng.integers(len(SHAPES))), rng), side, rng)
        region = _around(mask, int(rng.integers(4, 11)))
        return _Plan(place, mask, region, shape_class(mask), Look.of(window[place]))

    @torch.no_grad()
    def _paint(
        self,
        plans: Sequence[_Plan],
        window: Sequence[Picture],
        code: NDArray[np.float32],
        rng: np.random.Generator,
    ) -> list[Picture]:
        """The squares of all plans, painted in one run of the sampler: uint8 HWC each."""
        from diffusers import DPMSolverMultistepScheduler

        device, count = next(self._network.parameters()).device, len(plans)
        known = _tensor(
            [seen_as(plan.look, cloth[plan.place]) for plan, cloth in zip(plans, window, strict=True)], device
        )
        region, mask = (
            _tensor([m[None] for m in masks], device)
            for masks in zip(*((p.region, p.mask) for p in plans), strict=True)
        )
        codes = torch.from_numpy(np.tile(code, (count, 1))).to(device)
        shapes = torch.tensor([plan.shape for plan in plans], device=device)
        untyped: Any = DPMSolverMultistepScheduler
        sampler = untyped(
            **_schedule() | {"prediction_type": "sample"},  # it is given x₀, 0 outside the region
            lambda_min_clipped=-5.1,  # where the cosine schedule is noise and nothing else
        )
        with warnings.catch_warnings():
            # diffusers 0.42 makes an array of a tensor in a way that NumPy 2 wants otherwise.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            sampler.set_timesteps(self._steps, device=device)
        # What a grey camera sees has no colour to be painted.
        colour = torch.tensor([[1.0, *2 * [float(not is_grey(cloth))]] for cloth in window], device=device)
        channels = colour[:, :, None, None]
        x = _tensor([rng.standard_normal(k.shape, dtype=np.float32) for k in known], device)
        for t in sampler.timesteps:
            steps = t.expand(count)
            v = self._network(x, steps, known, region, mask, codes, shapes)
            change = self._noising.picture(x, v, steps).clamp(-_FARTHEST, _FARTHEST) * channels * region
            x = sampler.step(change, t, x).prev_sample
        return [shown(plan.look, seen) for plan, seen in zip(plans, (known + x).cpu().numpy(), strict=True)]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where a defect is to be: a square of a window; in it, bool HW, the defect and the region to paint."""

    place: tuple[slice, slice]
    mask: Mask
    region: Mask
    shape: int
    look: Look


def _finished(window: Picture, plan: _Plan, painted: Picture) -> Sample:
    """The window with what was painted, blended in at the region's edge; the mask is what really changed."""
    inside = cv2.distanceTransform(np.pad(plan.region, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    alpha = np.clip(inside / _BLEND, 0, 1)[..., None]
    before = window[plan.place].astype(np.float32)
    image, mask, region = window.copy(), *(np.zeros(window.shape[:2], bool) for _ in range(2))
    image[plan.place] = (before + alpha * (painted - before) + 0.5).astype(np.uint8)
    mask[plan.place], region[plan.place] = plan.mask, plan.region
    return Sample(window, image, refine_mask(window, image, mask, region), plan.shape, "diffusion")


def _varied(mask: Mask, side: int, rng: np.random.Generator) -> Mask:
    """A mask mirrored, scaled (a line rather in length than width), and set into a square of ``side`` px."""
    (mask,) = flip_and_turn([mask], rng)
    scale = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)))) * side / _CONTEXTS[0]
    size = np.array(mask.shape, np.float64)  # height, width
    factors = np.where(size >= size.max() / 2, scale, np.sqrt(scale))
    new = np.clip(np.round(size * factors), np.minimum(size, 3), side - 2 * _MARGIN).astype(int)
    soft = cv2.resize(mask.astype(np.float32), (int(new[1]), int(new[0])), interpolation=cv2.INTER_AREA)
    top, left = (int(rng.integers(_MARGIN, side - _MARGIN - length + 1)) for length in new)
    placed = np.zeros((side, side), bool)
    placed[top : top + new[0], left : left + new[1]] = soft > min(0.4, 0.9 * float(soft.max()))
    return placed


def _around(mask: Mask, by: int) -> Mask:
    """The region to be painted: the mask and what is nearer than ``by`` px."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.dilate(mask.astype(np.uint8), disc).astype(bool)


def _tensor(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays)).float().to(device)
