"""Make the pictures of the README again: the demo, ended after 300 training steps instead of by the clock.

    python docs/pictures/make.py FOLDER

FOLDER takes the demo (an earlier one there is used as it is); the pictures are written beside this file.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from loomsight.demo import DemoSettings, demonstrate
from loomsight.fabric.images import read_image
from loomsight.fabric.look import Look
from loomsight.inspection.report import cut_crop
from loomsight.profile import Profile
from loomsight.progress import for_stream

HERE = Path(__file__).parent
SHOWN = 4  # places found, each in another picture
WIDTH = 1200  # pixels of the picture
GAP = 8  # white pixels between two of them


def main(folder: Path) -> None:
    if not (folder / "demo.json").is_file():
        with for_stream() as progress:
            print(demonstrate(folder, DemoSettings(steps=300, minutes=60), progress=progress).summary())
    shutil.copyfile(folder / "inspection" / "rollmap.png", HERE / "rollmap.png")
    profile = Profile.open(folder / "profile")
    engine, point = profile.engine(), profile.card.operating_point
    with (folder / "inspection" / "regions.csv").open(encoding="utf-8-sig") as table:
        rows = list(csv.DictReader(table))
    # Numbered as in the report: the surest first, of a picture the largest.
    rows.sort(key=lambda row: (-float(row["score"]), int(row["index"]), -int(row["area_px"])))
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        first.setdefault(row["picture"], number)
    numbers = list(first.values())[:SHOWN]
    print("found.png shows numbers", numbers)
    crops: list[np.ndarray] = []
    for row in (rows[number - 1] for number in numbers):
        image = read_image(folder / "roll" / row["picture"])
        x0, y0, x1, y1 = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))
        jpeg = cut_crop(image, Look.whole(engine.score(image)), (x0, y0, x1, y1), point)
        crops.append(
            np.pad(
                np.asarray(Image.open(io.BytesIO(jpeg))), ((0, GAP), (0, GAP), (0, 0)), constant_values=255
            )
        )
    rows_of_two = [np.hstack(crops[start : start + 2]) for start in range(0, SHOWN, 2)]
    picture = Image.fromarray(np.vstack(rows_of_two)[:-GAP, :-GAP])
    picture = picture.resize((WIDTH, round(WIDTH * picture.height / picture.width)), Image.Resampling.LANCZOS)
    picture = picture.quantize(256, kmeans=8, dither=Image.Dither.NONE)
    picture.save(HERE / "found.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
