"""Frames of a run as a recording for the rerun viewer (``pip install 'distill3d[rerun]'``): 3D to be turned.

All of a frame lies in one *world* frame (m, z up), below the entity ``world``:

    world/points                    the scan, coloured by height
    world/cameras/<camera>          the camera's pose, its matrix and its picture
    world/labels, world/stages/<stage>      boxes, and below ``.../front`` a line from the middle to the front of each
    world/maps/<stage>/<map>        what a detector sees of the ground, in place
    frame                           the frame's name, why it is there, and what the colours mean

The timeline ``frame`` counts the recorded frames from 0.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D
from distill3d.camera import Camera
from distill3d.data.augment.lidar import carry
from distill3d.data.sample import Sample
from distill3d.errors import UserError
from distill3d.view.bev_maps import GroundMap, ramp
from distill3d.view.draw import CAMERA_HEIGHT
from distill3d.view.page import JPEG_QUALITY
from distill3d.view.palette import LOOKS, TRUE, Look
from distill3d.view.surround_gallery import Moment, key_camera

APPLICATION = "distill3d"
TIMELINE = "frame"
#: Where x of the world points: ahead with y to the left, or (of LiDAR sensors' own frames) to the right with y ahead.
Axes = Literal["FLU", "RFU"]
AHEAD: dict[Axes, tuple[float, float, float]] = {"FLU": (1.0, 0.0, 0.0), "RFU": (0.0, 1.0, 0.0)}
#: From KITTI's camera (x right, y down, z forward) to a frame of FLU at the same place: for calibrations that do not
#: say where the LiDAR is.
LEVEL_CAMERA = torch.tensor(
    ((0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)), dtype=torch.float64
)
KITTI_CAMERA = "image_2"  # after its folder
#: Colours of points: the darkest that is used, a share of the ramp, for the viewer's background is dark; the share of a
#: scan that lies on the road or below; and m above the road where the brightest begins.
DARKEST, ON_ROAD, BRIGHT_HEIGHT = 0.3, 0.05, 3.0
#: m that maps lie below the road, so that points and boxes stand on them.
MAP_DEPTH = 0.2
#: Widths of lines and points in px of the screen.
LABEL_WIDTH, STAGE_WIDTH, POINT_SIZE = 1.0, 1.5, 1.2
#: m from a camera to its picture in the 3D view.
PICTURE_DISTANCE = 1.5
#: Where the eye begins: m ahead of the origin and above it, and m ahead that it looks at.
EYE, LOOKS_AT = (-12.0, 9.0), 14.0
#: The eye from above: m above what it looks at for each metre of the longer side of what is to be seen.
FROM_ABOVE = 1.1
COLUMNS = 3  # of cameras
FRAMES_PER_SECOND = 1.0  # where somebody lets them run


# -------------------------------------------------------------------------------------------------------- what is shown


@dataclass(frozen=True)
class View:
    """A picture and the camera that took it."""

    picture: Float[Tensor, "3 h w"]  # RGB in 0..1
    intrinsics: Float64[Tensor, "3 3"]  # px of the picture
    pose: Float64[Tensor, "4 4"]  # from the camera's frame (x right, y down, z forward; m) to the world's


@dataclass(frozen=True)
class BoxSet:
    """Boxes, where they are, and what their labels index."""

    boxes: Boxes3D  # of any frame
    pose: Float64[Tensor, "4 4"]  # from that frame to the world's
    classes: tuple[str, ...]

    def centres(self) -> Float64[np.ndarray, "n 3"]:
        """Centres in the world (m)."""
        return carry(self.boxes.centre.double(), self.pose).numpy()

    def turns(self) -> Float64[np.ndarray, "n 3 3"]:
        """How the world's axes become a box's: along its length, to its left, up."""
        along = self.boxes.heading().double()
        up = along.new_tensor((0.0, -1.0, 0.0) if self.boxes.frame == "camera" else (0.0, 0.0, 1.0)).expand_as(along)
        axes = torch.stack((along, torch.linalg.cross(up, along, dim=-1), up), dim=-1)
        return (self.pose[:3, :3] @ axes).numpy()

    def names(self) -> list[str]:
        """The class of each box."""
        return [self.classes[label] for label in self.boxes.label.tolist()]

    def titles(self) -> list[str]:
        """Class and, of detections, score."""
        if self.boxes.score is None:
            return self.names()
        return [f"{name} {score:.2f}" for name, score in zip(self.names(), self.boxes.score.tolist(), strict=True)]


@dataclass(frozen=True)
class Frame:
    """All that is recorded of a moment."""

    name: str
    reason: str  # why it is recorded
    views: dict[str, View]
    points: Float[Tensor, "m 3"] | None  # m, in the world
    labels: BoxSet
    stages: dict[str, BoxSet]  # boxes by stage
    maps: dict[tuple[str, str], GroundMap] = field(default_factory=dict)  # by stage and name


def kitti_frame(
    sample: Sample, reason: str, labels: Boxes3D, found: Mapping[str, Boxes3D], classes: tuple[str, ...],
    maps: Mapping[tuple[str, str], GroundMap],
) -> Frame:  # fmt: skip
    """A frame of one camera.  The world is the LiDAR's frame; where nobody says where that is, ``LEVEL_CAMERA``'s."""
    to_world = LEVEL_CAMERA if sample.lidar_to_camera is None else torch.linalg.inv(sample.lidar_to_camera.double())
    return Frame(
        sample.frame_id, reason, {KITTI_CAMERA: _view(sample.image, sample.camera, to_world)},
        None if sample.points is None else carry(sample.points[:, :3].double(), to_world),
        BoxSet(labels, to_world, classes),
        {name: BoxSet(boxes[boxes.label != IGNORE], to_world, classes) for name, boxes in found.items()},
        dict(maps),
    )  # fmt: skip


def surround_frame(
    moment: Moment, labelled: tuple[str, ...], found: tuple[str, ...], maps: Mapping[tuple[str, str], GroundMap]
) -> Frame:
    """A moment of surround views, whose world is the key ego frame; ``labelled`` and ``found`` are the classes that
    labels index, and detections.

    Raises:
        ValueError: the sample has no pictures.
    """
    sample, here = moment.sample, torch.eye(4, dtype=torch.float64)
    if sample.images is None:
        raise ValueError("the sample has no pictures")
    views = {
        name: _view(image, key_camera(sample, index), sample.camera_to_ego[0, index].double())
        for index, (name, image) in enumerate(zip(sample.camera_names, sample.images[0], strict=True))
    }
    stages = {name: BoxSet(boxes, here, found) for name, boxes in moment.sets.items() if name != TRUE}
    points = None if sample.points is None else sample.points[:, :3].double()
    labels = BoxSet(moment.sets[TRUE], here, labelled)
    return Frame(moment.title, moment.reason, views, points, labels, stages, dict(maps))


def _view(picture: Float[Tensor, "3 h w"], camera: Camera, to_world: Float64[Tensor, "4 4"]) -> View:
    """A picture and the pinhole that a projection P = K [I | t] stands for: it stands at -t of the camera's frame."""
    matrix, offset = camera.projection[:, :3].double(), camera.projection[:, 3:].double()
    place = torch.eye(4, dtype=torch.float64)
    place[:3, 3:] = -torch.linalg.solve(matrix, offset)
    return View(picture, matrix, to_world @ place)


