"""The memory that the plan of each recipe in recipes/ gives, against sums made by hand here."""

import json
import re
import shutil
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config
from trl import DPOConfig, GRPOConfig, ModelConfig, RewardConfig

from rlhf_recipes.arguments import RecipeArguments, RewardArguments, parse_recipe
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.models.loading import base_path
from rlhf_recipes.planning.plan import evaluation_plan, training_plan
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.preferences import load_prepared

pytestmark = [
    # TRL 1.16 sets `gradient_checkpointing` itself, whose name transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    # PEFT says that GPT-2's Conv1D stores its weight transposed, and goes on.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {"reward": RewardConfig, "dpo": DPOConfig, "grpo": GRPOConfig, "ppo": PPOConfig}
FLOAT, GB = 4, 1e9


@dataclass(frozen=True)
class Shape:
    """What a base's memory follows from, as its config.json on the Hub has it.

    `linears` are the linear layers of one decoder layer, each with its inputs and outputs. `others`
    are the parameters of a decoder layer outside of those products.
    """

    vocab: int
    hidden: int
    layers: int
    keys: int
    mlp: int
    linears: dict[str, tuple[int, int]]
    others: int
    embeddings: int  # with position embeddings and the last norm, without a head
    head: int  # 0 where it is the embedding
    parameters: int  # as published

    @property
    def linear(self) -> int:
        """Weights in the linear layers of the decoder."""
        return self.layers * sum(map(prod, self.linears.values()))

    @property
    def count(self) -> int:
        """Parameters of the language model."""
        return self.linear + self.layers * self.others + self.embeddings + self.head


def llama(vocab, hidden, layers, queries, keys, mlp, head, head_norms, parameters):
    linears = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, mlp),
        "up_proj": (hidden, mlp),
        "down_proj": (mlp, hidden),
    }
    others = 2 * hidden + head_norms  # two norms, and in Qwen3 those of queries and keys
    embeddings = vocab * hidden + hidden
    return Shape(
        vocab, hidden, layers, keys, mlp, linears, others, embeddings, head, parameters=parameters
    )


SMOLLM2 = llama(49152, 576, 30, 9 * 64, 3 * 64, 1536, 0, 0, 134_515_008)
SHAPES = {
    "tiny": llama(259, 32, 2, 32, 16, 64, 0, 0, 26_880),
    "demo": SMOLLM2,
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2,
    "Qwen/Qwen3-0.6B": llama(151936, 1024, 28, 2048, 1024, 3072, 0, 2 * 128, 596_049_920),
    "Qwen/Qwen3-8B": llama(
        151936, 4096, 36, 32 * 128, 8 * 128, 12288, 151936 * 4096, 2 * 128, 8_190_735_360
    ),
    "openai-community/gpt2": Shape(
        vocab=50257,
        hidden=768,
        layers=12,
        keys=768,
        mlp=3072,
        linears={
            "attn.c_attn": (768, 3 * 768),
            "attn.c_proj": (768, 768),
            "mlp.c_fc": (768, 3072),
            "mlp.c_proj": (3072, 768),
        },
        others=(3 * 768 + 768 + 3072 + 768) + 2 * (2 * 768),  # biases; two norms with biases
        embeddings=50257 * 768 + 1024 * 768 + 2 * 768,
        head=0,
        parameters=124_439_808,
    ),
}


