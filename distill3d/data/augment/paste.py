"""Objects of other frames pasted into a frame's picture, scan and depth map at once, so that all three still agree.

Zhang et al., "ODM3D: Alleviating Foreground Sparsity for Semi-Supervised Monocular 3D Object Detection", WACV 2024,
arXiv:2310.18620, whose code was not at hand: that objects are pasted into all modalities, patches in the order of
depth, is the paper's; how objects are cut out and free places found, and what becomes of what is hidden, is this
project's.

An object is pasted where it stood before its own camera, so that its size, the side that it shows, and the distance of
its points are right as they are.  What it covers in the picture, its region, is what its points show of it.

    it stands   on ground that the scan shows, as high as its own
    its place   is free: no labelled box shares ground with it, and the scan has no point in it above the ground
    before it   there is nothing that no label knows; labelled objects that are nearer hide it, others are hidden by it
    a pixel     of a region that nothing nearer hides is the object's: there the picture shows it, the depth map holds
                its depths, the scan holds its points and no others; everywhere else all three are as they were
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from distill3d.boxes import IGNORE, Boxes3D, camera_to_lidar
from distill3d.camera import Camera
from distill3d.data.augment.lidar import (
    NEAREST_CORNER,
    bev_overlap,
    enclosing_boxes,
    field_of_view,
    first_come,
    ground_rows,
    joined,
)
from distill3d.data.depth import CompletionConfig, complete_depth, project_depth
from distill3d.data.sample import EASY, MODERATE, Objects, Sample
from distill3d.errors import UserError
from distill3d.settings import Between, Count, Number, Share

#: Points less than this above an object's bottom (m) are the road it stands on.
CLEARANCE = 0.3
#: Ground is looked for so far (m) around a footprint, above and below its bottom; it takes so many points, of whose
#: heights it is this quantile.
GROUND_MARGIN, GROUND_POINTS, GROUND_QUANTILE = 1.0, 3, 0.1
#: What lies so much nearer (m) than a box's nearest corner stands in front of it; up to this share of its region's
#: points may, for outlines are coarser than objects.
IN_FRONT, MOST_IN_FRONT = 0.5, 0.02
#: Hidden shares of a region from which on an object counts as partly and as largely occluded (KITTI's levels 1 and 2).
OCCLUDED = (0.1, 0.5)
#: Of a scan, across and up (rad): those of the Velodyne HDL-64E, whose beams lie up to half a degree apart.
SPACING = (math.radians(0.2), math.radians(0.5))
#: Points that make a silhouette, and what is less than this above an object's bottom (m) and counts as the road there.
SILHOUETTE_POINTS, ROAD = 5, 0.1
#: Objects that are looked at for each one that may be pasted.
TRIES = 8
#: Pixels around a region that take part where its depths are completed: half the largest kernel.
COMPLETION_MARGIN = 16
#: Corners of a box's six faces, each in turn around it, in the order of ``Boxes3D.corners``.
FACES = ((0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))

#: (2D boxes, truncation, occlusion) -> training difficulty
Difficulty = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PasteConfig:
    """Which objects are pasted into a frame; only frames with labels and a scan get any."""

    probability: Share = 0.5  # that a frame gets some
    counts: tuple[tuple[str, Count], ...] = (("Car", 3), ("Pedestrian", 2), ("Cyclist", 2))  # at most, of each class
    least_points: Number = 10  # of the object's scan that its region shows
    most_step: Annotated[float, Between(0, 10)] = 0.3  # m between its bottom and the ground of its place
    least_shown: Share = 0.6  # of a pasted object's region
    least_left: Share = 0.5  # of a labelled object's region, by pasted ones


def refuse_unknown(config: PasteConfig, classes: tuple[str, ...]) -> None:
    """Holds the classes that are counted against those of a data set.

    Raises:
        UserError: it does not have one of them.
    """
    for name, _ in config.counts:
        if name not in classes:
            raise UserError(f"augment.paste.counts names class {name!r}, expected one of {', '.join(classes)}")


@dataclass(frozen=True)
class Donors:
    """The objects of a data set that can be pasted, and the index of the frame that holds each."""

    objects: Objects
    frame: Int[Tensor, "n"]

    @classmethod
    def of(cls, frames: list[Objects | None]) -> Donors:
        """Those label lines that nothing hides or cuts, and that are not too small to be trained on."""
        parts, owners = [], []
        for index, lines in enumerate(frames):
            if lines is None:
                continue
            whole = (lines.occlusion == 0) & (lines.truncation == 0) & (lines.boxes.label != IGNORE)
            whole &= (lines.difficulty == EASY) | (lines.difficulty == MODERATE)
            parts.append(lines[whole])
            owners += [index] * int(whole.sum())
        if not parts:
            raise UserError("objects are to be pasted (augment.paste), and no frame has labels")
        objects = parts[0]
        for part in parts[1:]:
            objects = joined(objects, part)
        return cls(objects, torch.tensor(owners, dtype=torch.int64))


class Scene(NamedTuple):
    """A frame's picture, camera and scan, in the camera's frame."""

    image: Float[Tensor, "3 h w"]
    camera: Camera
    points: Float[Tensor, "m 4"]


class Patch(NamedTuple):
    """One object as it is pasted."""

    line: Objects  # one row
    region: Bool[Tensor, "h w"]
    image: Float[Tensor, "3 h w"]  # right in the region
    points: Float[Tensor, "m 4"]


def paste_objects(
    sample: Sample,
    points: Float[Tensor, "m 4"],
    donors: Donors,
    read: Callable[[int], Scene | None],
    config: PasteConfig,
    classes: tuple[str, ...],
    difficulty: Difficulty,
    generator: torch.Generator,
    completion: CompletionConfig | None = None,
) -> Sample:
    """A frame in its file's own pixels with objects of others pasted in.

    Args:
        sample: with labels, and where its LiDAR is.
        points: of its scan, in the camera's frame, whether or not the sample itself holds them.
        read: the frame of an index in ``donors``; None where it has no scan.
        classes: what labels index; those that the settings count are among them.
        completion: how sparse depths become dense ones; None where the sample's depth map is sparse.
    """
    assert sample.objects is not None and sample.lidar_to_camera is not None
    if float(torch.rand(1, generator=generator, dtype=torch.float64)) >= config.probability:
        return sample
    size = (sample.image.shape[-1], sample.image.shape[-2])
    points = points[field_of_view(points, sample.camera, size)]
    scene = Scene(sample.image, sample.camera, points)
    chosen = fitting(sample.objects, points, sample.lidar_to_camera, donors, config, classes, generator)
    patches: list[Patch] = []
    lines = sample.objects
    known = lines.boxes.label != IGNORE
    own = regions(lines.boxes[known], points, sample.camera, size)
    depths = lines.boxes.centre[known, 2]
    for index in chosen.tolist():
        source = read(int(donors.frame[index]))
        if source is None:
            continue
        patch = cut_out(donors.objects[torch.tensor([index])], source, scene)
        if patch is None or is_behind_something(patch, scene, lines):
            continue
        tried = [*patches, patch]
        if _all_show(tried, owners(tried, own, depths), own, sample.camera, config):
            patches = tried
    return _composed(sample, patches, own, difficulty, completion) if patches else sample


def fitting(
    lines: Objects, points: Float[Tensor, "m 4"], lidar_to_camera: Float[Tensor, "4 4"], donors: Donors,
    config: PasteConfig, classes: tuple[str, ...], generator: torch.Generator,
) -> Int[Tensor, "k"]:  # fmt: skip
    """Donors that the ground would take beside a frame's label ``lines`` and each other, in random order."""
    to_lidar = torch.linalg.inv(lidar_to_camera)
    taken = ground_rows(camera_to_lidar(lines.boxes[lines.boxes.label != IGNORE], to_lidar))
    found = []
    for name, count in config.counts:
        pool = (donors.objects.boxes.label == classes.index(name)).nonzero()[:, 0]
        drawn = pool[torch.randperm(len(pool), generator=generator)[: TRIES * count]]
        boxes = donors.objects.boxes[drawn]
        rows = ground_rows(camera_to_lidar(boxes, to_lidar))
        free = ~bev_overlap(rows, taken).any(1) & stands(boxes, points, config.most_step)
        kept = first_come(bev_overlap(rows, rows).tril(-1), free).nonzero()[:count, 0]
        found.append(drawn[kept])
        taken = torch.cat((taken, rows[kept]))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def stands(boxes: Boxes3D, points: Float[Tensor, "m 4"], most_step: float) -> Bool[Tensor, "n"]:
    """Which camera-frame boxes stand on ground that the scan shows, within ``most_step`` (m), in an empty place."""
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.bool)
    boxes = boxes.to(points.dtype)
    height = (boxes.centre[:, 1] + boxes.size[:, 2] / 2)[:, None] - points[:, 1]  # of points above the bottoms
    inside, around = boxes.contains(points[:, :3]), boxes.contains(points[:, :3], GROUND_MARGIN)
    empty = ~(inside & (height > CLEARANCE)).any(1)
    near = around & (height.abs() < GROUND_MARGIN)
    ground = torch.where(near, height, torch.nan).nanquantile(GROUND_QUANTILE, dim=1)
    return empty & (near.sum(1) >= GROUND_POINTS) & (ground.abs() <= most_step)


