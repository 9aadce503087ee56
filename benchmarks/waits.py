"""How often the host waits for the device in a training step and in decoding a batch, on a device that is pretended.

    python -m benchmarks.waits               every family's stages, then docs/speed.md
    python -m benchmarks.waits --before      into the record with which the page compares: run it before a change
    python -m benchmarks.waits --only monodle tiny_bev --precision bf16 --out waits.json

Each stage of a preset is trained for two epochs with the smallest networks of the tests, ended after the first and
taken up again, evaluated, and asked for a picture, all on the pretended device; the counts do not depend on sizes.
Counted is the last step, for which teachers have the answers that they keep, and the first epoch's most, in which they
compute them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning_fabric import Fabric
from lightning_fabric.accelerators.cpu import CPUAccelerator
from lightning_fabric.strategies.single_device import SingleDeviceStrategy

from distill3d.camera import Camera
from distill3d.data.pictures import read_image
from distill3d.detectors import DETECTORS, detector_name
from distill3d.distill.methods import method_name
from distill3d.files import write_text
from distill3d.picture import predict_pictures
from distill3d.recipes import get_recipe
from distill3d.train.checkpoint import load_detector
from distill3d.train.loop import RunOptions, _Run, train_stage
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig
from tests.drives import small_surround_preset, write_drives
from tests.streets import CANVAS, small_bev_preset, small_preset, write_streets

from .pretend_device import Log, pretended
from .speed.page import RECORDS, read_records, write_page

RECORD, BEFORE = RECORDS / "waits.json", RECORDS / "waits_before.json"
BATCH_SIZE = 2
MONOCULAR = ("monodle", "gupnet", "did_m3d", "monodetr", "monocon")
ON_GROUND = ("tiny_bev", "tiny_lidar")
SURROUND = ("tiny_labeldistill", "tiny_surround", "tiny_surround_family", "tiny_bevdet", "tiny_bevformer")
FAMILIES = (*MONOCULAR, *ON_GROUND, *SURROUND)
OPTIONS = RunOptions(progress=False, tensorboard=False, log_steps=1000)
FOCAL = 100.0  # px, of the camera that the pictures to be predicted are given

Row = dict[str, Any]


class _Anywhere(CPUAccelerator):
    """Lets the pretended device pass."""

    def setup_device(self, device: torch.device) -> None:
        pass


class _Ended(Exception):
    """Ends a training after its first epoch."""


def small(name: str, data: Path, precision: str = "fp32") -> Recipe:
    """A family's preset with the smallest networks, two epochs, and data that is generated where there is none."""
    surround = name in SURROUND
    root = data / ("drives" if surround else "streets")
    if not root.exists():
        write_drives(root) if surround else write_streets(root, train=BATCH_SIZE, val=1)
    if surround:
        recipe = small_surround_preset(name, root)
    elif name in MONOCULAR:
        recipe = small_preset(name, root)
    elif name == "tiny_lidar":
        recipe = get_recipe(name)
        dataset = replace(recipe.dataset, root=root, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242)
        recipe = replace(recipe, dataset=dataset)
    else:
        recipe = small_bev_preset(root, name)
    stages = tuple(
        replace(stage, schedule=replace(stage.schedule, epochs=2, batch_size=BATCH_SIZE)) for stage in recipe.stages
    )
    return replace(recipe, stages=stages, precision=precision)


