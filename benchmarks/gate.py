"""What does the gate lose? Every region of the ungated engine, looked for in what the gated one gives.

    python benchmarks/gate.py --profile denim --woven 2000
    python benchmarks/gate.py --profile twill --pictures ../shared/data/aitex_f04

The same engine scores each picture in full and behind its gate, at the profile's own threshold. A region of
the full map is lost when no region of the gated one touches its box. Those that lie on a true defect are
counted apart: the others are false alarms. Woven frames have random defects; a folder is one of the real
fabrics, with its good and its defective pictures and their masks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loomsight.demo import DENIM
from loomsight.fabric.images import find_images, read_image, to_grey
from loomsight.fabric.regions import find_regions
from loomsight.fabric.types import Mask, Picture, Region
from loomsight.loom import weave
from loomsight.profile import Profile

FRAME = (512, 768)
NEAR = 5  # pixels that a region may lie beside a true defect


@dataclass
class Tally:
    """Pictures, woven defects, regions of the full map, lost ones, and the share that was looked at."""

    pictures: int = 0
    defects: int = 0
    regions: int = 0
    lost: int = 0
    on_defects: int = 0
    lost_on_defects: int = 0
    looked: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--woven", type=int, help="defects of woven denim")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=500)
    asked = parser.parse_args()
    profile = Profile.open(asked.profile)
    if profile.card.gate is None:
        print(json.dumps({"profile": profile.name, "gate": None}))
        return
    tally = compare(profile, _woven(asked.woven, asked.seed) if asked.woven else _pictures(asked.pictures))
    print(
        f"{profile.name}: {tally.pictures} pictures, {tally.defects} woven defects, "
        f"{tally.regions} regions in full, {tally.lost} lost ({tally.lost / max(1, tally.regions):.2%}); "
        f"of {tally.on_defects} on true defects {tally.lost_on_defects}; "
        f"{tally.looked:.2%} of the cloth was looked at; "
        f"the gate was set on {profile.card.gate.defects} defects"
    )
    print(json.dumps({"profile": profile.name, **asdict(tally)}))


def compare(profile: Profile, pictures: Iterator[tuple[Picture, Mask, int]]) -> Tally:
    """The full engine and the gated one, picture by picture."""
    point, tally = profile.card.operating_point, Tally()
    full = profile.engine(profile.fastest)
    gate = profile.gated(full, audits=False)
    if gate is None:
        raise SystemExit("the profile has no gate")
    for image, mask, defects in pictures:
        whole = find_regions(full.score(image), point.threshold, point.grouping)
        (look,) = gate.looks([image])
        kept = look.regions(point.threshold, point.grouping)
        lost = [one for one in whole if not any(_touch(one, other) for other in kept)]
        tally.pictures += 1
        tally.defects += defects
        tally.regions += len(whole)
        tally.lost += len(lost)
        tally.on_defects += sum(_on(mask, one) for one in whole)
        tally.lost_on_defects += sum(_on(mask, one) for one in lost)
    tally.looked = gate.count.rate
    return tally


def _touch(a: Region, b: Region) -> bool:
    return a.box[0] < b.box[2] and b.box[0] < a.box[2] and a.box[1] < b.box[3] and b.box[1] < a.box[3]


def _on(mask: Mask, region: Region) -> bool:
    x0, y0, x1, y1 = region.box
    return bool(mask[max(0, y0 - NEAR) : y1 + NEAR, max(0, x0 - NEAR) : x1 + NEAR].any())


def _woven(defects: int, seed: int) -> Iterator[tuple[Picture, Mask, int]]:
    rng, made = np.random.default_rng(seed), 0
    while made < defects:
        cloth = weave(DENIM, *FRAME, rng, defects="random")
        made += len(cloth.defects)
        yield cloth.image, cloth.mask, len(cloth.defects)


def _pictures(folders: list[Path]) -> Iterator[tuple[Picture, Mask, int]]:
    for folder in folders:
        for path in find_images(folder / "good"):
            image = read_image(path)
            yield image, np.zeros(image.shape[:2], np.bool_), 0
        for path in find_images(folder / "defect"):
            mask = to_grey(read_image(folder / "mask" / f"{path.stem}.png")) > 0
            yield read_image(path), mask, 0


if __name__ == "__main__":
    main()
