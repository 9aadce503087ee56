"""A recipe is checked whole before its first step: settings, devices, every file that a stage will read, what there is
to learn, and what the evaluation will need.

Files are looked at as ``distill3d check`` does, but quickly: texts are parsed, of pictures and scans as much is read as
tells what they are.  A verdict without faults is kept in the data set's cache folder, by names, sizes and times of the
files, so that the next start asks for those alone.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill3d.data.cache import cache_folder, cache_key
from distill3d.data.collate import EpochSampler, batches
from distill3d.data.kitti.check import FRAME_FILES, frame_problems, quick
from distill3d.data.kitti.dataset import KittiDataset, frame_file
from distill3d.data.kitti.inventory import SCALE_OPTION, Inventory, fitting_height_scale
from distill3d.data.kitti.names import LabelNames
from distill3d.data.kitti.raw import IMAGES, SCANS, KittiRawDataset
from distill3d.data.kitti.scans import glance_at_points
from distill3d.data.nuscenes.check import file_faults, table_faults
from distill3d.data.nuscenes.class_balance import ClassBalanced
from distill3d.data.nuscenes.dataset import NuScenesDataset
from distill3d.data.pictures import picture_size
from distill3d.data.sample import Dataset, JointDataset
from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.base import Detector
from distill3d.detectors.monodetr import MonoDETRConfig
from distill3d.detectors.monodle import MonoDLEConfig
from distill3d.distill.context import detached
from distill3d.distill.methods import build_terms
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Annotations, rules_of
from distill3d.evaluate.nuscenes import ground_truth
from distill3d.files import names_below, write_atomically
from distill3d.picture import canvas_side
from distill3d.settings import from_plain, to_plain
from distill3d.train.checkpoint import untrained
from distill3d.train.learnable import ClassCount, kitti_counts, nuscenes_counts, refuse_nothing
from distill3d.train.loggers import refuse_absent
from distill3d.train.loop import RunOptions, TrainingStep
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.rigs import refuse_other_number
from distill3d.train.schedules import build_optimiser
from distill3d.train.sources import Source, source_of

#: Changes when something is looked at that was not, so that verdicts of before do not count.
VERDICT = 1
#: Problems that are named; of the others the number is told.
NAMED = 3
#: Who tells a process its number: torchrun, Fabric's own launcher, SLURM's srun.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
#: Share of a picture's height that may lie outside the canvas without a word.
GREATEST_CUT = 0.2
#: Processes on the CPU for each of its cores.
PER_CORE = 4
#: What terms raise where teachers do not fit the student.
REFUSALS = (
    UserError, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def check_recipe(recipe: Recipe, stages: Sequence[StageConfig], options: RunOptions) -> None:
    """Checks all that ``stages``, those still to be trained, will need, and says on stderr what they can learn from.

    Raises:
        UserError: a device is not there, a file is absent or faulty, there is nothing
            to learn from, or the evaluation could not be made.
    """
    _check_devices(options)
    refuse_absent(options.loggers)
    source = source_of(recipe)
    looked = _Looked()
    told = options.progress and is_first_process()
    for stage in stages:
        data = source.frames(stage)
        world, schedule = options.devices * options.nodes, stage.schedule
        EpochSampler(len(data), schedule.batch_size, 0, drop_last=schedule.drop_last, world=world)
        left = 0 if schedule.drop_last else len(data) % schedule.batch_size
        if left and world > 1:  # some processes would have no frame and no step, and the others would wait for them
            raise UserError(
                f"stages.{stage.name}.schedule.drop_last is false, but the last batch of an epoch holds {left} of "
                f"{schedule.batch_size} frames, which {world} processes cannot share: give "
                f"--stages.{stage.name.replace('_', '-')}.schedule.drop-last"
            )
        if schedule.batch_size // world % schedule.accumulate:
            raise UserError(
                f"stages.{stage.name}.schedule.accumulate is {schedule.accumulate}, expected a divisor of the "
                f"{schedule.batch_size // world} frames that a process has of each batch"
            )
        looked.training(data)
        for split in _evaluated(recipe):
            looked.evaluation(source.evaluation(stage, split), split)
    taught = _check_networks(recipe, stages)
    looked.refuse_problems(recipe)
    with torch.random.fork_rng(devices=[]):
        for stage in taught:
            _try_one_frame(recipe, stage)
    for stage in stages:
        _tell_counts(recipe, stage, source, told)
    _warn_of_cuts(recipe, looked)
    _warn_of_heights(stages, source)


def is_first_process() -> bool:
    """Whether this is the one of a training's processes that speaks, before these know of each other."""
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"


