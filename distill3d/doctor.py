"""What a bug report needs: versions, devices, fast paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import torch

import distill3d
from distill3d.train.precision import choose_precision, has_fast_bf16

PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "embreex")


def describe() -> dict[str, str]:
    """Facts by name, ready to print."""
    cpu = torch.device("cpu")
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    facts["distill3d"] = distill3d.__version__
    facts |= {name: importlib.metadata.version(name) for name in PACKAGES}
    facts["cpu cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    facts["cpu instructions"] = torch.backends.cpu.get_cpu_capability()
    facts["cpu bf16"] = "fast: precision auto is bf16" if has_fast_bf16(cpu) else "slow: precision auto is fp32"
    facts["torch threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.device("cuda", i)
            facts[f"gpu {i}"] = (
                f"{torch.cuda.get_device_name(gpu)}, precision auto is {choose_precision('auto', gpu).name}"
            )
    else:
        facts["gpu"] = "none that this torch can use"
    facts["data parallel"] = ", ".join(
        name for name, there in (("nccl", torch.distributed.is_nccl_available()),
                                 ("gloo", torch.distributed.is_gloo_available())) if there
    )  # fmt: skip
    return facts
