import xml.etree.ElementTree as ET

import pytest

from training.charts import Bar, bars, lines, scatter, ticks

CHARTS = {
    "lines": lines("Loss", "step", "loss", {"a": [(1, 3.0), (2, 1.5)]}, "falls from 3 to 1.5"),
    "one point": lines("Loss", "step", "loss", {"a": [(1, 3.0)]}, "3"),
    "bars": bars("HR", "HR@10", [("all", "9 users")], {"ours": [Bar(0.2, 0.1, 0.3)]}, "all .2"),
    "nothing but zero": bars("HR", "HR@10", [("a", "")], {"ours": [Bar(0.0)], "b": [None]}, "0"),
    "scatter": scatter("Map", {"x": [(0, 0), (1, 1)], "other": [(0.5, 0)]}, "three", [(0, 0)]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_well_formed_and_says_in_words_what_it_shows(name: str) -> None:
    chart = ET.fromstring(CHARTS[name])

    title, words = chart[0], chart[1]
    assert (title.tag, words.tag) == ("title", "desc")
    assert title.text
    assert words.text
    assert chart.get("role") == "img"
    assert chart.get("aria-labelledby") == f"{title.get('id')} {words.get('id')}"


def test_an_axis_has_round_numbers_that_reach_around_all_values() -> None:
    assert ticks(0, 0.31, 4) == [0, 0.1, 0.2, 0.3, 0.4]
    assert ticks(3, 41) == [0, 10, 20, 30, 40, 50]
    assert ticks(2, 2)[0] <= 2 <= ticks(2, 2)[-1]


def test_a_bar_is_as_long_as_its_value_beside_another() -> None:
    chart = ET.fromstring(bars("t", "v", [("a", ""), ("b", "")], {"s": [Bar(0.2), Bar(0.1)]}, "d"))

    long, short = (float(each.get("width", 0)) for each in chart.iter("rect"))

    assert long == pytest.approx(2 * short, rel=0.01)


def test_what_comes_from_the_data_cannot_leave_its_place() -> None:
    chart = scatter("Map", {"<script>alert(1)</script>": [(0, 0), (1, 1)]}, '"&<')

    assert "<script>" not in chart
    ET.fromstring(chart)


def test_the_name_of_a_bar_has_the_room_it_needs_and_is_cut_with_a_sign_where_there_is_none() -> (
    None
):
    names = ["all", "longer-than-fifteen: id-only", "x" * 200]
    chart = ET.fromstring(bars("t", "v", [(n, "") for n in names], {"s": [Bar(0.2)] * 3}, "d"))

    shown = [each for each in chart if each.get("text-anchor") == "end"]
    assert [each.text for each in shown[:2]] == names[:2]
    assert (shown[2].text or "").endswith("x…")
    for each in shown:
        assert float(each.get("x", 0)) >= 7.2 * len(each.text or "")  # right-aligned, from 0 on
    assert all(float(each.get("width", 0)) > 100 for each in chart.iter("rect"))


def test_what_is_no_finite_number_is_left_out_of_a_curve() -> None:
    nan, inf = float("nan"), float("inf")
    whole = lines("t", "x", "y", {"a": [(1, 3.0), (3, 1.0)]}, "d", {"a": (3, 1.0)})

    assert whole == lines(
        "t", "x", "y", {"a": [(1, 3.0), (2, nan), (3, 1.0), (4, inf)]}, "d", {"a": (3, 1.0)}
    )
    assert "nan" not in lines(
        "t", "x", "y", {"a": [(1, 3.0)], "b": [(1, nan)]}, "d", {"b": (1, nan)}
    )
    assert "No value is a finite number." in lines("t", "x", "y", {"a": [(1, nan)]}, "d")
