"""``distill3d predict`` of detectors that look around: a folder in nuScenes' layout becomes a submission and drawings.

    <out>/submission.json                               the official file, all samples' boxes in the global frame
    <out>/drawings/<scene>_<key frame>_<sample>.jpg     the cameras and the ground with the boxes of a sample

Samples are read, computed, written and drawn batch by batch; no annotation is needed or looked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distill3d.boxes import Boxes3D
from distill3d.data.collate import batches
from distill3d.data.nuscenes.dataset import NuScenesDataset, split_or_file
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_submission import write_submission
from distill3d.files import folder_name, refuse_foreign, write_output
from distill3d.model import load
from distill3d.surround import SurroundPrediction
from distill3d.train.evaluation import SUBMISSION, submission_meta
from distill3d.train.progress import ProgressBar
from distill3d.train.rigs import other_rig
from distill3d.view.distance import LEAST_SCORE

T = TypeVar("T")
DRAWINGS = "drawings"
#: A quarter of a PNG's size, for data sets have thousands of samples; coloured lines and letters stay sharp.
JPEG = {"quality": 88, "subsampling": 0}


@dataclass(frozen=True)
class Choice:
    """Which samples of a folder."""

    version: str | None = None  # folder of the tables, by default the training's, or the only one that is there
    split: str | None = None  # a split's name, or a file of scenes or samples; by default all samples
    samples: tuple[str, ...] = ()  # in place of a split: names of scenes and tokens of samples
    limit: int | None = None  # the first ones alone
    cameras: tuple[str, ...] = ()  # the rig; by default that of training


def predict_surround(
    checkpoint: Path, root: Path, out: Path, choice: Choice, least_score: float | None = None, device: str = "auto",
    draw: bool = True, batch_size: int = 1, progress: bool = False,
) -> Path:  # fmt: skip
    """Detects in each sample and writes ``<out>/submission.json`` and the drawings; gives the submission's path.  All
    files are looked for before a sample is computed.

    Args:
        root: the folder that holds the tables' folder, ``samples`` and ``sweeps``.
        least_score: of what is written and drawn; by default the detector's own, and ``LEAST_SCORE`` in drawings.
        draw: also write drawings.
        batch_size: samples that are computed at once.
        progress: show a bar on stderr, and at the end what was found and where it is.

    Raises:
        UserError: the folder's tables or a file is absent or malformed, there is no such split or sample, the detector
            does not look around or looks at labels, the device is not there, or a result would replace a file that
            this library did not write, or that is of other tables.
    """
    if choice.split is not None and choice.samples:
        raise UserError("predict: give either --split or --samples, not both")
    model = load(checkpoint, device)
    dataset = model.moments(root, choice.version, split_or_file(choice.split), choice.samples, choice.cameras)
    tables = dataset.tables.folder
    order = list(range(len(dataset)))[: choice.limit]
    _refuse_absent(dataset, len(order))
    drawings = {index: out / DRAWINGS / f"{_name(dataset, index)}.jpg" for index in order} if draw else {}
    for path in (out / SUBMISSION, *drawings.values()):
        refuse_foreign(path, of=tables)
    note = other_rig(checkpoint, model.card, dataset.cameras, "looks at")
    if progress and note:
        print(f"note: {note}", file=sys.stderr)
    counts: list[int] = []

    def found() -> Iterator[tuple[str, Boxes3D]]:
        index = 0
        with ProgressBar("samples", len(order), visible=progress) as bar:
            for batch in batches(dataset, order, batch_size, None, 0):
                for one in model.detect_around(batch, least_score):
                    if draw:
                        _draw(one, dataset, order[index], drawings[order[index]], least_score, tables)
                    counts.append(len(one))
                    index += 1
                    bar.advance()
                    yield one.moment.frame_id, one.boxes

    poses = {dataset.frame_ids[index]: dataset.ego_to_global(index) for index in order}
    write_submission(
        out / SUBMISSION, found(), poses, model.classes, submission_meta(model.detector.config.input),
        put=lambda path, write: write_output(path, write, of=tables),
    )  # fmt: skip
    if progress:
        some = sum(count > 0 for count in counts)
        where = f"{out / SUBMISSION}{f', drawn in {out / DRAWINGS}' if draw else ''}"
        print(f"{sum(counts)} boxes in {some} of {len(counts)} samples: {where}", file=sys.stderr)
    if not any(counts):
        print("no object was found: is --score not too high?", file=sys.stderr)
    return out / SUBMISSION


def _refuse_absent(dataset: NuScenesDataset, count: int) -> None:
    """Keeps a command from ending at a sample whose files are not there.

    Raises:
        UserError: a file is absent that one of the first ``count`` samples needs; the sentence names the first.
    """
    absent = dataset.absent_files(count)
    if absent:
        channels = ", ".join(sorted({channel for _, channel in absent}))
        more = f"; {len(absent)} files of {channels} are absent" if len(absent) > 1 else ""
        path, channel = absent[0]
        raise UserError(f"{path}: no such file, expected as {dataset.tables.folder} lists it, of {channel}{more}")


def _name(dataset: NuScenesDataset, index: int) -> str:
    """What the drawing of a sample is called: in order of time where names are sorted."""
    scene, number, _ = dataset.place(index)
    name = f"{scene}_{number:03d}_{dataset.frame_ids[index]}"
    return folder_name(name, f"{dataset.tables.folder}: scene and sample")


def _if_readable(read: Callable[[int], T], index: int, needed: bool) -> T | None:
    """What a drawing shows beside the boxes; None where it cannot be read and the detector did not need it.

    Raises:
        UserError: it cannot be read, and is ``needed``.
    """
    try:
        return read(index)
    except UserError:
        if needed:
            raise
        return None


def _draw(
    found: SurroundPrediction, dataset: NuScenesDataset, index: int, path: Path, least_score: float | None, tables: Path
) -> None:
    from distill3d.view.surround_picture import surround_picture, whole_views

    pictures = _if_readable(dataset.pictures, index, needed=dataset.config.images)
    scan = _if_readable(dataset.key_scan, index, needed=dataset.config.points or dataset.config.depth)
    views = [] if pictures is None else whole_views(found.moment, pictures, dataset.cameras)
    scene, number, count = dataset.place(index)
    picture = surround_picture(
        views, scan, found.boxes, found.classes, LEAST_SCORE if least_score is None else least_score, found.ego_frame,
        f"{scene}, key frame {number} of {count}, sample {found.moment.frame_id}",
    )  # fmt: skip
    write_output(path, lambda part: picture.save(part, "JPEG", **JPEG), of=tables, flush=False)
