"""Pages: one file that holds all that it needs, made by the templates beside this module; no script runs.

Whatever is put into a template is escaped there, and nowhere else.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")
JPEG_QUALITY = 82  # keeps a frame's pictures near 300 kB


@dataclass(frozen=True)
class Head:
    """What stands above a page's sections, and below them."""

    kind: str  # of page
    title: str  # of the window
    heading: str
    leads: Sequence[str]
    cautions: Sequence[str]  # what keeps the numbers from being more than they are, a sentence each
    settings: Mapping[str, str]
    missing: Sequence[str]  # a sentence each
    folders: Sequence[str]  # from which it was made


@dataclass(frozen=True)
class Photo:
    """A picture with its data inside."""

    source: str
    width: int
    height: int
    alt: str


def photo(picture: Image.Image, alt: str) -> Photo:
    """Palette pictures as PNG, others as JPEG."""
    buffer = io.BytesIO()
    kind = "png" if picture.mode == "P" else "jpeg"
    if kind == "png":
        picture.save(buffer, "PNG", optimize=True)
    else:  # thin coloured lines stay sharp
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Photo(f"data:image/{kind};base64,{data}", *picture.size, alt)


def subscripts(text: str) -> Markup:
    """Symbols such as F_T with a subscript."""
    return Markup(re.sub("([A-Z])_([A-Z])", r"\1<sub>\2</sub>", str(escape(text))))


def breakable(text: str) -> Markup:
    """Names such as baseline_longer, which may go on in another line after each underscore."""
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


@cache
def environment() -> Environment:
    """Of all templates."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"subscripts": subscripts, "breakable": breakable}
    return made


def render(template: str, **content: object) -> str:
    """The text that a template makes of its content; bytes of file names that are no text are written as escapes."""
    text = environment().get_template(template).render(content)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
