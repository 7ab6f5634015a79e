from pathlib import Path

import numpy as np
import pytest

from training import JobError
from training.compare import paired_p, read_comparison, variant_run
from training.compare_report import as_markdown, as_svg

GOOD = 'config = "run.toml"\nseeds = [1]\nreference = "ours"\n[variants.ours]\n'


def cell(mean: float, **more: float) -> dict[str, float]:
    return {"mean": mean, "deviation": 0.001, **more}


RESULTS = {
    "seeds": [1, 2],
    "reference": "ours",
    "targets": {"overall": 100, "tail": 60},
    "rows": [
        {
            "variant": "ours",
            "model": "ours",
            "protocols": {
                "full": {
                    "overall": {"hr10": cell(0.2), "ndcg10": cell(0.1)},
                    "tail": {"hr10": cell(0.1), "ndcg10": cell(0.05)},
                }
            },
        },
        {
            "variant": "a<b",
            "model": "ours",
            "protocols": {
                "full": {
                    "overall": {
                        "hr10": cell(0.1, difference=-0.1, p=0.002),
                        "ndcg10": cell(0.05, difference=-0.05, p=0.5),
                    },
                    "tail": {"hr10": cell(0.05), "ndcg10": cell(0.05)},
                }
            },
        },
    ],
}


def test_a_difference_that_every_user_shows_is_beyond_chance() -> None:
    assert paired_p(np.full(50, 0.1)) == pytest.approx(2 / 5001)


def test_no_difference_has_a_p_of_one() -> None:
    assert paired_p(np.zeros(50)) == 1.0


def test_a_difference_by_chance_has_a_p_near_the_sign_tests() -> None:
    # 60 users gain 1, 40 lose 1: a mean of 0.2 with a standard error of 0.098, two-sided p 0.041.
    difference = np.repeat([1.0, -1.0], [60, 40])

    assert 0.02 < paired_p(difference) < 0.07


def test_a_difference_that_most_users_do_not_show_has_a_p_of_at_most_one() -> None:
    assert paired_p(np.array([1.0, -1.0] + [0.0] * 998)) == 1.0


def test_a_table_shows_means_with_deviations_and_differences() -> None:
    table = as_markdown(RESULTS)

    assert "| ours | ours | 0.2000 ± 0.0010 | 0.1000 ± 0.0010 |" in table
    assert "0.1000 ± 0.0010 (-0.1000, p 0.002)" in table


def test_cold_items_have_a_table_of_their_own() -> None:
    found = {
        "targets": cell(650),
        "hr10": cell(0.04),
        "hr10_low": cell(0.03),
        "hr10_high": cell(0.05),
        "ndcg10": cell(0.02),
        "warm_kept": cell(0.99),
    }

    table = as_markdown({**RESULTS, "cold": {"ours": found}})

    assert "| variant | HR@10 | NDCG@10 | HR@10 that the others keep | targets |" in table
    hit_rate = "0.0400 ± 0.0010 [0.0300, 0.0500]"
    assert f"| ours | {hit_rate} | 0.0200 ± 0.0010 | 0.9900 ± 0.0010 | 650 |" in table


def test_the_picture_draws_bars_in_proportion_and_escapes_names() -> None:
    picture = as_svg(RESULTS)

    assert 'width="420.0"' in picture
    assert 'width="210.0"' in picture
    assert "a&lt;b" in picture
    assert "a<b" not in picture


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace('"ours"', '"theirs"'), "'theirs' is no variant; there are ours"),
        (GOOD.replace("seeds = [1]", "seeds = []"), "seeds"),
        ('cold = ["mine"]\n' + GOOD, "cold: 'mine' is no variant; there are ours"),
        (GOOD + "[more]\n", "more"),
        ("config = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_comparison_is_named_by_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)

    with pytest.raises(JobError, match=message):
        read_comparison(path)


def test_a_missing_comparison_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no comparison .*none\.toml"):
        read_comparison(tmp_path / "none.toml")


CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.mark.parametrize("path", sorted((CONFIGS / "compare").glob("*.toml")), ids=lambda p: p.stem)
def test_every_variant_that_comes_along_makes_a_run(path: Path) -> None:
    comparison = read_comparison(path)

    for name in comparison.variants:
        assert variant_run(path, comparison, name, 7, [], None).config.rat.seed == 7


def test_a_variant_can_be_of_another_configuration_and_empty_a_table() -> None:
    paper, parts = (CONFIGS / "compare" / f"llmemb-{each}.toml" for each in ("paper", "parts"))

    theirs = variant_run(paper, read_comparison(paper), "llmemb", 1, [], None).config
    gru4rec = variant_run(parts, read_comparison(parts), "gru4rec", 1, [], None).config
    ours = variant_run(paper, read_comparison(paper), "ours", 1, [], None).config

    assert (theirs.rat.parts, theirs.rat.text.scaling) == (("text",), "pca")
    assert ours.rat.parts == ("text", "hybrid", "content", "neighbours")
    assert theirs.rat.sequence.options == {"layers": 2, "heads": 1, "dropout": 0.5}
    assert gru4rec.rat.sequence.options == {}
