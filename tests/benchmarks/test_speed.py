"""The benchmark of speed: what is counted, what the least is, what is kept of finished parts, what the page says."""

import json
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.speed import __main__ as command
from benchmarks.speed import page
from benchmarks.speed.inputs import PAPER, SMOKE, Setting
from benchmarks.speed.limits import Limits
from benchmarks.speed.networks import Way, forward, training
from benchmarks.speed.paths import WAYS_OF_ROWS, sparse_backbone, student_tasks, terms, to_ground
from benchmarks.speed.task import Task, Work, count, limit_of, measure, one_line
from distill3d import export
from distill3d.detectors import DETECTORS, caddn
from distill3d.distill.methods import METHODS
from distill3d.errors import UserError

CPU = torch.device("cpu")
LIMITS = Limits({"fp32": 1e9, "bf16": 4e9}, bandwidth=1e9, call=1e-6)

# ----------------------------------------------------------------------------------------------------- what is counted

sides = st.integers(1, 7)


@given(m=sides, k=sides, n=sides)
def test_a_matrix_product_is_counted_exactly(m: int, k: int, n: int) -> None:
    a, b = torch.ones(m, k), torch.ones(k, n)
    counts = count(lambda: a @ b, LIMITS)
    assert (counts.operators, counts.flops, counts.bytes) == (1, 2 * m * k * n, 4 * (m * k + k * n + m * n))
    assert counts.arithmetic == pytest.approx(counts.flops / 1e9)
    assert counts.memory == pytest.approx(counts.bytes / 1e9)
    assert counts.either == max(counts.arithmetic, counts.memory)


@pytest.mark.parametrize("transposed", [False, True])
@given(groups=st.integers(1, 4), width=st.integers(1, 3), stride=st.integers(1, 2))
@settings(deadline=None)
def test_gradients_of_a_convolution_count_as_twice_the_convolution(
    transposed: bool, groups: int, width: int, stride: int
) -> None:
    build = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = build(groups * width, groups * width, 3, stride, groups=groups, bias=False)
    x = torch.ones(2, groups * width, 9, 9, requires_grad=True)
    forwards = count(lambda: layer(x), LIMITS).flops
    assert count(lambda: layer(x).sum().backward(), LIMITS).flops == 3 * forwards > 0


def test_views_and_empty_memory_move_nothing_and_expanded_tensors_what_they_hold() -> None:
    x = torch.ones(4, 8)
    assert count(lambda: x.view(8, 4).permute(1, 0)[1:], LIMITS).bytes == 0
    assert count(lambda: torch.empty_like(x), LIMITS).bytes == 0
    row = torch.ones(1, 8)
    assert count(lambda: row.expand(4, 8) + x, LIMITS).bytes == 4 * (8 + 32 + 32)


def test_half_precision_is_held_against_its_own_limit() -> None:
    x = torch.ones(4, 4)
    wide, half = (count(lambda x=x: x @ x, LIMITS) for x in (x, x.bfloat16()))
    assert wide.flops == half.flops and wide.arithmetic == pytest.approx(4 * half.arithmetic)


@given(arithmetic=st.floats(0, 1), memory=st.floats(0, 1), operators=st.integers(1, 10**6))
def test_the_least_is_no_less_than_anything_that_must_be_done(arithmetic: float, memory: float, operators: int) -> None:
    counts = count(lambda: torch.ones(1) + 1, LIMITS)
    counts = replace(counts, operators=operators, arithmetic=arithmetic, memory=memory, either=max(arithmetic, memory))
    least, limited_by = limit_of(counts, LIMITS)
    by_name = {"arithmetic": arithmetic, "memory": memory, "calls": operators * LIMITS.call}
    assert least == pytest.approx(max(by_name.values())) == pytest.approx(by_name[limited_by])


def test_a_failure_is_a_result_only_where_it_may_be() -> None:
    def fail() -> Work:
        raise UserError("first line\nsecond line")

    row = measure(Task("g", "s", fail, may_fail=True), LIMITS, CPU, 1, 60.0)
    assert row["failed"] == "UserError: first line" and "seconds" not in row
    with pytest.raises(UserError):
        measure(Task("g", "s", fail), LIMITS, CPU, 1, 60.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "ValueError: "), ("one\ntwo", "ValueError: one"), ("it raised:\n\n why\nmore", "ValueError: it raised: why")],
)
def test_a_failure_is_told_in_one_line(text: str, told: str) -> None:
    assert one_line(ValueError(text)) == told


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the system has no alarms")
def test_what_never_ends_is_stopped() -> None:
    def forever() -> None:
        while True:
            pass

    row = measure(Task("g", "s", lambda: Work(forever), may_fail=True), LIMITS, CPU, 1, 0.05)
    assert row["failed"] == "TimeoutError: had not run once after 0.05 s"


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="the system has no alarms")
def test_what_takes_an_alarm_for_its_own_failure_is_stopped_by_the_next() -> None:
    def stubborn() -> None:
        with suppress(TimeoutError):
            while True:
                pass
        while True:
            pass

    row = measure(Task("g", "s", lambda: Work(stubborn), may_fail=True), LIMITS, CPU, 1, 0.05)
    assert row["failed"] == "TimeoutError: had not run once after 0.05 s"


