"""The benchmark of all methods: its rows, its statistics, its page, and that nothing finished is done again."""

import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document
from benchmarks.distillation import few_labels, page, worlds
from benchmarks.distillation.cells import run_folder, train_cell
from benchmarks.distillation.collect import HEADLINE, collect, with_others
from benchmarks.distillation.estimates import Estimate, paired
from benchmarks.distillation.latency import measure_latencies
from benchmarks.distillation.search import OURS
from benchmarks.distillation.sizes import SIZES, Size
from benchmarks.distillation.table import BASELINE, LONGER, SEARCH, groups
from benchmarks.processes import Job, run_all
from distill3d.recipes.kitti import BASES, METHODS
from distill3d.synth.settings import CAR_BODIES
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.view.charts import svg_file

# ------------------------------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda s: s.name)
def test_every_method_on_every_base_has_a_row(size: Size, tmp_path: Path) -> None:
    rows = {name: {s.name: s for s in group.recipe(size, 0, tmp_path).stages} for name, group in groups(size).items()}
    for base in BASES:
        assert {"teacher", "baseline", *METHODS} <= set(rows[base])
    assert {"cmkd", "monotakd"} <= set(rows["caddn"])
    assert {"labeldistill", "monotakd", "monostl", "label_encoder"} <= set(rows["bevdepth"])
    for count in size.sweep:
        assert {"teacher", "baseline", "monoskd"} == set(rows[f"frames_{count}"])
    asked: dict[str, tuple[str, ...]] = {
        "rgb_teacher": (), "monoskd_from_rgb_teacher": ("rgb_teacher",), "dense_truth": (), "dense_truth_longer": (),
        "features_only": ("teacher",), "response_only": ("teacher",), "baseline_longer": (),
        "head_start_from_baseline": ("teacher",),
    }  # fmt: skip
    for name, teachers in asked.items():
        stage: StageConfig = rows["monodle"][name]
        assert stage.role == "control" and stage.teachers == teachers
    longer, plain, teacher = (rows["monodle"][n].schedule.epochs for n in ("baseline_longer", "baseline", "teacher"))
    assert longer == plain + teacher


def test_the_search_sees_no_frame_of_the_table(tmp_path: Path) -> None:
    size = SIZES["cpu"]
    known = groups(size)
    search, table = known[SEARCH], [group for name, group in known.items() if name != SEARCH]
    recipes = [search.recipe(size, seed, tmp_path) for seed in search.seeds]
    assert {recipe.dataset.eval_split for recipe in recipes} == {"val"}
    slices = worlds.kitti_slices(size)
    same_size = [slices[worlds.train_split(size.frames, seed)] for group in table[:1] for seed in group.seeds]
    used = {frame for first, count in same_size for frame in range(first, first + count)}
    for recipe in recipes:
        first, count = slices[recipe.dataset.train_split]
        assert not used & set(range(first, first + count))
        names = {stage.name: stage for stage in recipe.stages}
        assert {"monodistill", "monoskd", "monostl", "baseline_averaged"} < set(names)
        epochs = {stage.schedule.epochs for stage in recipe.stages}
        assert len(epochs) == 2 and max(epochs) == 2 * min(epochs), "one budget, and twice that"


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda s: s.name)
def test_a_group_has_one_budget_and_one_data_set(size: Size, tmp_path: Path) -> None:
    """Students and baselines of a group take equally many steps, preparation included; seeds differ in frames."""
    for group in groups(size).values():
        first, second = (group.recipe(size, seed, tmp_path) for seed in group.seeds[:2])
        assert first.dataset.eval_split == second.dataset.eval_split == ("val" if group.name == SEARCH else "test")
        assert first.dataset.train_split != second.dataset.train_split
        assert [s.name for s in first.stages] == [s.name for s in second.stages]
        assert 1 <= group.asked <= len(group.seeds)
        budget = first.stage("baseline").schedule.epochs
        for stage in first.stages:
            if stage.role == "student" and stage.name not in group.against:
                epochs = epochs_in_all(first, stage)
                assert min(abs(epochs - budget), abs(epochs - 2 * budget)) <= 1, (group.name, stage.name)


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda s: s.name)
def test_gains_are_measured_against_what_trained_as_long(size: Size, tmp_path: Path) -> None:
    """But for the search, whose candidates are compared with each other, and for the rows that others are measured
    against; curves are of rows."""
    for group in groups(size).values():
        recipe = group.recipe(size, 0, tmp_path)
        rows = {stage.name: stage for stage in recipe.stages}
        assert set(group.against) | set(group.against.values()) | {BASELINE} <= set(rows)
        assert {row for curve in group.curves.values() for row in curve} <= set(rows)
        for name, stage in rows.items() if group.name != SEARCH else ():
            if stage.role in page.TAUGHT and name not in group.against.values():
                over = rows[group.against.get(name, BASELINE)]
                assert abs(epochs_in_all(recipe, stage) - epochs_in_all(recipe, over)) <= 1, (group.name, name)
    assert set(HEADLINE.values()) == set(page.METRICS)


