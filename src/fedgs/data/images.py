"""Image and mask files as arrays; whatever cannot be read faithfully is refused by name.

A file is read as a viewer shows it: the orientation that a camera noted in it (EXIF) is applied to images and to masks
alike, each by its own note.
"""

from __future__ import annotations

import struct
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fedgs.errors import DataError

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "as_picture",
    "read_image",
    "read_mask",
    "resize_image",
    "shrunk",
    "with_channels",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of the files that count as images, in lower case."""

MAX_PIXELS = 3 * 2**22
"""A file that declares more pixels (than 4096 x 3072) is refused before it is decoded.

Reading an image or a mask of so many pixels takes less than 256 MB, whatever a file turns out to hold.
"""

_MAX_PIXELS_WEBP = 3 * 2**21  # its decoder takes twice the memory
_MAX_SIDE = 2**14  # an image of one row takes many times the memory when it is resized
_VALUES_LOOKED_AT = 2**16
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
_JPEG_FORMATS = ("JPEG", "MPO")
_JPEG_THRESHOLD = 127
_JPEG_MAX_COLOUR = 64
_JPEG_MAX_SHARE_BETWEEN = 0.1
# A JPEG of low quality may turn black into a constant level just above 0.
_JPEG_BLACK = 16
_JPEG_WHITE = 192
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# What Pillow raises for damaged files, found by flipping and cutting bytes; warnings are among them where a program
# turns them into errors.
_DAMAGE = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, EOFError, struct.error, Warning)
_warning_filters = threading.Lock()


class _Picture(NamedTuple):
    pixels: Image.Image
    is_jpeg: bool
    is_deep: bool


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads a frame.

    Args:
        path: A PNG, JPEG, TIFF, BMP or WebP file with 8 bits per channel.

    Returns:
        (H, W, C), uint8: C = 3 for RGB and palette files, 1 for grey ones. A channel of opacity is dropped if it is
        opaque throughout.

    Raises:
        DataError: The file is damaged, declares more than `MAX_PIXELS`, is no image, or is of a kind whose levels have
            no single meaning (more than 8 bits, CMYK, transparent, several pages); the message names it.
    """
    picture = _decode(path, may_be_deep=False)
    levels = np.asarray(_plain(path, picture.pixels))
    return levels[:, :, np.newaxis] if levels.ndim == 2 else levels


