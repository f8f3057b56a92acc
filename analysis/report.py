"""Writes the report of a study: python analysis/report.py RUN

Reads RUN/results, study.json, manifest.json and samples/; writes RUN/report/index.html, one
file that needs no network, report.md with the same numbers, figures/ and tables/configs.csv.
"""

import argparse
import base64
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis import tables
from analysis.drawing import Drawing
from analysis.figures import draw
from analysis.findings import Findings, find
from analysis.results import ReportError, Trial, load
from analysis.wording import answer, describe, duration, fixed, plural
from study.store import StoreError

_MOST_GRIDS = 4
"""Replicates of the best config whose sample grids are shown."""


@dataclass(frozen=True)
class SampleGrid:
    """The picture of one trial's generated samples."""

    trial: Trial
    file: Path

    @property
    def data_url(self) -> str:
        """The picture itself, as an address within the page."""
        return f"data:image/png;base64,{base64.b64encode(self.file.read_bytes()).decode()}"


def write_report(run: Path) -> Path:
    """Write the report of the run in folder `run`; the path of its index.html.

    Raises:
        ReportError: if there is nothing that a report could be made of.
        StoreError: if a results file is damaged.
    """
    findings = find(load(run))
    drawings, grids = draw(findings), _sample_grids(findings)
    folder = run / "report"
    _write_files(folder, findings, drawings, grids)
    context = _context(findings, drawings, grids)
    environment = _environment()
    (folder / "report.md").write_text(environment.get_template("report.md").render(context), encoding="utf-8")
    index = folder / "index.html"
    index.write_text(environment.get_template("report.html").render(context), encoding="utf-8")
    return index


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="report.py", description="Write the report of a study.")
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="folder of the study, as given to study/run.py --out"
    )
    try:
        index = write_report(parser.parse_args(argv).run)
    except (ReportError, StoreError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{index}\n")
    return 0


def _sample_grids(findings: Findings) -> list[SampleGrid]:
    """The best config's pictures, as far as there are any."""
    trials = findings.best.config.complete if findings.best else ()
    files = [
        SampleGrid(trial, findings.results.run / "samples" / f"{trial.trial_id}.png") for trial in trials
    ]
    return [grid for grid in files if grid.file.is_file()][:_MOST_GRIDS]


def _write_files(
    folder: Path, findings: Findings, drawings: Sequence[Drawing], grids: Sequence[SampleGrid]
) -> None:
    """Figures and tables; figures of an earlier report go."""
    figures, csv_folder = folder / "figures", folder / "tables"
    for each in (figures, csv_folder):
        each.mkdir(parents=True, exist_ok=True)
    for stale in (*figures.glob("*.svg"), *figures.glob("*.png")):
        stale.unlink()
    for drawing in drawings:
        (figures / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
    for grid in grids:
        shutil.copyfile(grid.file, figures / f"samples_{grid.file.name}")
    tables.write_config_csv(findings, csv_folder / "configs.csv")


def _context(findings: Findings, drawings: Sequence[Drawing], grids: Sequence[SampleGrid]) -> dict[str, Any]:
    """Everything that the templates show."""
    results = findings.results
    best = findings.best
    return {
        "name": results.study.get("study") or results.run.resolve().name,
        "question": results.study.get("question") or "",
        "description": (results.study.get("description") or "").strip(),
        "answer": answer(findings),
        "facts": list(_facts(findings)),
        "notes": list(_notes(findings)),
        "settings": tables.setting_rows(results),
        "domains": tables.domain_table(results),
        "fixed_settings": tables.fixed_settings(results),
        "configs": tables.config_table(findings),
        "effects": tables.effect_table(findings),
        "correlations": tables.correlation_table(findings),
        "drawings": drawings,
        "best": describe(best.config, results) if best else "",
        "subsets": tables.subset_table(findings),
        "summary": tables.summary_table(findings),
        "judge": tables.judge_accuracies(findings),
        "grids": grids,
        "states": Counter(trial.state for trial in results.trials),
        "troubles": [
            (each, trial)
            for each in findings.configs
            for trial in each.config.trials
            if not trial.is_complete
        ],
        "running": results.running,
        "num_missing": results.num_missing,
        "has_intervals": bool(findings.noise.dof),
        "dof": findings.noise.dof,
        "num_compared": findings.num_compared,
        "objective": results.objective.label,
        "run": results.run.as_posix(),
        "quoted_run": shlex.quote(results.run.as_posix()),
        "queries": tables.queries(results),
        "command": tables.command(results),
        "commit": str(results.manifest.get("commit") or ""),
    }


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    """The numbers to see at first glance, each with what it is."""
    results, best = findings.results, findings.best
    decimals = results.objective.decimals
    estimate = best.estimates.get("objective") if best else None
    if estimate:
        width = "" if estimate.half_width is None else f" ± {fixed(estimate.half_width, decimals)}"
        yield (
            f"{fixed(estimate.value, decimals)}{width}",
            f"test {results.objective.label} of the best config",
        )
    effect = findings.effects[0].effect if findings.effects else None
    if effect:
        width = "" if effect.half_width is None else f" ± {fixed(effect.half_width, decimals)}"
        name = findings.effects[0].factor.name
        yield (
            f"{fixed(abs(effect.difference), decimals)}{width}",
            f"largest effect: {name}, best against worst level",
        )
    if findings.correlations and not effect and (found := findings.correlations[0].correlation):
        yield (
            f"ρ = {fixed(found.rho, 2)}",
            f"strongest rank correlation: {findings.correlations[0].factor.name}",
        )
    complete = sum(trial.is_complete for trial in results.trials)
    planned = len(results.trials) + len(results.running) + results.num_missing
    yield f"{complete} of {planned}", f"trials complete, of {plural(len(results.configs), 'config')}"
    yield duration(sum(trial.device_s for trial in results.trials)), "of device time"


def _notes(findings: Findings) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    results = findings.results
    unfinished = len(results.running) + results.num_missing
    if unfinished:
        ended = len(results.trials)
        yield f"This study is unfinished: {ended} of its {plural(ended + unfinished, 'trial')} have ended."
    lost = sum(not trial.is_complete for trial in results.trials)
    if lost:
        count = f"{plural(lost, 'trial')} did not complete and {'does' if lost == 1 else 'do'} not count"
        yield f"{count} (see “What did not complete”)."
    if findings.best and not findings.noise.dof:
        yield (
            "No config has two complete replicates, so the noise between seeds is unknown and configs "
            "have no intervals."
        )
    if results.manifest.get("dirty"):
        yield "The code had uncommitted changes when the study started."


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rich": _rich, "plain": _plain, "raw": Markup, "indented": _indented}
    environment.globals["plural"] = plural
    return environment


def _rich(text: str) -> Markup:
    """HTML of a sentence in which `code` and **bold** are marked."""
    safe = str(escape(text)).replace(" ± ", "&nbsp;±&nbsp;").replace(" %", "&nbsp;%")
    safe = re.sub(r"`([^`]+)`", lambda found: f"<code>{found[1].replace('*', '&#42;')}</code>", safe)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    escaped = re.sub(r"([\\`*_|\[\]<>])", r"\\\1", str(text))
    return " ".join(escaped.split())


def _indented(text: str) -> str:
    """A block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
