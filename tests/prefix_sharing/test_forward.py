"""Sharing prefixes changes only the time: TRL's trainers with and without it on one batch."""

import copy
import logging
import shutil
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from rlhf_recipes.generation.grpo import rollout_func_for, sampled_completions
from rlhf_recipes.models.dropout import turn_off_dropout
from rlhf_recipes.models.loading import open_tokenizer
from rlhf_recipes.preferences import chosen_completions
from rlhf_recipes.prefix_sharing.forward import share_prefixes

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
ARCHITECTURES: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "llama": (LlamaConfig, SIZES, ["q_proj", "v_proj", "down_proj"]),
    "mistral": (MistralConfig, {**SIZES, "sliding_window": None}, ["q_proj", "v_proj"]),
    "qwen2": (Qwen2Config, SIZES, ["k_proj", "up_proj"]),
    "qwen3": (Qwen3Config, SIZES, ["q_proj", "o_proj"]),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4}, ["c_attn", "c_proj"]),
}
PROMPTS = [
    "What is a cloud made of?",
    "Say hi.",
    "Name three rivers in Europe, please, and one more.",
]
CHOSEN = ["Water.", "Hi", "Rhine, Danube, Volga, Po."]
REJECTED = ["Watered-down milk, I am told, but who knows that?", "H", "No."]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


def tiny(architecture, tokenizer, auto=AutoModelForCausalLM, attention="sdpa", **changes):
    """Make a model of an architecture; its random weights are the same every time."""
    config_class, sizes, _ = ARCHITECTURES[architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{**sizes, "initializer_range": 0.2, **changes},
    )
    torch.manual_seed(0)
    if auto is AutoModelForSequenceClassification:
        config.num_labels = 1
    return auto.from_config(config, attn_implementation=attention)


def pairs(conversational):
    if not conversational:
        return Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})

    def turn(role, texts):
        return [[{"role": role, "content": text}] for text in texts]

    return Dataset.from_dict(
        {
            "prompt": turn("user", PROMPTS),
            "chosen": turn("assistant", CHOSEN),
            "rejected": turn("assistant", REJECTED),
        }
    )


def options(folder, **changes):
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        **changes,
    }


def randomize(model):
    """Draw random weights for every adapter: with B = 0 the policy would be the reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def trainer_of(
    kind, architecture, tokenizer, folder, *, peft=True, attention="sdpa", data=None, **changes
):
    """Make TRL's trainer for SFT, reward or DPO, with a random adapter or without LoRA."""
    config = None
    targets = changes.pop("lora", {"target_modules": ARCHITECTURES[architecture][2]})
    if peft:
        task = "SEQ_CLS" if kind == "reward" else "CAUSAL_LM"
        config = LoraConfig(r=4, task_type=task, fan_in_fan_out=architecture == "gpt2", **targets)
    shared = {
        "train_dataset": pairs(conversational=True) if data is None else data,
        "processing_class": tokenizer,
        "peft_config": config,
    }
    arguments = options(folder, **{"activation_checkpointing": False, **changes})
    if kind == "sft":
        rows = shared["train_dataset"]
        shared["train_dataset"] = chosen_completions(rows, range(len(rows)))
        model = tiny(architecture, tokenizer, attention=attention)
        turn_off_dropout(model)  # SFTTrainer leaves it on
        trainer = SFTTrainer(model=model, args=SFTConfig(**arguments), **shared)
    elif kind == "reward":
        model = tiny(architecture, tokenizer, AutoModelForSequenceClassification, attention)
        trainer = RewardTrainer(model=model, args=RewardConfig(**arguments), **shared)
    else:
        model = tiny(architecture, tokenizer, attention=attention)
        reference = None if peft else tiny(architecture, tokenizer, attention=attention)
        args = DPOConfig(**arguments)
        trainer = DPOTrainer(model=model, ref_model=reference, args=args, **shared)
    randomize(trainer.model)
    return trainer


def one_step(trainer):
    """Return loss, metrics and gradients of the first batch."""
    trainer.model.train()
    if trainer.args.activation_checkpointing:  # the training loop does this
        trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    metrics: dict[str, float] = {}
    trainer.log(metrics)
    gradients = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **metrics}, gradients


def assert_same(stock, shared):
    (stock_metrics, stock_gradients), (metrics, gradients) = stock, shared
    assert stock_metrics.keys() == metrics.keys()
    assert stock_gradients.keys() == gradients.keys()
    for name, value in stock_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), name
    scale = max(float(gradient.abs().max()) for gradient in stock_gradients.values())
    for name, gradient in stock_gradients.items():
        torch.testing.assert_close(
            gradients[name] / scale, gradient / scale, rtol=1e-4, atol=1e-5, msg=name
        )


