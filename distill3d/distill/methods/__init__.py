"""The methods by name: published ones, a control and our own.

A new one is a file here, an import and a line in ``METHODS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill3d.detectors.base import FeatureMap
from distill3d.distill.context import Context
from distill3d.distill.methods import (
    add,
    bevdistill,
    cmkd,
    dense_truth,
    distillbev,
    labeldistill,
    monodistill,
    monoskd,
    monostl,
    monotakd,
    pseudo_labels,
    sgm3d,
    simdistill,
    tig_bev,
    trusted,
    unidistill,
    uvtr_kd,
    vcd,
    x3kd,
)
from distill3d.distill.methods import mixed as mixtures
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.style import ObjectsConfig, StyledConfig, UnlabelledUse
from distill3d.distill.term import Term
from distill3d.settings import refuse_odd_settings, widen


@dataclass(frozen=True)
class Method:
    """One method: what it is called, its settings, and how they become terms."""

    name: str
    config_type: type[StyledConfig]
    #: (config, student's tap channels, teacher's tap channels) -> the terms
    terms: Callable[[Any, dict[str, int], dict[str, int]], list[Term]]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("monodistill", monodistill.MonoDistillConfig, monodistill.terms),
        Method("monoskd", monoskd.MonoSKDConfig, monoskd.terms),
        Method("monostl", monostl.MonoSTLConfig, monostl.terms),
        Method("cmkd", cmkd.CMKDConfig, cmkd.terms),
        Method("monotakd", monotakd.MonoTAKDConfig, monotakd.terms),
        Method("add_style", add.ADDStyleConfig, add.terms),
        Method("sgm3d", sgm3d.SGM3DConfig, sgm3d.terms),
        Method("labeldistill", labeldistill.LabelDistillConfig, labeldistill.terms),
        Method("unidistill", unidistill.UniDistillConfig, unidistill.terms),
        Method("tig_bev", tig_bev.TiGBEVConfig, tig_bev.terms),
        Method("distillbev", distillbev.DistillBEVConfig, distillbev.terms),
        Method("vcd", vcd.VCDConfig, vcd.terms),
        Method("x3kd", x3kd.X3KDConfig, x3kd.terms),
        Method("dense_truth", dense_truth.DenseTruthConfig, dense_truth.terms),
        Method("pseudo_labels", pseudo_labels.PseudoLabelsConfig, pseudo_labels.terms),
        Method("trusted", trusted.TrustedConfig, trusted.terms),
        Method("bevdistill", bevdistill.BEVDistillConfig, bevdistill.terms),
        Method("simdistill", simdistill.SimDistillConfig, simdistill.terms),
        Method("uvtr_kd", uvtr_kd.UVTRKDConfig, uvtr_kd.terms),
    )
}

#: Settings of any method or mixture, as recipes hold them.
MethodConfig = (
    monodistill.MonoDistillConfig
    | monoskd.MonoSKDConfig
    | monostl.MonoSTLConfig
    | cmkd.CMKDConfig
    | monotakd.MonoTAKDConfig
    | sgm3d.SGM3DConfig
    | add.ADDStyleConfig
    | labeldistill.LabelDistillConfig
    | unidistill.UniDistillConfig
    | tig_bev.TiGBEVConfig
    | distillbev.DistillBEVConfig
    | vcd.VCDConfig
    | x3kd.X3KDConfig
    | pseudo_labels.PseudoLabelsConfig
    | dense_truth.DenseTruthConfig
    | trusted.TrustedConfig
    | bevdistill.BEVDistillConfig
    | simdistill.SimDistillConfig
    | uvtr_kd.UVTRKDConfig
    | MixedConfig
)


def register_method(
    name: str, config_type: type[StyledConfig], terms: Callable[[Any, dict[str, int], dict[str, int]], list[Term]]
) -> None:
    """Makes a method from outside known to recipes, alone or as a part of a mixture; ``terms`` as in ``Method``.

    Raises:
        TypeError: its settings are no frozen dataclass derived from ``StyledConfig``.
        ValueError: another method has its name or its settings.
    """
    refuse_odd_settings(config_type)
    if not issubclass(config_type, StyledConfig):
        raise TypeError(f"{config_type.__name__} must derive from distill3d.distill.style.StyledConfig")
    taken = [other.name for other in METHODS.values() if other.name == name or other.config_type is config_type]
    if taken:
        raise ValueError(f"the name or the settings of method {name!r} are those of {taken[0]!r}")
    METHODS[name] = Method(name, config_type, terms)
    widen(__name__, "MethodConfig", config_type)
    widen(mixtures.__name__, "PartConfig", config_type)


def method_name(config: StyledConfig) -> str:
    """The name of the method whose settings these are; of a mixture all names, with a plus between.

    Raises:
        ValueError: no method has settings of this type.
    """
    if isinstance(config, MixedConfig):
        return "+".join(method_name(part) for part in config.parts)
    for method in METHODS.values():
        if type(config) is method.config_type:
            return method.name
    raise ValueError(f"no method has settings of type {type(config).__name__}; known are {', '.join(METHODS)}")


def parts_of(config: StyledConfig) -> tuple[StyledConfig, ...]:
    """The settings of each method of a mixture; of a method alone its own."""
    return config.parts if isinstance(config, MixedConfig) else (config,)


def unlabelled_use(config: StyledConfig) -> UnlabelledUse:
    """What a method or mixture makes of frames without labels: of a mixture what the most demanding part does."""
    uses = {part.unlabelled for part in parts_of(config)}
    order: tuple[UnlabelledUse, ...] = ("refused", "labels", "objects", "as_is")
    return next(use for use in order if use in uses)


def objects_rule(config: StyledConfig) -> ObjectsConfig:
    """The settings by which a teacher's boxes become objects: those of pseudo-labels, if they are a part."""
    asking = [part for part in parts_of(config) if isinstance(part, ObjectsConfig)]
    labels = [part for part in asking if isinstance(part, pseudo_labels.PseudoLabelsConfig)]
    return next(iter(labels + asking), ObjectsConfig())


def build_terms(config: StyledConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    """The terms of the method or mixture whose settings these are; ``*_channels`` are the detectors' ``tap_channels``.

    Terms may share adapters: hold them in one ``nn.ModuleList`` and take its ``parameters()``, which counts each once.

    Raises:
        ValueError: no method has settings of this type, or the taps do not fit the detectors.
    """
    if isinstance(config, MixedConfig):
        return _mixed_terms(config, student_channels, teacher_channels)
    return METHODS[method_name(config)].terms(config, student_channels, teacher_channels)


def _mixed_terms(config: MixedConfig, student_channels: dict[str, int], teacher_channels: dict[str, int]) -> list[Term]:
    select = config.select

    def gate(context: Context, maps: list[FeatureMap]) -> list[Any]:
        assert select is not None
        return [weight for weight, _ in monostl.paint_weights(context, maps, select)]

    mixed = []
    for part in config.parts:
        if select is not None and isinstance(part, monoskd.MonoSKDConfig):
            terms = monoskd.terms(part, student_channels, teacher_channels, gate)
        else:
            terms = build_terms(part, student_channels, teacher_channels)
        for term in terms:
            term.name = f"{method_name(part)}.{term.name}"
        mixed += terms
    return mixed