def config_of(name):
    shape, tied = SHAPES[name], SHAPES[name].head == 0
    if name == "openai-community/gpt2":
        return GPT2Config(bos_token_id=2, eos_token_id=2)
    kind, head = (Qwen3Config, 128) if "Qwen3" in name else (LlamaConfig, 64)
    return kind(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.linears["q_proj"][1] // head,
        num_key_value_heads=shape.keys // head,
        head_dim=head,
        intermediate_size=shape.mlp,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def save_zeros(path, tensors):
    """Write a safetensors file of bfloat16 zeros that takes no space on the disk."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folder of each base: its configuration, weights of 0, and the tokenizer of `tiny`."""
    folders = {"tiny": base_path("tiny")}
    for name in SHAPES.keys() - folders.keys():
        folder = tmp_path_factory.mktemp("base")
        config = config_of(name)
        config.save_pretrained(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == SHAPES[name].parameters
        names = {n: list(p.shape) for n, p in model.named_parameters()}  # a tied head once
        save_zeros(folder / "model.safetensors", names)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(Path(base_path("tiny")) / file, folder / file)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prompts of 100 and of 1000 tokens as plain text, each with completions of 23 tokens."""
    folders = {}
    for length in (100, 1000):
        folder = tmp_path_factory.mktemp(f"prompts-{length}")
        for split in ("train", "validation"):
            rows = [
                {
                    "prompt": f"{i:03d}".ljust(length, "a"),
                    "chosen": "c" * 23,
                    "rejected": "r" * 23,
                    "source": "test",
                    "turns": 1,
                }
                for i in range(256)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text)
        (folder / "run.json").write_text("{}")
        folders[length] = folder
    return folders


def recipes(*stages):
    """All recipes of these stages whose base has a shape above."""
    paths = sorted(path for stage in stages for path in (ROOT / "recipes").rglob(f"{stage}.yaml"))
    return [path for path in paths if base_of(path) in SHAPES]


def base_of(path):
    """Base of a recipe; an evaluation's is that of the reward model beside it."""
    named = path if path.stem != "evaluate" else path.with_name("reward.yaml")
    return yaml.safe_load(named.read_text())["model_name_or_path"]


def short(path):
    return str(path.relative_to(ROOT / "recipes").with_suffix(""))


def test_every_base_of_a_recipe_has_a_shape_of_the_published_size():
    assert {base_of(path) for path in recipes(*CONFIGS)} == SHAPES.keys()
    for name, shape in SHAPES.items():
        assert shape.count == shape.parameters, name


def planned(path, bases, data):
    """The plan of a recipe's stage on prompts of 1000 tokens for Qwen3-8B, else of 100."""
    stage, name = path.stem, base_of(path)
    folder = data[1000 if name == "Qwen/Qwen3-8B" else 100]
    kinds = [RecipeArguments, RewardArguments, CONFIGS[stage], ModelConfig]
    kinds = kinds if stage in ("grpo", "ppo") else [kinds[0], *kinds[2:]]
    flags = {
        "config": path,
        "model_name_or_path": bases[name],
        "dataset_name": folder,
        "output_dir": folder / "out",
        "chat_template_kwargs": "null",  # the template of `tiny` has none
        "use_cpu": "true",
        "plan": "true",  # so that the reward model need not be there: it is like the policy then
    }
    argv = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    (recipe, *reward, training, model), settings = parse_recipe(*kinds, argv=argv)
    dataset = load_prepared(folder)
    inputs = Inputs(stage, recipe, training, model, dataset, *reward, settings=settings)
    return training_plan(inputs)


def size_of(recipe):
    """Bytes of one number of a base that is not quantized."""
    return {"bfloat16": 2, "float32": FLOAT}[recipe.get("dtype", "float32")]


def base_bytes(shape, recipe, count):
    """4 bits and one float32 per 64 weights in linear layers, the dtype elsewhere."""
    if not recipe.get("load_in_4bit"):
        return size_of(recipe) * count
    return shape.linear * (4 / 8 + FLOAT / 64) + 2 * (count - shape.linear)


def adapted(shape, recipe):
    """Inputs and outputs of each linear layer that the recipe's LoRA adapts."""
    targets = recipe["lora_target_modules"]
    if targets[0].startswith(".*"):  # a pattern of layers, with every projection of theirs
        layers = [i for i in range(shape.layers) if re.match(targets[0], f"m.layers.{i}.x_proj")]
        return len(layers) * list(shape.linears.values())
    sizes = [size for name, size in shape.linears.items() if name.split(".")[-1] in targets]
    return shape.layers * sizes


def numbers_of_roles(stage, shape, recipe):
    """Numbers in all adapters and heads, and in those that are trained.

    One LoRA is r (in + out) numbers in each layer that it adapts. A scalar head has one weight per
    hidden unit, and that of the value model a bias.
    """
    lora = sum(recipe["lora_r"] * (i + o) for i, o in adapted(shape, recipe))
    reward = lora + shape.hidden
    value = lora + shape.hidden + 1
    return {
        "reward": (reward, reward),
        "dpo": (lora, lora),
        "grpo": (lora + reward, lora),
        "ppo": (lora + value + reward, lora + value),
    }[stage]


def step_by_hand(stage, shape, recipe, longest):
    """Activations and logits of a training step."""
    size = size_of(recipe)
    completion = recipe.get("max_completion_length", 0)
    rows = recipe["per_device_train_batch_size"] * (2 if stage in ("reward", "dpo") else 1)
    layer = 6 * shape.hidden + 2 * shape.keys + 4 * shape.mlp  # saved per token, like Llama
    if recipe["activation_checkpointing"]:  # the input of every layer, and all of one layer
        activations = rows * longest * (shape.layers * shape.hidden + layer) * size
    else:
        activations = rows * longest * shape.layers * layer * size
    tokens = rows * (completion or longest)
    if stage == "ppo":  # logits, log-softmax, gradient
        return activations, 3 * FLOAT * tokens * shape.vocab
    # TRL computes them in tiles; a reward model has none.
    tile = 3 * FLOAT * min(tokens, 4096) * min(shape.vocab, 32768)
    return activations, 0 if stage == "reward" else tile


def sampling_by_hand(stage, shape, recipe, longest):
    """Keys and values of all sampled tokens, and the weights that a LoRA is merged into.

    PPO and GRPO merge into all weights but quantized ones to sample, and into float32 to score, as
    the reward stage does for its review.
    """
    size = size_of(recipe)
    rows = recipe["per_device_train_batch_size"] * recipe.get("gradient_accumulation_steps", 1)
    rollout = rows * recipe.get("num_mini_batches", 1)
    sampled = {"ppo": min(64, rollout), "grpo": rows}.get(stage, 0)
    merges = {"dpo": False, "reward": size == FLOAT}.get(stage, "load_in_4bit" not in recipe)
    return (
        sampled * longest * shape.layers * 2 * shape.keys * size,
        size * sum(map(prod, adapted(shape, recipe))) if merges else 0,
    )


@pytest.mark.parametrize("path", recipes(*CONFIGS), ids=short)
def test_the_plan_of_a_recipe_is_the_sum_by_hand(path, bases, data, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes name files from there
    stage, shape, recipe = path.stem, SHAPES[base_of(path)], yaml.safe_load(path.read_text())
    plan = planned(path, bases, data)
    # A completion of the data has 23 tokens and one that ends it.
    prompt, completion = 1000 if "8b" in short(path) else 100, 23 + 1
    longest = prompt + recipe.get("max_completion_length", completion)
    assert plan.rows["train"].longest == longest
    # The classifier has a scalar head in place of the language model's.
    count = shape.count + (shape.hidden - shape.head if stage == "reward" else 0)
    weights = base_bytes(shape, recipe, count)
    roles, trained = numbers_of_roles(stage, shape, recipe)
    activations, logits = step_by_hand(stage, shape, recipe, longest)
    cache, merged = sampling_by_hand(stage, shape, recipe, longest)
    memory = plan.memory
    assert memory.weights == pytest.approx(weights, rel=1e-5)
    assert (memory.adapters, memory.gradients) == (FLOAT * roles, FLOAT * trained)
    assert memory.optimizer == 2 * FLOAT * trained  # Adam's two averages
    assert (memory.activations, memory.logits) == (activations, logits)
    assert (memory.kv_cache, memory.merged) == (cache, merged)
    peak = weights + FLOAT * (roles + 3 * trained) + max(activations + logits, cache + merged)
    assert memory.peak == pytest.approx(peak, rel=1e-5)


def test_ppo_of_8b_by_qlora_takes_about_21_gb(bases, data):
    """By hand, in GB, with prompts of 1000 tokens and completions of 256.

    6,945,767,424 weights of 4.5 bits: 3.91. The other 1,244,967,936 in bfloat16: 2.49. LoRA is
    87,293,952 numbers, in three roles: 1.05. Gradients of two: 0.70. Adam: 1.40. 64 rows of 1256
    tokens with 36 x 2 x 1024 numbers of 2 bytes: 11.85. Nothing is merged into 4 bits.
    """
    plan = planned(ROOT / "recipes/hh-rlhf/qwen3-8b/ppo.yaml", bases, data)
    assert plan.memory.peak / GB == pytest.approx(
        3.91 + 2.49 + 1.05 + 0.70 + 1.40 + 11.85, abs=0.02
    )
    assert 21 < plan.memory.peak / GB < 22
    assert plan.memory.merged == 0


def save_adapter(folder, path, base, shape, head):
    """Write an adapter of zeros with a recipe's LoRA, the recipe itself, and a scalar head."""
    recipe = yaml.safe_load(path.read_text())
    rank, targets = recipe["lora_r"], recipe["lora_target_modules"]
    folder.mkdir()
    kind = "SEQ_CLS" if head else "CAUSAL_LM"
    one = targets[0] if targets[0].startswith(".*") else targets
    config = LoraConfig(r=rank, target_modules=one, task_type=kind, base_model_name_or_path=base)
    config.save_pretrained(folder)
    gpt2 = "attn.c_attn" in shape.linears
    tensors = {}
    for layer in range(shape.layers):
        for name, (inputs, outputs) in shape.linears.items():
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            full = (
                f"transformer.h.{layer}.{name}" if gpt2 else f"model.layers.{layer}.{block}.{name}"
            )
            wanted = name.split(".")[-1] in targets or re.fullmatch(targets[0], full)
            if wanted:
                tensors[f"base_model.model.{full}.lora_A.weight"] = [rank, inputs]
                tensors[f"base_model.model.{full}.lora_B.weight"] = [outputs, rank]
    if head:
        tensors["base_model.model.score.weight"] = [1, shape.hidden]
    save_zeros(folder / "adapter_model.safetensors", tensors)
    shutil.copy(path, folder / "recipe.yaml")
    return str(folder)


@pytest.mark.parametrize("path", recipes("evaluate"), ids=short)
def test_the_plan_of_an_evaluation_is_the_sum_by_hand(path, bases, data, tmp_path, monkeypatch):
    """Of the base as it was trained, a reward model and a policy; with three it fits in 24 GB."""
    monkeypatch.chdir(ROOT)
    name = base_of(path)
    shape, recipe = SHAPES[name], yaml.safe_load(path.read_text())
    prompt = 1000 if "8b" in short(path) else 100
    saved = {
        stage: save_adapter(
            tmp_path / stage, path.with_name(f"{stage}.yaml"), bases[name], shape, stage == "reward"
        )
        for stage in ("reward", "dpo")
    }
    flags = {
        "config": path,
        "dataset_name": data[prompt],
        "output_dir": tmp_path,
        "reward_model_path": saved["reward"],
        "models": f"dpo={saved['dpo']}",
        "chat_template_kwargs": "null",
        "plan": "true",
    }
    argv = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    (arguments,), _ = parse_recipe(EvaluationArguments, argv=argv)
    memory = evaluation_plan(arguments, read_adapters(arguments)).memory

    trained = [yaml.safe_load((tmp_path / s / "recipe.yaml").read_text()) for s in saved]
    size = size_of(trained[0])
    loras = [sum(r["lora_r"] * (i + o) for i, o in adapted(shape, r)) for r in trained]
    weights = base_bytes(shape, trained[0], shape.count)
    rows, completion = arguments.batch_size, recipe["max_completion_length"]
    cache = rows * (prompt + completion) * shape.layers * 2 * shape.keys * size
    # Log-probabilities of 256 tokens at a time, under policy and reference.
    logits = 2 * 3 * FLOAT * 256 * shape.vocab
    merges = size == FLOAT  # nothing is merged into bfloat16
    merged = merges * FLOAT * max(sum(map(prod, adapted(shape, r))) for r in trained)
    peak = weights + FLOAT * (sum(loras) + shape.hidden) + merged + max(cache, logits)
    assert memory.weights == pytest.approx(weights, rel=1e-5)
    assert memory.adapters == FLOAT * (sum(loras) + shape.hidden)
    assert (memory.kv_cache, memory.logits, memory.merged) == (cache, logits, merged)
    assert memory.peak == pytest.approx(peak, rel=1e-5)
    if name == "Qwen/Qwen3-8B":
        assert memory.peak + 2 * FLOAT * loras[1] < 24 * GB  # two more policies
