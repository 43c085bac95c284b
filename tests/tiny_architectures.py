"""The table of docs/architectures.md: a tiny model of each architecture, and its results."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from rlhf_recipes.models.loading import open_tokenizer

STAGES = ("sft", "reward", "ppo", "grpo", "dpo", "evaluate")

NO_CLASSIFIER = "has no sequence classifier"
NO_CACHE = "takes no `past_key_values`"
NO_EXPERT_COUNT = "has no such entry. Set `router_aux_loss_coef: 0`"
NOT_ALL_LINEAR = "LoRA does not fit"

NOTES = {
    NO_CLASSIFIER: "transformers has no sequence classifier of this architecture. Evaluation needs "
    "a reward model on the same base, so it is refused too. PPO and GRPO run on `reward_funcs`.",
    NO_CACHE: "The model takes no cache of keys and values, so it cannot be sampled from token by "
    "token.",
    NO_EXPERT_COUNT: "Only with `router_aux_loss_coef: 0`: the configuration lacks an entry that "
    "TRL's load-balancing loss reads.",
    NOT_ALL_LINEAR: "Only with attention layers named in `lora_target_modules`: PEFT refuses the "
    "Mamba layers that `all-linear` selects.",
}
"""Text of each error, and the note for it in docs/architectures.md."""


@dataclass(frozen=True)
class Tiny:
    """An architecture, the sizes of its tiny model, and the stages that refuse it."""

    title: str
    model_type: str
    sizes: dict[str, Any]
    refused: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # settings that make refused stages run
    shares: bool = False

    def config(self) -> PretrainedConfig:
        """Make the configuration, for the tests' tokenizer."""
        tokenizer = open_tokenizer("tiny")
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in IDS}
        sizes = {"vocab_size": len(tokenizer), **self.sizes}
        if "text_config" in sizes:
            sizes["text_config"] = {"vocab_size": len(tokenizer) + 1, **sizes["text_config"], **ids}
            sizes["image_token_id"] = len(tokenizer)
        return CONFIG_MAPPING[self.model_type](**sizes, **ids)

    def save(self, folder: Path) -> str:
        """Save a base with random weights, in the form of that architecture's checkpoints."""
        auto_class = (
            AutoModelForImageTextToText if "text_config" in self.sizes else AutoModelForCausalLM
        )
        torch.manual_seed(0)
        model = auto_class.from_config(self.config())
        with torch.no_grad():
            for parameter in model.parameters():  # experts start equal, norms at constants
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        open_tokenizer("tiny").save_pretrained(folder)
        return str(folder)


IDS = ("pad", "bos", "eos")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
WIDE = {**SIZES, "head_dim": 8}
WINDOW = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA3 = {**WIDE, **WINDOW, "query_pre_attn_scalar": 8}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "word_embed_proj_dim": 32,
    "init_std": 0.2,
}
FALCON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
JAMBA = {
    **SIZES,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 4,
    "use_mamba_kernels": False,
}
FALCON_H1 = {
    **WIDE,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "lm_head_multiplier": 0.5,
}
MAMBA2 = {
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "n_groups": 2,
}
UNSCORED = {"reward": NO_CLASSIFIER, "evaluate": NO_CLASSIFIER}
UNSAMPLED = dict.fromkeys(STAGES, NO_CACHE)
COUNTLESS = {**UNSCORED, **dict.fromkeys(("sft", "dpo", "grpo"), NO_EXPERT_COUNT)}
UNFIT = {**UNSCORED, **dict.fromkeys(("sft", "ppo", "grpo", "dpo"), NOT_ALL_LINEAR)}
NAMED = {"lora_target_modules": ["q_proj", "v_proj"]}

