"""Training end to end on a few synthetic frames: stages, resume, frozen teachers, overlap, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from streets import small_recipe

from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import Batch
from distill3d.detectors import build_detector
from distill3d.errors import UserError
from distill3d.train.checkpoint import load_state, load_weights
from distill3d.train.cost import Stopwatch
from distill3d.train.htl import HTLConfig
from distill3d.train.loop import UNREAD_STEPS, RunOptions, TrainingStep, _Run, build_step
from distill3d.train.recipe import Recipe
from distill3d.train.sources import Verdict, kitti_config
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import Teacher, refuse_overlap, trained_on

QUIET = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu"}


def run(recipe: Recipe, out: Path, *only: str, **options: object) -> Path:
    return run_recipe(recipe, RunOptions(out=out, **{**QUIET, **options}), only)


@pytest.fixture(scope="module")
def trained(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small recipe's teacher, baseline and both students."""
    out = tmp_path_factory.mktemp("runs")
    return run(small_recipe(streets), out, "teacher", "baseline", "monodistill", "monoskd")


def test_run_folders(trained: Path) -> None:
    assert (trained / "recipe.yaml").is_file()
    for stage in ("teacher", "baseline", "monodistill", "monoskd"):
        folder = trained / stage
        names = {"config.yaml", "metrics.jsonl", "last.ckpt", "model.safetensors", "card.json", "evaluation.json"}
        assert names <= {p.name for p in folder.iterdir()}
        assert len(list((folder / "predictions").glob("*.txt"))) == 4
        card = json.loads((folder / "card.json").read_text())
        assert card["detector"] == "monodle" and card["trained_on"]["count"] == 8
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["kind"] == "eval" and lines[-1]["epoch"] == 2
        costs = [line for line in lines if line["kind"] == "cost"]
        assert [(cost["epoch"], cost["steps"]) for cost in costs] == [(0, 2), (1, 2)]
        assert all(min(cost[k] for k in ("seconds", "processor_seconds", "peak_memory")) > 0 for cost in costs)


def test_distilled_students_are_the_baseline_in_shape(trained: Path) -> None:
    baseline = {k: v.shape for k, v in load_weights(trained / "baseline")[0].items()}
    for stage in ("monodistill", "monoskd"):
        assert {k: v.shape for k, v in load_weights(trained / stage)[0].items()} == baseline