def read_mask(path: Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Reads a mask as lesion or not.

    A JPEG mask is a lesion where its grey level is above 127; unless it is black throughout, it must have white
    somewhere, since lesions stored as 1 would otherwise be lost. A mask in any other format has at most two values, one
    of them 0 (black) unless it is constant, and is a lesion wherever it is not 0.

    Args:
        path: A PNG, JPEG, TIFF, BMP or WebP file; grey, palette or RGB.
        size: Height and width that the mask must have, in pixels: those of its image.

    Returns:
        (H, W), bool.

    Raises:
        DataError: The file cannot be read, has another size, or is no mask of two values; the message names them.
    """
    picture = _decode(path, may_be_deep=True)
    found = (picture.pixels.height, picture.pixels.width)
    if size is not None and found != size:
        raise DataError(f"{path}: the mask has {_by(found)}, its image {_by(size)}; expected the same for both")
    return _jpeg_mask(path, picture.pixels) if picture.is_jpeg else _lossless_mask(path, picture)


def as_picture(image: NDArray[np.uint8]) -> Image.Image:
    """Gives a frame, (H, W, C), uint8, C = 1 or 3, as a grey or coloured picture."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def resize_image(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resizes a frame to a square, bilinear with antialiasing; as published, the aspect ratio is not kept.

    Args:
        image: (H, W, C), uint8, C = 1 or 3.
        size: Height and width of the result in pixels.

    Returns:
        (size, size, C), uint8.
    """
    resized = np.asarray(as_picture(image).resize((size, size), Image.Resampling.BILINEAR))
    return resized.reshape(size, size, image.shape[2])


def with_channels(image: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Gives a frame the channels of others that it stands among: a grey one among coloured ones has three equal ones.

    Args:
        image: (H, W, C), C = 1 or `channels`.
        channels: 1 or 3.

    Returns:
        (H, W, channels).
    """
    return np.repeat(image, channels, axis=2) if image.shape[2] < channels else image


def shrunk(mask: NDArray[np.bool_], size: int | tuple[int, int]) -> NDArray[np.bool_]:
    """Gives a mask as something to look at; a pixel is set where any that it covers is, so no lesion vanishes.

    Args:
        mask: (H, W).
        size: Side of a square, or height and width, in pixels; at most as many as the mask has.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rows, columns = np.nonzero(mask)
    small = np.zeros((height, width), np.bool_)
    small[rows * height // mask.shape[0], columns * width // mask.shape[1]] = True
    return small


def _decode(path: Path, *, may_be_deep: bool) -> _Picture:
    """Reads the header, refuses what it may not decode, decodes the rest and turns it upright."""
    try:
        with _open_header(path) as image:
            is_jpeg = image.format in _JPEG_FORMATS
            _require_decodable(path, image)
            # Pillow cuts RGB with 16 bits to 8 without a word; before decoding, the tiles still tell.
            is_deep = image.mode[0] in "IF" or any(";16" in str(tile) for tile in getattr(image, "tile", ()))
            if is_deep and not may_be_deep:
                raise DataError(
                    f"{path}: has more than 8 bits per channel; expected 8, so convert it by a window of levels"
                )
            image.load()
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            return _Picture(image, is_jpeg, is_deep)
    except UnidentifiedImageError as error:
        content = "is empty (0 bytes)" if path.stat().st_size == 0 else "is not a readable image"
        raise DataError(f"{path}: {content}; expected an intact PNG, JPEG, TIFF, BMP or WebP file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "declares far more") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; was it moved or deleted, or is it a broken link?") from error
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; check its permissions") from error
    except MemoryError as error:
        raise _too_large(path, "needs more memory than there is") from error
    except _DAMAGE as error:
        raise DataError(f"{path}: cut short or damaged ({error}); replace it by an intact copy") from error


def _open_header(path: Path) -> Image.Image:
    """Reads the header alone; Pillow's warning about many pixels is silenced, since here that is an error."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise DataError(f"{path}: is no file; expected a PNG, JPEG, TIFF, BMP or WebP file")
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(path, formats=_FORMATS)


def _require_decodable(path: Path, image: Image.Image) -> None:
    """Refuses by its header what would take too much memory or has no single meaning."""
    limit = _MAX_PIXELS_WEBP if image.format == "WEBP" else MAX_PIXELS
    if max(image.size) > _MAX_SIDE:
        raise DataError(f"{path}: declares {_by((image.height, image.width))}; expected sides up to {_MAX_SIDE} pixels")
    _require_pixels(path, "declares", image.width, image.height, limit)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        # A tile is decoded as a whole, however little of it the image shows.
        _require_pixels(path, "has tiles of", tags.get(_TILE_WIDTH, 0), tags.get(_TILE_LENGTH, 0), MAX_PIXELS)
        has_pages = tags.next != 0
    else:
        has_pages = image.format not in _JPEG_FORMATS and getattr(image, "n_frames", 1) > 1
    if has_pages:
        raise DataError(f"{path}: holds several pages; expected one image per file, so export one")
    if image.mode in ("CMYK", "LAB", "HSV"):
        raise _other_colours(path, image.mode)
    if image.format in _JPEG_FORMATS:
        _require_intact_jpeg(path)


def _require_intact_jpeg(path: Path) -> None:
    """Decodes a JPEG so that what its decoder mends counts as damage; Pillow fills it with grey without a word."""
    try:
        simplejpeg.decode_jpeg(path.read_bytes(), colorspace="GRAY", fastdct=True, fastupsample=True, strict=True)
    except ValueError as error:
        raise DataError(
            f"{path}: cut short or damaged ({error}); replace it by an intact copy, or, where a viewer shows it whole, "
            "save it anew"
        ) from error


def _require_pixels(path: Path, what: str, width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise _too_large(path, f"{what} {_by((height, width))}", limit)


def _plain(path: Path, image: Image.Image) -> Image.Image:
    """Gives the image as RGB or as grey with 8 bits; refuses what has no such form by the name of its colour mode."""
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("RGBA", "LA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path}: has transparent pixels; expected an opaque image, so flatten it")
        return image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode not in ("1", "L", "RGB", "YCbCr"):
        raise _other_colours(path, image.mode)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _jpeg_mask(path: Path, image: Image.Image) -> NDArray[np.bool_]:
    if image.mode == "RGB":
        colours = np.asarray(image)
        if int(np.ptp(colours, axis=2).max()) > _JPEG_MAX_COLOUR:
            raise DataError(f"{path}: a mask with colours; expected black and white (is it a photograph?)")
    levels = np.asarray(_plain(path, image).convert("L"))
    between = float(np.mean((levels >= 64) & (levels < 192)))
    if between > _JPEG_MAX_SHARE_BETWEEN:
        raise DataError(
            f"{path}: {between:.0%} of the mask's pixels are neither black nor white (grey levels 64 to 191); "
            "expected a mask of two values (is it a photograph?)"
        )
    darkest, lightest = int(levels.min()), int(levels.max())
    if lightest < _JPEG_WHITE and not darkest == lightest <= _JPEG_BLACK:
        raise DataError(
            f"{path}: the mask's grey levels reach from {darkest} to {lightest}; expected white (255) where a lesion "
            "is and black elsewhere, or black throughout. Set every lesion to 255, and save it without loss (PNG)"
        )
    return np.asarray(levels > _JPEG_THRESHOLD, dtype=np.bool_)


def _lossless_mask(path: Path, picture: _Picture) -> NDArray[np.bool_]:
    levels = _levels(path, picture)
    if levels.dtype.kind == "f" and not np.isfinite(levels).all():
        raise DataError(f"{path}: the mask holds values that are not finite; expected two: 0 and one other for lesion")
    odd = (levels != 0) & (levels != levels.max())
    if odd.any():
        # A sample tells enough: sorting all pixels of a large mask takes longer than reading it.
        extremes = {levels.min().item(), levels.max().item()}
        values = sorted({*extremes, *levels[odd][:_VALUES_LOOKED_AT].tolist()})
        shown = ", ".join(map(str, values[:6])) + (f", … ({len(values)} values)" if len(values) > 6 else "")
        raise DataError(
            f"{path}: the mask holds the values {shown}; expected two: 0 for background and one other for lesion. "
            "Set every lesion to 255 and the rest to 0, and save it without loss (PNG)"
        )
    return np.asarray(levels != 0, dtype=np.bool_)


def _levels(path: Path, picture: _Picture) -> NDArray[Any]:
    """One number per pixel: grey as it is, a colour as 0xRRGGBB."""
    if picture.is_deep and picture.pixels.mode != "RGB":
        return np.asarray(picture.pixels)
    if picture.is_deep:
        raise DataError(f"{path}: a mask with 16 bits per colour; expected black and white with 8 bits")
    levels = np.asarray(_plain(path, picture.pixels))
    if levels.ndim == 2:
        return levels
    red = levels[:, :, 0]
    if np.array_equal(red, levels[:, :, 1]) and np.array_equal(red, levels[:, :, 2]):
        return red
    packed = red.astype(np.uint32)  # in place from here on: a large mask must not take several times its memory
    for channel in (1, 2):
        packed <<= 8
        packed |= levels[:, :, channel]
    return packed


def _other_colours(path: Path, mode: str) -> DataError:
    return DataError(f"{path}: its colour mode is {mode}; expected RGB or grey, so convert it")


def _too_large(path: Path, what: str, limit: int = MAX_PIXELS) -> DataError:
    return DataError(f"{path}: {what}; fedgs decodes up to {limit} pixels of such an image, so scale it down")


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]} pixels (width x height)"
