"""Learning rates against the values that the papers' schedulers give."""

import pytest
import torch

from distill3d.train.schedules import Schedule, build_optimiser, learning_rate

MONODLE = Schedule()
ONE_CYCLE = Schedule(epochs=10, lr=2e-3, shape="one_cycle")


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-5), (1, 1.2841e-4), (2, 4.3841e-4), (3, 8.2159e-4), (4, 1.13159e-3), (5, 1.25e-3), (94, 1.25e-3),
     (95, 1.25e-4), (124, 1.25e-4), (125, 1.25e-5), (139, 1.25e-5)],
)  # fmt: skip
def test_step_schedule(epoch: int, expected: float) -> None:
    assert learning_rate(MONODLE, epoch, 7, 232) == pytest.approx(expected, rel=1e-4)


def test_one_cycle_equals_torch() -> None:
    steps = 13
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimiser, ONE_CYCLE.lr, total_steps=ONE_CYCLE.epochs * steps)
    for step in range(ONE_CYCLE.epochs * steps):
        # torch places the peak a step earlier than a share of the whole would, hence the tolerance
        expected = optimiser.param_groups[0]["lr"]
        assert learning_rate(ONE_CYCLE, step // steps, step % steps, steps) == pytest.approx(
            expected, abs=0.03 * ONE_CYCLE.lr
        )
        optimiser.step()
        reference.step()


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_only_biases_are_not_decayed(kind: str) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    optimiser = build_optimiser(module, Schedule(optimiser=kind, weight_decay=0.1))
    decayed = {id(p) for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in module.named_parameters() if id(p) in decayed}
    assert names == {"0.weight", "1.weight"}
