"""Sun, sky and haze: where light comes from, and what a ray that meets nothing sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import noise


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


def random_light(rng: np.random.Generator, overcast_share: float) -> Light:
    """Light of a random day."""
    overcast = rng.random() < overcast_share
    elevation = np.radians(rng.uniform(22, 62))
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
    return Light(
        sun.astype(np.float32), sun_colour.astype(np.float32), zenith.astype(np.float32), horizon.astype(np.float32),
        cloud.astype(np.float32), float(cover), (rng.uniform(0, 512), rng.uniform(0, 512)),
        ambient_up.astype(np.float32), ambient_down.astype(np.float32), float(rng.uniform(0.0002, 0.0014)),
        (float(rng.uniform(0.0, 0.05)), float(rng.uniform(0, 512))),
    )  # fmt: skip


CLOUD_HEIGHT_BIAS = 0.12  # keeps the cloud plane finite at the horizon
CLOUD_SCALE = 26.0  # texels per unit of the cloud plane


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
    return _skyline(light, rays, colour)


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
