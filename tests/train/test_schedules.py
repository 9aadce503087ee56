"""Learning rates against the values that the papers' schedulers give."""

import pytest
import torch

from distill3d.errors import UserError
from distill3d.train.ema import WeightAverage
from distill3d.train.schedules import Schedule, build_optimiser, first_beta, learning_rate

MONODLE = Schedule()
ONE_CYCLE = Schedule(epochs=10, lr=2e-3, shape="one_cycle")
#: OpenPCDet's, as CMKD trains cameras with it.
CAMERA = Schedule(
    epochs=10, lr=2e-3, shape="one_cycle", rise=0.4, start_divisor=10.0, end_divisor=1e3, momentum=(0.95, 0.85)
)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-5), (1, 1.2841e-4), (2, 4.3841e-4), (3, 8.2159e-4), (4, 1.13159e-3), (5, 1.25e-3), (94, 1.25e-3),
     (95, 1.25e-4), (124, 1.25e-4), (125, 1.25e-5), (139, 1.25e-5)],
)  # fmt: skip
def test_step_schedule(epoch: int, expected: float) -> None:
    assert learning_rate(MONODLE, epoch, 7, 232) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("schedule", [ONE_CYCLE, CAMERA], ids=["torch's defaults", "CMKD's"])
def test_one_cycle_equals_torch(schedule: Schedule) -> None:
    steps = 13
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=1.0, betas=schedule.betas)
    high, low = schedule.momentum or (schedule.betas[0], schedule.betas[0])
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.lr, total_steps=schedule.epochs * steps, pct_start=schedule.rise,
        div_factor=schedule.start_divisor, final_div_factor=schedule.end_divisor, base_momentum=low, max_momentum=high,
    )  # fmt: skip
    for step in range(schedule.epochs * steps):
        # torch places the peak a step earlier than a share of the whole would, hence the tolerance
        group, place = optimiser.param_groups[0], (step // steps, step % steps, steps)
        assert learning_rate(schedule, *place) == pytest.approx(group["lr"], abs=0.03 * schedule.lr)
        assert first_beta(schedule, *place) == pytest.approx(group["betas"][0], abs=0.03 * (high - low) + 1e-12)
        optimiser.step()
        reference.step()


def test_only_a_cycle_moves_the_momentum() -> None:
    assert first_beta(MONODLE, 3, 4, 10) == 0.9
    assert first_beta(CAMERA, 0, 0, 10) == 0.95
    assert first_beta(CAMERA, 9, 9, 10) == pytest.approx(0.95)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_only_biases_are_not_decayed(kind: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    optimiser = build_optimiser(module, Schedule(optimiser=kind, weight_decay=0.1))
    decayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in module.named_parameters() if id(p) in decayed}
    assert names == {"0.weight", "1.weight"}
    everything = build_optimiser(module, Schedule(optimiser=kind, weight_decay=0.1, decay="all"))
    assert all(group["weight_decay"] == 0.1 for group in everything.param_groups)


def test_a_part_learns_slower() -> None:
    module = torch.nn.ModuleDict({"student": torch.nn.ModuleDict({"backbone": torch.nn.Linear(2, 2),
                                                                  "head": torch.nn.Linear(2, 2)})})  # fmt: skip
    optimiser = build_optimiser(module, Schedule(lr=0.1, slower="backbone", slower_share=0.5))
    share_of = {id(p): group["share"] for group in optimiser.param_groups for p in group["params"]}
    shares = {name: share_of[id(p)] for name, p in module.named_parameters()}
    assert shares == {
        "student.backbone.weight": 0.5, "student.backbone.bias": 0.5,
        "student.head.weight": 1.0, "student.head.bias": 1.0,
    }  # fmt: skip
    assert {group["share"]: group["lr"] for group in optimiser.param_groups} == {1.0: 0.1, 0.5: 0.05}
    with pytest.raises(UserError, match="'neck'"):
        build_optimiser(module, Schedule(slower="neck"))


@pytest.mark.parametrize(("epoch", "expected"), [(0, 2e-4), (18, 2e-4), (19, 2e-5), (22, 2e-5), (23, 2e-6)])
def test_steps_without_warm_up(epoch: int, expected: float) -> None:
    schedule = Schedule(lr=2e-4, warmup_epochs=0, drops=(19, 23))
    assert learning_rate(schedule, epoch, 3, 10) == pytest.approx(expected)


def test_averages_forget_their_beginning_sooner() -> None:
    """BEVDepth's decay at the fifth update is 0.999 (1 - exp(-5 / 2000)) = 0.0024944."""
    module = torch.nn.Linear(1, 1, bias=False)
    for warmup, kept in ((None, 0.999), (2000.0, 0.0024944)):
        torch.nn.init.zeros_(module.weight)
        average = WeightAverage(module, 0.999, warmup)
        torch.nn.init.ones_(module.weight)
        average.update(module, 5)
        assert 1 - average.state["weight"].item() == pytest.approx(kept, abs=1e-7)