# -------------------------------------------------------------------------------------------------------- the recording


def library() -> Any:
    """The module ``rerun``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import rerun  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("recordings need rerun-sdk: pip install 'distill3d[rerun]'") from None
    rerun.set_strict_mode(True)  # what it cannot record is an error, and no line in a log
    return rerun


def recorded(frames: Iterable[Frame], looks: Mapping[str, Look], title: str, axes: Axes) -> bytes:
    """The frames and how they are to be shown, as the content of a file; ``looks`` are those of the stages.

    All is held in memory: rerun's own writer of files waits for ever where a disk is full, and what it gives away in
    pieces makes no sound file (0.41).

    Raises:
        UserError: rerun-sdk is not installed or is switched off, or there is no frame.
    """
    rr = library()
    recording = rr.RecordingStream(APPLICATION)
    if not rr.is_enabled(recording):
        raise UserError("recordings are switched off by the environment variable RERUN: unset it")
    recording.set_log_time_enabled(False)
    recording.set_log_tick_enabled(False)
    stream, first = recording.binary_stream(), None
    recording.send_recording_name(title)
    recording.log("world", getattr(rr.ViewCoordinates, axes), static=True)
    for number, frame in enumerate(frames):
        first = first or frame
        recording.set_time(TIMELINE, sequence=number)
        _log(rr, recording, frame, looks)
    if first is None:
        raise UserError("there is no frame to record")
    recording.send_blueprint(_blueprint(rr, first, axes))
    return stream.read()


def entity(*parts: str) -> str:
    """The path of an entity, whatever its parts are called."""
    return library().new_entity_path(list(parts))


def _log(rr: Any, recording: Any, frame: Frame, looks: Mapping[str, Look]) -> None:
    """One frame at the time that is set.  What it lacks is empty, for the viewer shows what came last."""
    points = np.zeros((0, 3)) if frame.points is None else frame.points.numpy()
    road = road_height(frame)
    shade = DARKEST + (1 - DARKEST) * (points[:, 2] - road) / BRIGHT_HEIGHT
    colours = ramp(np.maximum(shade, DARKEST))
    recording.log("world/points", rr.Points3D(points, colors=colours, radii=rr.Radius.ui_points(POINT_SIZE)))
    for name, view in frame.views.items():
        height, width = view.picture.shape[1:]
        recording.log(
            ["world", "cameras", name],
            rr.Transform3D(translation=view.pose[:3, 3].numpy(), mat3x3=view.pose[:3, :3].numpy()),
            rr.Pinhole(
                image_from_camera=view.intrinsics.numpy(), resolution=(width, height),
                camera_xyz=rr.ViewCoordinates.RDF, image_plane_distance=PICTURE_DISTANCE,
            ),
            rr.EncodedImage(contents=_jpeg(view.picture), media_type="image/jpeg"),
        )  # fmt: skip
    _log_boxes(rr, recording, ["world", "labels"], frame.labels, LOOKS[TRUE].colour, LABEL_WIDTH)
    for name, found in frame.stages.items():
        _log_boxes(rr, recording, ["world", "stages", name], found, looks[name].colour, STAGE_WIDTH)
    for (stage, name), ground in frame.maps.items():
        recording.log(["world", "maps", stage, name], _grid(rr, ground, road - MAP_DEPTH))
    recording.log("frame", rr.TextDocument(_text(frame, looks), media_type="text/markdown"))


def road_height(frame: Frame) -> float:
    """m: z of the road in the world, as the scan has it; below the (only) camera where there is none."""
    if frame.points is not None and len(frame.points):
        return float(frame.points[:, 2].quantile(ON_ROAD))
    return min(float(view.pose[2, 3]) for view in frame.views.values()) - CAMERA_HEIGHT


def _log_boxes(rr: Any, recording: Any, path: list[str], found: BoxSet, colour: str, width: float) -> None:
    import pyarrow  # comes with rerun  # pyright: ignore[reportMissingImports]

    centres, turns, sizes = found.centres(), found.turns(), found.boxes.size.double().numpy()
    quaternions = Rotation.from_matrix(turns).as_quat() if len(turns) else np.zeros((0, 4))
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    shown = {"colors": [[red, green, blue]] * len(centres), "radii": rr.Radius.ui_points(width)}
    boxes = rr.Boxes3D(
        centers=centres,
        half_sizes=sizes / 2,
        quaternions=quaternions,
        labels=found.titles(),
        show_labels=False,
        fill_mode="MajorWireframe",
        **shown,
    )
    # With their types, for where there are no boxes nobody could tell them.
    facts = {
        "class": pyarrow.array(found.names(), pyarrow.string()),
        "score": pyarrow.array([] if found.boxes.score is None else found.boxes.score.tolist(), pyarrow.float64()),
    }
    recording.log(path, boxes, rr.AnyValues(**facts))
    middle = centres - turns[:, :, 2] * sizes[:, 2:] / 2
    front = middle + turns[:, :, 0] * sizes[:, :1] / 2
    recording.log([*path, "front"], rr.LineStrips3D(np.stack((middle, front), axis=1), **shown))


def _grid(rr: Any, ground: GroundMap, height: float) -> Any:
    """A map in its place: columns along x, rows along y, the first row of the picture at the largest y."""
    x0, y0, _, _ = ground.geometry.extent
    rows, columns = ground.values.shape
    form = rr.components.ImageFormat(width=columns, height=rows, color_model="RGB", channel_datatype="U8")
    return rr.GridMap(
        data=np.ascontiguousarray(ground.shades()[::-1]).tobytes(), format=form, cell_size=ground.geometry.cell,
        translation=(x0, y0, height),
    )  # fmt: skip


def _jpeg(picture: Float[Tensor, "3 h w"]) -> bytes:
    buffer = io.BytesIO()
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _text(frame: Frame, looks: Mapping[str, Look]) -> str:
    """What stands beside the pictures, in Markdown."""
    sets = [("labels", LOOKS[TRUE], frame.labels), *((n, looks[n], found) for n, found in frame.stages.items())]
    rows = "".join(f"| {look.word} | {name} | {len(found.boxes)} |\n" for name, look, found in sets)
    return f"**{frame.name}**: {frame.reason}\n\n| colour | | boxes |\n|---|---|---|\n{rows}"


# -------------------------------------------------------------------------------------------------------- how it opens


def _blueprint(rr: Any, frame: Frame, axes: Axes) -> Any:
    """Pictures above, below them the scene and the same from above, the latter once for each map."""
    show, ahead = rr.blueprint, np.array(AHEAD[axes])
    boxes = ["/world/labels/**", "/world/stages/**"]
    cameras = [
        show.Spatial2DView(origin=entity("world", "cameras", name), name=name, contents=["$origin/**", *boxes])
        for name in frame.views
    ]
    scene = show.Spatial3DView(
        origin="/world", name="Scene", contents=["/world/**", "- /world/maps/**"],
        eye_controls=show.EyeControls3D(
            position=EYE[0] * ahead + (0, 0, EYE[1]), look_target=LOOKS_AT * ahead, eye_up=(0, 0, 1)
        ),
    )  # fmt: skip
    extent = _extent(frame)
    above = [_from_above(rr, "From above", ["/world/points", "/world/labels/**"], list(frame.stages), extent, ahead)]
    for (stage, name), ground in frame.maps.items():
        shown = [entity("world", "maps", stage, name), "/world/labels/**"]
        above.append(_from_above(rr, f"{stage}: {name}", shown, [stage], ground.geometry.extent, ahead))
    return show.Blueprint(
        show.Vertical(
            show.Horizontal(
                show.Grid(*cameras, grid_columns=min(COLUMNS, len(cameras))),
                show.TextDocumentView(origin="/frame", name="Frame"),
                column_shares=[4, 1],
            ),
            show.Horizontal(scene, show.Tabs(*above), column_shares=[3, 2]),
            row_shares=[2, 3] if len(cameras) > 1 else [1, 2],
        ),
        show.TimePanel(timeline=TIMELINE, state="collapsed", fps=FRAMES_PER_SECOND, play_state="paused"),
        show.BlueprintPanel(state="collapsed"),
        show.SelectionPanel(state="collapsed"),
    )


Extent = tuple[float, float, float, float]


def _extent(frame: Frame) -> Extent:
    """x and y (m) that hold all boxes, least and largest, or else some way ahead."""
    places = np.concatenate(
        [found.centres()[:, :2] for found in (frame.labels, *frame.stages.values())] + [np.zeros((1, 2))]
    )
    (x0, y0), (x1, y1) = places.min(0), places.max(0)
    return float(x0), float(y0), float(x1), float(y1)


def _from_above(
    rr: Any, name: str, contents: list[str], stages: list[str], extent: Extent, ahead: np.ndarray
) -> Any:  # fmt: skip
    """A view straight down, with the boxes of some stages: here is room for their labels."""
    x0, y0, x1, y1 = extent
    middle, side = np.array(((x0 + x1) / 2, (y0 + y1) / 2, 0.0)), max(x1 - x0, y1 - y0)
    paths = [entity("world", "stages", stage) for stage in stages]
    return rr.blueprint.Spatial3DView(
        origin="/world", name=name, contents=[*contents, *(f"{path}/**" for path in paths)],
        overrides={path: rr.Boxes3D.from_fields(show_labels=True) for path in paths},
        eye_controls=rr.blueprint.EyeControls3D(
            position=middle + (0, 0, FROM_ABOVE * side), look_target=middle, eye_up=ahead
        ),
    )  # fmt: skip
