"""What a run's folder may be, who may write in it, and how training is asked to end."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streets import small_recipe

from distill3d.data.sample import Batch
from distill3d.errors import UserError
from distill3d.lock import only_writer
from distill3d.stop import Stopped
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions, _Run
from distill3d.train.recipe import EvaluationConfig, Recipe
from distill3d.train.stages import run_recipe

QUIET = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu"}


def run(recipe: Recipe, out: Path) -> Path:
    return run_recipe(recipe, RunOptions(out=out, checkpoint_steps=1000, log_steps=2, **QUIET), ("baseline",))


def evaluated(root: Path) -> Recipe:
    """Two epochs of two steps, the first one evaluated too."""
    return replace(small_recipe(root), evaluation=EvaluationConfig(every=1))


@pytest.fixture(scope="module")
def whole(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(evaluated(streets), tmp_path_factory.mktemp("whole")) / "baseline"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same(ours: Path, theirs: Path) -> None:
    """All results, the log but for its times, and the last state."""
    for name in ("model.safetensors", "card.json", "evaluation.json", "config.yaml", "predictions/000008.txt"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (ours, theirs)]
    logs = [[line for line in log if line["kind"] != "cost"] for log in logs]
    assert logs[0] == logs[1]
    states = [torch.load(f / "last.ckpt", weights_only=True) for f in (ours, theirs)]
    assert all(torch.equal(states[0]["model"][k], v) for k, v in states[1]["model"].items())


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 3)])
def test_asked_to_end_it_keeps_its_last_step(
    number: int, step: int, whole: Path, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, taken = _Run.train_step, []

    def interrupted(self: _Run, batch: object) -> None:
        taken.append(1)
        if len(taken) == step:
            os.kill(os.getpid(), number)
        original(self, batch)  # the present step is finished

    monkeypatch.setattr(_Run, "train_step", interrupted)
    with pytest.raises(Stopped) as stopped:
        run(evaluated(streets), tmp_path)
    assert stopped.value.signal == number
    state = torch.load(tmp_path / "demo/baseline/last.ckpt", weights_only=True)
    assert 2 * state["epoch"] + state["step_in_epoch"] == step
    assert_same(run(evaluated(streets), tmp_path) / "baseline", whole)
    assert len(taken) == 4, "a step was taken twice"


def test_killed_while_it_evaluates_it_has_lost_no_step(
    whole: Path, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, taken = evaluated(streets), []
    original, evaluate = _Run.train_step, _Run.evaluate

    def counted(self: _Run, batch: object) -> None:
        taken.append(1)
        original(self, batch)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "train_step", counted)
    for _ in range(2):  # after two steps and after four
        monkeypatch.setattr(_Run, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
        monkeypatch.setattr(_Run, "evaluate", evaluate)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_Run, "finish", killed)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, tmp_path)
    assert_same(run(recipe, tmp_path) / "baseline", whole)
    assert len(taken) == 4, "a step was taken twice"


def begun(recipe: Recipe, out: Path) -> Path:
    """A run that was stopped after its next step."""
    original = _Run.train_step

    def interrupted(self: _Run, batch: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", interrupted)
        with pytest.raises(Stopped):
            run(recipe, out)
    return out / "demo"


def test_a_refused_call_changes_nothing(whole: Path, streets: Path, tmp_path: Path) -> None:
    for folder in (whole.parent, begun(evaluated(streets), tmp_path)):
        before = content(folder)
        with pytest.raises(UserError, match="other settings"):
            run(replace(evaluated(streets), seed=5), folder.parent)
        assert content(folder) == before


def in_steps(root: Path, epochs: int = 2, **schedule: object) -> Recipe:
    """The rates of whose first epochs do not depend on their number."""
    recipe = small_recipe(root, epochs)
    stages = tuple(replace(s, schedule=replace(s.schedule, shape="steps", **schedule)) for s in recipe.stages)
    return replace(recipe, stages=stages, evaluation=EvaluationConfig(every=1))


def test_a_finished_stage_is_trained_longer(streets: Path, tmp_path: Path) -> None:
    """It ends where the longer training ends, also where it is ended on the way."""
    longer = run(in_steps(streets, 4), tmp_path / "whole") / "baseline"
    ours = run(in_steps(streets), tmp_path / "out") / "baseline"
    first = len((ours / "metrics.jsonl").read_text().splitlines())
    begun(in_steps(streets, 4), tmp_path / "out")
    with pytest.raises(UserError, match=r"stages.baseline.schedule.epochs was 4 and is 3|epochs was 2 and is 3"):
        run(in_steps(streets, 3), tmp_path / "out")
    run(in_steps(streets, 4), tmp_path / "out")
    assert_same(ours, longer)
    lines = (ours / "metrics.jsonl").read_text().splitlines()
    assert len(lines) > first and len(lines) == len((longer / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda r: replace(small_recipe(r), seed=5), r"\(seed was 0 and is 5\)"),
        (lambda r: small_recipe(r, 4), r"epochs was 2 and is 4\), and the rates of a one-cycle schedule depend on"),
        (lambda r: small_recipe(r, augment=None), r"stages.baseline.augment is another"),
        (lambda r: replace(small_recipe(r), dataset=replace(small_recipe(r).dataset, canvas=(192, 64))),
         r"dataset.canvas was \[160, 64\] and is \[192, 64\]"),
    ],
    ids=["seed", "one cycle", "kind", "canvas"],
)  # fmt: skip
def test_what_changed_is_told(whole: Path, streets: Path, changed: Callable[[Path], Recipe], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run(changed(streets), whole.parents[1])


def test_a_batch_in_parts(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is a mean over frames gives the weights of the whole batch, the last and shorter one's too."""
    recipe = in_steps(streets, 1, batch_size=3, drop_last=False)
    real, seen = _Run.losses, []

    def mean_over_frames(self: _Run, batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(len(batch))
        found = sum(parameter.sum() for parameter in self.step.student.parameters())
        return {"x": found * batch.image.mean(), "y": batch.image.mean().detach()}

    monkeypatch.setattr(_Run, "losses", mean_over_frames)
    whole = run(recipe, tmp_path / "whole") / "baseline"
    assert seen == [3, 3, 2]
    seen.clear()
    parted = run(in_steps(streets, 1, batch_size=3, drop_last=False, accumulate=3), tmp_path / "parts") / "baseline"
    assert seen == [1] * 8
    first, second = (load_weights(folder)[0] for folder in (whole, parted))
    assert all(torch.allclose(first[name], value, rtol=1e-5, atol=1e-7) for name, value in second.items())
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, parted)]
    terms = [[line["terms"] for line in map(json.loads, log) if line["kind"] == "train"] for log in logs]
    assert terms[0][0] == pytest.approx(terms[1][0], rel=1e-5)
    with pytest.raises(UserError, match=r"accumulate is 2, expected a divisor of the 3 frames"):
        run(in_steps(streets, 1, batch_size=3, accumulate=2), tmp_path / "odd")
    monkeypatch.setattr(_Run, "losses", real)
    assert run(in_steps(streets, 1, batch_size=4, accumulate=2), tmp_path / "real").exists()


