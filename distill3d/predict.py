"""``distill3d predict`` of one camera's detectors: any pictures and their cameras become result files and drawings."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from distill3d.camera import Camera, misfit
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.labels import write_results
from distill3d.data.pictures import ENDINGS, FORMATS, picture_size
from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output, write_output_text
from distill3d.model import Model, Prediction, as_pixels, in_batches, load
from distill3d.picture import calibrated, camera_of_intrinsics, placed
from distill3d.train.checkpoint import WEIGHTS, looks_around
from distill3d.train.progress import ProgressBar
from distill3d.video import Video, VideoWriter, is_video

#: All that was found, a line of JSON for each picture.
LINES = "predictions.jsonl"
#: Where data sets in KITTI's layout have their pictures.
PICTURE_FOLDERS = ("testing/image_2", "training/image_2")
ADDRESS = re.compile(r"[a-z]+:/", re.IGNORECASE)


def predict_images(
    checkpoint: Path, images: tuple[Path, ...], calib: Path | None, intrinsics: str | None, out: Path,
    least_score: float | None = None, device: str = "auto", draw: bool = True, batch_size: int = 1,
    progress: bool = False,
) -> Iterator[Path]:  # fmt: skip
    """Detects in each picture and writes ``<out>/<name>.txt`` (KITTI result lines) and ``<out>/<name>.png`` (drawing),
    named as ``result_names`` says, and at the end ``LINES``; yields of each picture what was written last.  All
    pictures are looked at before one is computed.  Of a video each frame has a result file, ``<name>_000000.txt`` being
    the first one's, and the drawings are one video, ``<name>.mp4``.

    Args:
        images: pictures, videos, folders of pictures, and patterns such as ``drive/*.jpg``.
        calib: a KITTI calibration file, or a folder with one for each picture, of the picture's name.
        draw: also write drawings.
        batch_size: pictures, or frames of a video, that are computed at once.
        progress: show a bar on stderr, where there are several pictures, and at the end what was found and where it is.

    Raises:
        UserError: no picture or no camera is given, a file cannot be read or is not what it should be, the camera
            cannot have taken a picture, the device is not there, or a result would replace a file that this library did
            not write, or that is the result of another picture.
    """
    if looks_around(checkpoint):
        raise UserError(f"{checkpoint} looks at surround views, which predict takes as one folder in nuScenes' layout")
    names = result_names(pictures_of(images))
    cameras = cameras_of(names, calib, intrinsics)
    endings = (".txt", ".png") if draw else (".txt",)
    videos = {path: Video(path) for path in names if is_video(path)}
    for path, name in names.items():
        for ending in (".mp4",) * draw if path in videos else endings:
            refuse_foreign(out / f"{name}{ending}", of=path)
    refuse_foreign(out / LINES)
    model = load(checkpoint, device)
    for path in names:
        camera, told = cameras[path]
        size = videos[path].size if path in videos else picture_size(path)
        refuse_misfit(path, size, camera, told)
        try:
            placed(model.card, size, camera)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    found_in: list[dict[str, Any]] = []
    for path, video in videos.items():
        yield from _predict_video(
            model, video, cameras[path][0], out / names.pop(path), least_score, draw, batch_size, progress, found_in
        )
    with ProgressBar("pictures", len(names), visible=progress and len(names) > 1) as bar:
        for some in in_batches(names.items(), batch_size):
            pictures = [(_fitting(path, *cameras[path]), cameras[path][0]) for path, _ in some]
            for (path, name), found in zip(some, model.detect(pictures, least_score), strict=True):
                found_in.append({"picture": str(path), "result": name, "objects": found.to_dict()})
                _write(out / name, path, found, draw)
                bar.advance()
                yield out / f"{name}{endings[-1]}"
    write_output_text(out / LINES, "".join(f"{json.dumps(one)}\n" for one in found_in))
    counts = [len(one["objects"]) for one in found_in]
    if progress:
        some = sum(count > 0 for count in counts)
        where = f"{out / '*.txt'} and, all together, {out / LINES}"
        print(f"{sum(counts)} objects in {some} of {len(counts)} pictures: {where}", file=sys.stderr)
    if not any(counts):
        print("no object was found: is the camera the pictures' own, and --score not too high?", file=sys.stderr)


def _fitting(path: Path, camera: Camera, told: Path | str) -> Float[Tensor, "3 _ _"]:
    """A picture's pixels.

    Raises:
        UserError: it cannot be read, or the camera cannot have taken it.
    """
    pixels = as_pixels(path)
    refuse_misfit(path, (pixels.shape[-1], pixels.shape[-2]), camera, told)
    return pixels


def _predict_video(
    model: Model, video: Video, camera: Camera, place: Path, least_score: float | None, draw: bool, batch_size: int,
    progress: bool, told_of: list[dict[str, Any]],
) -> Iterator[Path]:  # fmt: skip
    """The result files of a video's frames, then the video of their drawings, which is what is yielded last."""

    def results(writer: VideoWriter | None) -> Iterator[Path]:
        with ProgressBar(video.path.name, video.length, visible=progress) as bar:
            frames = ((pixels, camera) for pixels in video.frames())
            found_in = (model.detect(some, least_score) for some in in_batches(frames, batch_size))
            for number, found in enumerate(chain.from_iterable(found_in)):
                of_frame = place.with_name(f"{place.name}_{number:06d}")
                told = {"picture": str(video.path), "frame": number, "result": of_frame.name}
                told_of.append(told | {"objects": found.to_dict()})
                _write(of_frame, video.path, found, draw=False)
                if writer is not None:
                    writer.add(found.draw())
                bar.advance()
                yield of_frame.with_name(f"{of_frame.name}.txt")

    if not draw:
        yield from results(None)
        return

    def drawn(part: Path) -> None:
        writer = VideoWriter(part, video.rate)
        try:
            for _ in results(writer):
                pass
        finally:
            writer.close()

    drawing = place.with_name(f"{place.name}.mp4")
    write_output(drawing, drawn, of=video.path, flush=False)
    yield drawing


def _write(place: Path, picture: Path, found: Prediction, draw: bool) -> None:
    """The results of a picture: ``place`` and an ending."""
    write_output(
        place.with_name(f"{place.name}.txt"), lambda part: write_results(part, found.boxes, found.classes),
        of=picture, flush=False,
    )  # fmt: skip
    if draw:
        write_output(
            place.with_name(f"{place.name}.png"), lambda part: found.draw().save(part, "PNG"), of=picture, flush=False
        )


def refuse_no_model(first: Path) -> None:
    """Keeps what comes first on the command line, where a stage stands, from being a picture.

    Raises:
        UserError: it is a picture, a video, or a folder of pictures that holds no weights.
    """
    shown = first.suffix.lower() in ENDINGS or is_video(first)
    if first.is_dir():
        shown = not (first / WEIGHTS).exists() and any(p.suffix.lower() in ENDINGS for p in first.iterdir())
        if not shown and not (first / WEIGHTS).exists() and any(first.glob("*/sample.json*")):
            raise UserError(f"predict: no model given: --model STAGE, or a stage folder first, before {first}")
    if shown:
        raise UserError(f"predict: no model given: --model streets, or a stage folder first, before {first}")


