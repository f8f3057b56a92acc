"""Laws of the domains, what Optuna makes of them, and what a search space refuses."""

import json
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from mmjsd.config import DataConfig, EvaluationConfig
from study.config import TrialConfig
from study.questions import list_questions, load_question
from study.space import (
    Cases,
    Choice,
    Integer,
    LogUniform,
    SearchSpace,
    Simplex,
    Uniform,
)

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"
BASE = TrialConfig()

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Draws:
    """Stands in for an Optuna trial, and answers with what Hypothesis or a generator draws."""

    def __init__(self, draw):
        self.draw = draw
        self.names = []

    def suggest_float(self, name, low, high, *, log=False):
        self.names.append(name)
        return self.draw(st.floats(low, high)) if callable(self.draw) else self.draw.uniform(low, high)

    def suggest_int(self, name, low, high, *, log=False):
        self.names.append(name)
        return self.draw(st.integers(low, high))

    def suggest_categorical(self, name, choices):
        self.names.append(name)
        return self.draw(st.sampled_from(choices))


@st.composite
def intervals(draw, low=-1e6, high=1e6):
    ends = draw(st.lists(st.floats(low, high), min_size=2, max_size=2, unique=True))
    return min(ends), max(ends)


integers = st.tuples(st.integers(1, 1000), st.integers(1, 1000), st.booleans()).map(
    lambda each: Integer(each[0], each[0] + each[1], log=each[2])
)
choices = st.lists(
    st.one_of(st.integers(), st.text(), st.tuples(st.integers())), min_size=1, unique=True
).map(lambda options: Choice(tuple(options)))
uniforms = intervals().map(lambda ends: Uniform(*ends))
log_uniforms = intervals(1e-6, 1e6).map(lambda ends: LogUniform(*ends))


@st.composite
def simplexes(draw):
    size = draw(st.integers(2, 6))
    return Simplex(size, lower=draw(st.floats(0, 0.99 / size)))


def holds(domain, value):
    if isinstance(domain, Choice):
        return value in domain.options
    if isinstance(domain, Simplex):
        return (
            len(value) == domain.size
            and min(value) >= domain.lower
            and math.isclose(sum(value), 1, abs_tol=1e-9)
        )
    return domain.low <= value <= domain.high and isinstance(value, int) == isinstance(domain, Integer)


domains = st.one_of(integers, choices, uniforms, log_uniforms, simplexes())


@given(domains, st.data())
def test_suggests_a_value_of_the_domain(domain, data):
    assert holds(domain, domain.suggest(Draws(data.draw), "path"))


@given(domains, st.integers(2, 5))
def test_grid_holds_distinct_values_of_the_domain(domain, levels):
    values = domain.grid(levels)
    assert all(holds(domain, value) for value in values)
    assert len({repr(value) for value in values}) == len(values)


@given(st.one_of(integers, uniforms, log_uniforms), st.integers(2, 5))
def test_grid_ascends_from_end_to_end(domain, levels):
    values = domain.grid(levels)
    assert (values[0], values[-1]) == (domain.low, domain.high)
    assert values == sorted(values)


@given(simplexes(), st.integers(1, 5))
def test_lattice_has_as_many_points_as_there_are_ways_to_split_the_levels(domain, levels):
    points = domain.grid(levels)
    assert len(points) == math.comb(levels + domain.size - 1, domain.size - 1)
    assert {max(point) for point in points} >= {points[0][-1]}  # a corner is among them


@given(domains, st.data())
def test_encode_gives_the_draws_back_from_which_suggest_makes_the_value(domain, data):
    value = data.draw(st.sampled_from(domain.grid(4)))
    again = domain.suggest(optuna.trial.FixedTrial(domain.encode(value, "path")), "path")
    if isinstance(domain, Simplex):
        assert_allclose(again, value, atol=1e-9)
    else:
        assert again == value


@given(domains)
def test_json_names_the_type_and_survives_a_file(domain):
    values = json.loads(json.dumps(domain.to_json()))
    assert values["type"] == type(domain).__name__
    assert len(values) > 1


@pytest.mark.parametrize("options", [range(3), np.linspace(0, 2, 3), (size for size in (0, 1, 2))])
def test_a_choice_takes_its_options_in_any_ordered_container(options):
    choice = Choice(options)
    assert choice == Choice((0, 1, 2))
    assert json.loads(json.dumps(choice.to_json())) == {"type": "Choice", "options": [0, 1, 2]}


