"""Reading pictures: every kind a camera or a scanner writes, and everything that only looks like one."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loomsight.errors import DatasetError, ImageError, StorageError, UsageError
from loomsight.fabric.images import (
    encode_png,
    find_images,
    read_image,
    read_images,
    read_mask,
    to_grey,
    to_rgb,
    write_png,
)


def cloth(height=24, width=40, channels=()):
    """Threads and noise, so that every pixel matters and compression has work."""
    rng = np.random.default_rng(7)
    weave = 90 + 60 * (np.indices((height, width)).sum(axis=0) % 2)
    noise = rng.integers(0, 60, (height, width, *channels))
    return (weave.reshape(height, width, *(1 for _ in channels)) + noise).astype(np.uint8)


def png_header(width, height):
    """A PNG of a few bytes that claims to be this large."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "pgm"])
def test_lossless_grey_comes_back_as_it_was(tmp_path, suffix):
    path = tmp_path / f"cloth.{suffix}"
    Image.fromarray(cloth()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(to_grey(image), cloth())
    assert image.ndim == (3 if suffix == "webp" else 2)  # WEBP knows no grey


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm"])
def test_lossless_colour_comes_back_as_it_was(tmp_path, suffix):
    path = tmp_path / f"cloth.{suffix}"
    Image.fromarray(cloth(channels=(3,))).save(path)
    assert np.array_equal(read_image(path), cloth(channels=(3,)))


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("size", [(701, 997), (3, 140_001), (140_001, 3)])
def test_a_large_picture_comes_back_as_it_was(tmp_path, size, channels):
    """Larger than what is taken over at a time, and no multiple of it."""
    path = tmp_path / "cloth.bmp"
    Image.fromarray(cloth(*size, channels)).save(path)
    assert np.array_equal(read_image(path), cloth(*size, channels))


def test_jpeg_is_read_in_grey_and_colour(tmp_path):
    for channels in [(), (3,)]:
        path = tmp_path / "cloth.jpg"
        Image.fromarray(cloth(channels=channels)).save(path, quality=95)
        image = read_image(path)
        assert image.shape == (24, 40, *channels)
        assert abs(image.mean() - cloth(channels=channels).mean()) < 2


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_full_range(tmp_path, suffix):
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(deep).save(path)
    assert read_image(path).tolist() == [[0, 0, 1, 1, 128, 255]]


def test_palette_becomes_colour_and_alpha_is_dropped(tmp_path):
    colour = cloth(channels=(3,)) // 64 * 64
    path = tmp_path / "palette.png"
    Image.fromarray(colour).quantize(64).save(path)
    assert np.abs(read_image(path).astype(int) - colour).mean() < 4
    rgba = np.dstack([cloth(channels=(3,)), np.full((24, 40), 7, np.uint8)])
    Image.fromarray(rgba).save(path)
    assert np.array_equal(read_image(path), cloth(channels=(3,)))
    Image.fromarray(np.dstack([cloth(), cloth()])).save(path)
    assert np.array_equal(read_image(path), cloth())


def test_a_picture_taken_sideways_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cloth()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(cloth(), -1))


def test_a_picture_can_be_written_to_and_handed_to_other_libraries(tmp_path):
    write_png(tmp_path / "a.png", cloth())
    image = read_image(tmp_path / "a.png")
    assert image.flags.writeable
    assert image.flags.c_contiguous


def bad_files(folder):
    """Name → what the message must say."""
    whole = encode_png(cloth())
    (folder / "huge.png").write_bytes(png_header(60_000, 60_000))
    (folder / "text.png").write_text("this is no picture\n")
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    (folder / "broken.png").write_bytes(broken)
    Image.fromarray(cloth()).save(folder / "other.gif")
    (folder / "other.gif").rename(folder / "other.png")
    Image.fromarray(cloth().astype(np.float32)).save(folder / "float.tif")
    (folder / "folder.png").mkdir()
    return {
        "huge.png": "60000 × 60000",
        "text.png": "no PNG",
        "empty.png": "empty",
        "truncated.png": "truncated",
        "broken.png": "damaged",
        "other.png": "no PNG",
        "float.tif": "32 bits",
        "folder.png": "not a file",
        "missing.png": "no such file",
    }


