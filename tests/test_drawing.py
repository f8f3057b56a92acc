"""How figures look: names and levels short enough, and still different; nothing covered; files as asked."""

import warnings
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis import figures, parallel, simplexes
from analysis.drawing import STYLE, broken, save, short_labels
from analysis.findings import find
from analysis.reading import load
from tests.synthetic import MODALITIES, grid, study_json, write_study

LETTERS = st.text("abc_", max_size=8)

FONT_TYPE = STYLE["pdf.fonttype"]
"""Of the product; other tests have a quicker one."""


def test_labels_leave_out_what_all_levels_begin_and_end_with():
    names = [f"a_name_that_is_very_long_number_{index}_of_nine" for index in (1, 2, 11)]
    assert short_labels(names) == ["…1…", "…2…", "…11…"]
    assert short_labels(("mixture", "product")) == ["mixture", "product"]
    assert short_labels((0, 2.5, None, True)) == ["0", "2.5", "–", "true"]
    assert short_labels(["x" * 40]) == ["x" * 25 + "…"]


@given(st.lists(LETTERS, min_size=2, unique=True), LETTERS, LETTERS)
def test_labels_stay_different_and_short(middles, start, end):
    names = [f"{4 * start}{middle}{4 * end}" for middle in middles]
    labels = short_labels(names)
    assert len(set(labels)) == len(names)
    assert max(map(len, labels)) <= 26


@given(st.text("abc_.[", max_size=90), st.integers(1, 10))
def test_a_broken_name_is_whole_and_its_lines_end_at_underscores_and_dots_and_before_brackets(name, columns):
    lines = broken(name, columns).split("\n")
    assert "".join(lines) == name
    assert all(line[-1] in "_." or following[0] == "[" for line, following in pairwise(lines))
    most = min(26, 100 // columns)
    assert all(len(line) <= most or not set("_.[") & set(line[1:-1]) for line in lines)


def test_a_name_is_broken_where_so_many_side_by_side_have_no_room():
    assert broken("weights[mnist]") == "weights[mnist]"
    assert broken("weights[mnist]", 8) == "weights\n[mnist]"


def figure_of(write):
    return save("name", "title", "caption", 2, lambda figure: figure.subplots().set_title(write))


def test_a_file_has_white_paper_and_in_a_page_there_is_none():
    drawing = figure_of("paper")
    assert drawing.svg.count("#ffffff") == 1
    assert 'id="patch_1"' in drawing.svg.partition("#ffffff")[0]
    assert "#ffffff" not in drawing.inline


def test_files_are_the_same_again_and_the_pdf_has_its_fonts_in_it(monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", FONT_TYPE)
    drawing = figure_of("fonts")
    assert drawing.pdf.startswith(b"%PDF")
    assert b"/FontFile2" in drawing.pdf  # TrueType: publishers refuse Matplotlib's own Type 3
    assert drawing == figure_of("fonts")


def test_letters_that_the_fonts_here_lack_are_drawn_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "模型 🚀" in figure_of("模型 🚀").svg


@pytest.fixture
def painted(monkeypatch):
    """The figures as Matplotlib has them, by name."""
    known = {}

    def keep(name, title, caption, height, paint):
        with matplotlib.rc_context(STYLE):
            known[name] = Figure(figsize=(8.2, height), layout="constrained")
            known[name].caption = caption
            paint(known[name])

    for module in (figures, parallel, simplexes):
        monkeypatch.setattr(module, "save", keep)

    def draw(run):
        figures.draw(find(load(run)), [])
        return known

    return draw


def test_single_trials_lie_beside_the_bars_of_their_means(tmp_path, painted):
    configs = grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 1.0, 2.5, 10.0))
    run = write_study(tmp_path, configs, lambda params: 0.5, replicates=3)
    (axes,) = painted(run)["interaction"].axes
    bars = np.concatenate([bar.lines[0].get_xdata() for bar in axes.containers])
    marks = [line for line in axes.lines if line.get_markersize() == 3.5]
    singles = np.concatenate([line.get_xdata() for line in marks])
    assert len(bars) == 12
    assert len(singles) == 36
    assert np.abs(singles[:, None] - bars).min() > 0.01