ARCHITECTURES = (
    Tiny("Llama", "llama", SIZES, shares=True),
    Tiny("Mistral", "mistral", {**SIZES, "sliding_window": None}, shares=True),
    Tiny("Mistral, sliding window", "mistral", {**SIZES, "sliding_window": 8}),
    Tiny("Mixtral", "mixtral", {**SIZES, **LOCAL_EXPERTS}),
    Tiny("Qwen2", "qwen2", SIZES, shares=True),
    Tiny("Qwen3", "qwen3", WIDE, shares=True),
    Tiny("Qwen3-MoE", "qwen3_moe", {**WIDE, **EXPERTS}),
    Tiny(
        "Qwen3-Next",
        "qwen3_next",
        {**WIDE, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16},
    ),
    Tiny("Qwen3.5, text", "qwen3_5_text", {**WIDE, **LINEAR}),
    Tiny(
        "Qwen3.5, with a vision tower",
        "qwen3_5",
        {"text_config": {**WIDE, **LINEAR}, "vision_config": QWEN_TOWER},
    ),
    Tiny("Gemma", "gemma", WIDE),
    Tiny(
        "Gemma 2",
        "gemma2",
        {**WIDE, "sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    ),
    Tiny("Gemma 3, text", "gemma3_text", GEMMA3),
    Tiny(
        "Gemma 3, with a vision tower",
        "gemma3",
        {"text_config": GEMMA3, "vision_config": SIGLIP, "mm_tokens_per_image": 4},
    ),
    Tiny("Phi", "phi", SIZES),
    Tiny("Phi-3", "phi3", SIZES),
    Tiny(
        "GPT-2", "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, shares=True
    ),
    Tiny(
        "GPT-Neo",
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    Tiny("GPT-NeoX", "gpt_neox", {k: v for k, v in SIZES.items() if "key_value" not in k}),
    Tiny("GPT-J", "gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    Tiny("OPT", "opt", OPT),
    Tiny("OPT, projected (350m)", "opt", {**OPT, "word_embed_proj_dim": 16}),
    Tiny("BLOOM", "bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    Tiny("Falcon", "falcon", FALCON),
    Tiny("Falcon, ALiBi", "falcon", {**FALCON, "alibi": True}),
    Tiny("MPT", "mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}),
    Tiny("StableLM", "stablelm", SIZES),
    Tiny("StarCoder2", "starcoder2", {**SIZES, "sliding_window": None}),
    Tiny("OLMo 2", "olmo2", SIZES),
    Tiny("SmolLM3", "smollm3", SIZES),
    Tiny("GLM-4", "glm4", WIDE),
    Tiny("DeepSeek-V3", "deepseek_v3", LATENT),
    Tiny("gpt-oss", "gpt_oss", {**WIDE, **LOCAL_EXPERTS, **WINDOW}),
    Tiny("Granite", "granite", {**SIZES, "logits_scaling": 4.0}, UNSCORED),
    Tiny(
        "Granite MoE",
        "granitemoe",
        {**SIZES, **LOCAL_EXPERTS, "logits_scaling": 4.0},
        COUNTLESS,
        {"router_aux_loss_coef": 0.0},
    ),
    Tiny("Cohere", "cohere", {**SIZES, "logit_scale": 0.25}, UNSCORED),
    Tiny("Cohere 2", "cohere2", {**SIZES, **WINDOW, "logit_scale": 0.25}, UNSCORED),
    Tiny("LFM2", "lfm2", {**SIZES, "layer_types": ["conv", "full_attention"]}, UNSCORED),
    Tiny("Jamba", "jamba", JAMBA),
    Tiny("Falcon-H1", "falcon_h1", FALCON_H1, UNFIT, NAMED),
    Tiny("Mamba", "mamba", {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}, UNSAMPLED),
    Tiny("Mamba-2", "mamba2", MAMBA2, UNSAMPLED),
)


def as_markdown() -> str:
    """Render the table and its notes for docs/architectures.md."""
    numbers = {reason: number for number, reason in enumerate(NOTES, 1)}
    stages = "SFT | reward | PPO | GRPO | DPO | evaluation"
    lines = [f"| architecture | `model_type` | {stages} | prompts |", "| --- " * 9 + "|"]
    for tiny in ARCHITECTURES:
        cells = [tiny.title, f"`{tiny.model_type}`"]
        for stage in STAGES:
            reason = tiny.refused.get(stage)
            runs = reason is None or reason in (NO_EXPERT_COUNT, NOT_ALL_LINEAR)
            note = f" [{numbers[reason]}]" if reason else ""
            cells.append(("yes" if runs else "no") + note)
        cells.append("shared" if tiny.shares else "")
        lines.append("| " + " | ".join(cells).strip() + " |")
    notes = [f"{numbers[reason]}. {text}" for reason, text in NOTES.items()]
    return "\n".join([*lines, "", *notes]) + "\n"
