"""Reading data sets: every layout, a tree of all of them, and annotation files that mean harm."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loomsight.datasets import Item, boxes_to_mask, masks_to_boxes, read_dataset
from loomsight.datasets.items import defect_type, source_of
from loomsight.datasets.outlines import decode_runs, encode_runs, expand_runs, fill_polygon
from loomsight.errors import DatasetError, ImageError, UsageError
from loomsight.fabric.images import write_png
from loomsight.fabric.types import DEFECT_TYPES, Mask, Picture


def cloth(seed: int, height: int = 48, width: int = 64) -> Picture:
    """A plain weave with uneven yarns; each seed is another piece of the same cloth."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    weave = np.sin(rows * 1.3) * np.sin(columns * 1.1) * 25 + rng.normal(0, 12, (height, width))
    return np.asarray((120 + weave).clip(0, 255), np.uint8)


def spot(height: int = 48, width: int = 64) -> Mask:
    """A defect at x 10 to 20 and y 5 to 9."""
    mask = np.zeros((height, width), np.bool_)
    mask[5:9, 10:20] = True
    return mask


def put(path: Path, seed: int = 0) -> Path:
    write_png(path, cloth(seed))
    return path


def put_mask(path: Path, mask: Mask | None = None) -> None:
    write_png(path, (spot() if mask is None else mask).astype(np.uint8) * 255)


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def by_name(items: list[Item]) -> dict[str, Item]:
    return {item.path.name: item for item in items}


def make_plain(root: Path) -> None:
    put(root / "good" / "a.png", 1)
    put(root / "defect" / "b.png", 2)
    put_mask(root / "mask" / "b.png")


def make_yolo(root: Path, label: str = "1 0.234375 0.145833333 0.15625 0.083333333\n") -> None:
    put(root / "images" / "c1e1_jpg.rf.0a1b.png", 3)
    put(root / "images" / "c1e1_jpg.rf.9f8e.png", 4)
    text(root / "labels" / "c1e1_jpg.rf.0a1b.txt", label)
    text(root / "labels" / "c1e1_jpg.rf.9f8e.txt", "")
    # Roboflow's own paths climb out of the folder; they must not matter.
    text(root / "data.yaml", "train: ../train/images\nnc: 2\nnames: ['hole', 'oil spot']\n")


def coco(**changes: object) -> dict[str, object]:
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 10, 4]} | changes
    return {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
        "annotations": [entry],
        "categories": [{"id": 3, "name": "Oil_Spot"}],
    }


def make_coco(root: Path, values: object) -> Path:
    put(root / "images" / "a.png", 5)
    put(root / "images" / "b.png", 6)
    return text(root / "annotations" / "instances_default.json", json.dumps(values))


VOC = """<annotation>
  <filename>v.png</filename>
  <object><name>hole</name>
    <bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>9</ymax></bndbox>
  </object>
</annotation>
"""


def make_voc(root: Path, xml: str = VOC) -> Path:
    put(root / "JPEGImages" / "v.png", 7)
    put(root / "JPEGImages" / "w.png", 8)
    return text(root / "Annotations" / "v.xml", xml)


def test_plain_folder(tmp_path: Path) -> None:
    make_plain(tmp_path / "twill")
    put_mask(tmp_path / "twill" / "mask" / "b_mask2.png", boxes_to_mask([(40, 40, 41, 41)], (48, 64)))
    good, bad = read_dataset(tmp_path)
    assert (good.fabric, good.good, bad.fabric, bad.good) == ("twill", True, "twill", False)
    assert good.load().mask is not None
    assert not good.load().mask.any()
    loaded = bad.load()
    np.testing.assert_array_equal(loaded.image, cloth(2))
    assert loaded.mask is not None
    assert loaded.mask.sum() == 41  # both mask files count


def test_loose_pictures_are_good_cloth_named_by_their_folder(tmp_path: Path) -> None:
    put(tmp_path / "denim" / "good" / "1.png")
    put(tmp_path / "linen" / "x.png")
    put(tmp_path / "chart.png")  # beside fabrics: no cloth
    assert [(item.fabric, item.good) for item in read_dataset(tmp_path)] == [("denim", True), ("linen", True)]
    assert read_dataset(tmp_path / "denim" / "good")[0].fabric == "denim"


