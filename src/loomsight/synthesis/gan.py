"""Generative adversarial networks, from the formulas up.

A generator G turns noise z into pictures; a discriminator D scores pictures, high for real ones. They play
(Goodfellow et al., Generative Adversarial Nets, NeurIPS 2014)

    min_G max_D  E[log D(x)] + E[log(1 − D(G(z)))].

Here D gives the *logit* s and the probability is σ(s), so log σ(s) = −softplus(−s), and binary
cross-entropy with logits computes both terms without overflow. What replaced that objective since stands
beside it, one line each, in :func:`discriminator_loss` and :func:`generator_loss`.

Read top to bottom: the objectives, the two regularisers, augmentation that a gradient passes, the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

if TYPE_CHECKING:
    from loomsight.training.task import Context

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Objective(StrEnum):
    """What G and D play for.

    MINMAX: the game above, as it stands. While D is sure of itself, G's gradient vanishes.
    NON_SATURATING: the same D; G maximises log D(G(z)) in place of minimising log(1 − D(G(z))).
    HINGE: Lim and Ye, Geometric GAN, 2017; D stops caring once a score is past ±1. With R1.
    RELATIVISTIC: Jolicoeur-Martineau, 2018, in the pairing form with R1 and R2 of Huang et al., The GAN is
        dead; long live the GAN!, NeurIPS 2024 (R3GAN); D only compares a real with a fake one, so G cannot
        win by a few good pictures, and drops fewer modes.
    """

    MINMAX = "minmax"
    NON_SATURATING = "non-saturating"
    HINGE = "hinge"
    RELATIVISTIC = "relativistic"


def discriminator_loss(
    objective: Objective, real: Float[Tensor, " n"], fake: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """What D minimises, from its logits of real and of generated pictures (made without G's gradient)."""
    if objective is Objective.HINGE:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if objective is Objective.RELATIVISTIC:
        return F.softplus(-(real - fake)).mean()
    # −E[log D(x)] − E[log(1 − D(G(z)))]
    is_real = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    is_fake = F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    return is_real + is_fake


def generator_loss(
    objective: Objective, fake: Float[Tensor, " n"], real: Float[Tensor, " n"] | None = None
) -> Float[Tensor, ""]:
    """What G minimises, from D's logits of its pictures; the relativistic pairing needs the real ones too.

    Raises:
        ValueError: the objective compares with real pictures and there are none.
    """
    if objective is Objective.MINMAX:  # E[log(1 − D(G(z)))]
        return -F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
    if objective is Objective.NON_SATURATING:  # −E[log D(G(z))]
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if objective is Objective.HINGE:
        return -fake.mean()
    if real is None:
        raise ValueError("the relativistic objective compares with the scores of real pictures")
    return F.softplus(-(fake - real)).mean()


def gradient_penalty(scores: Float[Tensor, " n"], images: Float[Tensor, "n ..."]) -> Float[Tensor, ""]:
    """½ E[‖∇ₓ D(x)‖²]: R1 on real pictures, R2 on generated ones.

    Mescheder et al., Which Training Methods for GANs do actually Converge?, ICML 2018. ``images`` must
    require gradients, and ``scores`` must come from them, each from its own picture alone.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def spectral(module: ModuleT) -> ModuleT:
    """Bound the Lipschitz constant of every convolution and linear layer in ``module``, itself included.

    Each weight is divided by its largest singular value, estimated by one power iteration a step
    (Miyato et al., Spectral Normalization for GANs, ICLR 2018).
    """
    for layer in list(module.modules()):
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            spectral_norm(layer)
    return module


def diff_augment(
    images: Float[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    translation: float = 0.125,
    cutout: float = 0.25,
    brightness: float = 0.05,
    contrast: float = 0.1,
    colours: int = 3,
) -> Float[Tensor, "n c h w"]:
    """The same kind of random change for real and generated pictures, which D sees and gradients pass.

    Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, NeurIPS 2020: D cannot learn
    its few real pictures by heart. Their colour changes are strong; here they are weak by default, for a
    stain differs from clean cloth by nothing but its colour.

    Args:
        images: pictures in [−1, 1] in the first ``colours`` channels, masks after them. Masks move and are
            cut out with their picture, and keep their values otherwise.
        generator: decides everything random, on the images' device.
        translation: at most this share of a side, in whole pixels; what comes in is 0.
        cutout: side of a square set to 0, as a share of the picture's; 0 cuts nothing.
        brightness: added to a picture, at most, up or down.
        contrast: a picture's deviation from its mean is multiplied by 1 ± at most this.
        colours: how many channels are a picture's.
    """
    n, c, h, w = images.shape

    def uniform(low: float, high: float) -> Float[Tensor, "n 1 1 1"]:
        return torch.rand(n, 1, 1, 1, generator=generator, device=images.device) * (high - low) + low

    out = images
    if brightness or contrast:
        picture, masks = out[:, :colours], out[:, colours:]
        mean = picture.mean((1, 2, 3), keepdim=True)
        picture = (picture - mean) * (1 + uniform(-contrast, contrast)) + mean
        out = torch.cat((picture + uniform(-brightness, brightness), masks), 1)
    rows = torch.arange(h, device=images.device).view(1, 1, h, 1)
    columns = torch.arange(w, device=images.device).view(1, 1, 1, w)
    if translation:
        down = uniform(-translation * h, translation * h).round().long()
        right = uniform(-translation * w, translation * w).round().long()
        y, x = (rows - down).expand(n, 1, h, w), (columns - right).expand(n, 1, h, w)
        inside = ((y >= 0) & (y < h) & (x >= 0) & (x < w)).to(images.dtype)
        at = (y.clamp(0, h - 1) * w + x.clamp(0, w - 1)).expand(n, c, h, w).flatten(2)
        out = out.flatten(2).gather(2, at).view(n, c, h, w) * inside
    if cutout:
        y, x = uniform(0, h), uniform(0, w)
        hole = ((rows - y).abs() < cutout * h / 2) & ((columns - x).abs() < cutout * w / 2)
        out = out * (~hole).to(images.dtype)
    return out


class GanTask:
    """How the training loop trains G and D: in alternation, each by its own Adam.

    D first, on real pictures and on G's, which are detached so that no gradient reaches G; then G, through
    D as it has just become. Gradient penalties are lazy (Karras et al., StyleGAN2, CVPR 2020): every
    ``every`` steps and ``every`` times as strong. HINGE has R1, RELATIVISTIC R1 and R2, the first two none.

    A subclass overrides :meth:`real`, :meth:`fake` and :meth:`score` for its own batches, and
    :meth:`more_negatives` for further pictures that D must refuse. As it is, a batch is real points or
    pictures (n, ...), G takes z ~ N(0, 1) of shape (n, ``noise``) and D returns logits (n,) or (n, 1).
    The EMA generator, which is the one to use, is what the loop hands back.

    Args:
        gamma: strength of the gradient penalties.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        objective: Objective = Objective.NON_SATURATING,
        noise: int = 64,
        lr: float = 2e-4,
        lr_discriminator: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        gamma: float = 1.0,
        every: int = 16,
    ) -> None:
        self.networks: Mapping[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
        self.optimizers = {
            "generator": torch.optim.Adam(generator.parameters(), lr=lr, betas=betas),
            "discriminator": torch.optim.Adam(
                discriminator.parameters(), lr=lr_discriminator or lr, betas=betas
            ),
        }
        self.generator, self.discriminator, self.objective = generator, discriminator, objective
        self._noise, self._gamma, self._every = noise, gamma, every

    def real(self, batch: Any) -> Float[Tensor, "n ..."]:
        """The real pictures of a batch."""
        return torch.as_tensor(batch)

    def fake(self, batch: Any, context: Context) -> Float[Tensor, "n ..."]:
        """As many pictures by G, under the batch's conditions if it has any."""
        z = torch.randn(len(batch), self._noise, generator=context.generator, device=context.device)
        return self.generator(z)  # type: ignore[no-any-return]

    def score(self, images: Float[Tensor, "n ..."], batch: Any, context: Context) -> Float[Tensor, " n"]:
        """D's logits of pictures under the batch's conditions."""
        return self.discriminator(images).flatten()  # type: ignore[no-any-return]

    def more_negatives(self, batch: Any, context: Context) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
        """D's logits of what it must refuse too, such as real pictures under a wrong condition.

        Also the places in the batch of the true pictures that they are to be compared with.
        """
        nothing = torch.zeros(0, device=context.device)
        return nothing, nothing.long()

    def more_for_generator(self, batch: Any, context: Context) -> Tensor | None:
        """A further loss for G, if it has one: a reconstruction, for example."""
        return None

    def step(self, batch: Any, context: Context) -> dict[str, Tensor]:
        real, fake = self.real(batch), self.fake(batch, context)

        self.discriminator.requires_grad_(True)
        said_real = self.score(real, batch, context)
        said_fake = self.score(fake.detach(), batch, context)
        said_wrong, their = self.more_negatives(batch, context)
        loss_d = discriminator_loss(
            self.objective, torch.cat((said_real, said_real[their])), torch.cat((said_fake, said_wrong))
        )
        losses = {"discriminator": loss_d}
        if self._gamma and context.step % self._every == 0:
            penalised = {Objective.HINGE: (real,), Objective.RELATIVISTIC: (real, fake)}
            for images in penalised.get(self.objective, ()):
                x = images.detach().requires_grad_()
                penalty = gradient_penalty(self.score(x, batch, context), x)
                loss_d = loss_d + self._gamma * self._every * penalty
                losses["penalty"] = losses["penalty"] + penalty if "penalty" in losses else penalty
        context.update(loss_d, "discriminator")

        self.discriminator.requires_grad_(False)  # G's gradient passes D and leaves nothing there
        said_fake = self.score(fake, batch, context)
        relative = self.objective is Objective.RELATIVISTIC
        loss_g = generator_loss(
            self.objective, said_fake, self.score(real, batch, context).detach() if relative else None
        )
        more = self.more_for_generator(batch, context)
        if more is not None:
            losses["more"] = more
        context.update(loss_g if more is None else loss_g + more, "generator")
        self.discriminator.requires_grad_(True)
        return losses | {"generator": loss_g, "gap": (said_real.mean() - said_fake.mean()).detach()}
