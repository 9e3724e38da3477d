from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgs.data.images import read_image, read_mask, resize_image
from fedgs.errors import DataError

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
MASK = np.zeros((24, 32), dtype=bool)
MASK[4:14, 6:20] = True


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)  # type: ignore[arg-type]
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff", ".bmp"])
def test_lossless_files_give_their_pixels(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path / f"a{suffix}", FRAME)), FRAME)
    grey = read_image(saved(tmp_path / f"b{suffix}", FRAME[:, :, 0]))
    np.testing.assert_array_equal(grey, FRAME[:, :, :1])


def test_webp_and_jpeg_are_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.webp", FRAME, lossless=True)), FRAME)
    smooth = np.full((16, 16, 3), 120, dtype=np.uint8)
    assert np.abs(read_image(saved(tmp_path / "a.jpg", smooth)).astype(int) - 120).max() <= 1


def test_palette_and_opaque_images_are_converted(tmp_path: Path) -> None:
    paletted = saved(tmp_path / "p.png", FRAME // 64 * 64, "P")
    np.testing.assert_array_equal(read_image(paletted), np.asarray(Image.open(paletted).convert("RGB")))
    np.testing.assert_array_equal(read_image(saved(tmp_path / "o.png", FRAME, "RGBA")), FRAME)
    assert read_image(saved(tmp_path / "l.png", FRAME[:, :, 0], "LA")).shape == (24, 32, 1)
    assert set(np.unique(read_image(saved(tmp_path / "1.png", MASK)))) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_alike_for_image_and_mask(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(saved(tmp_path / "a.png", FRAME, exif=exif))
    mask = read_mask(saved(tmp_path / "b.png", MASK.astype(np.uint8) * 255, exif=exif), image.shape[:2])
    upright = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    turned = {5: lambda a: a, 6: lambda a: a[:, ::-1], 7: lambda a: a[::-1, ::-1], 8: lambda a: a[::-1]}
    for read, stored in ((image, FRAME), (mask, MASK)):
        swapped = np.swapaxes(stored, 0, 1) if orientation > 4 else stored
        np.testing.assert_array_equal(read, (upright | turned)[orientation](swapped))


def sixteen_bit_rgb(path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in RNG.integers(0, 2**16, (4, 12), dtype=np.uint16).astype(">u2"))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    pixels = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + pixels)


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([FRAME, FRAME[:, :, 0]])).save(path)


def several_pages(path: Path) -> None:
    Image.fromarray(FRAME).save(path, format="TIFF", save_all=True, append_images=[Image.fromarray(FRAME)])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no such file"),
    "broken link": (lambda path: path.symlink_to("nowhere.png"), "no such file"),
    "zero bytes": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_text("hello"), "not a readable image"),
    "gif": (lambda path: Image.fromarray(FRAME).save(path, format="GIF"), "not a readable image"),
    "truncated png": (lambda path: path.write_bytes(encoded("PNG")[:-900]), "cut short or damaged"),
    "truncated jpeg": (lambda path: path.write_bytes(encoded("JPEG")[:-200]), "cut short or damaged"),
    "jpeg cut short and closed": (lambda path: path.write_bytes(encoded("JPEG")[:-200] + b"\xff\xd9"), "damaged"),
    "jpeg with zeros amid": (lambda path: path.write_bytes(spoilt_jpeg(bytes(64))), "cut short or damaged"),
    "jpeg with a part gone": (lambda path: path.write_bytes(spoilt_jpeg(b"")), "cut short or damaged"),
    "one row": (lambda path: path.write_bytes(png_header(2**15, 1)), "sides up to 16384 pixels"),
    "pipe": (os.mkfifo, "is no file"),
    "truncated tiff": (lambda path: path.write_bytes(encoded("TIFF")[:-900]), "cut short or damaged"),
    "truncated bmp": (lambda path: path.write_bytes(encoded("BMP")[:-900]), "cut short or damaged"),
    "truncated webp": (lambda path: path.write_bytes(encoded("WEBP")[:-200]), "damaged|not a readable"),
    "bomb": (lambda path: path.write_bytes(png_header(10_000, 10_000)), "declares 10000 x 10000 pixels"),
    "huge bomb": (lambda path: path.write_bytes(png_header(2**30, 2**30)), "declares far more"),
    "16 bit grey": (lambda path: Image.fromarray(FRAME[:, :, 0].astype(np.uint16) * 257).save(path), "8 bits"),
    "16 bit rgb": (sixteen_bit_rgb, "8 bits"),
    "float": (lambda path: Image.fromarray(MASK.astype(np.float32)).save(path, format="TIFF"), "8 bits"),
    "cmyk": (lambda path: Image.fromarray(FRAME).convert("CMYK").save(path, format="JPEG"), "CMYK"),
    "transparent": (transparent, "transparent pixels"),
    "pages": (several_pages, "several pages"),
}


def spoilt_jpeg(amid: bytes) -> bytes:
    """With 64 bytes in its middle replaced."""
    content = encoded("JPEG")
    middle = len(content) - 400
    return content[:middle] + amid + content[middle + 64 :]


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(FRAME).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_faithfully_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = tmp_path / "frame.png"
    make(path)
    started = time.perf_counter()
    with pytest.raises(DataError, match=message) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_damage_anywhere_is_read_or_refused_but_never_crashes(tmp_path: Path, kind: str) -> None:
    intact, path = encoded(kind), tmp_path / "frame"
    rng = np.random.default_rng(len(kind))
    for _ in range(60):
        damaged = bytearray(intact)
        for place in rng.integers(0, min(len(damaged), 300), size=2):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged[: int(rng.integers(20, len(damaged) + 1))] if rng.random() < 0.5 else damaged)
        with contextlib.suppress(DataError):
            assert read_image(path).dtype == np.uint8


