"""Moments of surround views worth looking at: the cameras' pictures and the scene from above, with boxes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from PIL import Image
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import Camera
from distill3d.data.augment.lidar import carry
from distill3d.data.nuscenes.dataset import CAMERAS, EgoFrame, NuScenesConfig, NuScenesDataset, SweepConfig, carry_boxes
from distill3d.data.surround import SurroundSample
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import filtered, ground_truth
from distill3d.evaluate.nuscenes_boxes import CLASS_RANGE, CLASSES, DetectionBoxes
from distill3d.evaluate.nuscenes_submission import read_submission
from distill3d.evaluate.surround_transfer import SurroundLabelled, counted_objects
from distill3d.view.distance import LEAST_SCORE, Matches, frame_errors, nearest_partners
from distill3d.view.draw import (
    BEYOND,
    CAMERA_HEIGHT,
    LEAST_REACH,
    RING_STEP,
    SUPERSAMPLE,
    Extent,
    bird_view,
    draw_corners,
    drawn_panel,
    line_width,
)
from distill3d.view.gallery import BIRD_COLOURS, Choice, choose_frames, colours, rivals
from distill3d.view.page import Photo, photo
from distill3d.view.palette import TRUE
from distill3d.view.pieces import Shown
from distill3d.view.runs import RESULT_FILES, Stage

#: The scan of the moment alone: what the pictures show at the same time.
ONE_SCAN = SweepConfig(past=0, future=0, scans=1, budget=None, style="intended")
#: m that a view from above shows at most on each side: what lies farther ahead does not count in the evaluation.
GREATEST_REACH = float(max(CLASS_RANGE.values()))
GROUND_SIZE = 1100  # px; more than of one camera's view, for it shows four times the ground
TILE_WIDTH = 560  # px of a camera's picture; smaller ones are enlarged
#: A level camera that looks forward from above the vehicle's origin, where the road is: x right, y down, z forward.
LEVEL = torch.tensor(
    ((0.0, -1.0, 0.0, 0.0), (0.0, 0.0, -1.0, CAMERA_HEIGHT), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    dtype=torch.float64,
)
#: From the LiDAR's own axes (x to the right, y ahead) to a vehicle's (x ahead, y to the left).
AHEAD = torch.tensor(
    ((0.0, 1.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)), dtype=torch.float64
)


@dataclass(frozen=True)
class Moment:
    """A sample of the evaluation split, and the boxes in its ego frame by the names of their parts."""

    title: str
    reason: str
    sample: SurroundSample
    sets: dict[str, Boxes3D]  # with TRUE
    counts: dict[str, dict[str, int]]  # of each set by class
    ego_frame: EgoFrame = NuScenesConfig.ego_frame


# ------------------------------------------------------------------------------------------------------- what and when


def pictured(parts: Collection[str]) -> list[str]:
    """Whose boxes the small pictures have room for: the camera's, where there are any."""
    return [part for part in parts if part != "teacher"] or list(parts)


def trained_classes(parts: dict[str, Shown]) -> list[str]:
    """The data set's classes that one of the parts was trained on; all where no card lists any."""
    trained = {name for one in parts.values() for name in one.stage.trained_classes}
    listed = [name for one in parts.values() for name in one.stage.dataset.get("classes") or ()]
    return [name for name in dict.fromkeys(listed) if name in trained or not trained]


def rig_of(stage: Stage) -> tuple[str, ...]:
    """The cameras that a stage was evaluated on, as evaluation.json says, or else those of training; where it looks at
    none, those of its data set."""
    settings = (stage.evaluation or {}).get("settings") or {}
    return tuple(settings.get("cameras") or stage.card.get("cameras") or stage.dataset.get("cameras") or CAMERAS)


def open_dataset(stage: Stage) -> NuScenesDataset:
    """The evaluation split of a stage as its detector sees it, with the points of the key scan.

    Raises:
        UserError: the recipe does not say where it is, or it cannot be read.
    """
    dataset = stage.dataset
    root, version, split, classes, canvas = stage.named_in_recipe("root", "version", "eval_split", "classes", "canvas")
    config = NuScenesConfig(
        root=Path(root), version=version, split=split, classes=tuple(classes), canvas=tuple(canvas), points=True,
        cameras=rig_of(stage), sweeps=ONE_SCAN, scan_columns=dataset.get("scan_columns", NuScenesConfig.scan_columns),
        ego_frame=dataset.get("ego_frame", NuScenesConfig.ego_frame), nan_velocity="keep",
        in_memory=bool(dataset.get("in_memory")),
    )  # fmt: skip
    return NuScenesDataset(config)


