"""Pictures of every kind that a PNG file of a data set may turn out to be."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Where the fields of the first chunk lie in a PNG file, and how they are packed.
HEADER = {"width": (16, ">I"), "height": (20, ">I"), "depth": (24, "B"), "colour": (25, "B"), "interlace": (28, "B")}
CLAIMS = (0, 1, 2, 3, 4, 6, 16, 63, 300, 60_000, 99_999_999, 2**31 - 1, 2**31, 2**32 - 1)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_claim(data: bytes, field: str, value: int) -> bytes:
    """The file with another value in its header, and the checksum that belongs to it."""
    at, kind = HEADER[field]
    value %= 256 ** struct.calcsize(kind)
    header = bytearray(data[:33])
    header[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
    return bytes(header) + data[33:]


#: Chunks that may stand after the header.
CHUNKS: dict[str, Callable[[], bytes]] = {
    "comment": lambda: _chunk(b"tEXt", b"Comment\0x"),
    "bomb": lambda: _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(30_000_000))),
    "profile": lambda: _chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    "turned": lambda: _chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "transparent": lambda: _chunk(b"tRNS", bytes(6)),
    "gamma": lambda: _chunk(b"gAMA", bytes(4)),
    "density": lambda: _chunk(b"pHYs", bytes(9)),
    "unknown": lambda: _chunk(b"XxXx", b"x"),
    "animated": lambda: _chunk(b"acTL", struct.pack(">II", 3, 0)),
    "end": lambda: _chunk(b"IEND", b""),
}  # fmt: skip


def with_chunk(data: bytes, name: str) -> bytes:
    return data[:33] + CHUNKS[name]() + data[33:]


def _pixels(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.copy()


def _saved(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def recompressed(data: bytes, level: int) -> bytes:
    return _saved(_pixels(data), compress_level=level)


def _exif_turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(image.convert("RGB"), "jpeg", exif=exif.tobytes())


#: Files made from a picture, by what they are.
MADE: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda p: _saved(p.convert("L")),
    "grey 16": lambda p: _saved(Image.fromarray(np.asarray(p.convert("L")).astype(np.uint16) * 257)),
    "with alpha": lambda p: _saved(p.convert("RGBA")),
    "grey with alpha": lambda p: _saved(p.convert("LA")),
    "palette": lambda p: _saved(p.convert("P")),
    "two colours": lambda p: _saved(p.convert("1")),
    "jpeg": lambda p: _saved(p.convert("RGB"), "jpeg"),
    "turned jpeg": _exif_turned,
    "jpeg of inks": lambda p: _saved(p.convert("CMYK"), "jpeg"),
    "float tiff": lambda p: _saved(p.convert("F"), "tiff"),
    "gif": lambda p: _saved(p.convert("P"), "gif"),
    "bmp": lambda p: _saved(p.convert("RGB"), "bmp"),
    "one pixel": lambda p: _saved(p.resize((1, 1))),
    "row": lambda p: _saved(p.resize((64, 1))),
    "column": lambda p: _saved(p.resize((1, 64))),
    "narrow": lambda p: _saved(p.resize((3, 2000))),
    "half size": lambda p: _saved(p.resize((max(p.width // 2, 1), max(p.height // 2, 1)))),
    "double size": lambda p: _saved(p.resize((p.width * 2, p.height * 2))),
    "large": lambda p: _saved(Image.new("1", (6000, 6000))),
    "black": lambda p: _saved(Image.new(p.mode, p.size)),
    "no pixels": lambda p: (
        SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + _chunk(b"IEND", b"")
    ),
}  # fmt: skip


def made(name: str, data: bytes) -> bytes:
    return MADE[name](_pixels(data))
