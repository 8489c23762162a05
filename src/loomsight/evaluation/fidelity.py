"""How good are made defects? Likeness, variety, clean background, true masks, and nothing learned by heart.

Made samples are compared with real defects of the same fabric on square patches around each defect:

* **KID**: the squared maximum mean discrepancy with a cubic kernel (Bińkowski et al., *Demystifying MMD
  GANs*, ICLR 2018). Unbiased however few the samples, and therefore sometimes below 0; FID is biased when
  there are fewer samples than features, which is always so here, and is not offered.
* **Diversity**: each made sample belongs to its nearest real one; the mean distance within such a cluster,
  averaged over clusters (the IC-LPIPS of Ojha et al., CVPR 2021, on the features named below). A damaged
  background is diverse too: read it beside the next.
* **Background error**: grey levels by which the cloth outside the mask was changed.
* **Mask agreement**: how well the mask is the region that visibly changed.
* **Memorised**: the share of samples whose defect, taken out of its cloth, is nearer to a training defect
  than 95 % of the training defects are to one another. A generator that invents has 0.05 or less.

The features are pooled activations of EfficientNet-Lite0, not of the Inception network that others use:
figures are comparable with each other and with nobody else's, and carry the features' name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import cv2
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from loomsight.fabric.types import Mask, Picture

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 2
"""A mask may be this many pixels off: its edge is a matter of opinion."""
USUAL = 0.05
"""The share of training defects that are as near to another as a copy would be."""

_SIDE = 64  # pixels of the square in which defects are compared
_LEAST = 12  # pixels: a smaller defect is enlarged no further than one of this size
_MIRRORED = (np.s_[:, :], np.s_[::-1], np.s_[:, ::-1], np.s_[::-1, ::-1])
_BATCH = 64  # patches that the network sees at a time
_LEVELS = {"stride 4": 1, "stride 8": 2, "stride 16": 3}  # of EfficientNet-Lite0, see its `strides`


class Defect(Protocol):
    """A picture with a defect, uint8 HWC RGB, and the defect's bool HW mask."""

    @property
    def image(self) -> Picture: ...
    @property
    def mask(self) -> Mask: ...


