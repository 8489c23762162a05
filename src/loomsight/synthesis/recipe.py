"""Recipes: how the training tiles of a new fabric are made, and of what.

A recipe names one arm or several (``"paste+drawn"``); each synthetic tile comes from one of them, taken at
random, three times as often from one with a 3 before its name (``"3drawn+paste"``). All arms share everything
else: the same known pictures, the same share of synthetic tiles, the same augmentation, so that a comparison
of arms compares arms.

    ========= ===========================================================================
    none      nothing of the new fabric: known pictures only
    augmix    known pictures only, under AugMix
    paste     real defects of known fabrics set into the new cloth with matched statistics
    poisson   the same, blended by mixed gradients
    perlin    foreign texture through Perlin blobs
    drawn     the loom's defects drawn into the new cloth
    stage1    defects that the texture-conditioned GAN made, set hard into the new cloth
    stage1+2  the same, repaired into it by the fusion network
    refined   the loom's defects, repaired into it by the fusion network
    diffusion defects that diffusion painted into the new cloth
    ========= ===========================================================================

The last four are made beforehand and taken from a :class:`~loomsight.synthesis.samples.Bank`.

Tile k of a training is a function of the seed and k alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, field_validator

from loomsight.config import Config
from loomsight.fabric.images import to_grey, to_rgb
from loomsight.fabric.instances import GAP, InstanceMap, flat, instances_of
from loomsight.fabric.regions import label_parts
from loomsight.fabric.types import UNKNOWN, LabelledPicture, Mask, Picture, TrainingTile
from loomsight.fabric.woven import SCALES, beside, cloth_within, texture
from loomsight.loom import DRAWN_KINDS, draw_defect
from loomsight.synthesis.augment import Array, augmix, flip_and_turn, photometric, stretch
from loomsight.synthesis.paste import DefectPart, cut_parts, paste, poisson
from loomsight.synthesis.perlin import perlin_defect
from loomsight.synthesis.samples import Sample

SOURCE_ONLY = ("none", "augmix")
GENERATED = ("stage1", "stage1+2", "refined", "diffusion")
"""The arms that take their samples from a bank."""
_STRIDE = 20  # pixels: windows of good cloth lie on a grid of twice this, and are moved by up to it
_TRIES = 20  # windows of good pictures that are looked at for one with cloth in it
_STRONGEST = 5  # places of a megapixel of good cloth that differ most from the cloth around them
_EDGE = np.ones((51, 51), np.uint8)  # pixels around what is beside the cloth: its edge is no speck
_APART = np.ones((31, 31), np.uint8)  # pixels between two strongest places, twice
_WITH_DEFECT = 0.7  # of the tiles of known pictures
_MOST_OFF = 0.5  # of good pictures lies beside the cloth; of more it is not believed


class Recipe(Config):
    """What a training batch is made of.

    What is neither made nor good is known cloth, seven tiles of ten on a known defect. Where no known picture
    has one, a made one stands for it.
    """

    arms: tuple[str, ...] = ("drawn",)  # what makes the synthetic tiles; named twice, twice as many
    synthetic: float | None = Field(None, ge=0, le=1)  # share of made tiles; none: ½, beside a detector ¼
    good: float = Field(0.25, ge=0, le=1)  # share of tiles of the new fabric's good cloth as it is
    tile: PositiveInt = 160  # pixels a side
    batch: PositiveInt = 8  # tiles a step
    stretch: float = Field(0.25, ge=0, le=1)  # how far tiles are drawn along warp and weft, at most
    most: PositiveInt = 2  # defects made in one tile
    another: float = Field(1 / 3, ge=0, le=1)  # chance of a further one, until there are so many

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if not arms or not set(arms) <= set(ARM_NAMES):
            raise ValueError(f"the arms are {', '.join(ARM_NAMES)}; got {'+'.join(dict.fromkeys(arms))}")
        if len(set(arms)) > 1 and set(arms) & set(SOURCE_ONLY):
            raise ValueError("none and augmix take nothing of the new fabric and stand alone")
        return arms

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        counts = Counter(self.arms)
        return "+".join(arm if times == 1 else f"{times}{arm}" for arm, times in counts.items())

    def beside_detector(self) -> Recipe:
        """The same with a quarter of the tiles made, unless their share was given.

        For a segmenter and a detector that learn from real known defects together: made ones, of which a
        detector's tiles are full, would outnumber these by ten.
        """
        return self if self.synthetic is not None else self.model_copy(update={"synthetic": 0.25})

    @property
    def made(self) -> float:
        """The share of tiles with a made defect."""
        return 0.5 if self.synthetic is None else self.synthetic

    @property
    def source_only(self) -> bool:
        """Whether nothing of the new fabric is used."""
        return self.arms[0] in SOURCE_ONLY


@dataclass(frozen=True)
class Material:
    """The cloth a recipe draws from; every picture RGB.

    Attributes:
        good: good pictures of the new fabric.
        known: labelled pictures of other fabrics, good ones with an empty mask among them. Inside the
            boxes of a picture without a mask no pixel is known, only that a defect is there.
        made: for each generated arm of the recipe, its samples in windows of the new fabric's good cloth.
        defective, flawless: of each collection, the known pictures with a defect and those with good cloth;
            with boxes alone, a picture is in both.
        parts: of each collection, the defects that can be cut out.
    """

    good: Sequence[Picture]
    known: Sequence[LabelledPicture]
    made: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    parts: Mapping[str, list[DefectPart]] = field(init=False)
    defective: Mapping[str, list[LabelledPicture]] = field(init=False)
    flawless: Mapping[str, list[LabelledPicture]] = field(init=False)
    _maps: dict[int, tuple[InstanceMap, tuple[str, ...]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        parts: dict[str, list[DefectPart]] = {}
        defective: dict[str, list[LabelledPicture]] = {}
        flawless: dict[str, list[LabelledPicture]] = {}
        for picture in self.known:
            # 24 fabrics of one folder weigh as much as one roll
            collection = picture.fabric.partition("/")[0]
            marked = picture.mask if picture.mask is not None else self.instances(picture)[0]
            labelled = bool(marked.any())
            if labelled:
                defective.setdefault(collection, []).append(picture)
            if picture.mask is None or not labelled:
                flawless.setdefault(collection, []).append(picture)
            if labelled and picture.mask is not None:
                image, types = to_rgb(picture.image), self.instances(picture)
                found = cut_parts(image, picture.mask, picture.fabric, types=types)
                parts.setdefault(collection, []).extend(found)
        set_ = object.__setattr__
        set_(self, "parts", {name: found for name, found in parts.items() if found})
        set_(self, "defective", defective)
        set_(self, "flawless", flawless)

    def instances(self, picture: LabelledPicture) -> tuple[InstanceMap, tuple[str, ...]]:
        """The instance map and the types of a known picture, computed once."""
        if id(picture) not in self._maps:
            self._maps[id(picture)] = instances_of(picture)
        return self._maps[id(picture)]

    @property
    def grey(self) -> bool:
        """Whether the new fabric's camera sees no colour."""
        return all(image.ndim == 2 or bool((image[..., :1] == image[..., 1:]).all()) for image in self.good)


