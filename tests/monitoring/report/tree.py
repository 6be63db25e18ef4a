"""A page or a drawing as its reader meets it."""

from html.parser import HTMLParser


class Tree(HTMLParser):
    """Reads a page as a browser would: its tags must close in order; ids, links and text are collected."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert value is None or name != "id" or value not in self.ids, f"the id {value} is there twice"
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "srcset", "data", "action", "xlink:href") and value:
                self.links.append((tag, name, value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())
