"""One stage of a recipe: training that can be killed at any moment and goes on where it was."""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import torch
import yaml
from torch import Tensor, nn

import distill3d
from distill3d.data.autolabels import labeller_of
from distill3d.data.collate import EpochSampler, batches
from distill3d.data.kitti.raw import RawMapping
from distill3d.data.sample import Batch, Dataset
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.base import Detector, Outputs
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms, method_name
from distill3d.distill.style import teachers_norms
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.files import append_text, read_json, read_text, write_text
from distill3d.layers.distributed import share_batch_norm, world_size
from distill3d.settings import Between, Number, Workers, to_plain
from distill3d.stop import Stopped, noted
from distill3d.train import changes
from distill3d.train.card import RECIPE, require
from distill3d.train.checkpoint import (
    PREVIOUS,
    STATE,
    last_state,
    load_into,
    load_matching,
    load_state,
    load_weights,
    refuse_not_finite,
    save_state,
    save_weights,
)
from distill3d.train.cost import Stopwatch, told_time
from distill3d.train.ema import WeightAverage
from distill3d.train.evaluation import BEST_OF_REPORTED, EVALUATION, best_of_reported, logged_evaluations
from distill3d.train.htl import HierarchicalTaskLearning
from distill3d.train.loggers import Logger, LoggerName, open_loggers
from distill3d.train.precision import Precision, choose_precision
from distill3d.train.progress import ProgressBar
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.schedules import build_optimiser, first_beta, learning_rate
from distill3d.train.sources import Verdict, root_of, source_of
from distill3d.train.state import Layout, filled, restore_moments
from distill3d.train.teachers import Teacher, refuse_overlap, refuse_own_labels, trained_on
from distill3d.train.unlabelled import TeachersObjects, supervised_losses
from distill3d.transfers import fetched

if TYPE_CHECKING:  # importing it takes a second, which help texts and checks need not wait for
    from lightning_fabric import Fabric

#: The first steps, which are slower, and those that the estimate of time is of.
TIMED = 20
METRICS, CONFIG = "metrics.jsonl", "config.yaml"
#: Steps after which an accelerator's losses are read, at the latest: to read them is to wait for it.
UNREAD_STEPS = 10


@dataclass(frozen=True)
class RunOptions:
    """What does not change the result: where, how many processes, what is shown."""

    out: Path = Path("runs")
    devices: Annotated[int, Between(1, 1024)] = 1
    nodes: Annotated[int, Between(1, 1024)] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Between(1, 1024)] | None = None  # of torch, per process; None leaves torch's choice
    workers: Workers = 0  # processes that load data
    checkpoint_steps: Number = 200  # steps between states within an epoch; each epoch's end is always written
    log_steps: Number = 10  # steps between lines of metrics.jsonl
    progress: bool = True
    live: bool = True  # a bar that redraws itself, on terminals; otherwise a line now and then
    allow_overlap: bool = False  # train or evaluate on frames that a teacher or the model itself has seen
    tensorboard: bool = True
    loggers: tuple[LoggerName, ...] = ()  # beside it


@dataclass(frozen=True)
class Unread:
    """The losses of a step that still lie on the device."""

    step: int
    lr: float
    parts: list[tuple[float, list[str], list[str], Tensor]]  # share of the batch, frames, names of terms, their values


