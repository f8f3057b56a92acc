"""How a report speaks: numbers as text, and a study's answer in sentences."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from analysis.confirmation import Confirmed
from analysis.confounding import rivals
from analysis.estimates import CONFIDENCE, Estimate
from analysis.findings import ConfigFinding, FactorFinding, Findings, front_of_all
from analysis.results import Config, Factor, Results, Run, level_label, weight_labels, weight_names


def answer(findings: Findings) -> list[str]:
    """The study's answer: paragraphs of Markdown on the best config, its confirmation, effects and cost."""
    paragraphs = (
        [*_best_sentences(findings), *_trade_off_sentence(findings)],
        _confirmation_sentences(findings),
        _effect_sentences(findings),
        _cost_sentences(findings),
    )
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _best_sentences(findings: Findings) -> list[str]:
    best, results = findings.best, findings.results
    if best is None:
        states = Counter(trial.state for trial in results.trials)
        if not states:
            return ["Nothing can be said yet: no trial has ended."]
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return [f"No config can be called best: no trial completed: {counts} (see “What did not complete”)."]
    estimate = best.objective
    ranked = [finding for finding in findings.configs if finding.config.validation is not None]
    so_far = " so far" if results.running or results.num_missing else ""
    chosen = (
        f"The best of {len(ranked)} configs on the validation split is"
        if len(ranked) > 1
        else f"The only config{f' that completed{so_far}' if results.num_configs > 1 else ''} is"
    )
    sentence = f"{chosen} **{describe(best.config, results)}**"
    if estimate is None:
        return [f"{sentence}; it has no {results.objective.label} on the test split."]
    label, replicates = results.objective.label, plural(len(best.config.complete), "replicate")
    decimals = results.objective.decimals
    sentence += f": on the test split its {label} is **{plus_minus(estimate, decimals)}**"
    if estimate.low is None or estimate.high is None:
        return [f"{sentence} ({replicates}; an interval needs at least two replicates of a config)."]
    bounds = f"95 % interval {fixed(estimate.low, decimals)} to {fixed(estimate.high, decimals)}"
    return [f"{sentence} ({bounds}; {replicates}).", *_tie_sentence(findings, len(ranked) - 1)]


def _tie_sentence(findings: Findings, num_others: int) -> list[str]:
    ties = [finding.tied for finding in findings.configs if finding.tied is not None]
    if not ties:
        return []
    tied = sum(ties)
    compared = " that can be compared" if len(ties) < num_others else ""
    if len(ties) == 1:
        which = f"{'one ' if compared else ''}other config{compared}"
        return [f"The {which} {'is statistically tied with it' if tied else 'differs significantly'}."]
    if tied:
        verb = "is" if tied == 1 else "are"
        return [f"Of the {len(ties)} other configs{compared} {tied} {verb} statistically tied with it."]
    return [f"Each of the {len(ties)} other configs{compared} differs from it significantly."]


def _trade_off_sentence(findings: Findings) -> list[str]:
    """Which configs are best by all objectives, of a study that has several."""
    if len(findings.results.objectives) < 2:
        return []
    columns, points = front_of_all(findings)
    if len(columns) < 2 or len(points) < 2:
        return []
    leading = [str(each.number) for each, on_front in points if on_front]
    compared = " that can be compared" if len(points) < len(findings.configs) else ""
    told = (
        f"no config beats configs {listed(leading)}"
        if len(leading) > 1
        else f"config {leading[0]} beats every other one{compared}"
    )
    return [f"By {listed(column.title for column in columns)} together {told} on the test split."]


def winner(findings: Findings) -> Confirmed | None:
    """The best config on fresh seeds, once confirmations have ended and one of the search's has completed."""
    ranked = [each for each in findings.confirmed if each.config.validation is not None]
    is_contest = not all(each.config.is_base for each in ranked)
    is_open = any(_is_under_way(run, findings.results) for run in findings.results.runs)
    return ranked[0] if is_contest and not is_open else None


def _is_under_way(run: Run, results: Results) -> bool:
    """Whether trials of a run are known to be missing."""
    is_known = "ended_at" in run.manifest or sum(results.trial_rows["run"] == run.label) < run.num_planned
    return is_known and not run.has_ended


def _confirmation_sentences(findings: Findings) -> list[str]:
    """Who wins on fresh seeds, and by how much: one sentence a run that is confirmed."""
    return [
        _confirmation_sentence(run, own, findings.results)
        for run in findings.results.runs
        if (own := [each for each in findings.confirmed if each.config.run == run.label])
    ]