def _evaluated(recipe: Recipe) -> list[str]:
    dataset = recipe.dataset
    select = dataset.select_split if recipe.evaluation.keep == "best" else None
    return [dataset.eval_split, *([select] if select is not None else [])]


def _check_devices(options: RunOptions) -> None:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.accelerator == "cuda" and not there:
        raise UserError("accelerator is 'cuda', but torch sees no CUDA device: give --accelerator cpu, or auto")
    on_cuda = options.accelerator == "cuda" or (options.accelerator == "auto" and there)
    if on_cuda and options.devices > there:
        raise UserError(f"devices is {options.devices}, but torch sees {there} CUDA device{'s' * (there > 1)}")
    cores = os.cpu_count() or 1
    if not on_cuda and options.devices > PER_CORE * cores:
        raise UserError(
            f"devices is {options.devices}, expected at most {PER_CORE * cores} processes on {cores} CPU cores"
        )


def _check_networks(recipe: Recipe, stages: Sequence[StageConfig]) -> list[StageConfig]:
    """Builds what stages train, without weights from elsewhere; leaves the global random numbers alone.  Returns the
    stages that teachers teach."""
    with torch.random.fork_rng(devices=[]):
        for stage in stages:
            _refuse_without_weights(stage)
            _refuse_other_classes(recipe, stage)
            if isinstance(recipe.dataset, SurroundDatasetConfig):
                refuse_other_number(stage.name, stage.detector, recipe.dataset.cameras)
            build_optimiser(_untrained_step(recipe, stage), stage.schedule)
    return [stage for stage in stages if stage.method is not None and stage.teachers]


def _untrained_step(recipe: Recipe, stage: StageConfig) -> TrainingStep:
    """The student of a stage, the terms of its method and its teachers.

    Raises:
        UserError: settings do not fit together, or taps are missing.
    """
    student = _untrained(stage)
    if stage.method is None:
        return TrainingStep(student, [])
    teachers = {name: _untrained(recipe.stage(name)).eval() for name in stage.teachers}
    taught_by = teachers[stage.teachers[0]].tap_channels if teachers else {}
    try:
        terms = build_terms(stage.method, student.tap_channels, taught_by)
    except ValueError as error:
        raise UserError(f"the method of stage {stage.name!r} does not fit its detectors: {error}") from None
    return TrainingStep(student, terms, teachers)


def _refuse_without_weights(stage: StageConfig) -> None:
    """Asks at once for the weights that a stage's network starts from."""
    if stage.detector.input == "points":  # one that could see pictures, too, has no trunk then
        return
    trunk: Any = getattr(stage.detector, "trunk", None)
    reason = trunk.missing() if hasattr(trunk, "missing") else None
    if reason is not None:
        option = f"--stages.{stage.name.replace('_', '-')}.detector.trunk"
        raise UserError(
            f"stage {stage.name!r} starts from weights learned on other pictures (pretrained), which cannot be had, "
            f"{reason}: give their file with {option}.weights FILE, or begin without them, {option}.no-pretrained"
        )


def _refuse_other_classes(recipe: Recipe, stage: StageConfig) -> None:
    """Labels of surround views are numbers in the order of the data set's classes, and detectors go by theirs."""
    if not isinstance(recipe.dataset, SurroundDatasetConfig):
        return
    classes, known = recipe.dataset.classes, getattr(stage.detector, "classes", None)
    if known is not None and tuple(known) != classes:
        raise UserError(
            f"stage {stage.name!r}: its detector's classes are {', '.join(known)}, the data set's "
            f"{', '.join(classes)}: give both the same, in one order"
        )
    for method in getattr(stage.method, "parts", (stage.method,)):
        counted = getattr(method, "classes", classes)
        if method is not None and "instances" in method.looks_at and tuple(counted) != classes:
            raise UserError(
                f"stage {stage.name!r}: masks are of the data set's classes {', '.join(classes)}, its method's are "
                f"{', '.join(counted)}: give both the same, in one order"
            )


