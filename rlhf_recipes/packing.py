"""Rows of token ids that begin alike, laid out so that the common beginning stands there once.

The rows of a batch form groups; a group is one prefix and each row's own rest. A prefix and its
rests, then the next, follow each other in one sequence without padding, which every layer but
attention takes as it is. Attention is taken block by block: of each prefix, and of each few rests,
which see their prefix and themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORTHWHILE = 0.25
"""A row joins a group where that saves this share of it: attention over long rests costs more."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Rows whose first `prefix` tokens are the same; a row alone is all prefix."""

    prefix: int
    rows: list[int]


def groups_of(sequences: Sequence[Integers]) -> list[Group]:
    """Every row in one group. Neighbours in lexicographic order are joined where that saves enough.

    A group of k rows with p common tokens that takes in a row, and keeps p' of the p, computes
    k p' - (k - 1) p tokens less than the two apart.
    """
    found: list[Group] = []
    for row in sorted(range(len(sequences)), key=lambda i: sequences[i].tolist()):
        own = sequences[row]
        if found:
            last, others = found[-1], len(found[-1].rows) - 1
            limit = min(last.prefix, len(own))
            differ = np.flatnonzero(sequences[last.rows[0]][:limit] != own[:limit])
            prefix = int(differ[0]) if len(differ) else limit
            if (others + 1) * prefix - others * last.prefix > WORTHWHILE * len(own):
                found[-1] = Group(prefix, [*last.rows, row])
                continue
        found.append(Group(len(own), [row]))
    return found


class Piece(NamedTuple):
    """The tokens from position `start` to `end` of rows that have them in common."""

    rows: list[int]
    start: int
    end: int


def blocks_of(group: Group, lengths: Integers) -> Iterator[list[Piece]]:
    """The pieces that attention is taken of together: the prefix, then each few rests.

    In a block of rests those of other rows are computed and hidden. So rests stand together while
    they have no more tokens than their prefix, which each of them has to look at anyway.
    """
    yield [Piece(group.rows, 0, group.prefix)]
    rests: list[Piece] = []
    for row in group.rows:
        rest = Piece([row], group.prefix, int(lengths[row]))
        begin = rests[0].start if rests else 0
        tokens = sum(piece.end - piece.start for piece in [*rests, rest])
        if rests and tokens > begin:
            yield rests
            rests = []
        if rest.start < rest.end:
            rests.append(rest)
    if rests:
        yield rests


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch stand; N of them are left of the (rows, length) it had.

    Attributes:
        source: Of each packed token, its place in the flattened batch, shape (N,).
        position_ids: Its position in its row, shape (1, N).
        places: Of each token of the batch, its place among the packed ones, shape (rows, length);
            any place where there is padding.
        blocks: How many tokens each block of attention has, in turn; N together.
        visible: Which keys the tokens of a block see. None for a prefix, which is causal; for C
            tokens of rests those of the P of the last prefix and their own, shape (1, 1, C, P + C).
    """

    source: Tensor
    position_ids: Tensor
    places: Tensor
    blocks: list[int]
    visible: list[Tensor | None]

    def pack(self, batch: Tensor) -> Tensor:
        """What belongs to each packed token, shape (1, N, ...), of (rows, length, ...)."""
        return batch.flatten(0, 1).index_select(0, self.source)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """What belongs to each token of the batch, shape (rows, length, ...), of (1, N, ...)."""
        tokens = packed[0].index_select(0, self.places.flatten())
        return tokens.view(*self.places.shape, *tokens.shape[1:])


def packing_of(input_ids: Tensor, mask: Tensor) -> Packing | None:
    """How a batch is packed; None where a row has no token, or padding between its tokens.

    Args:
        input_ids: Shape (rows, length).
        mask: True or 1 where a token is real; padding may stand on either side.
    """
    ids, real = input_ids.cpu().numpy(), mask.cpu().numpy().astype(bool)
    lengths, first = real.sum(1), real.argmax(1)
    position = np.arange(ids.shape[1]) - first[:, None]
    if not lengths.all() or ((position >= 0) & (position < lengths[:, None]) != real).any():
        return None
    groups = groups_of([row[kept] for row, kept in zip(ids, real, strict=True)])
    blocks = [block for group in groups for block in blocks_of(group, lengths)]
    places = np.zeros_like(position)
    source: list[Integers] = []
    for piece in (piece for block in blocks for piece in block):
        packed = sum(map(len, source)) + np.arange(piece.end - piece.start)
        for row in piece.rows:
            begin = first[row] + piece.start
            places[row, begin : begin + len(packed)] = packed
        source.append(begin + row * ids.shape[1] + np.arange(len(packed)))
    of_token = np.concatenate(source)
    device = input_ids.device
    return Packing(
        source=torch.as_tensor(of_token, device=device),
        position_ids=torch.as_tensor(position.ravel()[of_token][None], device=device),
        places=torch.as_tensor(places, device=device),
        blocks=[sum(piece.end - piece.start for piece in block) for block in blocks],
        visible=[_visible(block, device) for block in blocks],
    )


def _visible(block: list[Piece], device: torch.device) -> Tensor | None:
    """What `Packing.visible` has for a block."""
    prefix = block[0].start
    if prefix == 0:
        return None
    rests = [torch.ones(piece.end - prefix, piece.end - prefix).tril() for piece in block]
    own = torch.block_diag(*rests)
    return torch.cat([torch.ones(len(own), prefix), own], 1).bool()[None, None].to(device)
