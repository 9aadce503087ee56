"""Small sound inputs. Every maker fills ``../in``, seen from the current folder, as commands see it later."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from drives import small_surround_preset
from streets import small_bev_preset, small_recipe, write_streets
from surround_run import DRIVE, write_run
from torch.optim.optimizer import register_optimizer_step_pre_hook

from distill3d.cli import main
from distill3d.data.depth import write_depth
from distill3d.evaluate.kitti import evaluate_folders
from distill3d.recipes import RECIPES
from distill3d.synth import write_nuscenes
from distill3d.train.recipe import Recipe

from .trial import Reached

DATA, OUT = Path("../in"), Path("../out")
#: Frames of the streets: two to learn from, two to be judged by.
TRAIN, VAL = ("000000", "000001"), ("000002", "000003")
SCALE = 160 / 1242
#: What every training is told.
QUIET = ("--no-progress", "--no-tensorboard", "--accelerator", "cpu", "--out", str(OUT))
DATE = "2011_09_26"


# -------------------------------------------------------------------------------------------------------------- recipes


def _camera() -> Recipe:
    """The demo's stages, very small."""
    return replace(small_recipe(Path(), epochs=1, batch_size=2), name="fuzz")


def _two_epochs() -> Recipe:
    """The same, for two epochs."""
    return replace(small_recipe(Path(), epochs=2, batch_size=2), name="fuzz_resumed")


def _points() -> Recipe:
    """A detector of points, very small."""
    recipe = small_bev_preset(Path())
    (stage, *_) = recipe.stages
    stage = replace(stage, schedule=replace(stage.schedule, batch_size=len(TRAIN)))
    return replace(recipe, name="fuzz_points", stages=(stage,))


def _surround() -> Recipe:
    """Detectors of surround views, very small."""
    recipe = small_surround_preset("tiny_surround", Path())
    return replace(recipe, name="fuzz_surround", stages=recipe.stages[:2])


def register_recipes() -> None:
    """Makes the small recipes known to the command line."""
    RECIPES.update({"fuzz": _camera, "fuzz_resumed": _two_epochs, "fuzz_points": _points, "fuzz_surround": _surround})


def command(*words: str) -> None:
    """A command that has to succeed.

    Raises:
        RuntimeError: it did not.
    """
    try:
        main(list(words))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"distill3d {' '.join(words)} left with {stop.code}") from None


def train(recipe: str, *words: str) -> None:
    command("train", recipe, "--data-root", str(DATA), *QUIET, *words)


# ---------------------------------------------------------------------------------------------------------------- KITTI


_drawn: list[tempfile.TemporaryDirectory[str]] = []


def streets() -> None:
    """Four frames in KITTI's layout, with planes and depth images; drawn once in a process."""
    if not _drawn:
        _drawn.append(tempfile.TemporaryDirectory(prefix="distill3d-fuzz-streets-"))
        write_streets(Path(_drawn[0].name), train=len(TRAIN), val=len(VAL))
    shutil.copytree(_drawn[0].name, DATA)
    training = DATA / "training"
    for name in ("planes", "depth_2"):
        (training / name).mkdir()
    for picture in sorted((training / "image_2").glob("*.png")):
        (training / "planes" / f"{picture.stem}.txt").write_text("# Plane\nWidth 4\nHeight 1\n0.01 -1.0 0.02 1.65\n")
        write_depth(training / "depth_2" / picture.name, torch.linspace(0, 60, 160).repeat(64, 1))


def streets_with_results() -> None:
    """The same, with result files beside them in ``../in/predictions``."""
    streets()
    write_results(DATA / "predictions", 0.3)


def write_results(folder: Path, miss: float) -> None:
    """Result files that find every object of the frames that are judged, ``miss`` metres too far away."""
    folder.mkdir(parents=True, exist_ok=True)
    for frame in VAL:
        lines = []
        for number, line in enumerate((DATA / "training" / "label_2" / f"{frame}.txt").read_text().splitlines()):
            name, *fields = line.split()
            if name == "DontCare":
                continue
            fields[12] = f"{float(fields[12]) + miss:.2f}"
            lines.append(f"{name} -1 -1 {' '.join(fields[2:14])} {0.9 - 0.01 * number:.4f}\n")
        (folder / f"{frame}.txt").write_text("".join(lines))


