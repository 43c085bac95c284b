"""What the figures show against what the sentences say."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from rlhf_recipes.evaluation.metrics.claims import win_claim
from rlhf_recipes.evaluation.metrics.length_control import length_controlled
from rlhf_recipes.evaluation.metrics.samples import read_samples
from rlhf_recipes.evaluation.metrics.win_rate import Readable
from rlhf_recipes.evaluation.report.figures import draw_rate, kl_figure
from rlhf_recipes.evaluation.results import evaluation_results
from tests.evaluation.changing import rate_like

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
    readable = None if read is None else Readable(n=1, of=2, fraction=read)
    rate = rate_like(value=sum(ci) / 2, ci=ci, n=n, p_holm=p_holm, readable=readable)
    assert filled(rate) == (win_claim(rate) in ("better", "worse"))


def test_the_rate_at_equal_length_has_no_test_and_is_never_filled():
    scores, longer = np.arange(40) < 36, np.tile([-1.0, 1.0], 20)
    rate = length_controlled(scores.astype(float), longer, "gold")
    assert rate.ci.low > 0.6 and not filled(rate)


def test_kl_against_length_shows_completions_and_no_line(searched, tmp_path):
    collection, path = read_samples(searched / "samples"), tmp_path / "kl.png"
    assert kl_figure(evaluation_results(collection)[0], collection, path)
    assert imread(path).shape[1] > 1000
