"""One file per published detector, and the table by which recipes and checkpoints name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill3d.boxes import KITTI_CLASSES, label_names
from distill3d.detectors.base import Detector
from distill3d.detectors.bevdepth import BEVDepth, BEVDepthConfig
from distill3d.detectors.bevdet import BEVDet, BEVDetConfig
from distill3d.detectors.bevformer import BEVFormer, BEVFormerConfig
from distill3d.detectors.bevfusion import BEVFusion, BEVFusionConfig
from distill3d.detectors.caddn import CaDDN, CaDDNConfig
from distill3d.detectors.centerpoint import CenterPoint, CenterPointConfig
from distill3d.detectors.did_m3d import DIDM3D, DIDM3DConfig
from distill3d.detectors.gupnet import GUPNet, GUPNetConfig
from distill3d.detectors.label_encoder import LabelEncoder, LabelEncoderConfig
from distill3d.detectors.monocon import MonoCon, MonoConConfig
from distill3d.detectors.monodetr import MonoDETR, MonoDETRConfig
from distill3d.detectors.monodle import MonoDLE, MonoDLEConfig
from distill3d.detectors.pointpillars import PointPillars, PointPillarsConfig
from distill3d.detectors.second import SECOND, SECONDConfig
from distill3d.errors import UserError
from distill3d.plugins import load_installed
from distill3d.settings import refuse_odd_settings, widen
from distill3d.stop import held


@dataclass(frozen=True)
class DetectorEntry:
    """A registered detector: its settings' type, and how it is built from them."""

    config_type: type
    build: type[Detector]


DETECTORS = {
    MonoDLE.name: DetectorEntry(MonoDLEConfig, MonoDLE),
    GUPNet.name: DetectorEntry(GUPNetConfig, GUPNet),
    DIDM3D.name: DetectorEntry(DIDM3DConfig, DIDM3D),
    MonoCon.name: DetectorEntry(MonoConConfig, MonoCon),
    MonoDETR.name: DetectorEntry(MonoDETRConfig, MonoDETR),
    SECOND.name: DetectorEntry(SECONDConfig, SECOND),
    PointPillars.name: DetectorEntry(PointPillarsConfig, PointPillars),
    CaDDN.name: DetectorEntry(CaDDNConfig, CaDDN),
    CenterPoint.name: DetectorEntry(CenterPointConfig, CenterPoint),
    BEVDepth.name: DetectorEntry(BEVDepthConfig, BEVDepth),
    BEVDet.name: DetectorEntry(BEVDetConfig, BEVDet),
    BEVFormer.name: DetectorEntry(BEVFormerConfig, BEVFormer),
    BEVFusion.name: DetectorEntry(BEVFusionConfig, BEVFusion),
    LabelEncoder.name: DetectorEntry(LabelEncoderConfig, LabelEncoder),
}
#: Settings of any detector, as recipes hold them.
DetectorConfig = (
    MonoDLEConfig
    | GUPNetConfig
    | DIDM3DConfig
    | MonoConConfig
    | MonoDETRConfig
    | SECONDConfig
    | PointPillarsConfig
    | CaDDNConfig
    | CenterPointConfig
    | BEVDepthConfig
    | BEVDetConfig
    | BEVFormerConfig
    | BEVFusionConfig
    | LabelEncoderConfig
)


def register_detector(build: type[Detector], config_type: type) -> None:
    """Makes a detector from outside known by its ``name``: to recipes, checkpoints and every command.

    Raises:
        TypeError: its settings are no frozen dataclass with a field ``input``.
        ValueError: another detector has its name or its settings.
    """
    refuse_odd_settings(config_type)
    if "input" not in config_type.__dataclass_fields__:
        raise TypeError(f"{config_type.__name__} lacks the field 'input', which says what the detector looks at")
    taken = [name for name, entry in DETECTORS.items() if name == build.name or entry.config_type is config_type]
    if taken:
        raise ValueError(f"the name or the settings of detector {build.name!r} are those of {taken[0]!r}")
    DETECTORS[build.name] = DetectorEntry(config_type, build)
    widen(__name__, "DetectorConfig", config_type)


def build_detector(config: DetectorConfig) -> Detector:
    """A detector with fresh weights from its settings.

    Raises:
        UserError: the settings do not fit together.
    """
    name = detector_name(config)
    with held():  # an interrupt in the midst of it, which reaches as far as compilers, ends in an abort of their C++
        import timm  # noqa: F401
    try:
        return DETECTORS[name].build(config)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Networks meet what does not fit as they are built, in their own words or those of torch and timm.
        raise UserError(f"the settings of detector {name!r} do not fit together: {error}") from error


def detector_name(config: DetectorConfig) -> str:
    """The name under which the detector of these settings is registered."""
    return next(name for name, entry in DETECTORS.items() if type(config) is entry.config_type)


def labels_of(config: Any) -> tuple[str, ...]:
    """The names of the labels of a detector's boxes."""
    if hasattr(config, "vocabulary"):
        return label_names(config.vocabulary)
    if hasattr(getattr(config, "head", None), "vocabulary"):
        return label_names(config.head.vocabulary)
    return getattr(config, "classes", KITTI_CLASSES)  # of surround views


def detector_entry(name: str, where: str) -> DetectorEntry:
    """The entry of a name that was read from ``where``.

    Raises:
        UserError: there is no such detector.
    """
    if name not in DETECTORS:
        load_installed()
    if name not in DETECTORS:
        raise UserError(f"{where} is of detector {name!r}, known are {', '.join(DETECTORS)}; is it a --plugin's?")
    return DETECTORS[name]
