"""Networks as every runtime runs them: uint8 tiles in, what an engine needs out.

Whatever can stand in the graph does: colours and their range, the logistic function, the return to the
picture's resolution. So an exported file takes a camera's bytes, and torch runs the very same steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from loomsight.anomaly.features import STEP as FEATURES_STEP
from loomsight.anomaly.features import Features
from loomsight.anomaly.student import STEP as STUDENT_STEP
from loomsight.anomaly.student import Student
from loomsight.detection.deeplab import STEP as SEGMENTER_STEP
from loomsight.detection.deeplab import Segmenter
from loomsight.detection.rtdetr import Detector


class Graph(nn.Module):
    """What all have in common.

    Attributes:
        step: pixels; the sides of a tile are multiples of it.
        outputs: names of what comes out, in order.
        boxed: whether it gives scores, types and boxes by their rank, which a hair can change.
        free: whether tiles of any such size can be looked at; if not, only those of the size it learned from.
    """

    step: int = 1
    outputs: tuple[str, ...]
    free: bool = True
    boxed: bool = False


class SegmenterGraph(Graph):
    """A segmenter: the score of each pixel."""

    outputs = ("scores",)

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network
        self.step = SEGMENTER_STEP

    def forward(self, tiles: UInt8[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b h w"]]:
        return (self.network(_pictures(tiles))[:, 0].float().sigmoid(),)


class DetectorGraph(Graph):
    """A detector: of each query how surely there is a defect, the logit of each type, and the box."""

    outputs = ("scores", "types", "boxes")
    free = False
    boxed = True

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, tiles: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q types"], Float[Tensor, "b q 4"]]:
        defect, types, boxes = self.network(_pictures(tiles))
        return defect.float().sigmoid(), types.float(), boxes.float()


class FeaturesGraph(Graph):
    """The frozen network that a memory compares by: features at three strides, of evenly lit tiles."""

    outputs = ("fine", "middle", "coarse")
    step = FEATURES_STEP

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features
        self.network = features.network

    def forward(self, tiles: UInt8[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b c i j"], ...]:
        return tuple(self.features.batch(_pictures(tiles)))


class StudentGraph(Graph):
    """A student: how strange each place of an evenly lit tile is, as a logarithm."""

    outputs = ("strangeness",)
    step = STUDENT_STEP

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.networks = nn.ModuleDict(student.networks())  # its weights are this module's too

    def forward(self, tiles: UInt8[Tensor, "b h w 3"]) -> tuple[Float[Tensor, "b h w"]]:
        return (self.student.said(tiles),)


def _pictures(tiles: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    return tiles.permute(0, 3, 1, 2).float() / 255


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
