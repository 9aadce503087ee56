"""A page as a list of blocks, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jinja2 import FileSystemLoader
from markupsafe import Markup, escape

from distill3d.view.charts import Chart, svg_file
from distill3d.view.headline import NO_BREAK
from distill3d.view.page import TEMPLATES, environment
from distill3d.view.pieces import Table as PageTable
from distill3d.view.pieces import plain_table


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Points:
    kind: ClassVar[str] = "points"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Command:
    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Picture:
    """A chart: inline in HTML, beside the Markdown as the file ``name``."""

    kind: ClassVar[str] = "picture"
    name: str
    about: str
    chart: Chart
    narrow: Chart | None = None  # the same for narrow screens


Block = Heading | Paragraph | Points | Table | Command | Picture


def pictures(blocks: Sequence[Block]) -> dict[str, str]:
    """What the files that the Markdown shows hold, by their names."""
    return {block.name: svg_file(block.chart) for block in blocks if isinstance(block, Picture)}


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page for a source tree's readers."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Paragraph(text):
                parts.append(text)
            case Points(lines):
                parts.append("\n".join(f"- {line}" for line in lines))
            case Command(text):
                parts.append(f"    {text}")
            case Picture(name, about):
                parts.append(f"![{about}]({name})")
            case Table(head, rows):
                lines = [head, ["---"] * len(head), *rows]
                parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The same, self-contained."""
    sections: list[list[Block]] = [[]]
    for block in blocks:
        if isinstance(block, Heading):
            sections.append([])
        sections[-1].append(block)
    return _PAGES.get_template("document.html").render(title=title, sections=sections)


def page_table(table: Table) -> PageTable:
    """A table for the template."""
    return plain_table("", [*map(inline, table.head)], [[*map(inline, row)] for row in table.rows])


def inline(text: str) -> Markup:
    """Bold and code of Markdown as HTML."""
    pieces = str(escape(text)).split("`")
    code = "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
    bold = code.split("**")
    marked = "".join(f"<b>{piece}</b>" if i % 2 else piece for i, piece in enumerate(bold))
    return Markup(marked.replace("± ", f"±{NO_BREAK}"))  # a line may end before the sign, not after it


_PAGES = environment().overlay(loader=FileSystemLoader([TEMPLATES, Path(__file__).parent]))
_PAGES.filters |= {"inline": inline, "page_table": page_table}
