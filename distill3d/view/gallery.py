"""Which frames are worth looking at, and their pictures."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image

from distill3d.boxes import Boxes3D
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.labels import read_labels
from distill3d.data.sample import Sample
from distill3d.errors import UserError
from distill3d.evaluate.kitti import OFFICIAL, Annotations, Rules, result_frames
from distill3d.files import write_output
from distill3d.view.distance import LEAST_SCORE, Matches, frame_errors, match_nearest
from distill3d.view.draw import frame_figure, frame_panels
from distill3d.view.palette import LOOKS, TRUE
from distill3d.view.runs import Stage, refuse_surround

JPEG_QUALITY = 82  # keeps a frame's pictures near 300 kB
BIRD_COLOURS = 96  # a bird's-eye view holds few colours: a palette picture is a third of the size
#: Frames are told ahead or behind from this mean difference (m) on.
TELLING_DIFFERENCE = 0.1


@dataclass(frozen=True)
class Choice:
    """A frame of the gallery, and why it is there."""

    index: int  # among the frames that were compared
    reason: str


def choose_frames(objects: Int[np.ndarray, " f"], lead: Float[np.ndarray, " f"] | None, count: int) -> list[Choice]:
    """At most ``count`` frames: half of them those with the most objects, half where student and baseline differ most.

    ``objects`` counts the objects of each frame; ``lead`` is the baseline's mean error less the student's (m; NaN
    without objects), None where there is nothing to compare. As many frames are shown where the student is behind as
    where it is ahead, so far as there are any. Equal frames are taken in order: the choice depends on nothing else.
    """
    chosen: dict[int, str] = {}

    def take(order: np.ndarray, wanted: int, reason: str) -> None:
        for index in order.tolist():
            if wanted <= 0 or len(chosen) >= count:
                return
            if index not in chosen:
                chosen[index] = reason
                wanted -= 1

    if lead is not None:
        quarter = count // 4
        ahead = np.flatnonzero(np.nan_to_num(lead) >= TELLING_DIFFERENCE)
        behind = np.flatnonzero(np.nan_to_num(lead) <= -TELLING_DIFFERENCE)
        take(ahead[np.argsort(-lead[ahead], kind="stable")], quarter, "student most ahead of the baseline")
        take(behind[np.argsort(lead[behind], kind="stable")], quarter, "student most behind the baseline")
    take(np.argsort(-objects, kind="stable"), count, "most objects")
    order = ["most objects", "student most ahead of the baseline", "student most behind the baseline"]
    return sorted((Choice(i, reason) for i, reason in chosen.items()), key=lambda c: (order.index(c.reason), c.index))


def label_folder(stage: Stage) -> Path:
    """Where the labels lie that a stage was evaluated on.

    Raises:
        UserError: the recipe names no data set, or the folder is not there.
    """
    root = stage.dataset.get("root")
    if root is None:
        raise UserError(f"the recipe of run {stage.run} names no data set (key dataset.root)")
    folder = Path(root) / "training" / "label_2"
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder: expected the labels of the data set of run {stage.run}")
    return folder


def compare(stage: Stage) -> tuple[Annotations, Matches]:
    """The labels of the frames that a stage predicted, and its nearest detections of the leading class.

    Raises:
        UserError: no predictions or no labels, or a malformed line in one of them.
    """
    frames = result_frames(stage.predictions, label_folder(stage))
    if not frames:
        raise UserError(f"{stage.predictions} holds no result files such as 000000.txt")
    rules = stage.rules
    detections = Annotations.from_folder(stage.predictions, scored=True, frames=frames).named(rules)
    labels = Annotations.from_folder(label_folder(stage), scored=False, frames=frames).named(rules)
    return labels, match_nearest(labels, detections, stage.leading, stage.min_height_scale)


def cast(stages: Sequence[Stage]) -> dict[str, Stage]:
    """The stage that plays each part in the figures: the first of each role, all on the data of the first of them."""
    chosen: dict[str, Stage] = {}
    for stage in stages:
        same_data = all(stage.dataset == other.dataset for other in chosen.values())
        known = stage.role in LOOKS and stage.role not in chosen
        if known and same_data and stage.finished and stage.has_predictions:
            chosen[stage.role] = stage
    return chosen


def open_dataset(stage: Stage) -> KittiDataset:
    """The evaluation split that a stage was evaluated on, with LiDAR points.

    Raises:
        UserError: the recipe does not say where it is, or it cannot be read.
    """
    refuse_surround([stage], "a figure of one camera")
    label_folder(stage)
    dataset = stage.dataset
    root, split, canvas = stage.named_in_recipe("root", "eval_split", "canvas")
    return KittiDataset(
        KittiConfig(
            root=Path(root), split=split, canvas=tuple(canvas),
            points=True, placement=dataset.get("placement", KittiConfig.placement),
            divide=dataset.get("divide", KittiConfig.divide), min_height_scale=stage.min_height_scale,
            names=stage.names, without_scan="always_skip" if dataset.get("without_scan") == "skip" else "refuse",
        )
    )  # fmt: skip


def true_boxes(sample: Sample, rules: Rules = OFFICIAL) -> Boxes3D:
    """The annotated objects of the classes that are evaluated: other classes cannot be found, so they are not shown."""
    if sample.objects is None:
        return Boxes3D.empty("camera")
    names = [name.lower() for name in rules.names.names]
    evaluated = torch.tensor([names.index(name) for name in rules.classes])
    return sample.objects.boxes[torch.isin(sample.objects.boxes.label, evaluated)]


def detected(parts: dict[str, Stage], frame: str) -> dict[str, Boxes3D]:
    """The boxes of each part in one frame, without those less sure than ``LEAST_SCORE``.

    Raises:
        UserError: a file is missing or malformed.
    """
    sets = {}
    for part, stage in parts.items():
        boxes = read_labels(stage.predictions / f"{frame}.txt", known=stage.names).boxes
        sets[part] = boxes if boxes.score is None else boxes[boxes.score >= LEAST_SCORE]
    return sets


def scenes(parts: dict[str, Stage], count: int) -> Iterator[tuple[Choice, Sample, dict[str, Boxes3D]]]:
    """The chosen frames of the evaluation split, each with the true boxes and those of every part.

    Raises:
        UserError: data or predictions cannot be read.
    """
    first = next(iter(parts.values()))
    dataset = open_dataset(first)
    place = {frame: index for index, frame in enumerate(dataset.frame_ids)}
    compared = {part: compare(stage) for part, stage in parts.items()}
    frames = [f for f in compared[first.role][0].frames if f in place and _predicted(parts, f)]
    if not frames:
        raise UserError(f"no frame of {first.run} has predictions of every part and lies in its evaluation split")
    objects = _per_frame(*compared[first.role], frames)[0]
    lead = None
    if "baseline" in compared and "student" in compared:
        baseline, student = (_per_frame(*compared[part], frames)[1] for part in ("baseline", "student"))
        lead = baseline - student
    for choice in choose_frames(objects, lead, count):
        frame = frames[choice.index]
        sample = dataset.get(place[frame])
        yield choice, sample, {TRUE: true_boxes(sample, first.rules), **detected(parts, frame)}


def _predicted(parts: dict[str, Stage], frame: str) -> bool:
    return all((stage.predictions / f"{frame}.txt").is_file() for stage in parts.values())


def _per_frame(labels: Annotations, matches: Matches, frames: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Number of objects, and mean error (m), in each of the given frames."""
    position = {frame: index for index, frame in enumerate(labels.frames)}
    chosen = np.array([position[frame] for frame in frames])
    count = len(labels.frames)
    return np.bincount(matches.frame, minlength=count)[chosen], frame_errors(matches.frame, matches.offset, count)[
        chosen
    ]


