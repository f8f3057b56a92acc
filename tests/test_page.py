"""Opens a report in a headless browser, where there is one: sorting, hints, and no errors."""

import html
import json
import re
import shutil
import subprocess

import pytest

from analysis.report import write_report
from tests.synthetic import grid, write_study

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

PROBE = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const table = document.querySelector("#configs table");
  const column = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
  const button = [...table.tHead.querySelectorAll("button")].find((each) => each.textContent === "style_dim");
  const index = button.closest("th").cellIndex;
  button.click();
  const ascending = column(index);
  button.click();
  const descending = column(index);
  const seen = [...document.querySelectorAll("figure.drawing svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    return box.width > 100 && box.height > 50 && svg.querySelectorAll("path, use").length > 10;
  });
  const mark = document.querySelector("#figure-trade_off [data-hint]");
  const [x, y] = [mark.getBoundingClientRect().x, mark.getBoundingClientRect().y];
  mark.dispatchEvent(new PointerEvent("pointerover", {bubbles: true, clientX: x, clientY: y}));
  const hint = document.querySelector(".hint");
  const shown = hint.hidden ? "" : hint.textContent;
  document.body.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const root = document.documentElement;
  const found = {
    errors, ascending, descending, seen, shown, hidden: hint.hidden,
    overflows: root.scrollWidth > root.clientWidth,
    cut: [...document.querySelectorAll(".facts dd")].some((each) => each.scrollWidth > each.clientWidth),
    name: getComputedStyle(document.querySelector(".overline")).textTransform,
    muted: [...document.querySelectorAll("td.tint.muted")].map((each) => getComputedStyle(each).color),
    ink: getComputedStyle(document.body).color,
    tall: [...document.querySelectorAll("table.sortable thead")].map((head) => head.clientHeight),
    hints: document.querySelectorAll("[data-hint]").length,
    beside: document.querySelectorAll("#paper table.beside").length,
  };
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
"""


FRAME = """
<!DOCTYPE html>
<body style="margin: 0">
<iframe style="border: 0; width: %dpx; height: 900px"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => document.body.append(frame.contentDocument.querySelector("#result")));
frame.srcdoc = %s;
</script>
"""
"""A browser's window is never as narrow as a telephone, but a frame can be."""


def probe(run, width, folder):
    """What a report says of itself, shown so many pixels wide."""
    source = write_report(run).read_text().replace("<head>", f"<head><script>{PROBE}</script>")
    page = folder / "probed.html"
    page.write_text(FRAME % (width, json.dumps(source).replace("</", "<\\/")))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},900",
            f"--user-data-dir={folder}", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    return json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout)[1]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_study(
        tmp_path_factory.mktemp("runs") / "run",
        grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 2.5), model__width=(0.5, 1.0)),
        lambda params: 0.7 - 0.01 * params["model.style_dim"],
    )


@pytest.mark.parametrize("width", [400, 1600])
def test_page_sorts_shows_hints_and_has_no_errors(run, width, tmp_path):
    found = probe(run, width, tmp_path)
    assert found["errors"] == []
    assert found["ascending"] == ["0"] * 4 + ["4"] * 4 + ["16"] * 4
    assert found["descending"] == found["ascending"][::-1]
    assert len(found["seen"]) == 7
    assert all(found["seen"])
    assert re.fullmatch(
        r"config \d+: style_dim = .*; mean coherence \(product\) 0\.\d+ ± 0\.\d+", found["shown"]
    )
    assert found["hidden"]
    assert found["hints"] > 50
    assert found["beside"] == 2
    assert found["name"] == "none"
    assert set(found["muted"]) == {found["ink"]}
    assert not found["overflows"]


@pytest.mark.parametrize("width", [390, 620, 800])
def test_page_cuts_no_number_off(width, tmp_path):
    name = "model.the_size_of_each_of_the_subspaces_of_all_of_the_modalities"
    configs = [{name: size, "model.style_dim": other} for size in (0, 4) for other in (0, 4)]
    run = write_study(tmp_path / "run", configs, lambda params: 0.995 if params[name] else 0.6, noise=0.02)
    found = probe(run, width, tmp_path)
    assert re.search(r"<dd>0\.\d+ \[0\.\d+, 1\.000\]", (run / "report" / "index.html").read_text())
    assert not found["cut"]
    assert not found["overflows"]


def test_page_has_room_for_long_names_and_many_levels(tmp_path):
    names = [f"a_name_that_is_very_long_indeed_and_has_the_number_{index}_of_nine" for index in range(9)]
    run = write_study(
        tmp_path / "run",
        grid(objective__name=names, model__style_dim=(0, 4, 16)),
        lambda params: 0.3 + 0.05 * names.index(params["objective.name"]),
        study={"question": "What does " + "a_word_without_any_space_" * 8 + " do?"},
    )
    found = probe(run, 400, tmp_path)
    assert found["errors"] == []
    assert not found["overflows"]
    assert len(found["ascending"]) == 27
    assert max(found["tall"]) < 120
    assert not re.search(r"\.<wbr>\d", (run / "report" / "index.html").read_text())
    svg = (run / "report" / "figures" / "interaction.svg").read_text()
    assert all(f">…{index}…<" in svg for index in range(9))
