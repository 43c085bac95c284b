"""A cache of keys and values that grows by blocks, for the sampler."""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

BLOCK = 64
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
                new.new_empty(*new.shape[:-2], end + BLOCK, new.shape[-1])
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

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep those rows, in that order; a row may be taken several times."""
        length = self.get_seq_length()
        if self.has_room(length) and self.room is not None:
            keys, values = (whole[indices] for whole in self.room)
            self.room = keys, values
            self.keys, self.values = keys[..., :length, :], values[..., :length, :]
        else:
            super().batch_select_indices(indices)


def block_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a model of that configuration; sliding windows keep their own layers."""
    layers = DynamicCache(config=config).layers
    return Cache([_BlockLayer() if type(layer) is DynamicLayer else layer for layer in layers])
