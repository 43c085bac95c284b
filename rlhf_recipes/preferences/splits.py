"""Which pairs train and which validate: balanced, seeded, and no first user turn in both."""

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Pair, first_turn

LINE_CHARACTERS = 80


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


def in_balanced_order(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs in an order whose every beginning is balanced by source and number of turns."""
    return [pairs[i] for i in balanced_order([(p.source, p.turns) for p in pairs], seed)]


def hold_out(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs: about that fraction of the pairs, at least one, is held out.

    All pairs that share a first user turn go to the same side. The turns are drawn in balance by
    the source and the number of turns of their first pair. Raises RecipeError if all share one.
    """
    keys = [pair.first_turn_key for pair in pairs]
    if len(pairs) > 1 and len(set(keys)) == 1:
        raise RecipeError(
            f"All {len(pairs):,} usable training pairs have the same first user turn, "
            f"{_opening(first_turn(pairs[0].prompt))!r}. Pairs that share it stay on one side of "
            "a split, so none can be held out. If it is an instruction that stands in every row, "
            "make it a system message; else give data with more than one prompt."
        )
    sizes, first = Counter(keys), dict(zip(reversed(keys), reversed(pairs), strict=True))
    turns = list(sizes)
    strata = [(first[key].source, first[key].turns) for key in turns]
    order = [turns[i] for i in balanced_order(strata, seed)]
    held_out = whole_groups({key: sizes[key] for key in order}, round(fraction * len(pairs)))
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held_out]
    return train, [pair for pair, key in zip(pairs, keys, strict=True) if key in held_out]


def whole_groups(sizes: Mapping[str, int], count: int) -> set[str]:
    """The groups, taken in their order, that hold `count` items together or as near as they can.

    A group that would exceed the count is passed over, and one item at least is left outside. If
    every group is too large, it is the smallest one; of a single group, none.
    """
    count = min(max(count, 1), sum(sizes.values()) - 1)
    taken: set[str] = set()
    for group, size in sizes.items():
        if size <= count:
            taken.add(group)
            count -= size
    if not taken and len(sizes) > 1:
        taken.add(min(sizes, key=sizes.__getitem__))
    return taken


def _opening(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS] + "…"
