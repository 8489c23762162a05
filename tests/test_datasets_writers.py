"""Writing data sets and reading them back: what each layout holds comes back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loomsight.datasets import boxes_to_mask, masks_to_boxes, read_dataset, write_dataset
from loomsight.datasets.writers import WRITERS
from loomsight.errors import DatasetError, UsageError
from loomsight.fabric.types import LabelledPicture

HEIGHT, WIDTH = 40, 56
MASKS = ("plain", "mvtec", "aitex", "coco")
BOXES = ("plain", "coco", "yolo", "voc")


def cloth(seed: int, *, colour: bool = False) -> np.ndarray:
    """A twill with uneven yarns."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    weave = 120 + 30 * np.sin((rows + columns) * 0.9) + rng.normal(0, 10, (HEIGHT, WIDTH))
    grey = weave.clip(0, 255).astype(np.uint8)
    return np.stack([grey, grey // 2, 255 - grey], axis=2) if colour else grey


def masked() -> LabelledPicture:
    mask = boxes_to_mask([(3, 4, 9, 7), (30, 20, 31, 33)], (HEIGHT, WIDTH))
    mask[5, 5] = False  # a mask, no mere box
    return LabelledPicture(cloth(1), mask, types=("nep", "nep"), fabric="f03", source="roll 7/12")


def boxed() -> LabelledPicture:
    boxes = np.asarray([[3, 4, 9, 7], [30, 20, 56, 40]], np.float32)
    return LabelledPicture(
        cloth(2, colour=True), None, boxes, ("hole", "oil stain"), fabric="f11", source="roll 7/12"
    )


def good(seed: int, source: str = "") -> LabelledPicture:
    return LabelledPicture(cloth(seed), np.zeros((HEIGHT, WIDTH), np.bool_), fabric="f03", source=source)


def back(pictures: list[LabelledPicture], out: Path, layout: str) -> list[LabelledPicture]:
    """Written and read, in the order of the pictures."""
    assert write_dataset(pictures, out, layout) == len(pictures)
    read = [item.load() for item in read_dataset(out)]
    assert len(read) == len(pictures)
    found = []
    for picture in pictures:
        (same,) = (other for other in read if np.array_equal(other.image, picture.image))
        found.append(same)
    return found


@pytest.mark.parametrize("layout", MASKS)
def test_masks_come_back_exactly(tmp_path: Path, layout: str) -> None:
    bad, whole = back([masked(), good(5)], tmp_path / "out", layout)
    assert bad.mask is not None
    assert whole.mask is not None
    np.testing.assert_array_equal(bad.mask, masked().mask)
    assert not whole.mask.any()
    assert bad.types == ("nep", "nep")
    assert (bad.fabric, whole.fabric) == ("f03", "f03")


@pytest.mark.parametrize("layout", BOXES)
def test_boxes_come_back_with_their_types(tmp_path: Path, layout: str) -> None:
    bad, whole = back([boxed(), good(5)], tmp_path / "out", layout)
    assert bad.boxes is not None
    np.testing.assert_allclose(bad.boxes, boxed().boxes, atol=1e-3)
    assert bad.types == ("hole", "oil stain")
    assert bad.mask is None
    assert bad.fabric == "f11"
    assert whole.boxes is None or len(whole.boxes) == 0


@pytest.mark.parametrize("layout", ["yolo", "voc"])
def test_masks_become_boxes_where_a_layout_holds_no_masks(tmp_path: Path, layout: str) -> None:
    (bad,) = back([masked()], tmp_path / "out", layout)
    mask = masked().mask
    assert bad.boxes is not None
    assert mask is not None
    np.testing.assert_allclose(bad.boxes, masks_to_boxes(mask), atol=1e-3)


@pytest.mark.parametrize("layout", ["mvtec", "aitex"])
def test_boxes_become_masks_where_a_layout_holds_no_boxes(tmp_path: Path, layout: str) -> None:
    (bad,) = back([boxed()], tmp_path / "out", layout)
    boxes = boxed().boxes
    assert bad.mask is not None
    assert boxes is not None
    np.testing.assert_array_equal(bad.mask, boxes_to_mask(boxes, (HEIGHT, WIDTH)))


@pytest.mark.parametrize("layout", sorted(WRITERS))
def test_pictures_of_one_source_still_share_one(tmp_path: Path, layout: str) -> None:
    pictures = [good(1, "a/b"), good(2, "a-b"), good(3, "a/b"), good(4), good(5)]
    sources = [picture.source for picture in back(pictures, tmp_path / "out", layout)]
    assert sources[0] == sources[2]
    assert len(set(sources)) == 4


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 34), st.integers(1, 6), st.integers(1, 6)),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_boxes_survive_every_layout_of_boxes(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[int, int, int, int]]
) -> None:
    boxes = np.asarray([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32)
    picture = LabelledPicture(cloth(1), None, boxes, ("knot",) * len(boxes), fabric="f01")
    for layout in BOXES:
        (read,) = back([picture], tmp_path_factory.mktemp("boxes") / "out", layout)
        assert read.boxes is not None
        np.testing.assert_allclose(read.boxes, boxes, atol=1e-3)


def test_mask_and_boxes_together_survive_coco(tmp_path: Path) -> None:
    mask = masked().mask
    assert mask is not None
    picture = LabelledPicture(cloth(1), mask, masks_to_boxes(mask), ("nep", "slub"), fabric="f01")
    (read,) = back([picture], tmp_path / "out", "coco")
    assert read.mask is not None
    np.testing.assert_array_equal(read.mask, mask)
    assert read.types == ("nep", "slub")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[LabelledPicture]:
        yield good(1)
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        write_dataset(broken(), tmp_path / "out")
    with pytest.raises(DatasetError, match="no picture"):
        write_dataset([], tmp_path / "out")
    with pytest.raises(DatasetError, match="name"):
        write_dataset([LabelledPicture(cloth(1), fabric="../up")], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    write_dataset([good(1)], tmp_path / "out")
    with pytest.raises(UsageError, match="exists"):
        write_dataset([good(1)], tmp_path / "out")
    with pytest.raises(UsageError, match="yolo"):
        write_dataset([good(1)], tmp_path / "other", "yollo")