def test_finished_stages_are_skipped_and_other_settings_refused(trained: Path, streets: Path) -> None:
    before = (trained / "baseline" / "model.safetensors").stat().st_mtime_ns
    run(small_recipe(streets), trained.parent, "baseline")
    assert (trained / "baseline" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        run(small_recipe(streets, epochs=3), trained.parent, "baseline")


def test_a_stage_needs_its_teacher(streets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs stage 'teacher'"):
        run(small_recipe(streets), tmp_path, "monoskd")


def test_a_killed_run_ends_in_the_same_weights(trained: Path, streets: Path, tmp_path: Path) -> None:
    """kill -9 three times at different moments; the fourth start runs to the end."""
    stage = "monoskd"
    (tmp_path / "demo").mkdir()
    os.symlink(trained / "teacher", tmp_path / "demo" / "teacher")
    script = (
        "import sys; from pathlib import Path; from streets import small_recipe\n"
        "from distill3d.train.loop import RunOptions; from distill3d.train.stages import run_recipe\n"
        f"run_recipe(small_recipe(Path({str(streets)!r})), RunOptions(out=Path({str(tmp_path)!r}), checkpoint_steps=1, "
        f"log_steps=1, progress=False, tensorboard=False, threads=1, accelerator='cpu'), ({stage!r},))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    state, log = tmp_path / "demo" / stage / "last.ckpt", tmp_path / "demo" / stage / "metrics.jsonl"
    for steps in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", script], env=environment)
        while process.poll() is None and not (state.exists() and done(state) >= steps):
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    ours, whole = load_weights(tmp_path / "demo" / stage)[0], load_weights(trained / stage)[0]
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    logged = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"train"' in line]
    assert logged == sorted(set(logged)), "steps that were repeated after a kill stand twice in the log"


@contextmanager
def interrupted_before(step: int) -> Iterator[None]:
    """In the block a training is ended before its step of this number, from 1, and does end."""
    original, calls = _Run.train_step, []

    def interrupted(self: _Run, batch: Batch) -> None:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def done(state: Path) -> int:
    loaded = load_state(state)
    return loaded["epoch"] * 2 + loaded["step_in_epoch"]


def test_one_seed_gives_one_result(trained: Path, streets: Path, tmp_path: Path) -> None:
    again = run(small_recipe(streets), tmp_path, "baseline", workers=1)
    ours, theirs = (load_weights(f / "baseline")[0] for f in (again, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_a_teacher_is_frozen(batch_norm: str, trained: Path, streets: Path) -> None:
    recipe = small_recipe(streets)
    teacher = Teacher(trained / "teacher", batch_norm).train()
    assert not any(p.requires_grad for p in teacher.parameters())
    data = KittiDataset(kitti_config(recipe, recipe.stage("monoskd"), "train", train=True))
    batch = next(batches(data, [0, 1], 2, 0, 0))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    outputs = teacher(batch, build_detector(recipe.stage("monoskd").detector).encode(batch))
    assert not any(p.requires_grad for p in outputs.predictions.values())
    moved = {k for k, v in teacher.state_dict().items() if not torch.equal(v, before[k])}
    assert bool(moved) == (batch_norm == "train")
    assert all("running" in k or "num_batches" in k for k in moved)


def test_the_gradient_reaches_student_and_terms_only(trained: Path, streets: Path) -> None:
    recipe = small_recipe(streets)
    for name in ("monodistill", "monoskd"):
        stage = recipe.stage(name)
        teachers = {"teacher": Teacher(trained / "teacher")}
        step = build_step(stage, teachers)
        data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
        batch = next(batches(data, [0, 1], 2, 0, 0))
        targets = step.student.encode(batch)
        sum(step(batch, targets, {k: t(batch, targets) for k, t in teachers.items()}).values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in step.parameters())
        assert all(p.grad is None for p in teachers["teacher"].parameters())


def test_overlap_is_refused(trained: Path, streets: Path, tmp_path: Path) -> None:
    recipe = small_recipe(streets)
    leaky = replace(recipe, dataset=replace(recipe.dataset, eval_split="train"))
    with pytest.raises(UserError, match="was trained on 8 of the 8 evaluation frames"):
        run(leaky, tmp_path, "baseline")
    run(leaky, tmp_path, "baseline", allow_overlap=True)
    card = {"trained_on": trained_on("kitti", ["1", "2"], [trained_on("kitti", ["9"], [])])}
    refuse_overlap(card, "x", "other", ["9"], allowed=False)
    with pytest.raises(UserError, match="1 of the 2 evaluation frames"):
        refuse_overlap(card, "x", "kitti", ["8", "9"], allowed=False)


def test_best_needs_a_split_of_its_own(streets: Path, tmp_path: Path) -> None:
    recipe = small_recipe(streets)
    with pytest.raises(UserError, match="select_split"):
        replace(recipe, evaluation=replace(recipe.evaluation, keep="best"))
    (streets / "ImageSets" / "select.txt").write_text("000010\n")
    chosen = replace(recipe, dataset=replace(recipe.dataset, select_split="select"),
                     evaluation=replace(recipe.evaluation, keep="best"))  # fmt: skip
    card = json.loads((run(chosen, tmp_path, "baseline") / "baseline" / "card.json").read_text())
    assert card["kept"].startswith("epoch ")


def score_epochs(patch: pytest.MonkeyPatch, scores: dict[int, float]) -> None:
    """Lets evaluations find these moderate APs of cars at IoU 0.7, by the epoch in which they are logged."""
    original = _Run.log_evaluation

    def scored(self: _Run, verdict: Verdict) -> None:
        ap = {**verdict.metrics["ap"], "car_3d_strict": [50.0, scores[self.epoch], 10.0]}
        original(self, replace(verdict, metrics={"ap": ap}))

    patch.setattr(_Run, "log_evaluation", scored)


def keep_first(self: _Run) -> None:
    if self.best is None:
        self.best = {"score": 0.0, "epoch": self.epoch, "weights": {k: v.cpu() for k, v in self.weights().items()}}


def stated_runs(recipe: Recipe, out: Path) -> tuple[Path, Path]:
    """Folders of a baseline that tells the best of its evaluations, and of one that was interrupted and went on."""
    whole, parts = run(recipe, out / "whole", "baseline"), out / "parts"
    with interrupted_before(6):  # two evaluations were logged, and a step of the third epoch is in no state
        run(recipe, parts, "baseline", log_steps=1)
    with (parts / "demo" / "baseline" / "metrics.jsonl").open("a") as log:  # as if it had been killed while it logged
        log.write('{"kind": "eval", "step": 6, "epoch": 3, "ap": {"car_3d_strict": [99, 99, 99]}}\n{"kind": "ev')
    run(recipe, parts, "baseline", log_steps=1)
    return whole / "baseline", parts / "demo" / "baseline"


def test_the_best_of_all_evaluations_is_told_beside_the_last(
    trained: Path, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As papers state it; the same after an interruption; and what is kept and fingerprinted is as without it."""
    plain = small_recipe(streets, epochs=4)
    recipe = replace(plain, evaluation=replace(plain.evaluation, every=1, best_of_reported=True))
    assert recipe.stage_fingerprint(recipe.stages[1]) == plain.stage_fingerprint(plain.stages[1])
    score_epochs(monkeypatch, {1: 20.0, 2: 40.0, 3: 40.0, 4: 30.0})
    for folder in stated_runs(recipe, tmp_path):
        expected = {
            "of": 4, "epoch": 2, "split": "val", "chosen_by": "Car 3D AP|R40, moderate, IoU 0.7",
            "ap": {"car_3d_strict": [50.0, 40.0, 10.0]},
        }  # fmt: skip
        card, evaluation = (json.loads((folder / f"{name}.json").read_text()) for name in ("card", "evaluation"))
        assert card["best_of_reported"] == evaluation["best_of_reported"] == expected and card["kept"] == "last"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [1, 2, 3, 4]
        assert lines[-1] == {"kind": "best_of_reported", "step": 8, **expected}
    monkeypatch.undo()
    last = run(plain, tmp_path / "plain", "baseline") / "baseline"
    assert "best_of_reported" not in json.loads((last / "card.json").read_text())
    ours, theirs = (load_weights(f)[0] for f in (tmp_path / "whole" / "demo" / "baseline", last))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_kept_weights_count_as_their_epochs_checkpoint(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights that another split chose, here those of the first epoch, the last evaluation is theirs."""
    score_epochs(monkeypatch, {1: 1.0, 2: 2.0, 3: 3.0})
    monkeypatch.setattr(_Run, "keep_if_best", keep_first)
    (streets / "ImageSets" / "select.txt").write_text("000010\n")
    recipe = small_recipe(streets, epochs=3)
    recipe = replace(recipe, dataset=replace(recipe.dataset, select_split="select"),
                     evaluation=replace(recipe.evaluation, every=1, keep="best", best_of_reported=True))  # fmt: skip
    card = json.loads((run(recipe, tmp_path, "baseline") / "baseline" / "card.json").read_text())
    assert card["kept"] == "epoch 1" and card["best_of_reported"]["ap"] == {"car_3d_strict": [50.0, 3.0, 10.0]}
    assert (card["best_of_reported"]["of"], card["best_of_reported"]["epoch"]) == (2, 1)


def test_averaged_weights_are_evaluated_and_shared(trained: Path, streets: Path, tmp_path: Path) -> None:
    recipe = small_recipe(streets)
    stages = tuple(replace(s, schedule=replace(s.schedule, ema=0.5)) for s in recipe.stages)
    folder = run(replace(recipe, stages=stages), tmp_path, "baseline")
    shared, state = load_weights(folder / "baseline")[0], load_state(folder / "baseline" / "last.ckpt")
    assert all(torch.equal(shared[k], state["average"][k]) for k in shared)
    assert not torch.equal(shared["depth.0.weight"], state["model"]["student.depth.0.weight"])


def test_a_loss_that_is_not_finite_stops_with_its_name(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(streets)
    stages = tuple(replace(s, schedule=replace(s.schedule, clip_norm=None)) for s in recipe.stages)
    monkeypatch.setattr("distill3d.train.loop.learning_rate", lambda *_: 1e30)
    with pytest.raises(UserError, match="loss term '.*' is (nan|inf).*frames \\['0000"):
        run(replace(recipe, stages=stages), tmp_path, "baseline")


def read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings leave their losses where they are for some steps, as on an accelerator."""
    resume = _Run.resume

    def resumed(self: _Run) -> None:
        self.unread_steps = UNREAD_STEPS
        resume(self)

    monkeypatch.setattr(_Run, "resume", resumed)


@pytest.mark.parametrize("batch_size", [4, 1])
def test_a_loss_that_is_read_late_still_stops_with_its_name_before_anything_is_saved(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """At the end of an epoch of two or of eight steps."""
    taken, forward = [], TrainingStep.forward

    def failing(self: TrainingStep, batch: Batch, targets: Any, answers: Any) -> dict[str, torch.Tensor]:
        losses = forward(self, batch, targets, answers)
        taken.append(batch.frame_ids)
        return {name: loss * float("nan") if name == "depth" else loss for name, loss in losses.items()}

    read_late(monkeypatch)
    monkeypatch.setattr(TrainingStep, "forward", failing)
    with pytest.raises(UserError, match=r"loss term 'depth' is nan at step 0, frames \['0000") as refusal:
        run(small_recipe(streets, batch_size=batch_size), tmp_path, "baseline", checkpoint_steps=4)
    assert str(taken[0]) in str(refusal.value) and 1 < len(taken) <= UNREAD_STEPS
    assert not [*tmp_path.rglob("*.ckpt"), *tmp_path.rglob("*.safetensors")]


def test_what_is_timed_has_been_done(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps whose losses were not read an accelerator may not have begun some."""
    unread, tell, read = [], _Run.tell_time, Stopwatch.read
    telling: list[_Run] = []

    def told(self: _Run, steps: int) -> None:
        assert self.unread
        telling.append(self)
        tell(self, steps)

    def timed(self: Stopwatch, steps: int) -> dict[str, Any]:
        unread.extend(len(run.unread) for run in telling)
        return read(self, steps)

    read_late(monkeypatch)
    monkeypatch.setattr("distill3d.train.loop.TIMED", 1)
    monkeypatch.setattr(_Run, "tell_time", told)
    monkeypatch.setattr(Stopwatch, "read", timed)
    with interrupted_before(4):
        run(small_recipe(streets, batch_size=1), tmp_path, "baseline", progress=True)
    assert unread == [0]


def test_losses_that_are_read_late_are_logged_the_same(
    trained: Path, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_late(monkeypatch)
    with interrupted_before(4):
        run(small_recipe(streets), tmp_path, "baseline")
    late = run(small_recipe(streets), tmp_path, "baseline")
    said = [
        [line for line in (folder / "baseline" / "metrics.jsonl").read_text().splitlines() if '"cost"' not in line]
        for folder in (trained, late)
    ]
    assert said[0] == said[1]
    ours, theirs = (load_weights(folder / "baseline")[0] for folder in (late, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


GRADIENTS = """
import sys, torch
from dataclasses import replace
from pathlib import Path
from streets import small_preset
from distill3d.data.collate import EpochSampler, batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import Batch
from distill3d.layers.distributed import share_batch_norm
from distill3d.train.htl import HTLConfig
from distill3d.train.loop import RunOptions, _Run, build_step
from distill3d.train.sources import kitti_config
from distill3d.train.stages import launch

root, out, world = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
fabric = launch(RunOptions(devices=world, accelerator="cpu"))
gradients = {}
for base in sys.argv[4:]:
    recipe = small_preset(base, root)
    stage = recipe.stage("baseline")
    torch.manual_seed(0)
    step = build_step(stage, {}).double()
    share_batch_norm(step)
    model = fabric.setup(step)
    data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
    sampler = EpochSampler(len(data), 4, 0, rank=fabric.global_rank, world=world)
    batch = next(batches(data, sampler.order(0), sampler.local_batch, 0, 0))
    batch = replace(batch, image=batch.image.double())
    fabric.backward(sum(model(batch, step.student.encode(batch), {}).values()))
    gradients |= {f"{base} {n}": p.grad for n, p in step.named_parameters()}
if fabric.global_rank == 0:
    torch.save(gradients, out)
"""


def test_two_processes_give_the_gradients_of_one(streets: Path, tmp_path: Path) -> None:
    """torchrun with gloo, half the batch each; float64, so that only the reductions' order differs.

    Of GUPNet the processes hold unequal numbers of regions.
    """
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    gradients = []
    for world in (1, 2):
        out = tmp_path / f"{world}.pt"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
        bases = ("monodle", "gupnet", "monocon")
        command = [sys.executable, *launcher, str(script), str(streets), str(out), str(world), *bases]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        gradients.append(torch.load(out, weights_only=True))
    one, two = gradients
    assert all(v.abs().max() > 0 for v in one.values())
    for name, value in one.items():  # biases before a batch norm have no gradient but rounding
        tolerance = 1e-5 * float(value.abs().max()) + 1e-12
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=tolerance, msg=name)


def test_tasks_are_weighed_and_a_killed_run_goes_on(streets: Path, tmp_path: Path) -> None:
    """Hierarchical task learning in the loop: the first pass is observed, and its state is a part of the run's."""
    recipe = small_recipe(streets, epochs=5)
    tasks = HTLConfig(history=3, prerequisites={"depth": ("size_2d", "heatmap")})
    recipe = replace(recipe, stages=(replace(recipe.stage("baseline"), tasks=tasks),))
    whole = run(recipe, tmp_path / "whole", "baseline") / "baseline"
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    weights = [line["weights"]["depth"] for line in lines if line["kind"] == "tasks"]
    assert weights[:3] == [0, 0, 0]  # until three epochs, the first pass among them, are remembered
    assert 0 <= weights[3] < weights[4] <= 1  # and from there on they rise

    parts = tmp_path / "parts"
    with interrupted_before(8):
        run(recipe, parts, "baseline", checkpoint_steps=1)
    ours, theirs = (load_weights(f)[0] for f in (run(recipe, parts, "baseline") / "baseline", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_state_is_refused_and_the_one_before_goes_on(
    trained: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = _Run.train_step, []

    def interrupted(self: _Run, batch: Batch) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(small_recipe(streets), tmp_path, "baseline", checkpoint_steps=1)
    folder = tmp_path / "demo" / "baseline"
    damaged = bytearray((folder / "last.ckpt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "last.ckpt").write_bytes(damaged)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"last\.ckpt: is damaged .* goes on from the state before, previous\.ckpt"):
        run(small_recipe(streets), tmp_path, "baseline")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    (folder / "last.ckpt").unlink()
    run(small_recipe(streets), tmp_path, "baseline")
    assert "last.ckpt is not there: goes on from previous.ckpt, epoch 2, step 0\n" in capsys.readouterr().err
    ours, whole = load_weights(folder)[0], load_weights(trained / "baseline")[0]
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert not (folder / "previous.ckpt").exists(), "a finished stage needs no second state"
    (folder / "card.json").write_text((folder / "card.json").read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"card\.json: was damaged or changed after distill3d wrote it"):
        run(small_recipe(streets), tmp_path, "baseline")


def test_weights_that_are_not_finite_are_never_saved(streets: Path, tmp_path: Path) -> None:
    original = _Run.train_step

    def diverging(self: _Run, batch: Batch) -> None:
        original(self, batch)
        if self.global_step == 2:
            next(iter(self.step.student.parameters())).data.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "train_step", diverging)
        with pytest.raises(
            UserError, match=r"last\.ckpt was not written at step 2: student\.\S+ holds values that are not"
        ):
            run(small_recipe(streets), tmp_path, "baseline", checkpoint_steps=1)
    assert load_state(tmp_path / "demo" / "baseline" / "last.ckpt")["step_in_epoch"] == 1
