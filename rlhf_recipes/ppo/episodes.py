"""Episodes: the tensors of a rollout that the updates learn from."""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class Episodes:
    """A batch of episodes, each one prompt and one completion of it.

    Prompts are padded on the left and completions on the right, so the completion tokens are the
    last columns of `input_ids`. Log-probabilities are in nats.

    Attributes:
        input_ids: Tokens of prompt and completion, shape (batch, prompt + completion).
        attention_mask: True at tokens that are not padding, same shape.
        completion_mask: The mask of the completion alone, shape (batch, completion), which is
            that of the following four as well.
        old_logps: Log-probabilities under the policy that sampled the completions.
        old_values: Predictions of the value model at that time.
        advantages: Whitened advantages A_t.
        returns: Value targets R_t, from the advantages before whitening.
        shared_hidden_states: Output of the layers below every adapter, which is the same for all
            roles, shape (batch, prompt + completion, width). None where adapters reach the first
            layer.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    old_logps: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor
    shared_hidden_states: Tensor | None = None

    def select(self, rows: Tensor) -> "Episodes":
        """Return the episodes of the given rows, cropped to the columns these need."""
        start, end, length = crop_bounds(self.attention_mask[rows], self.completion_mask[rows])
        full_width = ("input_ids", "attention_mask", "shared_hidden_states")
        columns = {}
        for name in (field.name for field in fields(self)):
            column = getattr(self, name)
            if column is not None:
                cropped = slice(start, end) if name in full_width else slice(length)
                columns[name] = column[rows][:, cropped]
        return Episodes(**columns)

    def model_inputs(self) -> tuple[Tensor, Tensor, int]:
        """Return what every role is called with: ids, attention mask, completion length."""
        return self.input_ids, self.attention_mask, self.completion_mask.shape[1]


def crop_bounds(attention_mask: Tensor, completion_mask: Tensor) -> tuple[int, int, int]:
    """Find the columns outside of which every row is padding.

    Returns:
        The first column and the end column of `input_ids`, and the longest completion in tokens.
    """
    start = int((~attention_mask).all(0).long().cumprod(0).sum())
    length = int(completion_mask.sum(-1).max())
    return start, attention_mask.shape[1] - (completion_mask.shape[1] - length), length
