"""Numbers beside metrics.jsonl: a CSV file that a killed run goes on with, and services behind stand-ins."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from streets import small_recipe

from distill3d.errors import UserError
from distill3d.stop import Stopped
from distill3d.train.loggers import open_loggers
from distill3d.train.loop import RunOptions, _Run
from distill3d.train.recipe import EvaluationConfig, Recipe
from distill3d.train.stages import run_recipe

QUIET = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu", "log_steps": 1}


def recipe(root: Path) -> Recipe:
    return replace(small_recipe(root), evaluation=EvaluationConfig(every=1))


def run(root: Path, out: Path, *loggers: Any) -> Path:
    return run_recipe(recipe(root), RunOptions(out=out, loggers=loggers, **QUIET), ("baseline",)) / "baseline"


def rows(folder: Path) -> list[str]:
    """The lines of metrics.csv but for those of time."""
    return [line for line in (folder / "metrics.csv").read_text().splitlines() if ",cost/" not in line]


def test_csv(streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(streets, tmp_path / "whole", "csv")
    head, *lines = rows(whole)
    assert head == "step,name,value"
    logged = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = {(line["step"], line["loss"]) for line in logged if line["kind"] == "train"}
    found = [line.split(",") for line in lines]
    assert {(int(step), float(value)) for step, name, value in found if name == "loss"} == losses
    assert any(name == "terms/heatmap" for _, name, _ in found)
    original = _Run.train_step
    for step in (1, 3):
        taken: list[int] = []

        def interrupted(self: _Run, *parts: object, taken: list[int] = taken, step: int = step) -> None:
            taken.append(1)
            if len(taken) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, *parts)

        with monkeypatch.context() as patch:
            patch.setattr(_Run, "train_step", interrupted)
            with pytest.raises(Stopped):
                run(streets, tmp_path / str(step), "csv")
        again = run(streets, tmp_path / str(step), "csv")
        assert sorted(rows(again)) == sorted(rows(whole))


def test_a_damaged_csv_is_mended(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,name,value\n1,loss,2.5\nx\n3,loss,1.5\n2,lo")
    (logger,) = open_loggers(("csv", "csv"), False, tmp_path, 2, {})
    logger.log({"loss": 0.5}, 3)
    logger.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,name,value\n1,loss,2.5\n3,loss,0.5\n"


def test_absent_packages_are_told_before_the_first_step(streets: Path, tmp_path: Path) -> None:
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'distill3d\[{name}\]'"):
            run(streets, tmp_path, name)
    assert not list(tmp_path.iterdir())


class Service(ModuleType):
    """A package that notes what it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = SimpleNamespace(name=name)  # so that it counts as installed
        self.opened: list[dict[str, Any]] = []
        self.numbers: list[tuple[str, float, int]] = []
        self.ended = 0


def fake_wandb() -> Service:
    service = Service("wandb")

    def finish() -> None:
        service.ended += 1

    def init(**given: Any) -> Any:
        service.opened.append(given)
        note = lambda scalars, step: service.numbers.extend((n, v, step) for n, v in scalars.items())  # noqa: E731
        return SimpleNamespace(log=note, finish=finish)

    service.init = init
    return service


def fake_mlflow() -> Service:
    service = Service("mlflow")
    known: list[Any] = []

    class Client:
        def __init__(self, tracking_uri: str | None) -> None:
            self.tracking_uri = tracking_uri

        def get_experiment_by_name(self, name: str) -> Any:
            return None if not known else SimpleNamespace(experiment_id="7")

        def create_experiment(self, name: str) -> str:
            return "7"

        def search_runs(self, experiments: list[str], query: str, max_results: int) -> list[Any]:
            return [run for run in known if run.tag in query]

        def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
            service.opened.append({"name": run_name, "place": self.tracking_uri})
            known.append(SimpleNamespace(info=SimpleNamespace(run_id="r1"), tag=tags["distill3d"]))
            return known[-1]

        def log_param(self, run: str, name: str, value: str) -> None:
            assert len(value) <= 500

        def log_metric(self, run: str, name: str, value: float, step: int) -> None:
            service.numbers.append((name, value, step))

        def set_terminated(self, run: str) -> None:
            service.ended += 1

    service.MlflowClient = Client
    return service


@pytest.mark.parametrize("make", [fake_wandb, fake_mlflow])
def test_services(make: Any, streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = make()
    monkeypatch.setitem(sys.modules, service.__name__, service)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(streets, tmp_path / "runs", service.__name__)
    (opened,) = service.opened
    assert opened["name"] == "demo/baseline" and service.ended == 1
    steps = [step for name, _, step in service.numbers if name == "loss"]
    assert steps == [1, 2, 3, 4]
    open_loggers((service.__name__,), False, folder, 4, {})  # the same run is known again
    names = [one.get("id") for one in service.opened]
    assert len(set(names)) == 1 and (service.__name__ == "wandb" or len(service.opened) == 1)

    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(service, "init" if service.__name__ == "wandb" else "MlflowClient", broken)
    with pytest.raises(UserError, match=rf"loggers: {service.__name__} cannot be opened: ConnectionError: no answer"):
        open_loggers((service.__name__,), False, folder, 0, {})
