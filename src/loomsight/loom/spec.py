"""What is woven: the construction of a cloth, its yarns, and the camera that looks at it."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from loomsight.config import Config
from loomsight.loom.weaves import STRUCTURES, Structure, is_knit

Colour = tuple[float, float, float]
"""RGB, 0 to 255."""


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
    def knitted(self) -> bool:
        """Whether it is made of loops; else of warp and weft."""
        return is_knit(self.structure)

    @classmethod
    def random(cls, rng: np.random.Generator) -> ClothSpec:
        """Some cloth: any structure, yarns 3 to 9 px wide, grey or coloured, matt to shiny."""
        structure = STRUCTURES[int(rng.integers(len(STRUCTURES)))]
        mm_per_px = float(rng.uniform(0.08, 0.2))
        low = 6.0 if is_knit(structure) else 3.0
        end = float(rng.uniform(low, low + 5))
        pick = end * float(rng.uniform(0.75, 1.3))
        grey = bool(rng.random() < 0.5)
        level = rng.uniform(60, 215)
        hue = rng.normal(0, 0.25, 3)
        warp = np.clip(level * (1 + hue), 25, 240)
        same = rng.random() < 0.6  # piece-dyed cloth has one colour, yarn-dyed cloth (denim) two
        weft = warp * rng.uniform(0.88, 1.12) if same else rng.uniform(40, 225) * (1 + rng.normal(0, 0.2, 3))
        return cls(
            structure=structure,
            ends_per_cm=10.0 / (end * mm_per_px),
            picks_per_cm=10.0 / (pick * mm_per_px),
            mm_per_px=mm_per_px,
            cover=float(rng.uniform(0.78, 1.0)),
            warp_colour=_colour(warp),
            weft_colour=_colour(np.clip(weft, 20, 245)),
            gap_colour=_colour(warp * rng.uniform(0.1, 0.4)),
            grey=grey,
            thickness_noise=float(rng.uniform(0.03, 0.16)),
            tone_noise=float(rng.uniform(0.02, 0.09)),
            relief=float(rng.uniform(0.2, 0.6)),
            sheen=float(rng.uniform(0.1, 0.9)),
            fibre=float(rng.uniform(0.02, 0.14)),
            lighting=float(rng.uniform(0.0, 0.2)),
            blur=float(rng.uniform(0.5, 1.1)),
            noise=float(rng.uniform(0.8, 4.0)),
        )


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = (round(float(value), 1) for value in rgb)
    return red, green, blue
