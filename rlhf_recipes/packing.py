"""Rows of token ids that begin alike, laid out so that the common beginning stands there once.

The rows of a batch form groups; a group is one prefix and each row's own rest. All prefixes and
then all rests follow each other in one sequence without padding, which every layer but attention
takes as it is. Attention is taken of two padded blocks: of the prefixes, and of the rests, which
see their prefix before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORTHWHILE = 0.25
"""A row joins a group where that saves this share of it: attention over long rests costs more."""

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Rows whose first `prefix` tokens are the same; each has at least one more of its own."""

    prefix: int
    rows: list[int]


def groups_of(sequences: Sequence[Integers]) -> list[Group]:
    """Every row in one group. Neighbours in lexicographic order are joined where that saves enough.

    A group of k rows with p common tokens that takes in a row, and keeps p' of the p, computes
    k p' - (k - 1) p tokens less than the two apart. A row alone has all but its last token as its
    prefix.
    """
    found: list[Group] = []
    for row in sorted(range(len(sequences)), key=lambda i: sequences[i].tolist()):
        own = sequences[row]
        if found:
            last, others = found[-1], len(found[-1].rows) - 1
            limit = min(last.prefix, len(own) - 1)
            differ = np.flatnonzero(sequences[last.rows[0]][:limit] != own[:limit])
            prefix = int(differ[0]) if len(differ) else limit
            if (others + 1) * prefix - others * last.prefix > WORTHWHILE * len(own):
                found[-1] = Group(prefix, [*last.rows, row])
                continue
        found.append(Group(len(own) - 1, [row]))
    return found


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch stand; N of them are left of the (rows, length) it had.

    Attributes:
        source: Of each packed token, its place in the flattened batch, shape (N,).
        position_ids: Its position in its row, shape (1, N).
        places: Of each token of the batch, its place among the packed ones, shape (rows, length);
            any place where there is padding.
        prefixes: The places of each group's prefix, padded on the right, shape (groups, P).
        rests: Those of each row's rest, padded on the right, shape (rows, C).
        order: Of each packed token, its place in those two blocks, flattened, shape (N,).
        group: The group of each row, shape (rows,).
        visible: Which keys a token of a rest sees, of its group's prefix and of its own rest, shape
            (rows, 1, C, P + C).
    """

    source: Tensor
    position_ids: Tensor
    places: Tensor
    prefixes: Tensor
    rests: Tensor
    order: Tensor
    group: Tensor
    visible: Tensor

    def pack(self, batch: Tensor) -> Tensor:
        """What belongs to each packed token, shape (1, N, ...), of (rows, length, ...)."""
        return batch.flatten(0, 1).index_select(0, self.source)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """What belongs to each token of the batch, shape (rows, length, ...), of (1, N, ...)."""
        tokens = packed[0].index_select(0, self.places.flatten())
        return tokens.view(*self.places.shape, *tokens.shape[1:])

    def blocks(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Prefixes (groups, heads, P, d) and rests (rows, heads, C, d) of (1, heads, N, d)."""
        both = torch.cat([self.prefixes.flatten(), self.rests.flatten()])
        tokens: Tensor = _Moved.apply(packed[0].transpose(0, 1), both, self.order)
        prefixes, rests = tokens.split([self.prefixes.numel(), self.rests.numel()])
        return (
            prefixes.unflatten(0, self.prefixes.shape).transpose(1, 2),
            rests.unflatten(0, self.rests.shape).transpose(1, 2),
        )

    def joined(self, prefixes: Tensor, rests: Tensor) -> Tensor:
        """Packed tokens (1, N, heads, d) of (groups, P, heads, d) and (rows, C, heads, d)."""
        both = torch.cat([prefixes.flatten(0, 1), rests.flatten(0, 1)])
        return _Moved.apply(both, self.order, None)[None]  # type: ignore[no-any-return]


class _Moved(torch.autograd.Function):
    """`tokens.index_select(0, places)`, with a backward pass that moves back instead of adding up.

    Each token is moved to one place that is read; to others only as padding, which no gradient
    comes from. `back` is where each one went, or None where `places` has every token at most once.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, places: Tensor, back: Tensor | None) -> Tensor:
        ctx.places, ctx.back, ctx.shape = places, back, tokens.shape
        return tokens.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (moved,) = gradients
        if ctx.back is not None:
            return moved.index_select(0, ctx.back), None, None
        return moved.new_zeros(ctx.shape).index_copy_(0, ctx.places, moved), None, None


def packing_of(input_ids: Tensor, mask: Tensor) -> Packing | None:
    """How a batch is packed; None where a row has no token, or padding between its tokens.

    Args:
        input_ids: Shape (rows, length).
        mask: True or 1 where a token is real; padding may stand on either side.
    """
    ids, real = input_ids.cpu().numpy(), mask.cpu().numpy().astype(bool)
    lengths, starts = real.sum(1, keepdims=True), real.argmax(1)[:, None]
    position = np.arange(ids.shape[1]) - starts
    if not lengths.all() or ((position >= 0) & (position < lengths) != real).any():
        return None
    groups = groups_of([row[kept] for row, kept in zip(ids, real, strict=True)])
    group = np.empty(len(ids), dtype=np.int64)
    for number, found in enumerate(groups):
        group[found.rows] = number
    first = np.array([found.rows[0] for found in groups])
    prefix = np.array([[found.prefix] for found in groups])
    own_prefix = prefix[group]
    # Every block has at least one column, of padding where no prefix has a token.
    columns = np.arange(max(prefix.max(), 1))
    in_prefix = columns < prefix
    rest_columns = np.arange((lengths - own_prefix).max())
    in_rest = rest_columns < lengths - own_prefix
    prefixes = _numbered(in_prefix, start=0)
    rests = _numbered(in_rest, start=in_prefix.sum())
    flat = np.arange(len(ids))[:, None] * ids.shape[1] + starts  # where each row begins
    each = (
        len(ids),
        len(rest_columns),
    )  # a token of a rest sees its group's prefix and what came before
    seen = np.broadcast_to(in_prefix[group][:, None], (*each, len(columns)))
    causal = np.broadcast_to(np.tri(len(rest_columns), dtype=bool), (*each, len(rest_columns)))
    arrays = {
        "source": _packed(
            flat[first] + columns, in_prefix, flat + own_prefix + rest_columns, in_rest
        ),
        "position_ids": _packed(columns, in_prefix, own_prefix + rest_columns, in_rest)[None],
        "places": np.where(
            position < own_prefix,
            np.take_along_axis(prefixes[group], position.clip(0, len(columns) - 1), 1),
            np.take_along_axis(rests, (position - own_prefix).clip(0, len(rest_columns) - 1), 1),
        ),
        "prefixes": prefixes,
        "rests": rests,
        "order": np.flatnonzero(np.concatenate([in_prefix.ravel(), in_rest.ravel()])),
        "group": group,
        "visible": np.concatenate([seen, causal], axis=-1)[:, None],
    }
    return Packing(**{name: torch.from_numpy(a).to(input_ids.device) for name, a in arrays.items()})


def _numbered(real: Mask, start: int) -> Integers:
    """Consecutive numbers where a block has a token, row by row; 0 where it has padding."""
    return np.where(real, start + real.cumsum().reshape(real.shape) - 1, 0)


def _packed(prefixes: Integers, in_prefix: Mask, rests: Integers, in_rest: Mask) -> Integers:
    """The entries of both blocks where they have tokens, prefixes first."""
    parts = (prefixes, in_prefix), (rests, in_rest)
    return np.concatenate([np.broadcast_to(part, real.shape)[real] for part, real in parts])
