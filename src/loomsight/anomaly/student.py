"""A student: a small network that answers like its teacher where cloth is good, because it saw nothing else.

After Batzner et al., *EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies*, WACV
2024, small enough for every pixel of a line. Three networks of a few thousand multiplications a pixel:

* the **teacher** has learned to answer like the frozen EfficientNet-Lite0, on good cloth and on cloth that
  was disturbed in many ways, so it answers sensibly for a defect too;
* the **student** has learned to answer like the teacher on good cloth alone. Where they differ, cloth is not
  as it was: the first half of the score;
* the **autoencoder** gives the teacher's answers for good cloth through a narrow passage, so it knows how
  cloth is built and no detail; a second head of the student has learned to answer like it, mistakes included.
  Where these differ, the structure is not as it was: the second half.

Both halves are logarithms of a distance, whitened so that what hardly varies on good cloth counts more, and
averaged. All three learned under changing light and focus. The frozen network itself is needed for training
only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from loomsight.anomaly.cells import load_arrays, state_arrays
from loomsight.fabric.types import Picture

ANSWERS = 64
"""Channels of the teacher's answer: the frozen network's 24 at stride 4 and 40 at stride 8."""
STRIDE = 4
STEP = 32
"""Pixels: the sides of what it looks at are multiples of it."""
_WIDTH = 40
_LATENT = 8  # channels of the narrow passage, at stride 32
_LEAST = 0.05  # of a squared difference; on good cloth its mean is 1


def padded_to(even: Picture, step: int) -> Picture:
    """The picture with its last rows and columns repeated until both sides are multiples of ``step``."""
    below, beside = (-side % step for side in even.shape[:2])
    return np.pad(even, ((0, below), (0, beside), (0, 0)), "edge")


def _unshuffled(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c16 h4 w4"]:
    """The pixels of each square of four as channels; exported as a convolution, which takes any size."""
    if not torch.compiler.is_exporting():
        return F.pixel_unshuffle(x, STRIDE)
    one = torch.eye(STRIDE**2).view(STRIDE**2, 1, STRIDE, STRIDE)
    return F.conv2d(x, one.repeat(x.shape[1], 1, 1, 1), stride=STRIDE, groups=x.shape[1])


class _Small(nn.Module):
    """Picture → answers at a quarter of its resolution, from 28 × 28 pixels around each."""

    def __init__(self, channels: int, answers: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels * STRIDE**2
        for _ in range(3):
            layers += [nn.Conv2d(before, _WIDTH, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
            before = _WIDTH
        self.layers = nn.Sequential(*layers)
        self.out = nn.Conv2d(before, answers, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n a h4 w4"]:
        out: Tensor = self.out(self.layers(_unshuffled(x)))
        return out


class _Autoencoder(nn.Module):
    """Picture → answers at a quarter of its resolution, through a few numbers for 32 × 32 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        before, down = channels * 16, []
        for stride in (1, 2, 2):
            down += [nn.Conv2d(before, _WIDTH, 3, stride, 1, padding_mode="replicate"), nn.ReLU()]
            before = _WIDTH
        self.down = nn.Sequential(*down, nn.Conv2d(_WIDTH, _LATENT, 1))
        before, self.up = _LATENT, nn.ModuleList()
        for _ in range(3):
            self.up.append(nn.Conv2d(before, _WIDTH, 3, padding=1, padding_mode="replicate"))
            before = _WIDTH
        self.out = nn.Conv2d(_WIDTH, ANSWERS, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n a h4 w4"]:
        x = self.down(_unshuffled(F.avg_pool2d(x, 2)))
        for number, layer in enumerate(self.up):
            x = layer(x).relu()
            if number < 2:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return F.interpolate(self.out(x), scale_factor=2.0, mode="bilinear")


class Student:
    """The three networks; trained by :func:`loomsight.learn.distillation.train_student`."""

    name = "student"

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = _Small(channels, ANSWERS).to(self.device)
        self.student = _Small(channels, 2 * ANSWERS).to(self.device)
        self.autoencoder = _Autoencoder(channels).to(self.device)

    @torch.inference_mode()
    def strangeness(self, even: Picture) -> Float[NDArray[np.float32], "h w"]:
        """A logarithm, of an evenly lit picture or tile."""
        padded = padded_to(even, STEP)
        said = self.said(torch.from_numpy(padded[None]).to(self.device))
        return np.asarray(said[0, : even.shape[0], : even.shape[1]].cpu().numpy(), np.float32)

    def said(self, even: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b h w"]:
        """The same of tiles whose sides :data:`STEP` divides."""
        x = even.permute(0, 3, 1, 2).float()
        x = (x if self.channels == 3 else x.mean(1, keepdim=True)) / 127.5 - 1
        answers, (said, structure) = self.teacher(x), self.student(x).chunk(2, 1)
        halves = [
            0.5 * ((a - b).square().mean(1, keepdim=True) + _LEAST).log()
            for a, b in ((answers, said), (self.autoencoder(x), structure))
        ]
        return F.interpolate((halves[0] + halves[1]) / 2, scale_factor=float(STRIDE), mode="bilinear")[:, 0]

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """All that it knows, as plain arrays."""
        return state_arrays(self.networks())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The networks again.

        Raises:
            KeyError, ValueError: these are not their arrays.
        """
        made = cls(int(arrays["teacher.layers.0.weight"].shape[1]) // STRIDE**2)
        load_arrays(made.networks(), arrays)
        return made

    def networks(self) -> dict[str, nn.Module]:
        """By the names that their arrays have."""
        return {"teacher": self.teacher, "student": self.student, "autoencoder": self.autoencoder}
