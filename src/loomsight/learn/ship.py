"""Export a profile: its networks as files that need no torch, tried before they are written.

What they are tried on is the fabric's own: pictures of good cloth, and tiles with made defects that its
networks learned from nothing like.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

from loomsight.anomaly.features import STEP as FEATURES_STEP
from loomsight.anomaly.memory import Memory
from loomsight.anomaly.student import STEP as STUDENT_STEP
from loomsight.anomaly.student import Student
from loomsight.card import EngineCard, GateCard
from loomsight.errors import DatasetError, ExportError, UsageError
from loomsight.fabric.images import to_rgb
from loomsight.fabric.regions import Grouping
from loomsight.fabric.types import Picture
from loomsight.learn.gate import gate_thresholds, learn_gate, same_blocks
from loomsight.learn.saving import save_exports
from loomsight.profile import ENGINES, Profile
from loomsight.progress import Progress
from loomsight.runtime.compiled import OpenVinoCompiled, TorchCompiled
from loomsight.runtime.engine import SegmenterEngine, UnionEngine
from loomsight.runtime.export import Exported, Precision, Trials, export_network
from loomsight.runtime.gate import GROUP, OVERHEAD, GatedEngine, GateGraph, gate_input, grouped
from loomsight.runtime.graphs import DetectorStages, FeaturesGraph, Graph, SegmenterGraph, StudentGraph

GOOD_TILES = 24
"""Tiles of good cloth that exports are tried on, beside those with made defects."""
WORTH = 0.8
"""A gate is kept where it and what it passes take less than this share of the time of looking at all."""
_TIMED = 12  # good pictures that a gate is timed on
_STRANGE = 0.99  # the share of the tiles' places that lies below the threshold of a student's trials


def export_profile(
    profile: Profile,
    *,
    good: Sequence[Picture] = (),
    gate_seconds: float = 200.0,
    discrete: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Export all networks of a profile into its folder, one after the other; earlier exports are replaced.

    Args:
        profile: of the fabric.
        good: pictures of good cloth, from which a gate is learned; without them there is none.
        gate_seconds: for that.
        discrete: the detector reads the nearest cell, so that its graph needs no GridSample.

    Returns:
        the profile, with what was exported in its card.

    Raises:
        UsageError: the network has no export, or the profile nothing to try it on.
        ExportError: of some network no file agrees with torch; all others are written.
    """
    progress = progress or Progress()
    engines = {card.model: (card, model, weights) for card, model, weights in _files(profile)}
    refused: dict[str, ExportError] = {}
    for name, graph, trials in _networks(profile, discrete=discrete):
        progress.say(f"exporting the {name}")
        # What the memory compares by is measured in distances, which less than float32 would change.
        precisions: tuple[Precision, ...] = ("fp32",) if name == "features" else ("fp32", "fp16", "int8")
        made: dict[str, _File] = {}
        try:
            _check_size(profile, name, trials)
            for one in export_network(graph, name, trials, precisions=precisions, progress=progress):
                file = _card(one, graph.step)
                made[file[0].model] = file
            engines = {model: file for model, file in engines.items() if file[0].network != name}
        except ExportError as error:
            refused[name] = error
            progress.say(str(error))
        finally:  # also where it is stopped: what is done is kept, and of the rest what there was
            engines |= made
            # An earlier gate stays as long as there is no other.
            profile = save_exports(profile, list(engines.values()), profile.card.gate)
    profile = _with_gate(profile, good, gate_seconds, seed, progress)
    if refused:
        helps = "--sampling discrete may help; " if "detector" in refused and not discrete else ""
        raise ExportError(
            "not all was exported",
            where=profile.folder,
            why="; ".join(f"{name}: {error.why}" for name, error in refused.items()),
            do=f"{helps}all else is written, and what is not runs in torch",
        )
    return profile


_File = tuple[EngineCard, bytes, bytes]
"""Of an exported network its card, the bytes of its model and of its weights."""


