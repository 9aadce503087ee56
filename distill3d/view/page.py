"""The frame of every page: one file that holds all that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from distill3d.errors import UserError
from distill3d.view.stylesheet import STYLESHEET


def page_html(title: str, body: Sequence[str]) -> str:
    """A whole page; ``title`` is plain text, ``body`` holds pieces of HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLESHEET}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def write_file(path: Path, text: str) -> Path:
    """Write a text file, and the folders above it.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path