def test_threads_share_nothing_that_breaks(tmp_path: Path) -> None:
    bomb, good = tmp_path / "bomb.png", saved(tmp_path / "good.png", FRAME)
    bomb.write_bytes(png_header(9_900, 9_900))
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(50):
                read_image(good)
                with pytest.raises(DataError):
                    read_image(bomb)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_jpeg_mask_is_lesion_above_127(tmp_path: Path) -> None:
    levels = np.zeros((32, 32), dtype=np.uint8)
    levels[:, 8:], levels[:, 16:] = 3, 252
    for mode in ("L", "RGB"):
        mask = read_mask(saved(tmp_path / "m.jpg", levels, mode, quality=95))
        np.testing.assert_array_equal(mask, levels > 127)


@pytest.mark.parametrize("lesion", [1, 7, 128, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA"])
def test_a_lossless_mask_is_lesion_where_it_is_not_black(tmp_path: Path, mode: str, lesion: int) -> None:
    np.testing.assert_array_equal(read_mask(saved(tmp_path / "m.png", MASK.astype(np.uint8) * lesion, mode)), MASK)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_masks_of_every_format(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    np.testing.assert_array_equal(
        read_mask(saved(tmp_path / f"m{suffix}", MASK.astype(np.uint8) * 255, **options)), MASK
    )


def test_masks_of_other_depths_and_one_colour(tmp_path: Path) -> None:
    for name, pixels in (
        ("1", MASK),
        ("16", MASK.astype(np.uint16)),
        ("colour", np.dstack([MASK, MASK & 0, MASK & 0])),
    ):
        stored = pixels.astype(np.uint8) if pixels.ndim == 3 else pixels
        np.testing.assert_array_equal(read_mask(saved(tmp_path / f"{name}.png", stored)), MASK)


@pytest.mark.parametrize(("level", "expected"), [(0, False), (1, True), (255, True)])
def test_a_constant_mask_is_all_or_nothing(tmp_path: Path, level: int, expected: bool) -> None:
    mask = read_mask(saved(tmp_path / "m.png", np.full((8, 8), level, dtype=np.uint8)))
    assert bool(mask.all()) is bool(mask.any()) is expected


@pytest.mark.parametrize(("levels", "shown"), [((0, 1, 2), "0, 1, 2"), ((1, 2), "1, 2"), (tuple(range(9)), "9 values")])
def test_a_lossless_mask_with_other_values_is_refused_with_them(
    tmp_path: Path, levels: tuple[int, ...], shown: str
) -> None:
    path = saved(tmp_path / "m.png", np.array([levels], dtype=np.uint8))
    with pytest.raises(DataError, match=shown):
        read_mask(path)


def test_two_colours_beside_black_are_refused(tmp_path: Path) -> None:
    classes = np.zeros((8, 8, 3), dtype=np.uint8)
    classes[:2, :, 0] = classes[4:, :, 1] = 255
    with pytest.raises(DataError, match="the values 0, 65280, 16711680"):
        read_mask(saved(tmp_path / "m.png", classes))


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    photo = np.clip(RNG.normal(128, 30, (32, 32)), 0, 255).astype(np.uint8)
    for name, pixels, message in (("grey", photo, "neither black nor white"), ("colour", FRAME, "with colours")):
        with pytest.raises(DataError, match=message):
            read_mask(saved(tmp_path / f"{name}.jpg", pixels, quality=95))


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.png", MASK.astype(np.uint8))
    with pytest.raises(DataError, match=r"mask has 32 x 24 pixels .* its image 24 x 32"):
        read_mask(path, (32, 24))


def test_resizing_antialiases_and_keeps_channels() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))[:, :, np.newaxis]
    small = resize_image(stripes, 8)
    assert small.shape == (8, 8, 1)
    assert np.abs(small[:, 1:-1].astype(int) - 128).max() <= 2
    assert resize_image(FRAME, 24).shape == (24, 24, 3)
    np.testing.assert_array_equal(resize_image(FRAME[:, :24], 24), FRAME[:, :24])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize(
    ("suffix", "size"), [("png", (4096, 3072)), ("png", (768, 16384)), ("jpg", (3072, 4096)), ("webp", (2048, 3072))]
)
def test_a_file_at_the_limit_takes_less_than_256_mb(
    kind: str, suffix: str, size: tuple[int, int], tmp_path: Path
) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[-1, -2:] = [[1, 2, 3], [200, 0, 9]]  # two colours beside black, so that a mask is refused at its very end
    path = tmp_path / f"large.{suffix}"
    if suffix == "jpg" and kind == "mask":
        pixels[:] = 0
    Image.fromarray(pixels).save(path, **{"lossless": True} if suffix == "webp" else {})
    script = f"""
import resource
from pathlib import Path
import PIL.JpegImagePlugin, PIL.PngImagePlugin, PIL.WebPImagePlugin
from fedgs.data.images import read_image, read_mask
from fedgs.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_{kind}(Path({str(path)!r}))
except DataError as error:
    assert {kind!r} == "mask" and "the mask holds the values 0, 66051, 13107209" in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 256
