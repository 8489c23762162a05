"""Samples of the generators: a defect set into a window of good cloth, with a mask of what really changed.

:class:`Stage1` makes a defect for the cloth's texture and sets it in hard; :class:`Stage12` has the fusion
network repair the same defect into the cloth, and :class:`Refined` does that with the loom's drawn ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.types import Mask, Picture
from loomsight.loom import DRAWN_KINDS, draw_defect
from loomsight.synthesis.edits import clean_mask, painted, placed, refine_mask, strengthened
from loomsight.synthesis.fusion import DILATION, FusionNetwork, fuse, region_around
from loomsight.synthesis.patches import SHAPES, Look, shape_class
from loomsight.synthesis.repeat import continued
from loomsight.synthesis.samples import Sample
from loomsight.synthesis.texture_gan import CELL, CELLS, TextureGenerator

_ODDS = (0.35, 0.25, 0.25, 0.15)  # of the shape classes: most labelled defects are spots and lines
_MIDDLING = 0.2  # strength of a defect of a class that was never met


class Stage1:
    """Generated defects set hard into good cloth: the arm "stage1", and what stage 2 starts from.

    Only what lies under the mask is rendered, with a border of two pixels in which it fades; everything else
    is the cloth's own, bit for bit.
    """

    name = "stage1"

    def __init__(self, generator: TextureGenerator) -> None:
        self.generator = generator.eval()

    def generate(
        self,
        codes: Float[NDArray[np.float32], "n d"],
        shapes: Sequence[int],
        rng: np.random.Generator,
        *,
        cells: int = CELLS,
    ) -> tuple[Float[NDArray[np.float32], "n 4 s s"], Float[NDArray[np.float32], "n s s"]]:
        """Edits, and the probability of each of their pixels being defective, in [0, 1].

        Args:
            codes: a texture code for each, as the encoder gives it.
            shapes: the shape class of each.
            cells: side in cells: 4 for 64 pixels, 6 for 96, 8 for 128.

        Raises:
            ValueError: the codes are not of the encoder that the generator was trained with.
        """
        g, n = self.generator, len(shapes)
        codes = np.asarray(codes, np.float32)
        if codes.shape != (n, len(g.project.mean)):
            raise ValueError(f"codes must be {(n, len(g.project.mean))}, got {codes.shape}")
        device = g.project.mean.device
        random = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        classes = torch.tensor(list(shapes), device=device)
        with torch.inference_mode():
            z = g.noise(classes, random, cells)
            projected = g.project(torch.from_numpy(codes).to(device))
            projected += g.settings.code_noise * torch.randn(projected.shape, generator=random, device=device)
            made = g(z, projected, classes).float().cpu().numpy()
        return made[:, :4], made[:, 4]

    def place(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> tuple[list[int], list[tuple[Float[NDArray[np.float32], "3 h w"], Mask] | None]]:
        """A defect for each window of good cloth, somewhere in it.

        Most are generated at 64 pixels, some at 96 and 128, and each is resized by 0.7 to 1.5, and made as
        strong as some known defect of its class.

        Returns:
            The shape class of each, and its window with the edit rendered into all of it, in Look units,
            with the mask; None where nothing was generated.
        """
        room = min(min(window.shape[:2]) for window in cloth)
        sizes = [cells for cells in (4, 6, 8) if cells * CELL <= room] or [4]
        share = np.array([0.7, 0.15, 0.15][: len(sizes)])
        cells = rng.choice(sizes, len(cloth), p=share / share.sum())
        shapes = rng.choice(len(SHAPES), len(cloth), p=_ODDS)
        found: list[tuple[NDArray[np.float32], Mask] | None] = [None] * len(cloth)
        for size in sizes:
            at = np.flatnonzero(cells == size).tolist()
            if not at:
                continue
            made = self.generate(np.stack([code] * len(at)), shapes[at].tolist(), rng, cells=size)
            for k, edit, probability in zip(at, *made, strict=True):
                mask = clean_mask(probability)
                if mask.any():
                    there, mask = placed(edit, mask, rng, cloth[k].shape[:2])
                    seen = Look.of(cloth[k]).encode(cloth[k])
                    there = strengthened(seen, there, mask, self._strength(int(shapes[k]), rng))
                    found[k] = (painted(seen, there), mask)
        return shapes.tolist(), found

    def _strength(self, shape: int, rng: np.random.Generator) -> float:
        """That of some known defect of a class; a middling one where none is known."""
        known = min(int(self.generator.met[shape]), self.generator.settings.remembered)
        return float(self.generator.strengths[shape, rng.integers(known)]) if known else _MIDDLING

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One defect in each window; see :class:`~loomsight.synthesis.samples.Generator`."""
        samples = []
        for window, shape, found in zip(cloth, *self.place(cloth, code, rng), strict=True):
            if found is None:
                image, mask = window.copy(), np.zeros(window.shape[:2], bool)
            else:
                image, mask = set_hard(window, *found)
            samples.append(Sample(window, image, mask, shape, self.name))
        return samples


