"""The benchmark of all methods: its rows, its statistics, its page, and that nothing finished is done again."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import document
from benchmarks.distillation import page, worlds
from benchmarks.distillation.cells import run_folder, train_cell
from benchmarks.distillation.collect import collect, with_others
from benchmarks.distillation.estimates import Estimate, paired
from benchmarks.distillation.latency import measure_latencies
from benchmarks.distillation.search import OURS
from benchmarks.distillation.sizes import SIZES, Size
from benchmarks.distillation.table import SEARCH, groups
from benchmarks.processes import Job, run_all
from distill3d.recipes.kitti import BASES, METHODS
from distill3d.synth.settings import CAR_BODIES
from distill3d.train.recipe import Recipe, StageConfig

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
            if stage.role == "student":
                epochs = epochs_in_all(first, stage)
                assert min(abs(epochs - budget), abs(epochs - 2 * budget)) <= 1, (group.name, stage.name)


def epochs_in_all(recipe: Recipe, stage: StageConfig) -> int:
    """Of a student and of what it goes on from, its teachers left out."""
    before = [recipe.stage(name) for name in stage.starts_from]
    return stage.schedule.epochs + sum(epochs_in_all(recipe, one) for one in before if one.role != "teacher")


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
             "stages": [*rows, "never_run"], "machine": {"cpu": "some"}, "hash": "a" * 64,
             "rows": rows}  # fmt: skip
    size = {"seeds": 3, "other_seeds": 2, "frames": 400}
    data = {"streets": {"settings": "b" * 64}}
    return {"size": size, "data": data, "groups": {"monodle": group}}


def test_the_first_lines_say_what_is_larger_than_noise() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2], "bad": [-3.0, -2.0, -4.0], "chance": [-4.0, 6.0, 1.0]})
    text = document.markdown(page.TITLE, page.render({"cpu": record}))
    better, worse, noise = re.findall(r"^- \*\*.*$", text, flags=re.M)
    assert "On MonoDLE: good +5.1 ± 0.1*" in better and "bad" not in better
    assert "On MonoDLE: bad −3.0 ± 0.6" in worse
    assert "On MonoDLE: chance +1.0" in noise
    assert "**The gpu size has not been run**" in text
    assert "Not finished with all seeds: never_run" in text and "**Not finished yet: 1 rows**" in text
    assert (
        "| good | 90 | 2.00 ± 0.00 | 1.00 ± 0.00 | 20.0 | 30.0 |" in text
        and "| good (student) | 3 | 90 | **+5.1 ± 0.1** |" in text
    )
    assert "    python -m benchmarks.distillation run --size cpu --groups monodle" in text
    assert text.index("On MonoDLE: good") < text.index("## ")


def test_a_group_trained_anew_leaves_the_others_as_they_were() -> None:
    earlier, record = made_up_record({"good": [5.0, 5.1, 5.2]}), made_up_record({"good": [1.0, 1.1, 1.2]})
    for one, cpu in ((earlier, "old"), (record, "new")):
        again = one["groups"]["monodle"]
        one["groups"]["gupnet"] = {**again, "title": "GUPNet, 400 training frames"}
        one["groups"]["monodetr"] = {**again, "rows": {}}
        for group in one["groups"].values():
            group["machine"], group["hash"] = {"cpu": cpu}, 64 * cpu[0]
    record["groups"]["monodle"] = {**record["groups"]["monodle"], "rows": {}}
    merged = with_others(record, earlier)
    assert merged["groups"]["monodle"] == earlier["groups"]["monodle"]
    assert merged["groups"]["gupnet"] == record["groups"]["gupnet"]
    assert not merged["groups"]["monodetr"]["rows"]
    text = document.markdown(page.TITLE, page.render({"cpu": merged}))
    assert f"| MonoDLE | streets {16 * 'o'} | bf16 | cpu old |" in text
    assert f"| GUPNet | streets {16 * 'n'} | bf16 | cpu new |" in text
    with pytest.raises(ValueError, match="other data"):
        with_others(record, earlier | {"data": {"streets": {"settings": "c" * 64}}})


def test_baselines_that_hardly_learned_are_named() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2]})
    said = "**Too little learned to compare methods**: on MonoDLE the baseline has 1.0 ± 0.0."
    assert not page.hardly_trained(record["groups"])
    for cell in record["groups"]["monodle"]["rows"]["baseline"]["seeds"].values():
        cell["values"]["car 3D loose"] = 1.0
    assert page.hardly_trained(record["groups"]) == [said]


def test_more_seeds_than_asked_for_are_judged_and_the_command_says_how() -> None:
    record = made_up_record({"good": [5.0, 5.1, 5.2]})
    group = record["groups"]["monodle"]
    command = "    python -m benchmarks.distillation run --size cpu --groups monodle"
    for asked, finished, ending in ((3, True, ""), (2, True, " --all-seeds"), (4, False, "")):
        group["seeds"] = asked
        assert page.finished(group, "good") is finished
        lines = document.markdown(page.TITLE, page.render({"cpu": record})).splitlines()
        assert command + ending in lines and (", ".join(group["rows"]) in " ".join(lines)) is not finished


def test_rows_that_go_on_from_others_are_compared_with_those_that_trained_as_long() -> None:
    record = made_up_record({"baseline_longer": [4.0, 4.1, 4.2], "twice": [10.0, 10.0, 10.0]})
    group = record["groups"]["monodle"]
    group["rows"]["twice"]["goes_on_from"] = ["baseline"]
    for cell in group["rows"]["baseline_longer"]["seeds"].values():
        cell["cost"]["steps"] = 180
    assert page.steps(group, "twice") == 180 and page.untaught(group, "twice") == "baseline_longer"
    assert page.gain(group, "twice").mean == pytest.approx(5.9)
    assert page.gain(group, "baseline_longer").mean == pytest.approx(4.1)


@pytest.mark.parametrize(
    ("lead", "word"), [([5.0, 5.1, 5.2], "more than 2 standard errors"), ([-4.0, 6.0, 1.0], "noise")]
)
def test_our_recipe_is_judged_against_the_best_single_method(lead: list[float], word: str) -> None:
    """Where it was chosen, and where nothing was; candidates are listed best first."""
    singles = {"monodistill": [1.0, 2.0, 3.0], "monoskd": [3.0, 4.0, 5.0]}
    ours = [a + b for a, b in zip(singles["monoskd"], lead, strict=True)]
    record = made_up_record({**singles, OURS[0]: ours})
    record["groups"][SEARCH] = record["groups"]["monodle"]
    text = document.markdown(page.TITLE, page.render({"cpu": record}))
    expected = f"{OURS[0]} minus monoskd {Estimate.of(lead).text(signed=True)}, {word} (paired t-test"
    line = next(
        line
        for line in text.splitlines()
        if line.startswith("- **Our recipe against the best single method of as many steps.**")
    )
    assert line.count(expected) == 2 and "After 90 steps, on the validation split, where it was chosen" in line
    table = text.partition("| candidate, 90 steps |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == ["| head_start", "| monoskd", "| monodistill"]


def test_the_html_says_the_same() -> None:
    record = made_up_record({"a<b": [5.0, 5.1, 5.2]})
    blocks = page.render({"cpu": record})
    text = document.html(page.TITLE, blocks)
    assert "On MonoDLE: a&lt;b +5.1 ± 0.1*" in text and "<b>Larger than noise, better than the baseline.</b>" in text
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


def test_from_worlds_to_the_page(tmp_path: Path) -> None:
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
    assert min(latency.values()) > 0
    assert found["cost"]["steps"] == 1 and found["cost"]["step_seconds"] > 0
    assert found["fields"]["whole"] == pytest.approx(
        found["values"]["car 3D loose"] - rows["baseline"]["seeds"]["0"]["values"]["car 3D loose"], abs=1e-6
    )
    text = document.markdown("", page.render({"cpu": record}))
    assert "Not finished with all seeds: teacher, baseline, monoskd" in text