CASES = SearchSpace(
    {
        "objective.beta": Choice((1.0, 2.0)),
        "subspaces": Cases(
            {
                "none": {"model.style_dim": 0, "model.content_dim": 20},
                "own": {"model.style_dim": Integer(1, 4), "objective.beta_style": LogUniform(0.5, 8.0)},
                "weighted": {"objective.weights": Simplex(4)},
            }
        ),
    },
    base={"model.content_dim": 12, "model.style_dim": 3},
)


@given(st.data())
def test_a_case_draws_its_own_fields_and_leaves_the_others_to_the_base(data):
    params = CASES.suggest(Draws(data.draw))
    base = BASE.with_fields(CASES.base)
    config = CASES.decode(params, base)
    if params["subspaces"] == "none":
        assert params.keys() == {"objective.beta", "subspaces"}
        assert (config.model.style_dim, config.model.content_dim) == (0, 20)
    elif params["subspaces"] == "own":
        assert config.model.style_dim == params["model.style_dim"] in (1, 2, 3, 4)
        assert config.model.content_dim == 12
    else:
        assert config.objective.weights == params["objective.weights"]
        assert config.model == base.model


@given(st.data())
def test_draws_of_cases_give_their_params_back(data):
    params = data.draw(st.sampled_from(CASES.grid(3)))
    again = CASES.suggest(optuna.trial.FixedTrial(CASES.encode(params)))
    weights = again.pop("objective.weights", ()), params.pop("objective.weights", ())
    assert_allclose(*weights, atol=1e-9)
    assert again == params


def test_grid_of_cases_runs_through_each_case():
    space = SearchSpace({"style": Cases({"no": {}, "yes": {"model.style_dim": Integer(1, 3)}})})
    grid = space.grid()
    assert grid == [{"style": "no"}, *({"style": "yes", "model.style_dim": size} for size in (1, 2, 3))]
    assert space.domains["style"].is_finite
    assert not CASES.domains["subspaces"].is_finite
    assert len(CASES.grid(2)) == 2 * (1 + 4 * 2 + 10)


def test_cases_serve_optunas_samplers_of_conditional_spaces():
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=5)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    base = BASE.with_fields(CASES.base)

    def objective(trial):
        params = CASES.suggest(trial)
        assert CASES.encode(params).keys() == trial.params.keys()
        config = CASES.decode(params, base)
        return (params["subspaces"] == "own") + config.objective.beta_style / 10

    study.optimize(objective, n_trials=30)
    assert study.best_params["subspaces"] == "own"
    assert study.best_value > 1.6


def test_fields_that_a_command_line_fixes_leave_the_cases():
    left = CASES.without(["model.style_dim", "objective.beta"])
    assert left.varied == ("model.content_dim", "objective.beta_style", "objective.weights")
    assert left.suggest(optuna.trial.FixedTrial({"subspaces": "none"})) == {"subspaces": "none"}
    config = left.decode({"subspaces": "none"}, BASE)
    assert config.model == BASE.with_fields({"model.content_dim": 20}).model


def test_grids_worked_by_hand():
    assert Integer(2, 5).grid(2) == [2, 3, 4, 5]
    assert Integer(1, 1000, log=True).grid(4) == [1, 10, 100, 1000]
    assert Uniform(0, 1).grid(5) == [0, 0.25, 0.5, 0.75, 1]
    assert LogUniform(1e-4, 1e-2).grid(3) == [1e-4, 1e-3, 1e-2]
    assert Simplex(3, lower=0.1).grid(1) == [(0.1, 0.1, 0.8), (0.1, 0.8, 0.1), (0.8, 0.1, 0.1)]
    assert Simplex(2, lower=0.0).grid(2) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]


