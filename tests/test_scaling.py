"""What docs/scaling.md derives follows from what was measured."""

import pytest

from scripts.scaling import LLM, LLMS, rate_of


def test_parameters_follow_from_a_shape() -> None:
    llm = LLM("tiny", layers=2, width=4, inner=8, heads=2, groups=1, head=2)

    query, key, value, output = 4 * 4, 4 * 2, 4 * 2, 4 * 4
    assert llm.parameters == 2 * (query + key + value + output + 3 * 4 * 8)
    assert [round(each.parameters / 1e6) for each in LLMS] == [106, 440, 6979]


def test_the_rate_is_the_share_of_the_ceiling_that_the_figure_tells() -> None:
    told = {"value": 0.5, "unit": "of the bfloat16 ceiling, 800 GFLOP/s"}

    assert rate_of({"encode.flop_share": told}) == 400e9
    with pytest.raises(ValueError, match="does not tell the ceiling"):
        rate_of({"encode.flop_share": told | {"unit": "share"}})