def _files(profile: Profile) -> list[_File]:
    """What was exported of a profile."""
    cards = profile.card.engines
    return [
        (one, profile.read(one.model), profile.read(one.weights) if one.weights else b"") for one in cards
    ]


def _with_gate(
    profile: Profile, good: Sequence[Picture], seconds: float, seed: int, progress: Progress
) -> Profile:
    """The profile with the gate that is learned from good cloth, if one pays."""
    if not len(good):
        return profile
    if profile.card.detector is not None:
        progress.say("no gate: a detector looks at whole pictures, so beside one it would not be used")
        return profile
    progress.say("learning the gate")
    gate = _gate(profile, good, seconds, seed, progress)
    others = [file for file in _files(profile) if file[0].network != "gate"]
    if gate is None:
        return save_exports(profile, others)
    card, files = gate
    return save_exports(profile, [*others, *files], card)


def _check_size(profile: Profile, name: str, trials: Trials) -> None:
    """Whether the detector can be tried on the tiles that there are.

    Raises:
        ExportError: it looks at tiles of another size.
    """
    card, side = profile.card.detector, trials.tiles.shape[1]
    if name == "detector" and card is not None and side != card.tile:
        why = f"it looks at tiles of {card.tile} pixels, and those kept to try it on have {side}"
        raise ExportError("not exported", where=profile.folder, why=why)


def _gate(
    profile: Profile, good: Sequence[Picture], seconds: float, seed: int, progress: Progress
) -> tuple[GateCard, list[_File]] | None:
    """A gate and its files; None, and a word why, where none pays."""
    point = profile.card.operating_point
    engine, camera = profile.engine(profile.fastest, corrected=True), profile.camera()
    margin = profile.margin  # what lies there says nothing of how much passes
    pictures = [margin.between(image if camera is None else camera.correct(image)) for image in good]
    try:
        learned = learn_gate(engine, pictures, point.threshold, seconds=seconds, seed=seed, progress=progress)
    except DatasetError as error:
        progress.say(f"no gate: {error.why}")
        return None
    tiles = grouped(np.stack([gate_input(one.image, learned.channels) for one in learned.held[:8]]))
    graph = GateGraph(learned.network)
    exports = export_network(
        graph,
        "gate",
        Trials(tiles, None, 0.0),
        precisions=("fp32", "int8"),
        progress=progress,
        free=True,
    )
    *cards, (quick, model, weights) = (_card(one, graph.step) for one in exports)
    gate = OpenVinoCompiled(model, weights, step=graph.step, exact=False)
    at = point.threshold, point.grouping
    found = gate_thresholds(gate, learned.channels, engine, learned.held, at)
    if not np.isfinite(found.cell):
        progress.say(f"no gate: the {found.defects} defects found are too few to promise anything")
        return None
    # INT8 is what runs, and what the thresholds are set on: how it differs from torch costs no defect.
    same = same_blocks(gate, TorchCompiled(graph), learned.channels, learned.held, found.cell)
    agreement = {"same_blocks": round(same, 5)}
    cards.append((quick.model_copy(update={"agreement": agreement}), model, weights))
    gated = GatedEngine(gate, found.cell, found.near, learned.channels, engine, point=at, audits=False)
    cost = _cost(gated, engine, learned.apart)
    if cost >= WORTH or gated.count.rate > WORTH:
        progress.say(
            f"no gate: behind it the networks would look at {gated.count.rate:.0%} of good cloth and take "
            f"{cost:.0%} of the time of looking at everything"
        )
        return None
    card = GateCard(
        channels=learned.channels,
        group=GROUP,
        threshold=found.cell,
        near=found.near,
        worth=WORTH / OVERHEAD,
        rate=gated.count.rate,
        defects=found.defects,
    )
    return card, cards