def _try_one_frame(recipe: Recipe, stage: StageConfig) -> None:
    """A step's losses on one frame, of networks without weights: what a method compares may lie on other cells, or be
    of other classes, which only maps and predictions tell.  Teachers would be trained for hours before.

    Raises:
        UserError: the method cannot learn from its teachers.
    """
    plain = replace(stage, lidar_augment=None)  # objects to add to scans are gathered from all frames
    (batch,) = batches(source_of(recipe).frames(plain), [0], 1, None, 0)
    step = _untrained_step(recipe, stage)
    try:
        with torch.no_grad():
            targets = step.student.encode(batch)
            step(batch, targets, {name: detached(d.forward_at(batch, targets)) for name, d in step.teachers.items()})
    except REFUSALS as error:
        taken = [name for name in stage.teachers if recipe.stage(name).taken_from is not None]
        named = ", ".join(f"{n} ({detector_name(recipe.stage(n).detector)})" for n in taken or stage.teachers)
        who = "what stands in place of its teachers" if taken else "its teachers"
        said = error if type(error) in (UserError, ValueError) else f"{type(error).__name__}: {error}"
        raise UserError(f"stage {stage.name!r} cannot learn from {who} {named}: {said}") from error


def _untrained(stage: StageConfig) -> Detector:
    plain = untrained(to_plain(stage.detector))
    return build_detector(from_plain(type(stage.detector), plain, f"stages.{stage.name}.detector"))


# --------------------------------------------------------------------------------------------------------------- files


class _Looked:
    """The files that stages will read, each once, and what the evaluation will read of them."""

    def __init__(self) -> None:
        #: Of KITTI's object data: folder, columns of its scans and names in its labels -> frame -> kinds of files.
        self.frames: dict[tuple[Path, int, LabelNames], dict[str, set[str]]] = {}
        self.raw: dict[Path, dict[str, KittiRawDataset]] = {}
        self.surround: dict[Path, tuple[NuScenesDataset, set[int]]] = {}  # folder of tables -> rows of sensor data
        self.absent_masks: dict[Path, None] = {}
        self.judged: dict[tuple[Path, str], Any] = {}
        self.caches: dict[Path, Path | None] = {}  # None: nothing is kept

    def training(self, data: Dataset) -> None:
        """What a stage learns from."""
        if isinstance(data, JointDataset):
            for part in data.parts:
                self.training(part)
        elif isinstance(data, ClassBalanced):
            self.training(data.dataset)
        elif isinstance(data, KittiRawDataset):
            self.raw.setdefault(data.folder, {}).update(dict.fromkeys(data.frame_ids, data))
            self._keep(data.folder, data)
        elif isinstance(data, KittiDataset):
            self._add_frames(data)
        elif isinstance(data, NuScenesDataset):
            folder = data.tables.folder
            self.surround.setdefault(folder, (data, set()))[1].update(data.needed_data())
            self.absent_masks |= dict.fromkeys(data.absent_masks())
            self._keep(folder, data)

    def evaluation(self, data: Any, split: str) -> None:
        """What is evaluated on, which needs labels."""
        self.training(data)
        if isinstance(data, KittiDataset):
            if not (data.folder / "label_2").is_dir():
                raise UserError(f"{data.folder / 'label_2'}: no such folder, but split {split!r} is to be evaluated")
            self.judged[data.folder, split] = data
        else:
            self.judged[data.tables.folder, split] = data

    def _add_frames(self, data: KittiDataset) -> None:
        config = data.config
        kinds = {"image_2", "calib"}
        kinds |= {"label_2"} if data.labelled else set()
        kinds |= {"velodyne"} if config.points or config.depth in ("lidar", "completed") else set()
        kinds |= {"depth_2"} if config.depth == "png" else set()
        of_frame = self.frames.setdefault((data.folder, config.scan_columns, config.names), {})
        scans = data.folder / "velodyne"
        pasted_into = set(names_below(scans, ".bin")) if data.pasted is not None and scans.is_dir() else set()
        for frame in data.frame_ids:
            of_frame.setdefault(frame, set()).update(kinds | ({"velodyne"} if frame in pasted_into else set()))
        self._keep(data.folder, data)

    def _keep(self, folder: Path, data: KittiDataset | KittiRawDataset | NuScenesDataset) -> None:
        self.caches.setdefault(folder, kept_in(data))

    def refuse_problems(self, recipe: Recipe) -> None:
        """Looks at all files.

        Raises:
            UserError: some are absent or faulty, or hold what cannot be evaluated.
        """
        problems: list[str] = []
        for (folder, columns, names), frames in self.frames.items():
            paths = [_path(folder, kind, frame) for frame, kinds in frames.items() for kind in sorted(kinds)]
            look = partial(_frame_sentences, folder, frames, columns, names)
            problems += self._verdict(folder, paths, look, columns, names.text)
        for folder, of_frame in self.raw.items():
            paths = [p for frame in of_frame for p in _raw_paths(folder, frame)]
            columns = sorted({data.config.scan_columns for data in of_frame.values()})
            problems += self._verdict(folder, paths, partial(_raw_sentences, folder, of_frame), *columns)
        for folder, (data, rows) in self.surround.items():
            tables, chosen, columns = data.tables, sorted(rows), data.config.scan_columns
            paths = [*sorted(folder.glob("*.json")), *(tables.file(row) for row in chosen)]
            rig = data.config.cameras
            look = partial(_surround_sentences, tables, chosen, columns, rig)
            problems += self._verdict(folder, paths, look, columns, rig)
        if problems:
            layout = "kitti" if isinstance(recipe.dataset, DatasetConfig) else "nuscenes"
            more = f" (and {len(problems) - NAMED} more)" if len(problems) > NAMED else ""
            raise UserError(
                f"{'; '.join(problems[:NAMED])}{more}: nothing was trained, distill3d check {recipe.dataset.root} "
                f"--layout {layout} names all problems"
            )
        if self.absent_masks:
            first, *more = self.absent_masks
            raise UserError(
                f"{first}{f' (and {len(more)} more)' * bool(more)}: no such file, expected a mask of single things for "
                "each picture of a key frame: nothing was trained"
            )
        for data in self.judged.values():
            if isinstance(data, KittiDataset):
                Annotations.from_folder(data.folder / "label_2", scored=False, frames=tuple(data.frame_ids))
                if isinstance(recipe.dataset, DatasetConfig):
                    rules_of(data.config.names, recipe.dataset.overlaps)
            else:
                ground_truth(data.tables, data.frame_ids)

    def _verdict(self, folder: Path, paths: Sequence[Path], look: Any, *settings: object) -> list[str]:
        """The sentences that ``look`` gives, or none where it gave none when it last looked at the same files."""
        cache = self.caches[folder]
        if cache is None:
            return list(look())
        name = cache / f"checked-{cache_key(folder, [str(p) for p in paths], *settings)}.txt"
        stamps = _stamps(paths)
        if stamps is not None and _text_of(name) == stamps:
            return []
        sentences = list(look())
        if not sentences and stamps is not None:
            _store(name, stamps.encode())
        return sentences