def test_one_training_at_a_time(streets: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "demo/baseline", ""):
        before = content(tmp_path)
        with pytest.raises(UserError, match=f"baseline: is being trained by process {os.getpid()} on "):
            run(evaluated(streets), tmp_path)
        assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", ".", "a/b"])
def test_names_do_not_lead_out_of_the_folder(name: str, streets: Path, tmp_path: Path) -> None:
    recipe = evaluated(streets)
    stage = replace(recipe.stage("baseline"), name=name)
    for climbing in (replace(recipe, name=name), replace(recipe, stages=(stage, recipe.stage("baseline")))):
        with pytest.raises(UserError, match="cannot name a folder"):
            run(climbing, tmp_path / "a" / "b" / "runs")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "baseline/config.yaml",
        "baseline/metrics.jsonl",
        "baseline/last.ckpt",
        "baseline/model.safetensors",
    ],
)
def test_files_of_others_are_not_replaced(name: str, streets: Path, tmp_path: Path) -> None:
    path = tmp_path / "demo" / name
    path.parent.mkdir(parents=True)
    path.write_text("name: mine\nother: 1\n")
    before = content(tmp_path)
    with pytest.raises(UserError, match=f"{path.name}: is there already and was not written by a training"):
        run(evaluated(streets), tmp_path)
    assert content(tmp_path) == before


def test_leftovers_of_a_kill_are_swept_at_the_next_start(streets: Path, tmp_path: Path) -> None:
    folder = begun(evaluated(streets), tmp_path) / "baseline"
    (folder / "predictions").mkdir()
    for left in (folder, folder / "predictions"):
        (left / ".distill3d-0-1-0-0.part").write_text("half")
    run(evaluated(streets), tmp_path)
    assert not list(folder.rglob(".*"))
