"""Triangle meshes and the primitives that cars, people, plants and houses are built of.

All meshes are triangle soups: the ray caster wants them so, and soups concatenate without index bookkeeping.
Local axes of every object: x forward, y left, z up, metres unless said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Vector = Sequence[float] | np.ndarray
CREASE_COSINE = 0.64  # faces that meet at more than about 50 degrees keep a hard edge


@dataclass(frozen=True)
class Mesh:
    """A triangle soup.

    corners (T, 3, 3) and normals (T, 3, 3): xyz per corner; uv (T, 3, 2): surface coordinates per corner;
    slot (T,): index into the palette of the object that uses the mesh; layer (T,): page of a painted or procedural
    surface, -1 for none; tint (T,): factor on the palette's colour.
    """

    corners: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    slot: np.ndarray
    layer: np.ndarray
    tint: np.ndarray

    def __len__(self) -> int:
        return len(self.corners)

    def moved(self, matrix: np.ndarray, offset: Vector = (0.0, 0.0, 0.0)) -> Mesh:
        """The mesh under x -> matrix @ x + offset; matrix (3, 3), offset (3,). Normals come out unnormalised."""
        matrix = np.asarray(matrix, np.float32)
        corners = self.corners.reshape(-1, 3) @ matrix.T + np.asarray(offset, np.float32)
        normals = self.normals.reshape(-1, 3) @ np.linalg.inv(matrix)
        return replace(self, corners=corners.reshape(-1, 3, 3), normals=normals.reshape(-1, 3, 3))

    def with_slot(self, slot: int, tint: float = 1.0) -> Mesh:
        return replace(self, slot=np.full_like(self.slot, slot), tint=np.full_like(self.tint, tint))


def soup(corners: np.ndarray, normals: np.ndarray | None = None, slot: int = 0, uv: np.ndarray | None = None) -> Mesh:
    """Mesh of corners (T, 3, 3); flat normals and zero surface coordinates where none are given."""
    corners = np.ascontiguousarray(corners, np.float32)
    count = len(corners)
    if normals is None:
        normals = np.repeat(unit(face_normals(corners))[:, None], 3, 1)
    return Mesh(
        corners,
        np.ascontiguousarray(normals, np.float32),
        np.zeros((count, 3, 2), np.float32) if uv is None else np.ascontiguousarray(uv, np.float32),
        np.full(count, slot, np.int16),
        np.full(count, -1, np.int16),
        np.ones(count, np.float32),
    )


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of all triangles."""
    return Mesh(
        np.concatenate([m.corners for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.slot for m in meshes]),
        np.concatenate([m.layer for m in meshes]),
        np.concatenate([m.tint for m in meshes]),
    )


def face_normals(corners: np.ndarray) -> np.ndarray:
    """Area-weighted normals (T, 3) of corners (T, 3, 3)."""
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        -1,
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) at length one; zero vectors stay zero."""
    length = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    return vectors / np.maximum(length, 1e-12)[..., None]


def smooth(mesh: Mesh, crease_cosine: float = CREASE_COSINE) -> Mesh:
    """The mesh with corner normals averaged over the faces that meet at a corner, except across creases."""
    weighted = face_normals(mesh.corners)
    flat = unit(weighted)
    keys = np.round(mesh.corners.reshape(-1, 3), 4)
    _, vertex = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(vertex.ravel(), kind="stable")
    starts = np.flatnonzero(np.diff(vertex.ravel()[order], prepend=-1))
    normals = np.empty((len(mesh) * 3, 3), np.float32)
    for group in np.split(order, starts[1:]):
        faces = group // 3
        alike = flat[faces] @ flat[faces].T > crease_cosine
        normals[group] = unit(alike @ weighted[faces])
    return replace(mesh, normals=normals.reshape(-1, 3, 3))


def grid_triangles(points: np.ndarray) -> np.ndarray:
    """Triangles (2 (A-1) (B-1), 3, 3) of a grid of points (A, B, 3); degenerate ones are left out."""
    a, b, c, d = points[:-1, :-1], points[1:, :-1], points[1:, 1:], points[:-1, 1:]
    corners = np.concatenate([np.stack([a, b, c], -2).reshape(-1, 3, 3), np.stack([a, c, d], -2).reshape(-1, 3, 3)])
    return corners[np.linalg.norm(face_normals(corners), axis=1) > 1e-9]


def box(low: Vector, high: Vector, slot: int = 0, bottom: bool = False) -> Mesh:
    """Axis-aligned box from low to high (3,); the bottom face is left out unless asked for."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    p = np.array([[x, y, z] for z in (z0, z1) for y in (y0, y1) for x in (x0, x1)], np.float32)
    quads = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6)] + [(1, 0, 2, 3)] * bottom
    return soup(np.concatenate([p[[[a, b, c], [a, c, d]]] for a, b, c, d in quads]), slot=slot)


