"""Sample completions from a causal language model: one sampler for PPO and evaluation.

The sampled distribution is the model's own, softmax(logits / temperature): no top-k, no top-p, no
repetition penalty. Log-probabilities taken from the same logits therefore describe the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_recipes.architectures import check_sampler
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.kv_cache import block_cache, joined, joins, keep_rows
from rlhf_recipes.logprobs import TokenLogps, token_logps
from rlhf_recipes.preferences.shapes import Messages
from rlhf_recipes.templates import RENDER_ERRORS, check_template, refused

PREFILL_ROWS = 4
"""Prompts computed at once before the first token is drawn: enough to keep the cores busy."""

Prompt = str | Messages
"""Plain text, or the messages of a conversation that ends with the user's turn."""


@dataclass(frozen=True)
class Completion:
    """One sampled completion.

    `ids` are the sampled token ids, with the end-of-sequence token where it was `finished` by
    one; `text` is their text without special tokens. An unfinished completion hit the length cap.
    `logps` and `entropy` are those of `ids` under the distribution they were drawn from, in nats;
    `states`, shape (ids, width), is what the language-model head made that distribution of, where
    it was to be kept.
    """

    ids: list[int]
    text: str
    finished: bool
    # Rounding depends on the batch: two completions are the same if their tokens are.
    logps: list[float] = field(default_factory=list, compare=False, repr=False)
    entropy: list[float] = field(default_factory=list, compare=False, repr=False)
    states: Tensor | None = field(default=None, compare=False, repr=False)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The token ids a completion of that prompt is conditioned on, as TRL's trainers see them."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return template_ids(tokenizer, prompt, add_generation_prompt=True)


def template_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool
) -> list[int]:
    """The token ids of a conversation, as the tokenizer's chat template renders it."""
    if tokenizer.chat_template is None:
        raise RecipeError(
            "The data is conversations and the tokenizer has no chat template. Set "
            "`chat_template` to a Jinja file; recipes/hh-rlhf/gpt2 ships one in HH's own format."
        )
    check_template(tokenizer)
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
        )
    except RENDER_ERRORS as error:
        raise refused(tokenizer.name_or_path, messages, error) from error
    return list(encoded["input_ids"])


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a completion: the tokenizer's and the model's own."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    listed = own if isinstance(own, list) else [own]
    return sorted({i for i in [tokenizer.eos_token_id, *listed] if i is not None})


