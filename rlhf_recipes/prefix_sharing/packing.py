"""Pack rows of token ids into one sequence that stores each common prefix once.

Rows form a tree: the prefix that all of them share, such as a system prompt, the prefix that the
rows of one prompt share, and the suffix of each row. The segments of that tree follow each other in
one sequence without padding. Every layer except attention takes that sequence as it is. Attention
is computed per block: one block per shared segment, and one block per few suffixes, which attend to
their prefix and to themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag
from torch import Tensor

MIN_SAVED = 1 / 8
"""Minimum fraction of tokens saved before a prefix is shared.

Below it the extra attention calls cost more than they save.
"""

Integers = NDArray[np.int64]


class Segment(NamedTuple):
    """The tokens from position `start` to `end` that `rows` have in common."""

    rows: list[int]
    start: int
    end: int


def attention_blocks(sequences: Sequence[Integers]) -> list[list[Segment]]:
    """Split rows into segments and group the segments into blocks for attention.

    Each token of each row is in exactly one segment, which follows all segments of its prefix.
    """
    order = sorted(range(len(sequences)), key=lambda row: sequences[row].tolist())
    common = {
        row: _common_length(sequences[before], sequences[row]) for before, row in pairwise(order)
    }
    return list(_subtree_blocks(order, 0, 0, common, [len(sequence) for sequence in sequences]))


def _common_length(first: Integers, second: Integers) -> int:
    """Return the length of the common prefix of two rows."""
    length = min(len(first), len(second))
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _subtree_blocks(
    rows: list[int], start: int, shared: int, common: Mapping[int, int], lengths: Sequence[int]
) -> Iterator[list[Segment]]:
    """Yield the blocks of rows from position `start`; earlier positions are in blocks already.

    Args:
        rows: In lexicographic order, so that rows with a common prefix are adjacent.
        shared: Length of the prefix that all of them have in common.
        common: Length of the prefix that each row has in common with the row before it.
    """
    suffixes = []
    first = [i for i, row in enumerate(rows) if i == 0 or common[row] <= shared]
    for begin, end in zip(first, [*first[1:], None], strict=True):
        group = rows[begin:end]
        if len(group) == 1:
            suffixes.append(Segment(group, start, lengths[group[0]]))
            continue
        length = min(common[row] for row in group[1:])
        saved = (len(group) - 1) * (length - start)
        if saved >= MIN_SAVED * sum(lengths[row] - start for row in group):
            yield [Segment(group, start, length)]
            yield from _subtree_blocks(group, length, length, common, lengths)
        else:
            yield from _subtree_blocks(group, start, length, common, lengths)
    yield from _suffix_blocks(suffixes)


def _suffix_blocks(suffixes: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Group suffixes of one prefix into blocks; empty suffixes are dropped.

    Within a block, attention between different suffixes is computed and masked. So a block has at
    most as many tokens as the prefix, which each suffix attends to anyway.
    """
    block: list[Segment] = []
    tokens = 0
    for suffix in suffixes:
        size = suffix.end - suffix.start
        if block and tokens + size > suffix.start:
            yield block
            block, tokens = [], 0
        if size:
            block.append(suffix)
            tokens += size
    if block:
        yield block


class Block(NamedTuple):
    """Tokens whose attention is computed in one call.

    Attributes:
        num_tokens: Number of query tokens.
        segments: Indices of the segments they attend to, their own last.
        attention_mask: True where a query attends to a token of those segments, shape
            (1, 1, queries, keys); None where attention is causal.
    """

    num_tokens: int
    segments: list[int]
    attention_mask: Tensor | None


