"""The command line. Heavy imports happen inside the command that needs them, so that ``--help`` answers at once."""

import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from distill3d import stop
from distill3d.console import BROKEN_PIPE, discard_output, prepare_streams, surroundings
from distill3d.errors import UserError, one_line
from distill3d.files import outputs
from distill3d.options import parse
from distill3d.settings import Between, Count, HeightScale, Number, Share, Weight

T = TypeVar("T")
#: Exit code of everything that a user can mend.
USER_ERROR = 2
#: As a word of the command line.
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
#: Options of predict that choose moments of surround views.
OF_MOMENTS = ("version", "split", "samples", "limit", "cameras")
#: Commands that keep their work: called again, they do what is left of it.
GOES_ON = ("autolabel", "demo", "synth", "train")


def main(arguments: list[str] | None = None) -> None:
    """Runs one command; mistakes that a user can mend are one sentence on stderr and exit code 2.

    So is what the machine or the system did not give (memory, a file, room on a disk); with DISTILL3D_TRACEBACK=1 in
    the environment that ends in a traceback.  A fault of this program always does.
    """
    prepare_streams()
    with stop.raised():
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            discard_output()
            code = BROKEN_PIPE
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """The exit code of one command.

    Raises:
        BrokenPipeError: nobody reads what it writes.
    """
    try:
        return _dispatch(arguments)
    except BaseException as error:
        # Libraries turn an interrupt in their midst, of an import above all, into errors of their own, which may have
        # become a sentence since.
        signal = stop.received()
        if signal is not None and (not isinstance(error, UserError) or error.__context__ is not None):
            _say(_stopped(arguments, signal.name))
            return stop.EXIT_BEGIN + signal
        if isinstance(error, BrokenPipeError):
            raise
        if isinstance(error, SystemExit):
            if isinstance(error.__context__, BrokenPipeError):  # rich ends so
                raise error.__context__ from None
            if not isinstance(error.code, str):
                return error.code or 0
            sentence = error.code
        elif isinstance(error, UserError):
            sentence = str(error)
        else:
            sentence = surroundings(error)
            if sentence is None or os.environ.get("DISTILL3D_TRACEBACK"):
                raise
        _say(sentence)
        return USER_ERROR


def _say(sentence: str) -> None:
    print(f"distill3d: {one_line(sentence)}", file=sys.stderr)


def _stopped(arguments: list[str], signal: str) -> str:
    """What a command that was asked to end leaves, and what happens next."""
    command = arguments[0] if arguments else "--help"
    begin = f"{command} was stopped by {signal}"
    if command in GOES_ON:
        return f"{begin}; the same command goes on where it was"
    if not outputs:
        return f"{begin}; nothing was written"
    more = f" and {len(outputs) - 1} more" if len(outputs) > 1 else ""
    return f"{begin}; written before that: {outputs[0]}{more}"


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = arguments
    if name == "--version":
        import distill3d

        print(distill3d.__version__)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {name!r}: {hint}")
    return COMMANDS[name](_without_plugins(rest)) or 0


