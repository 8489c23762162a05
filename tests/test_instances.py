"""Instance maps: which pixel belongs to which defect, and the boxes that follow."""

from __future__ import annotations

import numpy as np

from loomsight.detection.deeplab import IGNORED
from loomsight.fabric.instances import boxes_of, instances_of
from loomsight.fabric.types import LabelledPicture
from loomsight.learn.detector import collate_boxes
from loomsight.learn.segmenter import collate
from loomsight.synthesis.recipe import Material, Recipe, TileMaker

IMAGE = np.zeros((60, 80, 3), np.uint8)


def test_pieces_that_lie_close_are_one_defect_and_each_keeps_its_type() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10, 10:20] = mask[10, 23:30] = True  # one thread, broken up
    mask[40:44, 50:54] = True
    picture = LabelledPicture(IMAGE, mask, types=("float", "nep"))
    found, types = instances_of(picture)
    boxes, which = boxes_of(found)
    assert types == ("float", "nep")
    assert boxes.tolist() == [[10, 10, 30, 11], [50, 40, 54, 44]]
    assert which.tolist() == [1, 2]
    assert ((found > 0) == mask).all()


def test_the_types_of_boxes_go_to_the_parts_in_them() -> None:
    mask = np.zeros((60, 80), bool)
    mask[5:8, 60:64] = mask[40:44, 50:54] = True
    boxes = np.array([[50, 40, 54, 44], [60, 5, 64, 8]], np.float32)
    _, types = instances_of(LabelledPicture(IMAGE, mask, boxes, ("nep", "hole")))
    assert types == ("hole", "nep"), "parts are numbered from the top"


def test_a_defect_that_is_only_boxed_fills_its_box() -> None:
    boxes = np.array([[3.2, 4.1, 10.0, 12.0], [70, 50, 80, 60]], np.float32)
    found, types = instances_of(LabelledPicture(IMAGE, None, boxes, ("hole", "stain")))
    assert boxes_of(found)[0].tolist() == [[3, 4, 10, 12], [70, 50, 80, 60]]
    assert types == ("hole", "stain")


def test_a_box_within_another_or_beyond_the_picture_hides_nothing() -> None:
    boxes = np.array([[20, 20, 30, 30], [10, 10, 60, 50], [-9, -9, -3, -3]], np.float32)
    found, types = instances_of(LabelledPicture(IMAGE, None, boxes, ("nep", "stain", "hole")))
    seen, which = boxes_of(found)
    assert [(which_one, *box) for which_one, box in zip(which, seen.tolist(), strict=True)] == [
        (1, 20, 20, 30, 30),
        (2, 10, 10, 60, 50),
    ]
    assert types == ("nep", "stain", "hole")


def test_good_cloth_has_none_and_types_that_do_not_fit_are_unknown() -> None:
    found, types = instances_of(LabelledPicture(IMAGE, np.zeros((60, 80), bool)))
    assert boxes_of(found)[0].shape == (0, 4)
    assert types == ()
    mask = np.zeros((60, 80), bool)
    mask[5:8, 60:64] = mask[40:44, 50:54] = mask[20:22, 5:9] = True
    assert instances_of(LabelledPicture(IMAGE, mask, types=("hole", "nep")))[1] == ("unknown",) * 3
    assert instances_of(LabelledPicture(IMAGE, mask, types=("hole",)))[1] == ("hole",) * 3


def test_boxes_that_overlap_or_coincide_keep_their_extent() -> None:
    boxes = np.array([[10, 20, 40, 24], [30, 10, 50, 40], [10, 20, 40, 24], [60, 5, 64, 8]], np.float32)
    found, types = instances_of(LabelledPicture(IMAGE, None, boxes, ("float", "slub", "stain", "nep")))
    assert boxes_of(found)[0].tolist() == boxes.tolist()
    assert boxes_of(found)[1].tolist() == [1, 2, 3, 4]
    assert types == ("float", "slub", "stain", "nep")
    cut = boxes_of(found[12:30, 32:48])[0]  # a window within the second: all three are in it
    assert cut.tolist() == [[0, 8, 8, 12], [0, 0, 16, 18], [0, 8, 8, 12]]


def test_a_box_of_less_than_a_pixel_at_the_far_border_is_there() -> None:
    height, width = IMAGE.shape[:2]
    box = np.array([[width - 0.4, height - 0.4, width, height]], np.float32)
    found, _ = instances_of(LabelledPicture(IMAGE, None, box, ("nep",)))
    assert boxes_of(found)[0].tolist() == [[width - 1, height - 1, width, height]]


def test_tiles_of_overlapping_boxes_train_both_networks() -> None:
    boxes = np.array([[10, 20, 40, 24], [10, 20, 40, 24], [12, 10, 30, 40]], np.float32)
    known = LabelledPicture(IMAGE, None, boxes, ("float", "slub", "nep"), "a")
    maker = TileMaker(Recipe(arms=("none",), tile=96, batch=4), Material([], [known]))
    tiles = maker.batch(0)
    labels = collate_boxes(tiles, ("float", "nep", "slub"))["labels"]
    # mirrored to 96 pixels, at the least some of each are in every tile
    assert all({0, 1, 2} <= set(own["class_labels"].tolist()) for own in labels)
    assert (collate(tiles, ("float", "nep", "slub"))["types"] == IGNORED).all()