class Drives:
    """The samples of an evaluation split that every stage has predictions of.

    Objects of classes other than the given ones, and boxes less sure than ``least_score``, are left out.

    Raises:
        UserError: there is none, or data or predictions cannot be read.
    """

    def __init__(self, stages: dict[str, Stage], classes: Sequence[str], least_score: float = LEAST_SCORE) -> None:
        first = next(iter(stages.values()))
        self.classes, self.dataset = classes, open_dataset(first)
        submissions = {
            name: read_submission(stage.predictions / RESULT_FILES["nuscenes"]) for name, stage in stages.items()
        }
        present = [set(submission.samples) for submission in submissions.values()]
        self.tokens = [token for token in self.dataset.frame_ids if all(token in one for one in present)]
        if not self.tokens:
            raise UserError(f"no sample of {first.run} has predictions of every part and lies in its split")
        self._found = {name: _of_samples(one, self.tokens, least_score) for name, one in submissions.items()}

    def telling(self, compared: tuple[str, str] | None, count: int) -> list[Choice]:
        """At most ``count`` samples, chosen by ``choose_frames``; ``compared`` names a baseline and a student among
        the stages."""
        truth = ground_truth(self.dataset.tables, self.tokens)
        evaluated = truth.boxes[np.isin(truth.boxes.label, [CLASSES.index(name) for name in self.classes])]
        objects, _ = filtered(evaluated, truth.racks)
        lead = None
        if compared is not None:
            baseline, student = (_position_errors(objects, self._found[name]) for name in compared)
            lead = baseline - student
        return choose_frames(np.bincount(objects.sample, minlength=len(self.tokens)), lead, count)

    def moment(self, choice: Choice) -> Moment:
        """A chosen sample with the boxes of all stages."""
        token, dataset = self.tokens[choice.index], self.dataset
        index = dataset.frame_ids.index(token)
        sample = dataset.get(index)
        labelled = Boxes3D.empty("ego") if sample.objects is None else sample.objects.boxes
        known = torch.tensor([name in self.classes for name in dataset.classes])
        sets = {TRUE: labelled[known[labelled.label]]}
        counts = {TRUE: class_counts(sets[TRUE], dataset.classes)}
        to_ego = torch.linalg.inv(sample.ego_to_global)
        for name, boxes in self._found.items():
            sets[name] = carry_boxes(global_boxes(boxes[boxes.sample == choice.index]), to_ego, "ego")
            counts[name] = class_counts(sets[name], CLASSES)
        frame = dataset.config.ego_frame
        return Moment(moment_title(dataset, token), choice.reason, sample, sets, counts, frame)


def moments(parts: dict[str, Shown], classes: Sequence[str], count: int) -> Iterator[Moment]:
    """At most ``count`` samples, chosen by ``choose_frames`` from objects of the given classes.

    Raises:
        UserError: data or predictions cannot be read.
    """
    drives = Drives({part: one.stage for part, one in parts.items()}, classes)
    yield from map(drives.moment, drives.telling(rivals(parts), count))


def moment_title(dataset: NuScenesDataset, token: str) -> str:
    """Where in which scene a sample is."""
    scene, number, count = dataset.place(dataset.frame_ids.index(token))
    return f"{scene}, key frame {number} of {count} (sample {token})"


def _of_samples(boxes: DetectionBoxes, tokens: Sequence[str], least_score: float) -> DetectionBoxes:
    """The boxes at least as sure as ``least_score``, of the named samples and numbered as these are."""
    number = {token: index for index, token in enumerate(tokens)}
    renumbered = np.array([number.get(token, -1) for token in boxes.samples])[boxes.sample]
    kept = (renumbered >= 0) & (boxes.score >= least_score)
    return replace(boxes[kept], samples=tuple(tokens), sample=renumbered[kept])


