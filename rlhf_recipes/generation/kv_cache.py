"""A cache of keys and values that grows by blocks, for the sampler."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

BLOCK_TOKENS = 64
"""Number of spare tokens that a layer reserves when it grows."""


class _BlockLayer(DynamicLayer):
    """Like `DynamicLayer`, but reallocates once per `BLOCK_TOKENS` tokens."""

    buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, and return all of them."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.has_room(end):
            keys, values = (
                new.new_empty(*new.shape[:-2], end + BLOCK_TOKENS, new.shape[-1])
                for new in (key_states, value_states)
            )
            if self.keys is not None and self.values is not None:
                keys[..., :start, :], values[..., :start, :] = self.keys, self.values
            self.buffers = keys, values
            self.is_initialized = True
        assert self.buffers is not None
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def has_room(self, length: int) -> bool:
        """Return whether the buffers hold the current keys and have room for `length` tokens."""
        if self.buffers is None or self.keys is None:
            return False
        keys = self.buffers[0]
        return keys.data_ptr() == self.keys.data_ptr() and keys.shape[-2] >= length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows, in that order; a row may be selected several times."""
        length = self.get_seq_length()
        if self.has_room(length) and self.buffers is not None:
            keys, values = (buffer[beam_idx] for buffer in self.buffers)
            self.buffers = keys, values
            self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        else:
            super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # as in `select_rows`


def block_cache(config: PreTrainedConfig) -> Cache:
    """Make an empty cache for a model; sliding windows keep the layers that transformers has."""
    layers = DynamicCache(config=config).layers
    return Cache([_BlockLayer() if type(layer) is DynamicLayer else layer for layer in layers])


def select_rows(cache: Cache, rows: Tensor) -> None:
    """Select rows of a cache, in that order; a row may be selected several times.

    `reorder_cache` was made for beam search; no other such method exists for recurrent layers too.
    """
    cache.reorder_cache(rows)  # type: ignore[arg-type]  # torch itself gives no LongTensor


def can_concatenate(cache: Cache) -> bool:
    """Return whether `concatenate` supports a cache: it holds keys and values and nothing else.

    Recurrent states, and whatever else an architecture keeps per layer, are not supported.
    """
    return all(type(layer) in (_BlockLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def concatenate(caches: Sequence[Cache], length: int, config: PreTrainedConfig) -> Cache:
    """Concatenate the rows of several caches, padded on the left to `length` tokens."""
    if len(caches) == 1:
        return caches[0]
    result = block_cache(config)
    for number in range(len(result.layers)):
        layers: list[Any] = [cache.layers[number] for cache in caches]
        keys, values = (
            torch.cat([_padded(tensor, length) for tensor in tensors])
            for tensors in ([x.keys for x in layers], [x.values for x in layers])
        )
        result.update(keys, values, number)
    return result


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Pad keys or values, shape (batch, heads, tokens, width), on the left."""
    return torch.nn.functional.pad(tensor, (0, 0, length - tensor.shape[2], 0))
