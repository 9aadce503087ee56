"""Run folders as kills, disks, editors and other programs leave them: a page that says so, or one sentence."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from html_page import Page

from distill3d.diagnose import diagnose
from distill3d.errors import LONGEST, UserError
from distill3d.view.report import write_report
from distill3d.view.runs import read_runs

MakeRun = Callable[..., Path]
FILES = (
    "recipe.yaml",
    *(f"student/{name}" for name in ("config.yaml", "card.json", "metrics.jsonl", "evaluation.json")),
)
#: Values that some program or hand may put in place of any other.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 10**400, 1e308, -1e-308, float("nan"), float("inf"), "", "x", "../../x", "a\0b",
    "\x1b[31m", "\u202e\n" * 300, "9" * 5000, [], [[]], ["x"], [1, None], {}, {"x": {}}, {"name": []},
)  # fmt: skip
ENCODINGS = (
    b"\xff\xfe",
    b"\x80",
    b"\0",
    b'"\\ud800"',
    b"[" * 100_000,
    b"{" * 100_000,
    b'{"a":' * 100_000,
    b"- " * 50_000,
)


def parsed(text: str, name: str) -> list[Any]:
    """What a file holds; of metrics.jsonl, all lines."""
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return [yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)]


def written(values: list[Any], name: str) -> str:
    if name.endswith(".yaml"):
        return yaml.safe_dump(values[0])
    return "".join(f"{json.dumps(value)}\n" for value in values)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every collection within a value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *places(value[key]))]


def mutated(rng: random.Random, data: bytes, name: str) -> bytes:
    """A file with a value replaced or left out, or with bytes cut off, changed or put in."""
    if rng.random() < 0.7:
        values = parsed(data.decode(), name)
        whole, key = rng.choice(places(values))
        if rng.random() < 0.15 and whole is not values:
            del whole[key]
        else:
            whole[key] = rng.choice(STRANGE)
        return written(values, name).encode("utf-8", "surrogatepass")
    at = rng.randrange(len(data) + 1)
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.choice(ENCODINGS) + data[at:]
        case 2:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case _:
            return data + data[at:]


def assert_sentence(error: UserError) -> None:
    assert str(error).strip() and "Traceback" not in str(error)


def test_any_damage(make_run: MakeRun, tmp_path: Path) -> None:
    """Report and diagnose give a page or one sentence, whatever stands in one file of a run."""
    run, rng = make_run(), random.Random(0)
    sound = {name: (run / name).read_bytes() for name in FILES}
    for n in range(40):
        name = rng.choice(FILES)
        (run / name).write_bytes(mutated(rng, sound[name], name))
        write_report([run], tmp_path / "report.html", gallery=0)  # the other stages are sound: there is a page
        if n % 5 == 0:
            try:
                diagnose(run, out=tmp_path / "diagnosis.html")
            except UserError as error:
                assert_sentence(error)
        (run / name).write_bytes(sound[name])


def spoil(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(content)


def set_value(file: str, **values: Any) -> Callable[[Path], object]:
    def edit(run: Path) -> None:
        kept = parsed((run / file).read_text(), file)[0]
        (run / file).write_text(written([{**kept, **values}], file))

    return edit


def folder_instead(name: str) -> Callable[[Path], object]:
    def edit(run: Path) -> None:
        (run / name).unlink()
        (run / name).mkdir()

    return edit


DAMAGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (spoil("student/card.json", b"\xff"), "demo/student/card.json:1: byte 0xff is no UTF-8"),
    (spoil("student/card.json", b"["), "demo/student/card.json:1: is no JSON"),
    (spoil("student/card.json", b"[]"), "demo/student/card.json: holds no JSON object"),
    (spoil("student/card.json", b'{"a":' * 100_000), "demo/student/card.json: is nested too deeply"),
    (spoil("student/card.json", b'{"a":' * 50 + b"1" + b"}" * 50), "nested too deeply, expected at most 32"),
    (set_value("student/card.json", epochs="3"), "card.json: epochs: expected `int`, got `str`"),
    (set_value("student/card.json", epochs=True), "epochs: expected `int`, got `bool`"),
    (set_value("student/card.json", seed=10**400), "holds a number that is too long"),
    (set_value("student/card.json", trained_on=[1]), "trained_on: expected"),
    (folder_instead("student/card.json"), "demo/student/card.json: cannot be used (Is a directory)"),
    (spoil("student/config.yaml", b"{" * 100_000), "demo/student/config.yaml:1: is nested deeper"),
    (spoil("student/config.yaml", b"a: !!python/name:os.system\n"), "demo/student/config.yaml:1: has the tag"),
    (set_value("student/config.yaml", detector="monodle"), "demo/student/config.yaml: detector: expected `object`"),
    (set_value("student/config.yaml", teachers=["../x"]), "teachers[0]: expected `str`"),
    (spoil("recipe.yaml", b"- a\n"), "demo/recipe.yaml: expected `object`"),
    (set_value("recipe.yaml", stages=[{"name": "../../x"}]), "demo/recipe.yaml: stages[0].name: expected `str`"),
    (set_value("recipe.yaml", dataset={"canvas": [1]}), "demo/recipe.yaml: dataset.canvas: expected"),
    (spoil("student/metrics.jsonl", b'{"kind":"train","step":"1"}\n'), "demo/student/metrics.jsonl, line 1: step:"),
    (spoil("student/metrics.jsonl", b'{"kind":"train"}\n[]\n{'), "and so are 2 more"),
    (spoil("student/metrics.jsonl", b"\x80"), "demo/student/metrics.jsonl:1: byte 0x80"),
    (spoil("student/evaluation.json", b"{}"), "demo/student/evaluation.json: holds no results"),
    (set_value("student/evaluation.json", strict=[]), "demo/student/evaluation.json: strict: expected `object`"),
    (set_value("student/evaluation.json", loose={"car_3d": {"AP_R40": [1, 2, 300]}}), "loose[...].AP_R40[2]:"),
    (set_value("student/evaluation.json", loose={"car_3d": {"AP_R40": [1, 2]}}), "AP_R40: expected `array`"),
    (set_value("student/evaluation.json", settings={"min_height_scale": 0}), "min_height_scale: expected"),
)  # fmt: skip


def test_what_is_damaged_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    sound = make_run()
    run = tmp_path / "copies" / sound.name
    for damage, sentence in DAMAGES:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(sound, run)
        damage(run)
        page = Page(write_report([run], tmp_path / "report.html", gallery=0).read_text(encoding="utf-8"))
        assert "What is missing" in page.text and sentence in page.text, sentence


def test_diagnose_names_what_is_damaged(make_run: MakeRun) -> None:
    run = make_run()
    set_value("student/card.json", epochs=[])(run)
    assert "demo/student/card.json: epochs:" in diagnose(run).text()
    spoil("student/evaluation.json", b"{")(run)
    with pytest.raises(UserError, match="student of .* is not finished.*evaluation.json:1: is no JSON"):
        diagnose(run)


def test_stages_that_stand_behind_themselves(make_run: MakeRun, tmp_path: Path) -> None:
    """Settings that only a hand can have written end nothing."""
    run = make_run()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    loop = [{"name": "a", "role": "preparation", "init": "b"}, {"name": "b", "role": "preparation", "inherit": ["a"]}]
    recipe["stages"][-1]["init"] = "a"
    recipe["stages"] += loop
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    set_value("student/config.yaml", inherit=["a"])(run)
    shutil.copytree(run / "student", run / "a")
    set_value("a/config.yaml", init="b", teachers=["a"], role="preparation", name="a")(run)
    assert write_report([run], tmp_path / "report.html", gallery=0).is_file()
    assert diagnose(run).sections


def test_a_problem_is_one_short_line(make_run: MakeRun) -> None:
    run = make_run()
    set_value("student/config.yaml", detector={"\x1b[2J\n" * 2000: 1}, role=["\x1b"])(run)
    (run / "student" / "card.json").write_text(json.dumps({"trained_on": {"count": "x"}, "x\x1b" * 999: 0}))
    problems = [problem for stage in read_runs([run]) for problem in stage.problems]
    assert len(problems) == 2 and all(problem.isprintable() and len(problem) < LONGEST + 30 for problem in problems)


def test_a_run_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text("{")
    for path in (tmp_path / "loop", Path("a\0b"), tmp_path / ("x" * 5000), tmp_path / "empty"):
        with pytest.raises(UserError) as error:
            write_report([path], tmp_path / "report.html")
        assert_sentence(error.value)


def test_rounded_shares_are_sound(make_run: MakeRun) -> None:
    """A mean of ones may come out a little above one."""
    run = make_run()
    path = run / "student" / "evaluation.json"
    kept = json.loads(path.read_text())
    for table in (kept["strict"], kept["loose"]):
        table["car_3d"] = {
            "AP_R40": [100.00000000000001, -1e-17, 0.0],
            "precision41": [[1.0000000000000002, -1e-17]] * 3,
        }
    path.write_text(json.dumps({**kept, "label_aps": {"car": {"0.5": 1.0000000000000002}}}))
    student = next(stage for stage in read_runs([run]) if stage.name == "student")
    assert student.finished and not student.problems
