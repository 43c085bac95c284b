"""Rows of token ids that begin alike, laid out so that the common beginning stands there once.

The rows of a batch form groups; a group is one prefix and each row's own rest. All prefixes and
then all rests follow each other in one sequence without padding, which every layer but attention
takes as it is. Attention is taken of two padded blocks: of the prefixes, and of the rests, which
see their prefix before them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
class Rests:
    """Rests of like length, a padded block that attention is taken of.

    Attributes:
        shape: (rows, C).
        groups: The group of each row, shape (rows,).
        visible: Which keys a token sees, of its group's prefix and of its own rest, shape
            (rows, 1, C, P + C), where P is the longest prefix of these groups.
    """

    shape: tuple[int, int]
    groups: Tensor
    visible: Tensor

    def keys(self, prefixes: Tensor, rests: Tensor) -> Tensor:
        """Keys or values (rows, heads, P + C, d) of those of all groups and of these rests."""
        seen = prefixes[:, :, : self.visible.shape[-1] - self.shape[1]]
        return torch.cat([seen.index_select(0, self.groups), rests], 2)


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch stand; N of them are left of the (rows, length) it had.

    Attributes:
        source: Of each packed token, its place in the flattened batch, shape (N,).
        position_ids: Its position in its row, shape (1, N).
        places: Of each token of the batch, its place among the packed ones, shape (rows, length);
            any place where there is padding.
        prefixes: (groups, P), the shape of the block of prefixes, padded on the right.
        rests: The blocks of rests.
        padded: The places of what stands in all these blocks in turn, any where there is padding.
        order: Of each packed token, where it stands in `padded`, shape (N,).
    """

    source: Tensor
    position_ids: Tensor
    places: Tensor
    prefixes: tuple[int, int]
    rests: list[Rests]
    padded: Tensor
    order: Tensor

    def pack(self, batch: Tensor) -> Tensor:
        """What belongs to each packed token, shape (1, N, ...), of (rows, length, ...)."""
        return batch.flatten(0, 1).index_select(0, self.source)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """What belongs to each token of the batch, shape (rows, length, ...), of (1, N, ...)."""
        tokens = packed[0].index_select(0, self.places.flatten())
        return tokens.view(*self.places.shape, *tokens.shape[1:])

    def blocks(self, packed: Tensor) -> list[Tensor]:
        """The prefixes and then each block of rests, (rows, heads, C, d), of (1, heads, N, d)."""
        tokens: Tensor = _Moved.apply(packed[0].transpose(0, 1), self.padded, self.order)
        shapes = [self.prefixes, *(block.shape for block in self.rests)]
        parts = tokens.split([rows * length for rows, length in shapes])
        return [
            part.unflatten(0, shape).transpose(1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def joined(self, blocks: Sequence[Tensor]) -> Tensor:
        """Packed tokens (1, N, heads, d) of the same blocks, each (rows, C, heads, d)."""
        tokens = torch.cat([block.flatten(0, 1) for block in blocks])
        return _Moved.apply(tokens, self.order, None)[None]  # type: ignore[no-any-return]


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
    lengths = real.sum(1, keepdims=True)
    position = np.arange(ids.shape[1]) - real.argmax(1)[:, None]
    if not lengths.all() or ((position >= 0) & (position < lengths) != real).any():
        return None
    groups = groups_of([row[kept] for row, kept in zip(ids, real, strict=True)])
    return _packing(groups, position, lengths, partial(torch.as_tensor, device=input_ids.device))


def _packing(
    groups: list[Group], position: Integers, lengths: Integers, tensor: Callable[[Any], Tensor]
) -> Packing:
    """The packing of rows in those groups.

    Args:
        position: Of each token of the batch in its row, below 0 where padding comes before it.
        lengths: Of each row, shape (rows, 1).
        tensor: Makes a tensor on the batch's device.
    """
    group = np.empty(len(position), dtype=np.int64)
    for number, found in enumerate(groups):
        group[found.rows] = number
    first = np.array([found.rows[0] for found in groups])
    prefix = np.array([[found.prefix] for found in groups])
    own_prefix = prefix[group]
    # Every block has at least one column, of padding where no prefix has a token.
    columns = np.arange(max(prefix.max(), 1))
    rest_columns = np.arange((lengths - own_prefix).max())
    in_prefix, in_rest = columns < prefix, rest_columns < lengths - own_prefix
    prefixes = _numbered(in_prefix, start=0)
    rests = _numbered(in_rest, start=in_prefix.sum())
    begin = np.arange(len(position))[:, None] * position.shape[1] - position[:, :1]
    places = np.where(
        position < own_prefix,
        np.take_along_axis(prefixes[group], position.clip(0, len(columns) - 1), 1),
        np.take_along_axis(rests, (position - own_prefix).clip(0, len(rest_columns) - 1), 1),
    )
    like = [(rows, int(in_rest[rows].sum(1).max())) for rows in of_like_length(in_rest.sum(1))]
    blocks = [(prefixes, in_prefix)]
    blocks += [(rests[rows, :width], in_rest[rows, :width]) for rows, width in like]
    padded = np.concatenate([block.ravel() for block, _ in blocks])
    filled = np.flatnonzero(np.concatenate([real.ravel() for _, real in blocks]))
    packed = partial(_packed, in_prefix, in_rest)
    return Packing(
        source=tensor(packed(begin[first] + columns, begin + own_prefix + rest_columns)),
        position_ids=tensor(packed(columns, own_prefix + rest_columns)[None]),
        places=tensor(places),
        prefixes=(len(groups), len(columns)),
        rests=[_rests(group[rows], in_prefix, width, tensor) for rows, width in like],
        padded=tensor(padded),
        order=tensor(filled[np.argsort(padded[filled])]),
    )


def of_like_length(lengths: Integers) -> list[Integers]:
    """Which rows go into one padded block: the longest has at most twice the tokens of another."""
    by_length = np.argsort(lengths, kind="stable")
    doublings = np.ceil(np.log2(lengths[by_length]))
    return np.split(by_length, np.flatnonzero(np.diff(doublings)) + 1)


def _numbered(real: Mask, start: int) -> Integers:
    """Consecutive numbers where a block has a token, row by row; 0 where it has padding."""
    return np.where(real, start + real.cumsum().reshape(real.shape) - 1, 0)


def _packed(in_prefix: Mask, in_rest: Mask, prefixes: Integers, rests: Integers) -> Integers:
    """The entries of both blocks where they have tokens, prefixes first."""
    parts = (in_prefix, prefixes), (in_rest, rests)
    return np.concatenate([np.broadcast_to(part, real.shape)[real] for real, part in parts])


def _rests(groups: Integers, in_prefix: Mask, width: int, tensor: Callable[[Any], Tensor]) -> Rests:
    """A block of rests: a token sees its group's prefix, and what came before in its own rest."""
    longest = max(int(in_prefix[groups].sum(1).max()), 1)
    shape = (len(groups), width)
    seen = np.broadcast_to(in_prefix[groups, None, :longest], (*shape, longest))
    own = np.broadcast_to(np.tri(width, dtype=bool), (*shape, width))
    visible = np.concatenate([seen, own], axis=-1)[:, None]
    return Rests(shape, tensor(groups), tensor(visible))