def _cost(gated: GatedEngine, engine: SegmenterEngine | UnionEngine, good: Sequence[Picture]) -> float:
    """The time that good cloth takes behind the gate, as a share of that without; it counts what passes."""
    some = [good[int(at)] for at in np.linspace(0, len(good) - 1, min(len(good), _TIMED))]
    took = []
    for _ in range(2):  # the first time compiles
        for work in (lambda: gated.looks(some), lambda: engine.scores(some)):
            began = time.perf_counter()
            for _ in work():
                pass
            took.append(time.perf_counter() - began)
    return took[2] / took[3]


def _networks(profile: Profile, *, discrete: bool) -> Iterator[tuple[str, Graph, Trials]]:
    form = profile.card.network.settings.get("form")
    if form != "lite":
        raise UsageError(
            f"the {form} network is not exported",
            where=profile.folder,
            why="it is for research, ten times slower than lite",
            do="learn with --network lite",
        )
    point, united = profile.card.operating_point, profile.card.normality
    threshold = united.union.segmenter if united is not None else point.threshold
    pieces = Grouping(point.min_area, point.merge_gap)  # of each network alone: what is faint is the union's
    tiles, masks = _tiles(profile)
    yield "segmenter", SegmenterGraph(profile.segmenter()), Trials(tiles, masks, threshold, pieces)
    if profile.card.detector is not None:
        network = profile.detector_network()
        network.sample("discrete" if discrete else "bilinear")
        card = profile.card.detector
        yield "detector", DetectorStages(network), Trials(tiles, masks, card.fusion.detector, pieces)
    normality = profile.normality()
    if normality is not None:
        for method in normality.by_name.values():
            if isinstance(method, Memory):
                even = np.stack([normality.even(tile) for tile in tiles[:GOOD_TILES]])
                side = even.shape[1] // FEATURES_STEP * FEATURES_STEP
                yield "features", FeaturesGraph(method.features), Trials(even[:, :side, :side], None, 0.0)
            if isinstance(method, Student):
                even = np.stack([normality.even(tile) for tile in tiles])
                side = even.shape[1] // STUDENT_STEP * STUDENT_STEP
                even, some = even[:, :side, :side], masks[:, :side, :side]
                said = np.concatenate([method.strangeness(tile) for tile in even])
                yield (
                    "student",
                    StudentGraph(method),
                    Trials(even, some, float(np.quantile(said, _STRANGE)), pieces),
                )


def _tiles(profile: Profile) -> tuple[UInt8[NDArray[np.uint8], "n h w 3"], Bool[NDArray[np.bool_], "n h w"]]:
    """Tiles with made defects, and as large ones of good cloth, with their masks."""
    made = profile.made()
    if not made:
        raise UsageError(
            "nothing to try an export on",
            where=profile.folder,
            why="the profile is of an earlier version and keeps no made defects",
            do="learn the fabric again",
        )
    side = made[0][0].shape[0]
    good = _windows(profile.samples(), side)
    tiles = np.stack([tile for tile, _ in made] + good)
    masks = np.stack([mask for _, mask in made] + [np.zeros((side, side), np.bool_)] * len(good))
    return tiles, masks


def _windows(pictures: Sequence[Picture], side: int) -> list[Picture]:
    """Windows of good cloth, spread over the pictures."""
    rng = np.random.default_rng(0)
    large = [image for image in pictures if min(image.shape[:2]) >= side]
    windows = []
    for number in range(GOOD_TILES if large else 0):
        image = large[number % len(large)]
        top, left = (int(rng.integers(room - side + 1)) for room in image.shape[:2])
        windows.append(to_rgb(image[top : top + side, left : left + side]))
    return windows


def _card(one: Exported, step: int) -> _File:
    stem = one.network if one.format == "onnx" else f"{one.network}-{one.precision}"
    suffix = ".onnx" if one.format == "onnx" else ".xml"
    card = EngineCard(
        network=one.network,
        format=one.format,
        precision=one.precision,
        model=f"{ENGINES}{stem}{suffix}",
        weights=None if one.format == "onnx" else f"{ENGINES}{stem}.bin",
        step=step,
        exact=one.exact,
        agreement=one.agreement,
    )
    return card, one.model, one.weights
