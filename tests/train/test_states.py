"""Training states: every entry is held against the run before it is used, and no flipped bit goes unseen."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bit_flips import flip, small_state, small_weights
from tiny_training import EPOCHS, STEPS, TinyTraining, equal

from distill3d.errors import UserError
from distill3d.train.checkpoint import load_state, load_weights, save_state

#: Flips of each kind of file in the ordinary tests; ``python -m tests.train.bit_flips 1000`` makes more.
FLIPS = 60


@pytest.mark.parametrize(("make", "load"), [(small_state, load_state), (small_weights, load_weights)])
def test_flipped_bits_are_refused(make: Callable, load: Callable, tmp_path: Path) -> None:
    assert flip(make(tmp_path), FLIPS, 0, load) == (FLIPS, [])


@pytest.mark.parametrize("steps", [0, 1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS, EPOCHS * STEPS])
def test_a_state_is_all_that_a_training_needs(steps: int, tmp_path: Path) -> None:
    whole = TinyTraining()
    whole.run(EPOCHS * STEPS)
    first = TinyTraining()
    first.run(steps)
    first.save(tmp_path / "last.ckpt")
    second = TinyTraining(seed=1)
    second.resume(tmp_path / "last.ckpt")
    second.run(EPOCHS * STEPS - steps)
    ends = [training.state() for training in (whole, second)]
    assert ends[0]["epoch"] == EPOCHS and equal(*ends)


# ------------------------------------------------------------------------------------------------------ mutated states

#: What is put in the place of each entry.
NUMBER = 1.5
ODD: list[Any] = [None, True, -1, 10**9, 10**5000, NUMBER, math.nan, "x" * 10_000, [], {}, (1,), torch.zeros(0)]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every entry of a state, leaves and tables alike."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def at(state: Any, path: tuple) -> Any:
    for key in path:
        state = state[key]
    return state


def put(state: Any, path: tuple, change: Callable[[Any, Any], None]) -> Any:
    """The state with ``change`` done to the copied table that holds the entry; the rest is shared."""
    copied = copy.copy(state)
    if len(path) > 1:
        copied[path[0]] = put(state[path[0]], path[1:], change)
    else:
        change(copied, path[0])
    return copied


def mutations(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every entry dropped, doubled under another name, and in turn of another type, shape or value."""
    for path in places(state):
        original = at(state, path)
        # No one can say of a finite loss, weight or rate that it was another.
        replaced: list[Any] = [value for value in ODD if value is not NUMBER or type(original) is not float]
        if isinstance(original, torch.Tensor):
            other = original.double() if original.is_floating_point() else original.float()
            replaced += [other, original[None], original.reshape(-1)[:-1], original.to("meta"), original.to_sparse()]
            replaced += [torch.nn.Parameter(original.float()), torch.zeros(1).expand(10**6, 10**6)]
            replaced += [torch.full_like(original, math.nan)] if original.is_floating_point() else []
        for value in replaced:
            if isinstance(value, torch.Tensor) or type(value) is not type(original) or value != original:
                yield f"{path} = {type(value)}", put(state, path, lambda t, key, v=value: t.__setitem__(key, v))
        yield f"{path} dropped", put(state, path, lambda table, key: table.__delitem__(key))
        if isinstance(at(state, path[:-1]), dict):
            yield f"{path} twice", put(state, path, lambda table, key: table.update(other=table[key]))


def test_mutated_states_are_refused(tmp_path: Path) -> None:
    """With a valid seal, as if this library had written them."""
    training = TinyTraining()
    training.run(STEPS + 2)
    state = training.state()
    accepted = []
    for name, mutated in mutations(state):
        try:
            training.layout.refuse_unfit(mutated, tmp_path / "last.ckpt")
        except UserError as error:
            text = str(error)
            assert text.startswith(f"{tmp_path}/last.ckpt") and len(text) < 500 and "\n" not in text, text
        else:
            accepted.append(name)
    # How much of the log was written when, nobody else knows; no weight depends on it.
    assert all(name.startswith(("('recent',", "('logged',)")) for name in accepted), accepted
    assert len(accepted) < 6


