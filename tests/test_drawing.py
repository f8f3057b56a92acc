"""Names and levels as figures write them: short enough, and still different."""

from hypothesis import given
from hypothesis import strategies as st

from analysis.drawing import broken, short_labels

LETTERS = st.text("abc_", max_size=8)


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


@given(st.text("abc_.", max_size=90))
def test_a_broken_name_is_whole_and_its_lines_end_at_underscores_and_dots(name):
    lines = broken(name).split("\n")
    assert "".join(lines) == name
    assert all(line[-1] in "_." for line in lines[:-1])
    assert all(len(line) <= 26 or not set("_.") & set(line[:-1]) for line in lines)