def test_a_bad_file_is_named_with_its_path_and_reason_in_one_line(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(ImageError) as caught:
            read_image(tmp_path / name)
        message = str(caught.value)
        assert str(tmp_path / name) in message
        assert reason in message, message
        assert "\n" not in message


def test_large_pictures_are_read_without_a_warning_unless_over_the_limit(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    # 90 Mpx of one colour, more than Pillow allows without a warning; warnings are errors here.
    Image.new("1", (18_000, 5_000)).save(tmp_path / "long.png")
    assert read_image(tmp_path / "long.png").shape == (5_000, 18_000)
    with pytest.raises(ImageError, match="the limit is 50 million"):
        read_image(tmp_path / "long.png", max_pixels=50_000_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_threads_that_read_at_once_leave_pillow_and_the_warnings_as_they_were(tmp_path):
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    write_png(tmp_path / "a.png", cloth(200, 300))
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(read_image, [tmp_path / "a.png"] * 100))
    assert all(np.array_equal(picture, cloth(200, 300)) for picture in pictures)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(cloth(channels=(3,))).save(buffer, kind)
    return buffer.getvalue()


FILES = {kind: encoded(kind) for kind in ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"]}


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.floats(0, 1), st.integers(0, 7), st.booleans())
def test_no_damage_ends_in_anything_but_a_picture_or_an_image_error(
    tmp_path_factory, kind, where, bit, cut_off
):
    data = bytearray(FILES[kind])
    place = int(where * (len(data) - 1))
    if cut_off:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(data)
    try:
        image = read_image(path)
    except ImageError as error:
        assert str(path) in str(error)  # noqa: PT017, both ends are right
    else:
        assert image.dtype == np.uint8
        if cut_off:  # whole pictures may lose their last bytes, which say nothing of pixels
            assert image.shape == (24, 40, 3)


def test_bad_files_are_skipped_and_reported_or_stop_the_reading(tmp_path):
    write_png(tmp_path / "a.png", cloth())
    (tmp_path / "b.png").write_text("no picture")
    write_png(tmp_path / "c.png", cloth())
    paths = find_images(tmp_path)
    errors = []
    read = [path.name for path, _ in read_images(paths, on_error="skip", report=errors.append)]
    assert read == ["a.png", "c.png"]
    assert [error.where.name for error in errors] == ["b.png"]
    reading = read_images(paths, on_error="fail")
    assert next(reading)[0].name == "a.png"
    with pytest.raises(ImageError, match=r"b\.png"):
        next(reading)


def test_a_folder_gives_its_own_pictures_in_the_order_people_expect(tmp_path):
    for name in ["frame10.png", "frame2.PNG", "frame1.tiff", "notes.txt", ".hidden.png", "deeper/frame3.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["frame1.tiff", "frame2.PNG", "frame10.png"]
    assert [path.name for path in find_images(str(tmp_path / "frame1*"))] == ["frame1.tiff", "frame10.png"]
    assert [path.name for path in find_images(f"{tmp_path}/**/*3.png")] == ["frame3.png"]
    assert find_images(tmp_path / "frame10.png") == [tmp_path / "frame10.png"]


def test_a_pattern_passes_by_what_this_program_wrote(tmp_path):
    for name in ("1.png", "left/2.png", "result/rollmap.png", "result/maps/1.png", "twill/samples/01.png"):
        (tmp_path / "roll" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "roll" / name).write_bytes(b"")
    (tmp_path / "roll/left/regions.json").write_text('{"regions": []}')  # somebody's own
    (tmp_path / "roll/result/regions.json").write_text('{"loomsight": "inspection",\n "regions": []}')
    (tmp_path / "roll/twill/profile.sha256").write_text("")
    assert [path.name for path in find_images(f"{tmp_path}/roll/**/*.png")] == ["1.png", "2.png"]
    assert "rollmap.png" not in [path.name for path in find_images(f"{tmp_path}/roll/*/*.png")]
    for asked in ("roll/result/**/*.png", "roll/*/maps/*.png"):  # what is named itself is meant
        assert "1.png" in [path.name for path in find_images(f"{tmp_path}/{asked}")]


def test_a_missing_source_is_a_wrong_argument_and_an_empty_folder_is_not(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder") as missing:
        find_images(tmp_path / "nowhere")
    assert missing.value.exit_code == 2
    with pytest.raises(UsageError, match="no picture matches"):
        find_images(str(tmp_path / "*.png"))
    with pytest.raises(DatasetError, match="no pictures in the folder") as empty:
        find_images(tmp_path)
    assert empty.value.exit_code == 3


def test_any_nonzero_pixel_of_a_mask_is_a_defect(tmp_path):
    values = np.array([[0, 1, 128, 255]], np.uint8)
    write_png(tmp_path / "m.png", values)
    assert read_mask(tmp_path / "m.png", (1, 4)).tolist() == [[False, True, True, True]]
    write_png(tmp_path / "m.png", values.astype(np.uint16))
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, True, True]]
    write_png(tmp_path / "m.png", np.dstack([values, values * 0, values * 0]))
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True, True, True]]


def test_the_rings_of_a_jpeg_mask_are_no_defect(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[20:37, 11:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=40)
    assert np.array_equal(read_mask(tmp_path / "m.jpg"), mask > 0)


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    write_png(tmp_path / "m.png", np.zeros((5, 7), np.uint8))
    with pytest.raises(ImageError, match="7 × 5 pixels, the picture 8 × 6"):
        read_mask(tmp_path / "m.png", (6, 8))


@pytest.mark.parametrize("array", [cloth(), cloth(channels=(3,)), cloth().astype(np.uint16) * 257 + 3])
def test_a_written_png_holds_the_same_values(tmp_path, array):
    write_png(tmp_path / "new" / "a.png", array)
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert np.array_equal(np.asarray(image), array)
    assert encode_png(array) == encode_png(array)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_png_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_png(tmp_path / "file" / "a.png", cloth())
    with pytest.raises(ValueError, match="uint8 HW"):
        encode_png(np.zeros((3, 3), np.float32))


def test_grey_and_colour_turn_into_each_other():
    assert to_rgb(cloth()).shape == (24, 40, 3)
    assert np.array_equal(to_grey(to_rgb(cloth())), cloth())
    with pytest.raises(ValueError, match="HWC RGB"):
        to_rgb(np.zeros((4, 4, 4), np.uint8))
