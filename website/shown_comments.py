"""Griffe's extension by which the reference shows the comments beside fields and constants."""

from __future__ import annotations

from typing import Any

import griffe

from website.comments import comment_on, comments_of


class Comments(griffe.Extension):
    """Gives attributes without a docstring their comments as one."""

    def __init__(self) -> None:
        self.read: dict[str, tuple[str, dict[int, str]]] = {}

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called by Griffe for each attribute that it finds."""
        if attr.docstring is not None or attr.lineno is None or attr.endlineno is None:
            return
        path = str(attr.filepath)
        if path not in self.read:
            with open(path, encoding="utf-8") as file:
                source = file.read()
            self.read[path] = source, comments_of(source)
        text = comment_on(*self.read[path], attr.lineno, attr.endlineno)
        if text:
            attr.docstring = griffe.Docstring(text, parent=attr, lineno=attr.lineno)