@pytest.mark.parametrize("size", [2, 4])
def test_uniform_draws_give_the_flat_dirichlet_distribution(size):
    trial = Draws(np.random.default_rng(0))
    drawn = np.array([Simplex(size, lower=0.0).suggest(trial, "pi") for _ in range(10_000)])
    assert trial.names[: size - 1] == [f"pi[{index}]" for index in range(size - 1)]
    variance = (size - 1) / (size**2 * (size + 1))
    assert_allclose(drawn.mean(0), 1 / size, atol=4 * math.sqrt(variance / 10_000))
    assert_allclose(np.cov(drawn.T).diagonal(), variance, rtol=0.06)
    off_diagonal = np.cov(drawn.T)[~np.eye(size, dtype=bool)]
    assert_allclose(off_diagonal, -variance / (size - 1), rtol=0.15)
    for weight in drawn.T:
        assert stats.kstest(weight, stats.beta(1, size - 1).cdf).pvalue > 1e-3
    pair = drawn[:, -1] / (drawn[:, 0] + drawn[:, -1])  # of the first and the last alone: uniform again
    assert stats.kstest(pair, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_serves_optuna(sampler):
    space = SearchSpace(
        {
            "objective.name": Choice(("mmjsd", "mmvae")),
            "model.style_dim": Integer(0, 32),
            "objective.beta": LogUniform(0.1, 10),
            "data.missing": Uniform(0, 0.5),
            "objective.weights": Choice(((0.25, 0.25, 0.25, 0.25), (0.2, 0.2, 0.2, 0.4))),
        }
    )
    study = optuna.create_study(sampler=sampler(seed=0), direction="maximize")
    seen = []

    def objective(trial):
        params = space.suggest(trial)
        assert space.encode(params) == trial.params
        seen.append(space.decode(params, BASE))
        return -params["objective.beta"]

    study.optimize(objective, n_trials=15)
    assert len({config.config_hash() for config in seen}) == 15


@pytest.mark.parametrize(
    ("data", "largest"),
    [("polydigits-2", 1), ("digits", 3), ("polydigits-4", 6), ("polydigits-5", 10), ("polydigits-6", 20)],
)
def test_a_limit_on_evaluated_subsets_is_another_config_only_where_there_are_more(data, largest):
    def config_hash(limit):
        evaluation = EvaluationConfig(subsets_per_size=limit)
        return TrialConfig(data=DataConfig(name=data), evaluation=evaluation).config_hash()

    assert config_hash(largest) == config_hash(largest + 1) == config_hash(1000)
    fewer = [limit for limit in (largest - 2, largest - 1) if limit > 0]
    assert len({config_hash(limit) for limit in (*fewer, largest)}) == len(fewer) + 1


def test_tpe_finds_good_weights_on_the_simplex():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=10))
    target = np.array([0.6, 0.2, 0.1, 0.1])
    study.optimize(lambda trial: np.abs(Simplex(4).suggest(trial, "pi") - target).sum(), n_trials=60)
    assert study.best_value < 0.3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Choice(()), "Choice needs at least one option, got none"),
        (lambda: Choice((1, 2, 1)), "Choice repeats the option 1"),
        (lambda: Choice((np.int64(1), 2)), r"options that JSON can hold, got .*1.* \(int64\)"),
        (lambda: Choice({0, 2}), r"Choice needs options in an order, got the set \{0, 2\}; write a tuple"),
        (lambda: Choice(2), "Choice needs options in an order, got the int 2; write a tuple"),
        (lambda: Choice("mmjsd"), "Choice needs options in an order, got the str 'mmjsd'; write a tuple"),
        (
            lambda: SearchSpace({"objective.beta": Uniform(np.float32(1), 2)}),
            r"beta needs values that JSON can hold, got .*1.* \(float32\); write Python's own types",
        ),
        (lambda: SearchSpace({"objective.beta": LogUniform(1, np.int64(4))}), r"got .*4.* \(int64\)"),
        (lambda: SearchSpace({"objective.weights": Simplex(np.int64(4))}), r"got .*4.* \(int64\)"),
        (
            lambda: SearchSpace({"x": Cases({"a": {"objective.weights": np.full(4, 0.25)}})}),
            r"x needs values that JSON can hold, got array\(.* \(ndarray\)",
        ),
        (lambda: Integer(3, 3), "Integer needs low < high, got 3 and 3"),
        (lambda: Integer(1.5, 4), "Integer needs whole numbers as ends, got 1.5 and 4"),
        (lambda: Integer(0, 3, log=True), "a logarithmic Integer needs low >= 1, got 0"),
        (lambda: Uniform(2, 1), "Uniform needs low < high, got 2 and 1"),
        (lambda: Uniform(0, math.inf), "Uniform needs finite ends, got 0 and inf"),
        (lambda: LogUniform(0, 1), "LogUniform needs low > 0, got 0"),
        (lambda: Simplex(1), "Simplex needs a size of at least 2, got 1"),
        (lambda: Simplex(4.0), "Simplex needs a whole number as its size, got 4.0"),
        (lambda: Simplex(4, lower=0.25), r"Simplex of size 4 needs lower in \[0, 1/4\), got 0.25"),
        (lambda: Cases({0: {}, 4: {}}), "Cases needs strings as names, got 0; write '0'"),
        (lambda: Cases(["a"]), r"Cases needs cases by their names, in a dict, got \['a'\]$"),
        (lambda: Cases({}), "Cases needs at least one case, got none"),
        (lambda: Cases({"a": {"b": Cases({"c": {}})}}), "cannot hold further Cases, got one in the case 'a'"),
        (
            lambda: SearchSpace({"objective.beta": Choice((1,)), "own": Cases({"a": {"objective.beta": 2}})}),
            "varies 'objective.beta' and the whole of 'objective.beta'",
        ),
        (
            lambda: SearchSpace({"objective.beta": (1.0, 2.5)}),
            r"gives objective.beta \(1.0, 2.5\); expected a domain, such as Choice",
        ),
        (lambda: SearchSpace({}, presets={"labtop": {}}), "has no preset 'labtop'; expected laptop or paper"),
        (lambda: SearchSpace({}, presets={"laptop": None}), "sets preset laptop to None; expected fields"),
        (lambda: SearchSpace({}, base=None), "search space sets its base to None; expected fields"),
        (lambda: SearchSpace({}, base=["model.style_dim", 0]), r"base to \['model.style_dim', 0\]; expected"),
        (
            lambda: Cases({"low": Choice((1,))}),
            "Cases sets 'low' to Choice.*; expected fields by their paths",
        ),
        (lambda: Uniform(0, 1).grid(1), "a grid needs at least 2 levels, got 1"),
        (
            lambda: SearchSpace({"objective.beta": Uniform(1, 2)}, base={"objective.beta": 1}),
            "search space both varies and fixes 'objective.beta'",
        ),
        (
            lambda: SearchSpace({"model.style_dim": Choice((1,)), "model.style_dim.svhn": Choice((2,))}),
            "varies 'model.style_dim.svhn' and the whole of 'model.style_dim'",
        ),
    ],
)
def test_refuses_what_is_no_domain(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("domains", "sentence"),
    [
        (
            {"objective.bta": Uniform(1, 2)},
            "search space names no trial field 'objective.bta'; did you mean 'objective.beta'?",
        ),
        ({"seed": Choice((1, 2))}, "names no trial field 'seed'"),
        ({"data.name": Choice(("digits",))}, "data.name cannot be varied"),
        (
            {"objective.beta": Uniform(-1, 2)},
            r"gives objective.beta .*: beta must be .* >= 0, got -1",
        ),
        ({"training.epochs": Uniform(1, 9)}, "gives training.epochs .* valid integer"),
        ({"training.epochs": Uniform(1, 8)}, "gives training.epochs .* valid integer"),
        ({"own": Cases({"a": {}, "b": {"training.epochs": Uniform(1, 8)}})}, "gives own .* valid integer"),
        ({"objective.name": Choice(("mmjsd", "mmjds"))}, "gives objective.name .*'mmjds'"),
        (
            {"objective.weights": Simplex(3)},
            "objective.weights needs a Simplex of size 4 for digits, .* got size 3",
        ),
        ({"model.style_dim.svhm": Choice((1, 2))}, "did you mean 'model.style_dim.svhn'"),
        ({"own": Cases({"a": {"objective.bta": 1}})}, "did you mean 'objective.beta'"),
        ({"own": Cases({"a": {"data.name": "digits"}})}, "data.name cannot be varied"),
        ({"own": Cases({"a": {"objective.beta": -1}})}, "gives own .*: beta must be .* >= 0, got -1"),
        ({"own": Cases({"a": {"objective.beta": Uniform(-1, 1)}})}, "gives own .* got -1"),
        ({"model.width": Cases({"a": {"objective.beta": 1}})}, "cases cannot be named 'model.width'"),
    ],
)
def test_check_refuses_a_domain_that_trials_would_refuse(domains, sentence):
    with pytest.raises(ValueError, match=sentence):
        SearchSpace(domains).check(BASE)


