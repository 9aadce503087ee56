"""One way from image files to upright RGB: turned, deep, odd, huge and broken ones."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from distill3d.data.depth import read_depth, write_depth
from distill3d.data.pictures import picture_size, read_image, read_picture
from distill3d.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9)


def refused(path: Path, words: str, read=read_image) -> None:
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_turned_pictures_are_read_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path).permute(1, 2, 0), expected)
    assert picture_size(path) == read_picture(path).size == expected.shape[1::-1]


def test_exif_data_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), COLOURS)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image = Image.fromarray(COLOURS).convert(mode)
    image.save(path)
    assert torch.equal(read_image(path), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def test_of_moving_pictures_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (9, 6), (200, 0, 0)), Image.new("RGB", (9, 6), (0, 200, 0))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_greys_are_scaled(tmp_path: Path, name: str) -> None:
    """A picture of 16 bits that fills them is its 8-bit copy."""
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    for channel in read_image(tmp_path / name):
        assert np.array_equal(channel, GREY)


@pytest.mark.parametrize("factor", [1, 4, 16])
def test_deep_pictures_of_fewer_bits_are_refused(tmp_path: Path, factor: int) -> None:
    Image.fromarray(GREY.astype(np.uint16) * factor).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", f"has 16 bits but no value above {255 * factor}")


def deep_colours(values: np.ndarray) -> bytes:
    """A PNG of three channels of 16 bits, which Pillow reads and cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_deep_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(deep_colours(COLOURS.astype(np.uint16) * 257))
    assert np.array_equal(read_image(path).permute(1, 2, 0), COLOURS)
    path.write_bytes(deep_colours(COLOURS.astype(np.uint16) * 16))
    refused(path, "has 16 bits but no value above")


def test_floats_have_a_range_or_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], GREY)
    for values in (GREY.astype(np.float32), GREY.astype(np.float32) - 0.5, np.full((6, 9), np.nan, np.float32)):
        Image.fromarray(values).save(tmp_path / "b.tif")
        refused(tmp_path / "b.tif", "expected 8 or 16 bits, or 0 to 1")
    Image.fromarray(GREY.astype(np.int32) * 1000).save(tmp_path / "c.tif")
    refused(tmp_path / "c.tif", "holds numbers from 0 to 255000")


def claims(width: int, height: int) -> bytes:
    """A small PNG whose header says another size."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1), (8193, 8192)])
@pytest.mark.parametrize("read", [read_image, picture_size, read_depth])
def test_huge_pictures_are_refused_by_their_header(tmp_path: Path, size: tuple[int, int], read) -> None:
    (tmp_path / "a.png").write_bytes(claims(*size))
    refused(tmp_path / "a.png", "is too large (", read)


def test_a_bomb_of_text_is_refused(tmp_path: Path) -> None:
    data = claims(8, 8)
    text = b"zTXt" + b"key\0\0" + zlib.compress(bytes(2**21))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    refused(tmp_path / "a.png", "cannot be read as an image")


def test_programs_are_not_started(tmp_path: Path) -> None:
    """Pillow would hand PostScript to an interpreter."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\n")
    refused(tmp_path / "a.png", "it is none of PNG, JPEG")


def test_folders_and_odd_paths(tmp_path: Path) -> None:
    refused(tmp_path, "Is a directory")
    refused(tmp_path / "a\0b", "is no path of a file")
    refused(tmp_path / "absent", "no such file")


def test_sizes_of_pictures_that_are_cut_short(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        Image.fromarray(np.tile(COLOURS, (20, 20, 1))).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert picture_size(tmp_path / name) == (180, 120)
        (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
        refused(tmp_path / name, "cannot be read as an image", picture_size)


def test_depth_images_have_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "d.png"
    for image, words in (
        (Image.fromarray(GREY), "this one has 8 bits"),
        (Image.fromarray(COLOURS), "this one has three channels"),
        (Image.fromarray(COLOURS).convert("P"), "this one has 8 bits and a palette"),
    ):
        image.save(path)
        refused(path, words, read_depth)
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "d.tif")
    refused(tmp_path / "d.tif", "this one has mode F", read_depth)


def whole_files(folder: Path) -> list[bytes]:
    """Small files of several formats."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(folder / "a.png")
    Image.fromarray(COLOURS).save(folder / "a.jpg", exif=exif)
    Image.fromarray(COLOURS).save(folder / "a.tif", compression="tiff_lzw")
    Image.fromarray(COLOURS).save(folder / "a.bmp")
    Image.fromarray(COLOURS).save(folder / "a.webp")
    Image.fromarray(COLOURS).convert("P").save(folder / "a.gif")
    write_depth(folder / "d.png", torch.ones(6, 9))
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return whole_files(tmp_path_factory.mktemp("whole"))


change = st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "drop", "repeat"]), st.integers(0, 255))


@given(st.integers(0, 6), st.lists(change, min_size=1, max_size=4))
@settings(max_examples=150)
def test_any_bytes_give_a_picture_or_a_sentence(
    files: list[bytes], tmp_path_factory: pytest.TempPathFactory, which: int, changes: list[tuple[float, str, int]]
) -> None:
    data = bytearray(files[which])
    for share, what, value in changes:
        at = int(share * max(len(data) - 1, 0))
        if what == "flip" and data:
            data[at] = value
        elif what == "cut":
            del data[at:]
        elif what == "drop":
            del data[at : at + value % 16]
        else:
            data[at:at] = data[at : at + value]
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(data)
    for read in (read_image, picture_size, read_depth):
        try:
            read(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
