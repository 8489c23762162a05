"""The fabric profile: one folder that holds all that a line needs to inspect one fabric.

::

    twill/
      profile.json          what it is: network, threshold, scale, recipe, training, and the hash of each file
      profile.sha256        the hash of profile.json, in the form that sha256sum -c reads
      weights.safetensors   the network
      texture.safetensors   how the learned cloth looks, to notice another cloth
      detector.safetensors  the detector, if one was learned beside it
      normality.safetensors what good cloth looks like, for defects that no label covers
      before/ …             what the last good cloth that was taught changed, as it was, to take it back
      camera.safetensors    the lines that the camera draws, if it draws any: the gain of its columns
      engines/ …            the networks as ONNX and OpenVINO files, after 'loomsight export'
      samples/01.png …      a few pictures of the learned cloth
      made/ …               tiles with made defects, and their masks, one below the other
      report.html           how it was learned

It is sealed: see :mod:`loomsight.sealed`. It is read here, and written by :mod:`loomsight.learn.saving`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from loomsight.card import EXPORTS, Card, EngineCard, Runtime
from loomsight.errors import ProfileError, UsageError
from loomsight.fabric.flat_field import FlatField
from loomsight.fabric.images import read_image
from loomsight.fabric.margin import Margin
from loomsight.fabric.types import Mask, Picture
from loomsight.sealed import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from loomsight.anomaly.normality import Normality
    from loomsight.detection.deeplab import Segmenter
    from loomsight.detection.rtdetr import Detector
    from loomsight.runtime.compiled import Compiled
    from loomsight.runtime.engine import DetectorEngine, SegmenterEngine, UnionEngine
    from loomsight.runtime.gate import GatedEngine

SCHEMA = 1
"""The version of the folder's form; a newer one is refused, an older one will be read."""
WEIGHTS, TEXTURE, CAMERA = "weights.safetensors", "texture.safetensors", "camera.safetensors"
DETECTOR, NORMALITY = "detector.safetensors", "normality.safetensors"
BEFORE = "before/"
REPORT = "report.html"
MADE, MASKS = "made/pictures.png", "made/masks.png"
ENGINES = "engines/"
EARLIER = "an earlier version of the program taught it, and did not keep what it added"
"""Why a lesson of then cannot be taken back."""
_FASTEST: tuple[Runtime, ...] = ("openvino-int8", "openvino-fp16", "openvino")
NETWORK, FORMS = "deeplab", ("lite", "paper")
"""What ``network.name`` and its setting ``form`` can be: see :func:`loomsight.detection.deeplab.build`."""
KIND = Kind(
    "profile",
    SCHEMA,
    ProfileError,
    made_by="give the folder that loomsight learn made",
    again="copy it again, or learn the fabric again",
)
"""How such a folder is sealed and refused."""
CARD = KIND.card