def regions(
    boxes: Boxes3D, points: Float[Tensor, "m 4"], camera: Camera, size: tuple[int, int]
) -> Bool[Tensor, "n h w"]:  # fmt: skip
    """The pixels of a picture of ``size`` (width, height) that show each of the boxes' objects, as far as a scan tells.

    In the outline of the projected camera-frame box, the points in the box, grown by the scan's spacing, closed, and
    filled from the highest to the lowest of each column; where there are fewer than ``SILHOUETTE_POINTS`` the outline.
    """
    found = outlines(boxes, camera, size)
    if len(boxes) == 0:
        return found
    inside = boxes.to(points.dtype).contains(points[:, :3])
    bottom = (boxes.centre[:, 1] + boxes.size[:, 2] / 2)[:, None]
    inside &= bottom - points[:, 1] > ROAD
    across, up = (math.ceil(float(camera.projection[i, i]) * spacing) for i, spacing in enumerate(SPACING))
    window = {"kernel_size": (2 * up + 1, 2 * across + 1), "stride": 1, "padding": (up, across)}
    for region, mine in zip(found, inside, strict=True):
        pixel, seen = _pixels(points[mine], camera, region)
        if int(seen.sum()) < SILHOUETTE_POINTS:
            continue
        drawn = torch.zeros(region.numel()).index_fill(0, pixel[seen], 1.0).view(1, *region.shape)
        rows, columns = (_stretch(region.any(axis)) for axis in (1, 0))
        grown = F.max_pool2d(F.max_pool2d(drawn[:, rows, columns], **window), **window)
        closed = -F.max_pool2d(-grown, **window)[0] > 0
        region[rows, columns] &= closed.cummax(0).values & closed.flip(0).cummax(0).values.flip(0)
    return found


