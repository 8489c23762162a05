"""What lies over the yarns: light, stray fibres, printed ink, and where the cloth ends.

Everything is a function of the place on the cloth alone, so any rectangle of it can be asked for again.
Fibres and prints are tiles that repeat; the fibres are two tiles of unlike sizes, so no repeat is seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from loomsight.loom.spec import ClothSpec
from loomsight.loom.yarns import ROWS_OF_LIGHT, Creel, Table

_TABLE = 1 << 16  # values of the noise table
_LIGHT_ROWS = 256
_FIBRE_TILES = ((509, 467), (379, 613))  # rows, columns; no two have a common factor
_SPECK_TILE = (743, 691)
_NAP = {"fleece": 0.55, "corduroy": 0.4}  # fibres that the structure itself shows
_SELVEDGE_BAND_MM = 6.0


@dataclass(frozen=True, slots=True)
class Surface:
    """One rectangle, float32 arrays that broadcast to (rows, columns).

    Attributes:
        lit: brightness, about 1.
        ink: share of it that is printed; None without a print.
        bare: 1 where there is no cloth; None where there is cloth everywhere.
        turns_down, turns_across: turns of a twisted yarn along the warp and along the weft.
    """

    lit: Table
    ink: Table | None
    bare: Table | None
    turns_down: Table
    turns_across: Table

    def part(self, rows: slice, columns: slice) -> Surface:
        """A rectangle of it."""
        return Surface(
            self.lit[rows, columns],
            None if self.ink is None else self.ink[rows, columns],
            None if self.bare is None else self.bare[rows, columns],
            self.turns_down[rows],
            self.turns_across[:, columns],
        )


class SurfaceMaker:
    """The surface of one cloth under its lamp."""

    def __init__(self, spec: ClothSpec, creel: Creel, width: int) -> None:
        self.spec, self.width, self._creel = spec, width, creel
        start = creel.generator(ROWS_OF_LIGHT, -1)
        self._table = start.standard_normal(_TABLE + width, dtype=np.float32)
        x = np.linspace(-1, 1, width, dtype=np.float32)
        lamp = start.uniform(-0.7, 0.7)
        side = 1.0 if start.random() < 0.5 else -1.0
        light = 1 - spec.lighting * np.square((x - lamp) / (1 + abs(lamp)))
        self.light: Table = (light * (1 + 0.5 * side * spec.gradient * x)).astype(np.float32)
        self.outside = float(start.choice([18.0, 235.0]))  # grey level of what the cloth lies on
        rest = creel.generator(ROWS_OF_LIGHT, -2)
        self._nap = np.float32(min(1.0, 0.3 * spec.hairiness + _NAP.get(spec.structure, 0.0)))
        self._fibres = [_by_columns(_web(rest, size, spec), width) for size in _FIBRE_TILES if self._nap]
        self._specks: Table | None = None
        if spec.specks:
            self._specks = _by_columns(_speckled(rest, spec), width)
        self._print = None
        if spec.print != "none":
            self._print = _by_columns(_printed(rest, spec), width)
        self._x = np.arange(width, dtype=np.float32)
        turn = 10 / (max(spec.twist, 1e-6) * spec.mm_per_px)  # pixels
        self._turn = turn
        if spec.streaks and spec.camera == "line":
            self.light = (self.light * _streaked(rest, spec, width)).astype(np.float32)
        self._turns_across = (np.arange(width) / turn % 1).astype(np.float32)[None]
        self._waver = rest.uniform(0, 2 * np.pi, 4)

    def at(self, first: int, rows: int) -> Surface:
        """The surface of `rows` rows, from row `first` on."""
        y = np.arange(first, first + rows)
        fibres = np.float32(self.spec.fibre) * self.noise(first, rows, 0)
        for tile in self._fibres:
            fibres += np.float32(0.22) * self._nap * tile[y % len(tile)]
        lit = (1 + np.maximum(fibres, np.float32(-0.8))) * self.light
        if self._specks is not None:
            lit *= 1 + self._specks[y % len(self._specks)]
        bare = None
        if self.spec.selvedges != "none":
            bare, band = self._edges(y)
            lit *= band
        ink = None if self._print is None else self._print[y % len(self._print)]
        turns = (y / self._turn % 1).astype(np.float32)[:, None]
        return Surface(lit, ink, bare, turns, self._turns_across)

    def noise(self, first: int, rows: int, stream: int) -> Table:
        """White noise, (rows, width): every row is cut from one table at a place of its own."""
        starts = []
        for block in range(first // _LIGHT_ROWS, (first + rows - 1) // _LIGHT_ROWS + 1):
            rng = self._creel.generator(ROWS_OF_LIGHT + 1 + stream, block)
            starts.append(rng.integers(0, _TABLE, _LIGHT_ROWS))
        at = np.concatenate(starts)[first % _LIGHT_ROWS :][:rows]
        return np.stack([self._table[start : start + self.width] for start in at])

    def _edges(self, y: np.ndarray) -> tuple[Table, Table]:
        """Where the cloth ends, with the fringe of a woven cloth's cut picks; its denser, duller edge."""
        spec = self.spec
        pick = np.floor(y / spec.px_per_pick).astype(np.int64)
        within = np.abs(y / spec.px_per_pick - pick - 0.5)
        fringe = np.zeros(len(y))  # mm
        if spec.construction == "woven":
            fringe = np.where(within < 0.3, 0.8 + 0.3 * self._table[pick * 7919 % _TABLE], 0)
        sway = sum(
            np.cos(y * spec.mm_per_px / wave + self._waver[k]) for k, wave in enumerate((3, 8, 21, 55))
        )
        out = np.clip(fringe, 0, 2) / spec.mm_per_px
        sway = 0.12 * sway / spec.mm_per_px
        bare, band = np.zeros((len(y), self.width), np.float32), np.ones((len(y), self.width), np.float32)
        left, right = spec.cloth_columns(self.width)
        for edge, side in ((left, 1.0), (right, -1.0)):
            if not 0 < edge < self.width:
                continue
            inside = (side * (self._x - edge) + (out + sway)[:, None]).astype(np.float32)
            bare = np.maximum(bare, np.clip(0.5 - inside, 0, 1))
            tape = np.clip(_SELVEDGE_BAND_MM / spec.mm_per_px - side * (self._x - edge), 0, 1)
            band *= (1 - 0.12 * tape).astype(np.float32)
        return bare, band


