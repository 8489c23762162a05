"""Weave pieces and rolls: pictures of cloth with their defects, masks and places."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loomsight.errors import UsageError
from loomsight.fabric.types import Mask, Picture, Place
from loomsight.loom.defects import FAINT, Patch, weave_defect
from loomsight.loom.faults import DefectSpec, kinds_of
from loomsight.loom.render import Renderer
from loomsight.loom.spec import ClothSpec

_PLAN_ROWS = 1024  # rows of a roll that are planned together, whatever the camera's frame
_SEEDS = 2**62
RUNNING_MM = 3000.0
"""The longest that a running defect of a roll is."""


@dataclass(frozen=True, slots=True)
class WovenDefect:
    """A defect, as far as it lies in one picture.

    Attributes:
        type: a name of `WOVEN_KINDS`.
        box: xyxy pixels of this picture, far edge excluded.
        area: pixels of the mask.
        length_mm: of the whole defect, also beyond this picture.
        place: of its middle, from the start of the cloth and from its left border.
        number: counts the defects of one roll: the same in every frame that shows it.
        strength: its severity in [0, 1].
    """

    type: str
    box: tuple[int, int, int, int]
    area: int
    length_mm: float
    place: Place
    number: int
    strength: float


@dataclass(frozen=True, slots=True)
class Cloth:
    """A picture of woven cloth, uint8 HW (grey) or HWC RGB, the bool HW mask of its defects, and these."""

    image: Picture
    mask: Mask
    defects: tuple[WovenDefect, ...]


def weave(
    spec: ClothSpec,
    height: int,
    width: int,
    rng: np.random.Generator,
    defects: Sequence[DefectSpec] | Literal["random"] = (),
) -> Cloth:
    """Weave one picture.

    Args:
        spec: the cloth.
        height, width: pixels.
        rng: the same state weaves the same cloth, with or without defects, to the same bytes.
        defects: which, or "random" for one to three of any type that somebody could see.

    Raises:
        UsageError: a size below 16 pixels.
    """
    cloth = _renderer(spec, height, width, rng)
    if isinstance(defects, str):
        woven = [_any_defect(cloth, height, rng) for _ in range(int(rng.integers(1, 4)))]
    else:
        woven = [(defect, weave_defect(cloth, defect)) for defect in defects]
    return _picture(cloth, 0, height, [(number, *one) for number, one in enumerate(woven)])


def _any_defect(cloth: Renderer, height: int, rng: np.random.Generator) -> tuple[DefectSpec, Patch]:
    """A random defect; a faint one is taken only when eight in turn are faint."""
    rows = (round(0.05 * height), max(1, round(0.95 * height)))
    for _ in range(8):
        defect = DefectSpec.random(rng, cloth.spec, rows=rows, width=cloth.width)
        patch = weave_defect(cloth, defect)
        if patch.contrast >= FAINT:
            break
    return defect, patch


def weave_roll(
    spec: ClothSpec,
    rng: np.random.Generator,
    *,
    metres: float,
    frame_height: int = 512,
    width: int = 1024,
    defects_per_m2: float = 30.0,
    periodic_mm: float | None = None,
    running: bool = False,
) -> Iterator[Cloth]:
    """Weave a roll as a line-scan camera delivers it: frames that follow on without a step.

    The yarns of one frame go on in the next, and a defect may begin in one and end in another. Nothing of
    the past is kept, so memory does not grow with the roll.

    Args:
        metres: length of the roll; the last frame is woven full.
        frame_height, width: pixels of a frame.
        defects_per_m2: expected number; their places and types are random.
        periodic_mm: a damaged roller of this circumference marks the cloth at each turn, at one place across.
        running: a fault of one end or wale runs for metres, through many frames.

    Raises:
        UsageError: a length or rate that cannot be, or a picture below 16 pixels.
    """
    if not metres > 0 or defects_per_m2 < 0 or (periodic_mm is not None and not periodic_mm >= 10):
        raise UsageError(
            "cannot weave a roll",
            where=f"metres={metres}, defects_per_m2={defects_per_m2}, periodic_mm={periodic_mm}",
        )
    cloth = _renderer(spec, frame_height, width, rng)
    plan_seed = int(rng.integers(_SEEDS))
    frames = max(1, math.ceil(metres * 1000 / spec.mm_per_px / frame_height - 1e-6))
    plan = _RollPlan(cloth, plan_seed, defects_per_m2, periodic_mm, frames * frame_height if running else 0)
    return _frames(cloth, plan, frames, frame_height)


class _RollPlan:
    """Which defects a roll has, block by block of `_PLAN_ROWS` rows, by the middle of each."""

    def __init__(
        self,
        cloth: Renderer,
        seed: int,
        defects_per_m2: float,
        periodic_mm: float | None,
        running_rows: int,
    ) -> None:
        self._cloth, self._seed, self._rate = cloth, seed, defects_per_m2
        rng = np.random.default_rng((seed, _SEEDS))
        spec, possible = cloth.spec, kinds_of(cloth.spec)
        self._every = None if periodic_mm is None else periodic_mm / spec.mm_per_px
        marks = [kind for kind in possible if kind in ("hole", "oil stain", "colour spot", "burl mark")]
        mark = marks[int(rng.integers(len(marks)))]
        self._mark = DefectSpec.random(rng, spec, rows=(0, _PLAN_ROWS), width=cloth.width, kind=mark)
        self._running: DefectSpec | None = None
        lines = [
            kind for kind in possible if kind in ("missing end", "reed mark", "needle line", "sinker mark")
        ]
        if running_rows and lines:
            kind = lines[int(rng.integers(len(lines)))]
            line = DefectSpec.random(rng, spec, rows=(0, 1), width=cloth.width, kind=kind)
            length = min(RUNNING_MM, 0.8 * running_rows * spec.mm_per_px)
            at = float(rng.uniform(0.4, 0.6) * running_rows)
            self._running = line.model_copy(update={"y": at, "length_mm": length})

    def block(self, number: int) -> list[DefectSpec]:
        """The defects with their middle in that block."""
        rng = np.random.default_rng((self._seed, number))
        spec, width = self._cloth.spec, self._cloth.width
        first, last = number * _PLAN_ROWS, (number + 1) * _PLAN_ROWS
        count = int(rng.poisson(self._rate * _PLAN_ROWS * width * spec.mm_per_px**2 * 1e-6))
        defects = [DefectSpec.random(rng, spec, rows=(first, last), width=width) for _ in range(count)]
        if self._every is not None:
            turn = math.ceil((first - self._mark.y) / self._every)
            while (at := self._mark.y + turn * self._every) < last:
                if at >= first:
                    defects.append(self._mark.model_copy(update={"y": at}))
                turn += 1
        if self._running is not None and first <= self._running.y < last:
            defects.append(self._running)
        return defects


def _frames(cloth: Renderer, plan: _RollPlan, frames: int, height: int) -> Iterator[Cloth]:
    ahead = math.ceil((0.5 * RUNNING_MM + 80) / cloth.spec.mm_per_px)  # no defect reaches farther than this
    planned: list[tuple[int, DefectSpec, Patch]] = []
    block, number = 0, 0
    for frame in range(frames):
        first = frame * height
        while block * _PLAN_ROWS < first + height + ahead and block * _PLAN_ROWS < frames * height:
            for defect in plan.block(block):
                planned.append((number, defect, weave_defect(cloth, defect)))
                number += 1
            block += 1
        near = first - cloth.camera.reach
        planned = [item for item in planned if item[2].top + item[2].mask.shape[0] > near]
        yield _picture(cloth, first, height, planned)


def _renderer(spec: ClothSpec, height: int, width: int, rng: np.random.Generator) -> Renderer:
    if min(height, width) < 16:
        raise UsageError("cannot weave a picture", where=f"{width}×{height} px", why="smaller than 16 px")
    return Renderer(spec, int(rng.integers(_SEEDS)), width)


def _picture(cloth: Renderer, first: int, height: int, patches: list[tuple[int, DefectSpec, Patch]]) -> Cloth:
    """Rows `first` to `first + height` with whatever of the patches lies in them."""
    camera = cloth.camera
    margin = camera.reach
    top, rows = first - margin, height + 2 * margin
    seen = cloth.strip(top, rows)
    mask = np.zeros((height, cloth.width), np.bool_)
    found = []
    for number, defect, patch in patches:
        _add(seen, patch.change, patch.top - top, patch.left)
        flat = np.zeros((rows, cloth.width), np.bool_)
        _add(flat, patch.mask, patch.top - top, patch.left)
        part = camera.mask(flat, first)
        if part.any():
            mask |= part
            found.append(_woven(number, defect, part, cloth.spec.mm_per_px))
    image = camera.picture(seen, first)
    return Cloth(image[:, :, 0] if cloth.spec.grey else image, mask, tuple(found))


def _add(onto: np.ndarray, patch: np.ndarray, top: int, left: int) -> None:
    """Add a patch where it lies within `onto`; a mask is joined."""
    first, last = max(0, top), min(onto.shape[0], top + patch.shape[0])
    if first < last:
        onto[first:last, left : left + patch.shape[1]] += patch[first - top : last - top]


def _woven(number: int, defect: DefectSpec, mask: Mask, mm_per_px: float) -> WovenDefect:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return WovenDefect(
        type=defect.type,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        area=int(np.count_nonzero(mask)),
        length_mm=defect.length_mm,
        place=Place(metres=defect.y * mm_per_px / 1000, millimetres=defect.x * mm_per_px),
        number=number,
        strength=defect.strength,
    )