def test_notes_give_types_boxes_sources_and_collections(tmp_path: Path) -> None:
    make_plain(tmp_path / "twill")
    for name in ("one", "two"):
        put(tmp_path / "mixed" / "defect" / f"{name}.png")
        put_mask(tmp_path / "mixed" / "mask" / f"{name}.png")
    notes = {
        "twill/defect/b.png": {
            "type": "cut selvage",
            "boxes_xyxy_area": [[10, 5, 20, 9, 40]],
            "source": "strip 9",
        },
        "mixed/defect/one.png": {"type": "various"},
        "mixed/defect/two.png": {"type": "various"},
    }
    text(tmp_path / "boxes_from_masks.json", json.dumps(notes))
    items = by_name(read_dataset(tmp_path))
    assert items["b.png"].types == ("selvedge cut",)
    assert items["b.png"].boxes == ((10, 5, 20, 9),)
    assert items["b.png"].source == "strip 9"
    assert {items["one.png"].fabric, items["two.png"].fabric} == {"mixed/one", "mixed/two"}
    assert by_name(read_dataset(tmp_path / "twill"))["b.png"].types == ("selvedge cut",)  # notes one up


def test_mvtec(tmp_path: Path) -> None:
    put(tmp_path / "carpet" / "train" / "good" / "000.png")
    put(tmp_path / "carpet" / "test" / "good" / "000.png")
    put(tmp_path / "carpet" / "test" / "broken_end" / "000.png")
    put_mask(tmp_path / "carpet" / "ground_truth" / "broken_end" / "000_mask.png")
    items = read_dataset(tmp_path)
    assert [item.good for item in items] == [True, True, False]
    assert len({item.source for item in items}) == 3  # the same file name is not the same picture
    assert items[2].load().types == ("broken end",)
    assert items[2].load().mask is not None


def test_aitex_official_folders_and_names(tmp_path: Path) -> None:
    root = tmp_path / "AITEX"
    put(root / "NODefect_images" / "2306881-210020u" / "0001_000_00.png")
    put(root / "Defect_images" / "0044_019_04.png")
    put(root / "Defect_images" / "0044_019_04_w2.png")
    put_mask(root / "Mask_images" / "0044_019_04_mask1.png")
    put_mask(root / "Mask_images" / "0044_019_04_mask2.png", ~spot())
    items = by_name(read_dataset(tmp_path))
    assert items["0001_000_00.png"].fabric == "AITEX/f00"
    bad = items["0044_019_04.png"]
    assert (bad.fabric, bad.types, bad.source) == ("AITEX/f04", ("fuzzy ball",), "0044_019_04")
    assert items["0044_019_04_w2.png"].source == bad.source
    mask = bad.load().mask
    assert mask is not None
    assert mask.all()


def test_aitex_loose_names(tmp_path: Path) -> None:
    put(tmp_path / "0001_000_02.png")
    put(tmp_path / "0002_030_02.png")
    put_mask(tmp_path / "0002_030_02_mask.png")
    items = read_dataset(tmp_path)
    assert [(item.fabric, item.good, item.types) for item in items] == [
        ("f02", True, ()),
        ("f02", False, ("nep",)),
    ]


def test_yolo_boxes_are_pixels_and_copies_share_a_source(tmp_path: Path) -> None:
    make_yolo(tmp_path / "c1")
    bad, good = read_dataset(tmp_path)
    assert (bad.good, good.good, bad.fabric) == (False, True, "c1")
    assert bad.boxes is not None
    np.testing.assert_allclose(bad.boxes, [[10, 5, 20, 9]], atol=1e-5)
    assert bad.types == ("oil stain",)
    assert bad.source == good.source == "c1e1"
    assert bad.load().mask is None


def test_yolo_export_with_sides_is_one_fabric(tmp_path: Path) -> None:
    make_yolo(tmp_path / "c1" / "train")
    make_yolo(tmp_path / "c1" / "valid")
    items = read_dataset(tmp_path)
    assert len(items) == 4
    assert {item.fabric for item in items} == {"c1"}


def test_yolo_pictures_that_all_lack_labels_are_not_good_cloth(tmp_path: Path) -> None:
    make_yolo(tmp_path / "c1")
    for number, labels in enumerate(sorted((tmp_path / "c1/labels").iterdir())):
        labels.rename(labels.with_name(f"{number}.txt"))
    with pytest.raises(DatasetError, match="no label files"):
        read_dataset(tmp_path / "c1")


