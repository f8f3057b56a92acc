"""Writes the report of a study, or of several side by side: python analysis/report.py RUN [RUN ...]

Reads each RUN's results, study.json, manifest.json and samples/; writes index.html, one file that
needs no network, report.md with the same numbers, figures/ as SVG, PNG and PDF, and tables/: as LaTeX and
Markdown like the report shows them, as CSV at full precision.
"""

import argparse
import base64
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis import beside, provenance, tables
from analysis.api import Study, load
from analysis.attributes import precision_table
from analysis.cells import Table
from analysis.claims import MARGIN
from analysis.confounding import confounded, rivals
from analysis.drawing import Drawing
from analysis.findings import Findings
from analysis.importance import MOST_NOISE, noise_share
from analysis.leaks import leak_sentences
from analysis.reading import ReportError
from analysis.results import Trial
from analysis.wording import answer, describe, duration, fixed, listed, plural, plus_minus, winner
from study.files import FilesError, is_url
from study.store import StoreError

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{NO-BREAK SPACE}": "~",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "ρ": r"$\rho$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "–": "--",
    "…": r"\ldots{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}

_REPLACED = ("figures/*.svg", "figures/*.png", "figures/*.pdf", "tables/*.csv", "tables/*.md", "tables/*.tex")
"""What a report writes into its folder, and removes there of an earlier one."""

_LONGEST_WORD = 26
"""Letters that a column may be wide for the sake of one word."""


@dataclass(frozen=True)
class SampleGrid:
    """A picture of one trial's generated samples."""

    label: str
    trial: Trial
    file: Path

    @property
    def name(self) -> str:
        """Of its copy among the figures."""
        trial = re.sub(r"[^\w.-]|_", lambda found: f"_{ord(found[0]):x}_", self.trial.trial_id)
        return f"samples_{trial}_{self.file.name}"

    @property
    def data_url(self) -> str:
        """The picture itself, as an address within the page."""
        return f"data:image/png;base64,{base64.b64encode(self.file.read_bytes()).decode()}"


