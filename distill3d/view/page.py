"""The frame of every page: one file that holds all that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from distill3d.view.stylesheet import STYLESHEET


def page_html(title: str, body: Sequence[str]) -> str:
    """A whole page; ``title`` is plain text, ``body`` holds pieces of HTML.

    Bytes of file names that are no text are written as escapes.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLESHEET}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
