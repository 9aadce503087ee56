"""What the networks of a finished run answer when they are asked again about frames of its evaluation split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from distill3d.boxes import IGNORE
from distill3d.data.augment.lidar import carry
from distill3d.data.collate import batches, collate
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.data.sample import Dataset, Sample
from distill3d.data.surround import SurroundSample, collate_surround
from distill3d.detectors.base import DEPTH_INPUTS, POINT_INPUTS, BevGeometry, Detector, FeatureMap, Outputs
from distill3d.detectors.bevdepth import UNSEEN
from distill3d.distill.context import same_grid, tapped
from distill3d.distill.methods import METHODS
from distill3d.distill.methods.cmkd import ResponseConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig, normalised, residual
from distill3d.errors import UserError
from distill3d.layers.heads.centre_head import CentreHead
from distill3d.settings import from_plain
from distill3d.train.card import CARD
from distill3d.train.checkpoint import load_detector, outline
from distill3d.train.progress import ProgressBar
from distill3d.train.recipe import Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.sources import source_of, surround_settings
from distill3d.train.stages import data_of
from distill3d.view.bev_maps import COMPARED, MAPS, BevMaps, FrameMaps, GroundMap, end_of_scale
from distill3d.view.gallery import open_dataset
from distill3d.view.runs import Stage

BATCH_SIZE = 8
#: What methods compare on the ground: the map that a camera's or KITTI's detector makes, the first of CenterPoint's and
#: of the label encoder's, and a student's second one.
GROUND_TAPS = ("bev", "bev_0", "bev_spatial")
HEAT = "heatmap"


def open_inputs(stage: Stage, inputs: Collection[str]) -> KittiDataset | NuScenesDataset:
    """The split that a stage was evaluated on, as training gives it to networks that look at ``inputs``.

    Raises:
        UserError: as ``open_dataset``, or a stage's recipe cannot be read.
    """
    if stage.layout == "nuscenes":
        recipe = data_of(stage.folder, True)
        assert isinstance(recipe, SurroundDatasetConfig)
        return NuScenesDataset(
            NuScenesConfig(
                root=Path(stage.named_in_recipe("root")[0]), version=recipe.version, split=recipe.eval_split,
                in_memory=recipe.in_memory, **surround_settings(recipe, set(inputs)),
            )
        )  # fmt: skip
    config, points = open_dataset(stage).config, bool(POINT_INPUTS & set(inputs))
    depth = stage.dataset.get("depth", "completed") if DEPTH_INPUTS & set(inputs) else "none"
    return KittiDataset(replace(config, depth=depth, points=points, field_of_view=points))


# ---------------------------------------------------------------------------------------------------------- uncertainty


@torch.no_grad()
def depth_log_scales(teacher: Stage, frames: Sequence[str], device: torch.device) -> dict[str, Float[np.ndarray, " k"]]:
    """The log scale of depth that a trained detector gives each label line of each frame, of surround views each of the
    data set's objects; NaN where it says nothing.

    Raises:
        UserError: its weights or the data cannot be read.
        NotImplementedError: the detector does not say how sure it is.
    """
    detector, _ = load_detector(teacher.folder)
    if type(detector).depth_log_scale is Detector.depth_log_scale:
        raise NotImplementedError(f"{detector.name} predicts no uncertainty of depth")
    inputs = {detector.config.input} | detector.also_trained_on(detector.config)  # the targets are encoded too
    dataset = open_inputs(teacher, inputs)
    wanted = set(frames)
    order = [index for index, frame in enumerate(dataset.frame_ids) if frame in wanted]
    detector.to(device).eval()
    scales: dict[str, Float[np.ndarray, " k"]] = {}
    with ProgressBar(f"{teacher.name}: uncertainty", -(-len(order) // BATCH_SIZE)) as bar:
        for batch in batches(dataset, order, BATCH_SIZE, None, 0):
            batch = batch.to(device)
            targets: Any = detector.encode(batch)
            scale = detector.depth_log_scale(detector.forward_at(batch, targets), batch, targets)
            if teacher.layout == "nuscenes":
                told = targets.seen_at != UNSEEN
            else:  # two-stage detectors look at trained slots only, others wherever a centre is on the map
                told = targets.on_map & targets.mask_2d
            values = scale.float().masked_fill(~told, torch.nan).cpu().numpy().astype(np.float64)
            scales |= dict(zip(batch.frame_ids, values, strict=True))
            bar.advance()
    return scales


# --------------------------------------------------------------------------------------------------- maps of the ground


@torch.no_grad()
def ground_maps(
    student: Stage, stages: Sequence[Stage], frames: dict[str, str], classes: Sequence[str], device: torch.device
) -> tuple[BevMaps | None, list[str]]:
    """What a student and its teachers see of the ground, None where its method compares no such maps; and what had to
    be left out, a sentence each.

    ``stages`` are those of its run; ``frames`` says of each frame why it is shown; the boxes of ``classes`` (lower
    case) are outlined.

    Raises:
        UserError: the student's weights or the data cannot be read, or a frame is not in the split.
    """
    method = METHODS.get(str(student.card.get("method")))
    if method is None or not issubclass(method.config_type, ResponseConfig):
        return None, []
    where = f"{student.folder / CARD}: method_config"
    config: Any = from_plain(method.config_type, student.card.get("method_config") or {}, where)
    owners = {"student": student.name, "teacher": config.teacher or next(iter(student.teachers), "")}
    shared = isinstance(config, MonoTAKDConfig) and config.shared_assistant
    if isinstance(config, MonoTAKDConfig):
        owners["assistant"] = student.name if shared else config.assistant
    networks, lacks = _networks(owners, student, stages)
    for network in networks.values():
        network.to(device)
    if shared:
        # A shared assistant speaks in training mode only; all parts stay in evaluation mode, with their statistics.
        networks[student.name].training = True

    inputs = {network.config.input for network in networks.values()} | ({"depth"} if shared else set())
    dataset = open_inputs(student, inputs)
    missing = next((frame for frame in frames if frame not in dataset.frame_ids), None)
    if missing is not None:
        raise UserError(f"frame {missing} is not in the split {dataset.config.split!r}")
    shown, geometry = [], None
    with ProgressBar(f"{student.name}: maps of the ground", len(frames)) as bar:
        for frame, reason in frames.items():
            sample = dataset.get(dataset.frame_ids.index(frame))
            batch = collate_surround([sample]) if isinstance(sample, SurroundSample) else collate([sample])
            batch = batch.to(device)
            outputs = {name: network(batch) for name, network in networks.items()}
            geometry = outputs[student.name].features[config.tap].geometry
            maps = _maps(outputs, owners, config, shared)
            means = {kind: tensor[0].float().mean(0).cpu().numpy() for kind, tensor in maps.items()}
            shown.append(FrameMaps(frame, reason, means, _outlines(sample, classes, dataset.classes), _distances(maps)))
            bar.advance()
    there = {part: name for part, name in owners.items() if name in networks}
    inputs_of = {part: networks[name].config.input for part, name in there.items()}
    if shared:
        inputs_of["assistant"] = "rgb+gt_depth"
    if not isinstance(geometry, BevGeometry):
        return None, []
    return BevMaps(geometry, tuple(shown), there, inputs_of, _residual_text(config)), lacks


def _networks(owners: dict[str, str], student: Stage, stages: Sequence[Stage]) -> tuple[dict[str, Detector], list[str]]:
    """Student and teachers by name, in evaluation mode, and a sentence for each that there is not.

    Raises:
        UserError: the student's own weights cannot be read.
    """
    networks, lacks = {student.name: load_detector(student.folder)[0]}, []
    folders = {stage.name: stage.folder for stage in stages}
    for part, name in owners.items():
        try:
            if name not in networks and name not in folders:
                raise UserError("this run has no such stage")
            networks[name] = networks[name] if name in networks else load_detector(folders[name])[0]
        except UserError as error:
            lacks.append(f"{student.name}: the {part}'s map of the ground ({name}) is left out: {error}.")
    return networks, lacks


def _maps(
    outputs: dict[str, Outputs], owners: dict[str, str], config: ResponseConfig, shared: bool
) -> dict[str, Tensor]:
    """The maps (1, C, Y, X) that there are of one frame, by the names of ``view.bev_maps.MAPS``.

    Raises:
        UserError: the student lacks the map that is compared, or they lie on different grids.
    """
    student = outputs[owners["student"]]
    maps = {"visual": tapped(config.tap, student, "student").tensor}
    if owners["teacher"] in outputs:
        maps["teacher"] = _beside(config.tap, student, outputs[owners["teacher"]], config.teacher_tap, "teacher")
    if not isinstance(config, MonoTAKDConfig):
        return maps
    if config.spatial_tap in student.features:
        maps["spatial"] = student.features[config.spatial_tap].tensor
    if owners["assistant"] in outputs:
        tap = config.assistant_tap if shared else config.assistant_map or config.tap
        maps["assistant"] = _beside(config.tap, student, outputs[owners["assistant"]], tap, "assistant")
    if {"teacher", "assistant"} <= maps.keys() and maps["teacher"].shape == maps["assistant"].shape:
        maps["residual"] = residual(maps["teacher"], normalised(maps["assistant"], config.normalise), config)
    return maps


def _beside(tap: str, student: Outputs, other: Outputs, other_tap: str | None, who: str) -> Tensor:
    """The other's map (1, C, Y, X), on the student's grid.

    Raises:
        UserError: it is not there, or lies on another grid.
    """
    try:
        return same_grid(tap, student, other, other_tap, who)[1].tensor
    except ValueError as error:
        raise UserError(str(error)) from error


def _residual_text(config: ResponseConfig) -> str:
    """How R comes about; nothing where the method has none."""
    if not isinstance(config, MonoTAKDConfig):
        return ""
    teacher, assistant = MAPS["teacher"].symbol, MAPS["assistant"].symbol
    scaled = f"{assistant} scaled to 0..1" if config.normalise == "minmax" else assistant
    difference = f"how far {teacher} and {scaled} are apart"
    if config.residual == "signed":
        difference = f"what {teacher} has more than {scaled}"
    if config.residual_form == "none":
        return difference
    kept = f"{difference}, where that is at least {config.threshold:g} of the largest such value in the frame"
    form = "1 there, 0 elsewhere" if config.residual_form == "binarise" else "0 elsewhere"
    return f"{kept} (in training: in the batch); {form}"


def _distances(maps: dict[str, Tensor]) -> dict[tuple[str, str], float]:
    """|a - b| / |b| of the maps that are compared and have as many channels; NaN where b is nothing but zeros."""
    return {
        (a, b): float((maps[a] - maps[b]).norm() / maps[b].norm()) if maps[b].any() else float("nan")
        for a, b in COMPARED
        if {a, b} <= maps.keys() and maps[a].shape == maps[b].shape
    }


@torch.no_grad()
def own_maps(stage: Stage, frames: Sequence[str], device: torch.device) -> dict[str, dict[str, GroundMap]]:
    """What one network sees of the ground in some frames of the split it was evaluated on: of each frame its taps
    ``GROUND_TAPS``, each as the mean over its channels, and the probability of an object's centre (``HEAT``), by name;
    nothing where it does not look at the ground.

    A tap's brightest is told by all frames, as a page does.

    Raises:
        UserError: its weights, its recipe or the data cannot be read, or a frame is not in the split.
    """
    if not {"detector", "config"} <= stage.card.keys():
        return {}
    offered = outline(stage.card, str(stage.folder / CARD)).tap_channels
    taps = [tap for tap in GROUND_TAPS if tap in offered]
    if not taps:
        return {}
    detector, _ = load_detector(stage.folder)
    dataset = _as_evaluated(stage, detector)
    place = {frame: index for index, frame in enumerate(dataset.frame_ids)}
    missing = next((frame for frame in frames if frame not in place), None)
    if missing is not None:
        raise UserError(f"frame {missing} is not in its split")
    detector.to(device).eval()
    shown: dict[str, dict[str, GroundMap]] = {}
    with ProgressBar(f"{stage.name}: maps of the ground", len(frames)) as bar:
        for frame, batch in zip(frames, batches(dataset, [place[f] for f in frames], 1, None, 0), strict=True):
            outputs = detector(batch.to(device))
            shown[frame] = {tap: _mean_map(outputs.features[tap]) for tap in taps} | _heat(detector, outputs)
            bar.advance()
    for tap in taps:
        cells = np.concatenate([maps[tap].values.ravel() for maps in shown.values()])
        for maps in shown.values():
            maps[tap] = replace(maps[tap], brightest=end_of_scale(cells)[0])
    return shown


def _as_evaluated(stage: Stage, detector: Detector) -> Dataset:
    """The split that a stage was evaluated on, as its detector was given it."""
    dataset = data_of(stage.folder, stage.layout == "nuscenes")
    dataset = replace(dataset, root=Path(stage.named_in_recipe("root")[0]))
    config = StageConfig(stage.name, "student", detector.config, augment=None)
    return source_of(Recipe(stage.run, (config,), dataset)).evaluation(config, dataset.eval_split)


def _mean_map(tap: FeatureMap) -> GroundMap:
    """One frame's tap as the mean over its channels."""
    assert isinstance(tap.geometry, BevGeometry)
    return GroundMap(tap.tensor[0].float().mean(0).cpu().numpy(), tap.geometry)


