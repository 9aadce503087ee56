"""MkDocs' events: adds the pages that are made, fills the navigation, and leads links to where they belong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from website import links, notebooks
from website.api import api
from website.registered import Section, detectors, methods, pages_of_modules, recipes

#: What stands in the navigation of mkdocs.yml for a section that is made.
SECTIONS = {"methods/": methods, "detectors/": detectors, "recipes/": recipes, "api/": api}

#: Files of this folder that pages load, all from the site itself.
ASSETS = ("site.css", "iframe-worker.js")

_made: dict[str, Section] = {}


def on_config(config: MkDocsConfig) -> None:
    """Makes the sections, and puts them into the navigation."""
    _made.clear()
    _made.update({name: make() for name, make in SECTIONS.items()})
    config.nav = _filled(config.nav)


def _filled(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_filled(e) for e in entry]
    if isinstance(entry, dict):
        return {title: _filled(e) for title, e in entry.items()}
    return _made[entry].nav if entry in _made else entry


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds pages: of sections, of the repository's own texts, of notebooks, and of files that any page links to."""
    texts = {page: text for section in _made.values() for page, text in section.pages.items()}
    own = pages_of_modules()
    for file, page in links.PAGES.items():
        texts[page] = _linked((links.ROOT / file).read_text(encoding="utf-8"), file, page, own)
    for written in files.documentation_pages():
        file, page = f"{links.DOCS}{written.src_uri}", written.src_uri
        texts[page] = _linked((links.ROOT / file).read_text(encoding="utf-8"), file, page, own)
    for written in [f for f in files if f.src_uri.endswith(links.NOTEBOOK)]:
        file, page = f"{links.DOCS}{written.src_uri}", written.src_uri.removesuffix(links.NOTEBOOK) + links.PAGE
        linked = partial(_linked, file=file, page=page, own=own)
        texts[page], pictures = notebooks.page(links.ROOT / file, page, linked)
        for place, data in pictures.items():
            files.append(File.generated(config, place, content=data))
    texts |= {page: links.source_text(page) for page in links.linked_sources(texts)}
    for page, text in texts.items():
        if (written := files.get_file_from_path(page)) is not None:
            files.remove(written)
        files.append(File.generated(config, page, content=text))
    for name in ASSETS:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(Path(__file__).with_name(name))))


def _linked(text: str, file: str, page: str, own: dict[str, str]) -> str:
    """A text of a file of the repository, with the links that it has on a page."""
    try:
        return links.rewritten(text, file.rpartition("/")[0], page, lambda f: links.site_page(f, own))
    except links.NoSuchFile as error:
        raise PluginError(f"{file}: {error}") from None