def _without_plugins(arguments: list[str]) -> list[str]:
    """Imports what ``--plugin`` names, for any command, and gives the other arguments.

    Raises:
        UserError: that names nothing, or cannot be imported.
    """
    left, named = [], iter(arguments)
    for argument in named:
        if argument == "--plugin" or argument.startswith("--plugin="):
            plugin = argument.partition("=")[2] or next(named, "")
            if not plugin or plugin.startswith("-"):
                raise UserError("--plugin: expected the name of a module or a Python file")
            from distill3d.plugins import load_plugin

            load_plugin(plugin)
        else:
            left.append(argument)
    return left


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(
        ["usage: distill3d COMMAND ...", "", "Camera-only 3D object detectors, taught by LiDAR, depth and labels.", "",
         *lines, "", "distill3d COMMAND --help tells a command's options.",
         "--plugin MODULE, with any of them, makes your own methods, detectors and recipes known."]
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the commands


def demo(arguments: list[str]) -> None:
    """Synthetic streets -> teacher, baseline, distilled students -> report.html, within minutes."""

    from distill3d.synth.folder import DrawSeed

    @dataclass(frozen=True)
    class Options:
        out: Path = Path("runs/demo")  # folder of data, runs and report
        seed: DrawSeed = 0

    options = parse(Options, "demo", arguments)
    from distill3d.demo import run_demo

    run_demo(options.out, options.seed)


def synth(arguments: list[str]) -> None:
    """Write ray-cast streets, camera and LiDAR, in a data set's official layout."""
    import tyro

    from distill3d.synth.folder import DrawSeed, WriterWorkers
    from distill3d.synth.nuscenes_writer import SurroundStreetConfig, write_nuscenes
    from distill3d.synth.writer import StreetConfig, write_kitti

    @dataclass(frozen=True)
    class Options:
        folder: tyro.conf.Positional[Path]  # where to write
        layout: Literal["kitti", "nuscenes"] = "kitti"
        frames: Number = 600  # of nuscenes: key frames, rounded up to whole scenes
        seed: DrawSeed = 0
        val_share: Share = 1 / 3  # of the frames or scenes, for the split "val"
        workers: WriterWorkers | None = None  # processes; by default one per core
        street: StreetConfig = field(default_factory=StreetConfig)  # of layout kitti
        drive: SurroundStreetConfig = field(default_factory=SurroundStreetConfig)  # of layout nuscenes

    options = parse(Options, "synth", arguments)
    if options.layout == "kitti":
        write_kitti(
            options.folder, frames=options.frames, seed=options.seed, config=options.street,
            val_share=options.val_share, workers=options.workers,
        )  # fmt: skip
    else:
        write_nuscenes(
            options.folder, scenes=-(-options.frames // options.drive.frames_per_scene), seed=options.seed,
            config=options.drive, val_share=options.val_share, workers=options.workers,
        )  # fmt: skip
    print(options.folder)


def recipes(arguments: list[str]) -> None:
    """List the recipes, or show one with all its settings."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        name: tyro.conf.Positional[str | None] = None

    options = parse(Options, "recipes", arguments)
    from distill3d.recipe_index import recipe_entry, recipe_summaries

    if options.name is None:
        summaries = recipe_summaries()
        width = max(map(len, summaries))
        for name, summary in summaries.items():
            print(f"{name:{width}}  {summary}")
        return
    import yaml

    print(yaml.safe_dump(recipe_entry(options.name).settings, sort_keys=False), end="")


def train(arguments: list[str]) -> None:
    """Train the stages of a recipe; finished ones are skipped, an interrupted one goes on."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print("usage: distill3d train RECIPE [--data-root DIR] [--out DIR] [any field of the recipe]\n\n"
                  "distill3d train RECIPE --help tells its stages and what is changed most, --help-all all of it;\n"
                  "distill3d recipes lists the recipes.")  # fmt: skip
            return
        raise UserError("train: expected a recipe's name first, distill3d recipes lists them")
    from distill3d.recipe_index import recipe_entry, refuse_unknown

    if {"-h", "--help"} & set(arguments[1:]):
        print(recipe_entry(arguments[0]).overview)
        return
    refuse_unknown(arguments[0])
    import tyro

    from distill3d.plugins import load_installed
    from distill3d.recipes import get_recipe
    from distill3d.train.loop import RunOptions
    from distill3d.train.preflight import is_first_process
    from distill3d.train.recipe import Recipe
    from distill3d.train.stages import run_recipe

    load_installed()
    base = get_recipe(arguments[0])

    @dataclass(frozen=True)
    class Options:
        recipe: Annotated[Recipe, tyro.conf.arg(name="")]
        run: Annotated[RunOptions, tyro.conf.arg(name="")]
        data_root: Path | None = None  # the data set's folder
        only: tuple[str, ...] = ()  # names of the stages to train; those that they need must be finished

    names = [stage.name for stage in base.stages]
    given = ["--help" if argument == "--help-all" else argument for argument in arguments[1:]]
    options = parse(Options, f"train {arguments[0]}", given, Options(base, RunOptions()), names)
    recipe = options.recipe
    if options.data_root is not None:
        recipe = replace(recipe, dataset=replace(recipe.dataset, root=options.data_root))
    folder = run_recipe(recipe, options.run, options.only)
    if options.run.progress and is_first_process():
        _tell_outcome(folder)
    print(folder)


def _tell_outcome(folder: Path) -> None:
    """What a training came to, on stderr, for people."""
    from rich.console import Console

    from distill3d.view.outcome import next_steps, outcome

    table = outcome(folder)
    console = Console(stderr=True)
    if table is not None:
        console.print(table)
    console.print("next:", *next_steps(folder), sep="\n  ", markup=False, highlight=False, soft_wrap=True)


def evaluate(arguments: list[str]) -> None:
    """Official metrics of result files, or of a run on a split: distill3d eval kitti|nuscenes|run ..."""
    names = ", ".join(EVALUATIONS)
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print("usage: distill3d eval kitti|nuscenes|run ...\n\ndistill3d eval kitti --help tells the options.")
            return
        raise UserError(f"eval: expected what is evaluated first, one of {names}")
    if arguments[0] not in EVALUATIONS:
        raise UserError(f"eval: there is no evaluation for {arguments[0]!r}, expected one of {names}")
    EVALUATIONS[arguments[0]](arguments[1:])


def _evaluate_kitti(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Options:
        labels: Path  # folder of label files
        predictions: Path  # folder of result files
        split: Path | None = None  # file of frame names; by default the frames that have a result file
        json: Path | None = None  # write the numbers here too
        min_height_scale: HeightScale | None = None  # of least box heights, for reduced images; as trained with, or 1
        style: Literal["c++", "python"] = "c++"  # rules of the official program, or of its Python port
        classes: tuple[str, ...] = ()  # by default those of the data set's classes.txt, or KITTI's
        label_names: tuple[str, ...] = ()  # other names in label files, each as name=class, or name=DontCare
        overlaps: tuple[str, ...] = ()  # least, strict and loose, each as Bus=0.7,0.5, the default of other classes

    o = parse(Options, "eval kitti", arguments)
    from distill3d.evaluate.kitti import run_eval_kitti

    run_eval_kitti(
        o.labels, o.predictions, o.split, o.json, o.min_height_scale, o.style, o.classes, o.label_names, o.overlaps
    )


def _evaluate_nuscenes(arguments: list[str]) -> None:
    @dataclass(frozen=True)
    class Options:
        data_root: Path  # holds the folder of the tables
        predictions: Path  # submission file
        version: str = "v1.0-trainval"  # folder of the tables
        #: An official split's name, that of a file in DATA_ROOT/splits, or a file of scene names or sample tokens; by
        #: default all samples of the tables.
        split: str | None = None
        json: Path | None = None  # write the numbers here too
        classes: tuple[str, ...] = ()  # by default all ten; fewer are no official evaluation

    o = parse(Options, "eval nuscenes", arguments)
    from distill3d.evaluate.nuscenes import run_eval_nuscenes

    run_eval_nuscenes(o.data_root, o.version, o.predictions, o.split, o.json, o.classes or None)


def _evaluate_run(arguments: list[str]) -> None:
    import tyro

    @dataclass(frozen=True)
    class Options:
        run: tyro.conf.Positional[Path]  # the folder of a finished stage, trained or imported
        data_root: Path  # the data set's folder
        split: str = "val"
        out: Path | None = None  # folder of predictions and numbers; by default RUN
        device: str = "auto"
        batch_size: Number = 8
        allow_overlap: bool = False  # with frames that the detector was trained on
        version: str | None = None  # folder of nuScenes' tables; by default the recipe's, or the only one that is there
        #: Of the data set, by default the stage's own; with another, frames of equal names are other frames.
        identity: str | None = None
        min_height_scale: HeightScale | None = None  # of KITTI's least box heights; by default as trained with
        cameras: tuple[str, ...] = ()  # of surround views; by default those of training

    o = parse(Options, "eval run", arguments)
    from distill3d.evaluate_run import evaluate_stage, show

    given = (o.run, o.data_root, o.split, o.out, o.device, o.batch_size, o.allow_overlap)
    others = {"version": o.version, "identity": o.identity, "min_height_scale": o.min_height_scale}
    show(evaluate_stage(*given, **others, cameras=o.cameras or None))


EVALUATIONS: dict[str, Callable[[list[str]], None]] = {
    "kitti": _evaluate_kitti, "nuscenes": _evaluate_nuscenes, "run": _evaluate_run,
}  # fmt: skip


def predict(arguments: list[str]) -> None:
    """Detect objects in pictures or surround views: boxes in KITTI's or nuScenes' format, and drawings."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        paths: tyro.conf.Positional[tuple[Path, ...]]
        """Without --model first a stage folder, a model.safetensors or streets, the package's own student; then
        pictures, videos, folders of pictures, 'drive/*.jpg'.  Of surround views one folder in nuScenes' layout."""
        model: Path | None = None  # stage folder, model.safetensors or streets
        calib: Path | None = None  # KITTI calibration file, or a folder with one for each picture, of its name
        intrinsics: str | None = None  # fx,fy,cx,cy in px
        out: Path = Path("predictions")
        score: Weight | None = None
        """Least score; by default the detector's own.  A score is the probability of the class times the certainty of
        the depth: of MonoDLE and MonoDETR that is one over the scale (m) of its error, so that it can exceed 1."""
        device: str = "auto"
        draw: bool = True  # also write drawings
        batch: Number = 1  # pictures, frames of a video or moments that are computed at once
        version: str | None = None  # of surround views: folder of the tables; by default as trained, or the only one
        split: str | None = None  # of surround views: a split's name, or a file of scenes or samples; by default all
        samples: tuple[str, ...] = ()  # of surround views: names of scenes and tokens of samples, in place of a split
        limit: Number | None = None  # of surround views: the first samples alone
        cameras: tuple[str, ...] = ()  # of surround views; by default those of training

    _refuse_spaces(arguments)
    o = parse(Options, "predict", arguments)
    from distill3d.predict import predict_images, refuse_no_model
    from distill3d.train.checkpoint import looks_around

    if o.model is None and o.paths:
        refuse_no_model(o.paths[0])
    paths = o.paths if o.model is None else (o.model, *o.paths)
    if not paths:
        raise UserError("predict: give a stage folder or --model streets, and pictures")
    if not looks_around(paths[0]):
        _refuse_given(o, f"is for surround views, which {paths[0]} does not look at", *OF_MOMENTS)
        given = (paths[0], paths[1:], o.calib, o.intrinsics, o.out, o.score, o.device, o.draw, o.batch)
        for path in predict_images(*given, progress=True):
            print(path)
        return
    from distill3d.predict_surround import Choice, predict_surround

    _refuse_given(o, f"is for pictures of one camera, but {paths[0]} looks at surround views", "calib", "intrinsics")
    if len(paths) != 2:
        raise UserError(f"predict: {paths[0]} looks at surround views: give one folder in nuScenes' layout after it")
    chosen = Choice(o.version, o.split, o.samples, o.limit, o.cameras)
    print(predict_surround(paths[0], paths[1], o.out, chosen, o.score, o.device, o.draw, o.batch, progress=True))


def _refuse_given(options: object, reason: str, *names: str) -> None:
    """Keeps options from being passed over that do not go with a command's detector.

    Raises:
        UserError: one is given.
    """
    given = next((name for name in names if getattr(options, name) not in (None, ())), None)
    if given is not None:
        raise UserError(f"predict: --{given} {reason}")


def _refuse_spaces(arguments: list[str]) -> None:
    """Tells who gives a camera's numbers one by one how they are spelt.

    Raises:
        UserError: they are.
    """
    numbers = []
    for word in arguments[arguments.index("--intrinsics") + 1 :] if "--intrinsics" in arguments else ():
        number = word.strip(",")
        if re.fullmatch(NUMBER, number) is None:
            break
        numbers.append(number)
    if len(numbers) > 1:
        raise UserError(f"predict: the numbers of --intrinsics stand with commas and no spaces: {','.join(numbers)}")


def export(arguments: list[str]) -> None:
    """Write a student as an ONNX file, checked against PyTorch, or under its authors' names for their code."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        checkpoint: tyro.conf.Positional[Path]  # a stage folder or a model.safetensors
        onnx: Path | None = None  # file to write
        system: Annotated[str | None, tyro.conf.arg(name="as")] = None  # published system, as distill3d import has it
        part: str | None = None  # of the system; by default the first
        out: Path | None = None  # with --as: file to write, by default SYSTEM.pth

    o = parse(Options, "export", arguments)
    if (o.onnx is None) == (o.system is None):
        raise UserError("export: give either --onnx FILE or --as SYSTEM")
    if o.system is not None:
        from distill3d.published.exporting import export_released

        print(export_released(o.checkpoint, o.system, o.part, o.out).text())
        return
    from distill3d.export import export_checkpoint

    assert o.onnx is not None
    print(export_checkpoint(o.checkpoint, o.onnx).text())


def import_(arguments: list[str]) -> None:
    """Turn an authors' checkpoint into a run folder that every other command takes."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        file: tyro.conf.Positional[Path]  # the checkpoint as its authors publish it
        system: Annotated[str | None, tyro.conf.arg(name="as")] = None  # by default told by the file's names
        part: str | None = None  # of the system; by default the first that fits the file
        out: Path = Path("imported")
        #: File of the frames it was trained on, such as ImageSets/train.txt; of nuScenes scenes or sample tokens.
        trained_on: Path | None = None

    if any(a in ("-h", "--help") for a in arguments):
        from distill3d.published.systems import SYSTEMS

        width = max(map(len, SYSTEMS))
        lines = [f"  {n:{width}}  {s.title} ({s.repository}): {', '.join(s.parts)}" for n, s in SYSTEMS.items()]
        try:
            parse(Options, "import", arguments)
        finally:  # the option parser ends the command
            print("systems and their parts, for --as and --part:", "", *lines, sep="\n")
    o = parse(Options, "import", arguments)
    from distill3d.published.importing import import_checkpoint

    print(import_checkpoint(o.file, o.system, o.part, o.out, o.trained_on).text())


def check(arguments: list[str]) -> int:
    """Name every problem of a data set, with file and line; exit code 2 if there is one."""
    import tyro

    from distill3d.data.scans import ScanColumns

    @dataclass(frozen=True)
    class Options:
        folder: tyro.conf.Positional[Path]
        layout: Literal["kitti", "nuscenes"] | None = None  # by default what the folder looks like
        scan_columns: ScanColumns | None = None  # of the scans' files; by default the layout's: 4, or 5 of nuscenes
        classes: tuple[str, ...] = ()  # of labels in KITTI's layout; by default those of its classes.txt, or KITTI's
        label_names: tuple[str, ...] = ()  # other names in label files, each as name=class, or name=DontCare
        cameras: tuple[str, ...] = ()  # the rig, in nuScenes' layout; by default all cameras of the tables

    options = parse(Options, "check", arguments)
    from distill3d.data.check import run_check

    given = (options.folder, options.layout, options.scan_columns, options.classes, options.label_names)
    return run_check(*given, options.cameras)


def raw_list(arguments: list[str]) -> None:
    """List the frames of KITTI's raw drives that share no drive with a split, to learn from without labels."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        folder: tyro.conf.Positional[Path]  # the raw data's
        mapping: Path  # folder of the devkit's train_mapping.txt and train_rand.txt
        split: Path  # file of the frames that will be evaluated, such as ImageSets/val.txt
        out: Path = Path("raw_frames.txt")

    options = parse(Options, "raw-list", arguments)
    from distill3d.data.kitti.raw import RawMapping, list_raw_frames, write_list
    from distill3d.data.splits import read_split
    from distill3d.files import refuse_foreign

    refuse_foreign(options.out)
    frames = list_raw_frames(options.folder)
    drives = RawMapping.read(options.mapping).drives(read_split(options.split))
    kept = write_list(options.out, frames, drives)
    print(f"{options.out}: {len(kept)} of {len(frames)} frames share no drive with {options.split}")


def autolabel(arguments: list[str]) -> None:
    """Write a trained detector's boxes as the labels of a folder of frames, to train on like any other."""
    import tyro

    from distill3d.autolabel import AutolabelConfig, autolabel

    @dataclass(frozen=True)
    class Options:
        run: tyro.conf.Positional[Path]  # a stage folder or a model.safetensors
        data: tyro.conf.Positional[Path]  # the data set's folder
        config: Annotated[AutolabelConfig, tyro.conf.arg(name="")]

    o = parse(Options, "autolabel", arguments)
    print(autolabel(o.run, o.data, o.config).text())


def report(arguments: list[str]) -> None:
    """One self-contained HTML page that compares runs."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        runs: tyro.conf.Positional[tuple[Path, ...]]  # run folders, or single stages of them
        out: Path = Path("report.html")
        gallery: Count = 8  # frames drawn

    options = parse(Options, "report", arguments)
    from distill3d.view.report import write_report

    print(write_report(list(options.runs), options.out, options.gallery))


def diagnose(arguments: list[str]) -> None:
    """Where distillation helped the students of a run and where it hurt, object by object."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        run: tyro.conf.Positional[Path]  # a run folder with a finished baseline and student
        data_root: Path | None = None  # the data set's folder; by default the one in recipe.yaml
        baseline: str | None = None  # stage to compare with, or another run's folder; by default of role baseline
        student: str | None = None  # stage to judge; by default all of role student
        out: Path | None = None  # page, with .json and .csv beside it; by default RUN/diagnosis.html
        margin: Annotated[float, Between(0, 100)] = 0.02  # of the depth, by which depth errors must differ to count
        device: str = "auto"  # where networks are asked for their uncertainty and their maps of the ground

    o = parse(Options, "diagnose", arguments)
    from rich.console import Console

    from distill3d.diagnose import diagnose

    result = diagnose(o.run, o.data_root, o.baseline, o.student, o.out, o.margin, o.device)
    console = Console()
    console.print(result.table())
    console.print(result.text(), markup=False, highlight=False)
    print(*result.files, sep="\n")


def record(arguments: list[str]) -> None:
    """Record frames of a run, scans, pictures and boxes in 3D, for the rerun viewer."""
    import tyro

    @dataclass(frozen=True)
    class Options:
        run: tyro.conf.Positional[Path]  # a run folder, or a single stage of one
        out: Path = Path("run.rrd")
        frames: Number = 8  # how many, chosen as the report chooses its gallery's
        names: tuple[str, ...] = ()  # ids (of nuscenes: sample tokens) of the frames instead
        stages: tuple[str, ...] = ()  # whose boxes; by default of all that have predictions
        data_root: Path | None = None  # the data set's folder; by default the one in recipe.yaml
        score: Share | None = None  # least score of boxes; by default 0.2
        maps: bool = True  # ask networks that look at the ground what they see there
        device: str = "auto"  # where they are asked

    o = parse(Options, "record", arguments)
    from distill3d.record import record_run
    from distill3d.view.distance import LEAST_SCORE

    least = LEAST_SCORE if o.score is None else o.score
    print(record_run(o.run, o.out, o.frames, o.names, o.stages, o.data_root, least, o.maps, o.device).text())


def doctor(arguments: list[str]) -> None:
    """Versions, devices, and which fast paths are on."""

    @dataclass(frozen=True)
    class Options:
        pass

    parse(Options, "doctor", arguments)
    from distill3d.doctor import describe

    for name, value in describe().items():
        print(f"{name:24} {value}")


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": demo, "synth": synth, "recipes": recipes, "train": train, "eval": evaluate, "predict": predict,
    "import": import_, "export": export, "check": check, "raw-list": raw_list, "autolabel": autolabel,
    "report": report, "diagnose": diagnose, "record": record, "doctor": doctor,
}  # fmt: skip

if __name__ == "__main__":
    main()
