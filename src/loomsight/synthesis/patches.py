"""Small pieces of cloth with a defect in them: what the generators learn from, and what they make.

A :class:`DefectPatch` is a square cut from a known fabric with a defect somewhere in it. Generators see it
through a :class:`Look`, which takes the brightness, the tint and the contrast of the cloth away and gives
them back to another cloth, so that one network serves pale and dark, flat and coarse cloth alike.

What a defect is called differs from mill to mill and from data set to data set; what a generator can be
told about every labelled defect is its *shape class*, measured from its mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.regions import split_parts
from loomsight.fabric.types import LabelledPicture, Mask, Picture
from loomsight.loom import DRAWN_KINDS, draw_defect
from loomsight.synthesis.augment import flip_and_turn
from loomsight.synthesis.repeat import continued

SHAPES = ("spot", "warp line", "weft line", "area")
"""Classes of a defect: small and round; long down the roll; long across it; anything larger."""

_SPOT = 14  # pixels: the longer side of a defect that still is a spot
_SLIM = 3.0  # how many times longer than wide a line is


@dataclass(frozen=True, slots=True)
class DefectPatch:
    """A square of cloth with a defect in it.

    Attributes:
        image: uint8 HWC RGB.
        mask: bool HW, true on the defect.
        cloth: uint8 HWC RGB, the same without the defect: as it was before one was drawn on it, or, under
            a real one, the cloth's own repeat.
        shape: index into :data:`SHAPES`.
        code: float32 (d,), the texture code of its fabric.
        fabric: its name.
        origin: "real" or "drawn".
    """

    image: Picture
    mask: Mask
    cloth: Picture
    shape: int
    code: NDArray[np.float32]
    fabric: str
    origin: str


@dataclass(frozen=True, slots=True)
class Look:
    """Brightness, tint and contrast of a cloth.

    A picture p is seen as (p − mean) · gain / 128, clipped to [−1, 1]: 0 is the cloth's own grey, and
    its weave has about the same amplitude on every cloth.

    Attributes:
        mean: float32 (3,), of the good cloth, in grey levels.
        gain: how much its contrast is raised.
    """

    mean: NDArray[np.float32]
    gain: float

    @classmethod
    def of(cls, image: Picture, mask: Mask | None = None) -> Look:
        """The look of a cloth, from one picture, uint8 HWC, without what lies under ``mask``.

        Pure white and black are no cloth but what lies beside a selvedge, unless there is little else.
        """
        pixels = image[~mask] if mask is not None and not mask.all() else image.reshape(-1, 3)
        woven = (pixels.min(axis=1) < 252) & (pixels.max(axis=1) > 3)
        if 0.05 < woven.mean() < 1:
            pixels = pixels[woven]
        values = pixels.astype(np.float32)
        deviation = float(values.mean(axis=1).std())
        return cls(values.mean(axis=0), float(np.clip(24 / (deviation + 1), 0.6, 2.5)))

    def encode(self, image: Picture) -> Float[NDArray[np.float32], "3 h w"]:
        """A picture as networks see it."""
        seen = (image.astype(np.float32) - self.mean) * (self.gain / 128)
        return np.ascontiguousarray(np.clip(seen, -1, 1).transpose(2, 0, 1))

    def decode(self, seen: Float[NDArray[np.float32], "3 h w"]) -> Picture:
        """And back: uint8 HWC."""
        image = seen.transpose(1, 2, 0) * (128 / self.gain) + self.mean
        return np.asarray(np.clip(image + 0.5, 0, 255), np.uint8)


def shape_class(mask: Mask) -> int:
    """The class of a defect, as an index into :data:`SHAPES`, by the smallest rectangle around its mask."""
    points = cv2.findNonZero(mask.astype(np.uint8))
    if points is None:
        raise ValueError("the mask is empty")
    (_, (width, height), angle) = cv2.minAreaRect(points)
    long, short = max(width, height) + 1, min(width, height) + 1
    if long <= _SPOT:
        return SHAPES.index("spot")
    if long / short < _SLIM:
        return SHAPES.index("area")
    direction = np.deg2rad(angle if width >= height else angle + 90)
    return SHAPES.index("weft line" if abs(np.cos(direction)) > abs(np.sin(direction)) else "warp line")


class PatchMaker:
    """Cuts defect patches from known fabrics, and draws defects on their good cloth.

    Patch k of a training is a function of the seed and k alone. Every fabric with masks is as likely as
    another, and so is every shape class that it has.

    Args:
        known: labelled pictures; those without a mask are left out.
        codes: the texture code, float32 (d,), of each fabric; pictures of other fabrics are left out.
        size: pixels a side.
        drawn: share of patches whose defect is drawn on good cloth (the loom's defects).
        seed: of everything random.

    Raises:
        ValueError: there is nothing to cut from.
    """

    def __init__(
        self,
        known: Sequence[LabelledPicture],
        codes: Mapping[str, NDArray[np.float32]],
        *,
        size: int = 64,
        drawn: float = 0.5,
        seed: int = 0,
    ) -> None:
        self._size, self._drawn, self._seed, self._codes = size, drawn, seed, codes
        self._real: dict[str, dict[int, list[tuple[Picture, Mask]]]] = {}
        self._good: dict[str, list[Picture]] = {}
        for picture in known:
            if picture.fabric not in codes or picture.mask is None or min(picture.mask.shape) < size:
                continue
            image = to_rgb(picture.image)
            if not picture.mask.any():
                self._good.setdefault(picture.fabric, []).append(image)
                continue
            for own in split_parts(picture.mask, gap=4):
                if _can_be_cut(own, size):
                    fabric = self._real.setdefault(picture.fabric, {})
                    fabric.setdefault(shape_class(own), []).append((image, own))
        if not self._real and not self._good:
            raise ValueError("known fabrics need pictures with masks, empty ones for good cloth")

    @property
    def fabrics(self) -> tuple[str, ...]:
        """The fabrics that patches come from."""
        return tuple(dict.fromkeys((*self._real, *self._good)))

    def batch(self, k: int, count: int, *, drawn: float | None = None) -> list[DefectPatch]:
        """The patches of step ``k``; ``drawn`` is another share than the maker's."""
        rng = np.random.default_rng([self._seed, k, 7])
        return [self.patch(rng, drawn=drawn) for _ in range(count)]

    def patch(self, rng: np.random.Generator, *, drawn: float | None = None) -> DefectPatch:
        """One patch."""
        share = self._drawn if drawn is None else drawn
        while True:
            draw = self._good and (not self._real or rng.random() < share)
            found = self._draw(rng) if draw else self._cut(rng)
            if found is not None:
                return found

    def good(self, fabric: str, rng: np.random.Generator) -> Picture | None:
        """A square of good cloth of a fabric, uint8 HWC; None if no good picture of it is known."""
        pictures = self._good.get(fabric)
        if not pictures:
            return None
        image = pictures[int(rng.integers(len(pictures)))]
        top, left = (int(rng.integers(length - self._size + 1)) for length in image.shape[:2])
        return np.ascontiguousarray(image[top : top + self._size, left : left + self._size])

    def _cut(self, rng: np.random.Generator) -> DefectPatch | None:
        fabric = _any(list(self._real), rng)
        shapes = self._real[fabric]
        image, own = _any(shapes[_any(sorted(shapes), rng)], rng)
        window = _window(own, self._size, rng)
        cut, mask = flip_and_turn([image[window], own[window]], rng)
        return self._finished(cut, mask, without(cut, mask), fabric, "real")

    def _draw(self, rng: np.random.Generator) -> DefectPatch | None:
        fabric = _any(list(self._good), rng)
        good = self.good(fabric, rng)
        assert good is not None  # noqa: S101 — it is in ``_good``
        image, mask = draw_defect(good, DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))], rng)
        if bool((good[..., :1] == good[..., 1:]).all()):  # a grey camera sees no colour
            image = to_rgb(to_grey(image))
        return self._finished(image, mask, good, fabric, "drawn")

    def _finished(
        self, image: Picture, mask: Mask, cloth: Picture, fabric: str, origin: str
    ) -> DefectPatch | None:
        if not _is_usable(mask):
            return None
        image, mask = np.ascontiguousarray(image), np.ascontiguousarray(mask)
        return DefectPatch(image, mask, cloth, shape_class(mask), self._codes[fabric], fabric, origin)


