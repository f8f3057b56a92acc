"""A study beside the paper: which configs are the paper's models, and their numbers in its tables' layout."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analysis.estimates import Estimate, differences, estimate_mean, pool
from analysis.findings import estimates, leaders
from analysis.published import DATASET, MODALITIES, MODELS, SAME_MODALITIES, TABLES, Column, Model, printed
from analysis.results import Config, Quantity, Results

_POSTERIORS = {"mvae": ("product",), "mmvae": ("mixture", "product"), "mmjsd": ("product",)}
"""What stands for several given modalities, as the paper's numbers have it first (DESIGN.md, section 6)."""

DEFINITIONS = {
    "random_coherence_as_released": ("random_coherence",),
    "precision_as_released": ("precision", "recall"),
    "log_likelihood_as_released": ("log_likelihood",),
}
"""The metrics by their definitions that stand behind those of the authors' code."""


@dataclass(frozen=True)
class Entry:
    """A row of the tables: a model and the config that stands for it, by one of its posteriors."""

    model: Model
    number: int
    """Of the config, in the report."""

    config: Config
    posterior: str

    @property
    def is_published(self) -> bool:
        """Whether the paper's numbers are by this posterior."""
        return self.posterior == own_posterior(self.model)

    @property
    def title(self) -> str:
        """The model, and the posterior where it is not the paper's."""
        return self.model.title + ("" if self.is_published else f", {self.posterior}")


@dataclass(frozen=True)
class Value:
    """What a row has in a column."""

    entry: Entry
    column: Column
    ours: Estimate | None
    published: str | None
    """As it is printed; None where the paper has no such number."""

    difference: float | None
    """Ours minus the paper's in standard errors of ours; None where that says nothing."""

    leads: bool
    """Ours is the best of its column, or cannot be told from it."""


@dataclass(frozen=True)
class Sheet:
    """Columns in the layout of one of the paper's tables."""

    name: str
    """Of its files."""

    number: int
    caption: str
    columns: tuple[Column, ...]
    is_published: bool
    """False for the same layout by a metric that the paper does not have."""


@dataclass(frozen=True)
class Comparison:
    """The models of the paper that a study holds."""

    results: Results
    dataset: str
    letters: Mapping[str, str]
    """Modalities by the first letters of their names."""

    configs: Mapping[Model, Sequence[tuple[int, Config]]]
    """All complete configs of each model with their numbers, best first."""

    @property
    def is_same_data(self) -> bool:
        """Whether the data set is the paper's."""
        return self.dataset == DATASET

    @property
    def entries(self) -> list[Entry]:
        """The rows, in the paper's order; for each model its best config on the validation split."""
        return [
            Entry(model, *self.configs[model][0], posterior)
            for model in MODELS
            if model in self.configs
            for posterior in _POSTERIORS[model.objective]
        ]

    def quantity(self, column: Column, posterior: str) -> Quantity:
        """What a column shows, as the study measured it."""
        given = sorted(self.letters[letter] for letter in column.given.split(",") if letter)
        target = self.letters.get(column.target, column.target)
        return Quantity(column.metric, posterior if len(given) > 1 else "", "+".join(given), target)

    def averages(self, config: Config, columns: Sequence[Column], posterior: str) -> dict[str, float]:
        """The mean of several columns, by the id of each complete replicate that has them all."""
        quantities = [self.quantity(column, posterior) for column in columns]
        totals = self.results.total(config, quantities)
        return {name: total / len(columns) for name, total in totals.items()}

    def values(self, columns: Sequence[Column]) -> list[list[Value]]:
        """A row an entry, without those that would only repeat another or have nothing."""
        by_column = [self._column_values(column) for column in columns]
        rows = [[found[entry.title] for found in by_column] for entry in self.entries]
        return [row for row in rows if any(value.ours for value in row)]

    def _column_values(self, column: Column) -> dict[str, Value]:
        quantities = {entry.title: self.quantity(column, entry.posterior) for entry in self.entries}
        found = {quantity: estimates(self.results, quantity) for quantity in set(quantities.values())}
        rows, replicates = {}, {}
        for entry in self.entries:
            quantity = quantities[entry.title]
            if entry.is_published or quantity.posterior:
                rows[entry.title] = found[quantity].get(entry.config.config_hash)
                replicates[entry.title] = self.results.values(entry.config, quantity)
        noise = pool(
            self.results.values(config, self.quantity(column, own_posterior(model)))
            for model, configs in self.configs.items()
            for _, config in configs
        )
        lower_is_better = self.quantity(column, "").lower_is_better
        leading = leaders(replicates, noise, lower_is_better=lower_is_better)
        return {
            entry.title: self._value(entry, column, rows.get(entry.title), entry.title in leading)
            for entry in self.entries
        }

    def _value(self, entry: Entry, column: Column, ours: Estimate | None, leads: bool) -> Value:
        text = printed(entry.model, column) if entry.is_published else None
        difference = None
        if self.is_same_data and text and ours and ours.standard_error:
            difference = (ours.value - float(text)) / ours.standard_error
        return Value(entry, column, ours, text, difference, leads)

    def worth(self, metric: str) -> dict[Model, Estimate]:
        """By how much the authors' formula raises the mean of its table's columns over the definition.

        Within trials; the noise is pooled over all configs of the models.
        """
        columns = [column for table in TABLES for column in table.columns if column.metric == metric]
        proper = [column._replace(metric=DEFINITIONS[metric][0]) for column in columns]
        groups: dict[str, list[float]] = {}
        for model, configs in self.configs.items():
            for _, config in configs:
                released = self.averages(config, columns, own_posterior(model))
                defined = self.averages(config, proper, own_posterior(model))
                groups[config.config_hash] = differences(released, defined)
        noise = pool(groups.values())
        found = {
            entry.model: estimate_mean(groups[entry.config.config_hash], noise)
            for entry in self.entries
            if entry.is_published
        }
        return {model: estimate for model, estimate in found.items() if estimate}


