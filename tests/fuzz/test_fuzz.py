"""The fuzzer finds what it is made for; a few seconds of it find nothing, and no kept case comes back."""

import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from distill3d.errors import UserError
from fuzz import trial
from fuzz.campaign import case_files
from fuzz.hunt import Hunter, Input
from fuzz.mutations import COMMAND_LINE, WAYS, Mutation, draw
from fuzz.surfaces import Checked, Surface

ROOT = Path(__file__).resolve().parents[2]
CASES = Path(__file__).parent / "cases"
DATA = Path("../in")


def made() -> None:
    (DATA / "training" / "label_2").mkdir(parents=True)
    (DATA / "numbers.txt").write_text("1 2\n3 4\n")


def add(words: list[str]) -> None:
    """What the planted faults stand in: the sum of a file's numbers, below a word."""
    text = (DATA / "numbers.txt").read_text(encoding="utf-8-sig")
    try:
        print(*words, sum(float(word) for word in text.split()))
    except ValueError:
        raise UserError("numbers.txt: holds what is no number") from None


def hunter(folder: Path, run=add, **changes: object) -> Hunter:
    surface = Surface("adding", made, (("sum",),), ("in/numbers.txt",), run=run)
    return Hunter(replace(surface, **changes), folder, thorough=True)


def changed(how: str, file: str = "in/numbers.txt", **given: object) -> Input:
    return Input("adding", 0, (Mutation(file, how, given),))


WRONG_WORD = changed("set_word", line=0, word=0, text="x")


def test_sound_answers_are_no_faults(tmp_path: Path) -> None:
    adding = hunter(tmp_path)
    for given, code in ((changed("mark"), 0), (WRONG_WORD, 2), (changed("delete_line", line=0), 0)):
        verdict = adding.try_input(given)
        assert verdict.fault is None and verdict.answer.code == code


def careless(words: list[str]) -> None:
    print(*words, sum(float(word) for word in (DATA / "numbers.txt").read_text().split()))


def talkative(words: list[str]) -> None:
    try:
        careless(words)
    except ValueError as error:
        print(f"distill3d: first\ndistill3d: second {error}", file=sys.stderr)
        sys.exit(2)


def overwriting(words: list[str]) -> None:
    add(words)
    (DATA / "numbers.txt").write_text("0\n")


def littering(words: list[str]) -> None:
    add(words)
    Path("litter").touch()


def endless(words: list[str]) -> None:
    try:
        add(words)
    except UserError:
        time.sleep(60)


def first_line(words: list[str]) -> None:
    print(len((DATA / "numbers.txt").read_bytes()))


@pytest.mark.parametrize(
    ("run", "given", "kind"),
    [
        (careless, WRONG_WORD, "traceback"),
        (talkative, WRONG_WORD, "message"),
        (endless, WRONG_WORD, "hang"),
        (overwriting, changed("touch"), "changed"),
        (littering, changed("touch"), "changed"),
        (first_line, changed("mark"), "unequal"),
    ],
)
def test_planted_faults_are_found(run, given: Input, kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trial, "PATIENCE", 0.3)
    fault = hunter(tmp_path, run, words=False).try_input(given).fault
    assert fault is not None and fault.kind == kind


def test_what_check_calls_a_fault_must_not_be_taken(tmp_path: Path) -> None:
    checked = (Checked("kitti", r"ImageSets"),)  # which the folder lacks
    fault = hunter(tmp_path, checked=checked).try_input(changed("touch")).fault
    assert fault is not None and fault.kind == "silent" and "no split file" in fault.what


def test_frames_that_no_split_names_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "val.txt").write_text("000002\n")
    judged = Checked("kitti", r"label_2/(?P<frame>\d{6})\.txt|ImageSets/val\.txt", ("ImageSets/val.txt",))
    files = ("label_2/000002.txt", "label_2/000003.txt", "calib/000002.txt", "ImageSets/val.txt")
    assert [judged.uses(file, tmp_path) for file in files] == [True, False, False, True]


def test_damaged_bytes_must_not_change_the_result(tmp_path: Path) -> None:
    fault = hunter(tmp_path, guarded=lambda m: m.how == "flip").try_input(changed("flip", at=0, bit=1)).fault
    assert fault is not None and fault.kind == "unequal"


def test_a_fault_is_reduced_to_what_it_needs(tmp_path: Path) -> None:
    adding = hunter(tmp_path, careless)
    needless = (changed("repeat_line", line=0, times=3), changed("trailing_lines", count=1))
    given = replace(WRONG_WORD, mutations=tuple(one.mutations[0] for one in (*needless, WRONG_WORD)))
    fault = adding.try_input(given).fault
    assert fault is not None
    assert adding.reduced(given, fault)[0] == WRONG_WORD


def test_nothing_is_left_of_an_input(tmp_path: Path) -> None:
    adding = hunter(tmp_path)
    before = adding.box.look()
    for kind in ("absent", "folder", "loop", "fifo", "renamed", "stray", "dangling", "empty"):
        place = WAYS["place"].apply(b"", kind=kind, name="x{}")
        adding.box.put("in/numbers.txt", place)
        assert adding.box.look() != before
        adding.box.restore()
        assert adding.box.look() == before


def test_inputs_are_repeatable(tmp_path: Path) -> None:
    adding = hunter(tmp_path)
    inputs = [adding.input(7, index) for index in range(50)]
    assert inputs == [adding.input(7, index) for index in range(50)]
    assert len({str(given) for given in inputs}) > 25
    assert [Input.from_plain(given.to_plain()) for given in inputs] == inputs


SOUND = {
    "x.txt": b"a 1 2\nb 3 4\nc 5 6\n",
    "x.json": b'[\n{"a": 1,\n"b": [1.5, "x"]}\n]', "x.jsonl": b'{"a": 1}\n{"b": [2]}\n',
    "x.yaml": b"a: 1\nb:\n- x\n- 2.5\n", "x.bin": bytes(range(80)), COMMAND_LINE: b'["eval", "--x", "1"]',
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_mutations_change_contents(name: str) -> None:
    """Of a file's own ways each does something: none only looks as if."""
    rng, data = random.Random(0), SOUND[name]
    tried: dict[str, bool] = {}
    for _ in range(600):
        mutation = draw(rng, name, data)
        tried[mutation.how] = tried.get(mutation.how, False) or mutation.apply(data) != data
    assert len(tried) > (0 if name == COMMAND_LINE else 8) and all(tried.values()), tried


@pytest.mark.parametrize(("inputs", "least"), [("0.3", 40), pytest.param("1", 100, marks=pytest.mark.thorough)])
def test_few_inputs_and_all_kept_cases(inputs: str, least: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", inputs, "--seed", "0", "--cases", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    tried = re.search(r"^all +(\d+)", done.stdout, re.MULTILINE)
    assert tried and int(tried[1]) > len(case_files(CASES)) + least