def _is_usable(mask: Mask) -> bool:
    """Whether there is something to see, and cloth around it to compare with."""
    return bool(6 <= mask.sum() <= 0.6 * mask.size)


def _can_be_cut(mask: Mask, size: int) -> bool:
    """Whether a usable window of a defect comes up within some tries.

    A speck has none, nor has a mask of the whole picture: who waits for one of theirs waits for ever.
    """
    rng = np.random.default_rng(0)
    return any(_is_usable(mask[_window(mask, size, rng)]) for _ in range(20))


def without(image: Picture, mask: Mask, border: int = 2) -> Picture:
    """The cloth as it would be without its defect: its own repeat under the mask and a border around it."""
    hidden = cv2.dilate(mask.astype(np.uint8), np.ones((2 * border + 1,) * 2, np.uint8)).astype(bool)
    look = Look.of(image, hidden)
    repeated = look.decode(continued(look.encode(image), hidden))
    return np.where(hidden[..., None], repeated, image)


def _window(mask: Mask, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square window around a pixel of the defect, the whole defect well inside if it is small enough."""
    rows, columns = np.nonzero(mask)
    starts = []
    at = int(rng.integers(len(rows)))
    for places, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        first, last = int(places.min()), int(places.max()) + 1
        if last - first <= size - 8:
            start = rng.integers(last + 4 - size, first - 4 + 1)
        else:
            start = places[at] - rng.integers(size // 4, size - size // 4)
        starts.append(int(np.clip(start, 0, length - size)))
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


def _any(of: Sequence, rng: np.random.Generator):  # type: ignore[no-untyped-def,type-arg]
    return of[int(rng.integers(len(of)))]
