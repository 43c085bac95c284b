"""Averages of what is noted between two logs."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf_recipes.ppo.objective import Total


class Averages:
    """Means over time and processes; every process notes the same names."""

    def __init__(self, total: Total, processes: int, device: torch.device) -> None:
        self.total = total
        self.processes = processes
        self.device = device
        self._noted: dict[str, list[Tensor]] = defaultdict(list)

    def note(self, values: Mapping[str, Tensor | float]) -> None:
        """Keep a value of this process under each name; nothing is sent to others yet."""
        for name, value in values.items():
            self._noted[name].append(torch.as_tensor(value).detach().float())

    def take(self) -> dict[str, float]:
        """The means of what was noted since the last call, in one exchange between processes."""
        if not self._noted:
            return {}
        means = torch.stack([torch.stack(v).mean().to(self.device) for v in self._noted.values()])
        together = (self.total(means) / self.processes).tolist()
        names = list(self._noted)
        self._noted.clear()
        return dict(zip(names, together, strict=True))
