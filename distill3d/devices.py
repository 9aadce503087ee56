"""Devices by the name that a user gave."""

from __future__ import annotations

import torch

from distill3d.errors import UserError

#: Kinds that networks can run on; PyTorch knows others, such as ``meta``, which compute nothing.
KINDS = ("cpu", "cuda", "mps", "xpu")


def find_device(name: str) -> torch.device:
    """The device of this name, such as ``cpu`` or ``cuda:1``; ``auto`` is the first CUDA device, else the CPU.

    Raises:
        UserError: there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type in KINDS:
            torch.empty(1, device=device)  # what a name stands for shows only when it is used
            return device
        raise ValueError
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):  # AssertionError: PyTorch without CUDA
        pass
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(cards))])
    raise UserError(f"--device is {name!r}, which this machine does not have: expected one of {known}")
