"""Which pixel belongs to which defect: instance maps, and the boxes and types that follow from them.

A network that outlines defects needs their pixels, one that boxes them needs each by itself. Both come from
one map, int16 HW: 0 on good cloth, k on the defect whose type is ``types[k - 1]``. It is cut, mirrored and
stretched with its picture, and the boxes are read off afterwards. Labelled boxes may overlap: those that do
lie in layers of their own, HWL.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import ndimage

from loomsight.fabric.regions import label_parts
from loomsight.fabric.types import UNKNOWN, LabelledPicture, Mask

InstanceMap = Int[NDArray[np.int16], "h w *layers"]
GAP = 5
"""Pixels between the pieces of one labelled defect, at most."""


def instances_of(picture: LabelledPicture) -> tuple[InstanceMap, tuple[str, ...]]:
    """The defects of a labelled picture; those that are only boxed fill their boxes.

    Returns:
        the map, and the type of each defect, ``unknown`` where no label says.
    """
    if picture.mask is None:
        given = np.zeros((0, 4)) if picture.boxes is None else picture.boxes
        boxes = np.rint(given).astype(int)
        # what ends within the picture begins within it, however thin it is
        boxes[:, :2] = np.minimum(boxes[:, :2], np.ceil(given[:, 2:]).astype(int) - 1)
        return _layers(boxes, picture.image.shape[:2]), _types(picture.types, len(boxes))
    count, labels = label_parts(picture.mask, GAP)
    found = labels.astype(np.int16)
    if picture.boxes is None or len(picture.boxes) != len(picture.types):
        return found, _types(picture.types, count)
    return found, tuple(_type_at(found == number, picture) for number in range(1, count + 1))


def _layers(boxes: Int[NDArray[np.int64], "n 4"], shape: tuple[int, ...]) -> InstanceMap:
    layers = [np.zeros(shape, np.int16)]
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist(), 1):
        where = slice(max(0, y0), max(0, y1, y0 + 1)), slice(max(0, x0), max(0, x1, x0 + 1))
        free = next((layer for layer in layers if not layer[where].any()), None)
        if free is None:
            layers.append(free := np.zeros(shape, np.int16))
        free[where] = number
    return layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)


def flat(found: InstanceMap) -> Mask:
    """Where some defect is, bool HW."""
    return np.asarray(found > 0 if found.ndim == 2 else (found > 0).any(axis=-1), np.bool_)


def _types(named: tuple[str, ...], count: int) -> tuple[str, ...]:
    if len(named) == count:
        return named
    return (named[0] if len(set(named)) == 1 else UNKNOWN,) * count


def _type_at(part: Mask, picture: LabelledPicture) -> str:
    """The type of the box that holds most of a part."""
    assert picture.boxes is not None  # noqa: S101 — the caller saw to it
    rows, columns = np.nonzero(part)
    x0, y0, x1, y1 = picture.boxes.T[:, :, None]
    held = ((columns >= x0 - 1) & (columns < x1 + 1) & (rows >= y0 - 1) & (rows < y1 + 1)).sum(axis=1)
    return picture.types[int(held.argmax())] if held.size and held.max() > 0 else UNKNOWN


def boxes_of(found: InstanceMap) -> tuple[Float[NDArray[np.float32], "n 4"], NDArray[np.int64]]:
    """The box of each defect that is in the map, xyxy pixels, far edge excluded; and which defect each is."""
    boxes, numbers = [], []
    for number, where in enumerate(ndimage.find_objects(found), 1):
        if where is not None:
            rows, columns = where[:2]
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            numbers.append(number)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(numbers, np.int64)


def true_boxes(picture: LabelledPicture) -> tuple[Float[NDArray[np.float32], "n 4"], list[str]]:
    """The boxes of a picture's defects, as they are labelled or else around each in its mask; their types."""
    if picture.mask is None and picture.boxes is not None:
        return picture.boxes, list(_types(picture.types, len(picture.boxes)))
    instances, types = instances_of(picture)
    boxes, which = boxes_of(instances)
    return boxes, [types[k - 1] for k in which]
