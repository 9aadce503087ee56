"""distill3d: camera-only 3D object detectors, taught by LiDAR, depth and labels at training time.

In Python, what the commands do, each imported when it is first asked for:

| name | what it does |
|---|---|
| ``load(path)`` | a trained detector: ``.predict(picture, camera)`` gives boxes with names |
| ``load(path).moments(folder)`` | samples of surround views, which ``.predict(sample)`` takes |
| ``build(recipe, stage)`` | an untrained detector, a torch module |
| ``get_recipe(name)``, ``run_recipe(recipe, options)`` | what is trained, and the training: ``RunOptions`` says where |
| ``evaluate_stage(folder, data_root, split)`` | detections on a split, and the official metric |
| ``write_report(folders, out)`` | a page that compares runs |
| ``record_run(folder, out)`` | frames of a run in 3D, for the rerun viewer |
| ``export_checkpoint(folder, path)`` | a student as an ONNX file |
| ``import_checkpoint(file, system)`` | an authors' checkpoint as a stage's folder |
| ``register_method``, ``register_detector``, ``register_recipe`` | makes one's own known to all of these |
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill3d.boxes import Boxes3D
    from distill3d.camera import Camera
    from distill3d.detectors import register_detector
    from distill3d.distill.methods import register_method
    from distill3d.errors import UserError
    from distill3d.evaluate_run import evaluate_stage
    from distill3d.export import export_checkpoint
    from distill3d.model import Detection, Model, Prediction, build, load
    from distill3d.published.importing import import_checkpoint
    from distill3d.recipes import get_recipe, register_recipe
    from distill3d.record import record_run
    from distill3d.surround import SurroundDetection, SurroundPrediction
    from distill3d.train.loop import RunOptions
    from distill3d.train.recipe import Recipe
    from distill3d.train.stages import run_recipe
    from distill3d.view.report import write_report

__version__ = "0.1.0"
__all__ = [
    "Boxes3D", "Camera", "Detection", "Model", "Prediction", "Recipe", "RunOptions", "SurroundDetection",
    "SurroundPrediction", "UserError", "build", "evaluate_stage", "export_checkpoint", "get_recipe",
    "import_checkpoint", "load", "record_run", "register_detector", "register_method", "register_recipe", "run_recipe",
    "write_report",
]  # fmt: skip

#: The module of each name.
_MODULES = {
    "Boxes3D": "boxes", "Camera": "camera", "Detection": "model", "Model": "model", "Prediction": "model",
    "Recipe": "train.recipe", "RunOptions": "train.loop", "SurroundDetection": "surround",
    "SurroundPrediction": "surround", "UserError": "errors", "build": "model",
    "evaluate_stage": "evaluate_run", "export_checkpoint": "export", "get_recipe": "recipes",
    "import_checkpoint": "published.importing", "load": "model", "record_run": "record",
    "register_detector": "detectors", "register_method": "distill.methods", "register_recipe": "recipes",
    "run_recipe": "train.stages", "write_report": "view.report",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
