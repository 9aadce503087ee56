"""A page as a list of blocks, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from distill3d.view.page import page_html


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


Block = Heading | Paragraph | Points | Table | Command


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
            case Table(head, rows):
                lines = [head, ["---"] * len(head), *rows]
                parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def html(title: str, blocks: Sequence[Block]) -> str:
    """The same, self-contained."""
    parts = [f"<header><h1>{escape(title)}</h1></header><main>"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"<h2>{inline(text)}</h2>")
            case Paragraph(text):
                parts.append(f"<p>{inline(text)}</p>")
            case Points(lines):
                parts.append(f'<ul class="plain">{"".join(f"<li>{inline(line)}</li>" for line in lines)}</ul>')
            case Command(text):
                parts.append(f"<pre>{escape(text)}</pre>")
            case Table(head, rows):
                top = "".join(f"<th>{inline(cell)}</th>" for cell in head)
                body = "".join(
                    f'<tr><th scope="row">{inline(first)}</th>{"".join(f"<td>{inline(c)}</td>" for c in rest)}</tr>'
                    for first, *rest in rows
                )
                parts.append(f'<div class="scroll" tabindex="0"><table class="ap"><thead><tr>{top}</tr></thead>'
                             f"<tbody>{body}</tbody></table></div>")  # fmt: skip
    return page_html(title, [*parts, "</main>"])


def inline(text: str) -> str:
    """Bold and code of Markdown as HTML."""
    pieces = escape(text).split("`")
    code = "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
    bold = code.split("**")
    return "".join(f"<b>{piece}</b>" if i % 2 else piece for i, piece in enumerate(bold))
