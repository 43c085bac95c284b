"""A cache of keys and values that grows by blocks, for the sampler."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

BLOCK_TOKENS = 64
"""Tokens there is room for beyond those that are there."""


class _BlockLayer(DynamicLayer):
    """As its parent, which copies all keys and values at every token: this one at every block."""

    room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the new ones at the end."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.has_room(end):
            keys, values = (
                new.new_empty(*new.shape[:-2], end + BLOCK_TOKENS, new.shape[-1])
                for new in (key_states, value_states)
            )
            if self.keys is not None and self.values is not None:
                keys[..., :start, :], values[..., :start, :] = self.keys, self.values
            self.room = keys, values
            self.is_initialized = True
        assert self.room is not None
        for whole, new in zip(self.room, (key_states, value_states), strict=True):
            whole[..., start:end, :] = new
        self.keys, self.values = (whole[..., :end, :] for whole in self.room)
        return self.keys, self.values

    def has_room(self, length: int) -> bool:
        """Whether so many tokens fit into the block that holds those that are there."""
        if self.room is None or self.keys is None:
            return False
        keys = self.room[0]
        return keys.data_ptr() == self.keys.data_ptr() and keys.shape[-2] >= length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep those rows, in that order; a row may be taken several times."""
        length = self.get_seq_length()
        if self.has_room(length) and self.room is not None:
            keys, values = (whole[beam_idx] for whole in self.room)
            self.room = keys, values
            self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        else:
            super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # as in `keep_rows`


def block_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a model of that configuration; sliding windows keep their own layers."""
    layers = DynamicCache(config=config).layers
    return Cache([_BlockLayer() if type(layer) is DynamicLayer else layer for layer in layers])


def keep_rows(cache: Cache, rows: Tensor) -> None:
    """Keep those rows of a cache, in that order; a row may be taken several times.

    Made for beam search, and the one such method that recurrent layers have too.
    """
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # torch itself gives no LongTensor


def joins(cache: Cache) -> bool:
    """Return whether `joined` can put such caches together: keys and values are all they hold.

    Recurrent states and what else an architecture keeps per layer are not known here.
    """
    return all(type(layer) in (_BlockLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def joined(caches: Sequence[Cache], length: int, config: PreTrainedConfig) -> Cache:
    """Put the rows of several caches into one, padded on the left to `length` tokens."""
    if len(caches) == 1:
        return caches[0]
    whole = block_cache(config)
    for number in range(len(whole.layers)):
        layers: list[Any] = [cache.layers[number] for cache in caches]
        keys, values = (
            torch.cat([_padded(tensor, length) for tensor in tensors])
            for tensors in ([x.keys for x in layers], [x.values for x in layers])
        )
        whole.update(keys, values, number)
    return whole


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Pad keys or values, shape (batch, heads, tokens, width), on the left."""
    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))
