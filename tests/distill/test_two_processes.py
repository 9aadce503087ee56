"""Two processes with half of a batch each give the gradients of one with all of it, or the term says that it couples
the batch: gloo, every term on surround views, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import test_labeldistill as labels
import test_point_methods as points
import test_region_methods as regions
import test_sparse_methods as sparse
import test_surround_methods as surround
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from distill3d.data.batching import picked
from distill3d.detectors.base import FeatureMap, Outputs
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.centerpoint import CenterPoint
from distill3d.distill.context import Context
from distill3d.distill.methods.labeldistill import LabelDistillConfig
from distill3d.distill.term import Term
from distill3d.layers.distributed import share_batch_norm

WORLD, PATIENCE = 2, timedelta(seconds=120)
#: Objects in the two samples.
COUNTS = (6, 2)
CLOSE = 5e-3  # of the largest gradient of a map or parameter
#: Share of a term's largest gradient below which others are rounding.
ROUNDING = 1e-3
#: Case and term that couple the batch and differ, for each process divides by what it sees itself or compares within
#: its own samples.  All others agree, many of them by means over processes.
OWN_BATCH = {
    ("vcd intended", "bev"), ("vcd intended", "occupancy"), ("x3kd", "response"), ("bevdistill", "dense"),
    ("bevdistill", "contrastive"), ("bevdistill of peaks", "dense"), ("bevdistill of peaks", "contrastive"),
    ("simdistill", "response_class"), ("cmkd", "response_cls"), ("cmkd", "response_loc"), ("several", "response_cls"),
    ("monotakd", "response_cls"), ("monotakd", "response_loc"), ("monostl", "dasfd"), ("monostl", "dasrd"),
    ("labeldistill", "lidar"), ("labeldistill", "label"),
}  # fmt: skip


def cases() -> dict[str, tuple[Context, list[Term]]]:
    """What student and teachers say of two samples, and the terms, by method."""
    lidar = surround.build(CenterPoint, surround.LIDAR, 1).eval().requires_grad_(False)
    camera = surround.build(BEVDepth, surround.ASSISTANT, 2).eval().requires_grad_(False)
    torch.manual_seed(1)
    fusing = sparse.FusingTeacher().eval().requires_grad_(False)
    batch = points.with_points_inside(surround.scene(*COUNTS))
    found: dict[str, tuple[Context, list[Term]]] = {}
    for name in ("unidistill", "unidistill, released", "tig_bev", "tig_bev, released"):
        context, by_name = points.said(points.METHODS[name], batch, lidar)
        found[name] = context, list(by_name.values())
    for name in ("distillbev", "distillbev, every term", "distillbev, bevformer", "vcd intended", "x3kd"):
        found[name] = regions.said(regions.METHODS[name][0], batch, {"points": lidar, "depth": camera})
    for name in ("uvtr_kd", "uvtr_kd of objects", "bevdistill", "bevdistill of peaks", "simdistill"):
        found[name] = sparse.said(name, batch, fusing)
    for name in ("cmkd", "several", "monotakd", "monostl"):
        found[name] = surround.said(name, batch, {"teacher": lidar, "assistant": camera})
    found["labeldistill"] = labels.make_context(*COUNTS), list(labels.make_terms(LabelDistillConfig()).values())
    return found


def rows_of(value: Tensor, rows: list[int], samples: int) -> Tensor:
    """The samples of a map, which may have a row for each camera."""
    return value.unflatten(0, (samples, -1))[rows].flatten(0, 1)


def part(context: Context, rows: list[int]) -> Context:
    samples = len(COUNTS)

    def of(outputs: Outputs) -> Outputs:
        return Outputs(
            {k: FeatureMap(rows_of(f.tensor, rows, samples), f.geometry) for k, f in outputs.features.items()},
            {k: rows_of(v, rows, samples) for k, v in outputs.predictions.items()},
        )

    return replace(
        context, student=of(context.student), teachers={k: of(v) for k, v in context.teachers.items()},
        batch=picked(context.batch, rows), targets=picked(context.targets, rows),
    )  # fmt: skip


def leaves_of(context: Context, term: Term) -> tuple[Context, list[Tensor]]:
    """The context on leaves, and whatever gets a gradient: those and the term's own parameters."""
    outputs = context.student
    features = {
        k: FeatureMap(f.tensor.detach().clone().requires_grad_(), f.geometry) for k, f in outputs.features.items()
    }
    predictions = {k: v.detach().clone().requires_grad_() for k, v in outputs.predictions.items()}
    leaves = [f.tensor for f in features.values()] + list(predictions.values()) + list(term.parameters())
    return replace(context, student=Outputs(features, predictions)), leaves


def gradients(term: Term, context: Context, rows: list[int]) -> list[Tensor]:
    context, leaves = leaves_of(context, term)
    value = term(part(context, rows))
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]


def says_so(term: Term) -> bool:
    """Whether a term declares that it couples the batch, and tells its readers."""
    told = any("couple" in (kind.__doc__ or "").lower() for kind in type(term).__mro__ if issubclass(kind, Term)
               and kind is not Term)  # fmt: skip
    return term.couples_batch and told


def work(rank: int, folder: str) -> None:
    """One process: every term alone on both samples, then on its own with the other process beside it."""
    torch.set_num_threads(1)
    found = cases()
    for _, terms in found.values():
        share_batch_norm(nn.ModuleList(terms)).train()
    alone = {(n, t.name): gradients(t, c, list(range(WORLD))) for n, (c, terms) in found.items() for t in terms}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD, timeout=PATIENCE
    )
    try:
        verdict = {}
        for name, (context, terms) in found.items():
            for term in terms:
                apart = []
                for one, own in zip(alone[name, term.name], gradients(term, context, [rank]), strict=True):
                    dist.all_reduce(own)
                    apart.append((float((own / WORLD - one).abs().max()), float(one.abs().max())))
                # Biases before a batch norm have no gradient but rounding.
                least = ROUNDING * max(scale for _, scale in apart)
                worst = max(difference / max(scale, least) for difference, scale in apart) if least else 0.0
                verdict[name, term.name] = worst, says_so(term), least > 0
        if rank == 0:
            torch.save(verdict, Path(folder) / "verdict.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """(case, term) -> (how far gradients differ, whether it says that it couples the batch, whether it has any)."""
    folder = tmp_path_factory.mktemp("processes")
    start: Callable[..., Any] = torch.multiprocessing.spawn
    start(work, (str(folder),), nprocs=WORLD)
    return torch.load(folder / "verdict.pt", weights_only=True)


def test_all_terms_learn(verdict: dict[tuple[str, str], Any]) -> None:
    assert {key for key, (_, _, learns) in verdict.items() if not learns} == set()
    assert len(verdict) > 40


def test_who_differs_says_that_it_couples_the_batch(verdict: dict[tuple[str, str], Any]) -> None:
    differs = {key for key, (difference, _, _) in verdict.items() if difference > CLOSE}
    assert not {key for key in differs if not verdict[key][1]}
    assert differs == OWN_BATCH
