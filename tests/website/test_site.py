"""The documentation site: every page in the navigation is there or can be made, and every link leads somewhere.

``make docs`` builds it, and holds anchors and pages against each other; nothing here needs its packages.
"""

import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown import markdown
from markdown_it import MarkdownIt

import distill3d
from distill3d.detectors import DETECTORS
from distill3d.distill.methods import METHODS
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.recipes import RECIPES, get_recipe
from website import links, registered
from website.api import MODULES, api
from website.notebooks import executed
from website.settings_table import field_comments, settings_table

DOCS = links.ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(links.ROOT / name for name in links.PAGES)]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
#: What mkdocs.yml names for sections that are made.
SECTIONS = ("methods/", "detectors/", "recipes/", "api/")


class _Navigation(yaml.SafeLoader):
    """Reads mkdocs.yml without its packages, whose functions some of its tags name."""


_Navigation.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def named(entry: Any) -> Iterator[str]:
    """The pages that a part of the navigation names."""
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from named(inner)


def test_the_navigation_names_what_there_is_and_all_of_it() -> None:
    config = yaml.load((links.ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Navigation)
    given = set(named(config["nav"]))
    written = {str(path.relative_to(DOCS).with_suffix(".md")) for path in (*DOCS.rglob("*.md"), *NOTEBOOKS)}
    assert given == {*written, *links.PAGES.values(), *SECTIONS}


def test_all_that_is_registered_has_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """So has a recipe that came a moment ago, by itself."""

    def mine() -> distill3d.Recipe:
        """A recipe of one's own | with a bar."""
        demo = get_recipe("demo")
        return replace(demo, dataset=replace(demo.dataset, identity="mine"), note="")

    monkeypatch.setattr(registered, "RECIPES", {"mine": mine, **{n: RECIPES[n] for n in ("demo", "tiny_labeldistill")}})
    sections = {"recipes": registered.recipes(), "methods": registered.methods(), "detectors": registered.detectors()}
    expected = {
        "recipes": {"mine", "demo", "tiny_labeldistill"}, "methods": {*METHODS, "mixed"}, "detectors": {*DETECTORS},
    }  # fmt: skip
    pages = {page: text for section in sections.values() for page, text in section.pages.items()}
    for folder, names in expected.items():
        assert {*sections[folder].pages} == {f"{folder}/{name}.md" for name in {*names, "index"}}
        assert {*named(sections[folder].nav)} == {*sections[folder].pages}
    assert "distill3d train mine" in pages["recipes/mine.md"] and "recipes/mine.md" in pages["methods/monoskd.md"]
    assert r"A recipe of one's own \| with a bar." in pages["recipes/index.md"]
    assert "28.91 / 20.21 / 16.99" in registered.recipe_page("x", get_recipe("monoskd_did_m3d"), RECIPES["demo"])
    for page in links.linked_sources(pages):
        assert links.source_text(page)


def test_settings_are_told_with_ranges_styles_and_comments() -> None:
    rows = {line.split("`")[1]: line for line in settings_table(MonoSKDConfig).splitlines()[2:]}
    assert [*rows] == [field.name for field in fields(MonoSKDConfig)]
    assert "one of 'batch', 'sample'" in rows["corr_scope"] and "`'batch'` / `'sample'`" in rows["corr_scope"]
    assert rows["taps"].endswith("| from fine to coarse |")  # beside the field
    assert "score from which a teacher's boxes count" in rows["least_score"]  # inherited, above the field
    assert "pyright" not in str(field_comments(MonoSKDConfig)) and "fmt" not in str(field_comments(MonoSKDConfig))


def test_links_lead_to_files() -> None:
    """From every page, and on a code host as on the site."""
    own = registered.pages_of_modules()
    for path in PAGES:
        file = path.relative_to(links.ROOT).as_posix()
        home = path.parent.relative_to(links.ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        links.rewritten(text, "" if home == "." else home, "x.md", lambda f: links.site_page(f, own))
        assert file not in links.PAGES or "](docs/" not in links.rewritten(text, "", "x.md", lambda f: f"x/{f}")


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("[a](../distill3d/boxes.py)", "[a](source/distill3d/boxes.py.md)"),
        ("[a](../distill3d/detectors/caddn.py)", "[a](detectors/caddn.md)"),
        ("[a](../README.md#does-it-help)", "[a](index.md#does-it-help)"),
        ("[a](notebooks/monoskd-terms.ipynb)", "[a](notebooks/monoskd-terms.md)"),
        ("![a](demo.jpg) [b](https://example.org) [c](#d)", "![a](demo.jpg) [b](https://example.org) [c](#d)"),
        ("`[a](none.md)`\n```\nb[1](none.md)\n```\n", "`[a](none.md)`\n```\nb[1](none.md)\n```\n"),
        ("[a](none.md)", None),
        ("[a](../distill3d)", None),
        ("[a](../../other/file.md)", None),
    ],
)
def test_a_link_becomes_that_of_the_site_or_is_refused(text: str, there: str | None) -> None:
    own = registered.pages_of_modules()

    def page_of(file: str) -> str:
        return links.site_page(file, own)

    if there is None:
        with pytest.raises(links.NoSuchFile, match="there is no file"):
            links.rewritten(text, "docs", "page.md", page_of)
    else:
        assert links.rewritten(text, "docs", "page.md", page_of) == there


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_read_alike_on_a_code_host(path: Path) -> None:
    """The site's Markdown asks more of lists than code hosts' do: both must see the same lists, tables and blocks."""
    text = path.read_text(encoding="utf-8")
    site = markdown(text, extensions=["attr_list", "tables", "fenced_code"])
    host = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    for tag in ("li", "ol", "ul", "table", "tr", "pre", "p", "h1", "h2", "h3", "img", "a"):
        assert len(re.findall(rf"<{tag}[ >/]", site)) == len(re.findall(rf"<{tag}[ >/]", host)), tag


def test_what_pages_and_notebooks_import_is_in_the_reference() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*PAGES, *NOTEBOOKS)]
    imported = {name for text in texts for name in re.findall(r"from (distill3d[\w.]*) import", text)}
    modules = {module for group in MODULES.values() for module in group}
    own = {page.removesuffix(".py").replace("/", ".") for page in registered.pages_of_modules()}
    assert imported - {"distill3d"} <= modules | own
    pages = api().pages
    assert all(f"::: distill3d.{name}\n" in pages["api/index.md"] for name in distill3d.__all__)
    assert {f"api/{module}.md" for module in modules} < {*pages}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path) -> None:
    """From first to last cell, in an empty folder; what they give is never stored."""
    assert not re.search(r'"(text/plain|image/png|output_type)"', path.read_text(encoding="utf-8"))
    cells = [cell for cell in executed(path).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.execution_count for cell in cells) and outputs
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