def _swept(points: np.ndarray, normals: np.ndarray, slot: int) -> Mesh:
    """Mesh of a grid of points and normals, both (A, B, 3)."""
    both = np.concatenate([points, normals], -1)
    a, b, c, d = both[:-1, :-1], both[1:, :-1], both[1:, 1:], both[:-1, 1:]
    corners = np.concatenate([np.stack([a, b, c], -2).reshape(-1, 3, 6), np.stack([a, c, d], -2).reshape(-1, 3, 6)])
    corners = corners[np.linalg.norm(face_normals(corners[..., :3]), axis=1) > 1e-9]
    return soup(corners[..., :3], corners[..., 3:], slot)


def tube(points: np.ndarray, radii: np.ndarray, sides: int, slot: int = 0, capped: bool = True) -> Mesh:
    """A smooth tube of `sides` along points (N, 3) with radii (N,), closed by points at both ends if capped."""
    points, radii = np.asarray(points, float), np.asarray(radii, float)
    axis = unit(np.gradient(points, axis=0))
    aside = np.where(np.abs(axis[:, 2:]) < 0.9, np.array([[0.0, 0.0, 1.0]]), np.array([[1.0, 0.0, 0.0]]))
    across = unit(np.cross(axis, aside))
    upward = np.cross(axis, across)
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    rim = np.cos(turn)[:, None] * across[:, None] + np.sin(turn)[:, None] * upward[:, None]
    rings = points[:, None] + radii[:, None, None] * rim
    if capped:
        ends = np.repeat(points[[0, -1]][:, None], sides + 1, 1)
        caps = np.repeat(np.stack([-axis[0], axis[-1]])[:, None], sides + 1, 1)
        rings, rim = np.concatenate([ends[:1], rings, ends[1:]]), np.concatenate([caps[:1], rim, caps[1:]])
    return _swept(rings, rim, slot)


def capsule(start: Vector, end: Vector, r0: float, r1: float, sides: int = 7, slot: int = 0) -> Mesh:
    """A limb: tapered tube from start to end (3,) with rounded ends of radius r0 and r1."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    along = unit(b - a)
    bulge = 0.7  # how far a rounded end reaches, in radii, and how narrow it is there
    points = np.stack([a - bulge * r0 * along, a, (a + b) / 2, b, b + bulge * r1 * along])
    radii = np.array([0.55 * r0, r0, 0.55 * r0 + 0.47 * r1, r1, 0.55 * r1])
    return tube(points, radii, sides, slot)


def ellipsoid(centre: Vector, radii: Vector, sides: int = 8, slot: int = 0) -> Mesh:
    """Ellipsoid with analytic normals; centre and radii (3,)."""
    lat = np.linspace(-np.pi / 2, np.pi / 2, max(4, sides // 2 + 1))
    lon = np.linspace(0, 2 * np.pi, sides + 1)
    sphere = np.stack(
        [
            np.cos(lat)[:, None] * np.cos(lon),
            np.cos(lat)[:, None] * np.sin(lon),
            np.repeat(np.sin(lat)[:, None], len(lon), 1),
        ],
        -1,
    )
    corners = grid_triangles(sphere)
    return soup(corners * np.asarray(radii) + np.asarray(centre), unit(corners / np.asarray(radii)), slot)


def loft(rings: Sequence[tuple[Vector, float, float]], sides: int = 10, slot: int = 0) -> Mesh:
    """Smooth vertical body through ellipses: rings of (centre (3,), radius along x, radius along y), bottom to top."""
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    rounds = [np.stack([rx * np.cos(turn), ry * np.sin(turn), 0 * turn], -1) for _, rx, ry in rings]
    outward = [unit(np.stack([ry * np.cos(turn), rx * np.sin(turn), 0 * turn], -1)) for _, rx, ry in rings]
    spine = np.array([centre for centre, _, _ in rings], float)
    ends = np.repeat(spine[[0, -1]][:, None], sides + 1, 1)
    caps = np.zeros((2, sides + 1, 3)) + np.array([[[0.0, 0.0, -1.0]], [[0.0, 0.0, 1.0]]])
    points = np.concatenate([ends[:1], spine[:, None] + np.stack(rounds), ends[1:]])
    return _swept(points, np.concatenate([caps[:1], np.stack(outward), caps[1:]]), slot)


def disc(centre: Vector, radius: float, axis: int, sides: int = 12, slot: int = 0) -> Mesh:
    """Flat disc across an axis (0, 1, 2); its normal faces along the positive axis."""
    turn = np.linspace(0, 2 * np.pi, sides + 1)
    rim = np.zeros((sides + 1, 3))
    rim[:, (axis + 1) % 3], rim[:, (axis + 2) % 3] = radius * np.cos(turn), radius * np.sin(turn)
    rim += np.asarray(centre)
    hub = np.repeat(np.asarray(centre, float)[None], sides, 0)
    return soup(np.stack([hub, rim[:-1], rim[1:]], 1), slot=slot)


def to_unit_box(mesh: Mesh) -> tuple[Mesh, np.ndarray]:
    """The mesh scaled to x, y in [-0.5, 0.5] and z in [0, 1], and its former extent (length, width, height)."""
    points = mesh.corners.reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    extent = high - low
    offset = -(low + high) / 2 / extent
    offset[2] = -low[2] / extent[2]
    return mesh.moved(np.diag(1 / extent), offset), extent
