"""What a rollout leaves to learn from."""

from dataclasses import dataclass, fields

from torch import Tensor

from rlhf_recipes.ppo.tables import Table


@dataclass
class Episodes:
    """What one optimisation pass needs of some episodes; row i is episode i.

    Prompts are padded on the left and completions on the right, so that the completions are the
    last columns of `input_ids`. Shapes: `input_ids`, `mask` (batch, prompt + completion), `trunk`
    the same with a width, the rest (batch, completion).
    """

    input_ids: Tensor
    mask: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    trunk: Tensor | None = None

    def rows(self, index: Tensor) -> "Episodes":
        """The episodes of those rows, without the columns that only padding stands in."""
        left, end, length = bounds(self.mask[index], self.completion_mask[index])
        columns = {}
        for name in (f.name for f in fields(self)):
            column = getattr(self, name)
            if column is not None:
                whole = name in ("input_ids", "mask", "trunk")
                columns[name] = column[index][:, left:end] if whole else column[index][:, :length]
        return Episodes(**columns)

    def inputs(self) -> tuple[Tensor, Tensor, int]:
        """What every role is called with: ids, mask, and the completions' length."""
        return self.input_ids, self.mask, self.completion_mask.shape[1]


def bounds(mask: Tensor, completion_mask: Tensor) -> tuple[int, int, int]:
    """First column, end column and completion length beyond which all rows are padding."""
    left = int((~mask).all(0).long().cumprod(0).sum())
    length = int(completion_mask.sum(-1).max())
    return left, mask.shape[1] - (completion_mask.shape[1] - length), length


@dataclass
class Rollout:
    """Episodes ready to learn from, and the table of what was sampled."""

    episodes: Episodes
    table: Table