def _by_columns(tile: Table, width: int) -> Table:
    """A tile, repeated to the width of the picture."""
    return np.asarray(np.take(tile, np.arange(width) % tile.shape[1], axis=1))


def _web(rng: np.random.Generator, size: tuple[int, int], spec: ClothSpec) -> Table:
    """Fibres lying every way, one over the other: mean 0, deviation 1. It can be tiled. (rows, columns)"""
    rows, columns = size
    length = np.clip(5.0 / spec.mm_per_px, 24, 70)  # pixels
    count = round(1.6 * rows * columns / length)
    turn = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(rng.normal(0, 0.22, (count, 8)), axis=1)
    steps = np.stack([np.cos(turn), np.sin(turn)], axis=2) * length / 8
    points = rng.uniform(0, 1, (count, 1, 2)) * (columns, rows) + np.cumsum(steps, axis=1)
    grey = rng.integers(0, 256, count)
    pad = int(length) + 2
    canvas = np.full((rows + 2 * pad, columns + 2 * pad), 127, np.uint8)
    low, high = points.min(axis=1), points.max(axis=1)
    for fibre in range(count):
        for down in (-rows, 0, rows):
            if high[fibre, 1] + down < -pad or low[fibre, 1] + down > rows + pad:
                continue
            for across in (-columns, 0, columns):
                if high[fibre, 0] + across < -pad or low[fibre, 0] + across > columns + pad:
                    continue
                line = np.rint((points[fibre] + (across + pad, down + pad)) * 16).astype(np.int32)
                cv2.polylines(canvas, [line], False, int(grey[fibre]), 1, cv2.LINE_AA, 4)
    clouds = cv2.resize(
        np.pad(rng.standard_normal((6, 6)), 2, mode="wrap").astype(np.float32), None, fx=32, fy=32,
        interpolation=cv2.INTER_CUBIC,
    )[64:-64, 64:-64]  # fmt: skip
    web = canvas[pad:-pad, pad:-pad].astype(np.float32) - 127
    web = web / web.std() + 0.35 * cv2.resize(clouds, (columns, rows))
    return np.asarray((web - web.mean()) / web.std(), np.float32)


