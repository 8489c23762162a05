"""The texture code: the Gram matrices of a fixed network's activations, compressed to a vector.

The Gram matrix forgets where things are and keeps which features occur together, and how strongly: the
cloth, not the picture of it (Gatys et al., Texture Synthesis Using CNNs, NeurIPS 2015; as a condition of
the defect generator in Liu et al., Multistage GAN for Fabric Defect Detection, IEEE TIP 29, 2020).

Read top to bottom: the Gram matrix, its compression, the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.backbones import efficientnet_lite, vgg
from loomsight.backbones.weights import LITE0, VGG16_HED
from loomsight.fabric.images import to_rgb
from loomsight.fabric.light import sample
from loomsight.fabric.types import Picture

_PATCH = 128  # px: some ten repeats of a usual weave
_DIMS = 512  # of each layer's part of the code
_VGG_LAYERS = ("conv1_2", "conv2_2", "conv3_3")  # conv4_3 told fabrics apart no better, at twice the time
_SCALES = (1, 2)  # native size, half size
_COLOURS = 6  # mean and deviation of L, a, b


def gram(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c c"]:
    """Gram matrices ψψᵀ/(C·H·W), where ψ is the C × HW reshape of one picture's activations."""
    b, c, h, w = features.shape
    psi = features.reshape(b, c, h * w)
    return torch.bmm(psi, psi.transpose(1, 2)) / (c * h * w)


