"""The pictures of known fabrics that a training takes, and those that would teach it wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from loomsight.datasets import Item
from loomsight.errors import DatasetError, ImageError
from loomsight.fabric.types import LabelledPicture
from loomsight.progress import Progress


def load_known(items: Sequence[Item], progress: Progress, *, skip: bool = False) -> list[LabelledPicture]:
    """Read pictures and labels, without those whose defect nothing outlines: it would pass for good cloth.

    Args:
        items: of a data set.
        progress: is told of what is left out.
        skip: leave out what cannot be read; otherwise the first one raises.

    Raises:
        ImageError, DatasetError: see :meth:`Item.load`.
    """
    pictures, bare = [], 0
    for item in progress.track(items, "known fabrics", len(items)):
        if not (item.good or item.mask or item.outlines or item.boxes):
            bare += 1
            continue
        try:
            picture = item.load()
        except (ImageError, DatasetError) as error:
            if not skip:
                raise
            progress.say(f"skipped: {error}")
            continue
        if item.good or _is_outlined(picture):
            pictures.append(picture)
        else:
            bare += 1
    if bare:
        which = f"{bare} pictures are" if bare > 1 else "1 picture is"
        progress.say(f"note: {which} left out: nothing outlines the defects there")
    return pictures


def _is_outlined(picture: LabelledPicture) -> bool:
    """Whether some pixel of its mask, or some of a box, lies in it."""
    if picture.mask is not None:
        return bool(picture.mask.any())
    return picture.boxes is not None and len(picture.boxes) > 0