def _streaked(rng: np.random.Generator, spec: ClothSpec, width: int) -> Table:
    """The gain of each pixel of a line sensor: a little uneven, and one to four streaks of some pixels."""
    gain = 1 + 0.06 * spec.streaks * rng.standard_normal(width)
    x = np.arange(width)
    for part in rng.uniform(0.3, 1, int(rng.integers(1, 5))):
        spread, sign = rng.uniform(0.4, 1.8), rng.choice([-1, 1])
        gain += sign * part * spec.streaks * np.exp(-np.square((x - rng.uniform(0, width)) / spread) / 2)
    return np.clip(gain, 0.3, 1.7).astype(np.float32)


def _speckled(rng: np.random.Generator, spec: ClothSpec) -> Table:
    """Specks of a pixel or two, most of them light: their change of brightness. It can be tiled."""
    rows, columns = _SPECK_TILE
    tile = np.zeros((rows, columns), np.float32)
    count = rng.poisson(spec.specks * rows * columns * spec.mm_per_px**2 / 100)
    sign = np.where(rng.random(count) < 0.75, 1.0, -0.7)
    strength = sign * rng.gamma(2.0, 0.5, count)
    np.add.at(tile, (rng.integers(0, rows, count), rng.integers(0, columns, count)), strength)
    spread = float(np.clip(0.06 / spec.mm_per_px, 0.5, 1.0))
    wrapped = cv2.GaussianBlur(np.pad(tile, 4, mode="wrap"), (0, 0), spread)[4:-4, 4:-4]
    return np.asarray(np.clip(wrapped, -0.5, 0.8), np.float32)


def _printed(rng: np.random.Generator, spec: ClothSpec) -> Table:
    """One repeat of a print: the share of each pixel that is inked."""
    size = max(4, round(spec.print_mm / spec.mm_per_px))
    fine = 4 if size < 400 else 1
    n = size * fine
    tile = np.zeros((n, n), np.uint8)
    if spec.print == "dots":
        for y, x in ((0.25, 0.25), (0.75, 0.75)):
            cv2.circle(tile, (round(x * n), round(y * n)), round(0.13 * n), 255, -1)
    elif spec.print == "stripes":
        tile[:, : n // 3] = 255
        tile[:, n // 2 : n // 2 + n // 16] = 255
    elif spec.print == "checks":
        tile[: n // 4] = 110
        tile[:, : n // 4] += 110
        tile[n // 2 : n // 2 + n // 24] = 220
    else:
        for y, x, turn in ((0.27, 0.27, rng.uniform(0, 180)), (0.75, 0.75, rng.uniform(0, 180))):
            middle = (round(x * n), round(y * n))
            for spread in (-42, 0, 42):
                angle = np.deg2rad(turn + spread)
                tip = (round((x + 0.13 * np.cos(angle)) * n), round((y + 0.13 * np.sin(angle)) * n))
                cv2.ellipse(tile, tip, (round(0.11 * n), round(0.045 * n)), turn + spread, 0, 360, 255, -1)
                cv2.line(tile, middle, tip, 0, max(1, n // 90))
            cv2.circle(tile, middle, round(0.03 * n), 200, -1)
    small = cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255)