@cache
def _sketch(channels: int, dims: int) -> NDArray[np.int64]:
    """Where each upper-triangle entry goes: to ``place`` with its sign, or from ``dims`` on, turned round.

    Raw bits of PCG64, and not a generator's ``normal`` or ``choice``: NumPy promises the bits for ever, and
    codes that are stored in a profile must mean the same in years.
    """
    bits = np.random.PCG64(channels).random_raw(channels * (channels + 1) // 2)
    return (bits % np.uint64(2 * dims)).astype(np.int64)


def compress(
    matrices: Float[Tensor, "b c c"] | NDArray[np.float32], dims: int = _DIMS
) -> NDArray[np.float32]:
    """Gram matrices as unit vectors whose distances tell textures apart: (b, dims) float32.

    Half of a code is how strong each feature is (the logarithm of the diagonal, relative to its mean, so that
    brightness and contrast of the light cancel), half is which features go together (off the diagonal, as
    cosines). A count sketch (Charikar et al., 2002: a fixed random projection with one ±1 in each row) brings
    both to ``dims`` numbers and keeps distances within about √(2/dims), 6 %, of what they were.
    """
    whole = np.asarray(matrices, dtype=np.float32)
    channels = whole.shape[1]
    energy = np.diagonal(whole, axis1=1, axis2=2)
    energy = (
        energy + 1e-3 * energy.mean(axis=1, keepdims=True) + 1e-12
    )  # a feature that is never seen says nothing
    cosines = whole / np.sqrt(energy[:, :, None] * energy[:, None, :])
    rows, columns = np.triu_indices(channels)
    upper, diagonal = cosines[:, rows, columns], rows == columns
    upper[:, diagonal] = np.log(energy / energy.mean(axis=1, keepdims=True))
    for part in (diagonal, ~diagonal):
        upper[:, part] /= np.linalg.norm(upper[:, part], axis=1, keepdims=True) * np.sqrt(2) + 1e-12
    places = _sketch(channels, dims)
    both = np.stack([np.bincount(places, weights=row, minlength=2 * dims) for row in upper])
    return (both[:, :dims] - both[:, dims:]).astype(np.float32)


class TextureEncoder:
    """From pictures of good cloth to texture codes.

    A code is, for the picture as it is and for the picture at half its size, and for each layer of the
    network, the compressed Gram matrix averaged over patches; then the mean and the deviation of the
    colour (CIE Lab). The half size sees coarser structure, and makes codes less sensitive to the distance
    of the camera.

    Args:
        backbone: "vgg16", "lite0" (EfficientNet-Lite0), or "auto": VGG16 if its weights are there, else
            Lite0. Codes of different backbones cannot be compared.
        weights: a user's ImageNet VGG16 file, in place of the edge-tuned weights.
        patches: how many patches are read at native size, spread evenly; half as many at half size.

    Attributes:
        backbone: "vgg16" or "lite0", as resolved.
        source: the network and its weights in words, and why it is the fallback if it is: for logs, reports
            and profiles.
        size: length of a code.

    Raises:
        WeightsError: the weights are missing or not the known file.
    """

    def __init__(
        self,
        backbone: Literal["auto", "vgg16", "lite0"] = "auto",
        *,
        weights: Path | None = None,
        patches: int = 8,
    ) -> None:
        fallback = backbone == "auto" and weights is None and not vgg.available()
        self._network: nn.Module
        self.backbone: Literal["vgg16", "lite0"] = "lite0" if backbone == "lite0" or fallback else "vgg16"
        if self.backbone == "lite0":
            lite = efficientnet_lite.build(stages=5)
            self._network, channels = lite.eval().requires_grad_(False), tuple(lite.channels)
            self.source = LITE0.network
        else:
            network = vgg.build(layers=_VGG_LAYERS, weights=weights)
            self._network, channels, self.source = network, network.channels, network.source
        if fallback:
            self.source += f", as {VGG16_HED.network} is not installed ({VGG16_HED.install})"
        self._patches = patches
        self.size = len(_SCALES) * len(channels) * _DIMS + _COLOURS

    def code(self, image: Picture) -> Float[NDArray[np.float32], " d"]:
        """The texture code of one picture of good cloth: float32 (:attr:`size`,).

        Args:
            image: uint8 HW grey or HWC RGB, of any size; below 32 px a side it is reflected.
        """
        image = _large_enough(to_rgb(image))
        parts: list[NDArray[np.float32]] = []
        for shrink in _SCALES:
            small = _shrunk(image, shrink)
            parts += [compress(matrix[None])[0] for matrix in self._grams(small, self._patches // shrink)]
        texture = np.concatenate(parts) / np.sqrt(len(parts))
        return np.concatenate((texture, _colour(image))).astype(np.float32)

    def codes(self, images: Iterable[Picture]) -> Float[NDArray[np.float32], "n d"]:
        """The codes of several pictures: float32 (n, :attr:`size`)."""
        return np.stack([self.code(image) for image in images])

    def patch_codes(self, image: Picture, *, patch: int = 256) -> Float[NDArray[np.float32], "n d"]:
        """A code for each part of a picture, parts of about ``patch`` px a side, row by row.

        For a look inside one picture: is there other cloth in a corner? Slower than :meth:`code`.
        """
        rows, columns = (max(1, round(side / patch)) for side in image.shape[:2])
        bands = np.array_split(image, rows)
        return self.codes(part for band in bands for part in np.array_split(band, columns, axis=1))

    def _grams(self, image: Picture, count: int) -> list[NDArray[np.float32]]:
        """For each layer, the mean Gram matrix (c, c) over ``count`` patches."""
        patches = np.stack([image[y : y + _PATCH, x : x + _PATCH] for y, x in _spread(image.shape, count)])
        batch = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
        sums: list[Tensor] = []
        with torch.inference_mode():
            for one in batch:  # one at a time fits the cache: a larger batch is slower on a CPU
                found = self._network(one[None])
                layers = found.values() if isinstance(found, dict) else found
                matrices = [gram(layer)[0] for layer in layers]
                sums = [a + b for a, b in zip(sums, matrices, strict=True)] if sums else matrices
        return [(matrix / len(batch)).numpy() for matrix in sums]


def _spread(shape: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Upper left corners of at most ``count`` patches (at least one), spread evenly, the same every time."""
    spans = [max(0, side - _PATCH) for side in shape[:2]]
    most = [1 if span == 0 else 1 + math.ceil(span / _PATCH) for span in spans]  # more would only overlap
    rows = min(most[0], max(1, round(math.sqrt(count * shape[0] / shape[1]))))
    columns = min(most[1], max(1, count // rows))
    return [
        (round(spans[0] * (row + 0.5) / rows), round(spans[1] * (column + 0.5) / columns))
        for row in range(rows)
        for column in range(columns)
    ]


def _large_enough(image: Picture) -> Picture:
    """Reflect a picture that is smaller than what the networks' deepest layers need."""
    missing = [max(0, 32 - side) for side in image.shape[:2]]
    return (
        np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric") if any(missing) else image
    )


def _shrunk(image: Picture, by: int) -> Picture:
    if by == 1:
        return image
    size = (image.shape[1] // by, image.shape[0] // by)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _colour(image: Picture) -> NDArray[np.float32]:
    """Mean and deviation of L, a and b, L in [0, 1] and a, b on its scale."""
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 250_000))  # some 250,000 pixels say it all
    lab = cv2.cvtColor(sample(image, step).astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return (np.concatenate((lab.mean(axis=0), lab.std(axis=0))) / 100).astype(np.float32)
