"""Sun, sky, haze and fog: where light comes from, what a ray that meets nothing sees, and what the air lets through.

Haze is a uniform extinction (Koschmieder, Beitraege zur Physik der freien Atmosphaere 12, 1924). What of it goes beyond
clear air is fog: a layer of finite depth overhead that spreads the sun's light.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import noise
from .settings import CLEAR_HAZE, LOW_SUN, Conditions


@dataclass(frozen=True)
class Light:
    """Light of one frame. Directions are unit vectors in the world frame; colours are linear RGB, relative units in
    which a white surface in full sun has a radiance of about 3."""

    sun: np.ndarray
    """(3,) towards the sun."""
    sun_colour: np.ndarray
    """(3,), zero when overcast."""
    zenith: np.ndarray
    horizon: np.ndarray
    cloud: np.ndarray
    """(3,) colour of the bright parts of clouds."""
    cloud_cover: float
    """Threshold of the cloud noise: -1 overcast, 2 clear."""
    cloud_shift: tuple[float, float]
    ambient_up: np.ndarray
    """(3,) sky light on a surface that looks up."""
    ambient_down: np.ndarray
    """(3,) ground light on a surface that looks down."""
    haze: float
    """Extinction, 1 / m."""
    hills: tuple[float, float]
    """Height of the skyline above the horizon (tangent) and where in the noise it looks."""

    @property
    def fog(self) -> float:
        """Extinction beyond that of clear air, 1 / m."""
        return max(self.haze - CLEAR_HAZE, 0.0)

    @property
    def airlight(self) -> np.ndarray:
        """(3,) radiance of the air itself, seen where haze hides what is behind it."""
        return HAZE_BRIGHTNESS * self.horizon


HAZE_BRIGHTNESS = 0.75  # of the sky at the horizon
#: Optical depth of clean air overhead at 650, 550 and 450 nm: Rayleigh scattering (Bucholtz, Applied Optics 34, 1995).
CLEAN_AIR = np.array([0.05, 0.10, 0.22])
FOG_DEPTH = 100.0  # m of fog overhead: radiation fog is some tens to a few hundred metres deep
FOG_DOWN, FOG_UP = 0.5, 0.1  # share of the sun's light lost in fog that comes down, and that the ground sends back


def air_mass(elevation: float) -> float:
    """Way of light through the air from an elevation, degrees, over that from the zenith (Kasten and Young, Applied
    Optics 28(22), 1989)."""
    return float(1 / (np.sin(np.radians(elevation)) + 0.50572 * (elevation + 6.07995) ** -1.6364))


def random_light(rng: np.random.Generator, conditions: Conditions) -> Light:
    """Light of a random day."""
    overcast = rng.random() < conditions.overcast_share
    degrees = float(rng.uniform(*conditions.sun_elevation))
    elevation = np.radians(degrees)
    bearing = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(elevation) * np.sin(bearing), np.cos(elevation) * np.cos(bearing), np.sin(elevation)])
    low = np.clip((np.radians(40) - elevation) / np.radians(25), 0, 1)
    sun_colour = np.array([3.0, 2.85 - 0.35 * low, 2.60 - 0.85 * low]) * rng.uniform(0.85, 1.15)
    if overcast:
        grey = rng.uniform(1.1, 1.7) * np.array([0.97, 1.0, 1.04])
        zenith, horizon, cloud = grey * 0.85, grey * 1.15, grey * 1.35
        ambient_up, ambient_down = grey * rng.uniform(0.75, 0.95), grey * 0.20
        cover, sun_colour = -1.0, np.zeros(3)
    else:
        clear = rng.uniform(0, 1)
        zenith = np.array([0.20, 0.38, 0.78]) * (0.8 + 0.3 * clear) + (1 - clear) * 0.15
        horizon = np.array([0.95, 1.10, 1.28]) * rng.uniform(0.85, 1.25)
        cloud = np.array([2.1, 2.1, 2.1]) * rng.uniform(0.9, 1.2)
        strength = rng.uniform(0.35, 0.65)
        ambient_up = np.array([0.78, 0.93, 1.16]) * strength
        ambient_down = np.array([0.50, 0.47, 0.42]) * strength * 0.8
        cover = rng.uniform(-0.3, 1.8)
    day = Light(
        sun, sun_colour, zenith, horizon, cloud, float(cover), (rng.uniform(0, 512), rng.uniform(0, 512)),
        ambient_up, ambient_down, float(rng.uniform(*conditions.haze)),
        (float(rng.uniform(0.0, 0.05)), float(rng.uniform(0, 512))),
    )  # fmt: skip
    colours = _in_fog(_under_low_sun(day, degrees))
    return replace(colours, **{name: getattr(colours, name).astype(np.float32) for name in ("sun", *COLOURS)})


COLOURS = ("sun_colour", "zenith", "horizon", "cloud", "ambient_up", "ambient_down")


def _under_low_sun(light: Light, elevation: float) -> Light:
    """The light with what the way through the air takes, beyond that of a sun at LOW_SUN; elevation in degrees."""
    through = np.exp(-CLEAN_AIR * max(air_mass(elevation) - air_mass(LOW_SUN), 0.0))
    if not light.sun_colour.any():
        through = through[1]  # clouds are grey
    dimmed = {name: getattr(light, name) * np.mean(through) for name in ("zenith", "ambient_up", "ambient_down")}
    # What lights the horizon comes from all sides: it reddens by half as much.
    return replace(
        light, sun_colour=light.sun_colour * through, cloud=light.cloud * through,
        horizon=light.horizon * np.sqrt(through), **dimmed,
    )  # fmt: skip


def _in_fog(light: Light) -> Light:
    """The light under a layer of fog: less sun, what it loses spread over the sky, and a sky as bright as the fog."""
    rise = float(light.sun[2])
    direct = np.exp(-light.fog * FOG_DEPTH / rise)
    spread = (1 - direct) * rise * light.sun_colour
    ambient_up = light.ambient_up + FOG_DOWN * spread
    veil = 1 - np.exp(-light.fog * FOG_DEPTH)
    return replace(
        light, sun_colour=light.sun_colour * direct, ambient_up=ambient_up,
        ambient_down=light.ambient_down + FOG_UP * spread, zenith=light.zenith + veil * (ambient_up - light.zenith),
        horizon=light.horizon + veil * (ambient_up / HAZE_BRIGHTNESS - light.horizon),
    )  # fmt: skip


CLOUD_HEIGHT_BIAS = 0.12  # keeps the cloud plane finite at the horizon
CLOUD_SCALE = 26.0  # texels per unit of the cloud plane
LOWEST_UP = 0.02  # vertical component of a ray that stands for all flatter ones: no way through fog is endless


def gradient(light: Light, up: np.ndarray) -> np.ndarray:
    """Cloudless sky (N, 3) at rays whose vertical components are up (N,); below the horizon it is the horizon's."""
    blend = np.sqrt(np.clip(up, 0, 1))[:, None]
    return light.horizon + (light.zenith - light.horizon) * np.minimum(1.35 * blend, 1)