def _position_errors(objects: DetectionBoxes, found: DetectionBoxes) -> Float[np.ndarray, " s"]:
    """Mean distance (m) of each sample's objects to their nearest detections of the same class."""
    return frame_errors(objects.sample, _nearest(objects, found)[1], len(objects.samples))


def _nearest(objects: DetectionBoxes, found: DetectionBoxes) -> tuple[Int[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """The nearest detection of the same class of each object, one to one, and how far it is (m), as
    ``nearest_partners`` has both."""

    def grouped(boxes: DetectionBoxes) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        group = boxes.sample * len(CLASSES) + boxes.label
        order = np.argsort(group, kind="stable")
        return order, group[order]

    (order, group), (found_order, found_group) = grouped(objects), grouped(found)
    near, apart = nearest_partners(
        group, objects.translation[order, :2], found_group, found.translation[found_order, :2],
        len(objects.samples) * len(CLASSES),
    )  # fmt: skip
    partner, offset = np.full(len(order), -1), np.empty(len(order))
    partner[order], offset[order] = np.where(near >= 0, np.append(found_order, -1)[near], -1), apart
    return partner, offset


class Distances:
    """The objects that count, of each data set once, and how far from them a stage's detections are.

    Objects are of all of the given classes, and all of the data set's split.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._objects: dict[tuple[str, ...], SurroundLabelled] = {}

    def of(self, stage: Stage) -> Matches:
        """The objects of a stage's evaluation split, and its nearest detections of their classes.

        Raises:
            UserError: data or predictions cannot be read.
        """
        key = tuple(map(str, stage.named_in_recipe("root", "version", "eval_split")))
        if key not in self._objects:
            dataset = open_dataset(stage)
            self._objects[key] = counted_objects(ground_truth(dataset.tables, dataset.frame_ids), self.classes)
        objects = self._objects[key]
        submission = read_submission(stage.predictions / RESULT_FILES["nuscenes"], objects.frames)
        found = submission[submission.score >= LEAST_SCORE].seen_from(objects.ego_position)
        partner, offset = _nearest(objects.boxes, found)
        error = np.full(len(partner), np.nan)
        hit = partner >= 0
        error[hit] = np.abs(found.ego_distance[partner[hit]] - objects.distance[hit])
        return Matches(objects.frame, objects.distance, hit, offset, error)


def global_boxes(found: DetectionBoxes) -> Boxes3D:
    """Global boxes; labels index the official ten classes."""
    return Boxes3D(
        torch.from_numpy(found.translation), torch.from_numpy(found.wlh[:, [1, 0, 2]].copy()),
        torch.from_numpy(found.yaw), torch.from_numpy(found.label), "global", score=torch.from_numpy(found.score),
        velocity=torch.from_numpy(found.velocity),
    )  # fmt: skip


def class_counts(boxes: Boxes3D, classes: Sequence[str]) -> dict[str, int]:
    return {name: int((boxes.label == label).sum()) for label, name in enumerate(classes)}


# ------------------------------------------------------------------------------------------------------------- pictures


def camera_panels(sample: SurroundSample, sets: dict[str, Boxes3D], colours: dict[str, str]) -> list[Image.Image]:
    """The pictures of the key frame in the data set's order of cameras, with every set of ego-frame boxes.

    Raises:
        ValueError: the sample has no pictures.
    """
    if sample.images is None:
        raise ValueError("the sample has no pictures to draw in")
    corners = {name: boxes.to(torch.float64).corners() for name, boxes in sets.items()}
    panels = []
    for index, image in enumerate(sample.images[0]):
        to_camera = torch.linalg.inv(sample.camera_to_ego[0, index])
        seen = {name: _carried(points, to_camera) for name, points in corners.items()}

        def draw(picture: Image.Image, camera: Camera, seen: dict[str, Tensor] = seen) -> None:
            for name, points in seen.items():
                draw_corners(picture, camera, points, colours[name], width=line_width(name), scale=SUPERSAMPLE)

        panels.append(drawn_panel(image, key_camera(sample, index), draw, TILE_WIDTH))
    return panels


def _carried(points: Float64[Tensor, "n 8 3"], pose: Float64[Tensor, "4 4"]) -> Float64[Tensor, "n 8 3"]:
    return carry(points.reshape(-1, 3), pose).reshape(points.shape)


def key_camera(sample: SurroundSample, index: int) -> Camera:
    """The camera of the key frame's picture ``index`` as the sample has it: its own frame to pixels of ``images``."""
    affine = sample.image_affine[index]
    return Camera(sample.intrinsics[0, index, :3]).warped(torch.cat((affine[:2, :2], affine[:2, 3:]), dim=1))


def ground_view(
    points: Float[Tensor, "m c"] | None, sets: dict[str, Boxes3D], colours: dict[str, str], size: int = GROUND_SIZE
) -> Image.Image:
    """Points and boxes along a vehicle's axes from above, forward up, the vehicle in the middle; ``size`` px wide."""
    seen = {name: _level(boxes.to(torch.float64)) for name, boxes in sets.items()}
    ahead = None if points is None else carry(points[:, :3].to(LEVEL), LEVEL)
    reach = _reach(list(sets.values()))
    return bird_view(ahead, seen, Extent(-reach, -reach, reach, reach), size=size, colours=colours)


def looking_ahead(boxes: Boxes3D, ego_frame: EgoFrame) -> Boxes3D:
    """Boxes of a key ego frame along a vehicle's axes, which that is but for ``lidar_sensor``."""
    return carry_boxes(boxes.to(torch.float64), AHEAD, "ego") if ego_frame == "lidar_sensor" else boxes


def points_ahead(points: Float[Tensor, "m c"] | None, ego_frame: EgoFrame) -> Float[Tensor, "m _"] | None:
    """The same of points."""
    return points if points is None or ego_frame != "lidar_sensor" else carry(points[:, :3].to(AHEAD), AHEAD)


def _level(boxes: Boxes3D) -> Boxes3D:
    """Boxes of the ego frame as the camera ``LEVEL`` has them; up stays up."""
    velocity = boxes.velocity
    return replace(
        boxes,
        centre=carry(boxes.centre, LEVEL),
        yaw=boxes.yaw + math.pi / 2,
        velocity=None if velocity is None else torch.stack((-velocity[:, 1], velocity[:, 0]), dim=1),
        frame="camera",
    )


def _reach(sets: Sequence[Boxes3D]) -> float:
    """m from the vehicle to the edges of a square that holds the boxes."""
    farthest = max([float(boxes.centre[:, :2].abs().max()) for boxes in sets if len(boxes)], default=0.0)
    return min(max(math.ceil((farthest + BEYOND) / RING_STEP) * RING_STEP, LEAST_REACH), GREATEST_REACH)


@dataclass(frozen=True)
class MomentFigure:
    """A moment as a page shows it: the cameras in rows of three, nuScenes' six as they look, below them the view from
    above."""

    title: str
    reason: str
    cameras: dict[str, Photo]
    bird: Photo
    counts: dict[str, list[int]]  # of each class, one for every set of boxes


def pictured_moment(moment: Moment, parts: dict[str, Shown]) -> MomentFigure:
    """The pictures of a moment, and how many boxes of each class every part has; classes that none has are left out."""
    of_part, title = colours(parts), moment.title
    drawn = {part: moment.sets[part] for part in (TRUE, *pictured(parts))}
    names = map(camera_name, moment.sample.camera_names)
    panels = dict(zip(names, camera_panels(moment.sample, drawn, of_part), strict=True))
    sets = {name: looking_ahead(boxes, moment.ego_frame) for name, boxes in moment.sets.items()}
    above = ground_view(points_ahead(moment.sample.points, moment.ego_frame), sets, of_part).quantize(BIRD_COLOURS)
    counts = {name: [counts.get(name, 0) for counts in moment.counts.values()] for name in CLASSES}
    return MomentFigure(
        title, moment.reason,
        {name: photo(panel, f"{title}: {name} camera with boxes") for name, panel in panels.items()},
        photo(above, f"{title} from above with LiDAR points"),
        {class_words(name): row for name, row in counts.items() if any(row)},
    )  # fmt: skip


def camera_name(channel: str) -> str:
    """CAM_FRONT_LEFT as "front left"."""
    return channel.removeprefix("CAM_").replace("_", " ").lower()


def class_words(name: str) -> str:
    """traffic_cone as "traffic cone"."""
    return name.replace("_", " ")