Made: TypeAlias = tuple[Picture, Mask, str]
"""A picture with a made defect, its mask, and its type."""
Window: TypeAlias = tuple[slice, slice]
"""Rows and columns."""
Arm: TypeAlias = Callable[[Material, Picture, np.random.Generator], Made]
"""Makes one defect in good cloth."""


def _paste(material: Material, cloth: Picture, rng: np.random.Generator) -> Made:
    part = _pick(material.parts, rng)
    return *paste(part, cloth, rng), part.type


def _poisson(material: Material, cloth: Picture, rng: np.random.Generator) -> Made:
    part = _pick(material.parts, rng)
    return *poisson(part, cloth, rng), part.type


def _perlin(material: Material, cloth: Picture, rng: np.random.Generator) -> Made:
    foreign = to_rgb(_pick(material.flawless or material.defective, rng).image)
    side = max(cloth.shape[:2])
    window = random_window(foreign.shape[:2], side, rng)
    texture = photometric(mirror_pad(foreign, side)[window], rng, 2.0)[: cloth.shape[0], : cloth.shape[1]]
    return *perlin_defect(cloth, texture, rng), UNKNOWN


def _drawn(_: Material, cloth: Picture, rng: np.random.Generator) -> Made:
    kind = DRAWN_KINDS[int(rng.integers(len(DRAWN_KINDS)))]
    return *draw_defect(cloth, kind, rng), kind


ARMS: Mapping[str, Arm] = {"paste": _paste, "poisson": _poisson, "perlin": _perlin, "drawn": _drawn}
_SEVERAL = ("paste", "poisson", "drawn")  # arms that make several defects in a tile
ARM_NAMES = (*SOURCE_ONLY, *ARMS, *GENERATED)


