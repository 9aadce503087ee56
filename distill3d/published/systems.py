"""Published systems: whose checkpoint is which network here, and what its authors claim.

Facts are from the repositories' read-me and configuration files.  Numbers are Car 3D AP|R40 at IoU 0.7 (easy / moderate
/ hard) on KITTI val, or mAP / NDS on nuScenes val, unless said otherwise; none of them was measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from distill3d.data.nuscenes.dataset import SweepConfig
from distill3d.detectors import (
    bevdepth,
    caddn,
    centerpoint,
    gupnet,
    label_encoder,
    monocon,
    monodetr,
    monodle,
    pointpillars,
    second,
)
from distill3d.detectors.released import ReleasedForm, Weights
from distill3d.errors import UserError
from distill3d.recipes import get_recipe
from distill3d.train.checkpoint import untrained_detector
from distill3d.train.recipe import Recipe, StageConfig, SurroundDatasetConfig

#: Of networks on scans of nuScenes in the LiDAR's own frame.
OF_SENSOR = (
    "trained on points in the LiDAR's own frame (x to the right, y ahead), as its recipe says; where it teaches, a "
    "recipe needs --dataset.ego-frame lidar_sensor"
)


def _as_it_is(config: Any, weights: Weights) -> Any:
    return config


def _decoding_as_released(config: Any, weights: Weights) -> Any:
    """MonoDETR's weights were trained on depths from the height of the image file, not of the canvas."""
    return replace(config, decode_scale="per_axis")


def _data_as_it_is(data: Any, config: Any, weights: Weights) -> Any:
    return data


@dataclass(frozen=True)
class Part:
    """One network of a published system."""

    recipe: str  # this library's, of which ``stage`` has the network, its data set and their settings
    stage: str
    form: Callable[[Any], ReleasedForm]  # of the detector's settings
    claimed: str = ""  # its numbers, in its authors' words
    prefix: str = ""  # in front of its names in a file of several networks; such files, and those of it alone, are read
    #: The detector's settings, from those of the stage and the shapes in the file (under the authors' names).
    settings: Callable[[Any, Weights], Any] = _as_it_is
    #: The data set's settings, from those of the recipe, the detector's and the file.
    data: Callable[[Any, Any, Weights], Any] = _data_as_it_is
    caveat: str = ""  # what its authors' code does otherwise than this library, so that its numbers are not reached

    def taken_from(self) -> tuple[Recipe, StageConfig]:
        """The recipe and the stage, whose detector asks for no other pretrained weights."""
        recipe = get_recipe(self.recipe)
        stage = recipe.stage(self.stage)
        return recipe, replace(stage, detector=untrained_detector(stage.detector))


@dataclass(frozen=True)
class System:
    """A published system: its parts, of which the first that fits a file is meant where none is named."""

    title: str
    repository: str
    parts: dict[str, Part] = field(default_factory=dict)
    #: Where the state dict stands in a file that its code reads, and what all names in it begin with.
    state: str = "model_state"
    prefix: str = ""


def named_part(system: str, part: str | None, command: str) -> tuple[System, str, Part]:
    """A system, and the name and facts of a part of it, of its first where ``part`` is None.

    Raises:
        UserError: there is no such system or part; the sentence begins with the command.
    """
    if system not in SYSTEMS:
        raise UserError(f"{command}: there is no system {system!r}, expected one of {', '.join(SYSTEMS)}")
    parts = SYSTEMS[system].parts
    part = next(iter(parts)) if part is None else part
    if part not in parts:
        raise UserError(f"{command}: {system} has no part {part!r}, expected {' or '.join(parts)}")
    return SYSTEMS[system], part, parts[part]


#: Of CMKD and of MonoTAKD, which takes them over: as it teaches, where the student looks, and as it was trained, on all
#: that KITTI labels.  The weights are the same.
SECOND_TEACHER = Part("cmkd_second", "teacher", second.released_form)
WIDE_TEACHER = Part("pseudo_labels_monodle", "teacher", second.released_form)