def pictures_of(given: Iterable[Path]) -> list[Path]:
    """The pictures that paths, folders and patterns stand for; those of a folder or pattern by name.

    Raises:
        UserError: there are none.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())
            if not inside:
                within = next((part for part in PICTURE_FOLDERS if (path / part).is_dir()), None)
                hint = "" if within is None else f": give {path / within}"
                raise UserError(f"{path}: holds no picture ({', '.join(FORMATS)}){hint}")
            found += inside
        elif glob.has_magic(str(path)) and not path.exists():
            matching = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
            if not matching:
                raise UserError(f"{path}: no file has a name of this pattern")
            found += matching
        elif ADDRESS.match(str(path)) and not path.exists():
            raise UserError(f"{path}: is an address, expected a file: nothing is fetched from the net")
        else:
            found.append(path)
    if not found:
        raise UserError("predict: give at least one picture, or a folder of pictures, after the checkpoint")
    return found


def cameras_of(
    pictures: Iterable[Path], calib: Path | None, intrinsics: str | None
) -> dict[Path, tuple[Camera, Path | str]]:
    """The camera of each picture, and where it is told: one for all, or from a folder that file of the picture's name.

    Raises:
        UserError: as ``read_camera``, or the folder lacks a picture's file.
    """
    if calib is None or not calib.is_dir() or intrinsics is not None:
        return dict.fromkeys(pictures, (read_camera(calib, intrinsics), calib or "--intrinsics"))
    files = {path: calib / f"{path.stem}.txt" for path in pictures}
    absent = [(path, file) for path, file in files.items() if not file.is_file()]
    if absent:
        path, file = absent[0]
        more = f" ({len(absent)} pictures have none)" if len(absent) > 1 else ""
        raise UserError(f"{file}: no such file, expected the calibration of {path}{more}")
    return {path: (read_calibration(file).camera, file) for path, file in files.items()}


def result_names(images: Iterable[Path]) -> dict[Path, str]:
    """What the results of each picture are called, without ending; a picture that is given twice counts once.

    That is the picture's name without its ending.  Of pictures whose names agree, also but for the case of letters, it
    goes with as many of the folders above as tell them apart (``left__000001`` and ``right__000001``); in one folder
    with the ending (``a_png`` and ``a_jpg``).
    """
    pictures = {os.path.abspath(path): path for path in images}
    alike = Counter(os.path.splitext(key)[0].casefold() for key in pictures)
    parts = {}
    for key in pictures:
        root, ending = os.path.splitext(key)
        last = root if alike[root.casefold()] == 1 else f"{root}_{ending.removeprefix('.')}"
        parts[key] = Path(last).parts[1:]
    taken = dict.fromkeys(pictures, 1)  # of the parts, from the last
    while True:
        names = {key: "__".join(parts[key][-count:]) for key, count in taken.items()}
        same = Counter(name.casefold() for name in names.values())
        longer = [key for key in names if same[names[key].casefold()] > 1 and taken[key] < len(parts[key])]
        if not longer:
            break
        taken |= {key: taken[key] + 1 for key in longer}
    found: dict[Path, str] = {}
    for key, name in names.items():
        others, number = {other.casefold() for other in found.values()}, 1
        while name.casefold() in others:  # folders' names that hold "__" themselves
            number += 1
            name = f"{names[key]}_{number}"
        found[pictures[key]] = name
    return found


def refuse_misfit(path: Path, size: tuple[int, int], camera: Camera, told: Path | str) -> None:
    """Keeps a picture of ``size`` (width, height) px from being taken for another camera's.

    Raises:
        UserError: the camera, which ``told`` tells, cannot have taken it.
    """
    fault = misfit(camera, size)
    if fault is not None:
        raise UserError(f"{told}: {fault}, the size of {path}")


def read_camera(calib: Path | None, intrinsics: str | None) -> Camera:
    """The camera of a KITTI calibration file, or of "fx,fy,cx,cy" in px.

    Raises:
        UserError: neither or both are given, or they cannot be read.
    """
    if (calib is None) == (intrinsics is None):
        one = "one camera, not both:" if calib is not None else "the camera, either"
        raise UserError(f"predict: give {one} --calib FILE or --intrinsics fx,fy,cx,cy")
    if calib is not None:
        return calibrated(calib, "--intrinsics fx,fy,cx,cy")
    assert intrinsics is not None
    try:
        fx, fy, cx, cy = (float(v) for v in intrinsics.split(","))
    except ValueError:
        raise UserError(f"--intrinsics is {intrinsics!r}, expected four numbers with commas: fx,fy,cx,cy") from None
    return camera_of_intrinsics(fx, fy, cx, cy, f"--intrinsics is {intrinsics!r}")