def _heat(detector: Detector, outputs: Outputs) -> dict[str, GroundMap]:
    """The probability of the likeliest class's centre in each cell, of detectors whose head predicts that."""
    head = getattr(detector, "head", None)
    if not isinstance(head, CentreHead):
        return {}
    values = outputs.predictions["heatmap"][0].float().sigmoid().amax(0).cpu().numpy()
    return {HEAT: GroundMap(values, BevGeometry(head.config.extent, head.config.cell, "ego"), 1.0)}


def _outlines(
    sample: Sample | SurroundSample, classes: Sequence[str], names: Sequence[str]
) -> Float[np.ndarray, "n 4 2"]:
    """The corners on the ground of the labelled boxes of some classes, in the LiDAR's frame, of surround views in the
    vehicle's."""
    assert sample.objects is not None
    boxes = sample.objects.boxes
    wanted = torch.tensor([name.lower() in classes for name in names])
    corners = boxes[(boxes.label != IGNORE) & wanted[boxes.label.clamp(min=0)]].corners()[:, :4].double()
    if isinstance(sample, SurroundSample):
        return corners[..., :2].numpy()
    assert sample.lidar_to_camera is not None
    on_ground = carry(corners.flatten(0, 1), torch.linalg.inv(sample.lidar_to_camera))
    return on_ground.view(corners.shape)[..., :2].numpy()
