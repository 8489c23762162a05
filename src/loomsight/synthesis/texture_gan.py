"""Stage 1 of the multistage GAN: defects made for a texture, each with its mask.

The generator takes noise, the texture code of a cloth and a shape class, and makes a defect for that cloth
*and its mask*; the discriminator judges picture, mask, code and class together. After Liu et al., Multistage
GAN for Fabric Defect Detection (IEEE TIP 29, 2020), stage 1, with what has been learned about conditional
GANs since: codes and classes enter D by projection (Miyato and Koyama, cGANs with Projection Discriminator,
ICLR 2018) and G by modulation (Perez et al., FiLM, AAAI 2018), and D also sees real patches under a wrong
code, and real patches with another patch's mask, which it must refuse (Reed et al., Generative Adversarial
Text to Image Synthesis, ICML 2016).

Labelled defects are few and time is short. So three things are made easy for G:

* It need not learn to weave. It makes an :mod:`edit <loomsight.synthesis.edits>` of the cloth, and what D
  judges is that edit rendered into good cloth of the same fabric.
* It learns as the decoder of a variational autoencoder too: an encoder turns a real patch, mask and the
  cloth without the defect into a noise map, and G must give the defect back (Larsen et al., Autoencoding
  beyond Pixels, ICML 2016). The likeness teaches it quickly what defects are, D that they look real.
* Its noise is taken where the encoder puts known defects: the map of one, moved along the difference of two
  others of its class (Chawla et al., SMOTE, JAIR 2002; Ghosh et al., From Variational to Deterministic
  Autoencoders, ICLR 2020). In a map of independent cells no line would go on from one cell to the next.

Patches are seen through a :class:`~loomsight.synthesis.patches.Look`: tanh, [−1, 1], 0 is the cloth's grey.

Read top to bottom: the projection of codes, generator, discriminator, training step and training. What is
generated gets into cloth in :mod:`~loomsight.synthesis.multistage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from loomsight.config import Config
from loomsight.fabric.types import Picture
from loomsight.progress import Progress
from loomsight.synthesis.edits import (
    rendered,
    strength,
)
from loomsight.synthesis.gan import GanTask, Objective, diff_augment, spectral
from loomsight.synthesis.patches import SHAPES, DefectPatch, Look, PatchMaker
from loomsight.training.loop import History, TrainSettings, fit

if TYPE_CHECKING:
    from loomsight.training.task import Context

CELL = 16  # pixels a cell of the noise map becomes: four doublings
CELLS = 4  # a side of the noise map of a training patch
_MOVED = 0.7  # of the difference of two known defects, at most, that a new one lies away from a third
_REMEMBERING = 6  # how many known defects are looked at, for each that is kept of a class
_NOISE = 0.1  # deviation of what is added to a map besides


class TextureGanSettings(Config):
    """Shapes of generator and discriminator, and how they learn. The defaults are the ones measured best."""

    code_size: PositiveInt = 3078  # length of a texture code
    code_dims: PositiveInt = 16  # that are left of it
    code_noise: NonNegativeFloat = 0.15  # deviation of what is added to a code, for diversity
    noise: PositiveInt = 32  # channels of the noise map
    widths: tuple[PositiveInt, ...] = (96, 96, 64, 32)  # of the generator, at 1, 2, 4, 8 places a cell
    remembered: PositiveInt = 64  # noise maps of known defects of a class that are kept
    judge: tuple[PositiveInt, ...] = (16, 32, 64, 96)  # of D and the encoder, at 1/2 … 1/16 of the size
    objective: Objective = Objective.HINGE
    lr: PositiveFloat = 1e-3
    lr_discriminator: PositiveFloat = 5e-4
    gamma: NonNegativeFloat = 0.1  # of the gradient penalty
    likeness: NonNegativeFloat = 5.0  # of the autoencoder's loss, against the adversarial one
    prior: NonNegativeFloat = 0.02  # of the divergence of its noise from N(0, 1), against the likeness
    batch: PositiveInt = 16
    ema: float = 0.995


class CodeProjection(nn.Module):
    """Texture codes as a few numbers of about unit variance, fitted on known fabrics.

    Principal components of the known fabrics' codes, at most one less than there are codes; unused
    numbers are 0. Of fewer than three codes there are no components worth the name, and a random
    projection takes their place. Everything is a buffer, so it is stored with the generator's weights.

    Args:
        size: length of a code.
        dims: how many numbers are left.
    """

    mean: Tensor
    basis: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, size: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, dims))
        self.register_buffer("low", torch.zeros(dims))
        self.register_buffer("high", torch.zeros(dims))

    @torch.no_grad()
    def fit(self, codes: Float[NDArray[np.float32], "n d"]) -> CodeProjection:
        """Fit on the codes of known fabrics, one each."""
        x = np.asarray(codes, np.float64)
        count, (size, dims) = len(x), self.basis.shape
        mean, basis = x.mean(axis=0), np.zeros((size, dims))
        if count < 3:
            found, _ = np.linalg.qr(np.random.default_rng(size).normal(size=(size, min(dims, size))))
            basis[:, : found.shape[1]] = found * np.sqrt(size)
        else:
            spread = x.std(axis=0)
            spread += 0.1 * spread.mean() + 1e-12  # an entry that never changes must not be blown up
            _, strength, axes = np.linalg.svd((x - mean) / spread, full_matrices=False)
            use = min(dims, count - 1)
            # Weak components are raised, but not to the strength of the first: they are mostly noise.
            deviation = (strength[:use] + 0.2 * strength[0] + 1e-12) / np.sqrt(count - 1)
            basis[:, :use] = axes[:use].T / spread[:, None] / deviation
        seen = (x - mean) @ basis
        margin = 0.25 * np.ptp(seen, axis=0) if count >= 3 else np.full(dims, 2.0)
        fitted = (mean, basis, seen.min(axis=0) - margin, seen.max(axis=0) + margin)
        for buffer, value in zip((self.mean, self.basis, self.low, self.high), fitted, strict=True):
            buffer.copy_(torch.from_numpy(value))
        return self

    def forward(self, codes: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Project; a code far outside what was seen is brought back to its border."""
        projected = (codes - self.mean) @ self.basis
        return projected.clamp(self.low, self.high)


