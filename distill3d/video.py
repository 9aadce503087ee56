"""Videos, frame by frame: for ``predict``.  PyAV reads and writes them (``pip install 'distill3d[video]'``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from distill3d.data.pictures import MAX_PIXELS
from distill3d.errors import UserError
from distill3d.files import at_once, reason_of

#: How videos' names end.
ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
#: Of the drawn videos: what every player shows.  Sides are even numbers of pixels.
CODEC, FORMAT, PIXELS, EVEN = "libx264", "mp4", "yuv420p", 2
#: Frames per second of a video that does not say.
RATE = 25


def is_video(path: Path) -> bool:
    """Whether a file's name is that of a video."""
    return path.suffix.lower() in ENDINGS


class Video:
    """A file of moving pictures.

    Raises:
        UserError: PyAV is not installed, or the file is absent or no video.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb", opener=at_once):
                pass
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {reason_of(error)}") from None
        with self._opened() as stream:
            self.size = (int(stream.width), int(stream.height))  # px
            self.rate = Fraction(stream.average_rate or RATE)  # frames per second
            self.length = int(stream.frames)  # 0 where the file does not say
        if not 0 < self.size[0] * self.size[1] <= MAX_PIXELS:
            raise UserError(f"{path}: is {self.size[0]} x {self.size[1]} px, expected at most {MAX_PIXELS} px")

    def frames(self) -> Iterator[Float[Tensor, "3 h w"]]:
        """RGB in 0..1, one frame after the other.

        Raises:
            UserError: the file is damaged.
        """
        with self._opened() as stream:
            for frame in stream.container.decode(stream):
                pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                yield pixels.permute(2, 0, 1).float().div_(255)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The first stream of pictures."""
        av = _library()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise UserError(f"{self.path}: holds no pictures")
                yield container.streams.video[0]
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read as a video ({error})") from error


class VideoWriter:
    """Pictures of one size as an MP4 file, to be closed."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.container = _library().open(str(path), "w", format=FORMAT)
        self.rate, self.stream = rate, None

    def add(self, picture: Image.Image) -> None:
        """One more picture; those of other sizes than the first are fitted to it."""
        if self.stream is None:
            self.stream = self.container.add_stream(CODEC, rate=self.rate)
            self.stream.width, self.stream.height = (side - side % EVEN for side in picture.size)
            self.stream.pix_fmt = PIXELS
        size = (self.stream.width, self.stream.height)
        # Colours of a whole picture are cut, not scaled, by one pixel; another size is scaled.
        fitted = picture.crop((0, 0, *size)) if _nearly(picture.size, size) else picture.resize(size)
        frame = _library().VideoFrame.from_ndarray(np.asarray(fitted.convert("RGB")), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())
        self.container.close()


def _nearly(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return all(0 <= a - b < EVEN for a, b in zip(size, other, strict=True))


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install 'distill3d[video]'") from None
    return av
