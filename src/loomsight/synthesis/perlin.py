"""Perlin-noise defects: foreign texture shows through a random blob (DRAEM, Zavrtanik et al., ICCV 2021)."""

from __future__ import annotations

import cv2
import numpy as np

from loomsight.fabric.types import Mask, Picture


def perlin_noise(height: int, width: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Gradient noise, float32 HW in about [-1, 1], with ``cells`` lattice cells down and across.

    Perlin, An image synthesizer (SIGGRAPH 1985), with the quintic fade of 2002.
    """
    rows, columns = cells
    angles = rng.uniform(0, 2 * np.pi, (rows + 1, columns + 1)).astype(np.float32)
    gradients = np.stack([np.cos(angles), np.sin(angles)], -1)
    y = (np.arange(height, dtype=np.float32) + 0.5) * rows / height
    x = (np.arange(width, dtype=np.float32) + 0.5) * columns / width
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None, :]

    def corner(dy: int, dx: int) -> np.ndarray:
        g = gradients[(y0 + dy)[:, None], (x0 + dx)[None, :]]
        return np.asarray(g[..., 0] * (fx - dx) + g[..., 1] * (fy - dy))

    u, v = (t * t * t * (t * (t * 6 - 15) + 10) for t in (fx, fy))
    top = corner(0, 0) + u * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + u * (corner(1, 1) - corner(1, 0))
    return np.asarray(np.sqrt(2) * (top + v * (bottom - top)), np.float32)


def perlin_defect(cloth: Picture, foreign: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """Let ``foreign`` texture show through a Perlin blob of good ``cloth``.

    Args:
        cloth, foreign: uint8 HWC RGB of one size.

    Returns:
        The picture and the bool HW mask of what shows through; the mask may be small, never empty.
    """
    height, width = cloth.shape[:2]
    cells = (2 ** int(rng.integers(1, 6)), 2 ** int(rng.integers(1, 6)))
    noise = perlin_noise(height, width, cells, rng)
    threshold = min(float(rng.uniform(0.35, 0.65)), float(noise.max()) * 0.95)
    count, labels, _, _ = cv2.connectedComponentsWithStats((noise > threshold).astype(np.uint8))
    keep = rng.permutation(np.arange(1, count))[: int(rng.integers(1, 4))]  # a defect or three, not a rash
    mask = np.isin(labels, keep)
    opacity = rng.uniform(0.3, 1.0)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)[..., None] * opacity
    out = cloth + alpha * (foreign.astype(np.float32) - cloth)
    return np.clip(out + 0.5, 0, 255).astype(np.uint8), mask
