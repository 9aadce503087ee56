"""A settings dataclass as a table: what each field may be, its default, its styles, and the comment beside it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from distill3d.settings import expected_words, hints_of
from website.comments import comment_on, comments_of


def settings_table(kind: type) -> str:
    """The fields of a settings dataclass, inherited ones included, as a Markdown table."""
    fields, texts, hints = dataclasses.fields(kind), field_comments(kind), hints_of(kind)
    styled = any("released" in field.metadata for field in fields)
    heads = ("setting", "may be", "default", *(("released / intended",) if styled else ()), "what it is")
    rows = [heads, ("---",) * len(heads)]
    for field in fields:
        words = [f"`{field.name}`", expected_words(hints[field.name]), _code(_default(field))]
        if styled:
            words.append(" / ".join(_code(field.metadata[s]) for s in ("released", "intended") if s in field.metadata))
        rows.append((*words, texts.get(field.name, "")))
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)


def field_comments(kind: type) -> dict[str, str]:
    """The comments of a dataclass's fields: the lines right above a field, then the one beside it."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_comments(base)
    return found


def _own_comments(kind: type) -> dict[str, str]:
    source = textwrap.dedent(inspect.getsource(kind))
    comments = comments_of(source)
    (of_class,) = ast.parse(source).body
    assert isinstance(of_class, ast.ClassDef)
    found = {
        node.target.id: comment_on(source, comments, node.lineno, node.end_lineno or node.lineno)
        for node in of_class.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: text for name, text in found.items() if text}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _code(value: Any) -> str:
    if value is dataclasses.MISSING:
        return ""
    return f"`{_spelt(value)}`"


def _spelt(value: Any) -> str:
    """As Python writes it; of other settings only what differs from their own defaults."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_spelt, value))}{',' if len(value) == 1 else ''})"
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    differing = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    given = [f"{f}={_spelt(v)}" for (f, v), field in zip(differing, dataclasses.fields(value), strict=True)
             if v != _default(field)]  # fmt: skip
    return f"{type(value).__name__}({', '.join(given)})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