def raw_drives() -> None:
    """Two frames in KITTI raw's layout, their list, and the mapping of two object frames."""
    streets()
    training, date = DATA / "training", DATA / DATE
    for number, frame in enumerate(VAL):
        drive = date / f"{DATE}_drive_{number + 1:04d}_sync"
        for kind, source, ending in (("image_02", "image_2", "png"), ("velodyne_points", "velodyne", "bin")):
            (drive / kind / "data").mkdir(parents=True)
            shutil.copyfile(training / source / f"{frame}.{ending}", drive / kind / "data" / f"0000000000.{ending}")
    calibration = dict(
        line.split(": ", 1) for line in (training / "calib" / f"{VAL[0]}.txt").read_text().splitlines() if line
    )
    p2, r0, velo = (calibration[name].split() for name in ("P2", "R0_rect", "Tr_velo_to_cam"))
    (date / "calib_cam_to_cam.txt").write_text(
        f"calib_time: 09-Jan-2012 13:57:47\nR_rect_00: {' '.join(r0)}\nP_rect_02: {' '.join(p2)}\n"
    )
    rotation, shift = [v for i, v in enumerate(velo) if i % 4 < 3], velo[3::4]
    (date / "calib_velo_to_cam.txt").write_text(f"R: {' '.join(rotation)}\nT: {' '.join(shift)}\n")
    names = [f"{DATE}/{DATE}_drive_{n + 1:04d}_sync/image_02/data/0000000000" for n in range(len(VAL))]
    (DATA / "frames.txt").write_text("".join(f"{name}\n" for name in names))
    (DATA / "train_mapping.txt").write_text(f"{DATE} {DATE}_drive_0002_sync 0000000000\n")
    (DATA / "train_rand.txt").write_text("1")
    (DATA / "split.txt").write_text("000000\n")
    shutil.rmtree(training)
    shutil.rmtree(DATA / "ImageSets")


# ------------------------------------------------------------------------------------------------------------- nuScenes


def drives() -> None:
    """Two scenes of two key frames in nuScenes' layout, one to learn from and one to be judged by, and a run on them as
    training leaves it."""
    write_nuscenes(DATA, splits={"train": 1, "val": 1}, seed=3, config=DRIVE, workers=1, progress=False)
    write_run(DATA / "run", DATA)


# ----------------------------------------------------------------------------------------------------------------- runs


def trained_run() -> None:
    """A run on the streets, in ``../in/run``, with results that are better than those of one step."""
    streets()
    train("fuzz", "--only", "teacher", "baseline", "monoskd")
    (OUT / "fuzz").rename(DATA / "run")
    for stage, miss in (("teacher", 0.1), ("baseline", 0.8), ("monoskd", 0.4)):
        folder = DATA / "run" / stage
        write_results(folder / "predictions", miss)
        result = evaluate_folders(DATA / "training" / "label_2", folder / "predictions", min_height_scale=SCALE)
        (folder / "evaluation.json").write_text(json.dumps(result.to_json()))


def model() -> None:
    """Weights, a picture and its calibration."""
    streets()
    train("fuzz", "--only", "baseline")
    (OUT / "fuzz" / "baseline").rename(DATA / "model")
    for kind, ending in (("image_2", "png"), ("calib", "txt")):
        shutil.copyfile(DATA / "training" / kind / f"{VAL[0]}.{ending}", DATA / f"picture.{ending}")
    for folder in ("training", "ImageSets", ".distill3d_cache"):
        shutil.rmtree(DATA / folder, ignore_errors=True)


def archive() -> None:
    """A small checkpoint as other code writes them."""
    generator = torch.Generator().manual_seed(0)
    state = {f"module.{name}": torch.randn(3, 4, generator=generator) for name in ("a.weight", "b.weight")}
    optimiser = {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    DATA.mkdir(exist_ok=True)
    torch.save(
        {"epoch": 140, "model_state": state, "optimizer_state": optimiser, "best_result": np.float64(20.5)},
        DATA / "weights.pth",
    )


def interrupted_run() -> None:
    """Streets, and in ``../out`` a training of two epochs that ended with the first."""
    streets()
    with stopped_at_step(2):
        try:
            train("fuzz_resumed", "--only", "baseline")
        except Reached:
            return
    raise RuntimeError("the training was not interrupted")


class stopped_at_step:  # noqa: N801 (used as a function)
    """Raises ``Reached`` in the block before the optimiser's n-th step, counted from 1."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __enter__(self) -> None:
        def count(*_: object) -> None:
            self.left -= 1
            if self.left == 0:
                raise Reached

        self.handle = register_optimizer_step_pre_hook(count)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def nowhere() -> None:
    """An empty folder."""
    DATA.mkdir(parents=True, exist_ok=True)
