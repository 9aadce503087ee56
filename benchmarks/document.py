"""A page as a list of blocks, in Markdown and in HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from distill3d.view.charts import svg_file
from distill3d.view.headline import NO_BREAK
from distill3d.view.page import page_html

#: Cells that hold one are set as text.
WORD = re.compile("[A-Za-z]{2}")


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Points:
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Command:
    text: str


@dataclass(frozen=True)
class Picture:
    """A chart: inline in HTML, beside the Markdown as the file ``name``."""

    name: str
    about: str
    svg: str


Block = Heading | Paragraph | Points | Table | Command | Picture


def pictures(blocks: Sequence[Block]) -> dict[str, str]:
    """What the files that the Markdown shows hold, by their names."""
    return {block.name: svg_file(block.svg) for block in blocks if isinstance(block, Picture)}


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
            case Picture(name, about, _):
                parts.append(f"![{about}]({name})")
            case Table(head, rows):
                lines = [head, ["---"] * len(head), *rows]
                parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The same, self-contained."""
    parts = [f'<header><h1>{escape(title)}</h1></header><main><section class="first">']
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"</section><section><h2>{inline(text)}</h2>")
            case Paragraph(text):
                parts.append(f"<p>{inline(text)}</p>")
            case Points(lines):
                parts.append(f'<ul class="plain">{"".join(f"<li>{inline(line)}</li>" for line in lines)}</ul>')
            case Command(text):
                parts.append(f"<pre>{escape(text)}</pre>")
            case Picture(svg=svg):
                parts.append(f'<figure class="scroll" tabindex="0">{svg}</figure>')
            case Table(head, rows):
                parts.append(_table(head, rows))
    return page_html(title, [*parts, "</section></main>"])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers stay on one line, at the right; words may take several, and headings, so that wide tables fit."""
    styles = [' class="words"' if any(WORD.search(row[n]) for row in rows) else "" for n in range(len(head))]

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(f"<{tag}{style}>{inline(text)}</{tag}>" for style, text in zip(styles, texts, strict=True))

    top = cells("th", head)
    body = "".join(
        f'<tr><th scope="row">{inline(row[0])}</th>{cells("td", row).partition("</td>")[2]}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="ap fits"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def inline(text: str) -> str:
    """Bold and code of Markdown as HTML."""
    pieces = escape(text).split("`")
    code = "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
    bold = code.split("**")
    marked = "".join(f"<b>{piece}</b>" if i % 2 else piece for i, piece in enumerate(bold))
    return marked.replace("± ", f"±{NO_BREAK}")  # a line may end before the sign, not after it
