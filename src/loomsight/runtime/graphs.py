"""Networks as every runtime runs them: uint8 tiles in, what an engine needs out.

Whatever can stand in the graph does: colours and their range, the logistic function, the return to the
picture's resolution. So an exported file takes a camera's bytes, and torch runs the very same steps.
"""

from __future__ import annotations

from typing import Any

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
        boxed: whether it gives scores, types and boxes, and after them what its stages hand on, from which it
            can go on: which of two boxes comes in a hair can change.
        rounded: whether it reads the nearest cell: which that is a hair can change too.
        free: whether tiles of any such size can be looked at; if not, only those of the size it learned from.
    """

    step: int = 1
    outputs: tuple[str, ...]
    free: bool = True
    boxed: bool = False
    rounded: bool = False


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

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, tiles: UInt8[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b q"], Float[Tensor, "b q types"], Float[Tensor, "b q 4"]]:
        defect, types, boxes = self.network(_pictures(tiles))
        return defect.float().sigmoid(), types.float(), boxes.float()


class DetectorStages(Graph):
    """A detector as it is exported: after its answer what its stages hand on.

    That is of the places that the decoder begins with how sure of them the encoder is, surest first, and
    which they are; and the backbone's features. So each stage of an exported file is compared with torch's on
    the same input: rounding neither decides what the decoder begins with nor grows from stage to stage.
    """

    outputs = (*DetectorGraph.outputs, "ranks", "queries", "fine", "middle", "coarse")
    free = False
    boxed = True

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.detector = DetectorGraph(network)
        self.rounded = network.sampling == "discrete"

    def forward(self, tiles: UInt8[Tensor, "b h w 3"], *handed: Tensor) -> tuple[Tensor, ...]:
        """Look at tiles.

        Args:
            handed: what another runtime's stages handed on, from "ranks" on, which each stage goes on from.
        """
        network, own = self.detector.network.network, dict[str, Any]()
        _, queries, *features = handed or (None, None)

        def backbone(_module: nn.Module, _given: Any, levels: Any) -> Any:
            own["features"] = [level for level, _ in levels]
            masks = [mask for _, mask in levels]
            return list(zip(features, masks, strict=True)) if features else None

        def encoder(_module: nn.Module, _given: Any, scores: Tensor) -> Tensor | None:
            own["scores"] = scores.max(-1).values
            if queries is None:
                return None
            order = torch.arange(queries.shape[1], 0, -1, device=scores.device, dtype=scores.dtype)
            at = queries[..., None].expand(-1, -1, scores.shape[-1])
            return torch.zeros_like(scores).scatter(1, at, order[None, :, None].expand(at.shape))

        hooks = (
            network.model.backbone.register_forward_hook(backbone),
            network.model.enc_score_head.register_forward_hook(encoder),
        )
        try:
            answer = self.detector(tiles)
        finally:
            for hook in hooks:
                hook.remove()
        if queries is None:
            ranks, queries = own["scores"].topk(network.config.num_queries)
        else:
            ranks = own["scores"].gather(1, queries)
        return *answer, ranks, queries, *own["features"]


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