def epochs_in_all(recipe: Recipe, stage: StageConfig) -> int:
    """Of a student and of what it goes on from, its teachers left out; where frames without labels are seen, in epochs
    of those with labels, for steps are what counts."""
    before = [recipe.stage(name) for name in stage.starts_from]
    epochs = stage.schedule.epochs * (few_labels.TIMES if stage.unlabelled else 1)
    return epochs + sum(epochs_in_all(recipe, one) for one in before if one.role != "teacher")


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda s: s.name)
def test_seeds_learn_from_frames_of_their_own(size: Size) -> None:
    slices = worlds.kitti_slices(size)
    used = [set(range(first, first + count)) for name, (first, count) in slices.items() if count == size.frames]
    assert len(used) == size.seeds + size.search_seeds and len(set.union(*used)) == sum(map(len, used))
    assert all(0 <= first and first + count <= size.pool for first, count in slices.values())


def test_test_frames_show_bodies_that_training_does_not() -> None:
    for config in (worlds.STREETS, worlds.DRIVES):
        assert set(config.car_bodies) | set(worlds.harsh(config).car_bodies) == set(CAR_BODIES)
        assert not set(config.car_bodies) & set(worlds.harsh(config).car_bodies)


# ------------------------------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize(
    ("values", "text", "clear", "p_value"),
    [
        ([1.0, 2.0, 3.0], "2.0 ± 0.6", True, 0.0742),
        ([-1.0, -2.0, -3.0], "−2.0 ± 0.6", True, 0.0742),
        ([-1.0, 0.0, 1.0], "0.0 ± 0.6", False, 1.0),
        ([4.0], "4.0", False, math.nan),
        ([2.0, 2.0], "2.0 ± 0.0", True, 0.0),
        ([], "–", False, math.nan),
    ],
)
def test_an_estimate(values: list[float], text: str, clear: bool, p_value: float) -> None:
    """Two seeds or three that agree are clear by their standard errors, and still no proof by the t-test."""
    estimate = Estimate.of(values)
    assert (estimate.text(), estimate.clear) == (text, clear)
    assert estimate.p_value == pytest.approx(p_value, abs=1e-4, nan_ok=True)


def test_pairs_are_of_the_same_seed() -> None:
    assert paired({"0": 5.0, "2": 9.0}, {"0": 4.0, "1": 100.0, "2": 7.0}) == Estimate(1.5, 0.5, 2)


# ------------------------------------------------------------------------------------------------------------- the page


def made_up_record(gains: dict[str, list[float]]) -> dict[str, Any]:
    """A record of one group in which the baseline has 10, 20, 30."""

    def row(role: str, values: list[float]) -> dict[str, Any]:
        cost = {"step_seconds": 0.2 if role == "student" else 0.1, "steps": 90, "peak_memory": 2e9, "device": "cpu",
                "precision": "bf16"}  # fmt: skip
        return {
            "role": role,
            "goes_on_from": [],
            "latency": {"onnx_seconds": 0.02, "torch_seconds": 0.03, "bytes": 1},
            "seeds": {str(k): {"cost": cost, "values": {"car 3D loose": v}} for k, v in enumerate(values)},
        }

    base = [10.0, 20.0, 30.0]
    rows = {"baseline": row("baseline", base)}
    rows |= {name: row("student", [b + g for b, g in zip(base, more, strict=True)]) for name, more in gains.items()}
    group = {"title": "MonoDLE, 400 training frames", "surround": False, "headline": "car 3D loose", "seeds": 3,
             "stages": [*rows, "never_run"], "machine": {"cpu": "some"},
             "settings": "b" * 64, "hash": "a" * 64, "rows": rows}  # fmt: skip
    size = {"seeds": 3, "other_seeds": 2, "frames": 400}
    return {"size": size, "splits": {"streets": {"val": 150}}, "groups": {"monodle": group}}


