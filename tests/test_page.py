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
    hints: document.querySelectorAll("[data-hint]").length,
    beside: document.querySelectorAll("#paper table.beside").length,
  };
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_study(
        tmp_path_factory.mktemp("runs") / "run",
        grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 2.5), model__width=(0.5, 1.0)),
        lambda params: 0.7 - 0.01 * params["model.style_dim"],
    )
    probed = run / "report" / "probed.html"
    source = write_report(run).read_text()
    probed.write_text(source.replace("<head>", f"<head><script>{PROBE}</script>"))
    return probed


@pytest.mark.parametrize("width", [500, 1600])
def test_page_sorts_shows_hints_and_has_no_errors(page, width, tmp_path):
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
            f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    found = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout)[1]))
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
    assert not found["overflows"]