def test_yolo_polygon_becomes_a_mask(tmp_path: Path) -> None:
    points = [(10, 5), (20, 5), (20, 9), (10, 9)]
    make_yolo(tmp_path, "0 " + " ".join(f"{x / 64} {y / 48}" for x, y in points))
    mask = read_dataset(tmp_path)[0].load().mask
    assert mask is not None
    np.testing.assert_array_equal(mask, spot())


@pytest.mark.parametrize(
    "shape",
    [
        [[10, 5, 20, 5, 20, 9, 10, 9]],
        {"size": [48, 64], "counts": encode_runs(spot())},
    ],
    ids=["polygon", "runs"],
)
def test_coco_shapes_become_the_mask(tmp_path: Path, shape: object) -> None:
    make_coco(tmp_path / "set", coco(segmentation=shape))
    items = by_name(read_dataset(tmp_path))
    loaded = items["a.png"].load()
    assert loaded.mask is not None
    np.testing.assert_array_equal(loaded.mask, spot())
    assert loaded.types == ("oil stain",)
    assert items["b.png"].good
    assert items["a.png"].fabric == "set"


def test_coco_boxes_alone_leave_the_pixels_unlabelled(tmp_path: Path) -> None:
    make_coco(tmp_path, coco(bbox=[60, 40, 50, 50]))
    loaded = by_name(read_dataset(tmp_path))["a.png"].load()
    assert loaded.mask is None
    assert loaded.boxes is not None
    assert loaded.boxes.tolist() == [[60, 40, 64, 48]]  # clipped to the picture


def test_voc_corners_count_from_one(tmp_path: Path) -> None:
    make_voc(tmp_path)
    items = by_name(read_dataset(tmp_path))
    assert items["v.png"].boxes == ((10, 5, 20, 9),)
    assert items["v.png"].types == ("hole",)
    assert items["w.png"].good


def test_a_tree_of_all_layouts_in_one_call(tmp_path: Path) -> None:
    make_plain(tmp_path / "plain")
    make_yolo(tmp_path / "boxes" / "c1")
    make_coco(tmp_path / "coco", coco())
    make_voc(tmp_path / "voc")
    put(tmp_path / "mvtec" / "train" / "good" / "1.png")
    put(tmp_path / "aitex" / "0001_000_07.png")
    put(tmp_path / "wool" / "a" / "1.png")
    fabrics = {item.fabric for item in read_dataset(tmp_path)}
    assert fabrics == {"plain", "boxes/c1", "coco", "voc", "mvtec", "aitex/f07", "wool/a"}
    assert {item.fabric for item in read_dataset(tmp_path, "voc")} == {"voc"}


def test_names_map_to_the_vocabulary() -> None:
    assert defect_type("Thread error") == "broken yarn"
    assert defect_type("broken_end") == "broken end"
    assert defect_type("martian") == "unknown"
    assert all(defect_type(name) == name for name in DEFECT_TYPES)


def test_sources_of_file_names(tmp_path: Path) -> None:
    assert source_of(tmp_path / "x" / "0001_002_00_w3.png", tmp_path) == "0001_002_00"
    assert source_of(tmp_path / "x" / "c1r1e3n3_jpg.rf.1f.jpg", tmp_path) == "c1r1e3n3"
    assert source_of(tmp_path / "x" / "7.png", tmp_path) == "x/7"


