"""Sample completions from a causal language model: one sampler for PPO, GRPO and evaluation.

The sampled distribution is the model's own, softmax(logits / temperature): no top-k, no top-p, no
repetition penalty. Log-probabilities taken from the same logits therefore describe the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_recipes.generation.kv_cache import (
    block_cache,
    can_concatenate,
    concatenate,
    select_rows,
)
from rlhf_recipes.logprobs import TokenLogps, token_logps
from rlhf_recipes.models.architectures import check_sampler
from rlhf_recipes.prompts import Prompt, ids_to_complete, pad, position_ids

PREFILL_ROWS = 4
"""Number of prompts that are prefilled at once: enough to keep the cores busy."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    Attributes:
        ids: Sampled token ids, including the end-of-sequence token if there is one.
        text: Their text without special tokens.
        finished: Whether it ended with an end-of-sequence token, not at the maximum length.
        logps: Log-probability of each token under the sampled distribution, in nats.
        entropy: Entropy of the distribution each token was sampled from, in nats.
        hidden_states: Last hidden states that the language-model head computed those distributions
            from, shape (ids, width); None unless `keep_hidden_states` was set.
    """

    ids: list[int]
    text: str
    finished: bool
    # Rounding depends on the batch: two completions are equal if their tokens are.
    logps: list[float] = field(default_factory=list, compare=False, repr=False)
    entropy: list[float] = field(default_factory=list, compare=False, repr=False)
    hidden_states: Tensor | None = field(default=None, compare=False, repr=False)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids that end a completion, the tokenizer's and the model's."""
    eos = model.generation_config.eos_token_id if model.generation_config else None
    model_ids = eos if isinstance(eos, list) else [eos]
    return sorted({i for i in [tokenizer.eos_token_id, *model_ids] if i is not None})


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_completion_length: int,
    num_completions: int = 1,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    keep_hidden_states: bool = False,
    progress: str | None = None,
) -> list[list[Completion]]:
    """Sample `num_completions` independent completions per prompt, in the order of the prompts.

    Prompts are sorted by length and decoded in batches. A batch prefills each prompt once for all
    its completions. Results are reproducible for a given seed, batch size and set of prompts.

    Args:
        model: Used as it is: the caller chooses adapters and evaluation mode.
        temperature: 0 takes the most probable token (ties: the first).
        batch_size: Number of completions decoded at once.
        keep_hidden_states: Whether completions have `hidden_states`, on the model's device.
        progress: Title of a progress bar over completions; None shows none.

    >>> from rlhf_recipes import sample
    >>> model = AutoModelForCausalLM.from_pretrained(base)
    >>> tokenizer = AutoTokenizer.from_pretrained(base)
    >>> ((completion, _),) = sample(
    ...     model, tokenizer, ["Why?"], max_completion_length=8, num_completions=2
    ... )
    >>> len(completion.ids) <= 8
    True
    """
    check_sampler(model)
    generator = torch.Generator(_generator_device(model.device)).manual_seed(seed)
    encoded = [ids_to_complete(tokenizer, prompt) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), encoded[i]))
    rows = [i for i in by_length for _ in range(num_completions)]
    ends = end_ids(model, tokenizer)
    completions: list[list[Completion]] = [[] for _ in prompts]
    with tqdm(total=len(rows), desc=progress, disable=progress is None) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            steps = _sample_batch(
                model,
                [encoded[i] for i in batch],
                tokenizer.pad_token_id,
                max_completion_length=max_completion_length,
                temperature=temperature,
                ends=ends,
                generator=generator,
                keep_hidden_states=keep_hidden_states,
            )
            for row, fields in zip(batch, _by_row(steps, len(batch)), strict=True):
                text = str(tokenizer.decode(fields["ids"], skip_special_tokens=True))
                finished = fields["ids"][-1] in ends
                completions[row].append(Completion(text=text, finished=finished, **fields))
            bar.update(len(batch))
    return completions


class Step(NamedTuple):
    """One sampled token of each row that is still active.

    Attributes:
        rows: Index of each active row.
        tokens: Token ids, on the host.
        drawn: Log-probability and entropy of each token, on the model's device.
        hidden_states: Hidden states that the head took, shape (active rows, width), if they are
            kept.
    """

    rows: list[int]
    tokens: list[int]
    drawn: TokenLogps
    hidden_states: Tensor | None