def shared(trainer):
    """Share prefixes in a trainer and record the shapes of its token ids in `seen`."""
    assert share_prefixes(trainer.model)
    if getattr(trainer, "ref_model", None) is not None:
        assert share_prefixes(trainer.ref_model)
    trainer.seen = []
    embeddings = trainer.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, ids, __: trainer.seen.append(ids[0].shape))
    return trainer


def compare(kind, architecture, tokenizer, folder, **changes):
    """Compare one step of TRL's trainer with and without sharing; return the one that shares."""
    stock = trainer_of(kind, architecture, tokenizer, folder, **changes)
    ours = shared(trainer_of(kind, architecture, tokenizer, folder, **changes))
    assert_same(one_step(stock), one_step(ours))
    return ours


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize("peft", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_metrics_and_gradients_are_those_of_trl(
    kind, architecture, peft, attention, tokenizer, tmp_path
):
    ours = compare(kind, architecture, tokenizer, tmp_path, peft=peft, attention=attention)
    batch = next(iter(ours.get_train_dataloader()))
    tokens = int(batch["attention_mask"].sum())
    # Each pass computes one row without padding, shorter than the batch has tokens.
    assert all(rows == 1 and length < 0.8 * tokens for rows, length in ours.seen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sft_shares_what_its_rows_begin_with(architecture, tokenizer, tmp_path):
    """One row per prompt: the rows of a batch share no more than a system prompt."""
    system = [{"role": "system", "content": "You answer briefly and plainly, as to a friend."}]
    data = pairs(conversational=True).map(lambda row: {"prompt": system + row["prompt"]})
    ours = compare("sft", architecture, tokenizer, tmp_path, data=data)
    batch = next(iter(ours.get_train_dataloader()))
    assert all(length < 0.8 * int(batch["attention_mask"].sum()) for _, length in ours.seen)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_a_system_prompt_is_computed_once_for_all_prompts(kind, architecture, tokenizer, tmp_path):
    system = [{"role": "system", "content": "You answer briefly and plainly, as to a friend."}]
    data = pairs(conversational=True).map(lambda row: {"prompt": system + row["prompt"]})
    ours = compare(kind, architecture, tokenizer, tmp_path, data=data)
    batch = next(iter(ours.get_train_dataloader()))
    tokens = int(batch["attention_mask"].sum())
    header = len(tokenizer.apply_chat_template(system, return_dict=True)["input_ids"])
    prompts = [
        tokenizer.apply_chat_template(p, return_dict=True)["input_ids"] for p in data["prompt"]
    ]
    # There are six rows; the rest of each prompt is computed once for its two completions.
    suffixes = sum(len(prompt) - header for prompt in prompts)
    assert all(length <= tokens - 5 * header - suffixes for _, length in ours.seen)


LOSSES = "sigmoid hinge ipo nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down"
OPTIONS: list[dict[str, Any]] = [
    *({"loss_type": [name]} for name in [*LOSSES.split(), "discopop", "sigmoid_norm"]),
    {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    {"use_weighting": True},
    {"ld_alpha": 0.5},
    {"f_divergence_type": "js_divergence"},
    {"precompute_ref_log_probs": True},
    {"max_length": 45},
    {"pad_to_multiple_of": 16},
    {"activation_checkpointing": True},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_of_dpo_keeps_its_meaning(changes, tokenizer, tmp_path):
    compare("dpo", "llama", tokenizer, tmp_path, **changes)


@pytest.mark.parametrize(
    "changes", [{"center_rewards_coefficient": 0.1}, {"activation_checkpointing": True}], ids=str
)
def test_every_option_of_the_reward_model_keeps_its_meaning(changes, tokenizer, tmp_path):
    compare("reward", "llama", tokenizer, tmp_path, **changes)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_rounding_errors_in_bfloat16_are_as_small_as_those_of_trl(
    kind, weights, tokenizer, tmp_path
):
    """With autocast, the base in float32 or bfloat16: gradients are as close to float32's."""

    def gradients(*, sharing=False, **changes):
        trainer = trainer_of(kind, "llama", tokenizer, tmp_path, **changes)
        if changes:
            for parameter in trainer.model.parameters():
                if not parameter.requires_grad:  # peft keeps adapters in float32
                    parameter.data = parameter.data.to(weights)
        if sharing:
            shared(trainer)
        with trainer.accelerator.autocast():
            named = one_step(trainer)[1]
        return torch.cat([gradient.float().flatten() for gradient in named.values()])

    exact = gradients()
    stock, ours = (gradients(bf16=True, sharing=sharing) for sharing in (False, True))
    assert (stock - exact).norm() > 1e-3 * exact.norm()  # autocast is on
    assert (ours - exact).norm() < 1.2 * (stock - exact).norm() < 0.1 * exact.norm()


# transformers' own calls of torch, and torch's of itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="flex_attention compiles C++ on a CPU")
def test_flex_attention_gives_the_same(tokenizer, tmp_path):
    """Compare the forward pass only: on a CPU flex_attention has no backward pass."""
    flex = "flex_attention"
    stock, ours = (
        trainer_of("dpo", "llama", tokenizer, tmp_path, attention=flex) for _ in range(2)
    )
    batch = next(iter(stock.get_train_dataloader()))
    with torch.no_grad():
        expected = stock.compute_loss(stock.model, dict(batch))
        loss = shared(ours).compute_loss(ours.model, dict(batch))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_padding_may_be_the_end_token(kind, tmp_path):
    tokenizer = open_tokenizer("tiny")
    tokenizer.pad_token = tokenizer.eos_token
    compare(kind, "llama", tokenizer, tmp_path)


EDGES = {
    "one-token completions": ("ab", "c", "d"),
    "completions that begin alike": ("ab", "same start, yes", "same start, no"),
    "one completion is the start of the other": ("ab", "same", "same and more"),
    "equal completions": ("ab", "same", "same"),
    "nothing in common": ("", "one", "two"),
}


@pytest.mark.parametrize("kind", ["reward", "dpo"])
@pytest.mark.parametrize("case", EDGES)
def test_edges(kind, case, tokenizer, tmp_path):
    prompt, chosen, rejected = EDGES[case]
    rows = {"prompt": [prompt, "zz"], "chosen": [chosen, "y"], "rejected": [rejected, "x y z"]}
    compare(kind, "llama", tokenizer, tmp_path, data=Dataset.from_dict(rows))


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_layers_below_every_adapter_run_once_for_policy_and_reference(kind, tokenizer, tmp_path):
    upper = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2]}
    ours = compare(kind, "llama", tokenizer, tmp_path, lora=upper)
    assert len(ours.seen) == 1


def test_training_with_and_without_sharing_is_the_same(tokenizer, tmp_path):
    """Three optimizer steps on two pairs, then one, and an evaluation."""
    results = []
    for sharing in (False, True):
        settings = {"per_device_train_batch_size": 2, "max_steps": 3, "logging_steps": 1}
        trainer = trainer_of("dpo", "qwen2", tokenizer, tmp_path / str(sharing), **settings)
        if sharing:
            shared(trainer)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append([*losses, trainer.evaluate(pairs(conversational=True))["eval_loss"]])
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert len(set(results[0])) > 2


def grpo(tokenizer, folder, **changes):
    model = tiny("llama", tokenizer)
    arguments = {
        **options(folder, per_device_train_batch_size=8, num_generations=4, max_steps=2),
        "max_completion_length": 6,
        "beta": 0.1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "activation_checkpointing": False,
        **changes,
    }
    args = GRPOConfig(**arguments)
    return GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(str(text))) for text in completions],
        args=args,
        train_dataset=pairs(conversational=True).select_columns("prompt"),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        rollout_func=rollout_func_for(args),
    )