def test_the_fastest_run_counts_and_the_first_does_not() -> None:
    row = measure(Task("g", "s", lambda: Work(lambda: None, timed=lambda n: [3.0, 1.0, 2.0][:n])), LIMITS, CPU, 3, 60.0)
    assert (row["seconds"], row["median"]) == (1.0, 2.0)


# ------------------------------------------------------------------------------------------------------------ the tasks


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(SMOKE, tmp_path_factory.mktemp("speed"), CPU, 1, "eager")


@pytest.mark.parametrize("size", [PAPER, SMOKE], ids=["paper", "smoke"])
def test_every_detector_and_method_is_measured(size: Any) -> None:
    assert set(size.detectors) == set(DETECTORS)
    # A control without a teacher, terms on trial, and labels without a term: the step is the student's own.
    left_out = {"dense_truth", "trusted", "pseudo_labels"}
    assert set(size.methods) == set(METHODS) - left_out


def test_every_student_is_measured_in_one_of_the_parts(setting: Setting) -> None:
    names = [{t.group.partition(",")[0] for t in student_tasks(setting, above)} for above in (False, True)]
    assert names[1] == {"caddn", "bevdepth"} and not names[0] & names[1] and names[0] | names[1] == set(export.RAW)
    assert set(page.TABLES) == set(command.PARTS)


