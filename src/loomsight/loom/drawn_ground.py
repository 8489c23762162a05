"""The good cloth that a defect is drawn into, and what a defect does to it.

Its weave is smeared, shifted or pushed aside, and its tone changes, always in units of the cloth's own
contrast and yarn; a yarn's path is a :class:`Line` in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from loomsight.loom.shapes import Plane, between, wander


@dataclass(frozen=True, slots=True)
class Ground:
    """The good cloth a defect is drawn into, turned so that the defect's yarn runs along x."""

    pixels: Plane  # H W C, C is 1 or 3
    contrast: float  # grey levels: standard deviation of the weave, lighting left out
    softness: float  # pixels: sigma of the blur the camera left
    along: float  # pixels: repeat of the pattern along the yarn
    across: float  # pixels: repeat across the yarn
    strength: float  # peak change of tone, in units of contrast
    size: float  # pixels: the length of a line, the diameter of a spot
    at: tuple[float, float]  # y, x: the middle of the defect

    @property
    def yarn(self) -> float:
        """Pixels: about how wide a yarn is; the repeat of a twill or a pattern is several yarns."""
        return float(np.clip(self.across, 2.5, 8.0))

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def tint(self, rng: np.random.Generator, colour: float = 0.12) -> Plane:
        """How a change of tone shows in each channel: mostly as the cloth is lit, a little off its hue."""
        channels = self.pixels.shape[2]
        if channels == 1:
            return np.ones(1, np.float32)
        mean = self.pixels[::4, ::4].mean(axis=(0, 1)) + 8.0
        share = rng.uniform(0.3, 1.0)
        tint = share * mean / mean.mean() + (1 - share) + rng.normal(0.0, colour, channels)
        return np.asarray(tint, np.float32)

    def tone(self, rng: np.random.Generator, dark: float = 0.7) -> float:
        """A signed change of tone in grey levels; `dark` is how often it is darker."""
        tone = self.strength * self.contrast
        level = float(self.pixels[::4, ::4].mean())
        # black cloth cannot get much darker: its defects are the light ones
        if rng.random() < dark and level > 0.7 * tone + 15:
            return -tone
        return tone if level + 0.7 * tone < 245 else -tone

    def grain(self, rng: np.random.Generator) -> Plane:
        """The cloth's own fine grain, taken from another place of it, so that no fill is noise-free."""
        height, width = self.shape
        fine = self.pixels - cv2.blur(self.pixels, (3, 3)).reshape(self.pixels.shape)
        return np.roll(fine, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))

    def smeared(self, rng: np.random.Generator) -> Plane:
        """The cloth with its weave lost: smeared along the yarn or all round, some grain put back."""
        along = 2 * round(min(self.along, 12.0) * rng.uniform(0.4, 1.2)) + 1
        across = 2 * round(self.yarn * rng.uniform(0.0, 0.4)) + 1
        smear = cv2.blur(self.pixels, (along, across)).reshape(self.pixels.shape)
        return smear + np.float32(rng.uniform(0.3, 1.0)) * self.grain(rng)

    def shifted(self, rng: np.random.Generator) -> Plane:
        """The cloth half a repeat out of step: what a neighbour shows where a yarn gave way."""
        dx = round(self.along * rng.uniform(0.35, 0.65))
        dy = round(self.across * rng.uniform(-0.6, 0.6))
        return np.roll(self.pixels, (dy, dx), (0, 1))

    def pushed(self, dx: Plane | None, dy: Plane | None) -> Plane:
        """The cloth displaced by a field in pixels."""
        x = np.broadcast_to(np.arange(self.shape[1], dtype=np.float32)[None, :], self.shape)
        y = np.broadcast_to(np.arange(self.shape[0], dtype=np.float32)[:, None], self.shape)
        x = x if dx is None else x + dx
        y = y if dy is None else y + dy
        moved = cv2.remap(self.pixels, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REFLECT_101)  # fmt: skip
        return moved.reshape(self.pixels.shape)

    def lay(self, cover: Plane, under: Plane, tone: Plane | float, tint: Plane) -> Plane:
        """The cloth with `under` plus a tone where the defect covers it (`cover`, in [0, 1])."""
        share = cover[:, :, None]
        tones = np.asarray(tone, np.float32)
        change = under - self.pixels + (tones[:, :, None] if tones.ndim == 2 else tones) * tint
        return self.pixels + share * change


@dataclass(frozen=True, slots=True)
class Line:
    """A yarn's path: signed distance across it (HW, pixels), half width (W) and presence (W in [0, 1])."""

    across: Plane
    half: Plane
    present: Plane

    def cover(self, softness: float, wider: float = 1.0, offset: float = 0.0) -> Plane:
        """HW in [0, 1]: how much of each pixel the yarn covers, as soft as the picture is."""
        edge = max(0.7, softness)
        inside = (self.half * wider)[None, :] - np.abs(self.across - np.float32(offset))
        cover: Plane = np.clip(0.5 + inside / (2 * edge), 0.0, 1.0) * self.present[None, :]
        return cover


def yarn_line(ground: Ground, rng: np.random.Generator, width: float, *, stray: float = 1.0) -> Line:
    """A nearly straight yarn along x through the defect's place, as long as the defect, its ends ragged.

    Args:
        width: pixels, of the yarn in the mean.
        stray: how much it wanders off the straight; 1 is up to a pixel or two.
    """
    height, length = ground.shape
    x = np.arange(length, dtype=np.float32)
    y0, middle = ground.at
    slope = rng.normal(0.0, 0.05) if rng.random() < 0.6 else rng.normal(0.0, 0.01)
    path = y0 + slope * (x - middle) + stray * rng.uniform(0.0, 1.5) * wander(rng, length, 3)
    across = np.arange(height, dtype=np.float32)[:, None] - path.astype(np.float32)[None, :]
    half = 0.5 * width * np.clip(1.0 + 0.3 * wander(rng, length, 5), 0.4, 1.8)
    ramp = between(rng, 3.0, max(4.0, 0.3 * ground.size))
    inside = 0.5 * ground.size - np.abs(x - np.float32(middle)) + 0.8 * ramp * wander(rng, length, 5)
    present = np.clip(inside / np.float32(ramp), 0.0, 1.0)
    half = half * (0.45 + 0.55 * present)  # a yarn runs out, it does not stop
    return Line(across, half.astype(np.float32), present.astype(np.float32))