def test_a_group_shares_its_prompt(tokenizer, tmp_path):
    """Compare GRPO's loss and gradients on one batch of two groups, shuffled as TRL does."""
    stock, ours = (grpo(tokenizer, tmp_path) for _ in range(2))
    shared(ours)
    for trainer in (stock, ours):
        randomize(trainer.model)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
    rows = [{"prompt": row["prompt"]} for row in stock.train_dataset.select([0] * 4 + [2] * 4)]
    torch.manual_seed(0)
    batch = stock._prepare_inputs(rows)
    ours.seen.clear()
    results = []
    for trainer in (stock, ours):
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        named = trainer.model.named_parameters()
        gradients = {n: p.grad for n, p in named if p.grad is not None}
        results.append(({"loss": loss.detach()}, gradients))
    assert_same(*results)
    tokens = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    assert all(rows == 1 and length < 0.5 * tokens for rows, length in ours.seen)


def test_grpo_samples_with_the_projects_sampler_and_is_reproducible(tokenizer, tmp_path):
    histories = []
    for run in range(2):
        trainer = grpo(tokenizer, tmp_path / str(run))
        base = copy.deepcopy(dict(trainer.model.get_base_model().named_parameters()))
        trainer.train()
        after = dict(trainer.model.get_base_model().named_parameters())
        frozen = [name for name in base if "lora_" not in name]
        assert all(torch.equal(after[name], base[name]) for name in frozen)
        histories.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert histories[0] == histories[1]
    assert trainer.rollout_func.func is sampled_completions


@pytest.mark.parametrize(
    "changes", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"repetition_penalty": 1.1}], ids=str
)
def test_trl_samples_where_another_distribution_is_asked_for(changes, tmp_path, caplog):
    name, value = next(iter(changes.items()))
    args = GRPOConfig(**options(tmp_path, num_generations=3, **changes))
    with caplog.at_level(logging.WARNING):
        assert rollout_func_for(args) is None
    assert f"`{name}` is {value}" in caplog.text


