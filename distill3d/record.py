"""A run's frames as a recording for the rerun viewer: what lies in its folder is read, and only maps of the ground are
asked of its networks anew."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill3d.answers import own_maps
from distill3d.devices import find_device
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_boxes import CLASSES
from distill3d.files import refuse_foreign, write_output
from distill3d.train.progress import ProgressBar
from distill3d.view import gallery
from distill3d.view.bev_maps import GroundMap
from distill3d.view.distance import LEAST_SCORE
from distill3d.view.gallery import Choice, cast, drawn_classes, rivals
from distill3d.view.pieces import Shown, shown
from distill3d.view.recording import Axes, Frame, kitti_frame, library, recorded, surround_frame
from distill3d.view.report import kind_of
from distill3d.view.runs import PREPARATION, TAKEN, read_runs, with_root
from distill3d.view.surround_gallery import Drives, trained_classes

ENDING = ".rrd"
#: Why a frame is there that was named.
NAMED = "asked for by name"
#: Maps of the ground of every frame, by stage and name.
Maps = dict[str, dict[tuple[str, str], GroundMap]]


@dataclass(frozen=True)
class Recorded:
    """What was written."""

    path: Path
    frames: tuple[str, ...]
    stages: tuple[str, ...]
    lacks: tuple[str, ...]  # what was left out, a sentence each

    def text(self) -> str:
        """The same in words."""
        frames = "1 frame" if len(self.frames) == 1 else f"{len(self.frames)} frames"
        written = f"{self.path}: {frames} with labels and the boxes of {', '.join(self.stages)}"
        return "\n".join([*self.lacks, written, f"look at them with: rerun {self.path}"])


def record_run(
    run: Path, out: Path, frames: int = 8, names: Sequence[str] = (), stages: Sequence[str] = (),
    data_root: Path | None = None, least_score: float = LEAST_SCORE, maps: bool = True, device: str = "auto",
) -> Recorded:  # fmt: skip
    """Writes frames of the split that a run was evaluated on as a recording for the rerun viewer.

    Args:
        run: a run's folder or that of one of its stages.
        out: the file, whose name ends in ``.rrd``.
        frames: how many, chosen as a report's gallery chooses.
        names: of the frames, instead of ``frames``: ids in KITTI's layout, sample tokens in nuScenes'.
        stages: whose boxes; by default of all that have predictions.
        data_root: the data set's folder, instead of the one in recipe.yaml.
        least_score: boxes that are less sure are left out.
        maps: whether networks that look at the ground are asked what they see there.
        device: where they are asked.

    Raises:
        UserError: rerun-sdk is not installed, there are no predictions, something named is not there, data or
            predictions cannot be read, or the file cannot be written.
    """
    library()
    if out.suffix != ENDING:
        raise UserError(f"--out is {str(out)!r}, expected a name that ends in {ENDING}")
    where = find_device(device)
    refuse_foreign(out)
    entries, lacks = _recorded(shown(with_root(read_runs([run]), data_root)), run, stages)
    first = next(iter(entries.values())).stage
    source = (_Drives if first.layout == "nuscenes" else _Streets)(entries, least_score)
    chosen = source.named(names) if names else source.telling(frames)
    ground: Maps = {frame: {} for frame in chosen}
    for stage, entry in entries.items() if maps else ():
        try:
            for frame, found in own_maps(entry.stage, list(chosen), where).items():
                ground[frame] |= {(stage, name): one for name, one in found.items()}
        except (UserError, OSError) as error:
            lacks.append(f"There are no maps of the ground of {stage}: {error}.")

    def read() -> Iterator[Frame]:
        with ProgressBar(f"{out.name}: frames", len(chosen)) as bar:
            for frame, choice in chosen.items():
                yield source.frame(frame, choice, ground[frame])
                bar.advance()

    looks = {stage: entry.look for stage, entry in entries.items()}
    content = recorded(read(), looks, first.run, source.axes)
    write_output(out, lambda part: part.write_bytes(content))
    return Recorded(out, tuple(chosen), tuple(entries), tuple(lacks))


def _recorded(everyone: Sequence[Shown], run: Path, names: Sequence[str]) -> tuple[dict[str, Shown], list[str]]:
    """The named stages of a run, or all that can be recorded and a sentence for each other.

    Raises:
        UserError: there is no such stage, or it has no predictions.
    """
    stages = [one.stage for one in everyone]
    detectors = [stage for stage in stages if stage.role != PREPARATION]
    known = ", ".join(stage.name for stage in detectors) or "none"
    unknown = next((name for name in names if all(name != stage.name for stage in detectors)), None)
    if unknown is not None:
        raise UserError(f"--stages names {unknown!r}, but {run} has no such stage with boxes: it has {known}")
    wanted = [stage for stage in detectors if not names or stage.name in names]
    ready = [stage for stage in wanted if stage.finished and stage.has_predictions]
    absent = [stage for stage in wanted if stage not in ready]
    if not ready or (names and absent):
        reasons = "".join(f"; {problem}" for problem in (absent or stages)[0].problems)
        of = f"stage {absent[0].name} of {run}" if names else f"{run}"
        why = f"was {TAKEN}" if absent and absent[0].unjudged else "is not finished or has no predictions"
        raise UserError(f"{of} {why}: there are no boxes to record{reasons}")
    lacks = [
        f"{stage.name} was {TAKEN}: it is left out." if stage.unjudged
        else f"{stage.name} is not finished or has no predictions: it is left out." for stage in absent
    ]  # fmt: skip
    return {one.stage.name: one for one in everyone if one.stage in ready}, lacks


def _rivals(entries: dict[str, Shown]) -> tuple[str, str] | None:
    """The baseline and the student that a report's gallery would compare, by the names of their stages."""
    stages = [one.stage for one in entries.values()]
    parts = cast(list(entries.values()), kind_of(stages).measures(stages).first.of)
    compared = rivals(parts)
    return None if compared is None else (parts[compared[0]].stage.name, parts[compared[1]].stage.name)


