"""Yarns without end: thickness, place and tone of any stretch of any yarn, the same whenever it is asked for.

A spun yarn is uneven at every length, its variance about the same in each octave (1/f). The values
are drawn at knots of several spacings and joined by lines. The knots of a block come from a generator of
that block's own number, so a roll can be woven from any row on, frame by frame, without keeping its past.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loomsight.loom.spec import ClothSpec

Table = NDArray[np.float32]

_SPACINGS = (256, 64, 16, 4)  # pixels between knots
_ROWS = 256  # rows of a warp block
_PICKS = 64  # picks of a weft block
_FAR = 1 << 40  # seeds are not negative; rows before the start of a roll are asked for at its first frame
_WARP, _WEFT, _ENDS, ROWS_OF_LIGHT = range(4)  # streams of random numbers of one cloth; the last, and on
_BARS = 100
_HALF = {"gauze": 0.11, "fleece": 1.0}  # half the width of a yarn, as a share of its room
MARGIN = 4
"""Ends that are kept beyond the left border of the picture."""


@dataclass(frozen=True, slots=True)
class Yarns:
    """Float32 tables. Warp: (rows, ends). Weft: (picks, columns).

    Attributes:
        half: half the yarn's width, pixels.
        shift: how far its middle is off its place, pixels.
        tone: its brightness, about 1.
    """

    half: Table
    shift: Table
    tone: Table


class Creel:
    """All yarns of one cloth, warp and weft, from one seed."""

    def __init__(self, spec: ClothSpec, seed: int, width: int) -> None:
        self.spec, self.seed, self.width = spec, seed, width
        self.ends = int(np.ceil(width / spec.px_per_end)) + 2 * MARGIN
        self._blocks: OrderedDict[tuple[int, int], Table] = OrderedDict()
        self._end_by_end = self.generator(_ENDS, 0).standard_normal((3, 1, self.ends), dtype=np.float32)
        dent = max(1, spec.ends_per_dent)
        within = np.arange(self.ends) % dent - 0.5 * (dent - 1)
        self._dented = (-spec.reed_marks * spec.px_per_end * within).astype(np.float32)

    def generator(self, stream: int, block: int) -> np.random.Generator:
        """The random numbers of one block of one stream."""
        return np.random.default_rng((self.seed, stream, block + _FAR))

    def warp(self, first: int, rows: int) -> Yarns:
        """The warp from row `first` on."""
        blocks = range(first // _ROWS, (first + rows - 1) // _ROWS + 1)
        table = np.concatenate([self._block(_WARP, block) for block in blocks], axis=1)
        start = first - blocks[0] * _ROWS
        yarns = self._yarns(table[:, start : start + rows], self.spec.px_per_end)
        if self.spec.ends_per_dent and self.spec.reed_marks:
            np.add(yarns.shift, self._dented, out=yarns.shift)
        return yarns

    def weft(self, first: int, picks: int) -> Yarns:
        """The weft from pick `first` on."""
        blocks = range(first // _PICKS, (first + picks - 1) // _PICKS + 1)
        table = np.concatenate([self._block(_WEFT, block) for block in blocks], axis=1)
        start = first - blocks[0] * _PICKS
        yarns = self._yarns(table[:, start : start + picks], self.spec.px_per_pick)
        if self.spec.barre:
            bands = np.concatenate([self._bands(block) for block in blocks])[start : start + picks]
            np.add(yarns.tone, np.float32(self.spec.barre) * bands[:, None], out=yarns.tone)
        return yarns

    def _bands(self, block: int) -> Table:
        """Barré of one block: a tone for each pick, in bands of 8 to 40 picks, each of one cheese of weft."""
        rng = self.generator(_BARS, block)
        bands = np.cumsum(rng.random(_PICKS) < 0.05)
        return np.clip(rng.standard_normal(_PICKS), -1.5, 1.5).astype(np.float32)[bands]

    def _yarns(self, uneven: Table, pitch: float) -> Yarns:
        spec = self.spec
        width = (
            _HALF.get(spec.structure, 0.22 if spec.construction == "knitted" else 0.5 * spec.cover) * pitch
        )
        half = np.float32(width) * np.clip(1 + np.float32(spec.thickness_noise) * uneven[0], 0.5, 1.4)
        shift = np.clip(np.float32(0.045 * pitch) * uneven[1], -0.15 * pitch, 0.15 * pitch)
        tone = 1 + np.float32(spec.tone_noise) * uneven[2]
        return Yarns(half, shift.astype(np.float32), tone)

    def _block(self, stream: int, block: int) -> Table:
        key = (stream, block)
        if key not in self._blocks:
            self._blocks[key] = self._warp_block(block) if stream == _WARP else self._weft_block(block)
            while len(self._blocks) > 12:
                self._blocks.popitem(last=False)
        return self._blocks[key]

    def _warp_knots(self, block: int) -> list[Table]:
        rng = self.generator(_WARP, block)
        return [rng.standard_normal((3, _ROWS // s, self.ends), dtype=np.float32) for s in _SPACINGS]

    def _warp_block(self, block: int) -> Table:
        """(3, rows, ends), joined to the next block without a step."""
        total = np.repeat(0.8 * self._end_by_end, _ROWS, axis=1)
        for s, knots, after in zip(
            _SPACINGS, self._warp_knots(block), self._warp_knots(block + 1), strict=True
        ):
            following = np.concatenate([knots[:, 1:], after[:, :1]], axis=1)
            part = (np.arange(s, dtype=np.float32) / s)[None, None, :, None]
            line = knots[:, :, None, :] + part * (following - knots)[:, :, None, :]
            total += 0.6 * line.reshape(3, _ROWS, self.ends)
        return total

    def _weft_block(self, block: int) -> Table:
        """(3, picks, columns)."""
        rng = self.generator(_WEFT, block)
        total = 0.8 * np.repeat(rng.standard_normal((3, _PICKS, 1), dtype=np.float32), self.width, axis=2)
        for s in _SPACINGS:
            knots = rng.standard_normal((3, _PICKS, -(-self.width // s) + 1), dtype=np.float32)
            part = np.arange(s, dtype=np.float32) / s
            line = knots[:, :, :-1, None] + part * np.diff(knots, axis=2)[:, :, :, None]
            total += 0.6 * line.reshape(3, _PICKS, -1)[:, :, : self.width]
        return total
