"""Split pairs into training and validation: stratified, seeded, no first user turn in both."""

import random
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.shapes import Pair, first_turn

LINE_CHARACTERS = 80


def stratified_order(strata: Sequence[Hashable], seed: int) -> list[int]:
    """Return a random order of the items in which every prefix is stratified.

    Systematic sampling: the j-th of a stratum's n shuffled items gets the position (j + u) / n,
    where u is uniform on [0, 1) and drawn once per stratum. The items are sorted by position. Below
    any position t there are n t items of the stratum, to within one. So a smaller sample is a
    prefix of a larger one, and both have the proportions of the whole.

    Args:
        strata: The stratum of each item.
    """
    generator = random.Random(seed)
    members: dict[Hashable, list[int]] = {}
    for item, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(item)
    positions: list[tuple[float, int]] = []
    for items in members.values():
        generator.shuffle(items)
        offset = generator.random()
        positions += [((j + offset) / len(items), item) for j, item in enumerate(items)]
    return [item for _, item in sorted(positions)]


def in_stratified_order(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Return the pairs in an order of which every prefix is stratified by source and turns."""
    return [pairs[i] for i in stratified_order([(p.source, p.turns) for p in pairs], seed)]


def hold_out(pairs: Sequence[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into training and validation; about `fraction`, at least one pair, is held out.

    All pairs with the same first user turn are on one side. The held-out turns are drawn stratified
    by the source and the number of turns of their first pair.

    Raises RecipeError if all pairs have the same first user turn.
    """
    keys = [pair.first_turn_key for pair in pairs]
    if len(pairs) > 1 and len(set(keys)) == 1:
        raise RecipeError(
            f"All {len(pairs):,} usable training pairs have the same first user turn, "
            f"{_opening(first_turn(pairs[0].prompt))!r}. Pairs with the same first turn stay on "
            "one side of a split, so none can be held out. If it is an instruction that is in "
            "every row, make it a system message; else give data with more than one prompt."
        )
    sizes, first_pair = Counter(keys), dict(zip(reversed(keys), reversed(pairs), strict=True))
    turns = list(sizes)
    strata = [(first_pair[key].source, first_pair[key].turns) for key in turns]
    order = [turns[i] for i in stratified_order(strata, seed)]
    held_out = whole_groups({key: sizes[key] for key in order}, round(fraction * len(pairs)))
    train = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held_out]
    return train, [pair for pair, key in zip(pairs, keys, strict=True) if key in held_out]


def whole_groups(sizes: Mapping[str, int], count: int) -> set[str]:
    """Choose whole groups, in their order, that have `count` items together or slightly fewer.

    A group that would exceed the count is skipped, and at least one item is not chosen. If every
    group is too large, the smallest is chosen; a single group never is.

    Args:
        sizes: Number of items of each group.
    """
    count = min(max(count, 1), sum(sizes.values()) - 1)
    chosen: set[str] = set()
    for group, size in sizes.items():
        if size <= count:
            chosen.add(group)
            count -= size
    if not chosen and len(sizes) > 1:
        chosen.add(min(sizes, key=sizes.__getitem__))
    return chosen


def _opening(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS] + "…"
