"""Authors' checkpoints under our names, and ours under theirs: the one mechanism of all detectors' mappings.

A mapping (``ReleasedForm``) stands beside its detector and holds data: which beginnings of names become which, what of
theirs has no place here and why, and where a layout differs.  It is read in both directions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill3d.errors import UserError

#: What parallel training and Lightning put in front of all names.
PREFIXES = ("module.", "model.")
#: Batches counted by a batch norm, which only a momentum of None looks at: files may lack them.
COUNTER = "num_batches_tracked"
#: From (out, z, y, x, in), as spconv 2 and this library have kernels, to (z, y, x, in, out) of spconv 1, and back.
TO_SPCONV_1, FROM_SPCONV_1 = (1, 2, 3, 4, 0), (4, 0, 1, 2, 3)
#: Why some of their entries have no place here.
NEVER_USED, OF_TRAINING, OTHER_NETWORKS = "never used", "for training alone", "other networks"
SECOND_NAMES = "second names of tensors"
#: Names told in a message at most.
TOLD = 3

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ReleasedForm:
    """How one network's state dict is written by its authors' code.  The default is one that has our names.

    Beginnings of names are whole parts between dots, or whole names; of several that fit the longest counts.
    """

    #: Their beginnings and ours; names that none fits stay as they are.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: Beginnings of their names that have no place here, and why.
    dropped: Mapping[str, str] = field(default_factory=dict)
    #: Our names of weights whose first two axes are exchanged in theirs: a 1 x 1 convolution for a transposed one.
    exchanged: tuple[str, ...] = ()
    #: Our names of weights whose rows have another order and sign in theirs; what is done twice changes nothing.
    reordered: Mapping[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    #: Their name of a tensor whose halves along the last axis are two tensors of ours.
    halved: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: Their names of what are settings here.
    settings: tuple[str, ...] = ()
    #: From the values of these and the detector's settings: the settings as the file has them.  Raises UserError where
    #: the two contradict each other.  And back, from the detector's settings to their values.
    read_settings: Callable[[Weights, Any], Any] | None = None
    write_settings: Callable[[Any], dict[str, Tensor]] | None = None
    #: What else their tensors need before they are renamed, such as biases that ours are without.
    prepared: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    #: Tensors of theirs that a forward pass does not use but that their loader asks for: names and shapes.
    unused: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: Beginnings of their second names of tensors, and of the first ones, which alone are read.
    aliases: Mapping[str, str] = field(default_factory=dict)
    #: Whether their batch norms count batches; frozen ones do not.
    counts_batches: bool = True


class Taken(NamedTuple):
    """What became of an authors' state dict."""

    weights: dict[str, Tensor]  # under our names
    config: Any  # the detector's, with the settings that stand among their tensors
    dropped: dict[str, list[str]]  # their names that have no place here, by the reason


