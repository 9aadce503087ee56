"""Links to files of the repository, which lead to the file on a code host and to a page on the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Code, which is left alone, or the target of a link.
CODE_OR_LINK = re.compile(r"^```.*?^```|`[^`\n]*`|(?<=\]\()(?P<link>[^)\s]+)", re.DOTALL | re.MULTILINE)
#: What a link to a file does not begin with.
ELSEWHERE = ("http://", "https://", "mailto:", "#")
#: The repository's files that are pages of their own, and the folder whose files are.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}
DOCS = "docs/"
NOTEBOOK, PAGE = ".ipynb", ".md"
SOURCE = "source/"


class NoSuchFile(Exception):
    """A link to a file that the repository does not have."""


def rewritten(text: str, home: str, place: str, page_of: Callable[[str], str]) -> str:
    """A page's text with links between pages of the site in place of those between files of the repository.

    Args:
        home: the folder of the repository's file, such as ``docs``, from which its links count.
        place: the page on the site, such as ``notebooks/first.md``.
        page_of: the page on the site, or file below docs/, that stands for a file of the repository.

    Raises:
        NoSuchFile: a link leads to no file.
    """

    def target(match: re.Match[str]) -> str:
        link = match["link"]
        if link is None or link.startswith(ELSEWHERE):
            return match[0]
        path, hash_, anchor = link.partition("#")
        file = posixpath.normpath(posixpath.join(home, path))
        if file.startswith("..") or not (ROOT / file).is_file():
            raise NoSuchFile(f"a link leads to {link}, but there is no file {file}")
        return posixpath.relpath(page_of(file), posixpath.dirname(place) or ".") + hash_ + anchor

    return CODE_OR_LINK.sub(target, text)


def site_page(file: str, own_pages: dict[str, str]) -> str:
    """The page or asset of the site for a file of the repository; ``own_pages`` are those of registered modules."""
    if file in PAGES:
        return PAGES[file]
    if file.startswith(DOCS):
        file = file.removeprefix(DOCS)
        return file.removesuffix(NOTEBOOK) + PAGE if file.endswith(NOTEBOOK) else file
    return own_pages.get(file, source_page(file))


def linked_sources(pages: dict[str, str]) -> set[str]:
    """The pages below ``source/`` that pages link to."""
    found = set()
    for place, text in pages.items():
        for match in CODE_OR_LINK.finditer(text):
            link = (match["link"] or "").partition("#")[0]
            page = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
            if page.startswith(SOURCE):
                found.add(page)
    return found


def source_page(file: str) -> str:
    """The page that shows a file as it is."""
    return f"{SOURCE}{file}{PAGE}"


def source_text(page: str) -> str:
    """The text of a page that shows a file.

    Raises:
        NoSuchFile: the repository has no such file, or it is no text.
    """
    file = page.removeprefix(SOURCE).removesuffix(PAGE)
    try:
        code = (ROOT / file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoSuchFile(f"{page} is to show {file}: {error}") from None
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", code))])
    language = {".py": "python", ".toml": "toml", ".yml": "yaml"}.get(Path(file).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {file}\n\n{fence}{language}\n{code.rstrip()}\n{fence}\n"