class TrainingStep(nn.Module):
    """Student and terms as one module, so that data parallelism sees every trained parameter.

    ``forward`` gives all weighted loss terms by name, the student's own first, from the student's targets and the
    answers of its teachers; ``teachers`` are asked for nothing but how sure they are of what they answered.
    """

    def __init__(self, student: Detector, terms: Iterable[Term], teachers: dict[str, Detector] | None = None) -> None:
        super().__init__()
        self.student = student
        self.terms = nn.ModuleList(terms)
        self.progress = 0.0  # share of the stage's steps that are done, for terms that look at it
        # In a tuple, which hides them from parameters() and state_dict().
        self._teachers = tuple((teachers or {}).items())

    @property
    def teachers(self) -> dict[str, Detector]:
        """By the names of their stages."""
        return dict(self._teachers)

    def forward(self, batch: Batch | SurroundBatch, targets: Any, answers: dict[str, Outputs]) -> dict[str, Tensor]:
        """
        Raises:
            UserError: a term is called as another one, or as a loss of the student's own.
        """
        outputs = self.student.forward_at(batch, targets)
        losses = supervised_losses(self.student, outputs, batch, targets)
        context = Context(outputs, answers, batch, targets, self.student, self.teachers, dict(losses), self.progress)
        for term in self.terms:
            assert isinstance(term, Term)
            if term.name in losses:
                raise UserError(
                    f"two losses are called {term.name!r}, the second a term of the method: give it a name of its own, "
                    f"other than {', '.join(losses)}"
                )
            losses[term.name] = term.weight * term(context)
        return losses


def build_step(stage: StageConfig, teachers: dict[str, Teacher]) -> TrainingStep:
    """The untrained student of a stage with the terms of its method.

    Of several teachers the first one named by the stage tells the terms its tap channels.
    """
    student = build_detector(stage.detector)
    if stage.schedule.norm_momentum is not None:
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = stage.schedule.norm_momentum
    if stage.method is None:
        return TrainingStep(student, [])
    taught_by = teachers[stage.teachers[0]].detector.tap_channels if teachers else {}
    terms = build_terms(stage.method, student.tap_channels, taught_by)
    return TrainingStep(student, terms, {name: teacher.detector for name, teacher in teachers.items()})


def write_settings(recipe: Recipe, stage: StageConfig, folder: Path) -> None:
    """The resolved recipe beside a stage's folder, and the stage's own settings in it."""
    write_text(folder.parent / RECIPE, yaml.safe_dump(to_plain(recipe), sort_keys=False))
    write_text(folder / CONFIG, yaml.safe_dump(to_plain(stage), sort_keys=False))


def train_stage(
    recipe: Recipe, stage: StageConfig, folder: Path, options: RunOptions, fabric: Fabric
) -> dict[str, Any]:
    """Trains one stage to its end, from its last state if there is one, and writes its folder. Returns its card.

    Raises:
        UserError: the data set, a teacher or an earlier state does not fit, or a loss is not finite.
    """
    run = _Run(recipe, stage, folder, options, fabric)
    run.resume()
    if run.is_first:
        # Not before now: whatever there was to refuse has been refused.
        write_settings(recipe, stage, folder)
        run.open_loggers()
    fabric.barrier()
    while run.epoch < stage.schedule.epochs:
        run.train_epoch()
    return run.finish()


