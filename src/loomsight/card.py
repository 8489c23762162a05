"""What ``profile.json`` says: the card of a fabric profile, field by field."""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, JsonValue

from loomsight.anomaly.calibration import UnionPoint
from loomsight.anomaly.drift import DriftCard
from loomsight.config import Config
from loomsight.detection.fusion import FusionPoint
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.margin import Along
from loomsight.sealed import FileCard

Runtime = Literal["torch", "onnxruntime", "openvino", "openvino-fp16", "openvino-int8"]
"""What can run a profile's networks: as they were learned, or as they were exported."""
RUNTIMES = get_args(Runtime)
EXPORTS: dict[Runtime, tuple[str, str]] = {
    "onnxruntime": ("onnx", "fp32"),
    "openvino": ("openvino", "fp32"),
    "openvino-fp16": ("openvino", "fp16"),
    "openvino-int8": ("openvino", "int8"),
}
"""The format and the precision of the files that a runtime runs."""
DetectorForm = Literal["lite0", "resnet18", "resnet50"]
"""As :func:`loomsight.detection.rtdetr.build` has them."""


_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


def wrong_in_name(name: str) -> str:
    """Why a fabric cannot have this name, which is to be a folder's name on every system; empty if it can."""
    wrong = sorted({char for char in name if not (char.isalnum() or char in "-_. ")})
    if not name.strip() or len(name) > 80:
        return "it must have 1 to 80 characters"
    if wrong:
        return f"{' '.join(repr(char) for char in wrong)} cannot stand in a name"
    if name[0] in ". -" or name[-1] in ". ":
        return "it must begin with a letter or a digit, and not end with a dot or a space"
    if name.partition(".")[0].strip().lower() in _RESERVED:
        return "some systems keep this name for a device"
    return ""


def _nameable(name: str) -> str:
    if why := wrong_in_name(name):
        raise ValueError(why)
    return name


def _possible(point: OperatingPoint) -> OperatingPoint:
    if not (
        0 <= point.threshold <= 1
        and all(
            0 < number < math.inf for number in (point.promised, point.megapixels_seen, point.alarms_allowed)
        )
        and point.min_area >= 1
        and point.merge_gap >= 0
        and 0 <= point.faint <= 1
    ):
        raise ValueError("no operating point has these numbers")
    return point


def _fusible(point: FusionPoint) -> FusionPoint:
    scores = point.segmenter, point.detector, 1 if point.threshold is None else point.threshold
    if not (all(0 < score <= 1 for score in scores) and 0 <= point.faint <= 1 and abs(point.margin) < 100):
        raise ValueError("no fusion has these numbers")
    return point


class NetworkCard(Config):
    """Which network the weights belong to, and the settings that build it."""

    name: str
    settings: dict[str, JsonValue] = {}


class DetectorCard(Config):
    """The detector beside the network, and how both are fused.

    ``margins``: the evidence of both on good cloth, from which another promise is set.
    """

    form: DetectorForm
    types: tuple[str, ...] = Field(min_length=1)
    tile: int = Field(ge=64, le=4096)
    fusion: Annotated[FusionPoint, AfterValidator(_fusible)]
    margins: Annotated[OperatingPoint, AfterValidator(_possible)] | None = None


def _unitable(point: UnionPoint) -> UnionPoint:
    scales = point.segmenter_scale, point.strangeness_scale
    if not (0 < point.segmenter <= 1 and 0 < point.strangeness <= 1 and all(0 < s < 100 for s in scales)):
        raise ValueError("no union has these numbers")
    return point


class NormalityCard(Config):
    """What tells how strange a place is, and how that is united with the network's map."""

    methods: tuple[str, ...] = Field(min_length=1)
    union: Annotated[UnionPoint, AfterValidator(_unitable)]


class EngineCard(Config):
    """One exported network: its files, and how it agreed with torch when it was written.

    ``exact``: what is no INT8 is computed in float32.
    """

    network: Literal["segmenter", "detector", "features", "student", "gate"]
    format: Literal["onnx", "openvino"]
    precision: Literal["fp32", "fp16", "int8"]
    model: str
    weights: str | None = None
    step: int = Field(ge=1, le=1024)
    exact: bool = True
    agreement: dict[str, float] = {}


class GateCard(Config):
    """What says of most cloth that it is surely good.

    ``group`` is how many pixels of a row it takes as one, ``threshold`` the logit from which on a cell
    passes, ``near`` the score from which on a block that passed is looked at once more, ``worth`` the share
    of blocks that may pass before looking at everything would be quicker, ``rate`` the share of good cloth
    that the networks looked at behind it, ``defects`` the number of made defects that the thresholds were
    set on.
    """

    channels: Literal[1, 3]
    group: Literal[1, 4] = 1
    threshold: float = Field(allow_inf_nan=False)
    near: float = Field(ge=0, le=1)
    worth: float
    rate: float
    defects: int


class Card(Config):
    """What ``profile.json`` says. ``created`` is UTC, ISO 8601; ``mm_per_px`` is null when unknown.

    ``margin`` was left out at either selvedge, millimetres, or pixels without a scale; ``along`` is the
    pictures' axis that runs along the roll.
    """

    schema_version: int
    name: Annotated[str, AfterValidator(_nameable)]
    created: str
    program: str
    network: NetworkCard
    mm_per_px: float | None = Field(gt=0, allow_inf_nan=False)
    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    along: Along = "y"
    operating_point: Annotated[OperatingPoint, AfterValidator(_possible)]
    detector: DetectorCard | None = None
    normality: NormalityCard | None = None
    drift: DriftCard | None = None
    engines: tuple[EngineCard, ...] = ()
    gate: GateCard | None = None
    texture: dict[str, JsonValue] = {}
    recipe: dict[str, JsonValue] = {}
    training: dict[str, JsonValue] = {}
    files: dict[str, FileCard]
