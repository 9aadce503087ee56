"""Pictures as tensors, for every layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from distill3d.errors import UserError

#: How whole files of these formats end; others are not known by their end.
ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height (px) of an image file, from its header; it is decoded only where its end is not as it should be.

    Raises:
        UserError: it is absent, truncated or no image.
    """
    try:
        with Image.open(path) as image, path.open("rb") as file:
            size, end = image.size, ENDS.get(image.format or "", b"")
            file.seek(-len(end), 2)
            whole = file.read() == end
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    return size if whole else (read_image(path).shape[2], read_image(path).shape[1])


def read_image(path: Path) -> UInt8[Tensor, "3 h w"]:
    """An image file, RGB.

    Raises:
        UserError: it is absent, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
