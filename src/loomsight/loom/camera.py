"""From cloth to picture: the cloth lies a little askew, the camera scans it, blurs it and adds noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Picture
from loomsight.loom.spec import ClothSpec
from loomsight.loom.surface import SurfaceMaker
from loomsight.loom.yarns import ROWS_OF_LIGHT, Creel, Table

_STEPS = 32  # a displacement is a whole number of these parts of a pixel, so it is the same in every frame


class Camera:
    """One camera over one cloth. `seen` is float32 (rows, width, channels) of flat cloth, before all this."""

    def __init__(self, spec: ClothSpec, creel: Creel, surface: SurfaceMaker, width: int) -> None:
        self.spec, self.width, self._surface = spec, width, surface
        rng = creel.generator(ROWS_OF_LIGHT, -3)
        self._jitter = rng.uniform(0, 2 * np.pi, 5), 2 * np.pi / rng.uniform(5, 70, 5)
        across = 2 * np.pi * rng.uniform(-1, 1, 4) / 60  # a wave in 60 mm at least
        down = 2 * np.pi * rng.uniform(0.3, 1, 4) / 40
        self._waves = rng.uniform(0, 2 * np.pi, 4), across * spec.mm_per_px, down * spec.mm_per_px
        x = np.linspace(-1, 1, width)
        bend = spec.bow * width * (1 - np.square(x)) + 0.5 * spec.skew * width * x
        self._bend = bend - bend.mean()
        waves = spec.tension_waves_mm / spec.mm_per_px
        moved = np.abs(self._bend).max() + waves + spec.jitter_px
        self._moves = bool(moved > 0)
        self.reach = self.blur_reach + (int(np.ceil(moved)) + 2 if self._moves else 0)
        """Rows above and below a picture that it takes something from."""

    @property
    def blur_reach(self) -> int:
        """Pixels that the lens spreads light over."""
        return int(np.ceil(3 * self.spec.blur))

    def blurred(self, seen: Table) -> Table:
        """Through the lens."""
        if self.spec.blur <= 0:
            return seen
        size = 2 * self.blur_reach + 1
        soft = np.asarray(cv2.GaussianBlur(seen, (size, size), self.spec.blur), np.float32)
        return soft.reshape(seen.shape)

    def picture(self, seen: Table, first: int) -> Picture:
        """What the camera delivers: `seen` has `reach` rows more above and below than the picture."""
        rows = seen.shape[0] - 2 * self.reach
        if self._moves:
            seen = self._laid_out(seen, first - self.reach, cv2.INTER_LINEAR)
        margin = self.blur_reach
        cut = slice(self.reach - margin, self.reach + rows + margin)
        seen = self.blurred(np.ascontiguousarray(seen[cut]))[margin : margin + rows]
        if self.spec.camera == "area" and (self.spec.vignetting or self.spec.gradient):
            seen = seen * self._corners(rows)[:, :, None]
        channels = seen.shape[2]
        noise = np.stack([self._surface.noise(first, rows, 1 + c) for c in range(channels)], axis=2)
        noise *= np.float32(self.spec.noise)
        seen = np.ascontiguousarray(seen)
        picture = np.asarray(cv2.add(seen, noise, dtype=cv2.CV_8U), np.uint8).reshape(
            rows, self.width, channels
        )
        if self.spec.camera == "area" and self.spec.jpeg:
            # [..., ::-1]: OpenCV packs BGR
            _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.spec.jpeg])
            unpacked = np.asarray(cv2.imdecode(packed, cv2.IMREAD_UNCHANGED), np.uint8)
            return np.ascontiguousarray(unpacked.reshape(picture.shape)[..., ::-1])
        return picture.reshape(rows, self.width, channels)

    def mask(self, flat: Mask, first: int) -> Mask:
        """Where a mask of the flat cloth, with `reach` rows more above and below, lies in the picture."""
        cut = slice(self.reach, flat.shape[0] - self.reach)
        if not self._moves or not flat.any():
            return flat[cut]
        moved = self._laid_out(flat.astype(np.float32), first - self.reach, cv2.INTER_LINEAR)
        return np.asarray(moved[cut] > 0.25)

    def _laid_out(self, flat: Table, first: int, how: int) -> Table:
        """Each pixel of the picture shows the cloth that lies some rows off."""
        rows = flat.shape[0]
        y = np.arange(first, first + rows, dtype=np.float64)[:, None]
        x = np.arange(self.width, dtype=np.float64)[None]
        moved: NDArray[np.float64] = np.broadcast_to(self._bend, (rows, self.width))
        if self.spec.tension_waves_mm:
            height = self.spec.tension_waves_mm / self.spec.mm_per_px / 4
            for phase, across, down in zip(*self._waves, strict=True):
                moved = moved + height * np.cos(across * x + down * y + phase)
        if self.spec.jitter_px and self.spec.camera == "line":
            phases, speeds = self._jitter
            moved = moved + self.spec.jitter_px / 5 * np.cos(y * speeds + phases).sum(axis=1)[:, None]
        steps = np.rint(_STEPS * moved) / _STEPS
        down_map = (np.arange(rows)[:, None] + steps).astype(np.float32)
        across_map = np.ascontiguousarray(np.broadcast_to(x, down_map.shape).astype(np.float32))
        laid = cv2.remap(flat, across_map, down_map, how, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(laid, np.float32).reshape(flat.shape)

    def _corners(self, rows: int) -> Table:
        """Loss of light from an area camera's middle to its corners, and from top to bottom."""
        y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, self.width, dtype=np.float32)
        dark = 1 - np.float32(0.5 * self.spec.vignetting) * (x * x + y * y)
        return np.asarray(dark * (1 + np.float32(0.25 * self.spec.gradient) * y), np.float32)