def _confirmation_sentence(run: Run, confirmed: Sequence[Confirmed], results: Results) -> str:
    subject = f"The confirmation of {code(run.label)}" if len(results.runs) > 1 else "The confirmation"
    is_under_way = _is_under_way(run, results)
    ranked = [each for each in confirmed if each.config.validation is not None]
    if all(each.config.is_base for each in ranked):
        yet = " yet" if is_under_way else ""
        return f"{subject} says nothing{yet}: none of the search's best configs has completed on fresh seeds."
    first, wins = ranked[0], "is led so far by" if is_under_way else "is won by"
    decimals, label = results.objective.decimals, results.objective.label
    has_base = any(each.config.is_base for each in ranked)
    among = f"{len(ranked)} configs{', the base among them,' * has_base}" if len(ranked) > 1 else "one config"
    numbers = sorted({len(each.config.complete) for each in ranked})
    seeds = f"{numbers[0]} to " * (len(numbers) > 1) + plural(numbers[-1], "fresh seed")
    if first.config.is_base:
        found = f" with a test {label} of **{plus_minus(first.fresh, decimals)}**" if first.fresh else ""
        return (
            f"{subject}, {among} on {seeds} each, {wins} the base config itself{found}: "
            f"on the validation split none of the search's best configs exceeds it{_better_on_test(ranked)}."
        )
    sentence = f"{subject}, {among} on {seeds} each, {wins} **{describe(first.config, results)}**"
    if first.fresh is None:
        return f"{sentence}; it has no {label} on the test split."
    sentence += f", whose test {label} is **{plus_minus(first.fresh, decimals)}**"
    gain = first.advantage
    if gain is None:
        lacks = "has not completed yet" if is_under_way else "did not complete"
        why = lacks if run.knows_base else "is unknown, as study.json is missing"
        return f"{sentence}; the base config {why}."
    if gain.half_width is None:
        return (
            f"{sentence}, **{signed(gain.value, decimals)}** against the base config; "
            "without replicates nobody can say whether that is more than noise."
        )
    verdict = "excludes" if abs(gain.value) > gain.half_width else "includes"
    number = f"**{signed(gain.value, decimals)} ± {fixed(gain.half_width, decimals)}**"
    return f"{sentence}, {number} against the base config (the 95 % interval {verdict} zero)."


def _better_on_test(ranked: Sequence[Confirmed]) -> str:
    """A clause on configs that exceed the base config on the test split, though not on validation."""
    gains = [each.advantage for each in ranked if each.advantage and each.advantage.half_width is not None]
    better = sum(gain.value > (gain.half_width or 0) for gain in gains)
    return f", though on the test split {better} of them {'does' if better == 1 else 'do'}" if better else ""


def _effect_sentences(findings: Findings) -> list[str]:
    label = findings.results.objective.label
    sentences = []
    if findings.effects:
        sentences.append(_largest_effect(findings))
        test = findings.interaction
        if test and test.p_value < 1 - CONFIDENCE:
            dof = f"{test.dof[0]}, {test.dof[1]}"
            sentences.append(
                f"The factors interact (F({dof}) = {test.statistic:.1f}, {p_text(test.p_value)}): "
                "an effect averaged over the other factors does not tell all"
                + (", see the first figure." if findings.crossing else ".")
            )
    if findings.correlations:
        first = findings.correlations[0]
        assert first.correlation is not None
        found = first.correlation
        numbers = (
            f"Spearman's ρ = {fixed(found.rho, 2)} over {found.num_configs} configs, {p_text(found.p_value)}"
        )
        if found.is_significant:
            also = _what_differs_as_well(first, findings.results, "or with")
            sentences.append(
                f"{label.capitalize()} goes most closely with {code(first.factor.name)}{also}: {numbers}."
            )
        else:
            kind = "continuous factor" if findings.effects else "factor"
            closest = f"the closest is {code(first.factor.name)}: {numbers}"
            sentences.append(f"No {kind} goes significantly with {label}; {closest}.")
    if not sentences and findings.best and findings.results.factors:
        yet = "" if all(run.has_ended for run in findings.results.runs) else " yet"
        means = [mean.value for each in findings.configs if (mean := each.objective)]
        is_flat = len(means) > 3 and len(set(means)) == 1
        lacking = "have measurements" if findings.results.num_unmeasured else "have completed"
        why = "all configs score the same" if is_flat else f"too few configs {lacking}"
        told = f"Effects of the swept fields cannot be told{yet}: {why}."
        sentences.append(told)
    return sentences


def _largest_effect(findings: Findings) -> str:
    first, results = findings.effects[0], findings.results
    effect = first.effect
    assert effect is not None
    decimals, label = results.objective.decimals, results.objective.label
    name = code(first.factor.name)
    ends = f"from {code(level_label(effect.worst.level))} to {code(level_label(effect.best.level))}"
    difference = signed(effect.difference, decimals)
    over = _averaged_over(first.factor, results) if effect.matched else ""
    also = _what_differs_as_well(first, results, "or of")
    if effect.half_width is None:
        lack = "without replicates" if effect.matched else "with one config a level"
        return (
            f"The largest effect is that of {name}{also}: {ends}, {label} changes by **{difference}**{over}; "
            f"{lack} nobody can say whether that is more than noise."
        )
    low, high = effect.difference - effect.half_width, effect.difference + effect.half_width
    number = f"**{difference} ± {fixed(effect.half_width, decimals)}**"
    bounds = f"95 % interval {fixed(low, decimals)} to {fixed(high, decimals)}"
    if effect.excludes_zero:
        leads = (
            f"The largest demonstrable effect is that of **{name}**{also}"
            if also
            else f"The factor with the largest demonstrable effect is **{name}**"
        )
        return f"{leads}: {ends}, {label} changes by {number}{over} ({bounds}, which excludes zero)."
    return (
        f"No factor with levels has a demonstrable effect: the largest difference, that of {name}{also} "
        f"{ends}, is {number}{over} ({bounds}, which includes zero)."
    )


