"""Averages of what is noted between two logs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_recipes.ppo.objective import Total


class Averages:
    """Weighted means over time and processes; every process notes the same names.

    Attributes:
        noted: Of each name the weighted sum and the weights' sum since the last log, shape (2,).
    """

    def __init__(self, total: Total, device: torch.device) -> None:
        self.total = total
        self.device = device
        self.noted: dict[str, Tensor] = {}

    def note(self, values: Mapping[str, Tensor | float], weight: Tensor | float = 1.0) -> None:
        """Add a value of this process under each name; nothing is sent to others yet."""
        for name, value in values.items():
            mean, of = (
                torch.as_tensor(v, dtype=torch.float64, device=self.device).detach()
                for v in (value, weight)
            )
            pair = torch.stack([mean * of, of])
            self.noted[name] = self.noted.get(name, torch.zeros_like(pair)) + pair

    def restore(self, noted: Mapping[str, list[float]]) -> None:
        """Go on from what `noted` held in another process, as lists."""
        self.noted = {
            name: torch.tensor(pair, dtype=torch.float64, device=self.device)
            for name, pair in noted.items()
        }

    def take(self) -> dict[str, float]:
        """The means of what was noted since the last call, in one exchange between processes."""
        if not self.noted:
            return {}
        sums, weights = self.total(torch.stack(list(self.noted.values()))).unbind(-1)
        names = list(self.noted)
        self.noted.clear()
        return dict(zip(names, (sums / weights).tolist(), strict=True))
