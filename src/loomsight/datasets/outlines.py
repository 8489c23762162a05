"""Masks, boxes and outlines: one defect, three ways to write down where it is.

A mask is bool HW; a box is xyxy in pixels, the far edge excluded; an outline is what COCO files hold,
polygons or run lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from loomsight.fabric.types import Mask

Box = tuple[float, float, float, float]
"""xyxy in pixels, the far edge excluded."""


def masks_to_boxes(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "n 4"]:
    """The box of each 8-connected part of ``mask``: float32 xyxy, from top to bottom, then left to right."""
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 1:
        return np.zeros((0, 4), np.float32)
    x, y, width, height = (stats[1:, column] for column in range(4))
    boxes = np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)
    return boxes[np.lexsort((boxes[:, 0], boxes[:, 1]))]


def boxes_to_mask(
    boxes: Float[np.ndarray, "n 4"] | Sequence[Box], shape: tuple[int, int]
) -> Bool[np.ndarray, "h w"]:
    """A mask of ``shape`` (height, width) that is true on every pixel that a box touches."""
    mask = np.zeros(shape, np.bool_)
    for x0, y0, x1, y1 in boxes:
        left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
        mask[top : max(0, int(np.ceil(y1))), left : max(0, int(np.ceil(x1)))] = True
    return mask


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of one defect as COCO writes it: polygons, or run lengths.

    Attributes:
        rings: polygons as flat x, y, x, y, … in pixels; their union is the defect.
        counts: lengths of runs, off first, down the columns of a picture of ``size`` (height, width).
    """

    rings: tuple[tuple[float, ...], ...] = ()
    counts: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)

    def mask(self, shape: tuple[int, int]) -> Mask:
        """Draw it into a picture of ``shape`` (height, width).

        Raises:
            ValueError: its run lengths are of a picture of another size.
        """
        if self.counts:
            if self.size != shape:
                own, other = (f"{width} × {height}" for height, width in (self.size, shape))
                raise ValueError(f"it is of a picture of {own} pixels, and this one has {other}")
            return decode_runs(self.counts, self.size)
        mask = np.zeros(shape, np.bool_)
        for ring in self.rings:
            mask |= fill_polygon(np.asarray(ring, np.float64).reshape(-1, 2), shape)
        return mask


def encode_runs(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Run lengths down the columns of ``mask``, the first run off: COCO's uncompressed form."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def decode_runs(counts: Sequence[int], size: tuple[int, int]) -> Mask:
    """The mask of run lengths.

    Raises:
        ValueError: the runs are negative or do not add up to the picture.
    """
    height, width = size
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths add up to {sum(counts)}, not to {height}×{width} pixels")
    on = np.arange(len(counts)) % 2 == 1
    return np.repeat(on, counts).reshape((height, width), order="F")


def expand_runs(text: str) -> list[int]:
    """COCO's compressed run lengths, a string, as numbers.

    Six bits a character, low bits first, bit 5 "more follows"; from the third on each is the
    difference to the one two before (the reference is ``rleFrString`` of pycocotools).

    Raises:
        ValueError: the string holds other characters or ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{letter!r} is no run-length character")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            if shift > 60:
                raise ValueError("a run length is too long")
            continue
        if bits & 0x10:
            value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the run lengths end within a number")
    return counts


def fill_polygon(points: Float[NDArray[np.float64], "n 2"], shape: tuple[int, int]) -> Mask:
    """The pixels whose centre lies inside a polygon (even-odd rule).

    A polygon too thin to hold any centre still marks the pixels that its corners lie in, so that a
    labelled defect never vanishes.
    """
    height, width = shape
    mask = np.zeros(shape, np.bool_)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    top, bottom = max(0, int(np.floor(y0.min()))), min(height, int(np.ceil(y0.max())) + 1)
    for row in range(top, bottom):
        middle = row + 0.5
        crossed = (y0 <= middle) != (y1 <= middle)
        slope = (x1[crossed] - x0[crossed]) / (y1[crossed] - y0[crossed])
        crossings = np.sort(x0[crossed] + (middle - y0[crossed]) * slope)
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
        for left, right in zip(columns[::2], columns[1::2], strict=True):
            mask[row, left:right] = True
    if not mask.any():
        columns, rows = np.floor(points).astype(int).T
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        mask[rows[inside], columns[inside]] = True
    return mask


def union(masks: Iterable[Mask], shape: tuple[int, int]) -> Mask:
    """All masks as one."""
    whole = np.zeros(shape, np.bool_)
    for mask in masks:
        whole |= mask
    return whole
