"""What a study of attributes found: the paper's Table 5, and every attribute of the best config."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure

from analysis.cells import Cell, Row, Table, in_brackets
from analysis.drawing import INK, MARKERS, PALETTE, Drawing, bars, hint, save, what_bars_are
from analysis.estimates import Estimate, pool
from analysis.findings import Findings, estimates, leaders
from analysis.paper import model_of, own_posterior
from analysis.published import ATTRIBUTE_DATASET, ATTRIBUTE_PRECISION, Model
from analysis.results import Config, Quantity, Results
from analysis.wording import fixed, plus_minus

_PROBE, _GENERATION = "probe_average_precision", "average_precision"


@dataclass(frozen=True)
class _Column:
    """What is told of an attribute: by a probe of the latent or, of a target, by its classifier."""

    title: str
    metric: str
    given: str
    target: str = ""

    def quantity(self, posterior: str, attribute: str = "") -> Quantity:
        """Of one attribute, or the mean over all."""
        metric = self.metric if attribute else f"mean_{self.metric}"
        fused = posterior if "+" in self.given else ""
        return Quantity(metric, fused, self.given, self.target, attribute=attribute)


class _Line(NamedTuple):
    """A row of the table: a config by one posterior."""

    title: str
    number: int
    config_hash: str
    posterior: str
    published: tuple[str, ...]


def precision_table(findings: Findings) -> Table | None:
    """Mean average precision in the layout of the paper's Table 5: of each model, or of each config."""
    results = findings.results
    columns = _columns(results)
    if not columns:
        return None
    lines = list(_lines(findings))
    found, leading = {}, {}
    for column in columns:
        replicates = {}
        for line in lines:
            quantity = column.quantity(line.posterior)
            found[column.title, line.posterior] = estimates(results, quantity)
            replicates[line.config_hash] = results.by_config(quantity)[line.config_hash]
        noise = pool(results.values(each, column.quantity(_posterior(each))) for each in results.configs)
        leading[column.title] = leaders(replicates, noise)
    rows: list[Row] = []
    for line in lines:
        cells = []
        for column in columns:
            estimate = found[column.title, line.posterior].get(line.config_hash)
            text = "–" if estimate is None else in_brackets(estimate, 3)
            cells.append(Cell(text, "number", bold=line.config_hash in leading[column.title]))
        rows.append(Row((Cell(line.title, "word"), Cell(str(line.number), "number"), *cells)))
        if line.published:
            printed = [Cell(text, "number", muted=True) for text in line.published]
            rows.append(Row((Cell("paper", "word", muted=True), Cell("", "number"), *printed)))
    base = results.find("mean_base_rate")
    best = estimates(results, base).get(findings.best.config.config_hash) if base and findings.best else None
    if best:
        cell = Cell(fixed(best.value, 3), "number", muted=True)
        rows.append(Row((Cell("base rate", "word", muted=True), Cell("", "number"), *[cell] * len(columns))))
    num_probed = sum(column.metric == _PROBE for column in columns)
    groups = (("", 2), ("latent representation", num_probed), ("generation", len(columns) - num_probed))
    titles = ("model", "#", *(column.title for column in columns))
    return Table(
        "attributes",
        "As the paper's Table 5: mean average precision over attributes",
        titles,
        tuple(rows),
        tuple(group for group in groups if group[1]),
    )