def pad(sequences: Sequence[Sequence[int]], value: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids of shape (batch, longest) and their mask, True where a token is real.

    The mask comes from the lengths, never from the ids: the padding token may be a real one.
    """
    width = max(len(s) for s in sequences)
    ids = torch.full((len(sequences), width), value, dtype=torch.long)
    mask = torch.zeros((len(sequences), width), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        part = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, part] = torch.tensor(sequence, dtype=torch.long)
        mask[row, part] = True
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, so that left padding does not shift them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


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
    keep_states: bool = False,
    progress: str | None = None,
) -> list[list[Completion]]:
    """`num_completions` independent completions of each prompt, in the order of the prompts.

    Decoded in batches by the length of their prompts; a batch prefills a prompt once for all its
    completions. Reproducible for a given seed, batch size and set of prompts.

    Args:
        model: Called as it stands: the caller chooses adapters and evaluation mode.
        temperature: 0 takes the most probable token (ties: the first).
        batch_size: Completions decoded at once.
        keep_states: Whether completions have their `states`, on the model's device.
        progress: Title of a progress bar over completions; None shows none.
    """
    check_sampler(model)
    generator = torch.Generator(_drawing_device(model.device)).manual_seed(seed)
    encoded = [ids_to_complete(tokenizer, prompt) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), encoded[i]))
    rows = [i for i in by_length for _ in range(num_completions)]
    ends = end_ids(model, tokenizer)
    completions: list[list[Completion]] = [[] for _ in prompts]
    with tqdm(total=len(rows), desc=progress, disable=progress is None) as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            sampled = _sample_batch(
                model,
                [encoded[i] for i in batch],
                tokenizer.pad_token_id,
                max_completion_length=max_completion_length,
                temperature=temperature,
                ends=ends,
                generator=generator,
                keep_states=keep_states,
            )
            for row, (ids, logps, entropy, steps) in zip(batch, sampled, strict=True):
                text, ended = tokenizer.decode(ids, skip_special_tokens=True), ids[-1] in ends
                states = torch.stack(steps) if steps else None
                completions[row].append(Completion(ids, str(text), ended, logps, entropy, states))
            bar.update(len(batch))
    return completions


def ids_to_complete(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The token ids of a prompt; RecipeError where there are none to continue."""
    ids = prompt_ids(tokenizer, prompt)
    if not ids:
        raise RecipeError(
            f"The prompt {prompt!r} has no token, so there is nothing to complete. Leave empty "
            "prompts out of the data, and see that the chat template writes what it is given."
        )
    return ids


class Sampled(NamedTuple):
    """Tokens of one row, and of each its log-probability, the entropy and state it was drawn at."""

    ids: list[int]
    logps: list[float]
    entropy: list[float]
    states: list[Tensor]


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
    keep_states: bool,
) -> list[Sampled]:
    """What is sampled in each row; equal prompts are neighbours. Rows leave when they end."""
    different = [ids for i, ids in enumerate(prompts) if i == 0 or ids != prompts[i - 1]]
    input_ids, mask = (part.to(model.device) for part in pad(different, pad_token_id, left=True))
    logits, states, cache = _prefill(model, input_ids, mask)
    if len(different) < len(prompts):
        new = [int(i > 0 and ids != prompts[i - 1]) for i, ids in enumerate(prompts)]
        origin = torch.tensor(new, device=model.device).cumsum(0)
        keep_rows(cache, origin)
        logits, states, mask = logits[origin], states[origin], mask[origin]
    sampled = [Sampled([], [], [], []) for _ in prompts]
    alive = list(range(len(prompts)))
    end_tokens = torch.tensor(ends, device=model.device)
    for step in range(max_completion_length):
        tokens = _draw(logits, temperature, generator)
        found = _drawn_from(logits, tokens, temperature)
        drawn = tokens.tolist(), found.logps.tolist(), found.entropy.tolist()
        for row, token, logp, entropy, state in zip(alive, *drawn, states, strict=True):
            sampled[row].ids.append(token)
            sampled[row].logps.append(logp)
            sampled[row].entropy.append(entropy)
            if keep_states:
                sampled[row].states.append(state)
        going = ~torch.isin(tokens, end_tokens)
        if step == max_completion_length - 1 or not going.any():
            break
        if not going.all():
            kept = going.nonzero().squeeze(-1)
            keep_rows(cache, kept)
            alive = [alive[i] for i in kept.tolist()]
            tokens, mask = tokens[kept], mask[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        place = mask.long().sum(-1, keepdim=True) - 1
        logits, states = _next(model, tokens[:, None], mask, place, cache)
    return sampled


def _next(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor, position_ids: Tensor, cache: Cache
) -> tuple[Tensor, Tensor]:
    """Logits of each row's next token, and the state that the head made them of."""
    head: Any = model.get_output_embeddings()
    given: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][:, -1]))
    try:
        output = model(
            input_ids=input_ids,
            attention_mask=mask.long(),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    finally:
        hook.remove()
    return output.logits[:, -1], given[0]


def _prefill(
    model: PreTrainedModel, input_ids: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Cache]:
    """Logits and state of the first token of each row, and the cache of all prompts.

    A few rows at a time, which are of similar length: a short prompt in one batch with a long one
    would cost as much as that. Prompts whose caches cannot be joined are computed at once.
    """
    first, caches = [], []
    size = PREFILL_ROWS if joins(block_cache(model.config)) else len(mask)
    for rows in torch.arange(len(mask), device=mask.device).split(size):
        left = int((~mask[rows]).all(0).long().cumprod(0).sum())
        part = mask[rows, left:]
        caches.append(block_cache(model.config))
        first.append(_next(model, input_ids[rows, left:], part, positions(part), caches[-1]))
    logits, states = (torch.cat(parts) for parts in zip(*first, strict=True))
    return logits, states, joined(caches, mask.shape[1], model.config)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token of each row, by inversion: the first whose cumulative probability exceeds u.

    One uniform number a row. `torch.multinomial` draws one for every token of the vocabulary.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1).to(generator.device)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    draw = torch.rand(
        len(logits), 1, generator=generator, dtype=torch.float64, device=generator.device
    )
    # Scaled by the sum, which rounding leaves beside 1: u below it always finds a token.
    tokens = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.to(logits.device)


def _drawing_device(device: torch.device) -> torch.device:
    """Where tokens are drawn: Apple's GPUs have no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _drawn_from(logits: Tensor, tokens: Tensor, temperature: float) -> TokenLogps:
    """Log-probability and entropy of one token a row; the most probable one is drawn surely."""
    if temperature == 0:
        sure = logits.new_zeros(len(tokens), dtype=torch.float32)
        return TokenLogps(sure, sure)
    return token_logps(logits, tokens, temperature)
