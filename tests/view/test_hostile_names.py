"""Names and notes of a user's files are text on every page, whatever they hold; templates go with the package."""

import json
import re
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import yaml
from html_page import Page

from distill3d.diagnose import diagnose
from distill3d.view.charts import Series, line_chart, svg_file
from distill3d.view.page import TEMPLATES, environment
from distill3d.view.palette import Look
from distill3d.view.report import write_report

MakeRun = Callable[..., Path]
HOSTILE = "</style><hostile a=\"b\" c='d'>{{ 7 * 7 }}&amp;"
#: As a folder may be called.
FOLDER = HOSTILE.replace("/", "")


def hostile_run(make_run: MakeRun) -> Path:
    """A run whose own name, and those of a stage, a loss, a class and more, are markup."""
    run = make_run(FOLDER)
    (run / "student").rename(run / FOLDER)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["stages"][-1]["name"] = FOLDER
    recipe["dataset"]["classes"] = ["Car", FOLDER.replace(" ", "").replace("=", "")]
    recipe["dataset"]["train_split"] = HOSTILE
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for name, changes in (("card.json", {"note": HOSTILE, "method": HOSTILE}), ("evaluation.json", {})):
        path = run / FOLDER / name
        content = json.loads(path.read_text()) | changes
        if name == "evaluation.json":
            content["settings"]["not_evaluated"] = []
            for overlap in ("strict", "loose"):
                content[overlap][f"{recipe['dataset']['classes'][1].lower()}_3d"] = content[overlap]["car_3d"]
        path.write_text(json.dumps(content))
    lines = [json.loads(line) for line in (run / FOLDER / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.setdefault("terms", {})[HOSTILE] = 1.0
    (run / FOLDER / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run / FOLDER / "config.yaml").write_text(yaml.safe_dump({"name": FOLDER, "role": "student"}))
    return run


def assert_text(page: Page) -> None:
    assert "hostile" not in page.tags and "<hostile" not in page.html and page.html.count("</style>") == 1
    assert "7 * 7" in page.text
    page.assert_self_contained()


def test_names_are_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = hostile_run(make_run)
    page = Page(write_report([run], tmp_path / "report.html", gallery=1).read_text(encoding="utf-8"))
    assert_text(page)
    for words in (
        f"distill3d report · {FOLDER}", f"Distilled: {FOLDER}", f"Splits {HOSTILE}", f"Note {HOSTILE}",
        f"rgb · {HOSTILE}",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.count("<hostilea") >= 2, "the class has a table, and is in the gallery's text"
    result = diagnose(run, out=tmp_path / "diagnosis.html")
    page = Page(result.files[0].read_text(encoding="utf-8"))
    assert_text(page)
    assert f"{FOLDER} against baseline" in page.text


def test_names_in_files_of_charts_are_text() -> None:
    svg = svg_file(line_chart(HOSTILE, [Series(HOSTILE, Look("#123456"), [0], [1], [HOSTILE])], x_label=HOSTILE))
    assert "<hostile" not in svg and svg.count("&lt;hostile") == 5  # in the label for those who do not see it, too


def test_everything_is_escaped_by_default_and_nowhere_else() -> None:
    assert environment().autoescape is True
    safe = [path.name for path in TEMPLATES.iterdir() if re.search(r"\|\s*safe|autoescape", path.read_text())]
    source = [
        path for path in TEMPLATES.parent.glob("*.py") if re.search(r"Markup\(|from html import", path.read_text())
    ]
    assert safe == [] and [path.name for path in source] == ["page.py"]


def test_templates_are_installed_with_the_package() -> None:
    settings = tomllib.loads((TEMPLATES.parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["distill3d"]
    for path in TEMPLATES.iterdir():
        assert any(fnmatch(f"view/templates/{path.name}", pattern) for pattern in patterns)
