"""What can be fed: every command, and readers that commands only reach after long work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from unittest import mock

import torch

from distill3d.cli import main
from distill3d.data.augment.lidar import LidarAugmentConfig
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.raw import KittiRawConfig, KittiRawDataset
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.splits import read_split
from distill3d.detectors.released import plain_names
from distill3d.published.archive import read_archive, state_of
from distill3d.synth.nuscenes_records import VERSION

from . import makers
from .mutations import BYTES, Mutation
from .trial import Reached

DATA = makers.DATA
Words = tuple[str, ...]


# -------------------------------------------------------------------------------------------------- work not waited for


#: Starts the other processes of a training, by calling this process's own command line again.
LAUNCH = "lightning_fabric.strategies.launchers.subprocess_script._SubprocessScriptLauncher.launch"


@contextmanager
def _instead_of(*names: str) -> Iterator[None]:
    """Raises ``Reached`` in the block where one of these functions is called."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    patches = [mock.patch(name, reached) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def until_graph(words: list[str]) -> None:
    """Export, up to the tracing of the network."""
    with _instead_of("torch.export.export"):
        main(words)


def three_steps(words: list[str]) -> None:
    """Training, up to its third step: what is sound comes to its end before, evaluation included."""
    with makers.stopped_at_step(3), _instead_of(LAUNCH):
        main(words)


def any_command(words: list[str]) -> None:
    """A command that may have become another one: no street is drawn."""
    writers = ("distill3d.synth.writer.write_kitti", "distill3d.synth.nuscenes_writer.write_nuscenes")
    with _instead_of("distill3d.demo.run_demo", *writers):
        main(words)


# ------------------------------------------------------------------------------------------------ what a surface is


@dataclass(frozen=True)
class Checked:
    """What ``distill3d check`` has a say in: its layout, and the files (below ``in``) that are used, by pattern."""

    layout: str
    used: str
    splits: Words = ()  # files of the frames that are used; in the pattern, ``frame`` is a frame's name

    def uses(self, file: str, folder: Path) -> bool:
        """Whether a file is used in ``folder``, whose splits may be others than the sound input's."""
        found = re.fullmatch(self.used, file)
        frame = None if found is None else found.groupdict().get("frame")
        if frame is None or not self.splits:
            return found is not None
        return any(frame in read_split(folder / split) for split in self.splits)


def _used_frames(kinds: str, *splits: str) -> Checked:
    """The files of KITTI's splits and of the frames that they name."""
    files = tuple(f"ImageSets/{split}.txt" for split in splits)
    return Checked("kitti", rf"training/({kinds})/(?P<frame>\d{{6}})\.\w+|" + "|".join(map(re.escape, files)), files)


@dataclass(frozen=True)
class Surface:
    """One thing that takes inputs."""

    name: str
    make: Callable[[], None]  # fills ../in (and ../out)
    variants: tuple[Words, ...]  # sound command lines, or what ``run`` takes for one
    files: Words = ()  # patterns of what is mutated, below the box; each pattern is chosen as often as another
    run: Callable[[list[str]], object] = any_command
    words: bool = True  # the command line is mutated, too
    lists: bool = False  # prints faults itself, and leaves with 2
    compared: Words = ("*",)  # outputs that must be the same where the input means the same
    checked: tuple[Checked, ...] = ()  # one for each variant, or none
    tells: Words = ()  # patterns of what it prints of faults that it does not refuse
    #: Whether a result must be the sound one's if there is any: for files that carry checksums.
    guarded: Callable[[Mutation], bool] = lambda mutation: False
    share: float = 1.0  # of the time
    few: int = 10  # inputs in ``make test``


# -------------------------------------------------------------------------------------------- readers without a command


def _tell(value: object) -> Iterator[str]:
    """Digests of all tensors of a sample.

    Raises:
        AssertionError: one is not finite where no number is allowed to be otherwise.
    """
    if isinstance(value, torch.Tensor):
        yield hashlib.sha256(value.numpy().tobytes()).hexdigest()[:12]
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tell(getattr(value, field.name))
    else:
        yield repr(value)


