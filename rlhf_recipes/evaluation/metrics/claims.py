"""Claims that an estimate supports: a direction only if its interval and test agree on it.

Sentences, figures and controls all use these rules, so that none of them says more than another.
"""

from collections.abc import Sequence
from enum import StrEnum

from rlhf_recipes.evaluation.metrics.statistics import ALPHA
from rlhf_recipes.evaluation.metrics.win_rate import WinRate

# The 95% bootstrap interval of a mean holds the truth in 51% of cases at 2 prompts, 87% at 5.
FEWEST_PROMPTS = 10
FEWEST_READABLE = 0.8


class Claim(StrEnum):
    """Claim on a win rate, or on the side of another value, that interval and test support."""

    ABOVE = "better"
    BELOW = "worse"
    UNDETECTED = "no detectable difference"
    TOO_FEW = "too few prompts"
    UNREADABLE = "too few readable verdicts"


def claim(
    interval: Sequence[float], prompts: int, *, against: float = 0.0, p_holm: float | None = None
) -> Claim:
    """Decide on which side of `against` a value lies, if its interval and corrected p agree.

    Args:
        interval: Ends of the 95% interval.
        prompts: Number of prompts that the interval is over.
        p_holm: Holm-corrected p of the test against the same value; None where nothing is tested.
    """
    if prompts < FEWEST_PROMPTS:
        return Claim.TOO_FEW
    low, high = interval
    if low <= against <= high or (p_holm is not None and p_holm >= ALPHA):
        return Claim.UNDETECTED
    return Claim.ABOVE if low > against else Claim.BELOW


def win_claim(rate: WinRate) -> Claim:
    """Decide on which side of one half a win rate lies, given enough readable verdicts."""
    if rate.readable is not None and rate.readable.fraction < FEWEST_READABLE:
        return Claim.UNREADABLE
    return claim(rate.ci, rate.n, against=0.5, p_holm=rate.p_holm)
