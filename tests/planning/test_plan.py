import json
from types import SimpleNamespace

import psutil
import pytest
from accelerate.data_loader import BatchSamplerShard
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from torch.utils.data import BatchSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    ModelConfig,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    get_peft_config,
)

from rlhf_recipes.arguments import RecipeArguments, RewardArguments, StartArguments
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.provenance import read_adapters
from rlhf_recipes.inputs import Inputs
from rlhf_recipes.machine import DeviceMemory, device_memory
from rlhf_recipes.models.loading import base_path, open_base, open_tokenizer
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.models.starting import open_policy
from rlhf_recipes.planning.plan import evaluation_plan, fits_text, training_plan
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.trainer import PPOTrainer
from rlhf_recipes.preferences import chosen_completions, load_prepared, unique_prompts
from rlhf_recipes.rewards import RewardRole
from rlhf_recipes.roles import Roles
from rlhf_recipes.steps import micro_batches

pytestmark = [
    # TRL 1.16 sets `gradient_checkpointing` itself, whose name transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated"),
    # torch's DataLoader says so on a machine without a GPU; pinning is transformers' default.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
]

CONFIGS = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
    "ppo": PPOConfig,
}


def message(role, content):
    return [{"role": role, "content": content}]


def planned(*inputs):
    return training_plan(Inputs(*inputs))


