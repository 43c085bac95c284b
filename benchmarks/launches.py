"""Count kernel launches and host syncs on a pretend accelerator: `python -m benchmarks.launches`.

The model has random weights and the layers of Qwen3, with two query heads per key head. Two depths
give the launches per layer. A count is not a time, and nothing runs on a GPU: every operation of
torch that makes new data is one launch, attention is one, and its backward pass another.
"""

from typing import Any, NamedTuple
from unittest import mock

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from rlhf_recipes.generation import sampling
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.models.merging import ROUNDED
from rlhf_recipes.prompts import pad, prompt_ids
from rlhf_recipes.roles import Roles
from tests.pretend_device import ACCELERATOR, PretendDevice

DEPTHS = (2, 4)
STEPS = (6, 12)  # tokens, whose difference leaves out the prompt

EVEN = [f"say {i} words" for i in range(8)]
PADDED = [f"say {i} words" + " and more" * (i % 2) for i in range(8)]
LONG = "tell me of the sun and the moon and of everything else there is between them in the sky"


class Count(NamedTuple):
    """Launches per layer and those of no layer, and syncs, of one token or one pass."""

    per_layer: float
    others: float
    syncs: float
    attention: dict[str, int]

    def __str__(self) -> str:
        calls = ", ".join(f"{n} {name}" for name, n in sorted(self.attention.items()))
        return f"{self.per_layer:g} | {self.others:g} | {self.syncs:g} | {calls}"


def roles_of(
    tokenizer: PreTrainedTokenizerBase,
    layers: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    prefix_sharing: bool = True,
) -> Roles:
    """Return a base on the accelerator with the roles `policy` and `value`."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    base: Any = Qwen3ForCausalLM(config)
    roles = Roles(base.to(dtype), prefix_sharing=prefix_sharing)
    for role in ("policy", "value"):
        roles.attach(role, LoraConfig(r=4, target_modules="all-linear"), trainable=True)
    roles.attach_head("value", torch.randn(1, 64), torch.zeros(1), trainable=True)
    return roles.eval().to(ACCELERATOR)


def decoding(
    device: PretendDevice,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    role: str | None,
    dtype: torch.dtype = torch.bfloat16,
    dtypes: tuple[torch.dtype, ...] = ROUNDED,
) -> Count:
    """Count what one sampled token of every row takes.

    Args:
        dtypes: Dtypes of the weights that the role's adapter is merged into.
    """
    launches, syncs, attention = {}, {}, {}
    for depth in DEPTHS:
        roles = roles_of(tokenizer, depth, dtype)
        for steps in STEPS:
            # No token ends a row: the rows stay the same.
            endless = mock.patch.object(sampling, "end_ids", return_value=[])
            with roles.merged(role, dtypes) as model, endless:
                device.reset()
                sampling.sample(model, tokenizer, prompts, max_completion_length=steps, seed=3)
            launches[depth, steps] = device.launches
            syncs[steps], attention[steps] = device.syncs.total(), device.attention.copy()
    first, last = STEPS
    small, large = ((launches[d, last] - launches[d, first]) / (last - first) for d in DEPTHS)
    per_layer = (large - small) / (DEPTHS[1] - DEPTHS[0])
    difference = attention[last] - attention[first]
    calls = {name: n // (last - first) // DEPTHS[1] for name, n in difference.items()}
    others = small - DEPTHS[0] * per_layer
    return Count(per_layer, others, (syncs[last] - syncs[first]) / (last - first), calls)


def batch_of(tokenizer: PreTrainedTokenizerBase, rows: int, prompts: int) -> tuple[Tensor, Tensor]:
    """Return ids and mask of `rows` completions of `prompts` prompts, on the accelerator."""
    texts = sorted(
        prompt_ids(tokenizer, f"{LONG}{i % prompts}")
        + list(tokenizer(text=f"answer number {i} of them")["input_ids"])
        for i in range(rows)
    )
    ids, mask = pad(texts, tokenizer.pad_token_id or 0, left=True)
    return ids.to(ACCELERATOR), mask.to(ACCELERATOR)


def training(
    device: PretendDevice,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    prompts: int,
    *,
    prefix_sharing: bool,
) -> dict[str, Count]:
    """Count a forward pass, a forward and backward pass, and one forward pass of three roles."""
    ids, mask = batch_of(tokenizer, rows, prompts)
    columns: dict[str, list[tuple[int, int, dict[str, int]]]] = {}

    def note(name: str, depth: int) -> None:
        calls = {kind: n // depth for kind, n in device.attention.items()}
        columns.setdefault(name, []).append((device.launches, device.syncs.total(), calls))

    for depth in DEPTHS:
        roles = roles_of(tokenizer, depth, prefix_sharing=prefix_sharing)
        device.reset()
        with roles.use("policy"):
            logps = roles("policy", ids, mask, 20).logps
            note("forward", depth)
            logps.sum().backward()
            note("forward and backward", depth)
        ids, mask = ids.clone(), mask.clone()
        roles = roles_of(tokenizer, depth, prefix_sharing=prefix_sharing)
        device.reset()
        with torch.no_grad():
            for role in (None, "policy", "value"):
                roles(role, ids, mask, 20)
        note("forward of three roles", depth)
    counts = {}
    for name, ((small, _, _), (large, syncs, calls)) in columns.items():
        per_layer = (large - small) / (DEPTHS[1] - DEPTHS[0])
        counts[name] = Count(per_layer, small - DEPTHS[0] * per_layer, syncs, calls)
    return counts


def main() -> None:
    """Print the tables of `docs/speed.md`."""
    tokenizer = open_tokenizer("tiny")
    columns = "launches per layer | other launches | syncs | attention calls per layer by mask |"
    with PretendDevice() as device:
        print(f"| one token of 8 rows | {columns}\n|---|---|---|---|---|")
        for title, prompts in (("no padding", EVEN), ("padded", PADDED)):
            for name, role, dtype, dtypes in (
                ("float32, policy", "policy", torch.float32, ROUNDED),
                ("bfloat16, policy", "policy", torch.bfloat16, ROUNDED),
                ("bfloat16, policy unmerged", "policy", torch.bfloat16, ()),
                ("bfloat16, base", None, torch.bfloat16, ()),
            ):
                count = decoding(device, tokenizer, prompts, role, dtype, dtypes)
                print(f"| {name}, {title} | {count} |", flush=True)
        print(f"\n| one batch | {columns}\n|---|---|---|---|---|")
        for rows, different in ((8, 4), (8, 1), (16, 2)):
            for sharing in (True, False):
                counts = training(device, tokenizer, rows, different, prefix_sharing=sharing)
                title = f"{rows} rows of {different} prompts, {'' if sharing else 'not '}shared"
                for name, count in counts.items():
                    print(f"| {title}, {name} | {count} |", flush=True)


if __name__ == "__main__":
    main()
