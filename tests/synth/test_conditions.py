"""What makes streets harder: haze and fog, a low sun, dim and noisy pictures, unseen bodies, thin LiDAR."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill3d.errors import UserError
from distill3d.settings import check_settings
from distill3d.synth import Frame, StreetConfig, SurroundStreetConfig, cars, render_frame, sensors
from distill3d.synth.light import Light, air_mass, random_light
from distill3d.synth.nuscenes_scene import World, random_world
from distill3d.synth.scene import Scene, random_scene
from distill3d.synth.settings import CAR_BODIES, CLEAR_HAZE, Conditions
from distill3d.synth.surround_rig import LIDAR_BEAMS

SMALL = StreetConfig(width=160, height=48, rays_per_pixel_side=1, noise=(0.0, 0.0), overcast_share=0.0)
CARS_ONLY = StreetConfig(width=160, height=48, cars=(6, 12), pedestrians=(0, 0), cyclists=(0, 0))
SEED = 3
#: Lowest values of what is drawn.
LEAST = {"sun_elevation": 1.0, "haze": 0.0, "exposure": 0.001, "noise": 0.0, "lidar_keep": 0.0}


@cache
def frame(**changes: tuple | float) -> Frame:
    return render_frame(SEED, 0, replace(SMALL, **changes))


def haze(sigma: float) -> Frame:
    return frame(haze=(sigma, sigma))


def contrast_left(sigma: float, low: float, high: float) -> float:
    """Slope of the brightness in some haze over that in clear air, on a dull day, where clear air's LiDAR has points at
    a range, m."""
    clear, hazy = (frame(haze=(s, s), overcast_share=1.0) for s in (0.0, sigma))
    rotation, shift = clear.rig.rect_from_velodyne
    points = clear.points[:, :3] @ rotation.T + shift
    distance = np.linalg.norm(points, axis=1)
    column, row = np.round(clear.rig.project(points[(distance > low) & (distance < high)])).astype(int).T
    seen = (column >= 0) & (column < SMALL.width) & (row >= 0) & (row < SMALL.height)
    usual, found = (shown.image[row[seen], column[seen]].mean(-1) for shown in (clear, hazy))
    return float(np.polyfit(usual, found, 1)[0])


def test_fog_takes_contrast_the_more_the_farther() -> None:
    near, far = ([contrast_left(sigma, *span) for sigma in (0.006, 0.02, 0.06)] for span in ((5.0, 8.0), (26.0, 34.0)))
    for left in (near, far):
        assert (np.diff([1.0, *left]) < 0).all()
    assert (np.array(far) < 0.9 * np.array(near)).all()


def test_haze_follows_koschmieder() -> None:
    """Radiance is what it is in clear air times exp(-sigma d), and the air's own light for the rest."""
    shown, sigma = haze(0.0), 0.7 * CLEAR_HAZE
    caster = sensors.RayCaster(shown.scene.corners)
    pixels = np.stack(np.meshgrid(np.arange(SMALL.width), np.arange(SMALL.height)), -1).reshape(-1, 2)
    origin, rays = shown.rig.pixel_rays(pixels.astype(np.float32))
    hits = caster.cast(np.broadcast_to(origin, rays.shape), rays)
    chosen = hits["primID"] >= 0
    bright, hazy = (
        sensors.radiance(
            replace(shown.scene, light=replace(shown.scene.light, haze=extinction)), caster, origin, rays, hits, chosen,
            np.random.default_rng(0),
        )[chosen]
        for extinction in (0.0, sigma)
    )  # fmt: skip
    through = np.exp(-sigma * hits["tfar"][chosen])[:, None]
    expected = bright * through + (1 - through) * shown.scene.light.airlight
    assert np.allclose(hazy, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(hazy - bright).max() > 0.01


def light(seed: int = 0, **changes: tuple | float) -> Light:
    return random_light(np.random.default_rng(seed), Conditions(**{"overcast_share": 0.0, **changes}))


@given(st.integers(0, 1000), st.floats(1.0, 60.0), st.floats(0.5, 30.0))
def test_a_lower_sun_is_dimmer_and_redder(seed: int, elevation: float, step: float) -> None:
    low, high = (light(seed, sun_elevation=(e, e)) for e in (elevation, elevation + step))
    assert low.sun[2] == pytest.approx(np.sin(np.radians(elevation)), abs=1e-6)
    assert (low.sun_colour <= high.sun_colour).all()
    assert low.sun_colour[2] / low.sun_colour[0] <= high.sun_colour[2] / high.sun_colour[0]
    if elevation + step <= 22:
        assert (low.sun_colour < high.sun_colour).all()
        assert (low.ambient_up < high.ambient_up).all()


@pytest.mark.parametrize(("elevation", "mass"), [(90, 1.0), (30, 1.995), (10, 5.60), (5, 10.3)])
def test_air_mass_is_as_tabled(elevation: float, mass: float) -> None:
    """Kasten and Young's table, to the digits given."""
    assert air_mass(elevation) == pytest.approx(mass, rel=0.005)


@given(st.integers(0, 1000), st.floats(0.003, 0.1))
def test_fog_spreads_the_suns_light_and_loses_some(seed: int, sigma: float) -> None:
    clear, foggy = (light(seed, haze=(s, s)) for s in (CLEAR_HAZE, sigma))
    assert (foggy.sun_colour < clear.sun_colour).all()
    assert (foggy.ambient_up > clear.ambient_up).all()
    before, after = (day.sun_colour * day.sun[2] + day.ambient_up for day in (clear, foggy))
    assert (after < before).all()


def test_dense_fog_looks_alike_from_sky_to_far_wall() -> None:
    """At a visibility of 50 m the top of the picture and the end of the street have one brightness."""
    shown = render_frame(SEED, 1, replace(SMALL, haze=(0.08, 0.08)))
    caster = sensors.RayCaster(shown.scene.corners)
    pixels = np.stack(np.meshgrid(np.arange(SMALL.width), np.arange(SMALL.height)), -1).reshape(-1, 2)
    origin, rays = shown.rig.pixel_rays(pixels.astype(np.float32))
    hits = caster.cast(np.broadcast_to(origin, rays.shape), rays)
    far = ((hits["primID"] < 0) | (hits["tfar"] > 60)).reshape(SMALL.height, SMALL.width)
    grey = shown.image.mean(-1)[far]
    assert far.sum() > 300
    assert grey.std() < 0.02 * grey.mean()


@pytest.mark.parametrize("changes", [{name: (low, low)} for name, low in LEAST.items()], ids=list(LEAST))
def test_what_is_drawn_leaves_the_other_draws_as_they_are(changes: dict) -> None:
    usual, other = haze(0.0), frame(**{"haze": (0.0, 0.0), **changes})
    assert [thing.size.tolist() for thing in usual.scene.objects] == [t.size.tolist() for t in other.scene.objects]
    assert np.array_equal(usual.rig.rotation, other.rig.rotation)
    assert usual.scene.light.hills == other.scene.light.hills


def test_clear_air_costs_no_returns() -> None:
    assert np.array_equal(haze(0.0).points, haze(CLEAR_HAZE).points)


def test_fog_takes_returns_the_more_the_farther() -> None:
    clear = haze(0.0)
    ranges = [0.0, 15.0, 30.0, 80.0]
    counts = {}
    for sigma in (0.0, 0.02, 0.06):
        foggy = haze(sigma)
        # The same turn of the same LiDAR: what is left lies where it lay.
        assert {row.tobytes() for row in foggy.points[:, :3]} <= {row.tobytes() for row in clear.points[:, :3]}
        counts[sigma] = np.histogram(np.linalg.norm(foggy.points[:, :3], axis=1), ranges)[0]
    near, middle, far = counts[0.06] / counts[0.0]
    assert near > 0.95
    assert near > middle > far
    assert far < 0.1
    assert (counts[0.02][1:] > counts[0.06][1:]).all()
    assert haze(0.06).points[:, 3].mean() < clear.points[:, 3].mean()


def test_returns_weaken_by_beer_lamberts_law_on_both_ways() -> None:
    """The loss of intensity in two fogs, of points that both leave; surfaces and noise drop out of its ratio."""
    sigmas = np.array([0.0, 0.02, 0.04])
    shown = [frame(haze=(s, s), lidar_range_sigma=0.0).points for s in sigmas]
    by_place = [{row[:3].tobytes(): row for row in points} for points in shown]
    common = set(by_place[0]) & set(by_place[1]) & set(by_place[2])
    rows = np.array([[found[place] for found in by_place] for place in common], float)  # (N, 3 fogs, 4)
    intensity, distance = rows[:, :, 3], np.linalg.norm(rows[:, 0, :3], axis=1)
    loss = intensity[:, :1] - intensity[:, 1:]
    clear = (intensity[:, 2] > 0) & (intensity[:, 0] < 0.99) & (loss[:, 1] > 0.05)  # neither clipped nor tiny
    assert clear.sum() > 500
    expected = 1 - np.exp(-2 * (sigmas[1:] - CLEAR_HAZE) * distance[clear, None])
    assert np.allclose(loss[clear, 0] / loss[clear, 1], expected[:, 0] / expected[:, 1], rtol=1e-3)


@pytest.mark.parametrize(("exposure", "darker"), [((0.01, 0.02), 0.6), ((0.03, 0.05), 0.85)])
def test_low_exposure_is_dim(exposure: tuple[float, float], darker: float) -> None:
    assert frame(exposure=exposure).image.mean() < darker * frame(exposure=(0.12, 0.12)).image.mean()


def test_noise_is_as_strong_as_asked() -> None:
    plain = frame().image.astype(float)
    spread = [(frame(noise=(n, n)).image - plain).std() for n in (4.0, 12.0)]
    assert 2.7 < spread[1] / spread[0] < 3.1  # clipping takes some of the stronger
    assert 2.0 < spread[0] < 5.0


def bodies(scene: Scene) -> set[str]:
    """Names of the styles of the cars in a scene; templates are made once, so that a mesh tells its style."""
    names = {
        id(cars.template(k, fine)): style.name for k, style in enumerate(cars.ALL_STYLES) for fine in (True, False)
    }
    return {names[id(thing.mesh)] for thing in scene.objects if thing.kind == "Car"}


@pytest.mark.parametrize("chosen", [("suv", "pickup"), CAR_BODIES[:-1], CAR_BODIES], ids=len)
def test_only_the_chosen_bodies_drive_and_park(chosen: tuple[str, ...]) -> None:
    config = replace(CARS_ONLY, car_bodies=chosen)
    seen = set[str]().union(*(bodies(random_scene(np.random.default_rng([1, k]), config)) for k in range(40)))
    assert seen <= set(chosen)
    assert len(seen) >= len(chosen) - 1  # a pickup is rare


def test_beams_and_returns_are_drawn_for_each_frame() -> None:
    config = replace(CARS_ONLY, lidar_keep=(0.2, 0.9), lidar_beam_strides=(1, 4))
    drawn = [sensors.thinned(sensors.hdl64(config), config, np.random.default_rng(k)) for k in range(200)]
    keep, strides = np.array([d.keep for d in drawn]), [d.beam_stride for d in drawn]
    assert keep.min() >= 0.2
    assert keep.max() <= 0.9
    assert abs(keep.mean() - 0.55) < 0.06
    assert set(strides) == {1, 4}
    assert 60 < strides.count(4) < 140


def test_returns_fall_as_asked() -> None:
    full = frame().points
    for keep in (0.1, 0.5):
        left = frame(lidar_keep=(keep, keep)).points
        assert 0.9 * keep < len(left) / len(full) < 1.1 * keep
        assert {row.tobytes() for row in left} <= {row.tobytes() for row in full}
    assert len(frame(lidar_keep=(0.0, 0.0)).points) == 0
    elevation = {}
    for stride in (1, 8):
        points = frame(lidar_beam_strides=(stride,), lidar_range_sigma=0.0).points
        angle = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
        elevation[stride] = np.unique(np.abs(angle[:, None] - sensors.BEAMS).argmin(1))
    assert set(elevation[8]) <= set(range(0, 64, 8))
    assert len(elevation[1]) > 48


# ------------------------------------------------------------------------------------------------------------- Drives

DRIVE = SurroundStreetConfig(frames_per_scene=2, lidar_step=2.0, overcast_share=0.0)


def swept(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 4) of the first sweep of a drive, and their beams."""
    scene, caster = world.drive.at(0.0)
    rotation, position = world.drive.ego_pose(0.0)
    origin = position + rotation @ np.array([0.0, 0.0, 1.8])
    return sensors.sweep(scene, caster, origin, rotation, world.lidar, np.random.default_rng(0))[:2]


def test_drives_have_the_same_conditions() -> None:
    hard = replace(
        DRIVE, haze=(0.05, 0.05), sun_elevation=(5.0, 5.0), exposure=(0.02, 0.02), noise=(9.0, 9.0),
        car_bodies=("suv", "city car"), lidar_keep=(0.5, 0.5), lidar_beam_strides=(4,),
    )  # fmt: skip
    usual, other = random_world(SEED, 0, DRIVE), random_world(SEED, 0, hard)
    assert other.drive.description == usual.drive.description.replace("sun,", "sun, fog,")
    assert other.drive.scene.light.sun[2] == pytest.approx(np.sin(np.radians(5)), abs=1e-6)
    assert (other.exposure.key, other.exposure.noise) == (0.02, 9.0)
    assert bodies(other.drive.scene) <= {"suv", "city car"}
    assert not bodies(usual.drive.scene) <= {"suv", "city car"}
    (points, beams), (few, some) = swept(usual), swept(other)
    assert len(few) < 0.25 * 0.5 * len(points)
    assert set(beams) > set(some)
    assert set(some) <= set(range(0, 32, 4))
    for measured, rings in ((points, beams), (few, some)):
        angle = np.degrees(np.arctan2(measured[:, 2], np.hypot(measured[:, 0], measured[:, 1])))
        assert np.abs(angle - LIDAR_BEAMS[rings]).max() < 0.01


@pytest.mark.parametrize("kind", [StreetConfig, SurroundStreetConfig])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"haze": (0.02, 0.01)}, "haze is .0.02, 0.01., expected two numbers in ascending order"),
        ({"haze": (-0.01, 0.01)}, "haze"),
        ({"sun_elevation": (0.0, 20.0)}, "sun_elevation"),
        ({"exposure": (0.0, 0.1)}, "exposure"),
        ({"noise": (-1.0, 2.0)}, "noise"),
        ({"lidar_keep": (0.5, 1.5)}, "lidar_keep"),
        ({"lidar_beam_strides": ()}, "lidar_beam_strides"),
        ({"lidar_beam_strides": (1, 0)}, "lidar_beam_strides"),
        ({"car_bodies": ("suv", "coupe")}, "hatchback, sedan, .*, suv, .*, pickup, not 'coupe'"),
        ({"car_bodies": ()}, "car_bodies"),
        ({"overcast_share": 2.0}, "overcast_share"),
    ],
)
def test_settings_are_checked(kind: type[StreetConfig | SurroundStreetConfig], changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(kind(**changes))