def plain_names(weights: Weights) -> dict[str, Tensor]:
    """The state dict without the prefixes that all of its names share."""
    found = dict(weights)
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def part_of_file(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """What stands below a prefix, such as the student's in a file of a whole distillation."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def from_released(weights: Weights, form: ReleasedForm, own: Weights, config: Any) -> Taken:
    """Authors' weights (``plain_names``) under our names, in the types and layouts of ``own``, the state dict of a
    detector with the settings ``config``.

    Raises:
        UserError: entries of ``own`` are missing, have another shape, or there are names that neither has.
    """
    theirs, dropped, settings = dict(weights), defaultdict(list), {}
    reasons = {**dict.fromkeys(form.aliases, SECOND_NAMES), **form.dropped}
    if form.prepared is not None:
        theirs = form.prepared(theirs)
    old_sparse = _has_old_sparse(theirs, form, own)
    ours: dict[str, Tensor] = {}
    for name, value in theirs.items():
        without_place = _longest(reasons, name)
        if name in form.settings:
            settings[name] = value
        elif without_place is not None:
            dropped[reasons[without_place]].append(name)
        elif name in form.halved:
            ours |= zip(form.halved[name], value.chunk(2, -1), strict=True)
        else:
            mine = _exchanged_beginning(form.renamed, name)
            if mine in ours:
                raise UserError(f"holds {mine} twice, once as {name}")
            if value.dim() == 5 and old_sparse:
                value = value.permute(FROM_SPCONV_1)
            ours[mine] = _laid_out(form, mine, value)
    for name, value in own.items():
        if name not in ours and name.endswith(COUNTER):
            ours[name] = torch.zeros((), dtype=value.dtype)
    _refuse_different(ours, own, form, theirs)
    if form.read_settings is not None:
        config = form.read_settings(settings, config)
    return Taken({name: _as(ours[name], value) for name, value in own.items()}, config, dict(dropped))


def to_released(weights: Weights, form: ReleasedForm, config: Any) -> dict[str, Tensor]:
    """Weights of a detector with the settings ``config`` as the authors' code saves them, those that no forward pass
    uses as zeros."""
    halves, names = _halves(form), _their_names(form, weights)
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith(COUNTER) and not form.counts_batches:
            continue
        if name in halves:
            theirs = halves[name]
            found[theirs] = torch.cat([weights[half] for half in form.halved[theirs]], -1)
            continue
        found[names[name]] = _laid_out(form, name, value).contiguous()
    if form.write_settings is not None:
        found |= form.write_settings(config)
    found |= {name: torch.zeros(shape) for name, shape in form.unused.items()}
    for other, first in form.aliases.items():
        found |= {other + name.removeprefix(first): v for name, v in found.items() if _begins(name, first)}
    return found


def _halves(form: ReleasedForm) -> dict[str, str]:
    """Theirs of our names that are halves of one of their tensors."""
    return {mine: theirs for theirs, pair in form.halved.items() for mine in pair}


def _their_names(form: ReleasedForm, names: Iterable[str]) -> dict[str, str]:
    """The authors' names by ours."""
    halves = _halves(form)
    back = {mine: theirs for theirs, mine in reversed(list(form.renamed.items()))}
    return {name: halves.get(name) or _exchanged_beginning(back, name) for name in names}


def _laid_out(form: ReleasedForm, name: str, value: Tensor) -> Tensor:
    """A tensor of theirs in our layout, or one of ours in theirs; the name is ours."""
    if name in form.exchanged and value.dim() > 1:
        return value.transpose(0, 1)
    if name not in form.reordered:
        return value
    order, sign = form.reordered[name]
    return value[list(order)] * sign if value.shape[:1] == (len(order),) else value


def _begins(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(f"{beginning}.")


def _longest(beginnings: Container[str], name: str) -> str | None:
    """The longest beginning that a name has, up to one of its dots."""
    beginning, dot = name, "."
    while dot and beginning not in beginnings:
        beginning, dot, _ = beginning.rpartition(".")
    return beginning if dot else None


def _exchanged_beginning(renamed: Mapping[str, str], name: str) -> str:
    beginning = _longest(renamed, name)
    return name if beginning is None else renamed[beginning] + name.removeprefix(beginning)


def _has_old_sparse(theirs: Weights, form: ReleasedForm, own: Weights) -> bool:
    """Whether sparse kernels are laid out as spconv 1 does, by the first whose shape tells."""
    for name, value in theirs.items():
        mine = own.get(_exchanged_beginning(form.renamed, name))
        if value.dim() == 5 and mine is not None and mine.dim() == 5:
            new, old = tuple(mine.shape), tuple(mine.shape[i] for i in TO_SPCONV_1)
            if new != old:
                return tuple(value.shape) == old
    return False


def _as(value: Tensor, own: Tensor) -> Tensor:
    return value.to(own.dtype).contiguous()


def _refuse_different(ours: Weights, own: Weights, form: ReleasedForm, theirs: Iterable[str]) -> None:
    """Refuses weights that are not exactly those of ``own``; the sentence has the authors' names."""
    missing = [name for name in own if name not in ours]
    others = [name for name in ours if name not in own]
    misshapen = [name for name in own if name in ours and ours[name].shape != own[name].shape]
    odd = [name for name in own if name in ours and _kind(ours[name]) != _kind(own[name])]
    if not (missing or others or misshapen or odd):
        return
    names = _their_names(form, own) | {_exchanged_beginning(form.renamed, name): name for name in theirs}
    faults = []
    if missing:
        faults.append(f"lacks {_named(list(dict.fromkeys(names[name] for name in missing)))}")
    if others:
        faults.append(f"holds {_named([names.get(name, name) for name in others])} besides")
    if misshapen:
        name = misshapen[0]
        shapes = tuple(ours[name].shape), tuple(own[name].shape)
        more = f" ({len(misshapen)} such entries)" if len(misshapen) > 1 else ""
        faults.append(f"{names[name]} has the shape {shapes[0]}, expected {shapes[1]}{more}")
    if odd and not faults:
        name = odd[0]
        kinds = ours[name].dtype, own[name].dtype
        faults.append(f"{names[name]} holds values of {kinds[0]}, expected {kinds[1]} or alike")
    raise UserError("; ".join(faults))


def _kind(value: Tensor) -> str:
    """Fractions, whole numbers, or what networks do not have, such as truth values and complex numbers."""
    if value.is_floating_point():
        return "fractions" if value.element_size() > 1 else "eight bits"
    return str(value.dtype) if value.is_complex() or value.dtype == torch.bool else "whole numbers"


def _named(names: list[str]) -> str:
    """A few of the names, and how many there are."""
    told = ", ".join(names[:TOLD])
    return told if len(names) <= TOLD else f"{told} and {len(names) - TOLD} more"
