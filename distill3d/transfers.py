"""Values between host and device, without the host waiting where it need not.

An accelerator works through what it was asked for while the host prepares what comes next.  Whoever reads a number of
it, or copies in the ordinary way, waits until all of that is done; then the accelerator waits for the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

K = TypeVar("K")


def constant(values: float | Sequence[object], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers that the host knows as a tensor on the device of ``like``, by default also of its type: what
    ``like.new_tensor`` gives, but nobody waits."""
    return torch.tensor(values, dtype=dtype or like.dtype).to(like.device, non_blocking=True)


def fetched(tensors: Mapping[K, Tensor]) -> dict[K, Tensor]:
    """Tensors of one device on the CPU, all by a single copy and hence a single wait; those of the CPU as they are."""
    far = {key: t.detach().contiguous() for key, t in tensors.items() if t.device.type != "cpu"}
    if not far:
        return dict(tensors)
    # As bytes, the widest types first, so that each begins where its own size divides.
    order = sorted(far, key=lambda key: -far[key].element_size())
    packed = torch.cat([_bytes(far[key]) for key in order]).cpu()
    ends = torch.tensor([0, *(far[key].numel() * far[key].element_size() for key in order)]).cumsum(0).tolist()
    found = {
        key: packed[begin:end].view(far[key].dtype).view(far[key].shape)
        for key, (begin, end) in zip(order, pairwise(ends), strict=True)
    }
    return {key: found.get(key, tensor) for key, tensor in tensors.items()}


def _bytes(tensor: Shaped[Tensor, "*s"]) -> Shaped[Tensor, " n"]:
    return tensor.flatten().view(torch.uint8)


def places(*masks: Bool[Tensor, "*s"]) -> list[tuple[Tensor, ...]]:
    """``mask.nonzero(as_tuple=True)`` of several masks of one device by a single wait, that for their counts.

    What is indexed by places rather than by the mask waits no more, neither now nor in the backward pass.
    """
    if masks[0].device.type == "cpu":
        return [mask.nonzero(as_tuple=True) for mask in masks]
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    return [torch.nonzero_static(mask, size=count).unbind(1) for mask, count in zip(masks, counts, strict=True)]


def inverse(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The inverse of matrices; of singular ones accelerators give numbers that are not finite, for to refuse them is to
    wait.

    Raises:
        torch.linalg.LinAlgError: a matrix on the CPU is singular.
    """
    if matrix.device.type == "cpu":
        return torch.linalg.inv(matrix)
    return torch.linalg.inv_ex(matrix).inverse
