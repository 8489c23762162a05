"""What is woven: the construction of a cloth, its yarns, and the camera that looks at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, get_args

import numpy as np
from pydantic import Field, field_validator, model_validator

from loomsight.config import Config
from loomsight.loom.shapes import between
from loomsight.loom.weaves import STRUCTURES, Construction, Structure, construction

Print = Literal["none", "dots", "stripes", "checks", "leaves"]
PRINTS: tuple[Print, ...] = get_args(Print)
Colour = tuple[float, float, float]
"""RGB, 0 to 255."""
SELVEDGE_MM = 8.0
"""From the border of the picture to a selvedge that is in it; at most a quarter of the picture."""


class ClothSpec(Config):
    """One quality of cloth under one camera. In a knit the ends are its wales and the picks its courses."""

    structure: Structure = "plain"
    ends_per_cm: float = Field(default=20.0, gt=0, le=200)
    picks_per_cm: float = Field(default=20.0, gt=0, le=200)
    mm_per_px: float = Field(default=0.1, gt=0, le=2)
    cover: float = Field(default=0.9, ge=0.4, le=1.0)
    """Width of a yarn, as a share of the room it has."""
    warp_colour: Colour = (205.0, 198.0, 182.0)
    weft_colour: Colour = (190.0, 184.0, 170.0)
    warp_order: tuple[int, ...] = ()
    """Ends of the warp's and of the weft's colour in turn: (4, 4) in a 2/2 twill, and so the picks, makes
    houndstooth. Empty: all of the warp's."""
    weft_order: tuple[int, ...] = ()
    """Picks of the weft's and of the warp's colour in turn; in a knit these are its stripes."""
    gap_colour: Colour = (40.0, 38.0, 36.0)
    """What shows between the yarns."""
    grey: bool = False
    thickness_noise: float = Field(default=0.10, ge=0, le=0.3)
    """Standard deviation of a yarn's thickness along it, 1/f, as a share of its width."""
    tone_noise: float = Field(default=0.05, ge=0, le=0.3)
    relief: float = Field(default=0.45, ge=0, le=0.9)
    """How much darker a yarn is where it dives under another."""
    sheen: float = Field(default=0.5, ge=0, le=1)
    """How much a yarn shines along its middle: 0 wool, 1 filament."""
    fibre: float = Field(default=0.08, ge=0, le=0.4)
    """Contrast of the fibres in a yarn."""
    twist: float = Field(default=0.0, ge=0, le=30)
    """Turns per cm: slanted lines on yarns that are wide enough to show them."""
    hairiness: float = Field(default=0.0, ge=0, le=1)
    """Stray fibres over the cloth; a raised cloth has much."""
    specks: float = Field(default=0.0, ge=0, le=20)
    """Fibre knots and bits of seed coat that are too small to count, per cm²: good cloth."""
    ends_per_dent: int = Field(default=0, ge=0, le=8)
    """Ends that share a dent of the reed; 0: no trace of the reed."""
    reed_marks: float = Field(default=0.05, ge=0, le=0.2)
    """How much the ends of a dent draw together, as a share of their distance."""
    barre: float = Field(default=0.0, ge=0, le=0.05)
    """Differences in tone from cheese to cheese of weft, within tolerance."""
    bow: float = Field(default=0.0, ge=-0.05, le=0.05)
    """Sag of the picks, as a share of the picture's width (ASTM D3882)."""
    skew: float = Field(default=0.0, ge=-0.1, le=0.1)
    """Slant of the picks, as a share of the picture's width."""
    tension_waves_mm: float = Field(default=0.0, ge=0, le=3)
    """How far uneven tension moves the picks."""
    print: Print = "none"
    """A transparent ink printed over the cloth, in repeats of `print_mm`."""
    print_colour: Colour = (150.0, 70.0, 60.0)
    print_mm: float = Field(default=12.0, ge=2, le=100)
    selvedges: Literal["none", "left", "right", "both"] = "none"
    """Which edges of the cloth are in the picture, each 8 mm from its border."""
    camera: Literal["line", "area"] = "line"
    """A line-scan camera has one light across the web, an area camera its own for each picture."""
    gradient: float = Field(default=0.0, ge=0, le=0.5)
    """Difference of the light from one side of the picture to the other."""
    vignetting: float = Field(default=0.0, ge=0, le=0.6)
    """Loss of light in the corners of an area camera's picture."""
    jpeg: int = Field(default=0, ge=0, le=100)
    """Quality of an area camera's JPEG; 0: not packed."""
    jitter_px: float = Field(default=0.0, ge=0, le=2)
    """How far the encoder of a line-scan camera misplaces its lines."""
    streaks: float = Field(default=0.0, ge=0, le=0.3)
    """Lines along the roll that a line-scan camera makes, by uneven pixels or dust on its glass: how much
    lighter or darker the strongest is. They are no defects."""
    lighting: float = Field(default=0.08, ge=0, le=0.5)
    """Fall of the light from the brightest to the darkest place across the picture."""
    blur: float = Field(default=0.7, ge=0, le=3)
    """Pixels, sigma of the lens."""
    noise: float = Field(default=2.0, ge=0, le=20)
    """Grey levels, standard deviation of the camera's noise."""

    @field_validator("warp_order", "weft_order")
    @classmethod
    def _come_in_turn(cls, order: tuple[int, ...]) -> tuple[int, ...]:
        if len(order) % 2 or any(count < 1 for count in order):
            raise ValueError(f"an order is an even number of counts from 1 on, here {order}")
        return order

    @model_validator(mode="after")
    def _yarns_can_be_seen(self) -> Self:
        if min(self.px_per_end, self.px_per_pick) < 2.0:
            raise ValueError(
                f"a yarn must be at least 2 px wide, here {min(self.px_per_end, self.px_per_pick):.2f}: "
                "fewer yarns per cm or fewer mm per px"
            )
        return self

    @property
    def px_per_end(self) -> float:
        """Pixels from one warp end to the next."""
        return 10.0 / (self.ends_per_cm * self.mm_per_px)

    @property
    def px_per_pick(self) -> float:
        """Pixels from one pick to the next."""
        return 10.0 / (self.picks_per_cm * self.mm_per_px)

    @property
    def construction(self) -> Construction:
        """Woven, knitted or nonwoven."""
        return construction(self.structure)

    def cloth_columns(self, width: int) -> tuple[float, float]:
        """Between which pixels of a picture of this width there is cloth: selvedges, or borders."""
        edge = min(SELVEDGE_MM / self.mm_per_px, 0.25 * width)
        left = edge if self.selvedges in ("left", "both") else 0.0
        return left, width - (edge if self.selvedges in ("right", "both") else 0.0)

    @classmethod
    def random(cls, rng: np.random.Generator, among: Sequence[Structure] = STRUCTURES) -> ClothSpec:
        """Some cloth, for training by domain randomisation: any of the structures, yarn, colour, camera."""
        structure = among[int(rng.integers(len(among)))]
        made = construction(structure)
        mm_per_px = float(rng.uniform(0.08, 0.2))
        low = 6.0 if made == "knitted" or structure == "gauze" else 2.6
        end = float(rng.uniform(low, low + 5.4))
        pick = max(0.8 * low, end * between(rng, 0.5, 1.5))
        grey = bool(rng.random() < 0.5)
        level = rng.uniform(60, 215)
        hue = rng.normal(0, 0.25, 3)
        warp = np.clip(level * (1 + hue), 25, 240)
        # Piece-dyed cloth has one colour, yarn-dyed cloth (denim) two; but light from one side shines on the
        # yarns of one way alone, so that even piece-dyed plain cloth may look like a checkerboard.
        same = rng.random() < 0.6
        weft = (
            np.clip(warp * between(rng, 0.55, 1.8), 20, 245)
            if same
            else rng.uniform(40, 225) * (1 + rng.normal(0, 0.2, 3))
        )
        orders: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        if made != "nonwoven" and not same and rng.random() < 0.4:
            orders = _orders(rng)

        def at_times(share: float, low: float, high: float) -> float:
            return float(rng.uniform(low, high)) if rng.random() < share else 0.0

        area = bool(rng.random() < 0.3)
        return cls(
            structure=structure,
            ends_per_cm=10.0 / (end * mm_per_px),
            picks_per_cm=10.0 / (pick * mm_per_px),
            mm_per_px=mm_per_px,
            cover=float(rng.uniform(0.65, 1.0)),
            warp_colour=_colour(warp),
            weft_colour=_colour(np.clip(weft, 20, 245)),
            warp_order=orders[0],
            weft_order=orders[1],
            gap_colour=_colour(warp * rng.uniform(0.1, 0.4)),
            grey=grey,
            thickness_noise=between(rng, 0.01, 0.15),
            tone_noise=between(rng, 0.006, 0.08),
            relief=float(rng.uniform(0.2, 0.6)),
            sheen=float(rng.uniform(0.1, 0.9)),
            fibre=between(rng, 0.01, 0.13),
            twist=at_times(0.4, 4, 12),
            hairiness=at_times(0.4, 0.05, 0.7),
            specks=between(rng, 0.3, 8.0) if rng.random() < 0.5 else 0.0,
            ends_per_dent=int(rng.integers(2, 5)) if rng.random() < 0.3 else 0,
            reed_marks=float(rng.uniform(0.02, 0.08)),
            barre=at_times(0.3, 0.005, 0.025),
            bow=at_times(0.3, -0.02, 0.02),
            skew=at_times(0.3, -0.03, 0.03),
            tension_waves_mm=at_times(0.3, 0.1, 0.8),
            print=PRINTS[int(rng.integers(1, len(PRINTS)))] if rng.random() < 0.12 else "none",
            print_colour=_colour(np.clip(rng.uniform(60, 235) * (1 + rng.normal(0, 0.3, 3)), 20, 245)),
            print_mm=float(rng.uniform(4, 20)),
            selvedges=("left", "right")[int(rng.integers(2))] if rng.random() < 0.12 else "none",
            camera="area" if area else "line",
            gradient=at_times(0.4, 0.02, 0.25),
            vignetting=at_times(0.6, 0.05, 0.35) if area else 0.0,
            jpeg=int(rng.integers(70, 98)) if area and rng.random() < 0.6 else 0,
            jitter_px=0.0 if area else at_times(0.3, 0.1, 0.7),
            streaks=0.0 if area or rng.random() < 0.5 else between(rng, 0.02, 0.25),
            lighting=float(rng.uniform(0.0, 0.2)),
            blur=float(rng.uniform(0.5, 1.4)),
            noise=between(rng, 0.5, 4.0),
        )


def _orders(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A houndstooth or small check, stripes one way, or a larger check."""
    kind = rng.integers(4)
    wide, narrow = int(rng.integers(6, 25)), int(rng.integers(1, 6))
    if kind == 0:
        return (4, 4), (4, 4)
    if kind == 1:
        return (wide, narrow), ()
    if kind == 2:
        return (), (narrow, wide)
    return (wide, narrow), (narrow, wide)


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = (round(float(value), 1) for value in rgb)
    return red, green, blue