class Made(Defect, Protocol):
    """A made defect, and the cloth, uint8 HWC RGB, as it was before."""

    @property
    def cloth(self) -> Picture: ...


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Figures of one set of made samples.

    Attributes:
        kid, kid_deviation: ×1, mean and deviation over subsets; lower is better, 0 is the same
            distribution, and chance puts it a little below.
        diversity: mean feature distance within clusters; None when no cluster has two samples.
        background_error: mean absolute difference in grey levels outside the mask, over samples.
        mask_agreement: mean over samples, in [0, 1]; 1: the mask is what changed.
        memorised: share of samples, in [0, 1]; ``USUAL`` if nothing is. None without a memory.
        samples, real: how many of each.
        features: the name of the features.
    """

    kid: float
    kid_deviation: float
    diversity: float | None
    background_error: float
    mask_agreement: float
    memorised: float | None
    samples: int
    real: int
    features: str


class PatchFeatures:
    """Frozen features of square patches: mean and deviation of each channel of three levels.

    Each level is divided by its own root mean square, so that all weigh the same whatever the patch's
    contrast. The deviation notices a small defect that the mean over the patch drowns.

    Raises:
        WeightsError: the weights' package is missing.
    """

    name = "EfficientNet-Lite0 (ImageNet), strides 4, 8 and 16, mean and deviation over the patch"

    def __init__(self) -> None:
        from loomsight.backbones import efficientnet_lite

        self._network = efficientnet_lite.build("lite0", stages=5).eval().requires_grad_(False)

    def __call__(self, patches: Sequence[Picture]) -> Float[NDArray[np.float32], "n d"]:
        """The features of patches, uint8 HWC RGB, all of one size of 32 px a side or more."""
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(patches), _BATCH):
                batch = torch.from_numpy(np.stack(patches[start : start + _BATCH])).permute(0, 3, 1, 2)
                levels = self._network(batch.float() / 255)
                found.append(torch.cat([_pooled(levels[at]) for at in _LEVELS.values()], dim=1).numpy())
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _pooled(level: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    import torch

    pooled = torch.cat([level.mean((2, 3)), level.std((2, 3), correction=0)], dim=1)
    return pooled / (pooled.square().mean(1, keepdim=True).sqrt() + 1e-6)


@dataclass(frozen=True, slots=True)
class Memory:
    """The real defects that a generator has learned from, as features, and how near is a copy.

    A defect is compared as it differs from its own cloth, which is made an even grey, enlarged to fill a
    square: only so is a copy known in another cloth, at another place. Of one longer than 64 pixels its
    middle is compared. A copy that was turned or resized is another defect.

    Attributes:
        features: float32 (n, d), rows for each real defect, its mirror images and masks a pixel wider.
        limit: a sample nearer to one of them is a copy.
    """

    features: Float[NDArray[np.float32], "n d"]
    limit: float

    @classmethod
    def of(cls, real: Sequence[Defect], features: PatchFeatures | None = None) -> Self:
        """Remember real defects.

        Args:
            real: with some of their own cloth, every one once: the limit is the distance that one in
                twenty of them has to its nearest other.

        Raises:
            ValueError: fewer than two defects.
        """
        features = features or PatchFeatures()
        rows = []
        for by in (0, 1):  # a copy's mask seldom ends at the same pixel
            squares = [isolated(one.image, grown(one.mask, by), *_look(one.image[~one.mask])) for one in real]
            rows += [features([square[turn] for square in squares]) for turn in _MIRRORED]
        return cls(np.concatenate(rows), near(rows[0]))

    def copies(self, made: Sequence[Made], features: PatchFeatures) -> NDArray[np.bool_]:
        """For each sample, none with an empty mask, whether it is a copy."""
        squares = [isolated(one.image, one.mask, *_look(one.cloth.reshape(-1, 3))) for one in made]
        return np.asarray(distances(features(squares), self.features).min(axis=1) < self.limit)


def measure_fidelity(
    made: Sequence[Made],
    real: Sequence[Defect],
    rng: np.random.Generator,
    *,
    memory: Memory | None = None,
    features: PatchFeatures | None = None,
    size: int = 64,
) -> Fidelity:
    """Compare made samples with real defects.

    Args:
        made: samples, of which those with an empty mask are no samples.
        real: pictures, uint8 HWC RGB, with one defect each, as the made ones should look.
        rng: draws the subsets of KID.
        memory: of the defects that the generator has learned from.
        features: kept from an earlier call.
        size: pixels a side of the patches.

    Raises:
        ValueError: fewer than two samples or two real defects.
    """
    features = features or PatchFeatures()
    made = [one for one in made if one.mask.any()]
    seen = features([around(one.image, one.mask, size)[0] for one in made])
    true = features([around(one.image, one.mask, size)[0] for one in real])
    value, deviation = kid(seen, true, rng)
    return Fidelity(
        kid=value,
        kid_deviation=deviation,
        diversity=diversity(seen, true),
        background_error=float(np.mean([background_error(one.cloth, one.image, one.mask) for one in made])),
        mask_agreement=float(np.mean([agreement(one.mask, changed(one.cloth, one.image)) for one in made])),
        memorised=float(memory.copies(made, features).mean()) if memory else None,
        samples=len(made),
        real=len(true),
        features=features.name,
    )


def around(image: Picture, mask: Mask, size: int = 64) -> tuple[Picture, Mask]:
    """The square around a defect: centred on the defect's pixel nearest to its centre of gravity.

    Args:
        image: uint8 HWC; mirrored where the square reaches beyond it.
        mask: bool HW, not empty.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("the mask is empty")
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    starts = []
    for at, length in ((rows[nearest], mask.shape[0]), (columns[nearest], mask.shape[1])):
        starts.append(max(0, min(int(at) - size // 2, length - size)))
    window = tuple(slice(start, start + size) for start in starts)
    cut, own = image[window], mask[window]
    missing = [(0, size - side) for side in own.shape]
    if any(after for _, after in missing):
        cut = np.pad(cut, (*missing, (0, 0)), "symmetric")
        own = np.pad(own, missing)
    return np.ascontiguousarray(cut), np.ascontiguousarray(own)


def isolated(image: Picture, mask: Mask, mean: NDArray[np.float32], gain: float) -> Picture:
    """A defect as it differs from its cloth, enlarged to fill a square of 64 pixels, grey around it.

    Args:
        image: uint8 HWC RGB.
        mask: bool HW, not empty.
        mean: float32 (3,), grey levels of the cloth, which become mid-grey.
        gain: how much the contrast is raised.
    """
    rows, columns = np.nonzero(mask)
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    centre = [(places.min() + places.max()) / 2 for places in (columns, rows)]
    if extent > _SIDE:
        nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
        centre = [columns[nearest], rows[nearest]]
    zoom = _SIDE / float(np.clip(extent + 4, _LEAST, _SIDE))
    matrix = np.array([[zoom, 0, 0], [0, zoom, 0]])
    matrix[:, 2] = (_SIDE - 1) / 2 - zoom * np.array(centre, float)
    plain = np.clip((image.astype(np.float32) - mean) * gain + 127.5, 0, 255)
    plain = np.where(mask[..., None], plain, np.float32(127.5))
    square = cv2.warpAffine(plain, matrix, (_SIDE, _SIDE), borderValue=(127.5,) * 3)
    return np.asarray(square, np.uint8)


def _look(cloth: Picture) -> tuple[NDArray[np.float32], float]:
    """Mean and gain of a cloth's pixels (n, 3), as generators see cloth: all with about one contrast."""
    values = cloth.astype(np.float32)
    return values.mean(axis=0), float(np.clip(24 / (values.mean(axis=1).std() + 1), 0.6, 2.5))


def squared_mmd(first: Float[NDArray[np.float32], "n d"], second: Float[NDArray[np.float32], "m d"]) -> float:
    """The unbiased estimate of the squared MMD under the kernel (x·y/d + 1)³.

    Raises:
        ValueError: fewer than two rows in one, or different widths.
    """
    if min(len(first), len(second)) < 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"two or more rows of one width are needed, got {first.shape} and {second.shape}")
    # float64: three sums near 8 are subtracted, and what is left is in the third decimal.
    x, y = first.astype(np.float64), second.astype(np.float64)
    width = x.shape[1]
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within_x = (xx.sum() - np.trace(xx)) / (n * (n - 1))
    within_y = (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def kid(
    first: Float[NDArray[np.float32], "n d"],
    second: Float[NDArray[np.float32], "m d"],
    rng: np.random.Generator,
    *,
    subsets: int = 50,
    size: int = 100,
) -> tuple[float, float]:
    """Kernel inception distance: mean and deviation of the squared MMD over random subsets.

    Args:
        first, second: features, one row a patch.
        subsets: how many are drawn, without replacement within each.
        size: rows of a subset; half of the smaller set if that is fewer, so that subsets differ.
    """
    size = max(2, min(size, len(first) // 2, len(second) // 2))
    if size > min(len(first), len(second)):
        raise ValueError(f"two or more rows are needed, got {len(first)} and {len(second)}")
    values = [
        squared_mmd(
            first[rng.choice(len(first), size, replace=False)],
            second[rng.choice(len(second), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def diversity(
    made: Float[NDArray[np.float32], "n d"], real: Float[NDArray[np.float32], "m d"]
) -> float | None:
    """Mean distance of made samples that have the same nearest real one; None if no two of them have."""
    nearest = distances(made, real).argmin(axis=1)
    means = []
    for number in np.unique(nearest):
        cluster = made[nearest == number]
        if len(cluster) > 1:
            apart = distances(cluster, cluster)
            means.append(apart.sum() / (len(cluster) * (len(cluster) - 1)))
    return float(np.mean(means)) if means else None


def near(training: Float[NDArray[np.float32], "m d"]) -> float:
    """The distance to the nearest other that only 5 % of the patches fall below.

    Raises:
        ValueError: fewer than two patches.
    """
    if len(training) < 2:
        raise ValueError("one patch has no neighbour")
    apart = distances(training, training)
    np.fill_diagonal(apart, np.inf)
    return float(np.quantile(apart.min(axis=1), USUAL))


def distances(
    first: Float[NDArray[np.float32], "n d"], second: Float[NDArray[np.float32], "m d"]
) -> Float[NDArray[np.float64], "n m"]:
    """The root mean squared difference of every row with every other."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.asarray(np.sqrt(np.maximum(squared, 0) / x.shape[1]))


def background_error(cloth: Picture, image: Picture, mask: Mask) -> float:
    """Mean absolute difference outside the mask, in grey levels; 0 where the mask is everything."""
    outside = ~mask
    if not outside.any():
        return 0.0
    return float(np.abs(image[outside].astype(np.int16) - cloth[outside]).mean())


def texture_contrast(cloth: Picture) -> float:
    """The deviation of a good cloth's texture in grey levels, lighting and selvedges left out; at least 2."""
    grey = cloth.mean(axis=2, dtype=np.float32)
    texture = grey - cv2.blur(grey, (25, 25))
    return max(2.0, float(1.4826 * np.median(np.abs(texture - np.median(texture)))))


def changed(cloth: Picture, image: Picture) -> Mask:
    """Where the cloth changed so that an inspector could see it.

    The absolute change, smoothed over the weave's gaps, above a third of the cloth's own contrast and above
    a fifth of its own peak, so that the faint rim of a strong defect is no part of it.

    Args:
        cloth, image: uint8 HWC, before and after.
    """
    amount = cv2.absdiff(image, cloth).max(axis=2).astype(np.float32)
    seen = cv2.GaussianBlur(amount, (0, 0), 1.2)
    level = max(0.2 * float(seen.max()), texture_contrast(cloth) / 3, 1.5)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return np.asarray(cv2.morphologyEx((seen > level).astype(np.uint8), cv2.MORPH_CLOSE, disc)).astype(bool)


def agreement(mask: Mask, seen: Mask, tolerance: int = TOLERANCE) -> float:
    """Intersection over union of a mask with what changed, its edges within ``tolerance`` pixels free.

    With the precision p (share of the change within the grown mask) and the recall r (share of the mask
    within the grown change) it is pr / (p + r − pr); 0 where one of them is empty.
    """
    if not (mask.any() and seen.any()):
        return 0.0
    precision = float(grown(mask, tolerance)[seen].mean())
    recall = float(grown(seen, tolerance)[mask].mean())
    both = precision * recall
    return both / (precision + recall - both) if both else 0.0


def grown(mask: Mask, by: int) -> Mask:
    """The mask and everything at most ``by`` rows and columns from it."""
    side = 2 * by + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8))).astype(bool)
