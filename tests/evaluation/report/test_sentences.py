"""Every sentence of a report, for each combination of signs, intervals, tests and numbers of
prompts, against an independent reading of the numbers it was given."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from rlhf_recipes.evaluation.metrics.claims import Claim, claim, win_claim
from rlhf_recipes.evaluation.metrics.comparisons import Control
from rlhf_recipes.evaluation.metrics.diversity import Variety
from rlhf_recipes.evaluation.metrics.failures import Failure, ToBase
from rlhf_recipes.evaluation.metrics.frontier import FrontierPoint, MatchedRuns
from rlhf_recipes.evaluation.metrics.statistics import Estimate
from rlhf_recipes.evaluation.metrics.win_rate import Counts, Readable, WinRates, win_rate
from rlhf_recipes.evaluation.report import sentences as say
from rlhf_recipes.evaluation.report.sentences import gain, number
from tests.evaluation.changing import changed, rate_like, small_results

INTERVALS = {
    "below": (-0.4, -0.1),
    "over": (-0.2, 0.3),
    "touching": (0.0, 0.3),
    "above": (0.1, 0.4),
}
P_VALUES = (0.01, 0.05, 0.3)
PROMPTS = (2, 9, 10, 200)
CASES = list(product(INTERVALS, P_VALUES, PROMPTS))


def truth(interval: str, p: float, prompts: int) -> int:
    """+1 or -1 where the numbers name a direction, 0 where they do not; written apart from claims.

    The interval lies wholly on one side, the corrected test rejects, and there are ten prompts.
    """
    low, high = INTERVALS[interval]
    if prompts < 10 or not p < 0.05:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def says(sentence, **directions):
    """What a sentence states of a direction: +1, -1, or 0 where it states none."""
    found = [
        value
        for value, phrase in ((1, directions["up"]), (-1, directions["down"]))
        if re.search(phrase, sentence)
    ]
    assert len(found) < 2, sentence
    return found[0] if found else 0


def rate_with(interval, p, prompts, readable=None):
    low, high = INTERVALS[interval]
    return rate_like(
        value=0.5 + (low + high) / 2,
        ci=(0.5 + low, 0.5 + high),
        n=prompts,
        pairs=Counts(n=40, wins=24, ties=4, losses=12),
        readable=readable,
        p_holm=p,
        detectable=0.14,
    )


@pytest.mark.parametrize(("interval", "p", "prompts"), CASES)
def test_better_and_worse_need_interval_test_and_prompts(interval, p, prompts):
    sentence = say.comparison_sentence("ppo", "base", rate_with(interval, p, prompts), "gold")
    expected = truth(interval, p, prompts)
    assert says(sentence, up=r"\*\*better\*\*", down=r"\*\*worse\*\*") == expected
    assert ("too few to name a direction" in sentence) == (prompts < 10)
    assert ("no detectable difference" in sentence) == (prompts >= 10 and not expected)


@pytest.mark.parametrize(("interval", "p", "prompts"), CASES)
@pytest.mark.parametrize("read", [0, 31, 32, 40])
def test_a_judge_names_a_direction_only_if_enough_of_it_can_be_read(interval, p, prompts, read):
    readable = Readable(n=read, of=40, fraction=read / 40)
    win = rate_with(interval, p, prompts, readable)
    sentence = say.comparison_sentence("ppo", "base", win, "chat")
    expected = truth(interval, p, prompts) if read / 40 >= 0.8 else 0
    assert says(sentence, up=r"\*\*better\*\*", down=r"\*\*worse\*\*") == expected
    assert f"{read} of 40 verdicts readable" in sentence
    if read < 32:
        assert "fewer than 80% of the verdicts by chat can be read" in sentence


def policy_with(proxy, gold, gap):
    results = small_results()
    rewards = {}
    for metric, (interval, p) in {"proxy": proxy, "gold": gold}.items():
        reward = changed(results.models["ppo"].rewards[metric], "difference", p_holm=p)
        rewards[metric] = changed(reward, "gain", ci=INTERVALS[interval])
    policy = results.over_optimization.policies["ppo"]
    return rewards, replace(policy, gap_ci=INTERVALS[gap[0]], gap_p_holm=gap[1])


SIDES = list(product(INTERVALS, (0.01, 0.3)))


@pytest.mark.parametrize(("proxy", "gold", "gap"), list(product(SIDES, SIDES, SIDES)))
@pytest.mark.parametrize("prompts", [9, 64])
def test_proxy_gold_and_gap_sentences_match_their_claims(proxy, gold, gap, prompts):
    rewards, policy = policy_with(proxy, gold, gap)
    sentence = say.over_optimization_sentence("ppo", rewards, policy, prompts)
    rose = truth(proxy[0], proxy[1], prompts), truth(gold[0], gold[1], prompts)
    assert (
        says(
            sentence, up="the proxy rose|rose on the proxy", down="the proxy fell|fell on the proxy"
        )
        == rose[0]
    )
    on_gold = "gold {0}|{0} on gold|{0} on the proxy and on gold|and {0} on gold"
    assert says(sentence, up=on_gold.format("rose"), down=on_gold.format("fell")) == rose[1]
    assert ("is over-optimized" in sentence) == (rose == (1, -1))
    larger = says(sentence, up="The proxy's gain is larger", down="Gold's gain is larger")
    assert larger == truth(gap[0], gap[1], prompts)
    assert "no sign" not in sentence
    assert sentence.count("[") == 3


@pytest.mark.parametrize(
    ("raw", "shift", "equal", "prompts", "size"),
    list(product(INTERVALS, INTERVALS, INTERVALS, (9, 64), (0.05, 0.28))),
)
def test_what_length_does_is_said_only_of_a_certain_shift(raw, shift, equal, prompts, size):
    win = rate_with(raw, 0.01, prompts)
    low, high = INTERVALS[shift]
    real = small_results().models["ppo"].win_rate.lc
    assert real
    adjusted = replace(
        real,
        value=0.5,
        ci=tuple(0.5 + end for end in INTERVALS[equal]),
        shift=Estimate(size if low + high > 0 else -size, INTERVALS[shift]),
    )
    sentence = say.length_sentence("ppo", win, adjusted)
    moved = truth(shift, 0.01, prompts)
    if not moved or size < 0.1:
        assert sentence is None
        return
    before, after = truth(raw, 0.01, prompts), truth(equal, 0.01, prompts)
    # Explained: the lead or deficit shrinks at equal length. Hidden: it grows there.
    assert ("goes with length" in sentence) == (before == -moved)
    assert ("length hides" in sentence) == (before == moved or (not before and after == moved))
    if "a lead" in sentence or "the lead" in sentence:
        assert before == 1 or (before == 0 and after == 1)
    if "deficit" in sentence:
        assert before == -1 or (before == 0 and after == -1)
    assert says(sentence, up="length lowers", down="length raises") in (0, moved)


FRONTS = list(product((0.0, 0.05, 0.5, 0.95, 1.0), (0, 1, 2, 3, 4, 6), (2, 9, 10, 64)))


@pytest.mark.parametrize(("probability", "certain", "prompts"), FRONTS)
def test_only_certain_dominating_models_are_named(probability, certain, prompts):
    dominated = prompts >= 10 and 1 - probability >= 0.95
    names = [f"m{i}" for i in range(certain)] if dominated else []
    front = FrontierPoint(False, names, probability, dominated)
    sentence = say.frontier_sentence(
        "dpo", small_results().models["dpo"].kl, front, "gold", prompts
    )
    assert ("is dominated" in sentence) == dominated
    assert ("by some model" in sentence) == (dominated and not certain)
    assert "others" not in sentence
    for name in names[:3]:
        assert name in sentence
    assert ("1 more" in sentence) == (dominated and certain == 4)
    assert ("too few to settle" in sentence) == (prompts < 10)
    if prompts >= 10:
        settled = "may be" not in sentence
        assert settled == (probability >= 0.95 or dominated)


@pytest.mark.parametrize(("interval", "p", "prompts"), CASES)
def test_sentences_of_matched_runs_need_interval_and_test(interval, p, prompts):
    ci = INTERVALS[interval]
    pair = MatchedRuns(("ppo", "dpo"), 4.0, sum(ci) / 2, ci, p, p_holm=p)
    sentence = say.matched_sentence(pair, "gold", prompts)
    assert says(sentence, up="gains more", down="gains less") == truth(interval, p, prompts)
    assert "**ppo**" in sentence and "**dpo**" in sentence


@pytest.mark.parametrize(("interval", "p", "prompts"), CASES)
def test_failure_sentences_need_interval_and_test(interval, p, prompts):
    ci = INTERVALS[interval]
    base = small_results().models["base"].failures["repetition"]
    to_base = ToBase(sum(ci) / 2, ci, p, p_holm=p)
    ppo, earlier = (replace(base, to_base=t) for t in (to_base, replace(to_base, p_holm=None)))
    failures = {"repetition": Failure("repeats", {"base": base, "ppo": ppo, "ppo-5": earlier})}
    (sentence,) = say.failure_sentences(failures, prompts)
    assert says(sentence, up="has more", down="has less") == truth(interval, p, prompts)
    assert ("too few" in sentence) == (prompts < 10)


@pytest.mark.parametrize("measure", ["self_bleu_within", "entropy"])
@pytest.mark.parametrize(("interval", "p", "prompts"), CASES)
def test_diversity_sentences_need_interval_and_test(measure, interval, p, prompts):
    ci = INTERVALS[interval]
    tested = {"self_bleu_within": None, "entropy": None}
    tested[measure] = Variety(1.0, ci, sum(ci) / 2, ci, p, p_holm=p)
    results = changed(small_results(), "config", n_prompts=prompts)
    results = changed(results, "models.ppo.diversity", **tested)
    results = replace(results, models={n: results.models[n] for n in ("base", "ppo")})
    (sentence,) = say.diversity_sentences(results)
    phrases = {
        "self_bleu_within": {"up": "more alike", "down": "less alike"},
        "entropy": {"up": "are more varied", "down": "are less varied"},
    }[measure]
    assert says(sentence, **phrases) == truth(interval, p, prompts)


def test_the_tables_hold_a_sentence_for_every_claim():
    """Whatever the numbers, there is a row, and a row that nothing reaches would be dead."""
    sides = (Claim.ABOVE, Claim.BELOW, Claim.UNDETECTED)
    both = (Claim.TOO_FEW, Claim.TOO_FEW)
    assert set(say.PROXY_AND_GOLD) == {*product(sides, sides), both}
    assert set(say.GAP) == set(say.MATCHED) == {*sides, Claim.TOO_FEW}
    assert set(say.COMPARISON) == set(Claim)
    reached = {
        next(
            i for i, row in enumerate(say.LENGTH) if row[:2] == (raw, shift) and row[2] in (None, e)
        )
        for raw, shift, e in product(sides, (Claim.ABOVE, Claim.BELOW), sides)
    }
    assert reached == set(range(len(say.LENGTH)))


@pytest.mark.parametrize(("passed", "said"), [(True, "passed"), (None, "could not be decided")])
def test_a_control_says_what_came_out(passed, said):
    win = rate_with("over", 0.9, 64)
    open_ = [] if passed else ["chat"]
    kl = small_results().models["base"].kl
    control = Control(WinRates({"gold": win, "chat": win}), kl, [], open_, passed)
    sentence = say.control_sentence(control, "gold")
    assert said in sentence and "failed" not in sentence
    assert ("by gold" if passed else "by chat") in sentence


def test_a_control_that_failed_shows_the_numbers_of_what_it_failed_on():
    rates = {"gold": rate_with("over", 0.9, 64), "chat": rate_with("above", 0.01, 64)}
    kl = replace(small_results().models["base"].kl, seq=0.2)
    control = Control(WinRates(rates), kl, ["chat", "kl"], [], False)
    sentence = say.control_sentence(control, "gold")
    assert "**failed** on chat and kl" in sentence
    assert "75% [60, 90] by chat (Holm p = 0.01)" in sentence and "by gold" not in sentence
    only_kl = say.control_sentence(replace(control, failed_on=["kl"]), "gold")
    assert "**failed** on kl" in only_kl and "KL of 0.200 nats" in only_kl


def printed(sentence):
    """The printed rate, and what it is of: n, won, tied and lost of the pairs."""
    value = int(re.search(r"(\d+)% \[", sentence)[1])
    n = int(re.search(r"of (\d+) (?:prompts|pairs)", sentence)[1])
    return value, n, *map(int, re.search(r"(\d+) won, (\d+) tied, (\d+) lost", sentence).groups())


@pytest.mark.parametrize("samples", [(1, 1), (2, 2), (4, 1), (3, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_the_printed_rate_follows_from_the_printed_counts(samples, seed):
    rng = np.random.default_rng(seed)
    own, other = (rng.integers(0, 3, (64, k)).astype(float) for k in samples)
    win = win_rate(own + rng.integers(0, 2), other)
    sentence = say.comparison_sentence("ppo", "base", replace(win, p_holm=win.p), "gold")
    value, n, won, tied, lost = printed(sentence)
    assert won + tied + lost == n == 64 * samples[0] * samples[1]
    assert abs(100 * (won + tied / 2) / n - value) <= 0.5 + 1e-9
    assert "a tie counts one half" in sentence


def rate_of(wins, losses):
    scores = np.array([1.0] * wins + [-1.0] * losses)[:, None]
    found = win_rate(scores, np.zeros_like(scores))
    return replace(found, p_holm=found.p)


def test_54_of_100_is_not_called_better_and_75_is():
    sentence = say.comparison_sentence("ppo", "base", rate_of(54, 46), "gold")
    assert "no detectable difference" in sentence and "54% [44, 63]" in sentence
    # 2.80 standard errors of √(.54 * .46 * 100/99) / 10 are 14 points.
    assert "under 14 points would be missed more than 20% of the time" in sentence
    assert win_claim(rate_of(75, 25)) == Claim.ABOVE
    assert win_claim(rate_of(25, 75)) == Claim.BELOW
    assert win_claim(rate_of(9, 0)) == Claim.TOO_FEW


def test_a_claim_without_a_test_rests_on_the_interval():
    assert claim((0.1, 0.2), 10) == Claim.ABOVE and claim((-0.2, -0.1), 10) == Claim.BELOW
    assert claim((0.1, 0.2), 10, against=0.15) == Claim.UNDETECTED


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (52.13, "52.1"),
        (9.998, "10.0"),
        (0.1234, "0.123"),
        (1234.5, "1234"),
        (-0.0004, "-0.0004"),
        (0, "0"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text


def test_a_number_too_small_to_show_is_zero_without_a_sign():
    assert number(-0.000004) == "0"


def test_a_gain_of_nothing_has_no_minus():
    assert gain(-0.001) == "+0.00" and gain(-0.01) == "-0.01"