def figure_html(choice: Choice, sample: Sample, sets: dict[str, Boxes3D]) -> str:
    """One frame as an HTML figure whose pictures are part of the text; image and bird's-eye view stack on a phone."""
    panels, bird = frame_panels(sample, sets)
    # Columns of these shares make the stacked panels and the square view equally high.
    stacked = sum(panel.height / panel.width for panel in panels)
    columns = f"{1 / stacked:.3f}fr {bird.width / bird.height:.3f}fr"
    counts = ", ".join(f"{len(boxes)} {name}" for name, boxes in sets.items())
    photos = "".join(
        image_html(panel, f"Frame {sample.frame_id}: camera image with boxes ({n + 1} of {len(panels)})")
        for n, panel in enumerate(panels)
    )
    above = image_html(bird.quantize(BIRD_COLOURS), f"Frame {sample.frame_id} from above with LiDAR points", "bird")
    return (
        f'<figure><div class="frame" style="--columns:{columns}"><div class="photos">{photos}</div>{above}</div>'
        f"<figcaption><b>Frame {escape(sample.frame_id)}</b>, {escape(choice.reason)}. Boxes: {escape(counts)}."
        f"</figcaption></figure>"
    )


def image_html(picture: Image.Image, alt: str, style: str = "") -> str:
    """An <img> with its data inside: palette pictures as PNG, others as JPEG."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "P" else "jpeg"
    if kind == "png":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(
            buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True
        )  # thin coloured lines stay sharp
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = picture.size
    marked = f' class="{style}"' if style else ""
    return f'<img{marked} width="{width}" height="{height}" alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


def write_figures(stages: Sequence[Stage], folder: Path, count: int) -> list[Path]:
    """Write ``<frame>.png`` of the ``count`` most telling frames into ``folder`` and return the files.

    Raises:
        UserError: no finished stage with predictions, or data or predictions cannot be read.
    """
    parts = cast(stages)
    if not parts:
        raise UserError("no finished stage with predictions to draw")
    written = []
    for _, sample, sets in scenes(parts, count):
        path = folder / f"{sample.frame_id}.png"
        figure = frame_figure(sample, sets)
        write_output(path, lambda part, figure=figure: figure.save(part, "PNG"))
        written.append(path)
    return written