def test_check_refuses_a_misspelt_base():
    with pytest.raises(ValueError, match=r"names no trial field 'model.widht'; did you mean 'model.width'"):
        SearchSpace({}, base={"model.widht": 1}).check(BASE)


def test_grid_is_the_product_with_the_last_domain_changing_fastest():
    space = SearchSpace({"model.style_dim": Choice((0, 4)), "objective.beta": LogUniform(1, 4)})
    assert [tuple(params.values()) for params in space.grid(3)] == [
        (0, 1.0),
        (0, 2.0),
        (0, 4.0),
        (4, 1.0),
        (4, 2.0),
        (4, 4.0),
    ]
    assert SearchSpace({}).grid() == [{}]


def test_decode_sets_the_varied_fields_and_no_other():
    space = SearchSpace({"model.style_dim.svhn": Choice((9,)), "objective.weights": Simplex(4)})
    config = space.decode({"model.style_dim.svhn": 9, "objective.weights": (0.4, 0.3, 0.2, 0.1)}, BASE)
    assert config.model.style_dim == {"mnist": 4, "svhn": 9, "text": 4}
    assert config.objective.weights == (0.4, 0.3, 0.2, 0.1)
    assert config.training == BASE.training
    with pytest.raises(ValueError, match="weights must sum to one"):
        space.decode({"model.style_dim.svhn": 9, "objective.weights": (0.4, 0.3, 0.2, 0.2)}, BASE)