def kept_in(data: KittiDataset | KittiRawDataset | NuScenesDataset) -> Path | None:
    """The folder in which verdicts on a data set are kept; None for small sets that are kept in memory, and where no
    folder can be written."""
    if data.config.in_memory:
        return None
    try:
        return cache_folder(data.root, getattr(data.config, "cache", None))
    except UserError:
        return None


def _path(folder: Path, kind: str, frame: str) -> Path:
    return frame_file(folder, kind, frame)


def _frame_sentences(folder: Path, frames: dict[str, set[str]], scan_columns: int, names: LabelNames) -> Iterator[str]:
    look = quick(scan_columns)._replace(names=names)
    for frame, kinds in frames.items():
        there = {kind for kind in kinds if _path(folder, kind, frame).is_file()}
        yield from (f"{_path(folder, kind, frame)}: no such file" for kind in sorted(kinds - there))
        yield from map(str, frame_problems(folder, frame, [kind for kind in FRAME_FILES if kind in there], look))


def _raw_paths(folder: Path, frame: str) -> tuple[Path, Path]:
    return folder / f"{frame}.png", folder / f"{frame.replace(IMAGES, SCANS)}.bin"


def _raw_sentences(folder: Path, frames: dict[str, KittiRawDataset]) -> Iterator[str]:
    for date, data in {frame.split("/")[0]: data for frame, data in frames.items()}.items():
        yield from _sentence(lambda date=date, data=data: data.calibration(date))
    for frame, data in frames.items():
        image, scan = _raw_paths(folder, frame)
        columns = data.config.scan_columns
        yield from _sentence(lambda image=image: picture_size(image))
        yield from _sentence(lambda scan=scan, columns=columns: glance_at_points(scan, columns))


def _sentence(look: Any) -> Iterator[str]:
    try:
        look()
    except UserError as error:
        yield str(error)


def _surround_sentences(tables: Any, rows: list[int], scan_columns: int, rig: tuple[str, ...]) -> Iterator[str]:
    yield from map(str, table_faults(tables, rig))
    yield from map(str, file_faults(tables, rows, scan_columns, quick=True))


def _stamps(paths: Sequence[Path]) -> str | None:
    """A digest of the sizes and times of files; None where one is absent."""
    try:
        return cache_key(VERDICT, [(s.st_size, s.st_mtime_ns) for s in map(os.stat, paths)])
    except (OSError, ValueError):
        return None


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _store(path: Path, data: bytes) -> None:
    """Keeps what can be found out again: a folder that cannot be written any more is nobody's mistake."""
    try:
        write_atomically(path, lambda part: part.write_bytes(data))
    except UserError:
        return