def arms_of(recipe: str) -> tuple[str, ...]:
    """The arms of a recipe as it is written: ``"3drawn+stage1+2"`` is drawn, drawn, drawn and stage1+2."""
    found: dict[str, int] = {}
    for word in re.split(r"\+(?!2(?:\+|$))", recipe):
        times, name = re.fullmatch(r"([1-9]?)(.*)", word.strip().lower(), re.DOTALL).groups()  # type: ignore[union-attr]
        found.setdefault(name, int(times or 1))
    return tuple(name for name, times in found.items() for _ in range(times))


def types_in(material: Material, recipe: Recipe, *, boxed: bool = True) -> tuple[str, ...]:
    """The types that its tiles can have, sorted; ``unknown`` among them where some have none.

    Args:
        boxed: also those of which no pixel is known, but boxes alone.
    """
    found: set[str] = set()
    for picture in material.known:
        if boxed or picture.mask is not None:
            found |= set(material.instances(picture)[1])
    if "drawn" in recipe.arms:
        found |= set(DRAWN_KINDS)
    if set(recipe.arms) & {"perlin", *GENERATED}:
        found.add(UNKNOWN)
    return tuple(sorted(found or {UNKNOWN}))


class TileMaker:
    """Makes the training tiles of one recipe from one material.

    Args:
        recipe: what to make.
        material: what to make it of.
        seed: of everything random.

    Raises:
        ValueError: the recipe needs known defects, or samples of a generator, and the material has none.
    """

    def __init__(self, recipe: Recipe, material: Material, *, seed: int = 0) -> None:
        if {"paste", "poisson"} & set(recipe.arms) and not material.parts:
            raise ValueError(f"{recipe.name} needs known fabrics with masks, and there are none")
        for arm in set(recipe.arms) & set(GENERATED):
            if not material.made.get(arm):
                raise ValueError(f"{recipe.name} needs samples of {arm}, and there are none")
        self._recipe, self._material, self._seed = recipe, material, seed
        self._window = math.ceil(recipe.tile * (1 + recipe.stretch))  # what a tile is stretched from
        self._good = [mirror_pad(to_rgb(image), self._window) for image in material.good]
        self._off = [beside(image) for image in self._good]
        if self._off and np.mean([off.mean() for off in self._off]) > _MOST_OFF:
            # cloth so fine that its threads do not show
            self._off = [np.zeros_like(off) for off in self._off]
        self._places, self._odds = rare_places(self._good, self._window)
        self._strongest = strongest_places(self._good, self._off)
        self._grey = material.grey

    def batch(self, k: int) -> list[TrainingTile]:
        """The tiles of step ``k``: synthetic ones, good ones, known ones, in the recipe's shares."""
        rng = np.random.default_rng([self._seed, k])
        recipe = self._recipe
        offset = rng.random()  # shares hold over the steps even where a batch cannot be cut so finely
        slots = [(i + offset) / recipe.batch for i in range(recipe.batch)]
        return [self._tile(slot, rng) for slot in slots]

    def synthetic(self, rng: np.random.Generator, arm: str | None = None) -> TrainingTile:
        """One synthetic tile, not augmented."""
        return self._made(arm or self._any_arm(rng), self._recipe.tile, rng)

    def _any_arm(self, rng: np.random.Generator) -> str:
        return self._recipe.arms[int(rng.integers(len(self._recipe.arms)))]

    def _tile(self, slot: float, rng: np.random.Generator) -> TrainingTile:
        recipe = self._recipe
        if not recipe.source_only and slot < recipe.made:
            tile = self._made(self._any_arm(rng), self._window, rng)
        elif not recipe.source_only and slot < recipe.made + recipe.good:
            tile = _unlabelled_good(self._as_it_is(rng, self._window))
        else:
            tile = self._known(self._window, rng)
        arrays: list[Array] = [tile.image, tile.target, tile.weight]
        if tile.instances is not None:
            arrays.append(tile.instances)
        arrays = flip_and_turn(stretch(arrays, recipe.tile, recipe.stretch, rng), rng)
        image, target, weight, *instances = arrays
        if not tile.weight.all():  # boxes alone: stretched, weights and numbers may end a pixel apart
            weight = 1 - flat(instances[0]).astype(np.float32)
        if recipe.arms == ("augmix",):
            image = augmix(image, rng)
        elif rng.random() < 0.5:
            image = photometric(image, rng)
        return TrainingTile(
            image, target, weight, tile.origin, instances[0] if instances else None, tile.types
        )

    def _made(self, arm: str, size: int, rng: np.random.Generator) -> TrainingTile:
        types: tuple[str, ...]
        if arm in GENERATED:
            samples = self._material.made[arm]
            sample = samples[int(rng.integers(len(samples)))]
            image, instances, types = sample.image, sample.mask.astype(np.int16), (UNKNOWN,)
        else:
            image, woven = self._woven(rng, size)
            instances, types = np.zeros((size, size), np.int16), ()
            while True:
                image[woven], mask, kind = ARMS[arm](self._material, image[woven], rng)
                types = (*types, kind)
                instances[woven][mask] = len(types)
                full = arm not in _SEVERAL or len(types) == self._recipe.most
                if full or rng.random() >= self._recipe.another:
                    break
        if self._grey:  # a grey camera sees no coloured stain
            image = to_rgb(to_grey(image))
        target = (instances > 0).astype(np.float32)
        return TrainingTile(image, target, np.ones_like(target), arm, instances, types)

    def cloth(self, rng: np.random.Generator, size: int | None = None) -> Picture:
        """A window of good cloth, rare places as often as usual ones; of the tile's size if none is given."""
        number, window = self._anywhere(rng, size or self._recipe.tile)
        return np.ascontiguousarray(self._good[number][window])

    def _as_it_is(self, rng: np.random.Generator, size: int) -> Picture:
        """A window of good cloth; half of them on a place that could be taken for a defect."""
        if not len(self._strongest) or rng.random() < 0.5:
            return self.cloth(rng, size)
        number, *at = self._strongest[int(rng.integers(len(self._strongest)))]
        image = self._good[number]
        return np.ascontiguousarray(image[_window_around(at, image.shape, size, rng)])

    def _woven(self, rng: np.random.Generator, size: int) -> tuple[Picture, Window]:
        """A copy of a window of good cloth, and where in it defects can be made: not beside the selvedge."""
        for _ in range(_TRIES):
            number, window = self._anywhere(rng, size)
            part = cloth_within(self._off[number][window], size // 4)
            if part is not None:
                break
        else:
            part = slice(0, size), slice(0, size)
        return self._good[number][window].copy(), part

    def _anywhere(self, rng: np.random.Generator, size: int) -> tuple[int, Window]:
        """The number of a good picture, and a window in it."""
        number, *corner = self._places[int(np.searchsorted(self._odds, rng.random()))]
        top, left = (
            int(np.clip(start + rng.integers(-_STRIDE, _STRIDE + 1), 0, length - size))
            for start, length in zip(corner, self._good[number].shape[:2], strict=True)
        )
        return int(number), (slice(top, top + size), slice(left, left + size))

    def _known(self, size: int, rng: np.random.Generator) -> TrainingTile:
        material = self._material
        defective = not material.flawless or rng.random() < _WITH_DEFECT
        if defective and not material.defective and not self._recipe.source_only:
            return self._made(self._any_arm(rng), size, rng)
        if defective and material.defective:
            picture = _pick(material.defective, rng)
            where = picture.mask if picture.mask is not None else flat(material.instances(picture)[0])
            window = _window_on(mirror_pad(where, size), size, rng)
        else:
            picture = _pick(material.flawless, rng)
            height, width = picture.image.shape[:2]
            window = random_window((max(height, size), max(width, size)), size, rng)
        image = to_rgb(mirror_pad(picture.image, size)[window])
        instances, types = _mirrored(*self._material.instances(picture), size)
        own = instances[window]
        marked = flat(own).astype(np.float32)
        if picture.mask is None:  # boxes alone: which pixels are defective, nobody knows
            return TrainingTile(image, np.zeros_like(marked), 1 - marked, "real", own, types)
        return TrainingTile(image, marked, np.ones_like(marked), "real", own, types)


def rare_places(good: Sequence[Picture], size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Where to take windows of good cloth from, so that what is rare there is learned too.

    A selvedge is a twentieth of the good cloth and most of the false alarms. A window is taken up to eight
    times as often as another when its brightness, contrast and detail are far from the usual.

    Returns:
        places, int (n, 3): picture, top, left; and the cumulated odds, (n,), the last of them 1.
    """
    if not good:  # known fabrics may be all there is to learn from
        return np.zeros((0, 3), np.int64), np.zeros(0)
    places, looks = [], []
    for number, image in enumerate(good):
        grey = to_grey(image).astype(np.float32)
        detail = [np.abs(np.diff(grey, axis=axis, append=0)) for axis in (0, 1)]
        maps = [cv2.boxFilter(of, -1, (size, size), anchor=(0, 0)) for of in (grey, grey**2, *detail)]
        for top in _spread(grey.shape[0] - size):
            for left in _spread(grey.shape[1] - size):
                mean, second, *fine = (float(of[top, left]) for of in maps)
                places.append((number, top, left))
                looks.append((mean, np.sqrt(max(0.0, second - mean**2)), *fine))
    all_looks = np.array(looks)
    centre = np.median(all_looks, axis=0)
    spread = np.median(np.abs(all_looks - centre), axis=0) + 0.02 * np.abs(centre) + 1e-3
    strange = np.abs((all_looks - centre) / spread).max(axis=1)
    odds = np.clip(strange / 4, 1, 8)
    cumulated = np.cumsum(odds) / odds.sum()
    cumulated[-1] = 1.0
    return np.array(places), cumulated


def strongest_places(good: Sequence[Picture], off: Sequence[Mask]) -> NDArray[np.int64]:
    """Where good cloth differs most from the cloth around it: what a network could take for a defect.

    A speck that the cloth has by nature is in one window of many, while defects drawn all over teach that
    what looks like it is bad.

    Args:
        good: RGB pictures; off: where each shows no cloth, see :func:`~loomsight.fabric.woven.beside`.

    Returns:
        int (n, 3): picture, row, column; five of a megapixel, none within some pixels of the cloth's edge.
    """
    found: list[tuple[float, int, int, int]] = []
    area = 0
    for number, (image, bare) in enumerate(zip(good, off, strict=True)):
        differs = np.abs(cv2.GaussianBlur(texture(image), (0, 0), SCALES[1]))
        differs[cv2.dilate(bare.astype(np.uint8), _EDGE) > 0] = 0
        highest = (differs > 0) & (differs == cv2.dilate(differs, _APART))
        found += [(float(differs[row, column]), number, row, column) for row, column in np.argwhere(highest)]
        area += bare.size
    strongest = sorted(found, reverse=True)[: math.ceil(_STRONGEST * area / 1e6)]
    return np.array([place for _, *place in strongest], np.int64).reshape(-1, 3)


def _spread(room: int) -> list[int]:
    return sorted({*range(0, room + 1, 2 * _STRIDE), room})


def mirror_pad(array: np.ndarray, size: int) -> np.ndarray:
    """The array, HW or HWC, mirrored below and to the right until no side is shorter than ``size``."""
    down, right = max(0, size - array.shape[0]), max(0, size - array.shape[1])
    if not (down or right):
        return array
    return np.pad(array, ((0, down), (0, right)) + ((0, 0),) * (array.ndim - 2), "symmetric")


def _mirrored(
    instances: InstanceMap, types: tuple[str, ...], size: int
) -> tuple[InstanceMap, tuple[str, ...]]:
    """An instance map as :func:`mirror_pad` gives it, in which each copy of a defect is one of its own."""
    padded = mirror_pad(instances, size)
    if padded is instances:
        return instances, types
    anew, named = np.zeros_like(padded), list[str]()
    for number, name in enumerate(types, 1):
        own = padded == number
        count, parts = label_parts(flat(own), GAP)
        anew[own] = (parts if own.ndim == 2 else parts[..., None] * own)[own] + len(named)
        named += [name] * count
    return anew, tuple(named)


def random_window(shape: tuple[int, ...], size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square window anywhere in ``shape``, moved to the origin where a side is shorter than ``size``."""
    top = int(rng.integers(max(1, shape[0] - size + 1)))
    left = int(rng.integers(max(1, shape[1] - size + 1)))
    return slice(top, top + size), slice(left, left + size)


def _window_on(mask: Mask, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square window with some defect in it, not always in its middle."""
    rows, columns = np.nonzero(mask)
    at = int(rng.integers(len(rows)))
    return _window_around((rows[at], columns[at]), mask.shape, size, rng)


def _window_around(at: Sequence[int], shape: tuple[int, ...], size: int, rng: np.random.Generator) -> Window:
    """A square window with that row and column in it, not always in its middle."""
    top, left = (
        int(np.clip(centre - rng.integers(size // 8, size - size // 8), 0, length - size))
        for centre, length in zip(at, shape[:2], strict=True)
    )
    return slice(top, top + size), slice(left, left + size)


def _unlabelled_good(cloth: Picture) -> TrainingTile:
    shape = cloth.shape[:2]
    return TrainingTile(cloth, np.zeros(shape, np.float32), np.ones(shape, np.float32), "good")


def _pick(of: Mapping[str, Sequence], rng: np.random.Generator):  # type: ignore[no-untyped-def,type-arg]
    """A member of a collection, every collection being as likely as another."""
    names = list(of)
    chosen = of[names[int(rng.integers(len(names)))]]
    return chosen[int(rng.integers(len(chosen)))]