def compare(results: Results) -> Comparison | None:
    """The study beside the paper; None unless it holds at least two of the paper's models."""
    letters = {name[:1].upper(): name for name in results.modalities}
    if set(letters) != set(MODALITIES) or len(results.modalities) != len(MODALITIES):
        return None
    for dataset in SAME_MODALITIES:
        configs: dict[Model, list[tuple[int, Config]]] = {}
        for config in results.configs:
            model = model_of(config)
            if model and config.validation is not None and config.settings["data"]["name"] == dataset:
                configs.setdefault(model, []).append((results.numbers[config.config_hash], config))
        if len(configs) > 1:
            return Comparison(results, dataset, letters, configs)
    return None


def model_of(config: Config) -> Model | None:
    """Which of the paper's models a config is, if any: mmJSD by its fusion and prior, MMVAE by its ELBO."""
    objective = config.settings.get("objective", {})
    model = Model(objective.get("name", ""), any(config.style_dims.values()))
    if model not in MODELS:
        return None
    if model.objective == "mmjsd":
        return model if (objective["fusion"], objective["dynamic_prior"]) == ("mixture", "product") else None
    return None if objective.get("importance_samples") else model


def own_posterior(model: Model) -> str:
    """What stands for several given modalities in the paper's numbers of a model."""
    return _POSTERIORS[model.objective][0]


def sheets() -> Iterator[Sheet]:
    """The paper's tables, each followed by the same with definitions instead of the authors' formulas."""
    for table in TABLES:
        name, columns = f"paper_{table.number}", table.columns
        whole = all(column.metric in DEFINITIONS for column in columns)
        if not whole:
            columns = tuple(added for column in columns for added in (column, *_defined(column)))
        yield Sheet(name, table.number, table.caption, columns, is_published=True)
        for metric in DEFINITIONS[columns[0].metric] if whole else ():
            defined = tuple(column._replace(metric=metric) for column in columns)
            caption = (
                f"{metric.replace('_', '-' if 'log' in metric else ' ').capitalize()}, by its definition"
            )
            yield Sheet(f"{name}_{metric}", table.number, caption, defined, is_published=False)


def _defined(column: Column) -> Iterator[Column]:
    """The definitions that stand behind a column."""
    for metric in DEFINITIONS.get(column.metric, ()):
        yield column._replace(metric=metric, title=f"{column.title}, defined")
