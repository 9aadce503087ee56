"""Where the numbers of a training go beside metrics.jsonl: TensorBoard, a CSV file, Weights & Biases, MLflow."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from distill3d.errors import UserError
from distill3d.files import append_text, read_text, write_text

#: Loggers beside TensorBoard's, which is an option of its own.
LoggerName = Literal["csv", "wandb", "mlflow"]
#: The packages that are no part of a plain installation, by the extra of the same name.
EXTRAS = ("wandb", "mlflow")
CSV, HEAD = "metrics.csv", "step,name,value"
#: The project or experiment at the services, unless their own environment variables name another.
PROJECT = "distill3d"


@runtime_checkable
class Logger(Protocol):
    """Numbers of one stage by name and step."""

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def refuse_absent(names: Iterable[LoggerName]) -> None:
    """Looks for the loggers' packages before anything is trained.

    Raises:
        UserError: one is not installed.
    """
    for name in names:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise UserError(f"loggers: {name} is not installed: pip install 'distill3d[{name}]'")


def open_loggers(
    names: Iterable[LoggerName], tensorboard: bool, folder: Path, step: int, config: dict[str, Any]
) -> list[Logger]:
    """The loggers of a stage whose folder is given; what they had from ``step`` on is dropped, or comes again.

    ``config`` is what the services show of the stage.

    Raises:
        UserError: one of them cannot be opened.
    """
    kinds = {"csv": CsvLogger, "wandb": WandbLogger, "mlflow": MlflowLogger}
    opened: list[Logger] = [TensorBoardLogger(folder, step)] if tensorboard else []
    for name in dict.fromkeys(names):
        try:
            opened.append(kinds[name](folder, step, config))
        except UserError:
            raise
        except Exception as error:  # of a service anything
            raise UserError(f"loggers: {name} cannot be opened: {type(error).__name__}: {error}") from error
    return opened


class TensorBoardLogger:
    """Event files in the stage's folder."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class CsvLogger:
    """A line for each number: step, name, value."""

    def __init__(self, folder: Path, step: int, config: dict[str, Any]) -> None:
        self.path = folder / CSV
        lines = read_text(self.path).split("\n")[1:-1] if self.path.exists() else []
        numbers = (line.partition(",")[0] for line in lines)
        kept = [line for line, at in zip(lines, numbers, strict=True) if at.isdecimal() and int(at) <= step]
        write_text(self.path, "".join(f"{line}\n" for line in (HEAD, *kept)))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        append_text(self.path, "".join(f"{step},{name},{value!r}\n" for name, value in scalars.items()))

    def close(self) -> None:
        """Every line is written as it comes."""


class WandbLogger:
    """A run of Weights & Biases, the same one when training goes on; offline or not as its environment says."""

    def __init__(self, folder: Path, step: int, config: dict[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=folder.parent.name, name=_name(folder),
            id=_identity(folder), resume="allow", dir=str(folder), config=config,
        )  # fmt: skip

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowLogger:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, by default the folder ``mlruns`` beside the stage's."""

    def __init__(self, folder: Path, step: int, config: dict[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        place = None
        if "MLFLOW_TRACKING_URI" not in os.environ:  # a folder is read and written without a server or a database
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            place = (folder.parent.resolve() / "mlruns").as_uri()
        self.client: Any = mlflow.MlflowClient(tracking_uri=place)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = self.client.create_experiment(experiment) if found is None else found.experiment_id
        own = {"distill3d": _identity(folder)}
        same = self.client.search_runs([self.experiment], f"tags.distill3d = '{own['distill3d']}'", max_results=1)
        run = same[0] if same else self.client.create_run(self.experiment, tags=own, run_name=_name(folder))
        self.run = run.info.run_id
        if not same:
            for name, value in config.items():
                self.client.log_param(self.run, name, str(value)[:500])

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def _name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def _identity(folder: Path) -> str:
    """By which a service knows the stage's run again."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
