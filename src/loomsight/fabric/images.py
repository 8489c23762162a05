"""Reading and writing pictures safely: a short list of formats, the size checked before anything is decoded.

Read: PNG, JPEG, TIFF, BMP, WEBP, PGM and PPM. Grey stays grey (HW), colour becomes RGB (HWC), palettes
become RGB, alpha is dropped, the EXIF orientation is applied; of several frames the first is read. Grey of
16 bits becomes 8 by ``round(value / 257)``: the full range is kept, so a 12-bit camera must scale its
values up to 65,535 before it saves them. Every failure is an :class:`ImageError` of one line that names
the file and the reason.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from loomsight.errors import DatasetError, ImageError, UsageError
from loomsight.fabric.types import Mask, Picture
from loomsight.files import write_bytes, written_by_us

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
"""What the decoder is allowed to try, by Pillow's names; PPM is the whole family PBM, PGM, PPM."""
SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".pbm", ".pnm")
)
"""Names of pictures in a folder, in any case."""
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
"""Those whose pictures usually are not as the camera saw them: fine detail is changed."""
MAX_PIXELS = 500_000_000
"""Larger pictures are refused from their header: 2 m of web at 0.1 mm are 20,000 × 25,000 pixels."""

_STRIP = 2**17  # pixels that are taken over at a time
_GREY = ("1", "L", "LA", "La")  # modes of Pillow that become grey
_NAMES = "PNG, JPEG, TIFF, BMP, WEBP, PGM or PPM"
# What the decoders raise on damaged bytes; anything else is a fault of this program.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    MemoryError, NotImplementedError, struct.error, zlib.error,
)  # fmt: skip


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture: uint8, HW grey or HWC RGB.

    Args:
        path: the file; its content decides the format, not its name.
        max_pixels: pictures with more pixels are refused before they are decoded.

    Raises:
        ImageError: missing, empty, no picture, of another format, damaged, truncated or too large.
    """
    with _decoded(path, max_pixels) as image:
        pixels = _grey16(image, path)
        if pixels is not None:
            # (v + 128) // 257 is v / 257 rounded, in whole numbers.
            return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return _array(image)


def read_mask(path: Path, shape: tuple[int, int] | None = None) -> Mask:
    """Read a mask: bool HW, true wherever the file is not black.

    In a JPEG, whose compression leaves faint rings around every edge, true from half of white.

    Args:
        path: the file, grey or colour, 8 or 16 bits.
        shape: height and width it must have, its picture's.

    Raises:
        ImageError: as :func:`read_image`, or the size is not ``shape``.
    """
    with _decoded(path, MAX_PIXELS) as image:
        grey16 = _grey16(image, path)
        pixels: NDArray[Any] = _array(image) if grey16 is None else grey16
        brightest = pixels.max(axis=2) if pixels.ndim == 3 else pixels
        mask: Mask = np.asarray(brightest >= (128 if image.format == "JPEG" else 1))
    if shape is not None and mask.shape != tuple(shape[:2]):
        raise ImageError(
            "mask does not fit its picture",
            where=path,
            why=f"it is {mask.shape[1]} × {mask.shape[0]} pixels, the picture {shape[1]} × {shape[0]}",
        )
    return mask


def read_images(
    paths: Iterable[Path],
    *,
    on_error: Literal["fail", "skip"] = "fail",
    report: Callable[[ImageError], None] | None = None,
) -> Iterator[tuple[Path, Picture]]:
    """Read pictures one after another, holding one at a time.

    Args:
        paths: the files.
        on_error: ``"fail"`` raises at the first bad file, ``"skip"`` goes on with the next.
        report: called with the error of each skipped file.

    Raises:
        ImageError: of the first bad file, if ``on_error`` is ``"fail"``.
    """
    for path in paths:
        try:
            picture = read_image(path)
        except ImageError as error:
            if on_error == "fail":
                raise
            if report is not None:
                report(error)
            continue
        yield path, picture


def find_images(source: Path | str) -> list[Path]:
    """The pictures of a folder, a glob pattern or a single file.

    A folder gives its own pictures, by suffix, not those of folders below it and no hidden ones. A pattern
    that leaves their folder open, as ``*/*.png`` and ``**`` do, passes by the results, profiles and bases
    that this program wrote: a roll map or a sample is no cloth of the roll. The order is that of people:
    ``frame2`` comes before ``frame10``.

    Raises:
        UsageError: the source does not exist, or a pattern matches no picture.
        DatasetError: the folder holds no picture, or may not be read.
    """
    path = Path(source)
    try:
        if path.is_file():
            return [path]
        if path.is_dir():
            found = _pictures(path.iterdir())
            if not found:
                raise DatasetError("no pictures in the folder", where=path, do=f"put {_NAMES} files there")
            return found
    except OSError as error:
        raise DatasetError("cannot read the folder", where=path, why=error.strerror) from error
    if not glob.has_magic(str(source)):
        raise UsageError("no such file or folder", where=source, do="check the path")
    matches = glob.glob(str(source), recursive=True)  # noqa: PTH207, Path.glob takes no absolute pattern
    found = _pictures(map(Path, matches))
    root = Path(source).parent
    if "**" in root.parts or glob.has_magic(root.name):
        while glob.has_magic(str(root)):
            root = root.parent
        found = _not_ours(found, root)
    if not found:
        raise UsageError("no picture matches", where=source, do="check the pattern, and quote it")
    return found


def mostly_lossy(paths: Sequence[Path]) -> bool:
    """Whether most of these files, by their suffixes, were compressed so that fine detail is lost."""
    return 2 * sum(path.suffix.lower() in LOSSY for path in paths) > len(paths)


def _not_ours(paths: list[Path], root: Path) -> list[Path]:
    """The paths that lie in no folder of this program below ``root``."""
    ours: dict[Path, bool] = {root: False, root.parent: False}

    def lies_in_ours(folder: Path) -> bool:
        if folder not in ours:
            above = folder != folder.parent and lies_in_ours(folder.parent)
            ours[folder] = above or written_by_us(folder)
        return ours[folder]

    return [path for path in paths if not lies_in_ours(path.parent)]


def to_rgb(image: Picture) -> Picture:
    """HW or HWC → HWC with three channels; a picture that is RGB already comes back as it is."""
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    _check_rgb(image)
    return image


def to_grey(image: Picture) -> Picture:
    """HW or HWC → HW, by the luma weights of ITU-R BT.601; a grey picture comes back as it is."""
    if image.ndim == 2:
        return image
    _check_rgb(image)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def encode_png(array: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A PNG of uint8 HW, uint8 HWC RGB, or uint16 HW; the same array gives the same bytes.

    Raises:
        ValueError: another type or shape, or no pixel at all.
    """
    is_picture = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
    if not (is_picture or (array.dtype == np.uint16 and array.ndim == 2)) or array.size == 0:
        raise ValueError(f"a PNG needs uint8 HW, uint8 HWC or uint16 HW, got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def write_png(path: Path, array: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write :func:`encode_png`'s bytes to ``path`` atomically, making its folder.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, encode_png(array))


class _OwnLimits:
    """While anybody is inside, Pillow's pixel limit is off and its warnings are silent.

    Our own limit is checked on the header, and Pillow's is lower (179 Mpx) and process-wide, as warning
    filters are; so with several reading threads the first one in sets both, the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._pillows: int | None = None
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._pillows
                self._filters.__exit__(None, None, None)


_own_limits = _OwnLimits()


@contextlib.contextmanager
def _decoded(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Open a file, check its header, decode it and turn it upright; damage becomes an :class:`ImageError`."""
    try:
        if not path.is_file():
            why = "it is not a file" if path.exists() else "no such file"
            raise ImageError("cannot read the picture", where=path, why=why)
        with path.open("rb") as file, _own_limits:
            opened = _open(file, path)
            if opened.width * opened.height > max_pixels:
                raise ImageError(
                    "picture too large",
                    where=path,
                    why=f"its header says {opened.width} × {opened.height} pixels, "
                    f"the limit is {max_pixels / 1e6:g} million",
                    do="cut it into shorter strips",
                )
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)  # a copy is a third of a JPEG's time
            yield opened
    except ImageError:
        raise
    except _DAMAGE as error:
        why = "it is truncated" if "truncated" in str(error).lower() else f"it is damaged: {error}"
        if isinstance(error, PermissionError):
            why = "permission denied"
        raise ImageError("cannot read the picture", where=path, why=why) from error


def _open(file: Any, path: Path) -> ImageFile.ImageFile:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        why = "the file is empty" if not start else f"it is no {_NAMES} file, or its header is damaged"
        raise ImageError("cannot read the picture", where=path, why=why) from error


def _array(image: Image.Image) -> Picture:
    """The pixels of a picture of 8 bits, grey or RGB.

    Strip by strip: asked for all at once, Pillow copies them twice, and what leaves the processor's cache
    takes as long as decoding a JPEG.
    """
    mode = "L" if image.mode in _GREY else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    width, height = image.size
    pixels = np.empty((height, width) if mode == "L" else (height, width, 3), np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        below = min(top + rows, height)
        pixels[top:below] = np.asarray(image.crop((0, top, width, below)))
    return pixels


def _grey16(image: Image.Image, path: Path) -> NDArray[np.uint16] | None:
    """The pixels of a 16-bit grey picture; None when it has 8 bits."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits in a wider type
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise ImageError(
            "cannot read the picture",
            where=path,
            why="its pixels have 32 bits, and no range that says what is white",
            do="save it with 8 or 16 bits",
        )
    return None


def _check_rgb(image: Picture) -> None:
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be HW or HWC RGB, got shape {image.shape}")


def _pictures(paths: Iterable[Path]) -> list[Path]:
    """Those that are files with a picture's suffix and not hidden, in order."""
    found = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Runs of digits count as numbers; the text itself decides between 1 and 01."""
    pieces = re.split(r"(\d+)", str(path))
    key = [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces]
    return [*key, (2, 0, str(path))]