def test_missing_and_empty_folders_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no usable picture"):
        read_dataset(tmp_path)
    with pytest.raises(UsageError, match="mvtec"):
        read_dataset(tmp_path, "mvtek")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("0 0.5 0.5 0.1 0.1\nhole 0.5 0.5 0.1 0.1\n", "txt:2: 'hole' is not a class"),
        ("0 0.5 0.5 0.1\n", "txt:1: 4 values"),
        ("0 0.5 x 0.1 0.1\n", "txt:1: 'x' is not a number"),
        ("0 0.5 nan 0.1 0.1\n", "txt:1: 'nan' is not a finite number"),
        ("9 0.5 0.5 0.1 0.1\n", "txt:1: class 9 is not among the 2 names"),
    ],
)
def test_malformed_yolo_names_the_line(tmp_path: Path, label: str, why: str) -> None:
    make_yolo(tmp_path, label)
    with pytest.raises(DatasetError, match=why):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("yaml", "why"),
    [
        ("names: !!python/object/apply:os.system ['true']\n", "data.yaml"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n", "yaml:2: YAML aliases are refused"),
        ("nc: 2\nnames: [hole\n", "data.yaml:3"),
        ("[" * 5000, "nested too deeply"),
        ("names: 7\n", "'names' is not a list"),
    ],
)
def test_unsafe_yaml_is_refused(tmp_path: Path, yaml: str, why: str) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "data.yaml", yaml)
    with pytest.raises(DatasetError, match=why):
        read_dataset(tmp_path)


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        (
            f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]>\n<annotation>&l9;</annotation>',
            "xml:1: .*document type",
        ),
        ('<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]>\n<annotation/>', "xml:1: .*document type"),
        (VOC.replace("</object>", ""), "xml:6:.*mismatched tag"),
        (VOC.replace("<xmin>11<", "<xmin>eleven<"), "xml:4: 'eleven' is not a number"),
        (VOC.replace("v.png", "../../secret.png"), "xml:2: .*leads out"),
        (VOC.replace("v.png", "/etc/secret.png"), "xml:2: .*leads out"),
        (VOC.replace("v.png", "absent.png"), "xml:2: absent.png"),
        ("<a>" * 5000, "nested too deeply"),
    ],
)
def test_harmful_xml_is_refused(tmp_path: Path, xml: str, why: str) -> None:
    make_voc(tmp_path, xml)
    with pytest.raises(DatasetError, match=why):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"bbox": [1, 2, 3]}, r"annotations\[0\]: 'bbox' is not"),
        ({"bbox": [1, 2, 3, "wide"]}, r"annotations\[0\]: 'wide' is not a number"),
        ({"category_id": 99}, "category 99 is not listed"),
        ({"image_id": 99}, "image id 99"),
        ({"segmentation": {"size": [48, 64], "counts": [5, 5]}}, "do not add up"),
        ({"segmentation": {"size": [48, 64], "counts": "~~~"}}, "run-length"),
        ({"segmentation": [[1, 2, 3]]}, "polygon"),
    ],
)
def test_malformed_coco_names_the_entry(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    make_coco(tmp_path, coco(**changes))
    with pytest.raises(DatasetError, match=why):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["../a.png", "images/../../a.png", "C:\\a.png", "..\\a.png", "/a.png"])
def test_coco_paths_stay_inside(tmp_path: Path, name: str) -> None:
    values = coco() | {"images": [{"id": 7, "file_name": name}]}
    make_coco(tmp_path / "set", values)
    put(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"images\[0\].*leads out"):
        read_dataset(tmp_path / "set")


def test_truncated_json_names_the_position(tmp_path: Path) -> None:
    path = make_coco(tmp_path, coco())
    text(path, json.dumps(coco())[:-10])
    with pytest.raises(DatasetError, match=r"instances_default.json:1:\d+"):
        read_dataset(tmp_path)


def test_an_annotated_file_that_is_no_picture(tmp_path: Path) -> None:
    make_yolo(tmp_path)
    text(tmp_path / "images" / "c1e1_jpg.rf.0a1b.png", "hello")
    with pytest.raises(ImageError, match="no picture"):
        read_dataset(tmp_path)


def test_errors_can_be_collected_and_the_rest_is_read(tmp_path: Path) -> None:
    make_yolo(tmp_path / "c1", "0 bad\n")
    make_plain(tmp_path / "twill")
    errors: list[Exception] = []
    assert len(read_dataset(tmp_path, on_error=errors.append)) == 3
    assert len(errors) == 1


def test_a_picture_whose_defect_cannot_be_read_is_never_good_cloth(tmp_path: Path) -> None:
    second = {"id": 2, "image_id": 7, "category_id": 99, "bbox": [1, 1, 4, 4]}
    lost = {"id": 2, "category_id": 3, "bbox": [1, 1, 4, 4]}  # of which picture?
    first = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 10, 4]}
    make_coco(tmp_path / "coco", coco() | {"annotations": [first, second]})
    make_coco(tmp_path / "cocolost", coco() | {"annotations": [lost]})
    make_voc(tmp_path / "voc", VOC[:60])
    make_voc(tmp_path / "vocjpg", VOC.replace("v.png", "v.jpg"))
    errors: list[Exception] = []
    items = read_dataset(tmp_path, on_error=errors.append)
    assert sorted(f"{item.fabric} {item.path.name}" for item in items) == [
        "coco b.png",
        "voc w.png",
        "vocjpg w.png",
    ]
    assert len(errors) == 4


