"""A made-up study of subspaces, and reports read as their readers see them."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.findings import Findings, find
from analysis.reading import load
from analysis.report import write_report
from tests.synthetic import grid, write_study

SUBSPACES = grid(model__style_dim=(0, 4, 16, 32), objective__beta=(0.5, 2.5))


def shortcut(params):
    """Coherence falls as subspaces grow, less so under a large beta."""
    return 0.7 - 0.006 * params["model.style_dim"] * (params["objective.beta"] < 1)


@pytest.fixture(scope="module")
def subspaces(tmp_path_factory):
    run = write_study(tmp_path_factory.mktemp("runs") / "subspaces", SUBSPACES, shortcut, noise=0.01)
    for config in load(run).configs:
        for trial in config.trials:
            folder = run / "samples" / trial.trial_id
            folder.mkdir(parents=True)
            for name in ("overview", "conditional_mnist", "conditional_svhn", "unconditional"):
                (folder / f"{name}.png").write_bytes(f"\x89PNG not really {name}".encode())
    return run


class Page(HTMLParser):
    """The links and the visible text of a page; refuses tags that do not match."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.tags, self.open, self.texts = [], set(), [], []
        self.feed(page.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "link", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join("".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


def report(run):
    """Write a report; its page, after the checks that hold for every report."""
    index = write_report(run)
    assert index == run / "report" / "index.html"
    page = Page(index)
    assert all(link.startswith(("#", "data:")) for link in page.links), page.links
    source = index.read_text(encoding="utf-8")
    assert "http:" not in source
    assert "https:" not in source
    assert not re.search(r"\b(nan|inf|None(?! yet))\b", page.text)
    ids = re.findall(r'\sid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    assert (run / "report" / "report.md").exists()
    return page


def findings_of(run) -> Findings:
    return find(load(run))
