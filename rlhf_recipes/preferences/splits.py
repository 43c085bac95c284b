"""Which pairs train and which validate: balanced over strata, seeded, and no prompt in both."""

import random
from collections.abc import Hashable, Sequence

from rlhf_recipes.preferences.shapes import Pair, Text


def balanced_order(strata: Sequence[Hashable], seed: int) -> list[int]:
    """A random order of the items in which every beginning holds each stratum in proportion.

    Systematic sampling: the j-th of a stratum's n shuffled items stands at (j + u) / n, where u is
    uniform on [0, 1) and drawn once for the stratum; items are sorted by where they stand. Up to
    any point t a stratum has given n t items, to within one. So a smaller sample is a beginning of
    a larger one, and both look like the whole.

    Args:
        strata: The stratum of each item.
    """
    generator = random.Random(seed)
    members: dict[Hashable, list[int]] = {}
    for item, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(item)
    stands: list[tuple[float, int]] = []
    for items in members.values():
        generator.shuffle(items)
        offset = generator.random()
        stands += [((j + offset) / len(items), item) for j, item in enumerate(items)]
    return [item for _, item in sorted(stands)]


def prompt_key(prompt: Text) -> Hashable:
    """What two prompts share exactly when they are the same prompt, outer spaces aside."""
    if isinstance(prompt, str):
        return prompt.strip()
    return tuple((message["role"], message["content"].strip()) for message in prompt)


def in_balanced_order(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs in an order whose every beginning is balanced by source and number of turns."""
    return [pairs[i] for i in balanced_order([(p.source, p.turns) for p in pairs], seed)]


def hold_out(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: that fraction of the prompts, at least one, is held out.

    All pairs of a prompt go to the same side. Prompts are drawn in balance by the source and the
    number of turns of their first pair.
    """
    first: dict[Hashable, Pair] = {}
    for pair in pairs:
        first.setdefault(prompt_key(pair.prompt), pair)
    order = balanced_order([(p.source, p.turns) for p in first.values()], seed)
    keys = list(first)
    held_out = {keys[i] for i in order[: max(1, round(fraction * len(keys)))]}
    train = [pair for pair in pairs if prompt_key(pair.prompt) not in held_out]
    return train, [pair for pair in pairs if prompt_key(pair.prompt) in held_out]