@torch.no_grad()
def _sample_batch(
    model: PreTrainedModel,
    prompts: list[list[int]],
    pad_token_id: int,
    *,
    max_completion_length: int,
    temperature: float,
    ends: list[int],
    generator: torch.Generator,
    keep_hidden_states: bool,
) -> list[Step]:
    """Sample one completion per row; return the steps.

    Identical prompts must be adjacent; finished rows are dropped from the batch. The host waits for
    the device once per step, for the tokens. All else that it decides follows from these and from
    the lengths of the prompts.
    """
    device, width = model.device, max(map(len, prompts))
    is_new = [i == 0 or ids != prompts[i - 1] for i, ids in enumerate(prompts)]
    unique = [ids for ids, new in zip(prompts, is_new, strict=True) if new]
    logits, hidden, cache = _prefill(model, unique, pad_token_id)
    if len(unique) < len(prompts):
        origin = _on_device([i - 1 for i in accumulate(is_new)], device)
        select_rows(cache, origin)
        logits, hidden = logits[origin], hidden[origin]
    # The mask of all steps; each takes a view of it, and none where no row is padded.
    _, mask = pad(prompts, pad_token_id, left=True)
    mask = nn.functional.pad(mask, (0, max_completion_length), value=True).long()
    mask = mask.to(device, non_blocking=True)
    positions = _on_device([[len(ids)] for ids in prompts], device)
    steps: list[Step] = []
    active = list(range(len(prompts)))
    while True:
        tokens = _draw(logits, temperature, generator)
        drawn = _drawn_logps(logits, tokens, temperature)
        kept = hidden if keep_hidden_states else None
        steps.append(Step(active, tokens.tolist(), drawn, kept))
        unfinished = [i for i, token in enumerate(steps[-1].tokens) if token not in ends]
        if len(steps) == max_completion_length or not unfinished:
            return steps
        if len(unfinished) < len(active):
            rows = _on_device(unfinished, device)
            select_rows(cache, rows)
            active = [active[i] for i in unfinished]
            tokens, mask, positions = tokens[rows], mask[rows], positions[rows]
        is_padded = any(len(prompts[row]) < width for row in active)
        visible = mask[:, : width + len(steps)] if is_padded else None
        logits, hidden = _next(model, tokens[:, None], visible, positions, cache)
        positions = positions + 1


def _on_device(values: Sequence[Any], device: torch.device) -> Tensor:
    """Copy numbers to a device without waiting for it."""
    return torch.tensor(values).to(device, non_blocking=True)


def _by_row(steps: Sequence[Step], rows: int) -> list[dict[str, Any]]:
    """Collect the fields of each row's completion from the steps, in one copy to the host."""
    columns = (torch.cat(column) for column in zip(*(step.drawn for step in steps), strict=True))
    logps, entropy = torch.stack([*columns]).tolist()
    row_of = [row for step in steps for row in step.rows]
    fields: list[dict[str, Any]] = [{"ids": [], "logps": [], "entropy": []} for _ in range(rows)]
    tokens = [token for step in steps for token in step.tokens]
    for row, *values in zip(row_of, tokens, logps, entropy, strict=True):
        for name, value in zip(("ids", "logps", "entropy"), values, strict=True):
            fields[row][name].append(value)
    for step in steps:
        if step.hidden_states is not None:
            for row, state in zip(step.rows, step.hidden_states, strict=True):
                fields[row].setdefault("hidden_states", []).append(state)
    for completion in fields:
        if "hidden_states" in completion:
            completion["hidden_states"] = torch.stack(completion["hidden_states"])
    return fields


def _next(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache
) -> tuple[Tensor, Tensor]:
    """Compute the logits of each row's next token and the hidden state that the head took.

    Args:
        mask: None where no row is padded: attention then takes no mask, and transformers does not
            wait for the device to find that it needs none.
    """
    head: Any = model.get_output_embeddings()
    head_inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0][:, -1]))
    try:
        output = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    finally:
        hook.remove()
    return output.logits[:, -1], head_inputs[0]


def _prefill(
    model: PreTrainedModel, prompts: Sequence[list[int]], pad_token_id: int
) -> tuple[Tensor, Tensor, Cache]:
    """Compute the logits and hidden state of each row's first token, and the cache of the prompts.

    Rows are sorted by length and computed a few at a time, because a short prompt costs as much as
    the longest one in its batch. Prompts whose caches cannot be concatenated are computed at once.
    """
    outputs, caches = [], []
    size = PREFILL_ROWS if can_concatenate(block_cache(model.config)) else len(prompts)
    for start in range(0, len(prompts), size):
        input_ids, mask = pad(prompts[start : start + size], pad_token_id, left=True)
        is_padded = not bool(mask.all())
        input_ids, mask = (x.to(model.device, non_blocking=True) for x in (input_ids, mask))
        caches.append(block_cache(model.config))
        visible = mask.long() if is_padded else None
        outputs.append(_next(model, input_ids, visible, position_ids(mask), caches[-1]))
    logits, hidden = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
    return logits, hidden, concatenate(caches, max(map(len, prompts)), model.config)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw one token per row by inversion: the first whose cumulative probability exceeds u.

    This takes one uniform number per row; `torch.multinomial` draws one per vocabulary entry.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1).to(generator.device)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    draw = torch.rand(
        len(logits), 1, generator=generator, dtype=torch.float64, device=generator.device
    )
    # Rounding leaves a total slightly off 1: u scaled by the total always finds a token.
    tokens = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.to(logits.device)


def _generator_device(device: torch.device) -> torch.device:
    """Return the device to draw tokens on: Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _drawn_logps(logits: Tensor, tokens: Tensor, temperature: float) -> TokenLogps:
    """Compute log-probability and entropy of one token per row; both are 0 at temperature 0."""
    if temperature == 0:
        zeros = logits.new_zeros(len(tokens), dtype=torch.float32)
        return TokenLogps(zeros, zeros)
    return token_logps(logits, tokens, temperature)
