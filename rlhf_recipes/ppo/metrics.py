"""Weighted running means of metrics between two logging steps, reduced across processes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_recipes.ppo.objective import AllReduce


class RunningMeans:
    """Accumulate metrics locally, and average them over steps and processes when they are logged.

    Every process must add the same names.

    Attributes:
        sums: For each name the weighted sum and the sum of the weights, shape (2,), float64.
    """

    def __init__(self, all_reduce: AllReduce, device: torch.device) -> None:
        self.all_reduce = all_reduce
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Add values of this process, all with the same weight; nothing is communicated yet."""
        weight = self._as_float64(weight)
        for name, value in values.items():
            pair = torch.stack([self._as_float64(value) * weight, weight])
            self.sums[name] = self.sums.get(name, torch.zeros_like(pair)) + pair

    def _as_float64(self, value: Tensor | float | list[float]) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device).detach()

    def state(self) -> dict[str, list[float]]:
        """Return the sums as lists, for a checkpoint."""
        return {name: pair.tolist() for name, pair in self.sums.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Continue from what `state` returned."""
        self.sums = {name: self._as_float64(pair) for name, pair in state.items()}

    def pop(self) -> dict[str, float]:
        """Return the weighted means since the last call and start anew, in one reduction."""
        if not self.sums:
            return {}
        sums, weights = self.all_reduce(torch.stack(list(self.sums.values()))).unbind(-1)
        names = list(self.sums)
        self.sums.clear()
        return dict(zip(names, (sums / weights).tolist(), strict=True))
