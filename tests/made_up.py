"""Batches of noise with labelled cars at random places, for tests that need no picture."""

from dataclasses import replace

import torch

from distill3d.boxes import from_kitti, wrap_angle
from distill3d.camera import Camera, ImageAffine
from distill3d.data.sample import EASY, Batch, ObjectBatch, Objects

SIZE, CANVAS = (1242, 375), (320, 96)
CAMERA = Camera(torch.tensor([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0]], dtype=torch.float64))
#: From a LiDAR on the roof (x forward, y left, z up) to the camera in front of it.
LIDAR_TO_CAMERA = torch.tensor(
    [[0, -1, 0, 0.06], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], dtype=torch.float64
)
#: Points of a scan, and how far below the camera (m) the ground lies.
POINTS, GROUND = 2000, 1.65


def cars(count: int, generator: torch.Generator, border: bool = False) -> Objects:
    """Cars at random places in front of the camera; on the image's left border with ``border``."""
    z = 5 + 50 * torch.rand(count, generator=generator, dtype=torch.float64)
    u = torch.rand(count, generator=generator, dtype=torch.float64) * (4 if border else SIZE[0])
    centre = CAMERA.back_project(torch.stack((u, torch.full_like(u, 200.0)), -1), z)
    hwl = torch.tensor([1.5, 1.6, 3.9], dtype=torch.float64) + 0.1 * torch.rand(count, 3, generator=generator).double()
    rotation_y = wrap_angle(6.28 * torch.rand(count, generator=generator).double())
    half = 721.5 * torch.stack((hwl[:, 1], hwl[:, 0]), -1) / z[:, None] / 2
    uv = CAMERA.project(centre)[0]
    boxes = from_kitti(
        hwl, centre + torch.stack((torch.zeros_like(z), hwl[:, 0] / 2, torch.zeros_like(z)), -1), rotation_y,
        torch.ones(count, dtype=torch.int64), box2d=torch.cat((uv - half, uv + half), -1),
        alpha=wrap_angle(rotation_y - torch.atan2(uv[:, 0] - 609.6, torch.full_like(z, 721.5))),
    )  # fmt: skip
    zero = torch.zeros(count, dtype=torch.int64)
    return Objects(boxes, zero.double(), zero, torch.full_like(zero, EASY))


def scan(objects: Objects, generator: torch.Generator) -> torch.Tensor:
    """Points (m, 4) of the ground and of the objects' insides: camera-frame x, y, z (m) and intensity."""
    boxes = objects.boxes
    ground = torch.rand(POINTS, 3, generator=generator) * torch.tensor([40.0, 0.0, 60.0]) + torch.tensor(
        [-20.0, GROUND, 2.0]
    )
    shift = torch.rand(len(boxes), 50, 3, generator=generator) - 0.5
    inside = boxes.centre[:, None].float() + shift * boxes.size.amin(-1)[:, None, None].float()
    points = torch.cat((ground, inside.flatten(0, 1)))
    return torch.cat((points, torch.rand(len(points), 1, generator=generator)), dim=-1)


def make_batch(objects: list[Objects], generator: torch.Generator) -> Batch:
    affines = [ImageAffine.crop(SIZE, CANVAS) for _ in objects]
    placed = [
        replace(o, boxes=replace(o.boxes, box2d=a.apply_boxes(o.boxes.box2d)))
        for o, a in zip(objects, affines, strict=True)
    ]
    n = len(objects)
    depth = 60 * torch.rand(n, 1, CANVAS[1], CANVAS[0], generator=generator)
    of_scans = torch.Generator().manual_seed(n)
    return Batch(
        [f"{i:06}" for i in range(n)], torch.rand(n, 3, CANVAS[1], CANVAS[0], generator=generator),
        Camera(torch.stack([a.camera(CAMERA).projection for a in affines])), ImageAffine.stack(affines),
        ObjectBatch.pad(placed), torch.where(depth > 10, depth, torch.zeros_like(depth)),
        [scan(o, of_scans) for o in objects], LIDAR_TO_CAMERA.repeat(n, 1, 1),
    )  # fmt: skip
