"""Selection of the prompts that the report shows, by a stated rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_recipes.evaluation.metrics.failures import Failures
from rlhf_recipes.evaluation.metrics.samples import Collection
from rlhf_recipes.evaluation.metrics.statistics import SEED
from rlhf_recipes.evaluation.metrics.typed_json import Count

AT_RANDOM = 4


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt whose first completion by each model is shown, and why."""

    row: Count
    prompt_id: int
    reason: str


@dataclass(frozen=True)
class SamplesShown:
    """The prompts that the report shows, and the rule that selects them."""

    rule: str
    prompts: Sequence[ShownPrompt]


def samples_shown(collection: Collection, failures: Failures) -> SamplesShown:
    """Select prompts to show, with the reason for each: some at random, and the extremes."""
    primary = collection.primary
    base = collection.base.scores(primary).mean(axis=1)
    finals = collection.finals
    gains = np.mean([m.scores(primary).mean(axis=1) - base for m in finals], axis=0)
    kl = np.mean([m.values("kl").mean(axis=1) for m in finals], axis=0)
    flagged = np.sum([masks[m.name][:, 0] for masks in failures.values() for m in finals], axis=0)
    rng = np.random.default_rng(SEED)
    rows = sorted(rng.choice(len(base), min(AT_RANDOM, len(base)), replace=False))
    reasons = {int(row): "drawn at random" for row in rows}
    for row, reason in (
        (gains.argmax(), f"largest gain in {primary} reward, mean of the policies"),
        (gains.argmin(), f"largest loss in {primary} reward, mean of the policies"),
        (kl.argmax(), "largest KL, mean of the policies"),
        (flagged.argmax(), "most failures, sum of the policies"),
    ):
        reasons.setdefault(int(row), reason)
    rule = (
        f"{AT_RANDOM} prompts drawn with seed {SEED}, then the largest gain and the largest loss "
        f"in {primary} reward over base, the largest KL and the most failures, over the policies; "
        "the first sample of each model"
    )
    ids = [row[0]["prompt_id"] for row in collection.base.records]
    return SamplesShown(rule, [ShownPrompt(r, ids[r], reason) for r, reason in reasons.items()])
