"""What the figures show against what the sentences say."""

import json

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from rlhf_recipes.evaluation.metrics.claims import verdict
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.report.detail_figures import kl_figure
from rlhf_recipes.evaluation.report.figures import draw_rate

TINT = "#0072b2"


def filled(rate):
    """Whether the marker of a win rate is filled."""
    axes = Figure().subplots()
    draw_rate(axes, 0, rate, TINT)
    return to_hex(axes.lines[-1].get_markerfacecolor()) == TINT


@pytest.mark.parametrize("p_holm", [0.01, 0.049, 0.05, 0.3])
@pytest.mark.parametrize("ci", [[0.55, 0.8], [0.2, 0.45], [0.45, 0.6], [0.5, 0.7]])
@pytest.mark.parametrize("n", [9, 10, 64])
@pytest.mark.parametrize("read", [None, 0.5, 0.9])
def test_a_marker_is_filled_exactly_where_the_sentence_names_a_direction(p_holm, ci, n, read):
    readable = None if read is None else {"n": 1, "of": 2, "fraction": read}
    rate = {"value": sum(ci) / 2, "ci": ci, "n": n, "p_holm": p_holm, "readable": readable}
    assert filled(rate) == (verdict(rate) in ("better", "worse"))


def test_the_rate_at_equal_length_has_no_test_and_is_never_filled():
    assert not filled({"value": 0.9, "ci": [0.8, 0.95]})


def test_kl_against_length_shows_completions_and_no_line(searched, tmp_path):
    results = json.loads((searched / "results" / "evaluation_results.json").read_text())
    path = tmp_path / "kl.png"
    assert kl_figure(results, read_samples(searched / "samples"), path)
    assert imread(path).shape[1] > 1000
    assert "thirds" not in json.dumps(results["models"]["grpo-150"]["kl"])
