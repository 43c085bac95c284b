"""Rows of token ids that begin alike, laid out so that the common beginning stands there once.

Rows form a tree: what all have in common, such as a system prompt, what those of one prompt have in
common, and each row's own rest. Its pieces follow each other in one sequence without padding, which
every layer but attention takes as it is. Attention is taken block by block: of each piece that rows
share, and of each few rests, which see what they build on and themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor

WORTHWHILE = 1 / 8
"""Rows share a beginning where that saves this share of their tokens: attention gets dearer."""

Integers = NDArray[np.int64]


class Piece(NamedTuple):
    """The tokens from position `start` to `end` that `rows` have in common."""

    rows: list[int]
    start: int
    end: int


def blocks_of(sequences: Sequence[Integers]) -> list[list[Piece]]:
    """Each token of each row in one piece, and the pieces that attention is taken of together.

    What a piece builds on comes before it.
    """
    order = sorted(range(len(sequences)), key=lambda row: sequences[row].tolist())
    common = {row: _common(sequences[before], sequences[row]) for before, row in pairwise(order)}
    return list(_grown(order, 0, 0, common, [len(own) for own in sequences]))


def _common(one: Integers, other: Integers) -> int:
    """How many tokens two rows begin with alike."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _grown(
    rows: list[int], start: int, least: int, common: Mapping[int, int], lengths: Sequence[int]
) -> Iterator[list[Piece]]:
    """The blocks of rows from position `start` on, up to which they are computed.

    Args:
        rows: In lexicographic order, so that those that begin alike are neighbours.
        least: How many tokens all of them have in common.
        common: Of each row how many tokens it has in common with the one before it.
    """
    alone = []
    heads = [i for i, row in enumerate(rows) if i == 0 or common[row] <= least]
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        family = rows[head:following]
        if len(family) == 1:
            alone.append(Piece(family, start, lengths[family[0]]))
            continue
        end = min(common[row] for row in family[1:])
        saved = (len(family) - 1) * (end - start)
        if saved >= WORTHWHILE * sum(lengths[row] - start for row in family):
            yield [Piece(family, start, end)]
            yield from _grown(family, end, end, common, lengths)
        else:
            yield from _grown(family, start, end, common, lengths)
    yield from _joined(alone)


def _joined(rests: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The rests of rows with one prefix, in blocks; without those that have no token.

    In a block the rests of other rows are computed and hidden. So rests stand together while they
    have no more tokens than their prefix, which each of them has to look at anyway.
    """
    block: list[Piece] = []
    tokens = 0
    for rest in rests:
        size = rest.end - rest.start
        if block and tokens + size > rest.start:
            yield block
            block, tokens = [], 0
        if size:
            block.append(rest)
            tokens += size
    if block:
        yield block


class Block(NamedTuple):
    """Tokens that attention is taken of together.

    Attributes:
        tokens: How many there are.
        seen: The numbers of the pieces that they see, their own last.
        visible: Which tokens of those pieces each of them sees, shape (1, 1, tokens, seen tokens);
            None where that is itself and all before.
    """

    tokens: int
    seen: list[int]
    visible: Tensor | None


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch stand; N of them are left of the (rows, length) it had.

    Attributes:
        source: Of each packed token, its place in the flattened batch, shape (N,).
        position_ids: Its position in its row, shape (1, N).
        places: Of each token of the batch, its place among the packed ones, shape (rows, length);
            any place where there is padding.
        pieces: How many tokens each piece has, in turn; N together.
        blocks: The blocks, in turn; a block has one piece or several.
    """

    source: Tensor
    position_ids: Tensor
    places: Tensor
    pieces: list[int]
    blocks: list[Block]

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
    blocks = blocks_of([row[kept] for row, kept in zip(ids, real, strict=True)])
    pieces = [piece for block in blocks for piece in block]
    sizes = [piece.end - piece.start for piece in pieces]
    places = np.zeros_like(position)
    source: list[Integers] = []
    for piece, size, end in zip(pieces, sizes, np.cumsum(sizes), strict=True):
        for row in piece.rows:
            begin = first[row] + piece.start
            places[row, begin : begin + size] = np.arange(end - size, end)
        source.append(row * ids.shape[1] + begin + np.arange(size))
    of_token = np.concatenate(source)
    tensor = partial(torch.as_tensor, device=input_ids.device)
    return Packing(
        source=tensor(of_token),
        position_ids=tensor(position.ravel()[of_token][None]),
        places=tensor(places),
        pieces=sizes,
        blocks=[_block(block, pieces, tensor) for block in blocks],
    )


def _block(own: list[Piece], pieces: list[Piece], tensor: Callable[[Any], Tensor]) -> Block:
    """A block of pieces, which all build on the same others."""
    row, prefix = own[0].rows[0], own[0].start
    seen = [n for n, piece in enumerate(pieces) if row in piece.rows and piece.end <= prefix]
    seen += [n for n, piece in enumerate(pieces) if piece in own]
    sizes = [piece.end - piece.start for piece in own]
    if prefix == 0:
        return Block(sum(sizes), seen, None)
    before = np.ones((sum(sizes), prefix), dtype=bool)
    causal = block_diag(*(np.tri(size, dtype=bool) for size in sizes))
    return Block(sum(sizes), seen, tensor(np.concatenate([before, causal], 1)[None, None]))