class _Streets:
    """The evaluation split of a run in KITTI's layout."""

    axes: Axes = "FLU"

    def __init__(self, entries: dict[str, Shown], least_score: float) -> None:
        self.entries, self.least_score = entries, least_score
        self.stages = {name: one.stage for name, one in entries.items()}
        self.first, self.classes = next(iter(self.stages.values())), drawn_classes(entries)
        self.dataset = gallery.open_dataset(self.first)
        self.place = {frame: index for index, frame in enumerate(self.dataset.frame_ids)}

    def named(self, frames: Sequence[str]) -> dict[str, Choice]:
        """Frames by their ids, in this order."""
        _refuse_unknown(frames, self.place, f"the split {self.dataset.config.split!r}")
        for frame in frames:
            for name, stage in self.stages.items():
                if not gallery.is_predicted({name: stage}, frame):
                    raise UserError(f"{stage.predictions} has no result file of frame {frame}")
        return {frame: Choice(self.place[frame], NAMED) for frame in frames}

    def telling(self, count: int) -> dict[str, Choice]:
        """The most telling frames, in the split's order."""
        chosen = gallery.telling(self.stages, _rivals(self.entries), self.dataset, count)
        return dict(sorted(chosen.items(), key=lambda entry: self.place[entry[0]]))

    def frame(self, frame: str, choice: Choice, maps: dict[tuple[str, str], GroundMap]) -> Frame:
        sample = gallery.read_frame(self.dataset, frame)
        found = gallery.detected(self.stages, frame, self.least_score)
        labels = gallery.true_boxes(sample, self.first.rules, self.classes)
        return kitti_frame(sample, choice.reason, labels, found, self.first.names.names, maps)


class _Drives:
    """The evaluation split of a run on surround views."""

    def __init__(self, entries: dict[str, Shown], least_score: float) -> None:
        stages = {name: one.stage for name, one in entries.items()}
        self.entries, self.drives = entries, Drives(stages, trained_classes(entries), least_score)
        self.axes: Axes = "RFU" if self.drives.dataset.config.ego_frame == "lidar_sensor" else "FLU"

    def named(self, frames: Sequence[str]) -> dict[str, Choice]:
        """Samples by their tokens, in this order."""
        place = {token: index for index, token in enumerate(self.drives.tokens)}
        _refuse_unknown(frames, place, "the evaluated split with predictions of every stage")
        return {frame: Choice(place[frame], NAMED) for frame in frames}

    def telling(self, count: int) -> dict[str, Choice]:
        """The most telling samples, in the split's order."""
        chosen = sorted(self.drives.telling(_rivals(self.entries), count), key=lambda choice: choice.index)
        return {self.drives.tokens[choice.index]: choice for choice in chosen}

    def frame(self, frame: str, choice: Choice, maps: dict[tuple[str, str], GroundMap]) -> Frame:
        return surround_frame(self.drives.moment(choice), self.drives.dataset.classes, CLASSES, maps)


def _refuse_unknown(frames: Sequence[str], there: Collection[str], where: str) -> None:
    """Keeps frames out that are not there.

    Raises:
        UserError: one is not.
    """
    unknown = next((frame for frame in frames if frame not in there), None)
    if unknown is not None:
        raise UserError(f"--names has {unknown!r}, which is no frame of {where}")