@dataclass(frozen=True)
class Packing:
    """Mapping between a batch of (rows, length) tokens and its N packed tokens.

    Attributes:
        batch_positions: Index of each packed token in the flattened batch, shape (N,).
        position_ids: Position of each packed token in its row, shape (1, N).
        packed_positions: Index of each batch token in the packed sequence, shape (rows, length);
            arbitrary for padding.
        segment_lengths: Number of tokens of each segment, in packed order; the sum is N.
        blocks: Attention blocks in packed order, each of one or more segments.
    """

    batch_positions: Tensor
    position_ids: Tensor
    packed_positions: Tensor
    segment_lengths: list[int]
    blocks: list[Block]

    @property
    def block_lengths(self) -> list[int]:
        """Number of query tokens of each block; the sum is N."""
        return [block.num_tokens for block in self.blocks]

    def pack(self, batch: Tensor) -> Tensor:
        """Gather a (rows, length, ...) tensor into packed order, shape (1, N, ...)."""
        return batch.flatten(0, 1).index_select(0, self.batch_positions)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """Gather a packed (1, N, ...) tensor into batch order, shape (rows, length, ...)."""
        tokens = packed[0].index_select(0, self.packed_positions.flatten())
        return tokens.view(*self.packed_positions.shape, *tokens.shape[1:])


class Packer:
    """Pack batches; a batch of the same tokens as the last one gets the same `Packing`.

    All roles, and all layers of each, then share one layout per batch. Comparing takes one copy to
    the host, which is the only time that it waits for the device.
    """

    def __init__(self) -> None:
        self._batch: Integers | None = None
        self._device: torch.device | None = None
        self._packing: Packing | None = None

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Packing | None:
        """Return how to pack a batch; None if a row has no tokens, or padding between its tokens.

        Args:
            input_ids: Shape (rows, length).
            attention_mask: True or 1 where a token is real; padding may be on either side.
        """
        batch = torch.stack([input_ids, attention_mask.to(input_ids.dtype)]).cpu().numpy()
        device = input_ids.device
        same_batch = self._batch is not None and np.array_equal(batch, self._batch)
        if not same_batch or device != self._device:
            self._batch, self._device = batch, device
            self._packing = _packing(batch[0], batch[1], device)
        return self._packing


def _packing(ids: Integers, attention_mask: Integers, device: torch.device) -> Packing | None:
    real = attention_mask.astype(bool)
    lengths, first = real.sum(1), real.argmax(1)
    position = np.arange(ids.shape[1]) - first[:, None]
    if not lengths.all() or ((position >= 0) & (position < lengths[:, None]) != real).any():
        return None
    blocks = attention_blocks([row[mask] for row, mask in zip(ids, real, strict=True)])
    segments = [segment for block in blocks for segment in block]
    sizes = [segment.end - segment.start for segment in segments]
    packed_positions = np.zeros_like(position)
    batch_positions: list[Integers] = []
    for segment, size, end in zip(segments, sizes, np.cumsum(sizes), strict=True):
        for row in segment.rows:
            begin = first[row] + segment.start
            packed_positions[row, begin : begin + size] = np.arange(end - size, end)
        batch_positions.append(row * ids.shape[1] + begin + np.arange(size))
    flat = np.concatenate(batch_positions)

    def to_tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Packing(
        batch_positions=to_tensor(flat),
        position_ids=to_tensor(position.ravel()[flat][None]),
        packed_positions=to_tensor(packed_positions),
        segment_lengths=sizes,
        blocks=[_block(block, segments, to_tensor) for block in blocks],
    )


def _block(
    queries: list[Segment], segments: list[Segment], to_tensor: Callable[[NDArray[Any]], Tensor]
) -> Block:
    """Make the block of query segments, which all follow the same prefix."""
    row, prefix = queries[0].rows[0], queries[0].start
    keys = [
        i for i, segment in enumerate(segments) if row in segment.rows and segment.end <= prefix
    ]
    keys += [i for i, segment in enumerate(segments) if segment in queries]
    sizes = [segment.end - segment.start for segment in queries]
    if prefix == 0:
        return Block(sum(sizes), keys, None)
    before = np.ones((sum(sizes), prefix), dtype=bool)
    causal = block_diag(*(np.tri(size, dtype=bool) for size in sizes))
    mask = to_tensor(np.concatenate([before, causal], 1)[None, None])
    return Block(sum(sizes), keys, mask)
