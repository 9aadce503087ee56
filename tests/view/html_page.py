"""A page as tests look at it."""

from html.parser import HTMLParser

#: Tags that need no end, in HTML or closed in themselves.
VOID = {"meta", "img", "br", "wbr", "line", "circle", "path", "rect"}


class Page(HTMLParser):
    """Checks that tags close, and collects what a page refers to, its text and its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.words: list[str] = []
        self.within = False
        self.feed(html)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def assert_self_contained(self) -> None:
        """Nothing is loaded from elsewhere, and no script runs."""
        assert not {"script", "link", "iframe", "object", "embed"} & set(self.tags)
        assert not any(word in self.html for word in ("http://", "https://", "@import", "url("))
        for reference in self.references:
            assert reference.startswith("data:image/") or reference[0] == "#" and reference[1:] in self.ids

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.references.append(value)
            if name == "id":
                self.ids.add(value)
        self.within = tag == "wbr"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.within:  # a place where a word may break does not end it
            self.words[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)
        self.within = False