def sky(light: Light, rays: np.ndarray) -> np.ndarray:
    """Radiance (N, 3) that unit rays (N, 3) see. Clouds lie on a plane overhead, so no direction is a seam."""
    up = rays[:, 2]
    colour = gradient(light, up)
    plane = 1 / (np.maximum(up, 0) + CLOUD_HEIGHT_BIAS)
    u, v = rays[:, 0] * plane, rays[:, 1] * plane
    wisps = noise.sample_smooth(1.7, u + light.cloud_shift[0], v * 1.2 + light.cloud_shift[1], CLOUD_SCALE)
    thick = np.clip((wisps - light.cloud_cover) * 0.8 + 0.12, 0, 1)
    thick = (thick * thick * (3 - 2 * thick) * np.clip(up * 9, 0, 1))[:, None]
    shade = (0.80 + 0.20 * np.clip(1.4 - wisps * 0.45, 0, 1))[:, None]
    colour = colour + thick * (light.cloud * shade - colour)
    towards = np.clip(rays @ light.sun, 0, 1)
    glow = 0.22 * towards**8 + 0.6 * towards**64
    colour = colour + glow[:, None] * light.sun_colour
    colour = _skyline(light, rays, colour)
    hidden = 1 - np.exp(-light.fog * FOG_DEPTH / np.maximum(up, LOWEST_UP))[:, None]
    return colour + hidden * (light.airlight - colour)


def _skyline(light: Light, rays: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Wooded hills far away, for what little horizon the street leaves open."""
    height, shift = light.hills
    ahead = np.maximum(np.hypot(rays[:, 0], rays[:, 1]), 1e-6)
    # The tangent of the bearing, folded so that it runs on at the sides and mirrored behind: nowhere is a seam.
    x, y = rays[:, 0], np.abs(rays[:, 1])
    wide = np.abs(x)
    aside = np.sign(x) * (2 - y / np.maximum(wide, 0.05))
    bearing = np.where(wide > y, aside, x / np.maximum(y, 0.05))
    edge = height * (0.5 + 0.5 * noise.sample_smooth(1.5, bearing + shift, 0 * bearing + shift, 40.0)) + 0.012
    edge = edge + 0.004 * noise.sample(0.5, bearing, bearing * 0, 400.0)
    below = np.clip((edge - rays[:, 2] / ahead) * 300, 0, 1)[:, None]
    hill = 0.55 * light.horizon * np.array([0.75, 0.88, 0.95], np.float32) + 0.02
    return colour + below * (hill - colour)


def surroundings(light: Light, rays: np.ndarray) -> np.ndarray:
    """What a mirror in the street sees (N, 3) along unit rays (N, 3): sky above houses and trees above asphalt."""
    up = rays[:, 2]
    bearing = rays[:, 0] * 3 + rays[:, 1] * 5
    roofs = 0.20 + 0.09 * noise.sample(1.0, bearing, 0 * bearing, 12.0)
    built = np.clip((roofs - up) * 10, 0, 1)[:, None]
    bright = gradient(light, up)
    dark = 0.22 * light.horizon * np.array([0.9, 0.95, 0.85], np.float32)
    colour = bright + built * (dark - bright)
    ground = np.clip(-up * 8, 0, 1)[:, None]
    asphalt = 0.11 * (light.ambient_up + light.sun_colour * light.sun[2])
    return colour + ground * (asphalt - colour)
