"""Samples whose defect is fused into the cloth, with a mask of what really changed.

A defect comes from stage 1, which makes it for the cloth's texture, or is drawn by the loom;
:func:`set_in` has the fusion network repair it into a window of good cloth, and the mask is made anew
from the difference.
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
from loomsight.synthesis.edits import refine_mask
from loomsight.synthesis.fusion import DILATION, FusionNetwork, fuse, region_around
from loomsight.synthesis.patches import Look, shape_class
from loomsight.synthesis.repeat import continued
from loomsight.synthesis.samples import Sample
from loomsight.synthesis.texture_gan import Stage1


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