def test_only_the_usual_way_is_counted() -> None:
    work = Work(lambda: None, lambda: F.relu(torch.ones(1000)))
    rows = [measure(Task("g", "s", lambda: work, usual=usual), LIMITS, CPU, 1, 60.0) for usual in (True, False)]
    assert "limit" in rows[0] and "limit" not in rows[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_does_the_forward_pass_and_more(setting: Setting, precision: Any) -> None:
    place = SMOKE.detectors["monodle"]
    once = count(forward(setting, place, precision).run, LIMITS)
    work = training(setting, place, Way(True, precision))
    learnt = count(work.run, LIMITS)
    assert 2 * once.flops < learnt.flops < 3.1 * once.flops


def test_terms_reach_the_students_maps(setting: Setting) -> None:
    work = terms(setting, SMOKE.methods["monoskd"], Way(True, "fp32"))
    assert count(work.run, LIMITS).operators > 10


def test_the_lift_is_held_against_what_it_must_move(setting: Setting) -> None:
    work = to_ground(setting, SMOKE.detectors["caddn"], caddn, "lift", Way(False, "fp32"))
    work.run()
    assert work.least_bytes is not None and 0 < work.least_bytes < count(work.run, LIMITS).bytes


def test_the_sparse_backbone_multiplies(setting: Setting) -> None:
    work = sparse_backbone(setting, SMOKE.detectors["second"], WAYS_OF_ROWS[0])
    assert count(work.run, LIMITS).flops > 1e6


def test_a_compiled_way_is_counted_as_the_eager_one(setting: Setting) -> None:
    function = to_ground(setting, SMOKE.detectors["caddn"], caddn, "lift", Way(True, "fp32", compiled=True))
    assert function.counted is not None
    eager = to_ground(setting, SMOKE.detectors["caddn"], caddn, "lift", Way(True, "fp32"))
    assert count(function.counted, LIMITS) == count(eager.run, LIMITS)
    function.run()
    assert set(function.facts()) == {"graph_breaks", "first_break"}


# ----------------------------------------------------------------------------------------------------------- the record


def one_task(group: str, calls: list[str]) -> command.Part:
    def run() -> None:
        calls.append(group)
        F.relu(torch.ones(1000))

    return command.Part(lambda setting: iter([Task(group, "s", lambda: Work(run, run), "way")]))


def run_command(monkeypatch: pytest.MonkeyPatch, folder: Path, parts: dict[str, command.Part], *words: str) -> dict:
    monkeypatch.setattr(command, "PARTS", parts)
    monkeypatch.setattr(command, "SMOKE_RECORDS", folder)
    monkeypatch.setattr("sys.argv", ["speed", "--smoke", *words])
    command.main()
    return json.loads((folder / "speed_cpu.json").read_text())["parts"]


def test_only_named_groups_are_measured_to_compare_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[str] = []
    parts = {name: one_task(name, calls) for name in ("detectors", "terms")}
    run_command(monkeypatch, tmp_path, parts)
    calls.clear()
    run_command(monkeypatch, tmp_path, parts, "--before", "ter")
    assert set(calls) == {"terms"}
    before = json.loads((tmp_path / "speed_cpu_before.json").read_text())["parts"]
    assert [len(part["tasks"]) for part in before.values()] == [0, 1]
    assert "What was mended" in (tmp_path / "speed.md").read_text()


def test_only_the_wanted_precisions_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parts = {"detectors": one_task("detectors", [])}
    for precision, count_of_tasks in (("bf16", 0), ("fp32", 1)):
        found = run_command(monkeypatch, tmp_path, parts, "--again", "--precisions", precision)
        assert len(found["detectors"]["tasks"]) == count_of_tasks


def test_finished_parts_are_kept_until_they_are_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    parts = {name: one_task(name, calls) for name in ("detectors", "terms")}
    only = run_command(monkeypatch, tmp_path, parts, "--only", "terms")
    assert set(only) == set(calls) == {"terms"}
    calls.clear()
    both = run_command(monkeypatch, tmp_path, parts)
    assert list(both) == ["detectors", "terms"] and set(calls) == {"detectors"}
    assert both["terms"] == only["terms"]
    calls.clear()
    run_command(monkeypatch, tmp_path, parts, "--again")
    assert set(calls) == {"detectors", "terms"}
    assert "detectors, way" in (tmp_path / "speed.md").read_text()


# ------------------------------------------------------------------------------------------------------------- the page


def row(group: str, times: float, **values: Any) -> dict[str, Any]:
    counted = {"operators": 10, "flops": 10**9, "bytes": 10**8, "arithmetic": 0.1, "memory": 0.05, "either": 0.1}
    return {
        "group": group, "size": "2 pictures", "way": "fp32", "precision": "fp32", "items": 1, "unit": "step",
        "at_least": None, "usual": True, "may_fail": False, "first": 1.0, "seconds": 0.1 * times, "median": 0.1 * times,
        "limit": 0.1, "limited_by": "arithmetic", **counted, **values,
    }  # fmt: skip


def recorded(**parts: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "a processor", "threads": 1, "torch": "2"}
    limits = {"flops": {"fp32": 1e10, "bf16": 2e10}, "bandwidth": 1e9, "call": 1e-6}
    return {"parts": {name: {"machine": machine, "limits": limits, "tasks": rows} for name, rows in parts.items()}}


def test_the_page_begins_with_the_three_widest_gaps() -> None:
    detectors = [row("a", 2.0), row("b", 9.0), row("c", 4.0), row("d", 3.0, way="bf16"), row("d", 5.0)]
    terms = [row("e", 50.0, usual=False), row("f", 3.5), {**row("g", 1.0, may_fail=True), "failed": "Error: why"}]
    del terms[-1]["seconds"]
    record = recorded(detectors=detectors, terms=terms)
    assert [gap.row["group"] for gap in page.gaps(record)] == ["b", "d", "c", "f", "a"]
    lead = page.render({"cpu": record}, {})[1]
    assert isinstance(lead, page.Points) and len(lead.lines) == 3
    assert lead.lines[0].startswith("**b, fp32** (2 pictures): 9.0 times")


def test_what_is_read_takes_no_less_than_decoding() -> None:
    plain = {"limit": None, "limited_by": "", "items": 4, "unit": "frame"}
    rows = [row("frame", 1.0, way="decoding", **plain), row("frame", 3.0, way="all", at_least="decoding", **plain)]
    (gap,) = page.gaps(recorded(loading=rows))
    assert gap.times == pytest.approx(3.0) and "decoding" in gap.text and "75 ms a frame" in gap.text


def test_what_was_mended_stands_beside_what_it_was(tmp_path: Path) -> None:
    before, after = recorded(terms=[row("lift", 20.0), row("gone", 1.0)]), recorded(terms=[row("lift", 8.0)])
    text = page.write_page({"cpu": after}, {"cpu": before}, tmp_path / "speed.md").read_text()
    assert "| lift | fp32 | 2 s | 800 ms | 2.50 |" in text and "gone" not in text


def test_failures_stand_on_the_page_with_their_reason(tmp_path: Path) -> None:
    failed = {**row("g", 1.0, way="compiled"), "failed": "Unsupported: a thing"}
    del failed["seconds"]
    text = page.write_page({"cpu": recorded(terms=[row("g", 2.0), failed])}, {}, tmp_path / "speed.md").read_text()
    assert "g, compiled: Unsupported: a thing" in text and "| failed |" in text