def test_without_drops_fields_and_their_parts():
    space = SearchSpace(
        {
            "model.style_dim.svhn": Choice((1, 2)),
            "model.width": Uniform(0.5, 1),
            "objective.beta_style": Uniform(0, 1),
        }
    )
    left = space.without(["model.style_dim", "objective.beta"])
    assert list(left.domains) == ["model.width", "objective.beta_style"]


@pytest.mark.parametrize("name", list_questions(SPACES))
def test_each_question_says_what_it_asks_and_makes_valid_trials(name):
    question = load_question(name, SPACES)
    assert question.title.endswith("?")
    assert f"python study/run.py --space {name} " in question.description
    assert "Source:" in question.description
    assert "Cost:" in question.description
    base = question.space.base
    data_set = BASE.with_fields({"data.name": base.get("data.name", BASE.data.name)})
    for fields in ({}, *question.space.presets.values()):
        question.space.check(data_set.with_fields({**base, **fields}))


def test_lists_the_questions_of_the_project():
    assert set(list_questions(SPACES)) >= {"subspaces", "priors", "fusion", "paper", "smoke"}
    assert len(load_question("paper", SPACES).space.grid()) == 6
    assert len(load_question("subspaces", SPACES).space.grid()) == 8
    assert len(load_question("fusion", SPACES).space.grid()) == 4


def test_lists_each_file_by_the_first_line_of_its_docstring(tmp_path):
    files = {
        "licensed": b'# Copyright\n"""Mine?\n\nMore."""',
        "raw": b'r"""Raw?"""',
        "single": b"'''\n    Second line?\n'''",
        "silent": b"x = 1",
        "_own": b"x = 1",
        ".hidden": b"\xff",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    titles = {"licensed": "Mine?", "raw": "Raw?", "single": "Second line?", "silent": ""}
    assert list_questions(tmp_path) == titles


@pytest.mark.parametrize("content", [b'"""Caf\xe9?"""', b"SPACE = (", b"\0"])
def test_a_file_that_cannot_be_read_stays_in_the_list_and_is_refused_alone(tmp_path, content):
    (tmp_path / "broken.py").write_bytes(content)
    (tmp_path / "well.py").write_bytes(
        b'"""Well?"""\nfrom study.space import SearchSpace\nSPACE = SearchSpace({})'
    )
    titles = list_questions(tmp_path)
    assert titles["broken"].startswith("cannot be read: ")
    assert load_question("well", tmp_path).title == titles["well"] == "Well?"
    with pytest.raises(ValueError, match=r"broken.py cannot be loaded: SyntaxError"):
        load_question("broken", tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("import nonsense", "cannot be loaded: ModuleNotFoundError: No module named 'nonsense'"),
        ("SPACE = (", "cannot be loaded: SyntaxError"),
        ("SPACE = {}", "defines no SPACE = SearchSpace"),
        ("import sys\nsys.exit(3)", r"own.py cannot be loaded: SystemExit: 3 \(line 2: sys.exit\(3\)\)$"),
        ("from study.space import Choice\n\nChoice(0, 2)", r"given \(line 3: Choice\(0, 2\)\)$"),
    ],
)
def test_refuses_a_file_that_is_no_space(tmp_path, text, sentence):
    file = tmp_path / "own.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_question(str(file), SPACES)