@dataclass(frozen=True, slots=True)
class Profile:
    """A fabric profile that was verified when it was opened."""

    folder: Path
    card: Card

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def threshold(self) -> float:
        """The score, in [0, 1], above which a pixel is defective."""
        return self.card.operating_point.threshold

    @property
    def lessons(self) -> list[dict[str, JsonValue]]:
        """What it was taught, in order: see :func:`loomsight.learn.renew.teach`."""
        listed = cast(list[dict[str, JsonValue]], self.card.training.get("lessons", []))
        return [
            dict(one) if "number" in one else {"number": number, **one, "final": EARLIER}
            for number, one in enumerate(listed, 1)
        ]

    @property
    def scale(self) -> float | None:
        """Millimetres per pixel, or None when nobody said."""
        return self.card.mm_per_px

    @property
    def margin(self) -> Margin:
        """What was left out at either selvedge when the fabric was learned."""
        return Margin(self.card.margin, self.scale, self.card.along)

    def before(self) -> tuple[Card, Normality, dict[str, NDArray[Any]] | None]:
        """What the last good cloth that was taught changed, as it was; there must be some.

        Returns:
            The card; the normality; and how the cloth looks, None where that did not change.

        Raises:
            ProfileError: a file is not its own.
        """
        changed = self.card.model_dump(mode="json") | cast(dict[str, Any], self.card.training["before"])
        card = Card.model_validate_json(json.dumps(changed))
        texture = self._texture(BEFORE + TEXTURE) if BEFORE + TEXTURE in self.card.files else None
        return card, self._normality(BEFORE + NORMALITY), texture

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Open a profile and verify every file in it.

        Raises:
            ProfileError: it is missing, incomplete, damaged or of a newer version; it names the file.
        """
        folder = Path(folder)
        card = KIND.open(folder, Card)
        KIND.verify(folder, card.files)
        if WEIGHTS not in card.files:
            raise ProfileError(
                "the profile is incomplete", where=folder, why=f"{WEIGHTS} is not listed in it"
            )
        return cls(folder, card)

    def promising(self, false_alarms: float) -> Self:
        """The same profile with another promise, in its unit; only in memory, nothing is written.

        Raises:
            UsageError: the threshold cannot be moved so far, or a detector has its say in it, of which an
                earlier version kept too little.
        """
        point, boxed = self.card.operating_point.moved(false_alarms), self.card.detector
        if boxed is not None:
            if boxed.margins is None:
                raise UsageError(
                    "the promise cannot be changed",
                    where=self.folder,
                    why="it does not say what segmenter and detector found together on good cloth",
                    do="learn again with --false-alarms",
                )
            fusion = boxed.fusion.set_by(boxed.margins.moved(false_alarms), point)
            boxed = boxed.model_copy(update={"fusion": fusion})
        # A gate keeps what lies above the threshold that it was set for, not what lies above a lower one.
        gate = self.card.gate if point.threshold >= self.threshold else None
        changes = {"operating_point": point, "gate": gate, "detector": boxed}
        return replace(self, card=self.card.model_copy(update=changes))

    def read(self, name: str) -> bytes:
        """The bytes of one of its files, verified again as they are read.

        Raises:
            ProfileError: the file is not listed, gone, or has changed since the profile was opened.
        """
        return KIND.read(self.folder, name, self.card.files)

    def texture(self) -> dict[str, NDArray[Any]]:
        """The arrays that describe the learned cloth; empty when none were saved."""
        return self._texture(TEXTURE) if TEXTURE in self.card.files else {}

    def _texture(self, name: str) -> dict[str, NDArray[Any]]:
        import safetensors
        import safetensors.numpy

        try:
            return safetensors.numpy.load(self.read(name))
        except safetensors.SafetensorError as error:
            raise KIND.damaged(self.folder / name) from error

    def camera(self) -> FlatField | None:
        """The lines that the camera draws; None where it draws none."""
        import safetensors
        import safetensors.numpy

        if CAMERA not in self.card.files:
            return None
        try:
            gains = safetensors.numpy.load(self.read(CAMERA))["gains"]
        except (safetensors.SafetensorError, KeyError) as error:
            raise KIND.damaged(self.folder / CAMERA) from error
        if gains.ndim != 1 or not (np.isfinite(gains) & (gains > 0)).all():
            raise KIND.damaged(self.folder / CAMERA)
        return FlatField(gains.astype(np.float32))

    def weights(self) -> dict[str, Tensor]:
        """The network's state dict."""
        return self._tensors(WEIGHTS)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load(self.read(name))
        except safetensors.SafetensorError as error:
            raise KIND.damaged(self.folder / name) from error

    def samples(self) -> list[Picture]:
        """The pictures of the learned cloth that it keeps."""
        names = sorted(name for name in self.card.files if name.startswith("samples/"))
        return [self._picture(name) for name in names]

    def made(self) -> list[tuple[Picture, Mask]]:
        """Tiles with made defects, uint8 HWC RGB, and their masks; none where it was learned without."""
        if MADE not in self.card.files:
            return []
        tiles, masks = self._picture(MADE), self._picture(MASKS)
        side = tiles.shape[1]  # tiles are square, one below the other
        return [(tiles[top : top + side], masks[top : top + side] > 0) for top in range(0, len(tiles), side)]

    def _picture(self, name: str) -> Picture:
        self.read(name)
        return read_image(self.folder / name)

    @property
    def fastest(self) -> Runtime:
        """The fastest runtime that it can be run in: torch on a GPU, else what it was exported for."""
        import torch

        if torch.cuda.is_available():
            return "torch"
        able = (runtime for runtime in _FASTEST if self._exported("segmenter", runtime) is not None)
        return next(able, "torch")

    def _exported(self, network: str, runtime: Runtime) -> EngineCard | None:
        """The card of an exported network; where it has not that precision, that of the nearest it has."""
        own = [one for one in self.card.engines if one.network == network]
        if runtime == "torch" or not own:
            return None
        format_, precision = EXPORTS[runtime]
        order = {"int8": ("int8", "fp16", "fp32"), "fp16": ("fp16", "fp32"), "fp32": ("fp32",)}[precision]
        exact = network == "segmenter"  # it gives the runtime its name
        for wanted in order[:1] if exact else order:
            for one in own:
                if (one.format, one.precision) == (format_, wanted):
                    return one
        return None

    def compiled(self, network: str, runtime: Runtime, *, threads: int | None = None) -> Compiled | None:
        """An exported network in its runtime; None where there is no such export.

        Every byte is compared with its hash, and an ONNX file looked through for data that lies elsewhere,
        before the runtime sees any of it.

        Raises:
            ProfileError: the file was changed.
            ExportError: it would read other files, holds another network, or the runtime cannot run it.
        """
        card = self._exported(network, runtime)
        if card is None:
            return None
        from loomsight.runtime.compiled import OnnxCompiled, OpenVinoCompiled
        from loomsight.runtime.engine import GRAPHS
        from loomsight.runtime.files import check_onnx, check_openvino

        model, where, outputs = self.read(card.model), self.folder / card.model, GRAPHS[network].outputs
        if card.format == "onnx":
            check_onnx(model, where=where)
            return OnnxCompiled(model, step=card.step, threads=threads, outputs=outputs, where=where)
        weights = self.read(card.weights or "")
        check_openvino(model, weights, where=where)
        return OpenVinoCompiled(
            model,
            weights,
            step=card.step,
            exact=card.exact,
            alone=network in {"features", "student"},
            threads=threads,
            runtime=f"OpenVINO {card.precision}",
            outputs=outputs,
            where=where,
        )

    def engine(
        self,
        runtime: Runtime = "torch",
        *,
        corrected: bool = False,
        largest: tuple[int, int] | Literal["measured"] | None = None,
    ) -> SegmenterEngine | UnionEngine:
        """The engine that turns a picture into a score map; torch is loaded here and not before.

        With a normality the map is the union of both.

        Args:
            runtime: what runs the networks; all but torch need an export.
            corrected: the lines of the camera are out of the pictures already.
            largest: height and width of a tile at most, or measured at first use; 512 × 512 if None.

        Raises:
            ProfileError: the network is unknown to this program, or the weights are not its own.
            UsageError: the profile was not exported for the runtime.
        """
        from loomsight.runtime.compiled import TorchCompiled
        from loomsight.runtime.engine import LARGEST, SegmenterEngine, UnionEngine
        from loomsight.runtime.graphs import SegmenterGraph

        self._check_network()
        compiled = self.compiled("segmenter", runtime)
        if compiled is None:
            if runtime != "torch":
                raise UsageError(
                    f"the profile has no engine for {runtime}",
                    where=self.folder,
                    do=f"loomsight export {self.folder}",
                )
            network = self.segmenter()
            compiled, given = TorchCompiled(SegmenterGraph(network)), lambda: network
        else:
            given = partial(self._built, self.weights())  # read now: the file may change during a long run
        camera = None if corrected else self.camera()
        engine = SegmenterEngine(compiled, given, camera, largest=largest or LARGEST)
        normality, united = self.normality(runtime), self.card.normality
        if normality is None or united is None:
            return engine
        return UnionEngine(engine, normality, united.union)

    def gated(self, engine: SegmenterEngine | UnionEngine, *, audits: bool = True) -> GatedEngine | None:
        """The engine with the profile's gate before it; None where it has no gate.

        The gate runs in OpenVINO, whatever runs the engine. Without ``audits`` no picture is looked at in
        full.
        """
        card, point = self.card.gate, self.card.operating_point
        if card is None:
            return None
        from loomsight.runtime.gate import GatedEngine

        gate = self.compiled("gate", "openvino-int8")
        if gate is None:
            raise ProfileError("the profile is incomplete", where=self.folder, why="its gate is missing")
        return GatedEngine(
            gate,
            card.threshold,
            card.near,
            card.channels,
            engine,
            point=(point.threshold, point.grouping),
            worth=card.worth,
            audits=audits,
            group=card.group,
        )

    def segmenter(self) -> Segmenter:
        """The network as it was learned, in torch.

        Raises:
            ProfileError: the network is unknown to this program, or the weights are not its own.
        """
        self._check_network()
        return self._built(self.weights())

    def _built(self, weights: Mapping[str, Tensor]) -> Segmenter:
        from loomsight.detection import deeplab

        settings = self.card.network.settings
        types = [str(name) for name in cast(list[JsonValue], settings.get("types", []))]
        network = deeplab.build(cast(deeplab.Form, settings["form"]), pretrained=False, types=types)
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:  # torch's word for missing or unexpected weights
            why = "these are not the weights of its network"
            raise ProfileError("the profile cannot be used", where=self.folder / WEIGHTS, why=why) from error
        return network

    def _check_network(self) -> None:
        card = self.card.network
        if card.name != NETWORK or card.settings.get("form") not in FORMS:
            why = f"this program does not know its network, {card.name} {dict(card.settings)}"
            raise ProfileError("the profile cannot be used", where=self.folder / CARD, why=why)

    def normality(self, runtime: Runtime = "torch") -> Normality | None:
        """What tells how strange a place is; None where none was learned.

        Its networks run as they were exported for the runtime: the student, and what a memory compares by.

        Raises:
            ProfileError: its file is not its own.
        """
        if self.card.normality is None:
            return None
        normality = self._normality(NORMALITY)
        if runtime != "torch":
            from loomsight.runtime.engine import hasten

            hasten(normality, *(self.compiled(name, runtime) for name in ("features", "student")))
        return normality

    def _normality(self, name: str) -> Normality:
        import safetensors
        import safetensors.numpy

        from loomsight.anomaly.normality import Normality

        try:
            return Normality.from_arrays(safetensors.numpy.load(self.read(name)))
        except safetensors.SafetensorError as error:
            raise KIND.damaged(self.folder / name) from error
        except ValueError as error:  # whole, but of another version of this program
            do = "learn the fabric again"
            raise ProfileError(
                "the profile cannot be used", where=self.folder / name, why=str(error), do=do
            ) from error

    def detector(self, runtime: Runtime = "torch") -> DetectorEngine | None:
        """What boxes and names defects beside the engine; None where none was learned.

        Raises:
            ProfileError: the weights are not its own.
        """
        card = self.card.detector
        if card is None:
            return None
        from loomsight.runtime.engine import DetectorEngine, TorchDetector

        compiled = self.compiled("detector", runtime)
        if compiled is not None:
            return DetectorEngine(compiled, card.types, card.tile, self.camera())
        return TorchDetector(self.detector_network(), card.tile, self.camera())

    def detector_network(self) -> Detector:
        """The detector as it was learned, in torch; there must be one.

        Raises:
            ProfileError: the weights are not its own.
        """
        from loomsight.detection import rtdetr

        assert self.card.detector is not None  # noqa: S101 — said above
        card = self.card.detector
        network = rtdetr.build(card.form, card.types, pretrained=False)
        try:
            network.load_state_dict(self._tensors(DETECTOR))
        except RuntimeError as error:
            why = "these are not the weights of its detector"
            raise ProfileError("the profile cannot be used", where=self.folder / DETECTOR, why=why) from error
        return network
