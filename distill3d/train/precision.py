"""Which arithmetic a device does fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from distill3d.errors import UserError


@dataclass(frozen=True)
class Precision:
    """``fp32``, or ``bf16`` under autocast; weights, losses, geometry and ranking stay float32 either way."""

    name: Literal["fp32", "bf16"]

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which networks run."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.name == "bf16")


def choose_precision(wanted: Literal["fp32", "bf16", "auto"], device: torch.device) -> Precision:
    """``auto`` is bf16 where that is faster.

    Raises:
        UserError: bf16 was asked for on a GPU without it.
    """
    if wanted != "auto":
        if wanted == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise UserError("this GPU does not compute in bf16: give --precision fp32")
        return Precision(wanted)
    return Precision("bf16" if has_fast_bf16(device) else "fp32")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run on instructions of their own that do more a second than those of float32.

    Intel's AVX-512 does not: on a Xeon of 2023 whose tiles (AMX) a virtual machine hid, a 3 x 3 convolution took 1.8
    times as long in bf16 as in float32.  On AMD's EPYC the same instructions give twice the arithmetic.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        by_vectors = torch.cpu._is_avx512_bf16_supported() and not cpu_name().startswith("Intel")
        return torch.cpu._is_amx_tile_supported() or by_vectors
    return False


def cpu_name() -> str:
    """As PyTorch tells it; older releases do not."""
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return str(told.get("cpu_name", ""))