def lines_of(record: dict[str, Any]) -> list[str]:
    return page.sentences(record, page.comparisons(record))


def test_the_page_opens_with_a_picture_and_at_most_five_sentences() -> None:
    """Tables follow, each after a sentence, and pictures are files beside the Markdown and part of the HTML."""
    record = made_up_record({"good": [5.0, 5.1, 5.2], "bad": [-3.0, -2.0, -4.0], "chance": [-4.0, 6.0, 1.0]})
    group = record["groups"]["monodle"]
    group["rows"]["painted"] = {**group["rows"]["good"], "role": "control"}
    group["rows"]["taught"] = {**group["rows"]["painted"], "teachers": ["teacher"]}
    for made in ({"cpu": record}, page.read_records()):
        blocks = page.render(made)
        first, second, *_ = blocks
        assert isinstance(first, document.Picture) and isinstance(second, document.Points)
        assert 3 <= len(second.lines) <= 5
        assert all(len(re.findall(r"[.!?](?=[ *]|$)", line)) == 1 for line in second.lines)
        told = [before for before, block in itertools.pairwise(blocks) if isinstance(block, document.Table)]
        assert told and all(isinstance(before, document.Paragraph) for before in told)
        written = page.pages(made)
        text, html = written["benchmark.md"], written["benchmark.html"]
        assert text.splitlines()[2].startswith("![") and html.index("<svg") < html.index("<ul") < html.index("<table")
        named = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
        assert sorted(named) == sorted(set(written) - {"benchmark.md", "benchmark.html"}) and named[0] == first.name
        drawn = [block for block in blocks if isinstance(block, document.Picture)]
        assert html.count('<svg class="chart') == len(named) + sum(block.narrow is not None for block in drawn)
    assert lines_of(record)[:4] == [
        "**good gains most: +5.1 ± 0.1 points of car 3D AP on MonoDLE**.",
        "Published methods are better than what they are measured against in 1 of 3 comparisons, most of all good "
        "+5.1 ± 0.1 on MonoDLE.",
        "Worse are bad −3.0 ± 0.6 on MonoDLE; 1 cannot be told from noise.",
        "Controls without any teacher gain, too: painted +5.1 ± 0.1 on MonoDLE.",
    ]


def test_the_picture_fills_what_is_larger_than_noise() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2], "bad": [-3.0, -2.0, -4.0], "chance": [-4.0, 6.0, 1.0]})
    kinds = {one.row: one.kind for one in page.comparisons(record)}
    assert kinds == {"good": page.BETTER, "bad": page.WORSE, "chance": page.NOISE}
    svg = svg_file(page.picture("cpu", page.comparisons(record)).chart)
    assert "MonoDLE · car 3D AP" in svg and "baseline 20.0 at 90 steps" in svg
    rows = re.findall(r'<g class="(\w+)"><title>(\w+) ', svg)
    assert rows == [("up", "good"), ("noise", "chance"), ("down", "bad")], "the largest first"


def test_nothing_better_is_said_plainly() -> None:
    record = made_up_record({"chance": [-4.0, 6.0, 1.0]})
    lines = lines_of(record)
    assert lines[0] == "**No method is better than what it is measured against by more than noise.**"
    assert lines[1] == "None is worse, and 1 cannot be told from noise." and len(lines) == 3


