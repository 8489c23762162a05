"""Augmentation of training tiles on uint8 arrays: what a camera and a lamp change, never what a defect is."""

from __future__ import annotations

from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.fabric.types import Picture

Array: TypeAlias = NDArray[Any]
_BURNT = 250  # grey levels: what is as bright in a picture is a lamp, or burnt out already
_MIRROR = cv2.BORDER_REFLECT_101  # for the half pixel that rounding may leave at the border


def flip_and_turn(arrays: list[Array], rng: np.random.Generator, *, turn: float = 0.0) -> list[Array]:
    """Mirror, and with probability ``turn`` swap warp and weft, all arrays (HW or HWC) alike."""
    vertical, horizontal, swap = rng.random(3) < (0.5, 0.5, turn)
    if vertical:
        arrays = [a[::-1] for a in arrays]
    if horizontal:
        arrays = [a[:, ::-1] for a in arrays]
    if swap:
        arrays = [a.swapaxes(0, 1) for a in arrays]
    return [np.ascontiguousarray(a) for a in arrays]


def stretch(
    arrays: list[Array], size: int, amount: float, rng: np.random.Generator, *, often: float = 0.7
) -> list[Array]:
    """Cut a square out of the middle of windows, at times drawn or slackened along warp and weft.

    The next roll has a few picks more or fewer to the centimetre, and lies under another tension: a network
    that saw one density alone takes the others for defects.

    Args:
        arrays: a picture (uint8, HWC), and maps of values 0 and 1 (float32, HW) or of numbers that must not
            be mixed (int16, HW); squares of one size.
        size: pixels a side of what comes back, at most that of the arrays.
        amount: 0.25 draws by up to a quarter and slackens by up to a fifth, as far as the window suffices.
        often: how often it is done at all.
    """
    given = arrays[0].shape[0]
    start = (given - size) // 2
    if amount <= 0 or rng.random() >= often:
        cut = slice(start, start + size)
        return [np.ascontiguousarray(a[cut, cut]) for a in arrays]
    least = max(1 / (1 + amount), size / given)
    across, down = np.exp(rng.uniform(np.log(least), np.log(1 + amount), 2))
    middle = 0.5 * (given - 1), 0.5 * (size - 1)
    to_picture = np.array(
        [[across, 0, middle[1] - across * middle[0]], [0, down, middle[1] - down * middle[0]]]
    )
    image, *maps = arrays
    drawn = [cv2.warpAffine(image, to_picture, (size, size), flags=cv2.INTER_CUBIC, borderMode=_MIRROR)]
    for of in maps:
        how = cv2.INTER_NEAREST if of.dtype == np.int16 else cv2.INTER_LINEAR
        seen = cv2.warpAffine(of, to_picture, (size, size), flags=how, borderMode=_MIRROR)
        drawn.append(seen if of.dtype == np.int16 else (seen > 0.5).astype(np.float32))
    return drawn


def photometric(image: Picture, rng: np.random.Generator, strength: float = 1.0) -> Picture:
    """Gain, gamma, offset, a lighting gradient, slight blur and noise, as between two lamps or cameras.

    Cloth is not burnt out: what cannot be seen is no defect, and a line would be set darker.

    Args:
        image: uint8 HWC.
        strength: 1 is what a line sees in a month; the ranges scale with it.
    """
    height, width = image.shape[:2]
    table = np.arange(256, dtype=np.float32) / 255
    table = table ** np.exp(rng.normal(0, 0.12 * strength)) * np.exp(rng.normal(0, 0.12 * strength))
    table = (table + rng.normal(0, 0.03 * strength)) * 255
    table *= min(1.0, 255 / max(float(table[_brightest(image)]), 1.0))
    out = cv2.LUT(image, np.clip(table + 0.5, 0, 255).astype(np.uint8))
    if rng.random() < 0.3 * strength:
        slope = rng.uniform(-0.12, 0.12, 2) * strength
        ramp = 1 + slope[0] * np.linspace(-1, 1, height)[:, None] + slope[1] * np.linspace(-1, 1, width)[None]
        out = np.clip(out * ramp[..., None], 0, 255).astype(np.uint8)
    if rng.random() < 0.3 * strength:
        out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.3 * strength:
        noise = rng.normal(0, rng.uniform(1, 4) * strength, (height, width, 1)).astype(np.float32)
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    return np.asarray(out, np.uint8)


def _brightest(image: Picture) -> int:
    """The level that hardly any pixel of the cloth exceeds: a line that burns it out is set darker."""
    levels = np.bincount(image[::2, ::2].ravel(), minlength=256)[:_BURNT]
    return int(np.searchsorted(np.cumsum(levels), 0.99 * levels.sum()))


def augmix(image: Picture, rng: np.random.Generator, *, width: int = 3, severity: float = 0.3) -> Picture:
    """AugMix (Hendrycks et al., ICLR 2020): a Dirichlet mixture of chains of label-preserving operations.

    Only operations that leave every pixel in its place are used, so a mask stays true.
    """
    weights = rng.dirichlet(np.ones(width))
    keep = rng.beta(1.0, 1.0)
    mixed = np.zeros(image.shape, np.float32)
    for weight in weights:
        chain = image
        for _ in range(int(rng.integers(1, 4))):
            chain = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))](chain, severity * rng.random(), rng)
        mixed += weight * chain
    return np.clip(keep * image + (1 - keep) * mixed + 0.5, 0, 255).astype(np.uint8)


def _autocontrast(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    low, high = np.percentile(image[::4, ::4], (100 * amount * 0.2, 100 - 100 * amount * 0.2))
    changed: Picture = np.clip((image - low) * (255 / max(high - low, 16)), 0, 255).astype(np.uint8)
    return changed


def _equalize(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    light = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    light[..., 0] = cv2.equalizeHist(light[..., 0])
    return np.asarray(cv2.cvtColor(light, cv2.COLOR_YCrCb2RGB), np.uint8)


def _posterize(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    step = 1 + int(amount * 48)
    return (image // step * step).astype(np.uint8)


def _solarize(image: Picture, amount: float, _: np.random.Generator) -> Picture:
    return np.where(image < 255 - 128 * amount, image, 255 - image).astype(np.uint8)


def _brightness(image: Picture, amount: float, rng: np.random.Generator) -> Picture:
    changed: Picture = np.clip(image * (1 + rng.choice((-1, 1)) * amount), 0, 255).astype(np.uint8)
    return changed


def _contrast(image: Picture, amount: float, rng: np.random.Generator) -> Picture:
    mean = image.mean()
    changed: Picture = np.clip((image - mean) * (1 + rng.choice((-1, 1)) * amount) + mean, 0, 255).astype(
        np.uint8
    )
    return changed


def _sharpness(image: Picture, amount: float, rng: np.random.Generator) -> Picture:
    soft = cv2.GaussianBlur(image, (0, 0), 1.2).astype(np.float32)
    sharper = soft + (image - soft) * (1 + rng.choice((-1, 1)) * 2 * amount)
    return np.asarray(np.clip(sharper, 0, 255), np.uint8)


_OPERATIONS = (_autocontrast, _equalize, _posterize, _solarize, _brightness, _contrast, _sharpness)
