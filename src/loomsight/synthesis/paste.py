"""Real defects of known fabrics, set into new good cloth: with matched statistics, or by Poisson blending.

A *part* is one labelled defect with the cloth around it. Pasting keeps what the defect *is relative to
its own cloth*: the part is standardised by the mean and deviation of the cloth around it and takes on
those of the cloth it lands in. Copy-paste follows Ghiasi et al. (CVPR 2021); Poisson blending with mixed
gradients Pérez et al. (SIGGRAPH 2003) as used by NSA (Schlüter et al., ECCV 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from loomsight.fabric.instances import InstanceMap
from loomsight.fabric.types import UNKNOWN, Mask, Picture
from loomsight.synthesis.augment import flip_and_turn

_MARGIN = 12  # pixels of a part's own cloth kept around it: enough to measure its statistics
_LARGEST = 160  # a longer part is cut to windows of this many pixels, which is what a training tile can hold


@dataclass(frozen=True, slots=True)
class DefectPart:
    """One defect of a known fabric: RGB uint8 HWC, its bool HW mask, its fabric's name, and its type."""

    image: Picture
    mask: Mask
    fabric: str
    type: str = UNKNOWN


def cut_parts(
    image: Picture,
    mask: Mask,
    fabric: str,
    *,
    types: tuple[InstanceMap, tuple[str, ...]] | None = None,
    join: int = 5,
    min_area: int = 4,
) -> list[DefectPart]:
    """Cut every labelled defect out of a picture.

    Args:
        image: uint8 HWC RGB.
        mask: bool HW.
        types: the picture's instance map and types, :func:`loomsight.fabric.instances.instances_of`.
        join: mask pieces closer than this many pixels are one defect.
    """
    joined = (
        cv2.dilate(mask.astype(np.uint8), np.ones((join, join), np.uint8))
        if join > 1
        else mask.astype(np.uint8)
    )
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    height, width = mask.shape
    parts = []
    for label in range(1, count):
        x, y, w, h = (int(v) for v in stats[label, :4])
        own = mask & (labels == label)
        kind = UNKNOWN if types is None else types[1][int(np.bincount(types[0][own])[1:].argmax())]
        for y0 in range(y, y + h, _LARGEST):
            for x0 in range(x, x + w, _LARGEST):
                y1, x1 = min(y0 + _LARGEST, y + h), min(x0 + _LARGEST, x + w)
                rows = slice(max(0, y0 - _MARGIN), min(height, y1 + _MARGIN))
                columns = slice(max(0, x0 - _MARGIN), min(width, x1 + _MARGIN))
                window = (rows, columns)
                if own[window].sum() >= min_area and not own[window].all():
                    parts.append(DefectPart(image[window].copy(), own[window].copy(), fabric, kind))
    return parts


def paste(part: DefectPart, cloth: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Set a part into good cloth with matched statistics.

    Args:
        part: the defect.
        cloth: uint8 HWC RGB, good; it is not changed.

    Returns:
        The picture and the bool HW mask of the defect in it.
    """
    image, mask = _vary(part, rng, cloth.shape[:2])
    place = _place(mask.shape, cloth.shape[:2], rng)
    under = cloth[place].astype(np.float32)
    around = ~cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    if around.sum() < 16:  # a defect that fills its cutting has only itself to compare with
        around = np.ones_like(mask)
    mean, std = _statistics(image[around])
    mean_new, std_new = _statistics(under.reshape(-1, under.shape[-1]))
    # The deviation's ratio is bounded: on very flat cloth a strong defect must not vanish, nor noise explode.
    ratio = np.clip(std_new / std, 0.4, 2.5) * rng.uniform(0.7, 1.3)
    matched = (image - mean) * ratio + mean_new
    alpha = _feather(mask, rng)
    out = cloth.copy()
    out[place] = np.clip(under + alpha * (matched - under) + 0.5, 0, 255).astype(np.uint8)
    return out, _full(mask, place, cloth.shape[:2])


def poisson(part: DefectPart, cloth: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Set a part into good cloth by Poisson blending with mixed gradients; as :func:`paste` otherwise."""
    image, mask = _vary(part, rng, (cloth.shape[0] - 4, cloth.shape[1] - 4))
    place = _place(mask.shape, cloth.shape[:2], rng, border=2)
    # OpenCV blends what is left of the mask when three pixels are taken off all around, so give it four more.
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8))
    grown[[0, -1], :] = 0  # the solver needs a closed border of untouched cloth
    grown[:, [0, -1]] = 0
    mask = mask & cv2.erode(grown, np.ones((3, 3), np.uint8), iterations=3).astype(bool)
    x, y, w, h = cv2.boundingRect(grown)
    if min(w, h) < 3:  # the solver fails on a mask without an inside
        return cloth.copy(), np.zeros(cloth.shape[:2], bool)
    centre = (place[1].start + x + w // 2, place[0].start + y + h // 2)
    source = np.clip(image, 0, 255).astype(np.uint8)
    out = cv2.seamlessClone(source, cloth, grown * 255, centre, cv2.MIXED_CLONE)
    return np.asarray(out, np.uint8), _full(mask, place, cloth.shape[:2])


def _vary(part: DefectPart, rng: np.random.Generator, room: tuple[int, int]) -> tuple[np.ndarray, Mask]:
    """Flip, turn by a quarter, scale and slightly rotate; cut to what fits into ``room``."""
    image, mask = flip_and_turn([part.image, part.mask], rng, turn=0.25)
    image, mask = image.astype(np.float32), mask.astype(np.float32)
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.6))))
    angle = rng.normal(0, 4.0)
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    matrix[:, 2] += (size[0] / 2 - width / 2, size[1] / 2 - height / 2)
    image = cv2.warpAffine(
        np.ascontiguousarray(image), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    mask = cv2.warpAffine(np.ascontiguousarray(mask), matrix, size, flags=cv2.INTER_LINEAR)
    top = int(rng.integers(0, max(1, image.shape[0] - room[0] + 1)))
    left = int(rng.integers(0, max(1, image.shape[1] - room[1] + 1)))
    window = np.s_[top : top + room[0], left : left + room[1]]
    return image[window], mask[window] > 0.5


def _place(
    size: tuple[int, int], room: tuple[int, int], rng: np.random.Generator, border: int = 0
) -> tuple[slice, slice]:
    top = int(rng.integers(border, max(border, room[0] - size[0] - border) + 1))
    left = int(rng.integers(border, max(border, room[1] - size[1] - border) + 1))
    return np.s_[top : top + size[0], left : left + size[1]]


def _statistics(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pixels.mean(0), pixels.std(0) + 2.0


def _feather(mask: Mask, rng: np.random.Generator) -> np.ndarray:
    """A soft HW1 alpha that is 1 inside the mask and falls off within a few pixels outside."""
    grown = cv2.dilate(mask.astype(np.float32), np.ones((3, 3), np.uint8))
    soft = cv2.GaussianBlur(grown, (0, 0), float(rng.uniform(0.6, 1.5)))
    return np.maximum(soft, mask)[..., None]


def _full(mask: Mask, place: tuple[slice, slice], shape: tuple[int, int]) -> Mask:
    full = np.zeros(shape, bool)
    full[place] = mask
    return full