def count_waits(recipe: Recipe, folder: Path, log: Log) -> Iterator[Row]:
    """What each stage of a recipe waits for, one after the other; their folders come under ``folder``."""
    fabric = Fabric(accelerator=_Anywhere(), devices=1, strategy=SingleDeviceStrategy(device=log.device))
    for stage in recipe.stages:
        place = folder / recipe.name / stage.name
        with counted(log, stage) as found:
            with suppress(_Ended):
                train_stage(recipe, stage, place, OPTIONS, fabric)
            first = found.pop("steps")
            found["steps"] = []
            train_stage(recipe, stage, place, OPTIONS, fabric)
            predicted = predict(recipe, stage, place, log)
            if predicted is not None:
                predicted += found["decodes"][-1].total()
        last = found["steps"][-1]
        yield {
            "recipe": recipe.name, "stage": stage.name, "detector": detector_name(stage.detector),
            "method": None if stage.method is None else method_name(stage.method), "precision": recipe.precision,
            "step": last.total(), "kinds": dict(sorted(by_kind(last).items())),
            "first_epoch": max(step.total() for step in first), "decode": found["decodes"][-1].total(),
            "predict": predicted, "places": {f"{kind} {where}": n for (kind, where), n in sorted(last.items())},
        }  # fmt: skip


@contextmanager
def counted(log: Log, stage: StageConfig) -> Iterator[dict[str, list[Counter]]]:
    """Counts the steps and the decoding of what is trained within; ends the training after its first epoch, once."""
    found: dict[str, list[Counter]] = {"steps": [], "decodes": []}
    step, epoch, epochs = _Run.train_step, _Run.train_epoch, []
    build = DETECTORS[detector_name(stage.detector)].build
    decode: Callable[..., Any] = build.decode

    def counted_step(self: _Run, *parts: Any) -> Any:
        if self.epoch:
            with torch.no_grad():
                for part in parts:
                    self.losses(part)  # after which teachers keep their answers, if they do
            log.take()
        result = step(self, *parts)
        found["steps"].append(log.take())
        return result

    def counted_epoch(self: _Run) -> None:
        epochs.append(self.epoch)
        if epochs == [0, 1]:
            raise _Ended
        log.take()
        epoch(self)

    def counted_decode(self: Any, *given: Any) -> Any:
        log.take()
        result = decode(self, *given)
        found["decodes"].append(log.take())
        return result

    with ExitStack() as stack:
        stack.enter_context(patch.object(_Run, "train_step", counted_step))
        stack.enter_context(patch.object(_Run, "train_epoch", counted_epoch))
        stack.enter_context(patch.object(build, "decode", counted_decode))
        yield found


def predict(recipe: Recipe, stage: StageConfig, place: Path, log: Log) -> int | None:
    """Waits of a picture, from its pixels to boxes on the CPU; None where the detector does not look at pictures."""
    if not isinstance(recipe.dataset, DatasetConfig) or stage.detector.input != "rgb":
        return None
    assert recipe.dataset.root is not None
    detector, card = load_detector(place)
    picture = next((recipe.dataset.root / "training" / "image_2").iterdir())
    pixels = read_image(picture).float() / 255
    camera = Camera.from_intrinsics(FOCAL, FOCAL, pixels.shape[-1] / 2, pixels.shape[-2] / 2)
    detector = detector.to(log.device)
    log.take()
    predict_pictures(detector, card, [(pixels, camera)], log.device)
    return log.take().total()


def by_kind(waits: Counter) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for (kind, _), count in waits.items():
        kinds[kind] += count
    return kinds


def add_to(path: Path, rows: list[Row]) -> None:
    """Puts a recipe's rows into a record, in place of what it has of the recipe."""
    recorded = json.loads(path.read_text())["stages"] if path.exists() else []
    kept = [row for row in recorded if row["recipe"] != rows[0]["recipe"]]
    write_text(path, json.dumps({"stages": kept + rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="by default all")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--before", action="store_true", help=f"write {BEFORE.name}")
    parser.add_argument("--out", type=Path, help="write this file alone, and no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out or (BEFORE if options.before else RECORD)
    with TemporaryDirectory() as scratch, pretended() as log:
        for name in options.only:
            rows: list[Row] = []
            for row in count_waits(small(name, Path(scratch), options.precision), Path(scratch) / "runs", log):
                rows.append(row)
                print(f"{row['recipe']} {row['stage']}: {row['step']} a step, {row['decode']} a decoding", flush=True)
            add_to(path, rows)
    if options.out is None and not options.before:
        print(write_page(read_records(), read_records(which="_before")))


if __name__ == "__main__":
    main()