def test_every_gain_is_in_a_table() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2], "bad": [-3.0, -2.0, -4.0], "chance": [-4.0, 6.0, 1.0]})
    text = document.markdown(page.TITLE, page.render({"cpu": record}))
    rows = [line for line in text.splitlines() if line.endswith(("| better |", "| worse |", "| noise |"))]
    assert (
        rows[0] == "| good | MonoDLE | car 3D AP | **+5.1 ± 0.1** | < 0.001 | 3 | 90 | baseline | 20.0 ± 5.8 | better |"
    )
    assert [row.split(" | ")[0] for row in rows] == ["| good", "| bad", "| chance"]
    assert "**The gpu size has not been run**" in text
    shown = document.html(page.TITLE, page.render({"cpu": record}))
    assert "<td>&lt; 0.001</td>" in shown and '<td class="words">better</td>' in shown, "p is set as a number"
    assert "Not finished with all seeds: never_run" in text and "**Not finished yet: 1 rows**" in text
    assert "| good | 90 | 2.00 ± 0.00 | 1.00 ± 0.00 | 20.0 | 30.0 |" in text
    assert "| good (student) | 3 | 90 | **+5.1 ± 0.1** | baseline |" in text
    assert "    python -m benchmarks.distillation run --size cpu --groups monodle" in text


def test_the_committed_page_is_what_the_records_say() -> None:
    assert page.pages(page.read_records()) == {path.name: path.read_text() for path in page.DOCS.glob(f"{page.NAME}*")}


def test_curves_are_of_the_rows_that_the_table_names() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2], "good_longer": [9.0, 9.0, 9.0], LONGER: [4.0, 4.1, 4.2]})
    group = record["groups"]["monodle"]
    assert not page.curves("monodle", group)
    group |= {"against": {"good_longer": LONGER}, "curves": {"good": ("good", "good_longer"), "half": ("good",)}}
    for row in ("good_longer", LONGER):
        for cell in group["rows"][row]["seeds"].values():
            cell["cost"] = {**cell["cost"], "steps": 180}
    said, drawn = page.curves("monodle", group)
    assert isinstance(said, document.Paragraph) and "higher for none of 1" in said.text
    assert isinstance(drawn, document.Picture)
    svg = svg_file(drawn.chart)
    assert "half" not in svg
    assert re.findall("<title>good, ([^<]*)</title>", svg) == ["90 steps: +5.1 ± 0.1", "180 steps: +4.9 ± 0.1"]


def test_a_group_trained_anew_leaves_the_others_as_they_were() -> None:
    earlier, record = made_up_record({"good": [5.0, 5.1, 5.2]}), made_up_record({"good": [1.0, 1.1, 1.2]})
    for one, cpu in ((earlier, "old"), (record, "new")):
        again = one["groups"]["monodle"]
        one["groups"]["gupnet"] = {**again, "title": "GUPNet, 400 training frames"}
        one["groups"]["monodetr"] = {**again, "rows": {}}
        for group in one["groups"].values():
            group["machine"], group["settings"], group["hash"] = {"cpu": cpu}, 64 * cpu[1], 64 * cpu[0]
    record["groups"]["monodle"] = {**record["groups"]["monodle"], "rows": {}}
    merged = with_others(record, earlier)
    assert merged["groups"]["monodle"] == earlier["groups"]["monodle"]
    assert merged["groups"]["gupnet"] == record["groups"]["gupnet"]
    assert not merged["groups"]["monodetr"]["rows"]
    text = document.markdown(page.TITLE, page.render({"cpu": merged}))
    assert f"| MonoDLE | {16 * 'l'} | streets {16 * 'o'} | bf16 | cpu old |" in text
    assert f"| GUPNet | {16 * 'e'} | streets {16 * 'n'} | bf16 | cpu new |" in text
    with pytest.raises(ValueError, match="other splits"):
        with_others(record, earlier | {"splits": {"streets": {"val": 151}}})