@pytest.mark.parametrize(
    ("entry", "value", "sentence"),
    [(("epoch",), -1, "entry epoch is -1, expected a whole number from 0 to 3"),
     (("epoch",), 10**9, "entry epoch is 1000000000"), (("epoch",), True, "entry epoch is True"),
     (("epoch",), 1.0, "entry epoch is 1.0"), (("epoch",), EPOCHS, "entry step_in_epoch is 2, .* from 0 to 0"),
     (("step_in_epoch",), STEPS + 1, "entry step_in_epoch is 5"), (("format",), 3, "is of format 3"),
     (("fingerprint",), "f" * 16, "written with other settings"),
     (("model", "student.0.weight"), torch.zeros(4, 3, 3, 2), r"has shape \(4, 3, 3, 2\), expected \(4, 3, 3, 3\)"),
     (("optimiser", "state", 0, "step"), torch.tensor(7.0), r"\.step is 7\.0, expected one of 1\.\.6 steps"),
     (("optimiser", "state", 0, "exp_avg_sq"), torch.full((4, 3, 3, 3), -1.0), "moments that no gradient gives"),
     (("optimiser", "state", 0, "exp_avg"), torch.zeros(4, 3, 3), r"exp_avg has shape \(4, 3, 3\)"),
     (("untouched",), [], "entry optimiser.state lacks 3"), (("best",), None, "entry best is missing"),
     (("rng",), torch.zeros(5056, dtype=torch.uint8), "no state of the random generator"),
     (("logged",), -1, "entry logged is -1"),
     (("tasks", "count"), 1, "entry tasks has counted other steps than 2")],
)  # fmt: skip
def test_impossible_entries_are_named(entry: tuple, value: object, sentence: str, tmp_path: Path) -> None:
    training, path = TinyTraining(), tmp_path / "last.ckpt"
    training.run(STEPS + 2)
    training.save(path)
    state = load_state(path)
    at(state, entry[:-1])[entry[-1]] = value
    save_state(path, state)
    with pytest.raises(UserError, match=sentence):
        TinyTraining().resume(path)


def test_moments_of_another_shape_never_reach_the_optimiser(tmp_path: Path) -> None:
    """A fused optimiser writes past the end of moments that are smaller than their parameter."""
    for shape in [(1,), (1, 3, 3, 3), (108,), (4, 3, 3, 2)]:
        training, path = TinyTraining(), tmp_path / "last.ckpt"
        training.run(2)
        training.save(path)
        state = load_state(path)
        for name in ("exp_avg", "exp_avg_sq"):
            state["optimiser"]["state"][0][name] = torch.zeros(shape)
        save_state(path, state)
        with pytest.raises(UserError, match=r"optimiser\.state\[0\] \(student\.0\.weight\)\.exp_avg has shape"):
            training.resume(path)


def test_how_tensors_lie_in_the_file_changes_nothing(tmp_path: Path) -> None:
    """Other strides, and one value for a whole tensor: the run's own memory is filled with them."""
    results = []
    for lay in (torch.Tensor.contiguous, lambda value: value.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)):
        training, path = TinyTraining(), tmp_path / "last.ckpt"
        training.run(2)
        training.save(path)
        state = load_state(path)
        moments = state["optimiser"]["state"][0]
        moments["exp_avg"] = lay(moments["exp_avg"])
        moments["exp_avg_sq"] = moments["exp_avg_sq"].flatten()[:1].expand(108).view(4, 3, 3, 3)
        state["average"]["0.weight"] = state["average"]["0.weight"].flatten()[:1].expand(108).view(4, 3, 3, 3)
        save_state(path, state)
        training.resume(path)
        parameter = next(iter(training.step.parameters()))
        own = training.optimiser.state[parameter]
        assert own["exp_avg"].stride() == own["exp_avg_sq"].stride() == parameter.stride()
        training.run(STEPS)
        results.append(training.state())
    assert equal(*results)


def test_other_terms_than_the_states_are_refused(tmp_path: Path) -> None:
    training, path = TinyTraining(), tmp_path / "last.ckpt"
    training.run(1)
    training.save(path)
    state = load_state(path)
    state["tasks"]["terms"] = ["depth", "other", "size"]
    for row in (*state["tasks"]["history"], state["tasks"]["sums"]):
        row.append(0.5)
    save_state(path, state)
    training.resume(path)
    with pytest.raises(UserError, match="the state weighs the terms depth, other, size, the losses are size, depth"):
        training.run(1)
