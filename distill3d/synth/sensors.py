"""Camera and LiDAR, both cast against the same triangles.

World frame as in scene.py. Camera frame (KITTI's rectified frame): x right, y down, z ahead. Velodyne frame: x ahead,
y left, z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from . import cars, light, surfaces
from .placing import CAR, FACADE, GROUND, LEAF, MATERIALS, METAL, NO_OBJECT, ROOF
from .scene import Scene
from .settings import KITTI_FOCAL, KITTI_HEIGHT, KITTI_WIDTH, Conditions, StreetConfig
from .shapes import unit

# KITTI's calibration of 2011-09-26: projections (the fourth column in px m), rectification, extrinsics.
KITTI_CENTRE = (609.5593, 172.854)  # px
KITTI_FOURTH_COLUMNS = {
    "P0": (0.0, 0.0, 0.0),
    "P1": (-387.5744, 0.0, 0.0),
    "P2": (44.85728, 0.2163791, 0.002745884),
    "P3": (-339.5242, 2.199936, 0.002729905),
}
R0_RECT = np.array(
    [
        [9.999239e-01, 9.837760e-03, -7.445048e-03],
        [-9.869795e-03, 9.999421e-01, -4.278459e-03],
        [7.402527e-03, 4.351614e-03, 9.999631e-01],
    ]
)
TR_VELO_TO_CAM = np.array(
    [
        [7.533745e-03, -9.999714e-01, -6.166020e-04, -4.069766e-03],
        [1.480249e-02, 7.280733e-04, -9.998902e-01, -7.631618e-02],
        [9.998621e-01, 7.523790e-03, 1.480755e-02, -2.717806e-01],
    ]
)
TR_IMU_TO_VELO = np.array(
    [
        [9.999976e-01, 7.553071e-04, -2.035826e-03, -8.086759e-01],
        [-7.854027e-04, 9.998898e-01, -1.482298e-02, 3.195559e-01],
        [2.024406e-03, 1.482454e-02, 9.998881e-01, -7.997231e-01],
    ]
)
# HDL-64E: two blocks of 32 beams, degrees above the horizon.
BEAMS = np.concatenate([np.linspace(2.0, -8.33, 32), np.linspace(-8.83, -24.33, 32)])

_WORLD_FROM_LEVEL_CAMERA = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Rig:
    """The sensors' place and calibration in one frame."""

    rotation: np.ndarray
    """(3, 3) from camera axes to world axes."""
    position: np.ndarray
    """(3,) origin of the camera frame in the world, m."""
    projections: dict[str, np.ndarray]
    """P0..P3, each (3, 4), for this image size."""
    width: int
    height: int

    @property
    def rect_from_velodyne(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (3, 3) and translation (3,) from the velodyne to the camera frame."""
        return R0_RECT @ TR_VELO_TO_CAM[:, :3], R0_RECT @ TR_VELO_TO_CAM[:, 3]

    def to_camera(self, world: np.ndarray) -> np.ndarray:
        """World points (N, 3) in the camera frame, m."""
        return (world - self.position) @ self.rotation

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera-frame points (N, 3) to pixels (N, 2) of image 2; exact division by the homogeneous depth."""
        image = points @ self.projections["P2"][:, :3].T + self.projections["P2"][:, 3]
        return image[:, :2] / image[:, 2:]

    def pixel_rays(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World origin (3,) and unit directions (N, 3) of the rays through pixels (N, 2) of image 2, in the
        pixels' precision."""
        matrix = self.projections["P2"]
        inverse = np.linalg.inv(matrix[:, :3])
        origin = self.rotation @ (-inverse @ matrix[:, 3]) + self.position
        turned = (self.rotation @ inverse).astype(pixels.dtype)
        return origin, unit(pixels @ turned[:, :2].T + turned[:, 2])


def projections(width: int, height: int) -> dict[str, np.ndarray]:
    """KITTI's P0..P3, (3, 4) each, for images of a size in px; what is higher than KITTI's view is so by as much above
    as below."""
    scale = width / KITTI_WIDTH
    above = max(height - math.ceil(KITTI_HEIGHT * scale), 0) / 2
    matrices = {}
    for name, fourth in KITTI_FOURTH_COLUMNS.items():
        matrix = np.zeros((3, 4))
        matrix[0, 0] = matrix[1, 1] = KITTI_FOCAL * scale
        matrix[:2, 2] = np.array(KITTI_CENTRE) * scale + (0, above)
        matrix[2, 2] = 1.0
        matrix[:, 3] = np.array(fourth) * (scale, scale, 1.0)
        matrices[name] = matrix
    return matrices


def random_rig(rng: np.random.Generator, scene: Scene, config: StreetConfig) -> Rig:
    """The rig of a car that stands on the street's ground, with jitter of height, pitch and roll."""
    pitch = np.radians(np.clip(rng.standard_normal(), -2.5, 2.5) * config.pitch_sigma)
    roll = np.radians(np.clip(rng.standard_normal(), -2.5, 2.5) * config.roll_sigma) + np.arctan(scene.road.bank)
    height = config.camera_height + np.clip(rng.standard_normal(), -2.5, 2.5) * config.camera_height_sigma
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = _WORLD_FROM_LEVEL_CAMERA @ about_x @ about_z
    return Rig(
        rotation, np.array([0.0, 0.0, height]), projections(config.width, config.height), config.width, config.height
    )


class RayCaster:
    """The scene's triangles in Embree; `scene` stays readable beside them."""

    def __init__(self, corners: np.ndarray) -> None:
        self._embree = EmbreeScene()
        TriangleMesh(self._embree, np.ascontiguousarray(corners, np.float32))

    def cast(self, origins: np.ndarray, rays: np.ndarray) -> dict[str, np.ndarray]:
        """First hits of rays from origins, both (N, 3): primID (N,) or -1, tfar (N,) m, u and v (N,), Ng (N, 3)."""
        return self._embree.run(_float32(origins), _float32(rays), output=1)

    def blocked(self, origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Whether anything lies along rays from origins, both (N, 3); bool (N,)."""
        return self._embree.run(_float32(origins), _float32(rays), query="OCCLUDED") != -1


class AddedCaster(RayCaster):
    """Further triangles, corners (T, 3, 3), beside those of a caster that is kept; they are numbered from `first` on.

    What stands still is so built into Embree's tree only once, however often other things move.
    """

    def __init__(self, still: RayCaster, first: int, corners: np.ndarray) -> None:
        super().__init__(corners)
        self._still, self._first = still, first

    def cast(self, origins: np.ndarray, rays: np.ndarray) -> dict[str, np.ndarray]:
        still, added = self._still.cast(origins, rays), super().cast(origins, rays)
        nearer = np.flatnonzero((added["primID"] >= 0) & ((still["primID"] < 0) | (added["tfar"] < still["tfar"])))
        added["primID"] += np.int32(self._first)
        for name in ("primID", "tfar", "u", "v", "Ng"):
            still[name][nearer] = added[name][nearer]
        return still

    def blocked(self, origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
        blocked = self._still.blocked(origins, rays)
        free = np.flatnonzero(~blocked)
        blocked[free] = super().blocked(origins[free], rays[free])
        return blocked


def _float32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


SUN_RADIUS = 0.0025  # rad, standard deviation over the sun's disc: shadows soften with distance
SHADOW_BIAS, LEAF_BIAS = 0.02, 0.25  # m
LEAF_THROUGH = 0.30  # share of sun light that leaves let through
SUN_SHARPNESS, SUN_GLINT = 180.0, 60.0  # exponent and strength of the sun's reflection in paint
MOST_REFLECTED = 0.75  # clear coats and panes seen at a glance


def radiance(
    scene: Scene,
    caster: RayCaster,
    origin: np.ndarray,
    rays: np.ndarray,
    hits: dict[str, np.ndarray],
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Linear radiance (N, 3) along those unit rays (N, 3) from one origin (3,) that are chosen (N,), 0 elsewhere;
    hits: what the rays met (RayCaster.cast)."""
    found = hits["primID"] >= 0
    colour = np.zeros_like(rays)
    missed, seen = np.flatnonzero(chosen & ~found), np.flatnonzero(chosen & found)
    colour[missed] = light.sky(scene.light, rays[missed])
    if len(seen):
        hit = _Hits(scene, _float32(origin), rays, hits, seen)
        colour[hit.index] = _shade(scene, caster, hit, rng)
    return colour


def _worth_shading(triangles: np.ndarray) -> np.ndarray:
    """Which rays to shade, bool like triangles (H, S, W, S).

    Where all rays of a pixel meet one triangle those on the diagonal will do, and a pixel of plain sky needs one.
    """
    side = triangles.shape[1]
    chosen = np.ones(triangles.shape, bool)
    if side == 1:
        return chosen
    alike = (triangles == triangles[:, :1, :, :1]).all((1, 3))
    sky = alike & (triangles[:, 0, :, 0] < 0)
    for i in range(side):
        for j in range(side):
            if i != j:
                chosen[:, i, :, j] = ~alike
            elif i > 0:
                chosen[:, i, :, j] = ~sky
    return chosen


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


class _Hits:
    """What rays from one origin met, ordered by material, so that each material is a slice and not a gather.

    index (N,): the rays; all else is in its order. parts: the slice of each material.
    """

    def __init__(
        self, scene: Scene, origin: np.ndarray, rays: np.ndarray, hits: dict[str, np.ndarray], seen: np.ndarray
    ) -> None:
        """rays (R, 3) from an origin (3,) m with their hits (RayCaster.cast); seen (N,): those to look at."""
        material = scene.material[hits["primID"][seen]]
        self.index = index = seen[np.argsort(material, kind="stable")]
        ends = np.cumsum(np.bincount(material, minlength=len(MATERIALS)))
        self.parts = [slice(end - count, end) for end, count in zip(ends, np.diff(ends, prepend=0), strict=True)]
        self.rays, self.triangle, self.distance = rays[index], hits["primID"][index], hits["tfar"][index]
        u, v = hits["u"][index], hits["v"][index]
        self.position = origin + self.rays * self.distance[:, None]
        self.normal = scene.flat_normals[self.triangle]
        curved = np.flatnonzero(scene.curved[self.triangle])
        self.normal[curved] = unit(_interpolate(scene.normals, self.triangle[curved], u[curved], v[curved]))
        self.facing = _dot(self.normal, self.rays)
        self.normal *= -np.sign(self.facing)[:, None]
        self.facing = -np.abs(self.facing)
        self.uv = np.zeros((len(index), 2), np.float32)
        for patterned in (CAR, FACADE, ROOF):
            part = self.parts[patterned]
            self.uv[part] = _interpolate(scene.uv, self.triangle[part], u[part], v[part])
        self.base, self.gloss = surfaces.albedo(
            scene, self.parts, self.triangle, self.position, self.uv, self.rays, self.distance
        )


def _interpolate(values: np.ndarray, triangle: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Corner values (T, 3, C) on triangles (N,) at barycentric u, v (N,)."""
    corners = values[triangle]
    first = corners[:, 0]
    return first + u[:, None] * (corners[:, 1] - first) + v[:, None] * (corners[:, 2] - first)


def _shade(scene: Scene, caster: RayCaster, hit: _Hits, rng: np.random.Generator) -> np.ndarray:
    """Linear radiance (N, 3) that leaves hits towards the camera."""
    sky, normal, base = scene.light, hit.normal, hit.base
    ground, leafy = hit.parts[GROUND], hit.parts[LEAF]
    ambient = (0.5 + 0.5 * normal[:, 2:]) * (sky.ambient_up - sky.ambient_down) + sky.ambient_down
    ambient[ground] *= scene.contact.at(hit.position[ground, 0], hit.position[ground, 1])[:, None]
    # Sides of cars and people see dark ground and one another near the street.
    owned = np.flatnonzero(scene.object[hit.triangle] != NO_OBJECT)
    ambient[owned] *= _near_ground(scene, hit.triangle[owned], hit.position[owned])[:, None]
    lit = base * ambient

    shiny = np.flatnonzero(hit.gloss > 0)
    mirrored = hit.rays[shiny] - 2 * hit.facing[shiny, None] * normal[shiny]
    if sky.sun_colour.any():
        towards = np.maximum(normal @ sky.sun, 0)
        towards[leafy] = 0.5 * towards[leafy] + LEAF_THROUGH
        bright = np.flatnonzero(towards > 0)
        sun = sky.sun + SUN_RADIUS * rng.standard_normal((len(bright), 3), np.float32)
        bias = np.full((len(base), 1), SHADOW_BIAS, np.float32)
        bias[leafy] = LEAF_BIAS
        start = hit.position[bright] + SHADOW_BIAS * normal[bright] + bias[bright] * sky.sun
        free = ~caster.blocked(start, sun)
        towards[bright] *= free
        lit += base * (towards[:, None] * sky.sun_colour)
        glint = np.clip(mirrored @ sky.sun, 0, 1) ** SUN_SHARPNESS * (towards[shiny] > 0)
        lit[shiny] += (glint * hit.gloss[shiny] * SUN_GLINT)[:, None] * sky.sun_colour
    fresnel = hit.gloss[shiny] + (1 - hit.gloss[shiny]) * (1 + hit.facing[shiny]) ** 5
    reflection = light.surroundings(sky, mirrored)
    lit[shiny] += np.minimum(fresnel, MOST_REFLECTED)[:, None] * (reflection - lit[shiny])
    clear = np.exp(-sky.haze * hit.distance)[:, None]
    return lit * clear + (1 - clear) * sky.airlight


def _near_ground(scene: Scene, triangle: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Factor (N,) on the sky light of objects: little light reaches what is close to the ground."""
    feet = np.array([thing.position[2] for thing in scene.objects], np.float32)
    height = position[:, 2] - feet[scene.object[triangle]]
    return np.clip(0.35 + 0.75 * height, 0.3, 1)


@dataclass(frozen=True)
class Exposure:
    """How radiance becomes pixel values."""

    key: float
    """Mean brightness that the exposure aims at, before the tone curve."""
    white_balance: np.ndarray
    """(3,) factors."""
    noise: float
    """Standard deviation of the noise at mid grey, 8-bit steps."""


def random_exposure(rng: np.random.Generator, conditions: Conditions) -> Exposure:
    warmth = rng.normal(0, 0.035)
    white_balance = np.array([1 + warmth, 1.0, 1 - warmth], np.float32)
    return Exposure(rng.uniform(*conditions.exposure), white_balance, rng.uniform(*conditions.noise))


METERING_STEP = 5  # every n-th pixel is enough to set the exposure
BRIGHTEST_GAIN = 1.3  # a dull day stays duller than a bright one


def develop(linear: np.ndarray, sky: np.ndarray, exposure: Exposure, rng: np.random.Generator) -> np.ndarray:
    """8-bit image (H, W, 3) of linear radiance (H, W, 3); sky (H, W): pixels that exposure leaves aside."""
    earth = linear[~sky][::METERING_STEP] @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    mean = float(np.exp(np.log(earth + 1e-3).mean())) if len(earth) else 1.0
    gain = min(exposure.key / mean, BRIGHTEST_GAIN)
    x = linear * (gain * exposure.white_balance)
    # Filmic curve (Narkowicz's fit of ACES), then the usual display gamma.
    toned = np.clip(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0, 1)
    encoded = 255 * toned ** np.float32(1 / 2.2)
    strength = exposure.noise * (0.45 + 0.8 * np.sqrt(toned))
    noisy = encoded + strength * rng.standard_normal(encoded.shape, np.float32)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


RAYS_AT_ONCE = 32768  # what numpy works on stays in the processor's cache
HIGHLIGHT = 6.0  # radiance at which a single ray saturates, so that a glint does not eat a pixel


def take_picture(
    scene: Scene, caster: RayCaster, rig: Rig, side: int, exposure: Exposure, rng: np.random.Generator
) -> np.ndarray:
    """The image (H, W, 3) uint8 of camera 2; side: rays per pixel and axis."""
    rows = max(1, RAYS_AT_ONCE // (rig.width * side**2))
    bands = [
        _see_rows(scene, caster, rig, side, range(top, min(top + rows, rig.height)), rng)
        for top in range(0, rig.height, rows)
    ]
    linear, sky = (np.concatenate(parts) for parts in zip(*bands, strict=True))
    return develop(linear, sky, exposure, rng)


def _see_rows(
    scene: Scene, caster: RayCaster, rig: Rig, side: int, rows: range, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Linear radiance (R, W, 3) of some rows of the image, and which of their pixels (R, W) show sky."""
    u = (np.arange(rig.width * side, dtype=np.float32) + 0.5) / side - 0.5
    v = (np.arange(rows.start * side, rows.stop * side, dtype=np.float32) + 0.5) / side - 0.5
    origin, rays = rig.pixel_rays(np.stack(np.meshgrid(u, v), -1).reshape(-1, 2))
    rays = _float32(rays)
    hits = caster.cast(np.broadcast_to(origin, rays.shape), rays)
    grid = (len(rows), side, rig.width, side)
    triangles = hits["primID"].reshape(grid)
    chosen = _worth_shading(triangles)
    colour = radiance(scene, caster, origin, rays, hits, chosen.ravel(), rng)
    total = _sum_rays(np.minimum(colour, HIGHLIGHT).reshape(*grid, 3))
    return total / _sum_rays(chosen.astype(np.float32))[..., None], triangles[:, 0, :, 0] < 0


def _sum_rays(values: np.ndarray) -> np.ndarray:
    """Sum over the rays of each pixel: (H, S, W, S, ...) to (H, W, ...)."""
    total = values[:, 0, :, 0].copy()
    for k in range(1, values.shape[1] ** 2):
        total += values[:, k // values.shape[1], :, k % values.shape[1]]
    return total


DARK_LOSS = 0.35  # further share of returns lost on black, matt surfaces seen at a glance
GLASS_LOSS = 0.75  # share of returns that windows swallow
WHITE_RANGE = 140.0  # m at which a white surface is barely found (HDL-64E's data sheet: 80 % at 120 m, 10 % at 50 m)


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR. Angles in degrees, lengths in m; the fields are as in the settings."""

    beams: np.ndarray
    """(B,) elevations."""
    azimuth: tuple[float, float]
    """Sector about the forward axis, left positive."""
    step: float
    dropout: float
    range_sigma: float
    max_range: float
    keep: float = 1.0
    beam_stride: int = 1
    """Every n-th beam fires."""


def thinned(lidar: Lidar, conditions: Conditions, rng: np.random.Generator) -> Lidar:
    """The LiDAR with a share of returns and of beams, drawn from rng."""
    keep, stride = rng.uniform(*conditions.lidar_keep), rng.choice(conditions.lidar_beam_strides)
    return replace(lidar, keep=float(keep), beam_stride=int(stride))


def sweep(
    scene: Scene, caster: RayCaster, origin: np.ndarray, rotation: np.ndarray, lidar: Lidar, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One turn of a LiDAR at origin (3,) m with axes rotation (3, 3) in the world, all of it at one instant.

    Fog weakens returns on both ways (Beer-Lambert's law; near infrared fares in fog as light does: Kim et al., SPIE
    4214, 2001); a weak one is found as often as its power allows. Fog itself returns nothing.

    Returns points (N, 4) float32 x, y, z, intensity 0..1 in the sensor's axes (x ahead, y left, z up), the beam of
    each (N,), and the index of the object each lies on (N,), NO_OBJECT for none.
    """
    azimuth = np.radians(np.arange(*lidar.azimuth, lidar.step))
    beams = np.radians(lidar.beams[:: lidar.beam_stride])[:, None]
    turn = _float32(azimuth + np.radians(lidar.step) * rng.random((len(beams), 1)))
    level, rise = _float32(np.cos(beams)), _float32(np.sin(beams))
    rays = np.stack([level * np.cos(turn), level * np.sin(turn), np.broadcast_to(rise, turn.shape)], -1).reshape(-1, 3)
    world_rays, origin = rays @ _float32(rotation.T), _float32(origin)
    hits = caster.cast(np.broadcast_to(origin, world_rays.shape), world_rays)
    seen = np.flatnonzero((hits["primID"] >= 0) & (hits["tfar"] < lidar.max_range))
    hit = _Hits(scene, origin, world_rays, hits, seen)
    cosine, distance, triangle = -hit.facing, hit.distance, hit.triangle
    bright, lost = _reflectivity(hit)
    lost = 1 - (1 - lidar.dropout) * (1 - lost * (1 - 0.5 * cosine))
    strength = bright * (0.35 + 0.65 * cosine)
    through = np.exp(-2 * scene.light.fog * distance)
    # What clear air lets through at all has at least the power that it takes.
    found = np.minimum(np.maximum(strength * (WHITE_RANGE / distance) ** 2, 1) * through, 1)
    kept = rng.random(len(seen), np.float32) >= 1 - (1 - lost) * lidar.keep * found
    range_noise, intensity_noise = rng.standard_normal((2, len(seen)), np.float32)
    noisy = distance + lidar.range_sigma * range_noise
    intensity = np.clip(strength * through + 0.03 * intensity_noise, 0, 0.99)
    points = np.concatenate([rays[hit.index] * noisy[:, None], intensity[:, None]], 1)
    swept = np.flatnonzero(kept)[np.argsort(hit.index[kept])]  # as the beams turn
    beam = hit.index[swept] // len(azimuth) * lidar.beam_stride
    return _float32(points[swept]), beam, scene.object[triangle[swept]].astype(np.int32)


def hdl64(config: StreetConfig) -> Lidar:
    """KITTI's LiDAR with all its beams."""
    return Lidar(
        BEAMS, config.lidar_azimuth, config.lidar_step, config.lidar_dropout, config.lidar_range_sigma,
        config.lidar_max_range,
    )  # fmt: skip


def scan(
    scene: Scene, caster: RayCaster, rig: Rig, lidar: Lidar, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One sweep of KITTI's LiDAR: points (N, 4) float32 x, y, z, intensity 0..1 in the velodyne frame, and the index of
    the object each lies on (N,), NO_OBJECT for none."""
    rotate, shift = rig.rect_from_velodyne
    origin = rig.rotation @ shift + rig.position
    points, _, owners = sweep(scene, caster, origin, rig.rotation @ rotate, lidar, rng)
    return points, owners


def _reflectivity(hit: _Hits) -> tuple[np.ndarray, np.ndarray]:
    """Near-infrared reflectivity 0..1 (N,) and extra loss 0..1 (N,) of LiDAR hits."""
    bright = 0.75 * np.sqrt(hit.base.mean(-1))
    # Leaves are brighter in the near infrared than to the eye.
    bright[hit.parts[LEAF]] = 0.28 + 0.6 * bright[hit.parts[LEAF]]
    glass = hit.gloss >= surfaces.WINDOW_GLOSS
    glass[hit.parts[METAL]] = False
    bright[glass] = 0.05
    bright[hit.parts[METAL]] = 0.45
    plate = np.abs(hit.base[hit.parts[CAR], 0] - cars.SLOT_COLOURS[cars.PLATE, 0]) < 1e-4
    bright[hit.parts[CAR]][plate] = 0.95
    lost = np.where(glass, GLASS_LOSS, DARK_LOSS * np.clip(1 - bright / 0.25, 0, 1))
    return bright, lost