@pytest.mark.parametrize("num_configs", [12, 11])
def test_single_trials_that_a_mean_leaves_out_are_hollow(tmp_path, painted, num_configs):
    """Of two fields: without its last config each lacks a level in one setting of the other."""
    configs = grid(model__style_dim=(0, 4, 16), objective__beta=(0.5, 1.0, 2.5, 10.0))[:num_configs]
    run = write_study(tmp_path, configs, lambda params: 0.4 + 0.01 * params["model.style_dim"], replicates=3)
    figure, findings = painted(run)["main_effects"], find(load(run))
    for axes, finding in zip(figure.axes, findings.effects, strict=True):
        marks = [line for line in axes.lines if line.get_markersize() == 3.5]
        hollow = [line for line in marks if line.get_markerfacecolor() == "none"]
        filled = [line.get_ydata() for line in marks if line not in hollow]
        levels = finding.effect.levels
        assert [values.mean() for values in filled] == pytest.approx([mean.estimate.value for mean in levels])
        assert sum(len(line.get_ydata()) for line in marks) == 3 * num_configs
        assert bool(hollow) == bool(finding.effect.num_left_out) == (num_configs == 11)
    assert ("Hollow: trials of settings that lack a level" in figure.caption) == (num_configs == 11)


def test_numbers_of_configs_cover_neither_each_other_nor_marks_and_the_front_has_them_first(
    tmp_path, painted
):
    rng = np.random.default_rng(0)
    configs = [{"objective.beta": float(beta)} for beta in rng.uniform(0.5, 10, 40)]
    run = write_study(
        tmp_path,
        configs,
        lambda params: 0.4 + 0.02 * params["objective.beta"],
        study={"domains": {"objective.beta": {"type": "Uniform", "low": 0.5, "high": 10}}},
    )
    figure = painted(run)["trade_off"]
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert all(line.get_visible() for axis in (axes.xaxis, axes.yaxis) for line in axis.get_gridlines())
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    assert "1" in {text.get_text() for text in texts}
    assert 3 < len(texts) < 20
    boxes = [text.get_window_extent() for text in texts]
    assert not any(box.overlaps(other) for box in boxes for other in boxes if other is not box)
    marks = np.concatenate([axes.transData.transform(bar.lines[0].get_xydata()) for bar in axes.containers])
    assert len(marks) == 40
    others = (box for box, text in zip(boxes, texts, strict=True) if text.get_text() != "1")
    assert not any(box.contains(*mark) for box in others for mark in marks)


@pytest.mark.parametrize(
    ("metric", "style"), [("reconstruction", "steps-post"), ("log_likelihood", "steps-pre")]
)
def test_the_front_is_a_staircase_whose_steps_no_config_reaches_beyond(tmp_path, painted, metric, style):
    def tested(params, rng):
        return {("log_likelihood", "product", "mnist+svhn+text", "joint"): -20 * params["objective.beta"]}

    run = write_study(
        tmp_path,
        grid(objective__beta=(1.0, 2.0, 5.0)),
        lambda params: 0.1 * params["objective.beta"],
        tested=tested,
    )
    drawn = painted(run)
    (axes,) = drawn["trade_off" if metric == "reconstruction" else "likelihood"].axes
    (front,) = [line for line in axes.lines if line.get_linewidth() == 0.8]
    assert front.get_drawstyle() == style


def test_panels_of_a_simplex_have_grid_lines_both_ways(tmp_path, painted):
    rng = np.random.default_rng(0)
    configs = [{"objective.weights": tuple(rng.dirichlet(np.ones(4)).tolist())} for _ in range(5)]
    domains = {"objective.weights": {"type": "Simplex", "size": 4, "lower": 0}}
    run = write_study(tmp_path, configs, lambda params: 0.5, study={"domains": domains})
    first = painted(run)["weights_1"].axes[0]
    lines = [line for axis in (first.xaxis, first.yaxis) for line in axis.get_gridlines()]
    assert all(line.get_visible() for line in lines)


def test_axes_name_units_and_people(tmp_path, painted):
    def tested(params, rng):
        return {("frechet_distance", "", "", "svhn"): 10 + params["objective.beta"]}

    run = write_study(tmp_path, grid(objective__beta=(1.0, 2.0)), lambda params: 0.5, tested=tested)
    drawn = painted(run)
    assert drawn["trade_off"].axes[0].get_xlabel() == "reconstruction in nats per sample (lower is better)"
    assert drawn["quality"].axes[0].get_xlabel().startswith("Fréchet distance in squared units")


@pytest.mark.parametrize("is_grid", [True, False])
def test_a_grid_has_no_line_a_config_as_many_would_lie_on_each_other(tmp_path, painted, is_grid):
    configs = grid(model__style_dim=(0, 4), objective__beta=(0.5, 2.5), model__width=(0.5, 1.0))
    study = study_json(configs, 2, MODALITIES) | {"sampler": "grid" if is_grid else "random"}
    if not is_grid:
        study["domains"]["model.width"] = {"type": "Uniform", "low": 0.1, "high": 1}
        configs = [config | {"model.width": 0.1 * place} for place, config in enumerate(configs, 1)]
    run = write_study(tmp_path, configs, lambda params: 0.5, study=study)
    assert ("parallel_coordinates" in painted(run)) != is_grid
