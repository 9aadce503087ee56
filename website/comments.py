"""The comments beside fields and constants, which say what they are: ``#:`` lines above, or one behind."""

from __future__ import annotations

import io
import tokenize

COMMENT = "#"
#: Comments that speak to tools, not to readers.
TO_TOOLS = ("fmt:", "noqa", "pyright:", "type:")


def comments_of(source: str) -> dict[int, str]:
    """The text of each comment of a file, by its line, counted from 1."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = {token.start[0]: token.string.lstrip("#: ") for token in tokens if token.type == tokenize.COMMENT}
    return {line: text for line, text in texts.items() if not text.startswith(TO_TOOLS)}


def comment_on(source: str, comments: dict[int, str], first: int, last: int) -> str:
    """What is said of a statement in lines ``first`` to ``last``: the comments right above it, then those within."""
    lines = source.splitlines()
    above = first
    while above > 1 and lines[above - 2].lstrip().startswith(COMMENT):
        above -= 1
    return " ".join(comments[n] for n in range(above, last + 1) if n in comments)