@pytest.fixture
def data(tmp_path):
    """Prompt i has i + 1 letters, its completions 10 and 5; every tenth chosen one has 200."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 23), ("validation", 11)):
        rows = [
            {
                "prompt": message("user", chr(ord("a") + i) * (i + 1)),
                "chosen": message("assistant", "y" * (200 if i % 10 == 9 else 10)),
                "rejected": message("assistant", "n" * 5),
                "source": "test",
                "turns": 1,
            }
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    (folder / "run.json").write_text("{}")
    return load_prepared(folder)


@pytest.fixture
def reward_model(tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(base_path("tiny"), num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear")
    get_peft_model(base, config).save_pretrained(tmp_path / "reward")
    open_tokenizer("tiny").save_pretrained(tmp_path / "reward")
    return str(tmp_path / "reward")


def arguments(stage, tmp_path, **keywords):
    return CONFIGS[stage](
        output_dir=str(tmp_path / "out" / "models" / f"{stage}_model"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **keywords,
    )


PAIRS = {"num_generations": 2}


def write_start(folder):
    """Write an adapter with the LoRA of `lora`, as SFT leaves it."""
    roles = Roles(open_base("tiny"))
    roles.attach("sft", lora_config(lora("sft")), trainable=False)
    roles.save_role("sft", folder)
    return str(folder)


@pytest.mark.parametrize(
    ("stage", "keywords"),
    [("dpo", {}), ("grpo", {"beta": 0.1, **PAIRS}), ("grpo", {"beta": 0.0, **PAIRS}), ("ppo", {})],
)
def test_a_frozen_copy_of_the_start_is_counted(data, reward_model, tmp_path, stage, keywords):
    start = StartArguments(write_start(tmp_path / "sft"))
    if stage == "ppo":
        keywords = {"sft_model_path": start.sft_model_path}
    training = arguments(stage, tmp_path, per_device_train_batch_size=4, **keywords)
    inputs = Inputs(
        *(stage, RecipeArguments(), training, lora(stage), data, scores(reward_model)),
        starting=None if stage == "ppo" else start,
    )
    plan = training_plan(inputs)
    policy, config = open_policy(inputs.model, inputs.start, dropout=False)
    trainer = trainer_of(
        *(stage, training, data, reward_model, []),
        **({} if stage == "ppo" else {"model": policy, "peft_config": config}),
    )
    counted = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    assert plan.parameters.total == sum(size for size, _ in counted)
    assert plan.parameters.trainable == sum(size for size, trained in counted if trained)


def lora(stage, **keywords):
    return ModelConfig(
        model_name_or_path="tiny",
        use_peft=True,
        lora_r=2,
        lora_target_modules=["all-linear"],
        lora_task_type="SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
        **keywords,
    )


def scores(reward_model):
    return RewardArguments(reward_model_path=reward_model)


def trainer_of(stage, training, data, reward_model, calls=None, **changes):
    shared = {
        "args": training,
        "processing_class": open_tokenizer("tiny"),
        "peft_config": get_peft_config(lora(stage)),
        **({} if stage == "ppo" else {"model": base_path("tiny")}),
        **changes,
    }
    if stage == "ppo":
        return PPOTrainer(
            model=open_base("tiny"),
            reward_model_path=reward_model,
            train_dataset=unique_prompts(data["train"]),
            **shared,
        )
    if stage == "grpo":

        def reward(completions, **_):
            calls.append(len(completions))
            return [0.0] * len(completions)

        trainer = GRPOTrainer(
            reward_funcs=reward,
            train_dataset=unique_prompts(data["train"]),
            **shared,
        )
        if reward_model is not None:
            role = RewardRole(reward_model)
            role.attach(trainer.model)
            trainer.model.heads = role.reward_model.roles.heads  # to be counted with the model
        return trainer
    kind = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": DPOTrainer}[stage]
    if stage == "sft":
        data = {name: chosen_completions(split, range(len(split))) for name, split in data.items()}
    return kind(
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        **shared,
    )


@pytest.mark.parametrize(
    ("stage", "keywords"),
    [
        ("reward", {"per_device_train_batch_size": 4, "max_length": 44}),
        ("reward", {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}),
        ("sft", {"per_device_train_batch_size": 4, "max_length": 44}),
        ("sft", {"per_device_train_batch_size": 3, "max_length": 32, "num_train_epochs": 2}),
        ("dpo", {"per_device_train_batch_size": 4, "max_length": 32, "num_train_epochs": 2.5}),
        ("dpo", {"per_device_train_batch_size": 4, "dataloader_drop_last": True}),
        ("dpo", {"per_device_train_batch_size": 4, "max_steps": 3}),
        ("grpo", {"per_device_train_batch_size": 4, "num_generations": 2}),
        (
            "grpo",
            {
                "per_device_train_batch_size": 4,
                "num_generations": 2,
                "steps_per_generation": 3,
                "gradient_accumulation_steps": 2,
                "num_iterations": 2,
                "num_train_epochs": 1.5,
            },
        ),
        ("ppo", {"per_device_train_batch_size": 4}),
        (
            "ppo",
            {
                "per_device_train_batch_size": 2,
                "num_mini_batches": 2,
                "gradient_accumulation_steps": 2,
                "num_ppo_epochs": 3,
                "num_train_epochs": 2,
            },
        ),
        ("ppo", {"per_device_train_batch_size": 2, "total_episodes": 13}),
    ],
)
def test_steps_rows_and_parameters_are_those_of_the_trainer(
    data, reward_model, tmp_path, stage, keywords
):
    training = arguments(stage, tmp_path, **keywords)
    plan = planned(stage, RecipeArguments(), training, lora(stage), data, scores(reward_model))
    trainer = trainer_of(stage, training, data, reward_model, calls=[])
    loader = trainer.get_train_dataloader()
    assert plan.steps == trainer.set_initial_training_values(training, loader)[6]
    assert plan.rows["train"].used == len(trainer.train_dataset)
    if trainer.eval_dataset is not None:
        assert plan.rows["validation"].used == len(trainer.eval_dataset)
    counted = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    assert plan.parameters.total == sum(size for size, _ in counted)
    assert plan.parameters.trainable == sum(size for size, trained in counted if trained)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_train_epochs": 1},
        {"max_steps": 4, "steps_per_generation": 3, "num_iterations": 2},
        {"max_steps": 7, "gradient_accumulation_steps": 2, "steps_per_generation": 1},
    ],
)
def test_completions_are_those_that_grpo_samples(data, tmp_path, keywords):
    data = {"train": data["train"].select(range(7))}
    training = arguments(
        "grpo",
        tmp_path,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=3,
        **keywords,
    )
    plan = planned("grpo", RecipeArguments(), training, lora("grpo"), data)
    calls: list[int] = []
    trainer_of("grpo", training, data, None, calls).train()
    assert plan.completions == sum(calls)
    assert plan.generated_tokens == 3 * sum(calls)


@pytest.mark.parametrize("keywords", [{"num_train_epochs": 1}, {"max_steps": 5}])
def test_completions_are_those_that_ppo_samples(
    data, reward_model, tmp_path, monkeypatch, keywords
):
    data = {"train": data["train"].select(range(9))}
    training = arguments(
        "ppo",
        tmp_path,
        per_device_train_batch_size=2,
        num_mini_batches=2,
        num_ppo_epochs=2,
        max_completion_length=3,
        log_completions=False,
        **keywords,
    )
    plan = planned("ppo", RecipeArguments(), training, lora("ppo"), data)
    trainer = trainer_of("ppo", training, data, reward_model)
    collect, sampled = trainer.worker.collect, []

    def counted(prompts, *rest):
        sampled.append(len(prompts))
        return collect(prompts, *rest)

    monkeypatch.setattr(trainer.worker, "collect", counted)
    trainer.train()
    assert trainer.state.global_step == plan.steps
    assert plan.completions == sum(sampled)


@pytest.mark.parametrize("rows", [5, 6, 7, 12, 13, 24, 25])
@pytest.mark.parametrize("drop_last", [False, True])
def test_rows_are_divided_among_processes_as_accelerate_does(rows, drop_last):
    training = SimpleNamespace(train_batch_size=3, world_size=2, dataloader_drop_last=drop_last)
    shard = BatchSamplerShard(BatchSampler(range(rows), 3, drop_last), num_processes=2)
    if len(shard) == 0:
        with pytest.raises(RecipeError, match=f"There are {rows} training rows, .* takes 6"):
            micro_batches("dpo", rows, training)
    else:
        assert micro_batches("dpo", rows, training) == len(shard)


def test_the_reward_stage_drops_pairs_with_a_long_completion(data, tmp_path):
    # A completion of 200 letters is in 2 of 23 training rows and 1 of 11 validation rows.
    training = arguments("reward", tmp_path, max_length=150)
    plan = planned("reward", RecipeArguments(), training, lora("reward"), data)
    assert {s: (r.used, r.too_long) for s, r in plan.rows.items()} == {
        "train": (21, 2),
        "validation": (10, 1),
    }
    assert plan.rows["train"].longest <= 150


def test_dpo_truncates_a_long_completion_and_keeps_the_pair(data, tmp_path):
    training = arguments("dpo", tmp_path, max_length=150)
    rows = planned("dpo", RecipeArguments(), training, lora("dpo"), data).rows["train"]
    assert (rows.used, rows.cut, rows.too_long, rows.longest) == (23, 2, 0, 150)


def test_the_longest_row_of_ppo_is_a_prompt_and_a_whole_completion(data, tmp_path):
    training = arguments("ppo", tmp_path, per_device_train_batch_size=2, max_completion_length=9)
    rows = planned("ppo", RecipeArguments(), training, lora("ppo"), data).rows
    # The longest prompt has 23 letters. Around them: <|im_start|> and `user`, a line break,
    # <|im_end|> and a line break, <|im_start|> and `assistant`, a line break.
    assert rows["train"].longest == 23 + (1 + 4 + 1) + 2 + (1 + 9 + 1) + 9


def evaluating(data, tmp_path, **keywords):
    """Inputs of PPO with evaluations on the last two prompts, those of 22 and 23 letters."""
    settings = {"per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 1}
    training = arguments("ppo", tmp_path, num_eval_prompts=2, **settings, **keywords)
    return Inputs("ppo", RecipeArguments(), training, lora("ppo"), data)


def test_prompts_that_ppo_evaluates_on_are_counted_separately(data, tmp_path):
    rows = training_plan(evaluating(data, tmp_path, max_completion_length=9)).rows
    counted = {split: (r.used, r.longest) for split, r in rows.items()}
    assert counted == {"train": (21, 21 + 28), "evaluation": (2, 23 + 28)}


def test_prompts_that_ppo_evaluates_on_must_fit_the_base_too(data, tmp_path):
    # 2048 positions hold 19 tokens of template, 21 letters and 2008 more, and no 22 letters.
    with pytest.raises(RecipeError, match="The longest evaluation row has 2050 tokens"):
        training_plan(evaluating(data, tmp_path, max_completion_length=2008))


def test_every_process_needs_a_prompt_to_evaluate_on(data, tmp_path, monkeypatch):
    inputs = evaluating(data, tmp_path)
    monkeypatch.setattr(PPOConfig, "world_size", 3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="There are 2 prompts to evaluate on and 3 processes"):
        training_plan(inputs)


def test_a_repeated_prompt_is_sampled_on_once(data, tmp_path):
    twice = {"train": concatenate_datasets([data["train"], data["train"]])}
    for stage in ("grpo", "ppo"):
        training = arguments(stage, tmp_path)
        plan = planned(stage, RecipeArguments(), training, lora(stage), twice)
        assert plan.rows["train"].used == 23


def test_data_without_a_usable_row_is_refused(data, tmp_path):
    training = arguments("reward", tmp_path, max_length=5)
    with pytest.raises(
        RecipeError, match="`max_length` is 5 tokens, and none of 23 train pairs can be used"
    ):
        planned("reward", RecipeArguments(), training, lora("reward"), data)
    training = arguments("ppo", tmp_path, per_device_train_batch_size=24)
    with pytest.raises(RecipeError, match=r"There are 23 training rows, .* takes 24"):
        planned("ppo", RecipeArguments(), training, lora("ppo"), data)


@pytest.mark.parametrize("stage", ["dpo", "ppo"])
def test_a_plan_warns_of_special_tokens_in_the_data(data, tmp_path, stage):
    def marked(row):
        return {"prompt": message("user", f"{row['prompt'][0]['content']}<|im_end|>")}

    train = data["train"]
    some = concatenate_datasets([train.select(range(20)), train.select(range(20, 23)).map(marked)])
    data = {"train": some, "validation": data["validation"]}
    plan = planned(stage, RecipeArguments(), arguments(stage, tmp_path), lora(stage), data)
    assert "Warning: 3 train rows contain a special token" in str(plan)
    assert "<|im_end|> in row 21" in " ".join(str(plan).split())


def test_planning_writes_nothing(data, reward_model, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    for stage in CONFIGS:
        training = arguments(stage, tmp_path)
        planned(stage, RecipeArguments(), training, lora(stage), data, scores(reward_model))
    assert sorted(tmp_path.rglob("*")) == before


def test_memory_grows_with_what_it_is_made_of(data, tmp_path):
    def memory(stage, model=None, reward=None, **keywords):
        training = arguments(stage, tmp_path, **keywords)
        plan = planned(stage, RecipeArguments(), training, model or lora(stage), data, reward)
        return plan.memory

    small, large = (memory("dpo", per_device_train_batch_size=n) for n in (2, 4))
    assert large.activations == 2 * small.activations
    assert large.logits == 2 * small.logits
    assert (large.weights, large.optimizer) == (small.weights, small.optimizer)
    halved = memory("dpo", lora("dpo", dtype="bfloat16"), per_device_train_batch_size=2)
    assert 2 * halved.weights == small.weights
    assert memory("reward").logits == 0
    assert memory("grpo").weights == small.weights  # the reward model shares the policy's base
    assert 0 < memory("grpo").merged == memory("reward").merged
    assert memory("dpo").merged == memory("reward", lora("reward", dtype="bfloat16")).merged == 0
    # 4 rows for 3 steps of accumulation are sampled together.
    sampled = memory("grpo", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    assert sampled.kv_cache == 2 * memory("grpo", per_device_train_batch_size=8).kv_cache
    for stage in ("ppo", "grpo"):
        low = lora(stage, dtype="bfloat16")
        assert 0 < 2 * memory(stage, low).merged == memory(stage).merged
        functions = ["recipes/demo/plain_english.py:reading_ease"]
        unmerged = RewardArguments(reward_funcs=functions, merge_for_sampling=False)
        assert memory(stage, low, unmerged).merged == 0
        assert memory(stage, lora(stage, load_in_4bit=True)).merged == 0


def test_the_text_fits_80_columns_and_calls_memory_an_estimate(data, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "of nobody")
    memory = DeviceMemory(8_000_000_000, "this machine")
    monkeypatch.setattr("rlhf_recipes.planning.plan.device_memory", lambda: memory)
    training = arguments(
        "reward",
        tmp_path / ("long" * 30),
        push_to_hub=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_length=150,
    )
    plan = planned("reward", RecipeArguments(), training, lora("reward"), data)
    lines = str(plan).splitlines()
    assert max(len(line) for line in lines) <= 80
    # The longest row: 23 letters with <|im_start|>, `user`, a line break, <|im_end|>, a line break
    # (8), and 10 letters with the same of `assistant` (13).
    # 21 pairs, 6 per step: four steps per epoch, three epochs.
    for line in (
        "train rows        21, up to 54 tokens",
        "                  - 2 dropped: too long for max_length",
        "effective batch   6 = 2 per device x 3 accumulated x 1 process",
        "optimizer steps   12",
        "memory            estimate per process, without sharding",
        "                  fits into the 8.0 GB of this machine",
        "pushed            to out-reward",
    ):
        assert line in lines


def test_a_plan_says_whether_its_peak_fits():
    device = DeviceMemory(24_000_000_000, "this machine")
    assert fits_text(24_000_000_000, device) == "fits into the 24.0 GB of this machine"
    assert fits_text(24_000_000_001, device) == "does not fit into the 24.0 GB of this machine"


def test_processes_divide_the_memory_of_a_machine(monkeypatch):
    alone = device_memory()
    assert 0 < alone.size <= psutil.virtual_memory().total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert device_memory() == (alone.size // 2, "each of 2 processes")


def test_an_evaluation_samples_every_model_on_the_same_prompts(data, reward_model, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(base_path("tiny"))
    config = LoraConfig(r=3, target_modules="all-linear")
    get_peft_model(base, config).save_pretrained(tmp_path / "dpo")
    settings = {
        "output_dir": str(tmp_path),
        "dataset_name": str(tmp_path / "data"),
        "reward_model_path": reward_model,
        "models": [f"dpo={tmp_path / 'dpo'}"],
        "eval_prompts": 7,
        "samples_per_prompt": 2,
        "max_completion_length": 5,
    }
    arguments = EvaluationArguments(**settings)
    plan = evaluation_plan(arguments, read_adapters(arguments))
    # base, dpo and control; seven prompts; two samples each.
    assert plan.completions == 3 * 7 * 2
    assert plan.generated_tokens == 3 * 7 * 2 * 5
    assert (plan.batch, plan.steps, plan.parameters.trainable) == (None, 0, 0)
    assert "optimizer steps" not in str(plan)
    assert "completions       42" in str(plan)
    # Five samples of the base per prompt, two of each of the other two models.
    arguments = EvaluationArguments(**settings, best_of_n=5)
    more = evaluation_plan(arguments, read_adapters(arguments))
    assert more.completions == 7 * (5 + 2 + 2)


def test_a_plan_is_a_value(data, tmp_path):
    training = arguments("dpo", tmp_path)
    first, second = (
        planned("dpo", RecipeArguments(), training, lora("dpo"), data) for _ in range(2)
    )
    assert first == second
    assert first.batch == (training.per_device_train_batch_size, 1, 1)
