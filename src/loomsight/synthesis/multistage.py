"""Stages 1 and 2 together: samples whose defect is fused into the cloth, with a mask of what really changed.

Stage 1 makes a defect for the cloth's texture, :func:`set_in` has the fusion network repair it into a window
of good cloth, and :func:`refine_mask` draws the mask anew from the difference.
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
from loomsight.synthesis.fusion import DILATION, DefectSource, FusionNetwork, fuse, region_around, resized
from loomsight.synthesis.patches import SHAPES, Look
from loomsight.synthesis.repeat import continued
from loomsight.synthesis.samples import Sample
from loomsight.synthesis.texture_gan import clean_mask

_SPAN = (0.7, 1.5)  # how much smaller or larger than generated a defect is set in


def refine_mask(before: Picture, after: Picture, mask: Mask, region: Mask) -> Mask:
    """Where a defect is to be seen, from what changed.

    The change, |after − before| smoothed, is measured against the cloth's own variation in the region:
    a pixel of the mask that changed by less than a third of it is dropped, for nobody sees a defect there;
    a pixel outside the mask that changed by more than twice as much, which threads that lie otherwise
    do not, is added if it touches the defect.

    Args:
        before, after: uint8 HWC.
        mask: bool HW, the defect as it was set in.
        region: bool HW, what may have changed; the result never leaves it.
    """
    change = np.abs(after.astype(np.float32) - before).max(axis=2)
    change = cv2.GaussianBlur(change, (0, 0), 1.0)
    cloth = before[region].astype(np.float32)
    own = max(6.0, float(cloth.std(axis=0).max())) if len(cloth) else 6.0
    kept = (mask & region & (change > max(3.0, own / 3))).astype(np.uint8)
    kept = cv2.morphologyEx(kept, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)).astype(bool) & mask & region
    strong = region & ((change > 2 * own) | kept)
    _, labels = cv2.connectedComponents(strong.astype(np.uint8), connectivity=8)
    return np.asarray(strong & np.isin(labels, np.unique(labels[kept])), bool)


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
        # As large as stage 1 makes them by itself, so that the two arms differ by the fusion alone.
        room = min(min(window.shape[:2]) for window in cloth)
        sizes = [cells for cells in (4, 6, 8) if 16 * cells <= room] or [4]
        share = np.array([0.7, 0.15, 0.15][: len(sizes)])
        cells = int(rng.choice(sizes, p=share / share.sum()))
        codes = np.repeat(code[None], len(cloth), 0)
        made, likely = self._stage1.generate(codes, shapes, rng, cells=cells)
        masks = [clean_mask(where) for where in likely]
        use = [at for at, mask in enumerate(masks) if mask.any()]
        placed = [resized(made[at], masks[at], rng, cloth[at].shape[:2], span=_SPAN) for at in use]
        fused = dict(zip(use, set_in(self._network, [cloth[at] for at in use], placed, rng), strict=True))
        samples = []
        for at, (window, shape) in enumerate(zip(cloth, shapes, strict=True)):
            image, mask = fused.get(at) or (window.copy(), np.zeros(window.shape[:2], bool))
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