def attribute_drawing(findings: Findings) -> Drawing | None:
    """Every attribute of the best config, the frequent ones first: average precision and base rate."""
    results, best = findings.results, findings.best
    columns = _columns(results)
    if best is None or not columns:
        return None

    def value(quantity: Quantity) -> Estimate | None:
        return estimates(results, quantity).get(best.config.config_hash)

    names = {each.attribute for each in results.last if each.metric == "base_rate" and each.split == "test"}
    rates = {name: each for name in names if (each := value(Quantity("base_rate", attribute=name)))}
    order = sorted(rates, key=lambda name: (rates[name].value, name))
    if not order:
        return None
    posterior = "product"
    places = {name: place for place, name in enumerate(order)}

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, metric, title in zip(
            panels, (_PROBE, _GENERATION), ("latent representation", "generation"), strict=True
        ):
            axes.set_title(title)
            axes.grid(axis="x")
            shown = [column for column in columns if column.metric == metric]
            for index, column in enumerate(shown):
                look = columns.index(column)
                told = {name: value(column.quantity(posterior, name)) for name in order}
                known = {name: each for name, each in told.items() if each}
                shift = 0.22 * ((len(shown) - 1) / 2 - index)
                drawn, *_ = axes.errorbar(
                    [each.value for each in known.values()],
                    [places[name] + shift for name in known],
                    xerr=bars(known.values()),
                    fmt=MARKERS[look % len(MARKERS)],
                    color=PALETTE[look % len(PALETTE)],
                    ms=3.5,
                    elinewidth=0.9,
                    capsize=0,
                    label=column.title,
                )
                texts = (f"{name}, {column.title}: {plus_minus(each, 3)}" for name, each in known.items())
                hint(drawn, list(texts))
            low = [rates[name].value for name in order]
            label = "base rate" if axes is panels[0] else None
            axes.plot(low, range(len(order)), "|", color=INK, ms=8, mew=1.4, label=label)
            axes.set_xlim(0, 1)
            axes.set_xlabel("average precision")
        figure.legend(loc="outside lower center", ncols=6, fontsize=8.5)
        panels[0].set_yticks(range(len(order)), order, fontsize=8)
        panels[0].set_ylim(-0.7, len(order) - 0.3)

    caption = (
        f"Config {best.number} on the test split. Upright dashes: the share of samples that have the "
        "attribute, which is about what knowing nothing of it reaches. "
        + what_bars_are(known=findings.noise.dof > 0)
    )
    title = "What is known and generated of each attribute"
    return save("attributes", title, caption, 1.5 + 0.19 * len(order), paint)


def _columns(results: Results) -> list[_Column]:
    """As in the paper: probes of each modality and of all, then what is generated of one from the other."""
    given = dict.fromkeys((*results.modalities, "+".join(sorted(results.modalities))))
    probed = [_Column("joint" if "+" in each else each, _PROBE, each) for each in given]
    generated = [
        _Column(f"{source} → {target}", _GENERATION, source, target)
        for source in results.modalities
        for target in results.modalities
        if source != target
    ]
    return [each for each in (*probed, *generated) if results.last.get(each.quantity("product"))]


def _lines(findings: Findings) -> Iterator[_Line]:
    """The best config of each of the paper's models if there are several models, else every config."""
    best: dict[Model, tuple[int, str]] = {}
    for each in findings.configs:
        model = model_of(each.config)
        if model and each.config.complete:
            best.setdefault(model, (each.number, each.config.config_hash))
    datasets = {each.config.settings["data"]["name"] for each in findings.configs}
    is_published = datasets == {ATTRIBUTE_DATASET}
    if len(best) > 1:
        for model, (number, config_hash) in sorted(best.items()):
            yield _Line(model.title, number, config_hash, own_posterior(model), _printed(model, is_published))
        return
    for each in findings.configs[:20]:
        model = model_of(each.config)
        first = each is findings.configs[0]
        title = model.title if model else each.config.settings["objective"]["name"]
        posterior = _posterior(each.config)
        printed = _printed(model, is_published) if model and first else ()
        yield _Line(title, each.number, each.config.config_hash, posterior, printed)


def _posterior(config: Config) -> str:
    """By which the table shows a config: its model's own."""
    model = model_of(config)
    return own_posterior(model) if model else "product"


def _printed(model: Model, is_published: bool) -> tuple[str, ...]:
    return ATTRIBUTE_PRECISION.get(model, ()) if is_published else ()