def test_gains_over_what_hardly_learned_are_grey() -> None:
    """Whatever they are, they count as nothing; a row that is measured against another reference does."""
    record = made_up_record({"good": [5.0, 5.1, 5.2], "late": [19.0, 19.2, 19.4], "continued": [9.0, 9.0, 9.0]})
    group = record["groups"]["monodle"]
    for cell in group["rows"]["baseline"]["seeds"].values():
        cell["values"]["car 3D loose"] = 1.0
    group["against"] = {"late": "continued"}
    found = {one.row: one for one in page.comparisons(record)}
    assert (found["good"].kind, found["late"].kind) == (page.LITTLE, page.BETTER)
    assert found["late"].gain.mean == pytest.approx(10.2)
    svg = svg_file(page.picture("cpu", [*found.values()]).chart)
    assert re.findall(r'<g class="(\w+)"><title>(\w+) ', svg)[0] == ("up", "late"), "what says little comes last"
    assert '<g class="grey"><title>good ' in svg
    lines = page.sentences(record, [*found.values()])
    assert "late gains most" in lines[0] and "on MonoDLE the baseline has learned too little to compare" in lines[2]


def test_more_seeds_than_asked_for_are_judged_and_the_command_says_how() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2]})
    group = record["groups"]["monodle"]
    command = "    python -m benchmarks.distillation run --size cpu --groups monodle"
    for asked, finished, ending in ((3, True, ""), (2, True, " --all-seeds"), (4, False, "")):
        group["seeds"] = asked
        assert page.finished(group, "good") is finished
        lines = document.markdown(page.TITLE, page.render({"cpu": record})).splitlines()
        assert command + ending in lines and (", ".join(group["rows"]) in " ".join(lines)) is not finished


def test_rows_are_measured_against_what_the_table_names() -> None:
    record = made_up_record({LONGER: [4.0, 4.1, 4.2], "twice": [10.0, 10.0, 10.0]})
    group = record["groups"]["monodle"]
    group["rows"]["twice"]["goes_on_from"] = ["baseline"]
    assert page.steps(group, "twice") == 180 and page.measured_against(group, "twice") == "baseline (90 steps)"
    group["against"] = {"twice": LONGER}
    for cell in group["rows"][LONGER]["seeds"].values():
        cell["cost"] = {**cell["cost"], "steps": 180}
    assert page.measured_against(group, "twice") == LONGER
    assert page.gain(group, "twice").mean == pytest.approx(5.9)
    assert page.gain(group, LONGER).mean == pytest.approx(4.1)
    del group["rows"][LONGER]
    assert not page.comparisons(record), "without what it is measured against a row is not judged"


@pytest.mark.parametrize(("lead", "bold"), [([5.0, 5.1, 5.2], True), ([-4.0, 6.0, 1.0], False)])
def test_our_recipe_is_judged_against_the_best_single_method(lead: list[float], bold: bool) -> None:
    """Where it was chosen, and where nothing was; candidates are listed best first."""
    singles = {"monodistill": [1.0, 2.0, 3.0], "monoskd": [3.0, 4.0, 5.0]}
    ours = [a + b for a, b in zip(singles["monoskd"], lead, strict=True)]
    record = made_up_record({**singles, OURS[0]: ours})
    record["groups"][SEARCH] = record["groups"]["monodle"]
    text = document.markdown(page.TITLE, page.render({"cpu": record}))
    points = Estimate.of(lead).text(signed=True)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| {OURS[0]} minus monoskd | ")]
    assert [row[1] for row in rows] == ["test split, other training frames", "validation split, where it was chosen"]
    assert all(row[2:4] == ["90", f"**{points}**" if bold else points] for row in rows)
    assert (f"{Estimate.of(lead).text()} ahead of monoskd" in text) is bold
    table = text.partition("| candidate, 90 steps |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == ["| head_start", "| monoskd", "| monodistill"]


def test_the_html_says_the_same() -> None:
    record = made_up_record({"a<b": [5.0, 5.1, 5.2]})
    blocks = page.render({"cpu": record})
    text = document.html(page.TITLE, blocks)
    assert "<b>a&lt;b gains most: +5.1 ±\u00a00.1 points of car 3D AP on MonoDLE</b>." in text
    for cell in re.findall(r"\| ([^|]+) ", document.markdown(page.TITLE, blocks)):
        if cell.strip("-"):
            assert document.inline(cell) in text


# -------------------------------------------------------------------------------------------------------- the processes


def job(folder: Path, name: str, needs: tuple[str, ...] = (), code: str = "open(path, 'a').write('x')") -> Job:
    path = folder / name
    command = (sys.executable, "-S", "-c", f"path = {str(path)!r}; {code}")
    return Job(name, command, path, folder / f"{name}.log", tuple(folder / n for n in needs))


def test_jobs_wait_for_what_they_need_and_are_not_repeated(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "student", ("teacher",)), job(tmp_path, "teacher"), job(tmp_path, "baseline")]
    order: list[str] = []
    run_all(jobs, 2, lambda done: order.append(done.name))
    assert sorted(order) == ["baseline", "student", "teacher"] and order[-1] == "student"
    (tmp_path / "baseline").unlink()
    run_all(jobs, 2, lambda done: order.append(done.name))
    assert order[3:] == ["baseline"]
    assert all((tmp_path / one.name).read_text() == "x" for one in jobs)