class Stage12:
    """Stages 1 and 2 together: a :class:`~loomsight.synthesis.samples.Generator`.

    Args:
        stage1: makes the defects.
        network: T, trained.
    """

    name = "stage1+2"

    def __init__(self, stage1: Stage1, network: FusionNetwork) -> None:
        self._stage1, self._network = stage1, network.eval()

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One fused defect in each window; see :class:`~loomsight.synthesis.samples.Generator`."""
        shapes, found = self._stage1.place(cloth, code, rng)
        use = [(at, one) for at, one in enumerate(found) if one is not None]
        made = set_in(self._network, [cloth[at] for at, _ in use], [one for _, one in use], rng)
        fused = dict(zip((at for at, _ in use), made, strict=True))
        samples = []
        for at, (window, shape) in enumerate(zip(cloth, shapes, strict=True)):
            image, mask = fused.get(at) or (window.copy(), np.zeros(window.shape[:2], bool))
            samples.append(Sample(window, image, mask, shape, self.name))
        return samples


class Refined:
    """The loom's drawn defects, repaired into the cloth by stage 2.

    As in Shrivastava et al., Learning from Simulated and Unsupervised Images through Adversarial Training
    (CVPR 2017): the drawing says what the defect is and where, the network makes it look as real ones do.
    A :class:`~loomsight.synthesis.samples.Generator`.
    """

    name = "refined"

    def __init__(self, network: FusionNetwork) -> None:
        self._network = network.eval()

    def make(
        self, cloth: Sequence[Picture], code: NDArray[np.float32], rng: np.random.Generator
    ) -> list[Sample]:
        """One defect in each window; the code is not used."""
        drawn = [
            draw_defect(window, DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))], rng) for window in cloth
        ]
        seen = [
            (Look.of(window).encode(image), mask) for window, (image, mask) in zip(cloth, drawn, strict=True)
        ]
        made = set_in(self._network, cloth, seen, rng)
        return [
            Sample(window, image, mask, shape_class(given), self.name)
            for window, (_, given), (image, mask) in zip(cloth, drawn, made, strict=True)
        ]


def set_hard(cloth: Picture, seen: Float[NDArray[np.float32], "3 h w"], mask: Mask) -> tuple[Picture, Mask]:
    """What is seen under the mask, in Look units, set into cloth; it fades over two pixels around it.

    Grey cloth stays grey. Also the mask of what really changed.
    """
    if bool((cloth[..., :1] == cloth[..., 1:]).all()):
        seen = np.repeat(seen.mean(0, keepdims=True), 3, 0)
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    alpha = np.where(away <= 2, 1 - away / 3, 0)[..., None]
    new = Look.of(cloth).decode(seen).astype(np.float32)
    image = np.asarray(np.floor(cloth + alpha * (new - cloth) + 0.5), np.uint8)
    return image, refine_mask(cloth, image, mask, away <= 2)


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
    seen = [look.encode(window) for look, window in zip(looks, cloth, strict=True)]
    regions = [region_around(mask, int(rng.integers(DILATION[0], DILATION[1] + 1))) for _, mask in defects]
    device = next(network.parameters()).device

    def stacked(arrays: list[NDArray[np.float32]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    with torch.inference_mode():
        _, fused = fuse(
            network,
            stacked(seen),
            stacked([continued(one, region) for one, region in zip(seen, regions, strict=True)]),
            defect=stacked([defect for defect, _ in defects]),
            mask=stacked([mask[None].astype(np.float32) for _, mask in defects]),
            region=stacked([region[None].astype(np.float32) for region in regions]),
        )
    made = []
    rows = zip(cloth, looks, fused.float().cpu().numpy(), defects, regions, strict=True)
    for window, look, repaired, (_, mask), region in rows:
        new = look.decode(repaired)
        if bool((window[..., :1] == window[..., 1:]).all()):  # a grey camera sees no colour
            new = to_rgb(to_grey(new))
        refined = refine_mask(window, np.where(region[..., None], new, window), mask, region)
        made.append((_given_back(window, new, refined, region), refined))
    return made


def _given_back(cloth: Picture, new: Picture, mask: Mask, region: Mask) -> Picture:
    """The new picture up to two pixels around the mask, fading into the cloth over three more.

    What T wrote into the rest of the region is like the cloth, at best; the cloth itself is known.
    """
    if not mask.any():
        return cloth.copy()
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.where(region, np.clip((6 - away) / 4, 0, 1), 0)[..., None]
    return np.asarray(np.floor(cloth + share * (new.astype(np.float32) - cloth) + 0.5), np.uint8)
