"""The run refuses what `--plan` refuses, with the same message, before weights are loaded."""

import importlib.util
import json
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from subprocess import PIPE

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from trl import (
    DPOConfig,
    DPOTrainer,
    ModelConfig,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.folders import REPLACEMENT
from rlhf_recipes.models.fingerprints import model_fingerprint
from rlhf_recipes.models.loading import (
    base_path,
    open_base,
    open_classifier,
    open_language_model,
    open_tokenizer,
)
from rlhf_recipes.models.lora import lora_config
from rlhf_recipes.ppo.tables import rollout_metrics
from rlhf_recipes.preferences import chosen_completions, load_prepared
from rlhf_recipes.roles import Roles
from rlhf_recipes.rules.values import EVALUATION_METRICS
from rlhf_recipes.runs.checkpoints import write_manifest
from tests.whole_reward_models import whole_reward_model

# TRL announces which of its keys will be removed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

TRAINING = ("sft", "reward", "dpo", "grpo", "ppo")
ONLINE = ("grpo", "ppo")
OWN_TOKENIZER = ("sft", "reward", "dpo", "grpo")  # PPO shares the reward model's

# Flags ({tmp} is a folder of broken inputs), the stages that refuse them, and their message.
REFUSED = [
    ("--use_peft false", TRAINING, "`use_peft` is false"),
    ("--learning_rate 0", TRAINING, "nothing is learned"),
    ("--lora_target_modules no_such_layer", TRAINING, "LoRA does not fit `tiny`"),
    ("--optim adamw_anyprecision", TRAINING, "`optim` is adamw_anyprecision"),
    ("--optim_args fast", TRAINING, "`optim_args` is fast"),
    ("--lr_scheduler_type cosine_with_min_lr", TRAINING, "One of min_lr or min_lr_rate"),
    ("--lr_scheduler_type warmup_stable_decay", TRAINING, "num_decay_steps"),
    ('--lr_scheduler_kwargs {{"speed":1}}', TRAINING, "`lr_scheduler_kwargs` .*speed"),
    ("--warmup_steps 100", TRAINING, "`warmup_steps` is 100, and the run has 2 steps"),
    ("--push_to_hub true", TRAINING, "could not be pushed: HF_HUB_OFFLINE is set"),
    ("--pad_token no_such_token", ("sft", "reward", "dpo"), "`pad_token` is 'no_such_token'"),
    ("--eos_token no_such_token", ("sft", "reward"), "`eos_token` is 'no_such_token'"),
    (
        "--chat_template {tmp}/raises.jinja",
        OWN_TOKENIZER,
        r"refuses a conversation of roles .'user'",
    ),
    ("--chat_template {tmp}/includes.jinja", OWN_TOKENIZER, "refuses a conversation of roles"),
    ("--chat_template {tmp}/divides.jinja", OWN_TOKENIZER, "refuses .* division by zero"),
    ("--chat_template {tmp}/empty.jinja", OWN_TOKENIZER, "without what the user says in it"),
    ("--chat_template {tmp}/constant.jinja", OWN_TOKENIZER, "without what the user says in it"),
    ("--chat_template {tmp}/no_answer.jinja", OWN_TOKENIZER, "without what the assistant says"),
    (
        "--eval_strategy steps --eval_steps 1 --save_steps 1 --load_best_model_at_end true "
        "--metric_for_best_model truth",
        ("sft", "reward", "dpo", "ppo"),
        "`metric_for_best_model` is truth, which the evaluations of the stage",
    ),
    ("--chat_template {tmp}/none.jinja", TRAINING, "none.jinja, which cannot be read"),
    ("--model_name_or_path {tmp}/cut_weights", TRAINING, "model.safetensors is damaged"),
    ("--model_name_or_path {tmp}/no_weights", TRAINING, "no_weights` has no weights"),
    ("--model_name_or_path {tmp}/broken_index", TRAINING, "does not name their files"),
    (
        "--model_name_or_path {tmp}/lacks_layer",
        TRAINING,
        "9 tensors are missing and 0 ",
    ),
    (
        "--model_name_or_path {tmp}/other_shape",
        TRAINING,
        "0 tensors are missing and 1 ",
    ),
    ("--model_name_or_path {tmp}/list_tokenizer", TRAINING, "tokenizer of .* cannot be opened"),
    ("--model_name_or_path {tmp}/cut_tokenizer", TRAINING, "tokenizer of .* cannot be opened"),
    ("--model_name_or_path {tmp}/no_config", TRAINING, "no_config"),
    ("--model_name_or_path {tmp}/cut_generation", ONLINE, "generation_config.json cannot be read"),
    ("--dataset_name {tmp}/none", (*TRAINING, "evaluate"), "is not a folder of prepared data"),
    ("--max_completion_length 8000", ONLINE, "and the base takes 2048"),
    ("--fsdp full_shard", ("ppo",), "PPO does not run under DeepSpeed or FSDP"),
    ("--per_device_train_batch_size 64", ONLINE, "there is nothing to train on"),
    ("--max_length 3", ("sft", "reward", "dpo"), "`max_length`"),
    ("--reward_model_path {tmp}/policy", ONLINE, "without a scalar head"),
    ("--reward_model_path {tmp}/three_labels", ONLINE, "gives 3 numbers per text"),
    ("--reward_model_path {tmp}/no_score", ONLINE, "is LlamaForCausalLM in its config.json"),
    ("--reward_model_path {tmp}/no_head", ONLINE, "1 tensors are missing .* `score.weight`"),
    ("--reward_model_path {tmp}/no_tokenizer", ONLINE, "no_tokenizer` has no tokenizer"),
    ("--reward_model_path {tmp}/no_template", ONLINE, "neither a chat template nor a separator"),
    ("--reward_model_path {tmp}/short", ONLINE, "alone has more than the 8 tokens that the reward"),
    ("--reward_funcs {tmp}/rule.py:none", ONLINE, "has no function `none`"),
    ("--reward_funcs {tmp}/raises.py:rule", ONLINE, "raises.py cannot be imported"),
    ("--reward_funcs {tmp}/rule.py:rule --reward_weights 1", ONLINE, "has 1 weights, and there"),
    ("--reward_funcs {tmp}/rule.py:reward_model", ONLINE, "Two reward functions have one name"),
    ("--sft_model_path {tmp}/reward", ("dpo", *ONLINE), "{tmp}/reward holds a reward"),
    ("--sft_model_path {tmp}/policy", ("dpo", *ONLINE), "`lora_r` is 4 and 2"),
    ("--gold_func {tmp}/rule.py:none", ("evaluate",), "has no function `none`"),
    ("--judges chat=http://localhost/v1", ("evaluate",), "names no model"),
    ("--judges other={tmp}/policy", ("evaluate",), "without a scalar head"),
    ("--judge_parameters {tmp}/rule.py", ("evaluate",), "cannot be read as a JSON file"),
    ("--gold_model_path {tmp}/reward", ("evaluate",), "A proxy that judges itself"),
    ("--max_completion_length 8000", ("evaluate",), "and the base takes 2048"),
    ("--models it={tmp}/none", ("evaluate",), "holds no adapter"),
    (
        "--reward_model_path {tmp}/cut_generation_reward --models it={tmp}/cut_generation_policy",
        ("evaluate",),
        "generation_config.json cannot be read",
    ),
    (
        "--reward_model_path {tmp}/lacks_layer_reward --models it={tmp}/lacks_layer_policy",
        ("evaluate",),
        "9 tensors are missing",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared data, two adapters, and broken inputs of every kind."""
    tmp = tmp_path_factory.mktemp("inputs")
    (tmp / "data").mkdir()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No, never."}],
            "source": "test",
            "turns": 1,
        }
        for i in range(16)
    ]
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp / "data" / f"{split}.jsonl").write_text(text)
    (tmp / "data" / "run.json").write_text("{}")
    roles = Roles(open_base("tiny"))
    for name in ("policy", "reward"):
        roles.attach(name, LoraConfig(r=2, target_modules=["q_proj"]), trainable=False)
    roles.attach_head("reward", open_base("tiny").lm_head.weight[:1].clone(), None, trainable=False)
    for name in ("policy", "reward"):
        roles.save_role(name, tmp / name)
        open_tokenizer("tiny").save_pretrained(tmp / name)
    (tmp / "raises.jinja").write_text("{{ raise_exception('no users here') }}")
    (tmp / "divides.jinja").write_text("{{ 1 / 0 }}")
    (tmp / "empty.jinja").write_text("")
    (tmp / "constant.jinja").write_text("user: {{ message }} assistant:")
    (tmp / "no_answer.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content | trim }}{% endif %}"
        "{% endfor %}"
    )
    (tmp / "includes.jinja").write_text("{% include 'other.jinja' %}")
    (tmp / "raises.py").write_text("import no_such_module\n")
    (tmp / "rule.py").write_text(
        "def rule(prompts, completions):\n    return [0.0 for _ in completions]\n\n"
        "reward_model = rule\n"
    )
    for name, file in (
        ("cut_weights", "model.safetensors"),
        ("cut_tokenizer", "tokenizer.json"),
        ("no_config", "config.json"),
    ):
        shutil.copytree(base_path("tiny"), tmp / name)
        whole = (tmp / name / file).read_bytes()
        (tmp / name / file).write_bytes(whole[: len(whole) // 2])
    break_weights(tmp)
    save_whole_reward_models(tmp)
    return tmp


def save_whole_reward_models(tmp):
    """Write a whole reward model, and some that cannot score the data."""
    whole_reward_model(tmp / "whole")
    whole_reward_model(tmp / "three_labels", num_labels=3)
    whole_reward_model(tmp / "no_template", template=None)
    whole_reward_model(tmp / "short", max_position_embeddings=8)
    shutil.copytree(base_path("tiny"), tmp / "no_score")
    whole_reward_model(tmp / "no_tokenizer", "deberta-v2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp / "no_tokenizer" / name).unlink()
    weights = load_file(whole_reward_model(tmp / "no_head") + "/model.safetensors")
    del weights["score.weight"]
    save_file(weights, tmp / "no_head" / "model.safetensors", {"format": "pt"})


def break_weights(tmp):
    """Write copies of the base whose files can be read but lack what a base needs."""
    weights = load_file(Path(base_path("tiny")) / "model.safetensors")
    queries = "model.layers.0.self_attn.q_proj.weight"
    for name, tensors in (
        ("no_weights", {}),
        ("broken_index", {}),
        ("list_tokenizer", weights),
        ("lacks_layer", {n: w for n, w in weights.items() if "layers.1." not in n}),
        ("other_shape", {**weights, queries: weights[queries][:16].clone()}),
    ):
        shutil.copytree(base_path("tiny"), tmp / name)
        (tmp / name / "model.safetensors").unlink()
        if tensors:
            save_file(tensors, tmp / name / "model.safetensors", {"format": "pt"})
    (tmp / "broken_index" / "model.safetensors.index.json").write_text("{")
    (tmp / "list_tokenizer" / "tokenizer.json").write_text("[1, 2]")
    shutil.copytree(base_path("tiny"), tmp / "cut_generation")
    (tmp / "cut_generation" / "generation_config.json").write_text('{"eos_token_id": [1,')
    for role, base in product(("reward", "policy"), ("lacks_layer", "cut_generation")):
        folder = tmp / f"{base}_{role}"
        shutil.copytree(tmp / role, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(tmp / base)
        (folder / "adapter_config.json").write_text(json.dumps(config))


def start(root, folder, tmp_path, stage, flags, monkeypatch):
    """Run the script of a stage in this process with the recipe of recipes/tiny."""
    spec = importlib.util.spec_from_file_location(f"script_{stage}", root / f"recipes/{stage}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    argv = [stage, "--config", str(root / f"recipes/tiny/{stage}.yaml")]
    argv += ["--output_dir", str(tmp_path / "out")]
    if stage != "prepare_data":
        argv += ["--dataset_name", str(folder / "data")]
    if stage in (*ONLINE, "evaluate"):
        argv += ["--reward_model_path", str(folder / "reward")]
    if stage == "evaluate":
        argv += ["--models", f"dpo={folder / 'policy'}"]
    monkeypatch.setattr(sys, "argv", [*argv, *flags])
    script.main()


@pytest.fixture
def no_weights(monkeypatch, root):
    monkeypatch.chdir(root)

    load = vars(PreTrainedModel)["from_pretrained"].__func__

    def refuse(cls, *names, **keywords):
        assert keywords.get("device_map") == {"": "meta"}, "weights are loaded"
        return load(cls, *names, **keywords)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(refuse))


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("flags", "stages", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_plan_and_run_refuse_with_the_same_message(
    root, folder, tmp_path, monkeypatch, flags, stages, message
):
    arguments = flags.format(tmp=folder).split()
    for stage in stages:
        sentences = []
        for plan in ([], ["--plan"]):
            with pytest.raises(RecipeError, match=message.format(tmp=folder)) as refused:
                start(root, folder, tmp_path, stage, [*arguments, *plan], monkeypatch)
            sentences.append(str(refused.value))
        assert sentences[0] == sentences[1]
        assert not (tmp_path / "out").exists()


def times_of(folder):
    """Return when each file of a folder was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def check_both_refuse(message, root, folder, tmp_path, stage, flags, monkeypatch):
    """Check that plan and run refuse with the same message and change nothing in the folder."""
    before = times_of(tmp_path)
    sentences = []
    for plan in (["--plan"], []):
        with pytest.raises(RecipeError, match=message) as refused:
            start(root, folder, tmp_path, stage, [*flags, *plan], monkeypatch)
        sentences.append(str(refused.value))
        if plan:
            assert times_of(tmp_path) == before
    assert sentences[0] == sentences[1]


RECORDS = {
    "evaluate": "results/evaluation_results.json",
    "prepare_data": "data/run.json",
    **dict.fromkeys(TRAINING, "run.json"),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", RECORDS)
def test_plan_and_run_refuse_a_folder_that_is_finished(root, folder, tmp_path, monkeypatch, stage):
    record = tmp_path / "out" / RECORDS[stage]
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    message = "finished (run|data|evaluation)"
    check_both_refuse(message, root, folder, tmp_path, stage, [], monkeypatch)
    before = times_of(tmp_path)
    start(root, folder, tmp_path, stage, ["--overwrite", "--plan"], monkeypatch)
    assert times_of(tmp_path) == before


HOLD = """
import sys
from pathlib import Path
from rlhf_recipes.folders import hold
hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", RECORDS)
def test_plan_and_run_refuse_a_folder_that_is_written(root, folder, tmp_path, monkeypatch, stage):
    written = tmp_path / "out" / ("samples" if stage == "evaluate" else "")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(written)], stdin=PIPE, stdout=PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"is being written by process {holder.pid} on "
        check_both_refuse(message, root, folder, tmp_path, stage, [], monkeypatch)
        holder.stdin.close()
    start(root, folder, tmp_path, stage, ["--plan"], monkeypatch)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", TRAINING)
def test_plan_and_run_refuse_checkpoints_of_other_settings(
    root, folder, tmp_path, monkeypatch, stage
):
    checkpoint = tmp_path / "out" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 1}')
    (checkpoint / "optimizer.pt").write_bytes(b"")
    write_manifest(checkpoint)
    (tmp_path / "out" / "recipe.yaml").write_text("learning_rate: 0.5")
    message = "`learning_rate`: 0.5 there"
    check_both_refuse(message, root, folder, tmp_path, stage, [], monkeypatch)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", TRAINING)
def test_plan_and_run_refuse_a_finished_run_that_was_cut_off_while_it_was_put_in_place(
    root, folder, tmp_path, monkeypatch, stage
):
    new = tmp_path / "out" / REPLACEMENT
    new.mkdir(parents=True)
    (new / "run.json").write_text("{}")
    (new / "recipe.yaml").write_text("learning_rate: 0.5")
    message = "already contains a finished run"
    check_both_refuse(message, root, folder, tmp_path, stage, [], monkeypatch)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", ONLINE)
def test_a_plan_may_come_before_its_reward_model_and_a_run_may_not(
    root, folder, tmp_path, monkeypatch, stage
):
    flags = ["--reward_model_path", str(folder)]
    start(root, folder, tmp_path, stage, [*flags, "--plan"], monkeypatch)
    with pytest.raises(RecipeError, match="holds no adapter"):
        start(root, folder, tmp_path, stage, flags, monkeypatch)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("stage", [*TRAINING, "evaluate"])
def test_a_recipe_that_works_is_planned_and_nothing_is_written(
    root, folder, tmp_path, monkeypatch, capsys, stage
):
    start(root, folder, tmp_path, stage, ["--plan"], monkeypatch)
    assert f"stage             {stage}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_weights")
def test_loading_weights_would_be_noticed():
    with pytest.raises(AssertionError, match="weights are loaded"):
        open_base("tiny")


@pytest.mark.parametrize("name", ["q_proj", r".*\.1\..*q_proj"])
def test_a_single_name_of_a_layer_is_a_name_and_a_pattern_a_pattern(
    root, folder, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(root)
    flags = ["--use_cpu", "--lora_target_modules", name]
    start(root, folder, tmp_path, "dpo", flags, monkeypatch)
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {weight.split(".")[4] for weight in weights} == (
        {"0", "1"} if name == "q_proj" else {"1"}
    )
    assert {weight.split(".")[6] for weight in weights} == {"q_proj"}
    again = ["--config", f"{tmp_path}/out/recipe.yaml", "--output_dir", f"{tmp_path}/2", "--plan"]
    start(root, folder, tmp_path, "dpo", again, monkeypatch)


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        (
            "reward",
            {
                "used": 10,
                "cut": 0,
                "too_long": 6,
                "identical": 0,
                "longest": 42,
                "special_tokens": 0,
            },
        ),
        (
            "sft",
            {
                "used": 16,
                "cut": 0,
                "too_long": 0,
                "identical": 0,
                "longest": 37,
                "special_tokens": 0,
            },
        ),
        (
            "dpo",
            {
                "used": 16,
                "cut": 6,
                "too_long": 0,
                "identical": 0,
                "longest": 42,
                "special_tokens": 0,
            },
        ),
    ],
)
def test_the_record_of_a_run_counts_the_rows_that_were_used_truncated_and_dropped(
    root, folder, tmp_path, monkeypatch, stage, counts
):
    """Six of the questions have a number of two digits, two tokens, and so 43 tokens in all."""
    monkeypatch.chdir(root)
    start(root, folder, tmp_path, stage, ["--use_cpu", "--max_length", "42"], monkeypatch)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    counts = {**counts, "special_tokens": 0}
    assert record["rows"] == {"train": counts, "validation": counts}


@pytest.mark.parametrize("stage", ONLINE)
def test_a_run_against_a_whole_reward_model_records_which(
    root, folder, tmp_path, monkeypatch, capsys, stage
):
    monkeypatch.chdir(root)
    whole = folder / "whole"
    start(
        root, folder, tmp_path, stage, ["--use_cpu", "--reward_model_path", str(whole)], monkeypatch
    )
    note = f"The reward model `{whole}` (llama, float32) is loaded apart."
    assert note in " ".join(capsys.readouterr().out.split())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["recipe"]["reward_model_path"] == str(whole)
    assert record["inputs"]["reward_model_path"] == model_fingerprint(whole)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| reward model | whole |" in card
    assert f"| reward model's commit or fingerprint | {model_fingerprint(whole)} |" in card


@pytest.mark.parametrize("stage", ONLINE)
def test_a_reward_function_that_gives_no_number_ends_the_training(
    root, folder, tmp_path, monkeypatch, stage
):
    monkeypatch.chdir(root)
    (tmp_path / "rule.py").write_text(
        "def rule(prompts, completions):\n    return [float('nan') for _ in completions]\n"
    )
    flags = ["--reward_funcs", f"{tmp_path}/rule.py:rule", "--use_cpu"]
    with pytest.raises(RecipeError, match="reward function `rule` returned nan"):
        start(root, folder, tmp_path, stage, flags, monkeypatch)


@pytest.mark.parametrize(
    ("stage", "trainer", "config"),
    [
        ("sft", SFTTrainer, SFTConfig),
        ("reward", RewardTrainer, RewardConfig),
        ("dpo", DPOTrainer, DPOConfig),
    ],
)
def test_the_metrics_that_can_select_a_checkpoint_are_measured(
    folder, tmp_path, stage, trainer, config
):
    model = ModelConfig(
        "tiny",
        use_peft=True,
        lora_target_modules=["q_proj", "v_proj"],
        lora_task_type="SEQ_CLS" if stage == "reward" else "CAUSAL_LM",
    )
    rows = load_prepared(folder / "data")["validation"]
    if stage == "sft":
        rows = chosen_completions(rows, range(len(rows)))
    evaluated = trainer(
        model=open_classifier(model, 0) if stage == "reward" else open_language_model(model),
        args=config(str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=open_tokenizer("tiny"),
        peft_config=lora_config(model),
    )
    assert {f"eval_{name}" for name in EVALUATION_METRICS[stage]} <= evaluated.evaluate().keys()


def test_the_metrics_that_can_select_a_checkpoint_of_ppo_are_measured():
    columns = ("kl", "entropy", "effective_score", "score", "length", "finished")
    functions = {"rewards/a": [1.0], "rewards/b": [2.0]}
    metrics = rollout_metrics({name: [1.0] for name in columns} | functions, 0.1)
    assert {*EVALUATION_METRICS["ppo"]} - {"rewards/..."} <= metrics.keys()
    assert functions.keys() <= metrics.keys()