def write_report(*runs: Path | str, out: Path | None = None) -> Path:
    """Write the report of one run, or of several that are compared; the path of its index.html.

    Args:
        runs: their folders, on this machine or in object storage by URL.
        out: the report's folder, whose figures and tables it replaces; by default `report` in the run's own,
            or here for several runs and for one in object storage.

    Raises:
        ReportError: if there is nothing that a report could be made of, the runs do not compare, or
            the folder cannot be written or holds figures or tables and no report.
        StoreError: if a results file is damaged.
    """
    study = load(*runs)
    is_own = len(runs) == 1 and not is_url(runs[0])
    folder = out or (Path(runs[0]) / "report" if is_own else Path("report"))
    grids = _sample_grids(study.findings)
    conditional = _conditional_samples(study.findings, grids)
    environment = _environment()
    context = _context(study, grids) | {"conditional": conditional}
    index = folder / "index.html"
    try:
        _clear(folder, is_own=is_own and out is None)
        folder.mkdir(parents=True, exist_ok=True)
        text = environment.get_template("report.md").render(context)
        (folder / "report.md").write_text(text, encoding="utf-8")
        index.write_text(environment.get_template("report.html").render(context), encoding="utf-8")
        _write_figures(folder / "figures", study.all_drawings, [*grids, *conditional])
        _write_tables(folder / "tables", study, environment, context)
    except OSError as error:
        told = f"the report cannot be written to {folder} ({error.strerror}); choose another --out"
        raise ReportError(told) from error
    return index


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(
        prog="report.py", description="Write the report of a study, or of several side by side."
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder of a study, as given to study/run.py --out"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the report, whose figures and tables it replaces (default: RUN/report; ./report for "
        "several runs or a URL)",
    )
    arguments = parser.parse_args(argv)
    try:
        index = write_report(*arguments.runs, out=arguments.out)
    except (FilesError, ReportError, StoreError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{index}\n")
    return 0


def _sample_grids(findings: Findings) -> list[SampleGrid]:
    """Pictures of the best, the median and the worst config, one replicate each, as far as there are any."""
    ranked = [finding for finding in findings.configs if finding.config.complete]
    last = len(ranked) - 1
    places = {last: "Worst", last // 2: "Median", 0: "Best"} if ranked else {}
    return [
        SampleGrid(f"{name}: config {ranked[place].number}", trial, trial.overview)
        for place, name in sorted(places.items())
        for trial in [each for each in ranked[place].config.complete if os.access(each.overview, os.R_OK)][:1]
    ]


def _conditional_samples(findings: Findings, grids: Sequence[SampleGrid]) -> list[SampleGrid]:
    """Pictures of each modality, generated where it is missing, by the best config."""
    best = findings.best.config.complete if findings.best else ()
    return [
        SampleGrid(file.stem.removeprefix("conditional_"), grid.trial, file)
        for grid in grids
        if grid.trial in best
        for file in sorted(grid.trial.samples.glob("conditional_*.png"))
        if os.access(file, os.R_OK)
    ]


def _clear(folder: Path, *, is_own: bool) -> None:
    """Remove an earlier report's figures and tables; what no report wrote only in a run's own folder."""
    stale = [file for pattern in _REPLACED for file in folder.glob(pattern)]
    is_report = (folder / "report.md").exists() and (folder / "index.html").exists()
    if stale and not (is_own or is_report):
        found = stale[0].relative_to(folder)
        raise ReportError(f"{folder} holds {found}, which no report wrote; choose another --out")
    for file in stale:
        file.unlink()


def _write_figures(folder: Path, drawings: Sequence[Drawing], grids: Sequence[SampleGrid]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (folder / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
        (folder / f"{drawing.name}.pdf").write_bytes(drawing.pdf)
    for grid in grids:
        shutil.copyfile(grid.file, folder / grid.name)


def _write_tables(folder: Path, study: Study, environment: Environment, context: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for table in context["tables"].values():
        for kind in ("md", "tex"):
            text = environment.get_template(f"table.{kind}").render(context, table=table)
            (folder / f"{table.name}.{kind}").write_text(text, encoding="utf-8")
    for name, frame in (
        ("configs", study.configs.map(_as_json)),
        ("effects", study.effects().map(_as_json)),
        ("correlations", study.correlations()),
        ("importance", study.importance()),
        ("confirmation", study.confirmation().map(_as_json)),
        ("scores", study.scores().map(_as_json)),
        ("posteriors", study.posteriors()),
        ("leak", study.leaks()),
        ("paper", study.paper()),
        ("claims", study.claims()),
        ("as_released", study.as_released()),
    ):
        if len(frame):
            frame.to_csv(folder / f"{name}.csv", index=False)


def _as_json(value: object) -> object:
    """The weights of a simplex as a list that any program reads."""
    return json.dumps(value) if isinstance(value, tuple) else value


def _shown(study: Study) -> list[Table]:
    """Every table that the report shows and that has rows."""
    findings = study.findings
    made: tuple[Table | None, ...] = (
        tables.config_table(findings),
        tables.confirmation_table(findings),
        tables.effect_table(findings),
        tables.correlation_table(findings),
        tables.importance_table(findings, study.importances),
        tables.coherence_table(findings),
        tables.probe_table(findings),
        tables.posterior_table(findings),
        tables.leak_table(findings),
        tables.subset_table(findings),
        tables.summary_table(findings),
        precision_table(findings),
    )
    if study.comparison:
        made += (
            beside.claim_table(study.judgements),
            *beside.paper_tables(study.comparison),
            beside.released_table(study.comparison),
        )
    return [table for table in made if table]


def _context(study: Study, grids: Sequence[SampleGrid]) -> dict[str, Any]:
    """Everything that the templates show."""
    findings = study.findings
    results, best, noise = findings.results, findings.best, noise_share(findings)
    num_decisive = min(1, findings.num_compared)
    asked = [run.study for run in results.runs]
    return {
        "name": listed(dict.fromkeys(run.name for run in results.runs)),
        "question": " ".join(dict.fromkeys(each["question"] for each in asked if each.get("question"))),
        "description": "\n\n".join(dict.fromkeys((each.get("description") or "").strip() for each in asked)),
        "answer": answer(findings),
        "facts": list(_facts(findings)),
        "notes": list(_notes(findings)),
        "settings": provenance.setting_rows(results),
        "domains": provenance.domain_table(results),
        "fixed_settings": provenance.fixed_settings(results),
        "tables": {table.name: table for table in _shown(study)},
        "leak_sentences": leak_sentences(findings, study.leakage),
        "paper": beside.introduction(study.comparison) if study.comparison else [],
        "verdicts": beside.verdicts(study.judgements),
        "same_data": bool(study.comparison and study.comparison.is_same_data),
        "margin": MARGIN,
        "num_judged": len(study.judgements),
        "num_configs": len(findings.configs),
        "several": len(results.runs) > 1,
        "decisive": study.drawings[:num_decisive],
        "drawings": study.drawings[num_decisive:],
        "has_many": tables.has_many_modalities(results),
        "leak": study.leak_drawing,
        "claims": study.claim_drawing,
        "of_attributes": study.attribute_drawing,
        "best": describe(best.config, results) if best else "",
        "judge": tables.judge_accuracies(findings),
        "grids": grids,
        "troubles": [
            (f"{name}, replicate {trial.replicate}", trial)
            for name, config in (
                *((f"Config {each.number}", each.config) for each in findings.configs),
                *(("Confirmation", config) for config in results.confirmed),
            )
            for trial in config.trials
            if not trial.is_complete
        ],
        "running": results.running,
        "num_missing": results.num_missing,
        "num_unmeasured": results.num_unmeasured,
        "noise_share": noise,
        "nothing_but_noise": len(results.swept) > 1 and noise is not None and noise > MOST_NOISE,
        "has_intervals": bool(findings.noise.dof),
        "dof": findings.noise.dof,
        "is_share": results.objective.bounds[1] == 1,
        "num_compared": findings.num_compared,
        "objective": results.objective.label,
        "quoted_runs": shlex.join(run.where for run in results.runs),
        "queries": provenance.queries(results),
        "commands": provenance.commands(results),
        "importance_samples": results.importance_samples,
        "commit": ", ".join(
            dict.fromkeys(
                each for run in results.runs for each, _ in provenance.commits(results, run) if each
            )
        ),
    }


def _facts(findings: Findings) -> Iterator[tuple[str, str]]:
    """The numbers to see at first glance, each with what it is."""
    results, best = findings.results, findings.best
    decimals = results.objective.decimals
    estimate, won = best.objective if best else None, winner(findings)
    if won and won.fresh:
        yield plus_minus(won.fresh, decimals), f"test {results.objective.label} of the winner on fresh seeds"
    elif estimate:
        yield plus_minus(estimate, decimals), f"test {results.objective.label} of the best config"
    effect = findings.effects[0].effect if findings.effects else None
    if effect:
        width = "" if effect.half_width is None else f" ± {fixed(effect.half_width, decimals)}"
        name = findings.effects[0].factor.name
        name += " or what the runs differ in as well" * bool(rivals(results, findings.effects[0]))
        yield (
            f"{fixed(abs(effect.difference), decimals)}{width}",
            f"largest {'demonstrable ' * effect.excludes_zero}effect: {name}, best against worst level",
        )
    if findings.correlations and not effect and (found := findings.correlations[0].correlation):
        yield (
            f"ρ = {fixed(found.rho, 2)}",
            f"strongest rank correlation: {findings.correlations[0].factor.name}",
        )
    complete = sum(trial.is_complete for trial in results.trials)
    planned = len(results.trials) + len(results.running) + results.num_missing
    yield f"{complete} of {planned}", f"trials complete, of {plural(results.num_configs, 'config')}"
    yield duration(sum(trial.device_s for trial in results.trials)), "of device time"


def _notes(findings: Findings) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    results = findings.results
    unfinished = len(results.running) + results.num_missing
    if unfinished:
        ended = len(results.trials)
        what = "This study is" if len(results.runs) == 1 else "These studies are"
        yield f"{what} unfinished: {ended} of {plural(ended + unfinished, 'trial')} have ended."
    stopped = sum(trial.state == "STOPPED" for trial in results.trials)
    lost = sum(not trial.is_complete for trial in results.trials) - stopped
    for count, fate in ((stopped, "stopped early by the scheduler"), (lost, "that diverged or failed")):
        if count:
            verb = "does" if count == 1 else "do"
            yield f"{plural(count, 'trial')} {fate} {verb} not count (see “What did not complete”)."
    unmeasured = results.num_unmeasured
    if unmeasured:
        which, them = ("was stopped has", "it") if unmeasured == 1 else ("were stopped have", "them")
        yield (
            f"{plural(unmeasured, 'trial')} that completed or {which} no measurements: "
            f"the study's command with --resume trains {them} again."
        )
    if findings.best and not findings.noise.dof:
        yield (
            f"No config has two complete replicates{' with measurements' * bool(unmeasured)}, so the noise "
            "between seeds is unknown and configs have no intervals."
        )
    for path, others in confounded(results).items():
        if others:
            said = " or ".join(results.swept[each] for each in (path, *others) if each in results.swept)
            yield (
                f"With {path} the runs differ in {', '.join(others)} as well, all of them or some: whatever "
                f"is said of {said} may be due to any of these."
            )
    for run in results.runs:
        found = provenance.commits(results, run)
        which = "the study" if len(results.runs) == 1 else run.label
        if len(found) > 1:
            yield f"Not all trials of {which} were trained by the same code: see its commits."
        if any(is_dirty for _, is_dirty in found):
            yield f"The code had uncommitted changes when {which} ran."


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rich": _rich,
        "plain": _plain,
        "latex": _latex,
        "raw": Markup,
        "indented": _indented,
        "breakable": _breakable,
    }
    environment.tests["long"] = _is_long
    environment.globals["plural"] = plural
    return environment


def _rich(text: str) -> Markup:
    """HTML of a sentence in which `code` and **bold** are marked."""
    safe = re.sub(r" (±|=|&lt;) ", r"&nbsp;\1&nbsp;", str(escape(text))).replace(" %", "&nbsp;%")
    safe = re.sub(r"`([^`]+)`", lambda found: f"<code>{found[1].replace('*', '&#42;')}</code>", safe)
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe))


def _breakable(text: str) -> Markup:
    """HTML of a text whose long words may be broken after underscores and dots, but no number."""
    breaks = r"(?<=[_/])|(?<=\.)(?!\d)"
    return Markup(re.sub(breaks, "<wbr>", str(escape(text)))) if _is_long(text) else escape(text)


def _is_long(text: str) -> bool:
    """Whether it has a word that would make its column too wide."""
    return max(map(len, text.split()), default=0) > _LONGEST_WORD


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, also within a table."""
    escaped = re.sub(r"([\\`*_|\[\]<>])", r"\\\1", str(text))
    return " ".join(escaped.split())


def _latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _indented(text: str) -> str:
    """A block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