def refuse_infinite(unread: Unread) -> None:
    """Stops a training of whose losses one is no finite number.

    Raises:
        UserError: one is not.
    """
    for _, frames, names, values in unread.parts:
        for name, value in zip(names, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise UserError(f"loss term {name!r} is {value} at step {unread.step}, frames {frames}")


class _Run:
    """The state of one stage's training."""

    def __init__(self, recipe: Recipe, stage: StageConfig, folder: Path, options: RunOptions, fabric: Fabric) -> None:
        self.recipe, self.stage, self.folder, self.options, self.fabric = recipe, stage, folder, options, fabric
        schedule = stage.schedule
        self.precision: Precision = choose_precision(recipe.precision, fabric.device)
        self.seed = recipe.seed + stage.seed_offset
        self.source = source_of(recipe)
        self.data = self.source.training(stage)
        self.eval_data = self.source.evaluation(stage, recipe.dataset.eval_split)
        self.sampler = EpochSampler(
            len(self.data), schedule.batch_size, self.seed, drop_last=schedule.drop_last,
            rank=fabric.global_rank, world=fabric.world_size,
        )  # fmt: skip
        mapping = self.source.mapping
        self.teachers = {name: self._teacher(name, mapping) for name in stage.teachers}
        self.teachers_objects = TeachersObjects.of(stage, self.source.height_scale, self.seed)
        started_from = {name: load_weights(folder.parent / name) for name in stage.starts_from}
        for name, (_, card) in started_from.items():
            require(card, folder.parent / name, "trained_on.frames")
        self.labelled_by = labeller_of(root_of(recipe), self.data.frame_ids)
        cards = [*(t.card for t in self.teachers.values()), *(card for _, card in started_from.values()),
                 *([self.labelled_by] if self.labelled_by is not None else [])]  # fmt: skip
        self.seen = trained_on(recipe.dataset.identity, self.data.frame_ids, [card["trained_on"] for card in cards])
        refuse_overlap({"trained_on": self.seen}, f"stage {stage.name!r}", recipe.dataset.identity,
                       self.eval_data.frame_ids, options.allow_overlap, mapping,
                       self.source.scenes(self.eval_data))  # fmt: skip
        refuse_own_labels(root_of(recipe), self.eval_data.frame_ids, options.allow_overlap)

        torch.manual_seed(self.seed)
        step = build_step(stage, self.teachers)
        if stage.init is not None:
            load_into(step.student, started_from[stage.init][0], str(folder.parent / stage.init))
        self.inherited = {name: self._inherit(step.student, name, started_from[name][0]) for name in stage.inherit}
        if fabric.world_size > 1:
            share_batch_norm(step)
        step = step.to(fabric.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser = build_optimiser(step, schedule)
        self.model, self.optimiser = fabric.setup(step, self.optimiser)
        self.step: TrainingStep = step
        self.average = (
            WeightAverage(step.student, schedule.ema, schedule.ema_warmup) if schedule.ema is not None else None
        )
        self.tasks = HierarchicalTaskLearning(stage.tasks, schedule.epochs) if stage.tasks is not None else None
        self.best: dict[str, Any] | None = None  # {"score", "epoch", "weights"} with keep="best"
        self.shorter = changes.shorter(recipe, stage, folder)
        self.epoch = self.step_in_epoch = 0
        self.recent: list[tuple[float, dict[str, float]]] = []  # learning rate and terms of the steps not yet logged
        self.unread: list[Unread] = []  # of steps after those
        self.shown: dict[str, float] = {}  # the last losses that were read
        self.unread_steps = 1 if fabric.device.type == "cpu" else UNREAD_STEPS
        self.logged = 0  # lines of metrics.jsonl
        self.stopwatch = Stopwatch(fabric.device)
        self.told = 0  # steps of this process that a person has seen
        self.loggers: list[Logger] = []

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.fabric.global_rank == 0

    @property
    def global_step(self) -> int:
        return self.epoch * self.sampler.steps + self.step_in_epoch

    def _teacher(self, name: str, mapping: RawMapping | None) -> Teacher:
        assert self.stage.method is not None
        path = self.folder.parent / name
        repeatable = self.source.repeatable(self.stage, self.recipe.stage(name).detector.input)
        teacher = Teacher(path, teachers_norms(self.stage.method), repeatable, len(self.data))
        require(teacher.card, path, "trained_on.frames")
        refuse_overlap(teacher.card, f"teacher {path}", self.recipe.dataset.identity, self.eval_data.frame_ids,
                       self.options.allow_overlap, mapping, self.source.scenes(self.eval_data))  # fmt: skip
        return teacher.to(self.fabric.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def _inherit(self, student: Detector, name: str, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Takes over from an earlier stage what fits; says what that was.

        Raises:
            UserError: nothing fits.
        """
        result = load_matching(student, weights, self.stage.inherit_parts)
        if result["taken"] == 0:
            raise UserError(f"{self.folder.parent / name}: holds nothing that stage {self.stage.name!r} could inherit")
        return result

    # ------------------------------------------------------------------------------------------------------- the state

    def resume(self) -> None:
        """Takes up the last state, if there is one, and drops what was logged after it.

        Raises:
            UserError: the state is damaged, or none of this stage.
        """
        if (path := last_state(self.folder)) is not None:
            state = load_state(path)
            self._layout().refuse_unfit(state, path)
            self.step.load_state_dict(state["model"])
            restore_moments(self.optimiser, state["optimiser"]["state"])
            if self.average is not None:
                self.average.state = filled(self.average.state, state["average"])
            if self.tasks is not None:
                self.tasks.load_state_dict(state["tasks"])
            self.best = state["best"]
            self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
            torch.set_rng_state(state["rng"])
            self.recent, self.logged = [(lr, values) for lr, values in state["recent"]], state["logged"]
            if state["fingerprint"] == self.shorter:  # its last evaluation was logged after its last state
                self.logged = len(read_text(self.folder / METRICS).splitlines())
            if path.name != STATE and self.is_first:
                where = f"epoch {self.epoch + 1}, step {self.step_in_epoch}"
                print(f"{self.folder / STATE} is not there: goes on from {path.name}, {where}", file=sys.stderr)
        if self.is_first:
            self._keep_log(self.logged)

    def open_loggers(self) -> None:
        """Opens what the options ask for; its files are known as a training's by the settings beside them."""
        about = {"recipe": self.recipe.name, "stage": self.stage.name, "seed": self.seed,
                 **to_plain(self.stage.schedule)}  # fmt: skip
        options = self.options
        self.loggers = open_loggers(options.loggers, options.tensorboard, self.folder, self.global_step, about)

    def _keep_log(self, count: int) -> None:
        """Drops the lines that were logged after the state was saved: they are logged again."""
        log = self.folder / METRICS
        if log.exists():
            lines = read_text(log).split("\n")[:-1]  # what follows the last line break was cut short
            write_text(log, "".join(f"{line}\n" for line in lines[:count]))

    def _layout(self) -> Layout:
        return Layout(
            self.recipe.stage_fingerprint(self.stage), self.stage.schedule.epochs, self.sampler.steps, self.step,
            self.step.student, self.optimiser, self.average, self.tasks,
            self.recipe.evaluation.keep == "best", self.shorter,
        )  # fmt: skip

    def save(self) -> None:
        """The state after the last complete step; written by the first process alone.

        Raises:
            UserError: a loss or a weight is not finite, or the file cannot be written.
        """
        self.read_losses()
        if self.is_first:
            state = self._layout().gather(self.epoch, self.step_in_epoch, self.best, self.recent, self.logged)
            refuse_not_finite(state["model"], f"{self.folder / STATE} was not written at step {self.global_step}")
            save_state(self.folder / STATE, state)

    def log(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl, and its numbers for the loggers."""
        if not self.is_first:
            return
        append_text(self.folder / METRICS, json.dumps(record) + "\n")
        self.logged += 1
        for logger in self.loggers:
            logger.log(scalars, record["step"])

    # -------------------------------------------------------------------------------------------------------- training

    def train_epoch(self) -> None:
        """The rest of the present epoch, its evaluation where due, and the state at its end."""
        schedule, order = self.stage.schedule, self.sampler.order(self.epoch)
        self.model.train()
        if self.tasks is not None and self.step_in_epoch == 0:
            self.begin_tasks(self.tasks)
        title = f"{self.stage.name} epoch {self.epoch + 1}/{schedule.epochs}"
        steps = self.batches(order, self.epoch, self.step_in_epoch)
        visible, before = self.options.progress and self.is_first, self.step_in_epoch
        if visible and not self.told:
            self.tell_beginning()
        self.stopwatch.start()
        last = self.epoch + 1 == schedule.epochs
        evaluated = not last and (self.epoch + 1) % self.recipe.evaluation.every == 0
        judged = self.recipe.evaluation.keep == "best"
        with noted() as asked:
            with ProgressBar(title, self.sampler.steps, before, visible, self.options.live) as bar:
                for parts in steps:
                    self.train_step(*parts)
                    bar.advance(" ".join(f"{name} {value:.3f}" for name, value in self.shown.items()))
                    if visible and self.told == TIMED:
                        self.tell_time(self.step_in_epoch - before)
                    self.told += 1
                    stop = self.agreed(asked())
                    whole = self.step_in_epoch == self.sampler.steps
                    if stop or (self.step_in_epoch % self.options.checkpoint_steps == 0 and not whole):
                        self.save()
                    if stop:
                        self.end(stop)
            if self.step_in_epoch > before:
                self.read_losses()  # what is timed has been done by then
                cost = self.stopwatch.read(self.step_in_epoch - before)
                self.log({"kind": "cost", "step": self.global_step, "epoch": self.epoch, **cost},
                         {"cost/seconds": cost["seconds"]})  # fmt: skip
            if not (evaluated or judged):
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
                self.save()
            elif self.step_in_epoch > before:
                self.save()  # with all steps of the epoch: who ends it while it evaluates loses no training
            if stop := self.agreed(asked()):
                self.end(stop)
        if evaluated or judged:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.is_first and evaluated:
                self.log_evaluation(self.evaluate())
            if self.is_first and judged:
                self.keep_if_best()
            self.save()
        self.fabric.barrier()

    def tell_beginning(self) -> None:
        """Says, once, what is trained on what."""
        schedule, left = self.stage.schedule, self.steps_left
        skipped = getattr(self.data, "skipped", 0)
        without = f" ({skipped} without a scan left out)" if skipped else ""
        print(
            f"{self.stage.name}: {schedule.epochs} epochs of {len(self.data)} frames{without}, batches of "
            f"{schedule.batch_size}, {left} steps to go; {self.fabric.device.type}, {self.precision.name}",
            file=sys.stderr,
        )

    def tell_time(self, steps: int) -> None:
        """Says, once, how long the steps will take, from those since the stopwatch began; evaluations come on top."""
        self.read_losses()  # what is timed has been done by then
        seconds = self.stopwatch.read(steps)["seconds"] * self.steps_left
        print(f"{self.stage.name}: about {told_time(seconds)} for the steps to go", file=sys.stderr)

    @property
    def steps_left(self) -> int:
        return self.stage.schedule.epochs * self.sampler.steps - self.global_step

    def end(self, number: int) -> NoReturn:
        """Ends the training as asked by a signal, in all its processes, after the state was saved."""
        self.fabric.barrier()
        raise Stopped(number)

    def agreed(self, number: int) -> int:
        """A number that all processes of a training have, from what each has: the greatest."""
        if self.fabric.world_size == 1:
            return number
        greatest = self.fabric.all_reduce(torch.tensor(number, device=self.fabric.device), reduce_op="max")
        assert isinstance(greatest, Tensor)
        return int(greatest)

    def begin_tasks(self, tasks: HierarchicalTaskLearning) -> None:
        """The weights of the epoch's terms; before the first epoch a pass over the data without learning, if asked."""
        if self.epoch == 0 and tasks.config.first_pass:
            order = self.sampler.order(0)
            visible = self.options.progress and self.is_first
            title = f"{self.stage.name} losses before training"
            with ProgressBar(title, self.sampler.steps, 0, visible, self.options.live) as bar, torch.no_grad():
                for parts in self.batches(order, 0):
                    for batch in parts:
                        tasks.observe(self.losses(batch))
                    bar.advance("")
        weights = tasks.begin_epoch(self.epoch)
        self.log({"kind": "tasks", "step": self.global_step, "epoch": self.epoch, "weights": weights},
                 {f"tasks/{k}": v for k, v in weights.items()})  # fmt: skip

    def batches(self, order: list[int], epoch: int, start: int = 0) -> Iterator[list[Any]]:
        """The batches of an epoch from step ``start`` on, each in the parts in which it is computed."""
        parts = self.stage.schedule.accumulate
        size, workers = self.sampler.local_batch // parts, self.options.workers
        steps, step = batches(self.data, order, size, self.seed, epoch, workers, start * parts), []
        for batch in steps:
            step.append(batch.to(self.fabric.device))
            if len(step) == parts:
                yield step
                step = []
        if step:
            yield step

    def losses(self, batch: Batch | SurroundBatch) -> dict[str, Tensor]:
        """All loss terms of a batch."""
        with self.precision.autocast(self.fabric.device):
            if self.teachers_objects is not None and isinstance(batch, Batch):
                batch = self.teachers_objects.into(batch, self.teachers, self.epoch)
            targets = self.step.student.encode(batch)
            asked = self.teachers if len(self.step.terms) else {}  # without terms nobody looks at the answers
            answers = {name: teacher(batch, targets) for name, teacher in asked.items()}
            return self.model(batch, targets, answers)

    def train_step(self, *parts: Batch | SurroundBatch) -> None:
        """One update from the parts of a batch.

        Raises:
            UserError: a term is not finite, of this step or on accelerators of one of the last ``UNREAD_STEPS``.
        """
        schedule = self.stage.schedule
        lr = learning_rate(schedule, self.epoch, self.step_in_epoch, self.sampler.steps)
        beta = first_beta(schedule, self.epoch, self.step_in_epoch, self.sampler.steps)
        for group in self.optimiser.param_groups:
            group["lr"], group["betas"] = lr * group["share"], (beta, schedule.betas[1])
        self.step.progress = self.global_step / (schedule.epochs * self.sampler.steps)
        self.unread.append(Unread(self.global_step, lr, []))
        self.optimiser.zero_grad()
        for number, batch in enumerate(parts, 1):
            share = len(batch) / sum(map(len, parts))
            with self.fabric.no_backward_sync(self.model, enabled=number < len(parts)):
                self.backward(batch, share)
        if schedule.clip_norm is not None:
            self.fabric.clip_gradients(
                self.model, self.optimiser, max_norm=schedule.clip_norm, error_if_nonfinite=False
            )
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.step.student, self.global_step + 1)
        self.step_in_epoch += 1
        if len(self.unread) >= self.unread_steps or self.global_step % self.options.log_steps == 0:
            self.read_losses()
        if self.global_step % self.options.log_steps == 0:
            self.log_recent()

    def backward(self, batch: Batch | SurroundBatch, share: float) -> None:
        """Adds to the gradients what one part of a batch gives, times its share.

        Raises:
            UserError: a term is not finite; on accelerators that shows when it is read.
        """
        losses = self.losses(batch)
        if self.tasks is not None:
            self.tasks.observe(losses)
            losses = self.tasks.weigh(losses)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self.unread[-1].parts.append((share, batch.frame_ids, list(losses), values))
        if self.unread_steps == 1:  # before any weight learns from it
            refuse_infinite(self.unread[-1])
        self.fabric.backward(total if share == 1 else share * total)

    def read_losses(self) -> None:
        """Takes over what the device has said of the steps since it was last asked, by one wait for it.

        Raises:
            UserError: a term is not finite; or a step has others than those before it.
        """
        told = fetched({(i, j): part[3] for i, one in enumerate(self.unread) for j, part in enumerate(one.parts)})
        unread, self.unread = self.unread, []
        for i, one in enumerate(unread):
            one = replace(one, parts=[(*part[:3], told[i, j]) for j, part in enumerate(one.parts)])
            refuse_infinite(one)
            values: dict[str, float] = {}
            for share, _, names, said in one.parts:
                for name, value in zip(names, said.tolist(), strict=True):
                    values[name] = values.get(name, 0.0) + share * value
            if self.recent and self.recent[-1][1].keys() != values.keys():
                raise UserError(f"the state's last losses are {', '.join(self.recent[-1][1])}, now {', '.join(values)}")
            self.recent.append((one.lr, values))
            self.shown = values

    def log_recent(self) -> None:
        """The means since the last such line."""
        count = len(self.recent)
        terms = {name: sum(v[name] for _, v in self.recent) / count for name in self.recent[-1][1]}
        record = {"loss": sum(terms.values()), "lr": self.recent[-1][0]}
        self.log({"kind": "train", "step": self.global_step, "epoch": self.epoch, **record, "terms": terms},
                 record | {f"terms/{k}": v for k, v in terms.items()})  # fmt: skip
        self.recent = []

    # ------------------------------------------------------------------------------------------- evaluation and the end

    def weights(self) -> dict[str, Tensor]:
        """What is evaluated and shared: the student's own weights, or their average."""
        own = self.step.student.state_dict() if self.average is None else self.average.state
        return {name: value.detach().clone() for name, value in own.items()}

    def evaluate(self, data: Dataset | None = None, folder: Path | None = None) -> Verdict:
        """The official evaluation of the present ``weights``."""
        student, own = self.step.student, self.step.student.state_dict()
        held = {name: value.clone() for name, value in own.items()} if self.average is not None else None
        if held is not None:
            student.load_state_dict(self.weights())
        verdict = self.source.judge(student, data or self.eval_data, self.fabric.device, self.precision, folder)
        if held is not None:
            student.load_state_dict(held)
        return verdict

    def log_evaluation(self, verdict: Verdict) -> None:
        record = {"kind": "eval", "step": self.global_step, "epoch": self.epoch, **verdict.metrics}
        self.log(record, verdict.scalars)

    def keep_if_best(self) -> None:
        """Remembers the present weights if they are the best so far on the selection split."""
        split = self.recipe.dataset.select_split
        assert split is not None
        score = self.evaluate(self.source.evaluation(self.stage, split)).score
        if self.best is None or score > self.best["score"]:
            self.best = {
                "score": score,
                "epoch": self.epoch,
                "weights": {k: v.cpu() for k, v in self.weights().items()},
            }

    def finish(self) -> dict[str, Any]:
        """Evaluates, and writes predictions, weights and card."""
        card: dict[str, Any] = {}
        if self.is_first:
            if self.best is not None:
                self.average = None
                self.step.student.load_state_dict(self.best["weights"])
            self.log_evaluation(self.evaluate(folder=self.folder))
            card = self.card() | self.tell_best_of_reported()
            save_weights(self.folder, self.weights(), card)
            (self.folder / PREVIOUS).unlink(missing_ok=True)
            for logger in self.loggers:
                logger.close()
        self.fabric.barrier()
        return card

    def tell_best_of_reported(self) -> dict[str, Any]:
        """Adds the best of all evaluations on the reported split to the log and evaluation.json, if the recipe asks for
        it; returns what the card says of it."""
        if not self.recipe.evaluation.best_of_reported:
            return {}
        *during, last = logged_evaluations(read_text(self.folder / METRICS))
        evaluations = {line["epoch"]: line for line in during}
        evaluations[self.epoch if self.best is None else self.best["epoch"]] = last
        best = best_of_reported(evaluations, self.recipe.dataset.eval_split)
        if best is None:
            return {}
        self.log({"kind": BEST_OF_REPORTED, "step": self.global_step, **best}, {})
        path = self.folder / EVALUATION
        write_text(path, json.dumps({**read_json(path), BEST_OF_REPORTED: best}, indent=1))
        return {BEST_OF_REPORTED: best}

    def card(self) -> dict[str, Any]:
        """What someone who is handed the weights needs to know."""
        stage, method = self.stage, self.stage.method
        return {
            "recipe": self.recipe.name, "stage": stage.name, "role": stage.role,
            "detector": detector_name(stage.detector), "config": to_plain(stage.detector),
            "input": stage.detector.input,
            "method": None if method is None else method_name(method), "method_config": to_plain(method),
            "teachers": list(stage.teachers), **self._labeller_card(),
            "init": stage.init, "inherited": self.inherited, "seed": self.seed,
            "epochs": stage.schedule.epochs, "kept": "last" if self.best is None else f"epoch {self.best['epoch']}",
            "parameters": sum(p.numel() for p in self.step.student.parameters()),
            "precision": self.precision.name, "device": self.fabric.device.type, "world_size": world_size(),
            **self.source.card(self.eval_data),
            "fingerprint": self.recipe.stage_fingerprint(stage),
            "trained_on": self.seen, "note": self.recipe.note,
            "versions": {
                "distill3d": distill3d.__version__, "torch": torch.__version__, "python": platform.python_version(),
            },
        }  # fmt: skip

    def _labeller_card(self) -> dict[str, Any]:
        """Who labelled the frames, where that was no person."""
        if self.labelled_by is None:
            return {}
        return {"labelled_by": {name: value for name, value in self.labelled_by.items() if name != "trained_on"}}