def _stretch(used: Bool[Tensor, "n"]) -> slice:
    """From the first to the last that is used."""
    where = used.nonzero()[:, 0].tolist()
    return slice(where[0], where[-1] + 1) if where else slice(0, 1)


def outlines(boxes: Boxes3D, camera: Camera, size: tuple[int, int]) -> Bool[Tensor, "n h w"]:
    """The pixels whose centres lie within the outline of each projected camera-frame box: in any of its faces."""
    width, height = size
    found = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    corners = boxes.corners().to(camera.projection)
    corners[..., 2].clamp_(min=NEAREST_CORNER)
    for region, projected in zip(found, corners, strict=True):
        uv = camera.project(projected)[0]
        left, top, right, bottom = _window(torch.cat((uv.amin(0), uv.amax(0))), size)
        v, u = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
        pixel = torch.stack((u, v), dim=-1).to(uv)
        start = uv[torch.tensor(FACES)]  # (6, 4, 2)
        side = start.roll(-1, 1) - start
        away = pixel[..., None, None, :] - start
        turn = side[..., 0] * away[..., 1] - side[..., 1] * away[..., 0]
        region[top:bottom, left:right] = ((turn >= 0).all(-1) | (turn <= 0).all(-1)).any(-1)
    return found


def _window(box: Float[Tensor, "4"], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Columns and rows (left, top, right, bottom) of the pixels that a box (px) touches."""
    width, height = size
    left, top, right, bottom = box.tolist()
    low = (min(max(int(left), 0), width), min(max(int(top), 0), height))
    high = (min(max(int(right) + 1, low[0]), width), min(max(int(bottom) + 1, low[1]), height))
    return (*low, *high)


def cut_out(line: Objects, source: Scene, scene: Scene) -> Patch | None:
    """An object of a ``source`` frame as the camera of a ``scene`` would show it; None where it would be cut off.

    Both cameras look the same way, so a pixel of one is a scaled and shifted one of the other, at the object's depth.
    """
    boxes = line.boxes
    height, width = scene.image.shape[-2:]
    outline = enclosing_boxes(boxes, scene.camera)[0]
    if not ((outline[:2] >= 0).all() and outline[2] < width and outline[3] < height):
        return None
    left, top, right, bottom = _window(outline, (width, height))
    v, u = torch.meshgrid(torch.arange(top, bottom) + 0.5, torch.arange(left, right) + 0.5, indexing="ij")
    pixel = torch.stack((u, v), dim=-1).double().flatten(0, 1)
    at = scene.camera.back_project(pixel, boxes.centre[:, 2].expand(len(pixel)))
    shown = source.camera.project(at)[0].unflatten(0, (bottom - top, right - left))
    of_source = torch.tensor([source.image.shape[-1], source.image.shape[-2]])
    grid = (2 * shown / of_source - 1).to(source.image)
    picture = torch.zeros_like(scene.image)
    picture[:, top:bottom, left:right] = F.grid_sample(
        source.image[None], grid[None], padding_mode="border", align_corners=False
    )[0]
    near = (source.points[:, :3] - boxes.centre.to(source.points)).abs().amax(1) < float(boxes.size.amax())
    points = source.points[near]
    points = points[boxes.to(points.dtype).contains(points[:, :3])[0]]
    moved = replace(line, boxes=replace(boxes, box2d=_moved(boxes, source.camera, scene.camera)))
    return Patch(moved, regions(boxes, points, scene.camera, (width, height))[0], picture, points)


def _moved(boxes: Boxes3D, camera: Camera, other: Camera) -> Float[Tensor, "n 4"]:
    """The 2D boxes as another camera that looks the same way shows them."""
    assert boxes.box2d is not None
    corners, depth = boxes.box2d.unflatten(1, (2, 2)).flatten(0, 1), boxes.centre[:, 2].repeat_interleave(2)
    return other.project(camera.back_project(corners, depth))[0].unflatten(0, (-1, 2)).flatten(1)


def is_behind_something(patch: Patch, scene: Scene, lines: Objects) -> bool:
    """Whether the scan has something in front of a region that is no labelled object."""
    pixel, seen = _pixels(scene.points, scene.camera, patch.region)
    within = seen & patch.region.flatten()[pixel]
    nearest = float(patch.line.boxes.corners()[..., 2].min()) - IN_FRONT
    before = within & (scene.points[:, 2] < nearest)
    labelled = lines.boxes[lines.boxes.label != IGNORE].to(scene.points.dtype).contains(scene.points[before, :3])
    unknown = int((~labelled.any(0)).sum())
    return unknown > max(1, MOST_IN_FRONT * int(within.sum()))


def _pixels(points: Tensor, camera: Camera, like: Bool[Tensor, "h w"]) -> tuple[Int[Tensor, "m"], Bool[Tensor, "m"]]:
    """The flat pixel of each camera-frame point, and whether it is in the picture; those that are not have pixel 0."""
    height, width = like.shape
    uv, depth = camera.project(points[:, :3].to(camera.projection))
    column, row = uv.floor().unbind(-1)
    seen = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(seen, row * width + column, 0).long(), seen


def owners(
    patches: list[Patch], own: Bool[Tensor, "n h w"], depths: Float[Tensor, "n"]
) -> Int[Tensor, "h w"]:  # fmt: skip
    """Which of the ``patches`` each pixel shows, -1 for none: drawn from far to near, among the frame's own objects, of
    regions ``own`` at ``depths`` (m)."""
    shown = torch.full(patches[0].region.shape, -1, dtype=torch.int64)
    layers = [(float(patch.line.boxes.centre[0, 2]), patch.region, i) for i, patch in enumerate(patches)]
    layers += [(depth, region, -1) for depth, region in zip(depths.tolist(), own, strict=True)]
    for _, region, i in sorted(layers, key=lambda layer: -layer[0]):
        shown[region] = i
    return shown


def _all_show(
    patches: list[Patch], shown: Int[Tensor, "h w"], own: Bool[Tensor, "n h w"], camera: Camera,
    config: PasteConfig,
) -> bool:  # fmt: skip
    """Whether enough is left of every object, and of pasted ones enough points."""
    for i, patch in enumerate(patches):
        mine = shown == i
        if int(mine.sum()) < config.least_shown * int(patch.region.sum()):
            return False
        if len(_points_shown(patch, mine, camera)) < config.least_points:
            return False
    return bool((hidden(shown, own) <= 1 - config.least_left).all())


def hidden(shown: Int[Tensor, "h w"], own: Bool[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """The share of each region that shows a pasted object."""
    covered = (own & (shown >= 0)).flatten(1).sum(1)
    return covered / own.flatten(1).sum(1).clamp(min=1)


def _occlusion(share: Float[Tensor, "n"]) -> Int[Tensor, "n"]:
    return sum((share > limit).long() for limit in OCCLUDED) + torch.zeros_like(share, dtype=torch.int64)


def _composed(
    sample: Sample, patches: list[Patch], own: Bool[Tensor, "n h w"], difficulty: Difficulty,
    completion: CompletionConfig | None,
) -> Sample:  # fmt: skip
    """Picture, depth, scan and label lines with the patches; their fields agree pixel by pixel."""
    assert sample.objects is not None
    known = sample.objects.boxes.label != IGNORE
    shown = owners(patches, own, sample.objects.boxes.centre[known, 2])
    kept = [_points_shown(patch, shown == i, sample.camera) for i, patch in enumerate(patches)]
    image, depth = sample.image, sample.depth
    for i, patch in enumerate(patches):
        image = torch.where(shown == i, patch.image, image)
        if depth is not None:
            depth = torch.where(shown == i, _depths(kept[i], shown == i, sample.camera, completion), depth)
    points = sample.points
    if points is not None:
        foreign = shown >= 0
        pixel, seen = _pixels(points, sample.camera, foreign)
        covered = seen & foreign.flatten()[pixel]
        for patch in patches:
            covered |= patch.line.boxes.to(points.dtype).contains(points[:, :3])[0]
        points = torch.cat((points[~covered], *kept))

    occlusion = sample.objects.occlusion.clone()
    occlusion[known] = torch.maximum(occlusion[known], _occlusion(hidden(shown, own)))
    lines = replace(sample.objects, occlusion=occlusion)
    for i, patch in enumerate(patches):
        left = (shown == i).sum() / patch.region.sum()
        lines = joined(lines, replace(patch.line, occlusion=_occlusion(1 - left[None])))
    assert lines.boxes.box2d is not None
    judged = difficulty(lines.boxes.box2d, lines.truncation, lines.occlusion)
    changed = torch.ones(len(lines), dtype=torch.bool)
    changed[: len(occlusion)] = occlusion != sample.objects.occlusion
    lines = replace(lines, difficulty=torch.where(changed, judged, lines.difficulty))
    return replace(sample, image=image, depth=depth, points=points, objects=lines)


def _points_shown(patch: Patch, mine: Bool[Tensor, "h w"], camera: Camera) -> Float[Tensor, "m 4"]:
    pixel, seen = _pixels(patch.points, camera, mine)
    return patch.points[seen & mine.flatten()[pixel]]


def _depths(
    points: Float[Tensor, "m 4"], mine: Bool[Tensor, "h w"], camera: Camera, completion: CompletionConfig | None
) -> Float[Tensor, "1 h w"]:
    """The depth map (m) of one object's points in its pixels.

    Dense, they are completed from these points alone, and what is then still unknown, panes and the edge of a coarse
    outline, has the median of their depths.
    """
    height, width = mine.shape
    sparse = project_depth(points, camera, (width, height))
    if completion is None:
        return sparse[None]
    rows, columns = (_stretch(mine.any(axis)) for axis in (1, 0))
    rows, columns = (slice(max(s.start - COMPLETION_MARGIN, 0), s.stop + COMPLETION_MARGIN) for s in (rows, columns))
    dense = sparse.clone()
    dense[rows, columns] = complete_depth(sparse[rows, columns], completion)
    return torch.where(dense > 0, dense, points[:, 2].median().to(dense))[None]