def _of_sensor(data: SurroundDatasetConfig, config: Any, weights: Weights) -> SurroundDatasetConfig:
    """Ten scans in the LiDAR's own frame."""
    return replace(data, ego_frame="lidar_sensor", sweeps=SweepConfig.devkit())


def _bevdepth_data(
    data: SurroundDatasetConfig, config: bevdepth.BEVDepthConfig, weights: Weights, step: int = 1
) -> SurroundDatasetConfig:
    """Pictures as wide and high as the file's, and key frames of the past, every ``step``-th, as many as it sees."""
    past = tuple(step * i for i in range(1, config.frames))
    return replace(data, canvas=bevdepth.released_canvas(weights) or data.canvas, past=past)


def _labeldistill_data(
    data: SurroundDatasetConfig, config: bevdepth.BEVDepthConfig, weights: Weights
) -> SurroundDatasetConfig:
    return _bevdepth_data(data, config, weights, step=2)


def _labeldistill_settings(config: bevdepth.BEVDepthConfig, weights: Weights) -> bevdepth.BEVDepthConfig:
    """With as many channels as every student of LabelDistill has: BEVDepth's own files are none of it."""
    return replace(bevdepth.released_settings(config, weights), context_channels=config.context_channels)


SYSTEMS: dict[str, System] = {
    "monodle": System(
        "MonoDLE", "xinzhuma/monodle",
        {"student": Part("monodle", "baseline", monodle.released_form, "17.94 / 13.72 / 12.10")},
    ),
    "gupnet": System(
        "GUPNet", "SuperMHP/GUPNet",
        {"student": Part("gupnet", "baseline", gupnet.released_form,
                         "23.19 / 16.23 / 13.57 (val file), test 22.26 / 15.02 / 13.12 (trainval file)")},
    ),
    "did_m3d": System(
        "DID-M3D", "SPengLiang/DID-M3D",
        {"student": Part("did_m3d", "baseline", gupnet.released_form, "25.38 / 17.07 / 14.06")},
    ),
    "monoskd": System(
        "MonoSKD, on DID-M3D", "Senwang98/MonoSKD",
        {
            "student": Part("monoskd_did_m3d", "student", gupnet.released_form, "28.89 / 20.19 / 16.98",
                            "centernet_rgb."),
            "teacher": Part("monoskd_did_m3d", "teacher", gupnet.released_form, "43.81 moderate", "centernet_depth."),
            "baseline": Part("monoskd_did_m3d", "baseline", gupnet.released_form, "17.77 moderate"),
        },
    ),
    "monodistill": System(
        "MonoDistill, on MonoDLE", "monster-ghost/MonoDistill",
        {
            "student": Part("monodistill_monodle", "student", monodle.released_form, "24.40 / 18.47 / 16.46",
                            "centernet_rgb."),
            "teacher": Part("monodistill_monodle", "teacher", monodle.released_form, "60.57 / 45.06 / 37.90",
                            "centernet_depth."),
            "baseline": Part("monodistill_monodle", "baseline", monodle.released_form, "18.43 / 14.62 / 12.45"),
        },
    ),
    "monostl": System(
        "MonoSTL, on MonoDLE", "DingCodeLab/MonoSTL",
        {
            "student": Part("monostl_monodle", "student", monodle.released_form, "", "centernet_rgb."),
            "teacher": Part("monostl_monodle", "teacher", monodle.released_form, "", "centernet_depth."),
        },
    ),
    "monodetr": System(
        "MonoDETR", "ZrrSkywalker/MonoDETR",
        {"student": Part("monodetr", "baseline", monodetr.released_form,
                         "28.79 / 20.83 / 17.47, 29.36 / 20.64 / 17.30 and 27.58 / 20.14 / 16.98 (three files)",
                         settings=_decoding_as_released)},
    ),
    "monocon": System(
        "MonoCon", "Xianpeng919/MonoCon",
        {"student": Part("monocon", "baseline", monocon.released_form,
                         "26.33 / 19.03 / 16.00; 2gunsu/monocon-pytorch's best 26.03 / 19.02 / 15.92")},
        state="state_dict",
    ),
    "cmkd": System(
        "CMKD", "Cc-Hy/CMKD",
        {
            "student": Part("cmkd_second", "cmkd", caddn.released_form,
                            "moderate 15.80, with raw drives 21.61 (of SECOND); 16.44, 21.47 (of PointPillars)"),
            "teacher": SECOND_TEACHER,
            "teacher_wide": WIDE_TEACHER,
            "pointpillars_teacher": Part("cmkd_pointpillars", "teacher", pointpillars.released_form),
        },
    ),
    "monotakd": System(
        "MonoTAKD", "hoiliu-0801/MonoTAKD",
        {
            "student": Part("monotakd", "student", caddn.released_form,
                            "test 27.91 / 19.43 / 16.51, with raw drives 29.86 / 21.26 / 18.27",
                            settings=caddn.released_settings),
            # of the published files the one that sees the image alone, whatever depth our own assistants are given
            "assistant": Part("cmkd_second", "cmkd", caddn.released_form, "21.61 moderate, by the name of its file",
                              settings=caddn.released_settings),
            "teacher": SECOND_TEACHER,
            "teacher_wide": WIDE_TEACHER,
        },
    ),
    "bevdepth": System(
        "BEVDepth", "Megvii-BaseDetection/BEVDepth",
        {
            "student": Part("bevdepth", "baseline", bevdepth.released_form,
                            "33.0 mAP / 43.6 NDS with two frames, averaged weights (ema) 33.3 / 44.1",
                            settings=bevdepth.released_settings, data=_bevdepth_data),
            "balanced": Part("bevdepth_balanced", "baseline", bevdepth.released_form,
                             "34.8 mAP / 48.1 NDS with two frames, averaged weights (ema) 35.9 / 48.0",
                             settings=bevdepth.released_settings, data=_bevdepth_data),
        },
        state="state_dict", prefix="model.",
    ),
    "labeldistill": System(
        "LabelDistill, on BEVDepth", "sanmin0312/LabelDistill",
        {
            "student": Part("labeldistill_released", "student", bevdepth.labeldistill_form, "41.9 mAP / 52.8 NDS",
                            settings=_labeldistill_settings, data=_labeldistill_data),
            "label_encoder": Part("labeldistill_released", "label_encoder", label_encoder.released_form),
            "teacher": Part("labeldistill_released", "teacher", centerpoint.released_form, "58.4 mAP / 65.2 NDS",
                            "centerpoint."),
        },
        state="state_dict", prefix="model.",
    ),
    "centerpoint": System(
        "CenterPoint on voxels of 0.1 m", "open-mmlab/mmdetection3d",
        {"teacher": Part("centerpoint_voxels", "teacher", centerpoint.released_form, "56.11 mAP / 64.61 NDS",
                         data=_of_sensor, caveat=OF_SENSOR)},
        state="state_dict",
    ),
    "centerpoint_det3d": System(
        "CenterPoint on voxels of 0.1 m", "tianweiy/CenterPoint",
        {"teacher": Part("centerpoint_voxels", "teacher", centerpoint.det3d_form, "56.4 mAP / 64.8 NDS",
                         data=_of_sensor, caveat=OF_SENSOR)},
        state="state_dict",
    ),
    "openpcdet_second": System(
        "SECOND", "open-mmlab/OpenPCDet",
        {"teacher": Part("second_openpcdet", "teacher", second.released_form, "78.62 moderate (AP|R11)")},
    ),
    "openpcdet_pointpillars": System(
        "PointPillars", "open-mmlab/OpenPCDet",
        {"teacher": Part("pointpillars_openpcdet", "teacher", pointpillars.released_form, "77.28 moderate (AP|R11)")},
    ),
    "openpcdet_caddn": System(
        "CaDDN", "open-mmlab/OpenPCDet",
        {"student": Part("caddn_openpcdet", "baseline", caddn.released_form,
                         "moderate AP|R11: car 21.38, pedestrian 13.02, cyclist 9.76")},
    ),
}  # fmt: skip
