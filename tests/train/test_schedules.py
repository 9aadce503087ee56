"""Learning rates against the values that the papers' schedulers give."""

import pytest
import torch

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
