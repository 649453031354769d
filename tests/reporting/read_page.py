"""A report's page, read as a browser would."""

from html.parser import HTMLParser

from clipgraft.reporting.html import render_report
from clipgraft.reporting.run_data import read_run

VOID_TAGS = {"meta", "img", "source"}


class Page(HTMLParser):
    """A page as a browser reads it: its tags with their attributes, and its text without style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read_page(run_dir):
    page = Page(render_report(read_run(run_dir)))
    assert page.open == []
    return page