# --------------------------------------------------------------------------------------------------- what can be learnt


def _warn_of_cuts(recipe: Recipe, looked: _Looked) -> None:
    """Says so where the canvas leaves out much of the pictures, going by the first one of each folder."""
    dataset = recipe.dataset
    if isinstance(dataset, SurroundDatasetConfig) or dataset.placement != "fit":
        return
    canvas_width, canvas_height = dataset.canvas
    for (folder, _, _), frames in looked.frames.items():
        width, height = picture_size(frame_file(folder, "image_2", next(iter(frames))))
        needed = height * canvas_width / width  # px, for the picture's whole height
        if 1 - canvas_height / needed > GREATEST_CUT:
            cut = f"{100 * (1 - canvas_height / needed):.0f} %"
            print(
                f"warning: {cut} of the height of pictures of {width} x {height} px lie outside the canvas of "
                f"{canvas_width} x {canvas_height} px: --dataset.canvas {canvas_width} {canvas_side(needed)} shows all "
                "of them", file=sys.stderr,
            )  # fmt: skip


def _warn_of_heights(stages: Sequence[StageConfig], source: Source) -> None:
    """Says so where least heights that are meant for wider pictures drop objects, going by the first picture."""
    for stage in stages:
        data = source.labelled(stage)
        if not isinstance(data, KittiDataset) or not isinstance(stage.detector, MonoDLEConfig | MonoDETRConfig):
            continue
        width, given = picture_size(frame_file(data.folder, "image_2", data.frame_ids[0]))[0], data.config
        scale = fitting_height_scale(width)
        if scale >= given.min_height_scale:
            return
        objects = kept_inventory(data)
        counts = [kitti_counts(stage.detector, objects, s) for s in (scale, given.min_height_scale)]
        more = [sum(count.left for count in some) for some in counts]
        if more[0] > more[1]:
            print(
                f"warning: pictures are {width} px wide, and least heights of boxes are {given.min_height_scale:g} of "
                f"KITTI's: {more[0] - more[1]} of {more[0]} objects are left out as too low, {SCALE_OPTION} {scale} "
                "counts them", file=sys.stderr,
            )  # fmt: skip
        return


def _tell_counts(recipe: Recipe, stage: StageConfig, source: Source, tell: bool) -> None:
    """Says what a stage can learn from.

    Raises:
        UserError: that is nothing.
    """
    split, data = recipe.dataset.train_split, source.labelled(stage)
    if isinstance(data, KittiDataset):
        counts = _kitti_counts(stage, data)
    else:
        assert isinstance(data, NuScenesDataset)
        if not data.tables.annotated:
            raise UserError(f"{data.tables.folder} has no annotations, so there is nothing to learn from")
        counts = nuscenes_counts(stage.detector, data)
    if not counts or getattr(stage.detector, "detection_weight", 1) == 0:  # a teacher's answers are all that is learnt
        return
    warnings = list(refuse_nothing(stage.name, split, counts))
    if tell:
        print(f"{stage.name}: learns from {', '.join(map(str, counts))}", file=sys.stderr)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def _kitti_counts(stage: StageConfig, data: KittiDataset) -> list[ClassCount]:
    if not (data.folder / "label_2").is_dir():
        raise UserError(f"{data.folder / 'label_2'}: no such folder, so there is nothing to learn from")
    return kitti_counts(stage.detector, kept_inventory(data), data.config.min_height_scale)


def kept_inventory(data: KittiDataset) -> Inventory:
    """The objects of a data set's frames, as they were read when its files last changed."""
    cache = kept_in(data)
    if cache is None:
        return Inventory.of(data.folder, data.frame_ids, data.config.names)
    paths = [_path(data.folder, kind, frame) for kind in ("label_2", "calib") for frame in data.frame_ids]
    name = cache / f"objects-{cache_key(data.folder, data.frame_ids, data.config.names.text)}.npz"
    stamps = _stamps(paths)
    try:
        with np.load(name, allow_pickle=False) as file:
            if str(file["stamps"]) == stamps:
                return Inventory(**{f.name: file[f.name] for f in fields(Inventory)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    found = Inventory.of(data.folder, data.frame_ids, data.config.names)
    if stamps is not None:
        buffer = io.BytesIO()
        np.savez(buffer, stamps=np.array(stamps), **{f.name: getattr(found, f.name) for f in fields(Inventory)})
        _store(name, buffer.getvalue())
    return found