class _Modulated(nn.Module):
    """Convolution, normalisation of every pixel's channels, and scale and shift by the condition."""

    def __init__(self, inp: int, out: int, condition: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, out, 3, padding=1)
        self.film = nn.Linear(condition, 2 * out)
        nn.init.normal_(self.film.weight, std=0.05)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Float[Tensor, "n i h w"], c: Float[Tensor, "n c"]) -> Float[Tensor, "n o h w"]:
        # Per pixel and not per picture, or a large map would not be made as a small one is.
        x = self.conv(x)
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6)
        scale, shift = self.film(c)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu(torch.addcmul(shift, x, 1 + scale), 0.2)


class TextureGenerator(nn.Module):
    """G: noise map, texture code and shape class → an edit of the cloth and its mask, 16 pixels a cell.

    Attributes:
        project: the :class:`CodeProjection`.
        settings: what it was built from.
        latents: noise maps of known defects, (class, place, z·4·4).
        strengths: how strong each of these is (:func:`~loomsight.synthesis.edits.strength`), (class, place).
        met: how many of each class were remembered so far; the last ones are kept.
    """

    latents: Tensor
    strengths: Tensor
    met: Tensor

    def __init__(self, settings: TextureGanSettings) -> None:
        super().__init__()
        self.settings = settings
        self.project = CodeProjection(settings.code_size, settings.code_dims)
        self.shapes = nn.Embedding(len(SHAPES), 16)
        condition = 64
        self.condition = nn.Sequential(
            nn.Linear(settings.code_dims + 16, condition), nn.LeakyReLU(0.2), nn.Linear(condition, condition)
        )
        first, *widths = settings.widths
        self.start = nn.ModuleList(
            [_Modulated(settings.noise, first, condition), _Modulated(first, first, condition)]
        )
        self.grow = nn.ModuleList(
            [_Modulated(a, b, condition) for a, b in zip(settings.widths, widths, strict=False)]
        )
        self.out = nn.Conv2d(widths[-1], 5, 3, padding=1)  # at the full size nothing else: it would cost most
        nn.init.constant_(self.out.bias[4:], -2.0)  # type: ignore[index]  # defects are small: begin so
        shape = (len(SHAPES), settings.remembered, settings.noise * CELLS * CELLS)
        self.register_buffer("latents", torch.zeros(shape))
        self.register_buffer("strengths", torch.zeros(shape[:2]))
        self.register_buffer("met", torch.zeros(len(SHAPES), dtype=torch.int64))

    def forward(
        self,
        z: Float[Tensor, "n z h w"],
        codes: Float[Tensor, "n k"],
        shapes: Int[Tensor, " n"],
    ) -> Float[Tensor, "n 5 s s"]:
        """Edits, tone in [−1, 1] and kept weave in [0, 1], and as fifth channel the probability of a defect.

        Args:
            z: N(0, 1), ``settings.noise`` channels; 4 × 4 cells make 64 × 64 pixels.
            codes: *projected* texture codes (:attr:`project`), with some noise for diversity.
            shapes: indices into :data:`~loomsight.synthesis.patches.SHAPES`.
        """
        c = self.condition(torch.cat((codes, self.shapes(shapes)), 1))
        x = z
        for block in self.start:
            x = block(x, c)
        for block in self.grow:
            x = block(F.interpolate(x, scale_factor=2.0, mode="nearest"), c)
        x = self.out(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return torch.cat((x[:, :3].tanh(), x[:, 3:].sigmoid()), 1)

    @torch.no_grad()
    def remember(
        self, maps: Float[Tensor, "n z 4 4"], shapes: Int[Tensor, " n"], strengths: Float[Tensor, " n"]
    ) -> None:
        """Keep the noise maps of known defects, and how strong they are."""
        for one, shape, strong in zip(maps, shapes.tolist(), strengths, strict=True):
            place = self.met[shape] % self.settings.remembered
            self.latents[shape, place], self.strengths[shape, place] = one.flatten(), strong
            self.met[shape] += 1

    @torch.no_grad()
    def noise(
        self, shapes: Int[Tensor, " n"], random: torch.Generator, cells: int = CELLS
    ) -> Float[Tensor, "n z h w"]:
        """Noise maps near those of known defects of the class, or N(0, 1) while fewer than three are known.

        A larger map is a smaller one stretched: a larger defect, as finely drawn.
        """
        device, channels = self.latents.device, self.settings.noise
        z = torch.randn(len(shapes), channels, CELLS, CELLS, generator=random, device=device)
        some = self.met[shapes].clamp(max=self.settings.remembered)
        picks = torch.rand(3, len(shapes), generator=random, device=device) * some
        one, first, second = (self.latents[shapes, pick.long()].view(z.shape) for pick in picks)
        by = torch.rand(len(shapes), 1, 1, 1, generator=random, device=device) * _MOVED
        near = one + by * (first - second) + _NOISE * z
        z = torch.where((some >= 3)[:, None, None, None], near, z)
        if cells != CELLS:
            z = F.interpolate(z, (cells, cells), mode="bilinear", align_corners=True)
        return z


class TextureDiscriminator(nn.Module):
    """D_s: logit of a patch and mask being real *and* belonging to their code and class."""

    def __init__(self, settings: TextureGanSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 4
        for width in settings.judge:
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = width
            if width == settings.judge[0]:  # a second look while threads one pixel wide are still there
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.last = nn.Conv2d(before + 1, before, 3, padding=1)
        self.judge = nn.Linear(before, 1)
        self.code = nn.Linear(settings.code_dims, before)
        self.shape = nn.Embedding(len(SHAPES), before)
        nn.init.normal_(self.shape.weight, std=0.1)
        spectral(self)

    def forward(
        self, both: Float[Tensor, "n 4 s s"], codes: Float[Tensor, "n k"], shapes: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        x = self.features(both)
        # How much the batch varies, as a feature, so that a G that repeats itself is found out
        # (Karras et al., Progressive Growing of GANs, ICLR 2018).
        varies = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
        x = torch.cat((x, varies.expand(len(x), 1, *x.shape[2:])), 1)
        x = F.leaky_relu(self.last(x), 0.2).mean((2, 3)) * 4
        match = (x * (self.code(codes) + self.shape(shapes))).sum(1)
        logit: Tensor = self.judge(x)[:, 0] + match
        return logit


class Encoder(nn.Module):
    """The other half of the autoencoder: patch, mask, cloth without the defect → mean, log variance."""

    def __init__(self, settings: TextureGanSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 7
        for width in settings.judge:
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            before = width
        self.features = nn.Sequential(*layers, nn.Conv2d(before, 2 * settings.noise, 3, padding=1))

    def forward(
        self, both: Float[Tensor, "n 4 s s"], under: Float[Tensor, "n 3 s s"]
    ) -> tuple[Float[Tensor, "n z h w"], Float[Tensor, "n z h w"]]:
        mean, logarithm = self.features(torch.cat((both, under), 1)).chunk(2, 1)
        return mean, logarithm.clamp(-8, 4)


def likeness(
    made: Float[Tensor, "n 5 s s"],
    both: Float[Tensor, "n 4 s s"],
    under: Float[Tensor, "n 3 s s"],
    border: int = 2,
) -> Float[Tensor, ""]:
    """How far G's edit, rendered into the cloth ``under`` the defect, is from the patch it should give back.

    Mean difference of the pictures within ``border`` pixels of the mask (elsewhere nobody will see it),
    cross entropy of the masks and one less their Dice overlap.
    """
    mask = both[:, 3:]
    near = F.max_pool2d(mask, 2 * border + 1, 1, border)
    off = (rendered(under, made[:, :4]) - both[:, :3]).abs()
    picture = (off * near).sum() / (3 * near.sum() + 1)
    said = made[:, 4:].clamp(1e-4, 1 - 1e-4)
    overlap = 2 * (said * mask).sum((1, 2, 3)) / ((said + mask).sum((1, 2, 3)) + 1)
    return picture + F.binary_cross_entropy(said, mask) + (1 - overlap.mean())


def build_generator(settings: TextureGanSettings) -> TextureGenerator:
    """G with random weights and an unfitted projection; a state dict of the same settings fills both."""
    return TextureGenerator(settings)


class Batch(TypedDict):
    """What a training step takes."""

    both: Float[Tensor, "n 4 s s"]  # patch as Look sees it, and mask
    under: Float[Tensor, "n 3 s s"]  # the patch without its defect
    good: Float[Tensor, "n 3 s s"]  # other good cloth of the same fabric, by its own Look
    code: Float[Tensor, "n d"]
    shape: Int[Tensor, " n"]


def collate(patches: Sequence[DefectPatch], goods: Sequence[Picture]) -> Batch:
    """Patches of one size, and as many squares of good cloth of their fabrics, as one batch."""
    looks = [Look.of(p.image, p.mask) for p in patches]
    both = [
        np.concatenate((look.encode(p.image), p.mask[None].astype(np.float32)))
        for look, p in zip(looks, patches, strict=True)
    ]
    under = [look.encode(p.cloth) for look, p in zip(looks, patches, strict=True)]
    good = [Look.of(image).encode(image) for image in goods]
    return {
        "both": torch.from_numpy(np.stack(both)),
        "under": torch.from_numpy(np.stack(under)),
        "good": torch.from_numpy(np.stack(good)),
        "code": torch.from_numpy(np.stack([p.code for p in patches])),
        "shape": torch.tensor([p.shape for p in patches]),
    }


def make_batch(maker: PatchMaker, k: int, count: int, seed: int) -> Batch:
    """The batch of step ``k``."""
    rng, patches = np.random.default_rng([seed, k, 13]), maker.batch(k, count)
    goods = [maker.good(patch.fabric, rng) for patch in patches]
    return collate(
        patches, [p.cloth if good is None else good for p, good in zip(patches, goods, strict=True)]
    )


class TextureGanTask(GanTask):
    """How the training loop trains stage 1."""

    def __init__(self, generator: TextureGenerator, discriminator: TextureDiscriminator) -> None:
        s = generator.settings
        super().__init__(
            generator,
            discriminator,
            objective=s.objective,
            lr=s.lr,
            lr_discriminator=s.lr_discriminator,
            betas=(0.0, 0.99),
            gamma=s.gamma,
        )
        self._settings, self._project, self._texture = s, generator.project, generator
        self.encoder = Encoder(s)
        self.networks = {**self.networks, "encoder": self.encoder}
        self.optimizers["generator"].add_param_group({"params": list(self.encoder.parameters())})

    def real(self, batch: Batch) -> Float[Tensor, "n 4 s s"]:
        return batch["both"]

    def fake(self, batch: Batch, context: Context) -> Float[Tensor, "n 4 s s"]:
        count, settings, random = len(batch["shape"]), self._settings, context.generator
        z = self._texture.noise(batch["shape"], random, batch["both"].shape[-1] // CELL)
        jitter = torch.randn(count, settings.code_dims, generator=random, device=context.device)
        codes = self._project(batch["code"]) + settings.code_noise * jitter
        with context.autocast():
            made = self.generator(z, codes, batch["shape"])
        return set_on(batch["good"], made.float())

    def score(self, images: Float[Tensor, "n 4 s s"], batch: Batch, context: Context) -> Float[Tensor, " n"]:
        seen = diff_augment(images, context.generator)
        codes = self._project(batch["code"])
        with context.autocast():
            logits: Tensor = self.discriminator(seen, codes, batch["shape"])
        return logits.float()

    def more_for_generator(self, batch: Batch, context: Context) -> Tensor | None:
        """The autoencoder's loss."""
        both, settings = batch["both"], self._settings
        if not settings.likeness:
            return None
        with context.autocast():
            mean, logarithm = self.encoder(both, batch["under"])
        mean, logarithm = mean.float(), logarithm.float()
        if mean.shape[-1] == CELLS:
            self._texture.remember(mean.detach(), batch["shape"], known_strength(batch))
        noise = torch.randn(mean.shape, generator=context.generator, device=mean.device)
        z, codes = mean + (0.5 * logarithm).exp() * noise, self._project(batch["code"])
        with context.autocast():
            made = self.generator(z, codes, batch["shape"])
        divergence = 0.5 * (mean.square() + logarithm.exp() - 1 - logarithm).mean()
        loss: Tensor = settings.likeness * (
            likeness(made.float(), both, batch["under"]) + settings.prior * divergence
        )
        return loss

    def more_negatives(self, batch: Batch, context: Context) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
        """Real patches that do not belong: under another fabric's code, or with another patch's mask."""
        mixed, rows = mismatched(batch)
        return self.score(mixed["both"], mixed, context), rows


def set_on(good: Float[Tensor, "n 3 s s"], made: Float[Tensor, "n 5 s s"]) -> Float[Tensor, "n 4 s s"]:
    """What G made, on good cloth: its edit where its mask is, the cloth elsewhere; and the mask.

    This is what D judges. G need not learn to weave, only what a defect looks like in this cloth, and its
    mask is learned with it: a pixel counts by as much as the mask shows of it.
    """
    alpha = made[:, 4:]
    return torch.cat((good + alpha * (rendered(good, made[:, :4]) - good), alpha), 1)


def known_strength(batch: Batch) -> Float[Tensor, " n"]:
    """How strong the real and drawn defects of a batch are."""
    return strength(batch["both"][:, :3] - batch["under"], batch["both"][:, 3:])


def mismatched(batch: Batch) -> tuple[Batch, Int[Tensor, " m"]]:
    """Patches that do not belong: in turn under another patch's code, or with another's mask.

    Made from every second patch of a batch; left out where that other is of the same fabric or has the
    same mask. Also the rows of the patches that they were made from.
    """
    rows = torch.arange(0, len(batch["shape"]), 2, device=batch["shape"].device)
    both, code, other = batch["both"][rows], batch["code"][rows], (rows + 1) % len(batch["shape"])
    by_code = (rows % 4 == 0) & (code != batch["code"][other]).any(1)
    by_mask = (rows % 4 == 2) & (both[:, 3] != batch["both"][other, 3]).flatten(1).any(1)
    code[by_code] = batch["code"][other[by_code]]
    both[by_mask, 3] = batch["both"][other[by_mask], 3]
    use = by_code | by_mask
    mixed: Batch = {
        "both": both[use],
        "under": batch["under"][rows[use]],
        "good": batch["good"][rows[use]],
        "code": code[use],
        "shape": batch["shape"][rows[use]],
    }
    return mixed, rows[use]


def train_texture_gan(
    patches: PatchMaker,
    settings: TextureGanSettings | None = None,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    run: Path | None = None,
    progress: Progress | None = None,
) -> tuple[TextureGenerator, History]:
    """Train stage 1 on known fabrics' patches, for so many steps or so much time, whichever ends first.

    Returns:
        G with averaged weights, in evaluation mode, and what happened.

    Raises:
        TrainingError: it diverged.
    """
    codes = _codes(patches)
    settings = (settings or TextureGanSettings()).model_copy(update={"code_size": codes.shape[1]})
    torch.manual_seed(seed)
    generator, discriminator = build_generator(settings), TextureDiscriminator(settings)
    generator.project.fit(codes)
    task = TextureGanTask(generator, discriminator)
    history = fit(
        task,
        lambda k: make_batch(patches, k, settings.batch, seed),
        TrainSettings(
            steps=steps,
            seconds=seconds,
            schedule="constant",
            clip_norm=None,
            ema=settings.ema,
            seed=seed,
        ),
        run=run,
        progress=progress,
        about={"stage 1": settings.model_dump(mode="json")},
    )
    _remember(generator, task.encoder.eval(), patches, seed)
    return generator, history


def _remember(generator: TextureGenerator, encoder: Encoder, patches: PatchMaker, seed: int) -> None:
    """Known defects' noise maps anew: those kept in training are of an encoder that went on learning."""
    generator.met.zero_()
    generator.latents.zero_()
    device = generator.latents.device
    for k in range(_REMEMBERING * generator.settings.remembered // 16):
        batch = make_batch(patches, 2_000_000 + k, 16, seed)
        if batch["both"].shape[-1] != CELL * CELLS:
            break  # the maps of other patches have another size
        with torch.inference_mode():
            mean, _ = encoder(batch["both"].to(device), batch["under"].to(device))
        generator.remember(mean, batch["shape"], known_strength(batch))


def _codes(patches: PatchMaker) -> Float[NDArray[np.float32], "n d"]:
    """The code of each fabric that patches come from."""
    found: dict[str, NDArray[np.float32]] = {}
    rng = np.random.default_rng(0)
    for _ in range(50 * len(patches.fabrics)):
        patch = patches.patch(rng)
        found[patch.fabric] = patch.code
        if len(found) == len(patches.fabrics):
            break
    return np.stack([found[name] for name in sorted(found)])