def test_a_file_of_something_else_hides_no_fabric(tmp_path: Path) -> None:
    make_plain(tmp_path / "twill")
    text(tmp_path / "camera.xml", "<settings><gain>3</gain></settings>")
    text(tmp_path / "my_annotations.json", '{"tool": "x"}')
    put(tmp_path / "wool" / "1.png")
    text(tmp_path / "wool" / "lens.xml", "<lens/>")
    assert {item.fabric for item in read_dataset(tmp_path)} == {"twill", "wool"}


def test_masks_are_no_cloth_wherever_they_lie(tmp_path: Path) -> None:
    """MVTec's test pictures without its good ones; pictures and masks in folders of their own."""
    put(tmp_path / "carpet" / "test" / "hole" / "0.png")
    put_mask(tmp_path / "carpet" / "ground_truth" / "hole" / "0_mask.png")
    put(tmp_path / "loose" / "pictures" / "0.png")
    put_mask(tmp_path / "loose" / "masks" / "0.png")
    make_plain(tmp_path / "loose" / "twill")
    errors: list[Exception] = []
    items = read_dataset(tmp_path, on_error=errors.append)
    assert {item.fabric for item in items} == {"carpet", "loose/twill"}
    (hole,) = [item for item in items if item.fabric == "carpet"]
    assert not hole.good
    assert hole.load().mask is not None
    (error,) = errors
    assert "masks in no layout that is known" in str(error)


def test_the_sides_of_a_data_set_are_one_fabric(tmp_path: Path) -> None:
    for side in ("train", "valid"):
        put(tmp_path / "twill" / side / "a.png", 5)
        put(tmp_path / "twill" / side / "b.png", 6)
        text(tmp_path / "twill" / side / "_annotations.coco.json", json.dumps(coco()))
        make_voc(tmp_path / "denim" / side)
    assert {item.fabric for item in read_dataset(tmp_path)} == {"twill", "denim"}


def test_an_outline_of_another_picture_is_refused_in_plain_words(tmp_path: Path) -> None:
    make_coco(tmp_path, coco(segmentation={"size": [24, 64], "counts": [24 * 64]}))
    (item,) = [item for item in read_dataset(tmp_path) if not item.good]
    with pytest.raises(DatasetError, match="it is of a picture of 64 × 24 pixels, and this one has 64 × 48"):
        item.load()


@given(st.binary(max_size=200))
def test_any_bytes_in_a_label_file_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    root = tmp_path_factory.mktemp("junk")
    put(root / "images" / "a.png")
    (root / "labels").mkdir()
    (root / "Annotations").mkdir()
    (root / "labels" / "a.txt").write_bytes(junk)
    (root / "Annotations" / "a.xml").write_bytes(junk)
    (root / "coco.json").write_bytes(junk)
    for layout in ("yolo", "voc", "coco"):
        read_dataset(root, layout, on_error=lambda _: None)


masks = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(masks)
def test_runs_give_the_mask_back(mask: Mask) -> None:
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), mask.shape), mask)


@given(masks)
def test_boxes_cover_their_mask_tightly(mask: Mask) -> None:
    boxes = masks_to_boxes(mask)
    filled = boxes_to_mask(boxes, mask.shape)
    assert (filled | ~mask).all()
    for x0, y0, x1, y1 in boxes.astype(int):
        assert mask[y0, x0:x1].any()
        assert mask[y1 - 1, x0:x1].any()
        assert mask[y0:y1, x0].any()
        assert mask[y0:y1, x1 - 1].any()


@given(st.integers(0, 8), st.integers(0, 8), st.integers(1, 8), st.integers(1, 8))
def test_a_box_as_mask_or_polygon_and_back(x: int, y: int, width: int, height: int) -> None:
    box = (x, y, x + width, y + height)
    mask = boxes_to_mask([box], (20, 20))
    assert masks_to_boxes(mask).tolist() == [list(box)]
    corners = np.asarray([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], float)
    np.testing.assert_array_equal(fill_polygon(corners, (20, 20)), mask)


def test_compressed_runs_as_pycocotools_writes_them() -> None:
    # pycocotools.mask.encode of a 5 × 6 mask with rows 1–2, columns 2–4 on
    mask = boxes_to_mask([(2, 1, 5, 3)], (5, 6))
    assert expand_runs(";230004") == encode_runs(mask)


def test_a_hair_thin_polygon_does_not_vanish() -> None:
    hair = np.asarray([(3.1, 2.1), (3.2, 2.1), (3.2, 2.4)])
    assert fill_polygon(hair, (6, 6)).sum() == 1


def test_reading_data_sets_needs_no_torch() -> None:
    code = "import sys, loomsight.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
