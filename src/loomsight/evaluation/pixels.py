"""Figures over pixels and pictures: average precision, best F1, AUROC, AUPRO, in bounded memory.

:class:`PixelScores` reads one score map after another and keeps only counts. Average precision within a
picture is exact. The pooled figures (``ap``, ``f1``, ``aupro``) come from a histogram whose bins are
2⁻¹⁴ of a score's distance to the nearer of 0 and 1, so scores that crowd at either end keep their order;
scores within one bin count as tied. AUPRO follows Bergmann et al., *The MVTec Anomaly Detection Dataset*,
IJCV 2021: the mean over true regions of the share found, against the share of good pixels above the
threshold, up to 30 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from loomsight.fabric.regions import label_parts
from loomsight.fabric.types import Mask, ScoreMap

FPR_LIMIT = 0.3
"""AUPRO is taken up to this share of good pixels above the threshold."""

_MANTISSA = 14
_SHIFT = 23 - _MANTISSA
# Scores below 2⁻⁴⁰ are tied with 0; above ½ the distance to 1 is never smaller than 2⁻²⁴, float32's step.
_LOW = int(np.float32(2.0**-40).view(np.uint32)) >> _SHIFT
_HALF = int(np.float32(0.5).view(np.uint32)) >> _SHIFT
_TOP = int(np.float32(2.0**-25).view(np.uint32)) >> _SHIFT
_BINS = (_HALF - _LOW) + (_HALF - _TOP) + 1


@dataclass(frozen=True, slots=True)
class PixelFigures:
    """What :class:`PixelScores` says; a figure is None where the pictures do not define it.

    Attributes:
        pictures: how many were added; defective: how many of them have a true mask pixel.
        ap_picture: average precision within each defective picture, then the mean: every picture counts
            the same. None without a defective picture.
        ap: average precision over all pixels together; large masks dominate it.
        f1: the best F1 of a pixel over all thresholds, and the threshold it is reached at.
        auroc: of pictures, defective against good, by the highest score of each map. None unless there
            are both.
        aupro: area under per-region overlap up to 30 % of good pixels, divided by 0.3.
    """

    pictures: int
    defective: int
    ap_picture: float | None
    ap: float | None
    f1: float | None
    f1_threshold: float | None
    auroc: float | None
    aupro: float | None


class PixelScores:
    """Collect score maps with their masks, picture by picture, then ask for :meth:`figures`.

    Memory is about 25 MB however many pictures are added.
    """

    def __init__(self) -> None:
        self._defect = np.zeros(_BINS, np.int64)
        self._good = np.zeros(_BINS, np.int64)
        self._overlap = np.zeros(_BINS, np.float64)
        self._regions = 0
        self._picture_ap: list[float] = []
        self._peaks: list[tuple[float, bool]] = []

    def add(self, score: ScoreMap, mask: Mask | None) -> None:
        """Count one picture.

        Args:
            score: float32 HW in [0, 1].
            mask: bool HW, or None for good cloth.

        Raises:
            ValueError: the shapes differ, or a score is not in [0, 1].
        """
        if mask is None:
            mask = np.zeros(score.shape, np.bool_)
        if score.shape != mask.shape or score.ndim != 2:
            raise ValueError(f"score and mask must be HW of one size, got {score.shape} and {mask.shape}")
        bins = _bins(score)
        # Defects are few pixels: count everything once, then take the defects out.
        everything = np.bincount(bins.ravel(), minlength=_BINS)
        is_defective = bool(mask.any())
        if is_defective:
            inside = bins[mask]
            defect = np.bincount(inside, minlength=_BINS)
            everything -= defect
            self._defect += defect
            count, labels = label_parts(mask)
            parts = labels[mask]
            self._regions += count
            np.add.at(self._overlap, inside, 1.0 / np.bincount(parts)[parts])
            self._picture_ap.append(average_precision(score, mask))
        self._good += everything
        self._peaks.append((float(score.max()), is_defective))

    def figures(self) -> PixelFigures:
        """The figures over all pictures added so far."""
        peaks = np.array([peak for peak, _ in self._peaks])
        defective = np.array([bad for _, bad in self._peaks], np.bool_)
        ap, f1, f1_threshold = self._pooled()
        return PixelFigures(
            pictures=len(self._peaks),
            defective=len(self._picture_ap),
            ap_picture=float(np.mean(self._picture_ap)) if self._picture_ap else None,
            ap=ap,
            f1=f1,
            f1_threshold=f1_threshold,
            auroc=auroc(peaks, defective) if 0 < defective.sum() < len(defective) else None,
            aupro=self._aupro(),
        )

    def _pooled(self) -> tuple[float | None, float | None, float | None]:
        if not self._regions:
            return None, None, None
        hit = np.cumsum(self._defect[::-1])
        false = np.cumsum(self._good[::-1])
        # Recall moves, and F1 can peak, only at thresholds that a defective pixel has.
        at = np.flatnonzero(self._defect[::-1])
        precision = hit[at] / (hit[at] + false[at])
        ap = float(np.sum(np.diff(hit[at], prepend=0) / hit[-1] * precision))
        f1 = 2 * hit[at] / (hit[at] + false[at] + hit[-1])
        best = int(np.argmax(f1))
        return ap, float(f1[best]), _bin_edge(_BINS - 1 - int(at[best]))

    def _aupro(self) -> float | None:
        if not self._regions or not self._good.any():
            return None
        used = np.flatnonzero((self._good + self._defect)[::-1])
        rate = np.r_[0.0, np.cumsum(self._good[::-1])[used] / self._good.sum()]
        found = np.r_[0.0, np.cumsum(self._overlap[::-1])[used] / self._regions]
        return _area_up_to(rate, found, FPR_LIMIT) / FPR_LIMIT


def average_precision(
    score: Float[NDArray[np.float32], "*shape"], truth: Bool[NDArray[np.bool_], "*shape"]
) -> float:
    """Average precision Σ (Rₙ − Rₙ₋₁)·Pₙ over distinct scores, exact; equal scores enter together.

    Raises:
        ValueError: nothing in ``truth`` is true, so that recall is undefined.
    """
    positive = np.sort(score[truth], axis=None)
    if not positive.size:
        raise ValueError("average precision needs at least one true pixel")
    negative = np.sort(score[~truth], axis=None)
    thresholds = np.unique(positive)[::-1]
    hit = positive.size - np.searchsorted(positive, thresholds, side="left")
    false = negative.size - np.searchsorted(negative, thresholds, side="left")
    return float(np.sum(np.diff(hit, prepend=0) / positive.size * (hit / (hit + false))))


def auroc(score: Float[NDArray[np.float64], " n"], truth: Bool[NDArray[np.bool_], " n"]) -> float:
    """The chance that a true item scores above a false one, ties counting half; exact.

    Raises:
        ValueError: all items are true, or all are false.
    """
    positive, negative = score[truth], np.sort(score[~truth])
    if not positive.size or not negative.size:
        raise ValueError("AUROC needs true and false items")
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float((below + not_above).sum() / (2 * positive.size * negative.size))


def _area_up_to(
    x: Float[NDArray[np.float64], " n"], y: Float[NDArray[np.float64], " n"], limit: float
) -> float:
    """The trapezoid area under a curve of rising ``x``, from its start to ``limit``."""
    inside = x <= limit
    # np.interp takes the last of several points with one x; there the curve has already risen.
    x, y = np.r_[x[inside], limit], np.r_[y[inside], np.interp(limit, x, y)]
    return float(np.trapezoid(y, x))


def _bins(score: Float[NDArray[np.float32], "h w"]) -> Int[NDArray[np.int32], "h w"]:
    """Bin numbers that rise with the score; the bits of a positive float32 rise with its value."""
    score = np.ascontiguousarray(score, np.float32)
    if not (score.min() >= 0.0 and score.max() <= 1.0):
        raise ValueError(f"scores must be in [0, 1], got {score.min()} to {score.max()}")
    upper = score >= 0.5
    near = np.where(upper, np.float32(1.0) - score, score) + np.float32(0.0)  # + 0 turns −0 into 0
    level = (near.view(np.uint32) >> np.uint32(_SHIFT)).astype(np.int32)
    low = np.maximum(level - _LOW, 0)
    high = _BINS - 1 - np.maximum(level - _TOP, 0)
    return np.where(upper, high, low)


def _bin_edge(number: int) -> float:
    """The lowest score of a bin."""
    if number < _HALF - _LOW:
        return 0.0 if number == 0 else float(np.uint32((number + _LOW) << _SHIFT).view(np.float32))
    if number == _HALF - _LOW:
        return 0.5
    # The bin's largest distance to 1, cut to a multiple of 2⁻²⁴, which is float32's step above ½.
    distance = float(np.uint32(((_BINS - number + _TOP) << _SHIFT) - 1).view(np.float32))
    return 1.0 - float(np.floor(distance * 2.0**24)) * 2.0**-24
