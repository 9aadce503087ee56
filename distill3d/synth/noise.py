"""Tileable noise textures, the grain of asphalt, plaster, leaves and clouds.

Each texture is made once per process from a fixed seed: frames differ by where they look into it.
"""

from __future__ import annotations

from functools import cache

import numpy as np

TEXTURE_SIDE = 512  # texels; a power of two, so that wrapping is a bit mask
_MASK = TEXTURE_SIDE - 1


@cache
def texture(falloff: float) -> np.ndarray:
    """Tileable Gaussian noise with amplitude spectrum 1 / frequency ** falloff.

    falloff 0 is white, 1 is pink grain, about 1.8 looks like clouds. Returns (512 * 512,) float32, zero mean, unit
    standard deviation, flattened for fast gathers.
    """
    rng = np.random.default_rng([20, int(1000 * falloff)])
    spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE)))
    fy = np.fft.fftfreq(TEXTURE_SIDE)[:, None] * TEXTURE_SIDE
    fx = np.fft.rfftfreq(TEXTURE_SIDE)[None, :] * TEXTURE_SIDE
    frequency = np.sqrt(fx * fx + fy * fy)
    frequency[0, 0] = 1.0
    spectrum *= frequency**-falloff
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(TEXTURE_SIDE, TEXTURE_SIDE))
    return (field / field.std()).astype(np.float32).ravel()


def sample(falloff: float, u: np.ndarray, v: np.ndarray, texels_per_unit: float) -> np.ndarray:
    """Nearest-texel look-up at (u, v), arrays of one shape in any unit. Returns float32 of that shape."""
    column = np.floor(u * texels_per_unit).astype(np.int32) & _MASK
    row = np.floor(v * texels_per_unit).astype(np.int32) & _MASK
    return texture(falloff)[row * TEXTURE_SIDE + column]


def sample_smooth(falloff: float, u: np.ndarray, v: np.ndarray, texels_per_unit: float) -> np.ndarray:
    """Bilinear look-up at (u, v), for fields that are magnified (clouds). Returns float32 of that shape."""
    x, y = u * texels_per_unit, v * texels_per_unit
    x0, y0 = np.floor(x), np.floor(y)
    wx, wy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    column, row = x0.astype(np.int32) & _MASK, y0.astype(np.int32) & _MASK
    right, below = (column + 1) & _MASK, ((row + 1) & _MASK) * TEXTURE_SIDE
    row = row * TEXTURE_SIDE
    field = texture(falloff)
    upper = field[row + column] * (1 - wx) + field[row + right] * wx
    lower = field[below + column] * (1 - wx) + field[below + right] * wx
    return upper * (1 - wy) + lower * wy


def hashed(*keys: np.ndarray) -> np.ndarray:
    """A repeatable pseudo-random number in [0, 1) per tuple of integer keys (int arrays of one shape)."""
    state = np.zeros(np.broadcast_shapes(*(np.shape(k) for k in keys)), np.uint32)
    for key in keys:
        state = (state ^ np.asarray(key).astype(np.int64).astype(np.uint32)) * np.uint32(0x9E3779B1)
        state ^= state >> np.uint32(15)
        state = state * np.uint32(0x85EBCA6B)
        state ^= state >> np.uint32(13)
    return state.astype(np.float32) * np.float32(2.0**-32) * np.float32(0.9999999)