def test_a_model_that_cannot_share_is_left_unchanged_with_a_reason_in_the_log(tokenizer, caplog):
    sliding = tiny("mistral", tokenizer, sliding_window=16)
    gemma = AutoModelForCausalLM.from_config(
        GemmaConfig(vocab_size=64, **SIZES), attn_implementation="sdpa"
    )
    dropout = tiny("gpt2", tokenizer)
    dropout.transformer.drop.p = 0.1
    attention_dropout = tiny("llama", tokenizer, attention_dropout=0.1)
    flash = tiny("llama", tokenizer)
    flash.config._attn_implementation = "flash_attention_2"
    hidden = tiny("llama", tokenizer, output_hidden_states=True)
    for model, reason in (
        (sliding, "sliding window"),
        (gemma, "gemma"),
        (dropout, "dropout"),
        (attention_dropout, "dropout"),
        (flash, "flash_attention_2"),
        (hidden, "every layer"),
    ):
        forward, attention = model.base_model.forward, model.config._attn_implementation
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert not share_prefixes(model)
        assert reason in caplog.text
        assert model.base_model.forward == forward
        assert model.config._attn_implementation == attention


def test_sharing_does_not_change_generation(tokenizer):
    model = tiny("llama", tokenizer).eval()
    ids = torch.tensor([tokenizer("What is it?")["input_ids"]] * 2)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": mask}
    expected = model.generate(ids, **settings)
    assert share_prefixes(model)
    assert torch.equal(model.generate(ids, **settings), expected)


def logps(model, ids, mask):
    with torch.no_grad():
        # A row's first token has no token to be predicted from.
        follows = torch.nn.functional.pad(mask[:, :-1], (1, 0)) * mask
        labels = ids.masked_fill(follows == 0, -100)
        output = model(
            input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, use_cache=False
        )
    return output.log_probs


def test_shared_layers_are_reused_for_a_batch_of_the_same_values(tokenizer, tmp_path):
    """Equal tensors reuse the last pass; the same tensors with new values do not."""
    upper = {"target_modules": ["q_proj"], "layers_to_transform": [2]}
    stock, ours = (trainer_of("dpo", "llama", tokenizer, tmp_path, lora=upper) for _ in range(2))
    shared(ours)
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    ids[1, :6] = ids[0, :6]
    mask = torch.ones_like(ids)

    def assert_equal():
        expected = logps(stock.model, ids, mask)
        torch.testing.assert_close(logps(ours.model, ids, mask), expected, rtol=1e-4, atol=1e-4)

    assert_equal()
    passes = len(ours.seen)
    logps(ours.model, ids.clone(), mask.clone())
    assert len(ours.seen) == passes  # the embeddings did not run again
    mask[1, :3] = 0  # the second row then shares no prefix
    assert_equal()
    ids[0, 3] += 1
    assert_equal()
    ids[0, 3] -= 1
    for trainer in (stock, ours):
        # Another adapter reaches a lower layer.
        torch.manual_seed(1)
        lower = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0])
        trainer.model.add_adapter("lower", lower)
        randomize(trainer.model)
        trainer.model.set_adapter("lower")
    assert_equal()


def test_a_copy_of_a_sharing_model_uses_its_own_weights(tokenizer, tmp_path):
    model = shared(trainer_of("dpo", "llama", tokenizer, tmp_path)).model
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    twin, mask = copy.deepcopy(model), torch.ones_like(ids)
    before = logps(model, ids, mask)
    for parameter in twin.parameters():
        parameter.data.zero_()
    uniform = -torch.tensor(float(len(tokenizer))).log()
    torch.testing.assert_close(logps(twin, ids, mask), uniform.expand(2, 11))
    assert torch.equal(logps(model, ids, mask), before)


def test_a_batch_without_labels_gives_zeros(tokenizer, tmp_path):
    model = shared(trainer_of("dpo", "llama", tokenizer, tmp_path)).model
    ids, mask = torch.full((2, 4), 9), torch.ones(2, 4, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    output = model(
        input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, use_cache=False
    )
    assert not output.log_probs.any()
    output.log_probs.sum().backward()


def test_checkpointing_of_either_kind_works_above_shared_layers(tokenizer, tmp_path):
    upper = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2]}
    for reentrant in (False, True):
        checkpointing = {
            "activation_checkpointing": True,
            "activation_checkpointing_kwargs": {"use_reentrant": reentrant},
        }
        ours = compare("dpo", "llama", tokenizer, tmp_path, lora=upper, **checkpointing)
        assert len(ours.seen) == 1
