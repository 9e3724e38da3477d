"""Files as nobody wants them, and a process without a superuser's rights, for the tests of bad input."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

SIDE = 64
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
SQUARE = np.zeros((SIDE, SIDE), np.uint8)
SQUARE[8:32, 8:32] = 255


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, format=kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def zeros(count: int) -> bytes:
    """So many zero bytes, deflated, without having them all at once."""
    packer, block = zlib.compressobj(1), bytes(2**20)
    pieces = [packer.compress(block) for _ in range(count // len(block))]
    return b"".join([*pieces, packer.compress(bytes(count % len(block))), packer.flush()])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes, *, bits: int = 8, colour: int = 2, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def sixteen_bit_rgb() -> bytes:
    return png(SIDE, SIDE, zlib.compress(bytes(SIDE * (1 + SIDE * 6))), bits=16)


def tiff(tags: dict[int, int], data: bytes) -> bytes:
    """A TIFF with one grey deflated strip or tile, whose offset and length are filled in."""
    base = {256: SIDE, 257: SIDE, 258: 8, 259: 8, 262: 1, 277: 1}
    place = (324, 325) if 322 in tags else (273, 279)
    entries = base | tags | {place[0]: 8, place[1]: len(data)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + fields + bytes(4)


def huge_jpeg(*, progressive: bool) -> bytes:
    content = bytearray(encoded(NOISE, "JPEG", progressive=progressive))
    start = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(content)


def huge_webp(kind: bytes, side: int = 16_383) -> bytes:
    if kind == b"VP8X":
        body = bytes(4) + (side - 1).to_bytes(3, "little") * 2
    elif kind == b"VP8L":
        body = b"\x2f" + (side - 1 | (side - 1) << 14).to_bytes(4, "little") + bytes(20)
    else:
        body = b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", side, side) + bytes(20)
    riff = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


TEXT = 200 * 2**20
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 30000 x 30000 zeros": lambda: png(30_000, 30_000, zeros(30_000 * 3_751), bits=1, colour=0),
    "PNG that declares 2^31 x 2^31 without data": lambda: png(2**31 - 1, 2**31 - 1, b""),
    "PNG just small enough without data": lambda: png(4_096, 4_096, zlib.compress(b"")),
    "PNG just too large": lambda: png(4_096, 4_097, zlib.compress(b"")),
    "PNG with a compressed text": lambda: png(8, 8, zeros(200), before=chunk(b"zTXt", b"a\0\0" + zeros(TEXT))),
    "PNG with international text": lambda: png(8, 8, zeros(200), before=chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(TEXT))),
    "PNG with a colour profile": lambda: png(8, 8, zeros(200), before=chunk(b"iCCP", b"a\0\0" + zeros(TEXT))),
    "TIFF that declares 60000 x 60000": lambda: tiff({256: 60_000, 257: 60_000, 278: 60_000}, zeros(2**20)),
    "TIFF with a tile of 16384 x 16384": lambda: tiff({322: 16_384, 323: 16_384}, zeros(16_384**2)),
    "JPEG that declares 65500 x 65500": lambda: huge_jpeg(progressive=False),
    "progressive JPEG that declares 65500 x 65500": lambda: huge_jpeg(progressive=True),
    "WebP with a canvas of 16383 x 16383": lambda: huge_webp(b"VP8X"),
    "WebP of 2900 x 2900 zeros": lambda: encoded(np.zeros((2_900, 2_900), np.uint8), "WEBP", lossless=True, method=0),
    "lossless WebP of 16383 x 16383": lambda: huge_webp(b"VP8L"),
    "lossy WebP of 16383 x 16383": lambda: huge_webp(b"VP8 "),
    "BMP that declares 60000 x 60000": lambda: (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    ),
}

UNREADABLE: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "is empty (0 bytes)"),
    "truncated PNG": (encoded(NOISE)[:-5_000], "cut short or damaged"),
    "truncated JPEG": (encoded(NOISE, "JPEG")[:-700], "cut short or damaged"),
    "truncated TIFF": (encoded(NOISE, "TIFF")[:-5_000], "cut short or damaged"),
    "random bytes": (np.random.default_rng(1).bytes(5_000), "is not a readable image"),
    "a GIF called PNG": (encoded(SQUARE, "GIF"), "is not a readable image"),
    "text called PNG": (b"hello", "is not a readable image"),
}

OF_OTHER_KINDS: dict[str, tuple[bytes, str]] = {
    "16-bit grey": (encoded(NOISE[:, :, 0].astype(np.uint16) * 257), "8 bits per channel"),
    "16-bit colour": (sixteen_bit_rgb(), "8 bits per channel"),
    "float": (encoded(NOISE[:, :, 0].astype(np.float32), "TIFF"), "8 bits per channel"),
    "CMYK": (encoded(NOISE, "JPEG", "CMYK"), "its colour mode is CMYK"),
    "CMYK in TIFF": (encoded(NOISE, "TIFF", "CMYK"), "its colour mode is CMYK"),
    "transparent": (encoded(np.dstack([NOISE, NOISE[:, :, 0]])), "transparent pixels"),
    "transparent palette": (encoded(NOISE, "PNG", "P", transparency=0), "transparent pixels"),
    "several pages": (
        encoded(NOISE, "TIFF", save_all=True, append_images=[Image.fromarray(NOISE)]),
        "holds several pages",
    ),
}

CONVERTED: dict[str, bytes] = {
    "palette": encoded(NOISE // 64 * 64, "PNG", "P"),
    "opaque alpha": encoded(NOISE, "PNG", "RGBA"),
    "grey with opaque alpha": encoded(NOISE[:, :, 0], "PNG", "LA"),
    "one bit": encoded(SQUARE, "PNG", "1"),
}

_SQUARE_WITH = {level: np.where(SQUARE, level, 0).astype(np.uint8) for level in (1, 60, 100, 120)}
NO_MASKS: dict[str, tuple[bytes, str]] = {
    "three values": (encoded(np.where(NOISE[:, :, 0] > 99, 2, SQUARE // 255).astype(np.uint8)), "the values 0, 1, 2"),
    "no black": (encoded(SQUARE // 255 + 1), "the values 1, 2"),
    "two colours": (
        encoded(np.dstack([SQUARE, SQUARE.T[::-1], SQUARE * 0]).astype(np.uint8)),
        "the values 0, ",
    ),
    "a photograph as PNG": (encoded(NOISE[:, :, 0]), "values); expected two"),
    "a photograph as JPEG": (encoded((NOISE[:, :, 0] // 4 + 96).astype(np.uint8), "JPEG"), "neither black nor white"),
    "colours as JPEG": (encoded(np.dstack([SQUARE, SQUARE * 0, SQUARE * 0]), "JPEG"), "a mask with colours"),
    "0 and 1 as JPEG": (encoded(_SQUARE_WITH[1], "JPEG", quality=95), "from 0 to 1; expected white (255)"),
    "0 and 60 as JPEG": (encoded(_SQUARE_WITH[60], "JPEG", quality=95), "expected white (255)"),
    "few of 120 as JPEG": (
        encoded(np.where(np.indices(SQUARE.shape).sum(0) < 12, 120, 0).astype(np.uint8), "JPEG", quality=95),
        "expected white (255)",
    ),
    "CMYK": (encoded(np.dstack([SQUARE] * 3), "JPEG", "CMYK"), "its colour mode is CMYK"),
    "16-bit colour": (sixteen_bit_rgb(), "16 bits per colour"),
    "transparent": (encoded(np.dstack([SQUARE, SQUARE, SQUARE, 255 - SQUARE])), "transparent pixels"),
}

MASKS: dict[str, bytes] = {
    "palette": encoded(SQUARE, "PNG", "P"),
    "16-bit grey": encoded(SQUARE.astype(np.uint16)),
    "opaque alpha": encoded(SQUARE, "PNG", "LA"),
    "black JPEG": encoded(SQUARE * 0, "JPEG"),
    "black JPEG of low quality": encoded(SQUARE * 0, "JPEG", quality=8),
    "JPEG of low quality": encoded(SQUARE, "JPEG", quality=30),
}


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


_CAPABILITIES_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


@contextlib.contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Takes from this thread, and from those that it starts, a superuser's right to pass over permissions."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_CAPABILITIES_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    before = sets[0]
    try:
        sets[0] = before & ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
        yield
    finally:
        sets[0] = before
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