def _averaged_over(factor: Factor, results: Results) -> str:
    """A clause on what else varies, and the levels' means are made of."""
    others = [
        name
        for path, name in results.swept.items()
        if path != factor.path
        and len({each.params.get(path) for each in results.configs if each.complete}) > 1
    ]
    if not others:
        return ""
    return f", averaged over {code(others[0]) if len(others) == 1 else 'the other factors'}"


def _what_differs_as_well(finding: FactorFinding, results: Results, word: str) -> str:
    """A clause on the fields to which what is found of a factor may be due as well."""
    others = ", ".join(code(results.swept.get(path, path)) for path in rivals(results, finding))
    return f" {word} what the runs differ in as well ({others})" if others else ""


def _cost_sentences(findings: Findings) -> list[str]:
    results = findings.results
    trials = results.trials
    if not trials:
        return []
    device_s = sum(trial.device_s for trial in trials)
    devices = sorted({_device_text(trial.device) for trial in trials if trial.device})
    on = f" on {', '.join(map(code, devices))}" if devices else ""
    shares = [trial.evaluation_share for trial in trials if trial.evaluation_share is not None]
    evaluated = f", of which evaluation was {100 * fmean(shares):.0f} % (mean over trials)" if shares else ""
    numbers = {results.num_replicates(config) for config in results.configs}
    replicates = f" × {plural(numbers.pop(), 'replicate')}" if len(numbers) == 1 else ""
    confirming = sum(len(config.trials) for config in results.confirmed)
    confirmation = f" and a confirmation of {plural(confirming, 'trial')}" if confirming else ""
    sentences = [
        f"{plural(results.num_configs, 'config')}{replicates}{confirmation}: "
        f"{plural(len(trials), 'ended trial')} took {duration(device_s)} of device time{on}{evaluated}."
    ]
    lost = [trial.lost_s for trial in trials if trial.lost_s]
    if lost:
        sentences.append(
            f"Another {duration(sum(lost))} were lost: what {plural(len(lost), 'trial')} had trained since "
            "the last checkpoint when processes or nodes vanished, or in an earlier try, and trained again."
        )
    return sentences


def _device_text(device: str) -> str:
    """A device as a trial names it, for people: cpu, 2 threads."""
    return re.sub(r" x (\d+) threads$", lambda found: f", {plural(int(found[1]), 'thread')}", device)


def describe(config: Config, results: Results) -> str:
    """A config by its swept fields, as Markdown."""
    parts = [
        code(f"{name} = {_value(config.params[path], results)}")
        for path, name in results.swept.items()
        if config.params.get(path) is not None
    ]
    return ", ".join(parts) or "the space's base"


def config_hint(finding: ConfigFinding, findings: Findings) -> str:
    """A config in one line, for the pointer: "config 3: beta = 2.5; mean coherence 0.774 ± 0.118"."""
    objective, label = finding.objective, findings.results.objective.label
    fields = describe(finding.config, findings.results).replace("`", "")
    number = f"; {label} {plus_minus(objective, findings.results.objective.decimals)}" if objective else ""
    return f"config {finding.number}: {fields}{number}"


def _value(value: object, results: Results) -> str:
    """A swept value; the weights of a simplex with their names."""
    if not isinstance(value, tuple):
        return level_label(value)
    names = weight_names(len(value), results.modalities)
    return ", ".join(f"{name} {weight}" for name, weight in zip(names, weight_labels(value), strict=True))


def code(text: str) -> str:
    """Text of a user as a Markdown code span, in which nothing else has a meaning."""
    return f"`{' '.join(text.replace('`', '').split())}`"


def plus_minus(estimate: Estimate, decimals: int) -> str:
    """A mean and its interval: 0.774 ± 0.118, or 0.994 [0.870, 1.000] where that is cut off at a bound."""
    value = fixed(estimate.value, decimals)
    if estimate.half_width is None or estimate.low is None or estimate.high is None:
        return value
    if estimate.is_cut:
        return f"{value} [{fixed(estimate.low, decimals)}, {fixed(estimate.high, decimals)}]"
    return f"{value} ± {fixed(estimate.half_width, decimals)}"


def fixed(value: float, decimals: int) -> str:
    """A number with a fixed number of decimals and a true minus sign."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """The same with its sign."""
    text = fixed(value, decimals)
    return text if value < 0 else f"+{text}"


def p_text(p_value: float) -> str:
    """A p-value as papers write it."""
    if p_value < 0.001:
        return "p < 0.001"
    return "p = 1" if p_value > 0.9995 else f"p = {p_value:.3f}"


def listed(names: Iterable[str]) -> str:
    """Several in a sentence: a, b and c."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """A count and its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Seconds for people: 41.2 s, 12.3 min, 5.1 h."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
