"""Pictures, for every layout and for ``predict``: one way from an image file to upright RGB, or to one sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageFile
from torch import Tensor

from distill3d.errors import UserError
from distill3d.files import at_once, reason_of

#: Larger pictures are refused by their header, before anything is decoded: a file of a few kilobytes can hold
#: gigabytes.  8192 x 8192 px, below the limit at which Pillow warns.
MAX_PIXELS = 2**26
#: What is opened: formats that cameras and converters write.  Pillow knows others that start programs (EPS).
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP", "JPEG2000")
#: How whole files of these formats end; others are not known by their end.
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
#: How a picture becomes upright, by EXIF's orientation (Exif 2.32, tag 0x0112).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
DEEP = 2**16 - 1  # the greatest value of a 16-bit picture
#: A 16-bit picture whose greatest value is smaller holds 10, 12 or 14 bits as they came from the sensor: how bright it
#: is meant to be cannot be told.
DEEP_FILLED = 2**14


#: Endings of pictures, the usual ones first, for they are looked for in this order.
USUAL = (".png", ".jpg", ".jpeg")
ENDINGS = (*USUAL, *sorted({e for e, kind in Image.registered_extensions().items() if kind in FORMATS} - {*USUAL}))


def picture_named(folder: Path, stem: str) -> Path:
    """The picture of this name in a folder, whatever its ending; one that is absent counts as a PNG."""
    paths = (folder / f"{stem}{ending}" for ending in ENDINGS)
    return next((path for path in paths if path.is_file()), folder / f"{stem}{ENDINGS[0]}")


def read_image(path: Path) -> UInt8[Tensor, "3 h w"]:
    """An image file, RGB, turned upright as its EXIF data say; values of 16-bit pictures are divided by 257.

    Raises:
        UserError: it is absent, truncated, no image or larger than ``MAX_PIXELS``, or its values have no known range.
    """
    return torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1).contiguous()


def read_picture(path: Path) -> Image.Image:
    """An image file as ``read_image`` reads it, as a picture in mode RGB.

    Raises:
        UserError: as ``read_image``.
    """
    with opened_picture(path) as image:
        deep = any(
            ";16" in str(tile[3]) for tile in image.tile
        )  # colours of 16 bits, of which Pillow keeps the upper 8
        picture = rgb(image, path)
        if deep and image.mode[0] not in "IF":
            _refuse_unfilled(int(np.asarray(picture).max()) * 257, path)
        return picture


def rgb(image: Image.Image, where: Path | str) -> Image.Image:
    """An open image, turned upright, in mode RGB.

    Raises:
        UserError: its values have no known range; the sentence begins with ``where``.
    """
    picture = upright(image)
    if picture.mode[0] in "IF":
        picture = Image.fromarray(_eight_bits(np.asarray(picture), where))
    return picture.convert("RGB")


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height (px) of an image file once it is upright, from its header; it is decoded only where its end is
    not as it should be.

    Raises:
        UserError: it is absent, truncated, no image or larger than ``MAX_PIXELS``.
    """
    with opened_picture(path) as image, open(path, "rb", opener=at_once) as file:
        end = ENDS.get(image.format or "", b"")
        file.seek(-len(end), os.SEEK_END)
        if file.read() != end:
            image.load()
        # PNG files may have EXIF data behind the pixels, which would have to be decoded: readers look again.
        late = image.format == "PNG" and "exif" not in image.info
        turned = not late and orientation(image) in SIDEWAYS
        return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def opened_picture(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file whose header was read and which is not larger than ``MAX_PIXELS``; what Pillow raises while it is
    open becomes one sentence.

    Raises:
        UserError: it is absent, no image, too large, or what is done with it fails.
    """
    try:
        file = open(path, "rb", opener=at_once)  # noqa: SIM115 (closed below)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd files, and of large ones, which are refused here
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"it says that it is {image.width} x {image.height} px")
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: is too large ({error}), expected at most {MAX_PIXELS} px") from None
    except Exception as error:  # Pillow's readers raise what they happen to meet on bytes that are no image
        raise UserError(f"{path}: cannot be read as an image ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def orientation(image: Image.Image) -> int:
    """EXIF's orientation of an open image, 1 for upright; EXIF data that cannot be read say nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in ``opened_picture``; a picture is not lost for its remarks
        return 1


def upright(image: Image.Image) -> Image.Image:
    """An open image, turned as its EXIF data say."""
    image.load()
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _eight_bits(values: np.ndarray, path: Path | str) -> UInt8[np.ndarray, "h w"]:
    """Integers of 16 bits or numbers in 0..1 as bytes."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):  # NaN too
            raise UserError(f"{path}: holds numbers from {low:g} to {high:g}, expected 8 or 16 bits, or 0 to 1")
        return (values * 255).round().astype(np.uint8)
    if low < 0 or high > DEEP:
        raise UserError(f"{path}: holds numbers from {low} to {high}, expected 8 or 16 bits")
    _refuse_unfilled(int(high), path)
    return ((values.astype(np.int32) + 128) // 257).astype(np.uint8)


def _refuse_unfilled(greatest: int, path: Path | str) -> None:
    if 0 < greatest < DEEP_FILLED:
        raise UserError(
            f"{path}: has 16 bits but no value above {greatest}, so that how bright it is cannot be told: "
            "expected values that fill 16 bits, or a picture of 8 bits"
        )
