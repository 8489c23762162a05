"""Defects made in good cloth, written as a data set with a contact sheet and a card of their origin."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from loomsight import __version__
from loomsight.base import Base, shipped
from loomsight.config import Config
from loomsight.datasets import write_dataset
from loomsight.errors import DatasetError
from loomsight.fabric.images import find_images, read_images, write_png
from loomsight.fabric.types import UNKNOWN, LabelledPicture
from loomsight.files import new_folder, sha256_file, write_json
from loomsight.learn.cloth import spread
from loomsight.learn.samples import make_samples
from loomsight.progress import Progress
from loomsight.synthesis.samples import Bank
from loomsight.synthesis.sheet import contact_sheet
from loomsight.texture.gram import TextureEncoder

MOST_GOOD = 100  # pictures of good cloth in memory
CODED = 8  # of them whose texture codes are averaged
FABRIC = "cloth"  # its name in the data set
_SHOWN, _REJECTED = 40, 20  # samples on the sheet


class SynthSettings(Config):
    """What is made."""

    count: PositiveInt = 200
    arm: str = "stage1+2"
    layout: str = "mvtec"
    gate: bool = True
    size: int = Field(160, ge=96, le=512)  # pixels a side
    seed: int = Field(0, ge=0)


def synthesise(
    good: Path | str,
    *,
    out: Path,
    base: Path | None = None,
    settings: SynthSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make samples of a fabric and write ``out``: samples/, sheet.png and card.json, all or nothing.

    The data set holds each sample and, as good cloth, the window that it was made in.

    Args:
        good: a folder, a glob or one picture of good cloth.
        base: of the generators; None: the one that comes with the program.

    Returns:
        What card.json says.

    Raises:
        BaseWeightsError: the base is damaged or cannot make this arm.
        DatasetError: no sample passed the gate.
        ImageError: a picture cannot be read.
        StorageError: ``out`` cannot be written.
    """
    settings, progress = settings or SynthSettings(), progress or Progress()
    opened = Base.open(base or shipped())
    opened.check_arm(settings.arm)
    paths = find_images(good)
    pictures = [image for _, image in read_images(spread(paths, progress, MOST_GOOD))]
    encoder = TextureEncoder(opened.card.encoder)
    coded = pictures[:: max(1, len(pictures) // CODED)][:CODED]
    code = encoder.codes(progress.track(coded, "texture code", len(coded))).mean(axis=0)
    bank = make_samples(
        opened,
        settings.arm,
        pictures,
        code,
        settings.count,
        gate=settings.gate,
        tile=settings.size,
        seed=settings.seed,
        progress=progress,
    )
    if not bank.samples:
        why = ", ".join(f"{count} {reason}" for reason, count in bank.reasons.most_common())
        raise DatasetError(
            "no sample is good enough",
            where=settings.arm,
            why=f"rejected: {why}",
            do="train a base longer, or look at the samples with --no-gate",
        )
    card = {
        "program": f"loomsight {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "arm": settings.arm,
        "samples": len(bank.samples),
        "asked": settings.count,
        "gate": settings.gate,
        "rejected": dict(bank.reasons),
        "size": settings.size,
        "seed": settings.seed,
        "layout": settings.layout,
        "good_pictures": len(pictures),
        "base": {
            "sha256": sha256_file(opened.folder / "base.json"),
            "created": opened.card.created,
            "provenance": dict(opened.card.provenance),
        },
        "note": "Made pictures: no camera saw these defects.",
    }
    with new_folder(out) as work:
        write_dataset(_pictures(bank), work / "samples", settings.layout)
        write_png(work / "sheet.png", sample_sheet(bank, settings.arm))
        write_json(work / "card.json", card)
    return card


def _pictures(bank: Bank) -> Iterator[LabelledPicture]:
    """Each sample, and the good cloth that it was made in."""
    for number, sample in enumerate(bank.samples):
        name = f"{FABRIC} {number:05d}"
        nothing = np.zeros(sample.mask.shape, np.bool_)
        yield LabelledPicture(sample.cloth, nothing, fabric=FABRIC, source=f"{name} before")
        yield LabelledPicture(
            sample.image, sample.mask, types=(UNKNOWN,), fabric=FABRIC, source=f"{name} made"
        )


def sample_sheet(bank: Bank, arm: str) -> Any:
    """A contact sheet, uint8 HWC: samples, and those that the gate rejected, reason by reason."""
    rows = [(arm, [(sample.image, sample.mask) for sample in bank.samples[:_SHOWN]])]
    for reason in dict.fromkeys(reason for _, reason in bank.rejected):
        some = [sample for sample, why in bank.rejected if why == reason][: _REJECTED // 2]
        rows.append((f"rejected:\n{reason}", [(sample.image, sample.mask) for sample in some]))
    total = bank.reasons.total()
    note = f"{len(bank.samples)} samples, {total} rejected" if total else f"{len(bank.samples)} samples"
    return contact_sheet(rows, title="Made defects in good cloth", note=note)