def _read_all(dataset: KittiDataset | KittiRawDataset | NuScenesDataset, generator: torch.Generator | None) -> None:
    for index in range(len(dataset)):
        sample = dataset.get(index, generator)
        for field in fields(sample):
            value = getattr(sample, field.name)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise AssertionError(f"{field.name} of a sample is not finite")
        print(sample.frame_id, *_tell(sample))


def read_kitti(words: list[str]) -> None:
    """The frames of the training split; ``words``: depth, then what else is asked for."""
    depth, *more = words
    generator = torch.Generator().manual_seed(0) if more else None
    config = KittiConfig(
        root=DATA, split="train", canvas=(160, 64), depth=depth,  # pyright: ignore[reportArgumentType]
        points="points" in more, field_of_view="points" in more,
        lidar_augment=LidarAugmentConfig(counts=(("Car", 3),)) if "points" in more else None,
    )  # fmt: skip
    _read_all(KittiDataset(config), generator)


def read_checkpoint(words: list[str]) -> None:
    """The weights of an authors' checkpoint."""
    file = DATA / words[0]
    for name, value in plain_names(state_of(read_archive(file), file)).items():
        print(name, tuple(value.shape), *_tell(value.float()))


def read_raw(words: list[str]) -> None:
    config = KittiRawConfig(
        root=DATA, frames=DATA / "frames.txt", mapping=DATA, canvas=(160, 64), points=True,
        depth=words[0],  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    dataset = KittiRawDataset(config)
    print(dataset.mapping)
    _read_all(dataset, None)


def read_nuscenes(words: list[str]) -> None:
    """Both scenes' moments."""
    for split in ("train", "val"):
        config = NuScenesConfig(
            root=DATA, version=VERSION, split=split, canvas=(64, 24), points=True, depth=True, past=(1,),
            in_memory="in memory" in words,
        )  # fmt: skip
        dataset = NuScenesDataset(config)
        print(dataset.class_presence().sum(0).tolist())
        _read_all(dataset, torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------- the surfaces

LABELS, RESULTS = "../in/training/label_2", "../in/predictions"
_EVAL = ("eval", "kitti", "--labels", LABELS, "--predictions", RESULTS, "--json", "../out/numbers.json",
         "--min-height-scale", "0.13")  # fmt: skip
_VAL = "|".join(makers.VAL)
JUDGED = Checked("kitti", rf"training/label_2/({_VAL})\.txt")
KITTI_FILES = (
    "in/training/label_2/*", "in/training/calib/*", "in/training/image_2/*", "in/training/velodyne/*", "in/ImageSets/*",
)  # fmt: skip
_EVAL_NUSCENES = (
    "eval", "nuscenes", "--data-root", "../in", "--version", VERSION, "--predictions",
    "../in/run/baseline/predictions/submission.json", "--json", "../out/numbers.json",
)  # fmt: skip
TABLES = f"in/{VERSION}/*.json"
_PREDICT = ("predict", "../in/model", "../in/picture.png", "--out", "../out/found", "--score", "0.0")
_REPORT = ("report", "../in/run", "--out", "../out/report.html")
RUN_FILES = (
    "in/run/recipe.yaml", "in/run/*/config.yaml", "in/run/*/card.json", "in/run/*/metrics.jsonl",
    "in/run/*/evaluation.json",
)  # fmt: skip
_TRAIN = ("train", "fuzz", "--data-root", "../in", *makers.QUIET)
_FUZZ_TRAIN = (*_TRAIN, "--only", "baseline")
_SYNTH = ("synth", "../out/made", "--frames", "1", "--workers", "1", "--street.width", "64", "--street.height", "24",
          "--street.rays-per-pixel-side", "1", "--street.cars", "1", "2", "--street.vans", "0", "0",
          "--street.pedestrians", "0", "0", "--street.cyclists", "0", "0", "--street.lidar-step", "3.0")  # fmt: skip


#: What a training is judged by.
WEIGHTS = ("*/model.safetensors", "*/predictions/*")


def _bytes_of(ending: str) -> Callable[[Mutation], bool]:
    """Whether bytes of a file with this ending were changed, without a thought to its checksums."""
    return lambda mutation: mutation.file.endswith(ending) and mutation.how in (*BYTES, "flip_anywhere")


def _options(base: Words, *options: tuple[str, ...]) -> tuple[Words, ...]:
    """The command with each of the options."""
    return tuple((*base, *option) for option in options)


#: Settings of a training that are mutated, with a sound value each.
SETTINGS = (
    ("--stages.baseline.schedule.epochs", "1"), ("--stages.baseline.schedule.batch-size", "2"),
    ("--stages.baseline.schedule.lr", "0.001"), ("--stages.baseline.schedule.weight-decay", "0.0001"),
    ("--stages.baseline.schedule.ema", "0.9"), ("--stages.baseline.schedule.clip-norm", "10"),
    ("--stages.baseline.schedule.betas", "0.9", "0.99"), ("--stages.baseline.schedule.warmup-epochs", "1"),
    ("--stages.baseline.schedule.start-divisor", "10"), ("--stages.baseline.detector.head-channels", "8"),
    ("--stages.baseline.augment.crop", "0.1"), ("--stages.baseline.augment.flip", "0.5"),
    ("--dataset.canvas", "160", "64"), ("--dataset.min-height-scale", "0.13"), ("--dataset.depth", "lidar"),
    ("--dataset.train-split", "train"), ("--dataset.eval-split", "val"), ("--dataset.identity", "x"),
    ("--evaluation.every", "1"), ("--evaluation.batch-size", "2"), ("--evaluation.keep", "last"), ("--seed", "0"),
    ("--precision", "fp32"), ("--name", "fuzz"), ("--note", "x"), ("--checkpoint-steps", "10"), ("--log-steps", "10"),
    ("--workers", "0"), ("--threads", "1"), ("--devices", "1"), ("--nodes", "1"), ("--accelerator", "cpu"),
    ("--only", "teacher", "baseline"), ("--stages.baseline.name", "baseline"), ("--stages.baseline.role", "baseline"),
)  # fmt: skip

#: Settings of the generators likewise.
STREET_SETTINGS = (
    ("--seed", "0"), ("--val-share", "0.5"), ("--layout", "kitti"), ("--street.overcast-share", "0.2"),
    ("--street.sun-elevation", "22", "62"), ("--street.haze", "0.0002", "0.001"), ("--street.exposure", "0.1", "0.1"),
    ("--street.noise", "1", "3"), ("--street.lidar-keep", "1", "1"), ("--street.lidar-beam-strides", "1"),
    ("--street.lidar-dropout", "0.1"), ("--street.lidar-range-sigma", "0.02"), ("--street.distance", "4", "40"),
    ("--street.random-yaw-share", "0.1"), ("--street.grade-sigma", "0.02"), ("--street.grade-limit", "0.05"),
    ("--street.camera-height", "1.65"), ("--street.camera-height-sigma", "0.03"), ("--street.pitch-sigma", "0.6"),
    ("--street.roll-sigma", "0.4"), ("--street.lidar-azimuth", "-45", "45"), ("--street.lidar-max-range", "80"),
    ("--street.car-bodies", "hatchback"),
)  # fmt: skip

_LABELS = ("--out", "../out/labels", "--score", "0.01", "--max-frames", "2")

#: Sound or nearly sound command lines of everything; what they name is not there, or small.
COMMAND_LINES: tuple[Words, ...] = (
    (), ("--help",), ("--version",), ("doctor",), ("recipes",), ("recipes", "demo"), ("demo", "--out", "../out/demo"),
    ("check", "../in"), ("check", "../in", "--layout", "nuscenes"), ("report", "../in", "--out", "../out/x.html"),
    ("report", "../in", "../in", "--gallery", "3"), ("diagnose", "../in", "--out", "../out/x.html", "--margin", "0.1"),
    ("record", "../in", "--out", "../out/x.rrd", "--names", "000000"),
    ("predict", "../in", "x.png", "--intrinsics", "700,700,600,170", "--out", "../out"),
    ("predict", "../in", "--calib", "x.txt"), ("export", "../in", "--onnx", "../out/x.onnx"),
    ("eval", "kitti", "--labels", "../in", "--predictions", "../in", "--style", "python"),
    ("eval", "nuscenes", "--data-root", "../in", "--predictions", "x.json", "--classes", "car", "truck"),
    ("raw-list", "../in", "--mapping", "../in", "--split", "x.txt", "--out", "../out/x.txt"),
    ("autolabel", "../in", "../in", "--out", "../out/labels", "--layout", "raw", "--beside", "../in"),
    ("train", "demo", "--data-root", "../in", "--out", "../out"), ("train", "--help"), ("synth", "--help"),
)  # fmt: skip

SURFACES = (
    Surface(
        "command lines", makers.nowhere, COMMAND_LINES, lists=True, few=20, share=2,
    ),
    Surface(
        "check kitti", makers.streets, (("check", "../in"),),
        (*KITTI_FILES, "in/training/depth_2/*"), lists=True, few=12,
    ),
    Surface(
        "check nuscenes", makers.drives, (("check", "../in", "--layout", "nuscenes"),),
        (TABLES, TABLES, TABLES, "in/samples/*/*", "in/sweeps/*/*", "in/splits/*"), lists=True, few=12,
    ),
    Surface(
        "eval kitti", makers.streets_with_results,
        (_EVAL, (*_EVAL, "--split", "../in/ImageSets/val.txt"), (*_EVAL, "--style", "python")),
        ("in/training/label_2/*", "in/predictions/*", "in/predictions/*", "in/ImageSets/val.txt"),
        checked=(JUDGED, _used_frames("label_2", "val"), JUDGED), few=15, share=2,
        tells=("Not KITTI class names in the labels", "labels have a truncation other than"),
    ),
    Surface(
        "eval nuscenes", makers.drives,
        ((*_EVAL_NUSCENES, "--split", "val"), (*_EVAL_NUSCENES, "--split", "../in/splits/val.txt"),
         (*_EVAL_NUSCENES, "--split", "val", "--classes", "car", "pedestrian")),
        (TABLES, TABLES, "in/run/baseline/predictions/submission.json", "in/run/baseline/predictions/submission.json",
         "in/splits/*"),
        checked=(Checked("nuscenes", rf"{VERSION}/sample_annotation\.json"),) * 3, few=12, share=2,
    ),
    Surface(
        "kitti frames", makers.streets, (("lidar",), ("completed",), ("png",), ("none", "points")),
        (*KITTI_FILES, "in/training/depth_2/*", "in/training/planes/*"), run=read_kitti, words=False, few=15, share=2,
        checked=(
            _used_frames("image_2|calib|velodyne|label_2", "train"),
            _used_frames("image_2|calib|velodyne|label_2", "train"),
            _used_frames("image_2|calib|depth_2|label_2", "train"),
            _used_frames("image_2|calib|velodyne|label_2", "train"),
        ),
    ),
    Surface(
        "raw frames", makers.raw_drives, (("lidar",), ("completed",), ("none",)),
        (f"in/{makers.DATE}/*/*/data/*", f"in/{makers.DATE}/calib*", "in/*.txt"), run=read_raw, words=False, few=12,
    ),
    Surface(
        "nuscenes frames", makers.drives, (("in memory",), ("cached",)),
        (TABLES, TABLES, TABLES, "in/samples/*/*", "in/sweeps/*/*", "in/splits/*"), run=read_nuscenes, words=False,
        checked=(Checked("nuscenes", rf"{VERSION}/\w+\.json|samples/.*"),) * 2, few=10, share=2,
    ),
    Surface(
        "raw-list", makers.raw_drives,
        (("raw-list", "../in", "--mapping", "../in", "--split", "../in/split.txt", "--out", "../out/list.txt"),),
        ("in/*.txt", f"in/{makers.DATE}/*/*/data/*"), few=12, share=0.5,
    ),
    Surface(
        "autolabel", makers.trained_run, (("autolabel", "../in/run/teacher", "../in", *_LABELS),),
        (*KITTI_FILES, "in/run/recipe.yaml", "in/run/teacher/model.safetensors"), few=2, share=0.5,
    ),
    Surface(
        "predict", makers.model,
        ((*_PREDICT, "--calib", "../in/picture.txt"), (*_PREDICT, "--intrinsics", "93,93,78.5,22.3")),
        ("in/picture.png", "in/picture.txt", "in/model/card.json", "in/model/model.safetensors",
         "in/model/model.safetensors"),
        guarded=_bytes_of(".safetensors"), few=3, share=2,
    ),
    Surface(
        "export", makers.model, (("export", "../in/model", "--onnx", "../out/net.onnx"),),
        ("in/model/card.json", "in/model/model.safetensors"), run=until_graph, few=5, share=0.5,
    ),
    Surface(
        "checkpoints", makers.archive, (("weights.pth",),), ("in/weights.pth",), run=read_checkpoint, words=False,
        guarded=_bytes_of(".pth"), few=20,
    ),
    Surface("report", makers.trained_run, (_REPORT, (*_REPORT[:1], "../in/run/monoskd", *_REPORT[2:])),
            (*RUN_FILES, "in/run/*/predictions/*", "in/training/label_2/*", "in/training/image_2/*",
             "in/training/calib/*", "in/training/velodyne/*", "in/ImageSets/*"), few=1, share=2),
    Surface("report of views", makers.drives, (_REPORT,),
            (*RUN_FILES, "in/run/*/predictions/submission.json", TABLES, "in/samples/*/*", "in/splits/*"), few=1),
    Surface("diagnose", makers.trained_run, (("diagnose", "../in/run", "--out", "../out/diagnosis.html"),),
            (*RUN_FILES, "in/run/*/predictions/*", "in/run/*/model.safetensors", "in/training/label_2/*",
             "in/training/image_2/*", "in/training/calib/*", "in/ImageSets/*"), few=3, share=2),
    Surface("record", makers.trained_run, (("record", "../in/run", "--out", "../out/run.rrd", "--device", "cpu"),),
            (*RUN_FILES, "in/run/*/predictions/*", "in/run/*/model.safetensors", "in/training/label_2/*",
             "in/training/image_2/*", "in/training/calib/*", "in/training/velodyne/*", "in/ImageSets/*"),
            compared=(), few=1),
    Surface("recipes", makers.nowhere, (("recipes",), ("recipes", "demo"), ("recipes", "tiny_bev")), few=10, share=0.2),
    Surface(
        "settings of training", makers.streets, _options(_FUZZ_TRAIN, *SETTINGS), run=three_steps, compared=WEIGHTS,
        few=6, share=3,
    ),
    Surface("settings of streets", makers.nowhere, _options(_SYNTH, *STREET_SETTINGS), run=main, few=10, share=2),
    Surface(
        "training", makers.streets, (_FUZZ_TRAIN, (*_TRAIN, "--only", "teacher")),
        (*KITTI_FILES,), words=False, compared=WEIGHTS, few=2, share=2,
        checked=(
            _used_frames("image_2|calib|label_2", "train", "val"),
            _used_frames("image_2|calib|label_2|velodyne", "train", "val"),
        ),
    ),
    Surface(
        "training on points", makers.streets, (("train", "fuzz_points", "--data-root", "../in", *makers.QUIET),),
        (*KITTI_FILES, "in/training/planes/*"), words=False, compared=WEIGHTS, few=1,
        checked=(_used_frames("image_2|calib|label_2|velodyne", "train", "val"),),
    ),
    Surface(
        "training on views", makers.drives,
        (("train", "fuzz_surround", "--data-root", "../in", *makers.QUIET, "--only", "baseline"),),
        (TABLES, TABLES, "in/samples/*/*", "in/splits/*"), words=False,
        compared=WEIGHTS, few=1,
        checked=(Checked("nuscenes", rf"{VERSION}/\w+\.json|samples/CAM.*"),),
    ),
    Surface(
        "resumed training", makers.interrupted_run,
        (("train", "fuzz_resumed", "--data-root", "../in", *makers.QUIET, "--only", "baseline"),),
        ("out/*/*/last.ckpt", "out/*/*/last.ckpt", "out/*/*/last.ckpt", "out/*/*/metrics.jsonl", "out/*/*/config.yaml",
         "out/*/recipe.yaml"),
        words=False, compared=WEIGHTS, guarded=_bytes_of(".ckpt"), few=3, share=3,
    ),
)  # fmt: skip

BY_NAME = {surface.name: surface for surface in SURFACES}
