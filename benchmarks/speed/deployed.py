"""Every student as an ONNX file: what a picture takes in ONNX Runtime, and in PyTorch, from picture to boxes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from distill3d import export

from .inputs import Place, Setting, described
from .task import Task, Work

#: More than heads answer that are not trained, which begin at a hundredth or a tenth: rounding decides which of their
#: boxes suppress which.
UNTRAINED_SCORE = 0.5


def deployed_tasks(setting: Setting) -> Iterator[Task]:
    for name in export.RAW:
        place = setting.size.detectors[name]
        size = described(setting, place, setting.single(place))
        yield Task(
            f"{name}, from picture to boxes", size, partial(in_pytorch, setting, place), "PyTorch", unit="moment"
        )
        yield Task(f"{name}, from picture to boxes", size, partial(in_onnxruntime, setting, place), "ONNX Runtime",
                   unit="moment", may_fail=True)  # fmt: skip


def in_pytorch(setting: Setting, place: Place) -> Work:
    detector = setting.detector(place).eval().requires_grad_(False)
    inputs = export.inputs_of(detector, setting.single(place))
    deployed = export.Deployed(detector, tuple(inputs))

    @torch.no_grad()
    def run() -> None:
        deployed(*inputs.values())

    return Work(run, counted=run)


def in_onnxruntime(setting: Setting, place: Place) -> Work:
    """A file that answers as PyTorch does.

    Raises:
        UserError: packages are missing, or the file answers otherwise.
    """
    eager = in_pytorch(setting, place)
    detector = setting.detector(place).eval()
    inputs = export.inputs_of(detector, setting.single(place))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{detector.name}.onnx"
        exported = export.export_detector(detector, path, [inputs], sure_score=UNTRAINED_SCORE)
        session = export.open_session(path, setting.threads)
    return Work(partial(export.run, session, inputs), eager.counted, timed=partial(export.latency, session, inputs),
                facts=lambda: {"file_bytes": exported.size})  # fmt: skip
