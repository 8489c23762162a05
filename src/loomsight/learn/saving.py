"""How a profile is written: learned, renewed, exported; whole, or as it was.

What is in the folder is said in :mod:`loomsight.profile`, which reads it. It is written beside its place,
sealed, and put there in one step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from loomsight import __version__
from loomsight.anomaly.drift import DriftCard
from loomsight.card import Card, DetectorCard, EngineCard, GateCard, NormalityCard, wrong_in_name
from loomsight.errors import ProfileError, UsageError
from loomsight.evaluation.operating_point import OperatingPoint
from loomsight.fabric.flat_field import FlatField
from loomsight.fabric.images import to_rgb, write_png
from loomsight.fabric.margin import Margin
from loomsight.fabric.types import Mask, Picture
from loomsight.files import new_folder, write_bytes, write_text
from loomsight.profile import (
    BEFORE,
    CAMERA,
    DETECTOR,
    ENGINES,
    KIND,
    MADE,
    MASKS,
    NETWORK,
    NORMALITY,
    REPORT,
    SCHEMA,
    TEXTURE,
    WEIGHTS,
    Profile,
)

if TYPE_CHECKING:
    from torch import Tensor

_OF_GOOD = ("operating_point", "normality", "drift", "detector")  # what good cloth changes of a card
_TAUGHT = rb'<p class="taught"><b>Changed since: .*?</b></p>'
_CHANGED = _TAUGHT.replace(b' class="taught"', b'(?: class="taught")?')


def save_profile(
    folder: Path,
    *,
    name: str,
    form: str,
    types: Sequence[str] = (),
    weights: Mapping[str, Tensor],
    operating_point: OperatingPoint,
    mm_per_px: float | None = None,
    margin: Margin | None = None,
    texture: Mapping[str, NDArray[Any]] | None = None,
    texture_facts: Mapping[str, JsonValue] | None = None,
    camera: FlatField | None = None,
    detector: tuple[DetectorCard, Mapping[str, Tensor]] | None = None,
    normality: tuple[NormalityCard, Mapping[str, NDArray[Any]]] | None = None,
    drift: DriftCard | None = None,
    recipe: Mapping[str, JsonValue] | None = None,
    training: Mapping[str, JsonValue] | None = None,
    samples: Sequence[Picture] = (),
    made: Sequence[tuple[Picture, Mask]] = (),
    report: str = "",
    replace: bool = False,
) -> Profile:
    """Write a profile folder, whole or not at all, and open it.

    Args:
        folder: where; must not exist, or be empty, or with ``replace`` be an earlier profile.
        form: of the network, "lite" or "paper"; types: what it tells apart.
        weights: the network's state dict; NaN and infinity are refused.
        margin: what was left out at either selvedge, and how the roll runs.
        texture: arrays that describe the known cloth, :meth:`Familiarity.to_arrays`; texture_facts: what
            goes with them: "backbone" and "source" of the encoder, and "fabric", this one's name there.
        detector: the detector learned beside the network, its card and its state dict.
        normality: what good cloth looks like, its card and :meth:`Normality.to_arrays`.
        drift: what a line compares its light, focus and cloth with.
        camera: the lines of the camera, which are taken out of each picture before it is scored.
        samples: pictures of the learned cloth, uint8 HW or HWC RGB.
        made: tiles of one size with made defects, uint8 HWC RGB, and their masks, to try exports on.
        report: the HTML of the learning report.

    Raises:
        UsageError: the name or the folder is wrong.
        ProfileError: a weight is not a number.
        StorageError: the disk is full or the folder cannot be written.
    """
    import safetensors.numpy
    import safetensors.torch

    check_name(name)
    check_target(folder, replace=replace)
    plain = _finite(weights)
    boxed = _finite(detector[1]) if detector is not None else None
    with new_folder(folder, replace=replace) as work:
        write_bytes(work / WEIGHTS, safetensors.torch.save(plain))
        write_bytes(work / TEXTURE, safetensors.numpy.save(_whole(texture or {})))
        if boxed is not None:
            write_bytes(work / DETECTOR, safetensors.torch.save(boxed))
        if normality is not None:
            write_bytes(work / NORMALITY, safetensors.numpy.save(_whole(normality[1])))
        if camera is not None:
            write_bytes(work / CAMERA, safetensors.numpy.save({"gains": camera.gains}))
        for number, picture in enumerate(samples, 1):
            write_png(work / "samples" / f"{number:02d}.png", picture)
        if made:
            write_png(work / MADE, np.concatenate([to_rgb(tile) for tile, _ in made]))
            masks = np.concatenate([mask for _, mask in made])
            write_png(work / MASKS, masks.astype(np.uint8) * 255)
        if report:
            write_text(work / REPORT, report)
        card = Card.parse(
            {
                "schema_version": SCHEMA,
                "name": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "program": f"loomsight {__version__}",
                "network": {"name": NETWORK, "settings": {"form": form, "types": list(types)}},
                "mm_per_px": mm_per_px,
                **_of_margin(margin or Margin()),
                "operating_point": operating_point,
                "detector": None if detector is None else detector[0],
                "normality": None if normality is None else normality[0],
                "drift": drift,
                "texture": dict(texture_facts or {}),
                "recipe": dict(recipe or {}),
                "training": dict(training or {}),
                "files": KIND.hashes(work),
            },
            where=f"profile {name}",
        )
        KIND.close(work, card)
    return Profile(folder, card)


def save_renewed(
    profile: Profile,
    *,
    normality: tuple[NormalityCard, Mapping[str, NDArray[Any]]],
    operating_point: OperatingPoint,
    drift: DriftCard | None,
    detector: DetectorCard | None = None,
    margin: Margin | None = None,
    texture: Mapping[str, NDArray[Any]] | None = None,
    lessons: Sequence[Mapping[str, JsonValue]] | None = None,
    lossy: bool | None = None,
    how: Literal["anew", "taught", "good taught", "taken back", "good taken back"],
    what: str,
    said: str | None = None,
) -> Profile:
    """The profile in its own folder with another normality; whole, or as it was.

    Args:
        normality, operating_point, drift, detector, margin: what takes the place of its own; without a
            detector or a margin those stay.
        texture: how the cloth looks, where that is renewed too.
        lessons: all that it is taught, where that changes.
        lossy: whether the files of good cloth that is taken in are compressed so that fine detail is lost;
            where they are of another kind than those before, an inspection no longer minds the kind.
        how: anew, and the report no longer tells of the old normality; taught, and where that was good
            cloth, :meth:`Profile.before` gives what was there before; taken back, and the report tells of
            lessons only what is ``said``.
        what: one line on why, for the card's training facts.
        said: the same for the report, if not that; nothing if empty.

    Raises:
        ProfileError: a file of it was damaged since it was opened.
        UsageError: something else lies in the folder, and would be lost.
        StorageError: the disk is full or the folder cannot be written.
    """
    import safetensors.numpy

    new = {NORMALITY: normality[1]} | ({} if texture is None else {TEXTURE: texture})
    files = {name: safetensors.numpy.save(_whole(arrays)) for name, arrays in new.items()}
    told, before = profile.card.training.get("renewed", []), profile.card.training.get("before")
    if how in {"anew", "good taken back"}:
        before = None
    elif how == "good taught":
        files |= {BEFORE + name: profile.read(name) for name in new if name in profile.card.files}
        before = profile.card.model_dump(mode="json", include=set(_OF_GOOD))
    # What was exported of the old normality, and the gate that answers for it, are no longer true.
    engines = [one for one in profile.card.engines if one.network in {"segmenter", "detector", "features"}]
    said, known = what if said is None else said, profile.card.training.get("lossy")
    return _rewritten(
        profile,
        files,
        {
            "normality": normality[0],
            "operating_point": operating_point,
            "drift": drift,
            "detector": detector or profile.card.detector,
            **_of_margin(margin or profile.margin),
            "engines": engines,
            "gate": None,
            "training": {
                **profile.card.training,
                "renewed": [*cast(list[JsonValue], told), what],
                "lessons": [dict(one) for one in (profile.lessons if lessons is None else lessons)],
                "before": before,
                "lossy": known if lossy in {None, known} else None,
            },
        },
        without=() if how in {"taught", "taken back"} else (BEFORE,),
        told=(
            {"anew": _CHANGED, "taken back": _TAUGHT, "good taken back": _TAUGHT}.get(how),
            f"Changed since: {said}. The threshold is {operating_point.threshold:.4f}." if said else "",
            "" if how == "anew" else ' class="taught"',
        ),
    )


def save_exports(
    profile: Profile, exports: Sequence[tuple[EngineCard, bytes, bytes]], gate: GateCard | None = None
) -> Profile:
    """The profile in its own folder with these exported networks and no other.

    Args:
        exports: of each its card, the bytes of its model and of its weights.
        gate: what is known of the gate among them.

    Raises:
        ProfileError, UsageError, StorageError: as :func:`save_renewed`.
    """
    files = {card.model: model for card, model, _ in exports}
    files |= {card.weights: weights for card, _, weights in exports if card.weights is not None}
    return _rewritten(profile, files, {"engines": [card for card, _, _ in exports], "gate": gate})


def _rewritten(
    profile: Profile,
    files: Mapping[str, bytes],
    changes: Mapping[str, Any],
    *,
    without: tuple[str, ...] = (),
    told: tuple[bytes | None, str, str] = (None, "", ""),
) -> Profile:
    """The folder with other files and another card, without engines that the card no longer lists.

    Args:
        without: how the names of files begin that are left out.
        told: what the report no longer tells, a pattern; what it tells first; and what kind that is.
    """
    KIND.check_own(profile.folder, profile.card.files, what="the profile is not changed")
    engines = changes.get("engines", profile.card.engines)
    wanted = {name for one in engines for name in (one.model, one.weights)}
    names = [name for name in profile.card.files if not name.startswith(ENGINES) or name in wanted]
    names = [name for name in names if not name.startswith(without)]
    kept = {name: profile.read(name) for name in names if name not in files} | dict(files)
    if REPORT in kept:  # it tells of the learning; what holds now stands first
        old, new, kind = told
        page = kept[REPORT] if old is None else re.sub(old, b"", kept[REPORT])
        said = f"</h1><p{kind}><b>{new}</b></p>" if new else "</h1>"
        kept[REPORT] = page.replace(b"</h1>", said.encode(), 1)
    with new_folder(profile.folder, replace=True) as work:
        for name, data in kept.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(work / name, data)
        card = Card.parse(
            profile.card.model_dump() | dict(changes) | {"files": KIND.hashes(work)},
            where=f"profile {profile.name}",
        )
        KIND.close(work, card)
    return Profile(profile.folder, card)


def _of_margin(margin: Margin) -> dict[str, Any]:
    """What the card says of it."""
    return {"margin": margin.width, "along": margin.along}


def _finite(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as it is saved.

    Raises:
        ProfileError: a weight is not a number.
    """
    for key, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ProfileError("the weights are not to be saved", where=key, why="not all are numbers")
    return {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}


def _whole(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays as they are saved."""
    return {key: np.ascontiguousarray(value) for key, value in arrays.items()}


def check_name(name: str) -> str:
    """A fabric's name: letters of any script, digits, and - _ . space; at most 80 characters.

    Raises:
        UsageError: it could not be a folder's name on every system.
    """
    why = wrong_in_name(name)
    if why:
        raise UsageError(
            "bad name for a fabric", where=repr(name), why=why, do="use letters, digits, - _ . and spaces"
        )
    return name


def check_target(folder: Path, *, replace: bool = False) -> None:
    """Whether a profile may be written there, said before hours of learning and not after.

    Raises:
        UsageError: a file, or a folder with something in it; with ``replace``, something that is not of an
            earlier profile.
    """
    KIND.check_target(folder, replace=replace)
