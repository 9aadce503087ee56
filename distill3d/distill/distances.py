"""Distances between tensors of student and teacher: masked means, correlation, divergence of bins.

Which elements count and what the sum is divided by is an argument here and named by the term that calls.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: What the mean over no element at all is: 0, connected to the graph; or NaN, as an empty mean gives in released code.
Empty = Literal["zero", "nan"]


def weighted_mean(values: Float[Tensor, "*n"], weight: Tensor, empty: Empty = "zero") -> Float[Tensor, ""]:
    """sum(weight * values) / sum(weight), ``weight`` (bool or numbers >= 0) broadcast against ``values``.

    Elements of weight 0 count for nothing even where they are not finite.
    """
    weight = weight.to(values.dtype).expand_as(values)
    total = torch.where(weight > 0, values * weight, 0).sum()
    mass = weight.sum()
    return total / (mass if empty == "nan" else torch.where(mass > 0, mass, 1))


def l1(student: Float[Tensor, "*n"], teacher: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """|student - teacher|, element by element."""
    return (student - teacher).abs()


def kl_divergence(student: Float[Tensor, "*n bins"], teacher: Float[Tensor, "*n bins"]) -> Float[Tensor, "*n bins"]:
    """KL(teacher || student) of softmax distributions over the last dimension, from logits, not yet summed.

    Element i is q_T,i (log q_T,i - log q_S,i).
    """
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True)


def channel_wise_divergence(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of each channel's softmax over cells with the teacher's, mean over images and channels, times
    ``temperature``^2; it is least, but not 0, where both agree.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256.
    """
    s, t = (maps.flatten(2) / temperature for maps in (student, teacher))
    return -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean() * temperature**2


def relative_to_cell(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Features divided by the largest magnitude among their cell's channels; cells of zeros stay."""
    largest = maps.abs().amax(1, keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def correlation(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b n"], group: int | None = None, eps: float = 1e-12
) -> Float[Tensor, ""]:
    """Mean over groups of the Pearson correlation of two matrices, -1..1.

    Each group of ``group`` rows (None: all rows; the last group may be smaller) counts as one long vector: its overall
    mean is taken away, then the inner product is divided by both norms.  Sides whose norm is at most ``eps`` correlate
    to 0 and pass no gradient, for a constant map has no direction; with ``eps`` 0 they give NaN, as released code does.
    """
    size = len(a) if group is None else group
    return torch.stack([_pearson(x, y, eps) for x, y in zip(a.split(size), b.split(size), strict=True)]).mean()


def _pearson(a: Float[Tensor, "b n"], b: Float[Tensor, "b n"], eps: float) -> Float[Tensor, ""]:
    a, b = a - a.mean(), b - b.mean()
    norms = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    product = (a * b).sum()
    if eps == 0:
        return product / (norms[0] * norms[1])
    known = (norms[0] > eps) & (norms[1] > eps)
    return torch.where(known, product / torch.where(known, norms[0] * norms[1], 1), 0)