def test_a_failed_job_stops_the_rest_and_is_named(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "broken", code="raise SystemExit(3)"), job(tmp_path, "later", ("broken",))]
    with pytest.raises(SystemExit, match="broken failed, see"):
        run_all(jobs, 1)
    assert not (tmp_path / "later").exists()
    with pytest.raises(SystemExit, match="waits for what is not there"):
        run_all([job(tmp_path, "orphan", ("nobody",))], 1)


# ------------------------------------------------------------------------------------------------------------ the whole


MICRO = Size("micro", seeds=2, other_seeds=1, search_seeds=1, frames=4, bev_frames=4, sweep=(2, 8), val_frames=1,
             test_frames=2, drives=1, drive_frames=2, test_drives=1, epochs=1 / 12, drive_epochs=1 / 12,
             side_by_side=1, promise="")  # fmt: skip


@pytest.mark.parametrize("latencies", [False, pytest.param(True, marks=pytest.mark.thorough)])  # exports take longest
def test_from_worlds_to_the_page(latencies: bool, tmp_path: Path) -> None:
    data = json.loads(json.dumps(worlds.write_worlds(MICRO, tmp_path)))
    assert re.fullmatch("[0-9a-f]{64}", data["streets"]["hash"])
    assert worlds.write_worlds(MICRO, tmp_path) == data
    whole = groups(MICRO)["monodle"]

    def three(size: Size, seed: int, out: Path) -> Recipe:
        recipe = whole.recipe(size, seed, out)
        return replace(recipe, stages=tuple(recipe.stage(name) for name in ("teacher", "baseline", "monoskd")))

    group = replace(whole, recipe=three)
    for stage in ("teacher", "baseline", "monoskd"):
        train_cell(MICRO, tmp_path, "monodle", 0, stage)
    assert (run_folder(tmp_path, 0) / "monodle" / "monoskd" / "card.json").exists()
    if latencies:
        measure_latencies(MICRO, tmp_path, [group])
    record = json.loads(json.dumps({**collect(MICRO, tmp_path, [group], data)}))
    assert json.loads(json.dumps(with_others(collect(MICRO, tmp_path, [group], data), record))) == record
    rows = record["groups"]["monodle"]["rows"]
    assert list(rows) == ["teacher", "baseline", "monoskd"] and list(rows["teacher"]["seeds"]) == ["0"]
    found = rows["monoskd"]["seeds"]["0"]
    assert {"car 3D loose", "pedestrian BEV strict", "cyclist 3D loose", "car 3D loose, unfamiliar",
            "depth error (%)"} <= set(found["values"])  # fmt: skip
    latency = rows["monoskd"]["latency"]
    assert latency == rows["baseline"]["latency"] and rows["teacher"]["latency"] is None
    assert not latencies or min(latency.values()) > 0
    assert found["cost"]["steps"] == 1 and found["cost"]["step_seconds"] > 0
    assert found["fields"]["whole"] == pytest.approx(
        found["values"]["car 3D loose"] - rows["baseline"]["seeds"]["0"]["values"]["car 3D loose"], abs=1e-6
    )
    text = document.markdown("", page.render({"cpu": record}))
    assert "Not finished with all seeds: teacher, baseline, monoskd" in text
