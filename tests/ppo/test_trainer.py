import json
import shutil
from pathlib import Path
from string import ascii_lowercase

import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.ppo.attaching import POLICY, VALUE
from rlhf_recipes.ppo.config import PPOConfig
from tests.ppo.conftest import PROMPTS, UPPER, make_trainer, weights


def test_before_the_first_step_the_policy_is_the_reference(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder)
    ppo.train()
    first = ppo.state.log_history[0]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)  # the sampler's rounding
    assert first["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert first["policy/clipfrac_avg"] == 0.0
    assert first["objective/entropy"] > 0


def test_logps_of_the_first_rollout_are_the_references_to_the_last_bit(tmp_path, reward_folder):
    worker = make_trainer(tmp_path, reward_folder).worker
    episodes = worker.collect(PROMPTS["prompt"][:4], seed=1).episodes
    outputs = worker.run_roles(
        episodes.input_ids, episodes.attention_mask, episodes.completion_mask
    )
    assert torch.equal(outputs.logps, outputs.ref_logps)


def test_the_sampler_knows_log_probabilities_and_entropies_of_a_training_pass(
    tmp_path, reward_folder
):
    """So PPO computes them again only where precision is lower than float32."""
    worker = make_trainer(tmp_path, reward_folder, num_generations=2, temperature=0.7).worker
    generator = torch.Generator().manual_seed(1)
    for name, parameter in worker.roles.named_parameters():
        if f".{POLICY}." in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    completions = worker.sample(PROMPTS["prompt"][:4], seed=1)
    prompts = [prompt for prompt in PROMPTS["prompt"][:4] for _ in range(2)]
    sampled = worker.sampled_logps(completions)
    with torch.no_grad():
        outputs = worker.run_roles(*worker.collate(prompts, completions))
    torch.testing.assert_close(sampled.logps, outputs.logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sampled.entropy, outputs.entropy, rtol=1e-5, atol=1e-5)
    assert (outputs.logps - outputs.ref_logps).abs().max() > 0.1
    assert worker.sampler_is_exact
    worker.config.mixed_precision = "bf16"
    assert not worker.sampler_is_exact


@pytest.mark.parametrize("scale", [0.0, 0.1], ids=["a new adapter", "a trained adapter"])
def test_below_float32_the_ratio_starts_at_1_though_the_sampler_is_merged(
    scale, tmp_path, reward_folder
):
    """Log-probabilities are recomputed without merging, so its rounding does not reach the loss."""
    settings = {"num_mini_batches": 1, "num_ppo_epochs": 1, "max_steps": 1, "dtype": "bfloat16"}
    ppo = make_trainer(tmp_path, reward_folder, **settings)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in ppo.roles.named_parameters():
        if f"lora_B.{POLICY}." in name:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    before = weights(ppo.roles)
    layer = ppo.roles.base.get_submodule("model.layers.0.self_attn.q_proj")
    merged = []
    layer.register_forward_pre_hook(lambda layer, _: merged.append(layer.merged))
    ppo.worker.sample(PROMPTS["prompt"][:4], seed=1)
    assert all(merged)
    ppo.train()
    first = ppo.state.log_history[0]
    assert first["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert first["policy/approxkl_avg"] == pytest.approx(0, abs=1e-10)
    assert (abs(first["objective/kl"]) < 1e-6) == (scale == 0)
    frozen = {n: p for n, p in ppo.roles.named_parameters() if not p.requires_grad}
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())


def test_a_step_changes_policy_and_value_and_nothing_else(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder, normalize_rewards=False)
    before = weights(ppo.roles)
    ppo.train()
    changed = {n for n, p in ppo.roles.named_parameters() if not torch.equal(p, before[n])}
    trainable = {n for n, p in ppo.roles.named_parameters() if p.requires_grad}
    assert changed == trainable
    assert all(
        f".{POLICY}." in n or f".{VALUE}." in n or n.startswith("heads.value") for n in changed
    )
    optimized = {id(p) for g in ppo.optimizer.param_groups for p in g["params"]}
    assert optimized == {id(p) for p in ppo.roles.parameters() if p.requires_grad}


def test_accumulating_parts_of_a_minibatch_is_the_same_step(tmp_path, reward_folder):
    """Losses are averaged over the minibatch's tokens, not over the parts' means."""
    whole, parts = (
        make_trainer(
            tmp_path / str(size),
            reward_folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            num_mini_batches=1,
            num_ppo_epochs=1,
            max_steps=1,
            optim="sgd",
            max_grad_norm=0.0,
            missing_eos_penalty=None,
            seed=63,  # one completion ends early
        )
        for size in (8, 2)
    )
    whole.train()
    parts.train()
    assert len(set(whole.episodes.completion_mask.sum(-1).tolist())) > 1
    for name, parameter in whole.roles.named_parameters():
        torch.testing.assert_close(
            parameter, dict(parts.roles.named_parameters())[name], rtol=1e-5, atol=1e-7
        )


class Kill(TrainerCallback):
    """Stops a run after a step, as a lost machine would, with its checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def assert_resumed_equals_straight(folder, reward_folder, killed_after, **changes):
    settings = {
        "max_steps": 16,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "cosine",
        **changes,
    }
    straight = make_trainer(folder / "straight", reward_folder, **settings)
    straight.train()
    killed = make_trainer(folder / "killed", reward_folder, **settings)
    killed.add_callback(Kill(killed_after))
    killed.train()
    resumed = make_trainer(folder / "killed", reward_folder, **settings)
    resumed.train(resume_from_checkpoint=True)
    for name, parameter in straight.roles.named_parameters():
        assert torch.equal(parameter, dict(resumed.roles.named_parameters())[name]), name
    wanted, found = (
        [
            {name: value for name, value in entry.items() if name not in ("eps", "loss")}
            for entry in t.state.log_history
            if "episode" in entry
        ]
        for t in (straight, resumed)
    )
    assert wanted == found
    return straight


@pytest.mark.parametrize("killed_after", [4, 6, 9])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path, reward_folder, killed_after
):
    """Four steps use one rollout: 4 is between two rollouts, 6 and 9 are within one.

    Two rollouts are an epoch, so the third is drawn from another shuffle.
    """
    assert_resumed_equals_straight(tmp_path, reward_folder, killed_after)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        {"kl_target": 0.01, "kl_horizon": 10},
        {"early_stop_approxkl": 1e-6, "learning_rate": 0.05},
        {"logging_steps": 4},
        {"num_generations": 2},
        {"bf16": True, "use_cpu": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_resumed_run_keeps_all_that_a_run_keeps(tmp_path, reward_folder, changes):
    """Killed at the second step of a rollout, with that rollout's state in the checkpoint."""
    ran = assert_resumed_equals_straight(tmp_path, reward_folder, 6, **changes)
    assert ran.state.global_step == 16
    if "kl_target" in changes:
        assert ran.worker.kl_coef != 0.05


def test_a_resumed_run_computes_shared_hidden_states_again_bit_for_bit(
    tmp_path, upper_reward_folder
):
    ran = assert_resumed_equals_straight(tmp_path, upper_reward_folder, 6, lora_changes=UPPER)
    assert ran.roles.num_shared_layers == 1
    assert ran.episodes.shared_hidden_states.any()


def test_computing_shared_layers_once_changes_nothing_that_is_learned(
    tmp_path, upper_reward_folder
):
    settings = {"lora_changes": UPPER, "seed": 63, "max_steps": 5}
    shared = make_trainer(tmp_path / "shared", upper_reward_folder, **settings)
    plain = make_trainer(tmp_path / "plain", upper_reward_folder, **settings)
    plain.roles.num_shared_layers = 0
    shared.train()
    plain.train()
    assert plain.episodes.shared_hidden_states is None
    for name, parameter in plain.roles.named_parameters():
        torch.testing.assert_close(
            parameter, dict(shared.roles.named_parameters())[name], rtol=1e-4, atol=1e-6
        )


def test_a_trainer_that_is_started_again_goes_on_where_its_checkpoint_is(tmp_path, reward_folder):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 1}
    straight = make_trainer(tmp_path / "straight", reward_folder, **settings)
    straight.train()
    again = make_trainer(tmp_path / "again", reward_folder, **settings)
    again.add_callback(Kill(6))
    again.train()
    again.remove_callback(Kill)
    again.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-5"))
    for name, parameter in straight.roles.named_parameters():
        assert torch.equal(parameter, dict(again.roles.named_parameters())[name]), name


def test_it_learns_to_say_what_is_rewarded(tmp_path, reward_folder):
    """A rule with a known optimum of 1: the fraction of small letters in a completion."""

    def small_letters(completions, **_):
        return [sum(c in ascii_lowercase for c in text) / max(len(text), 1) for text in completions]

    ppo = make_trainer(
        tmp_path,
        None,
        prompts=Dataset.from_dict({"prompt": ["say it"] * 32}),
        reward_funcs=[small_letters],
        per_device_train_batch_size=16,
        num_mini_batches=2,
        num_ppo_epochs=4,
        max_steps=320,
        learning_rate=5e-3,
        lr_scheduler_type="constant",
        entropy_coef=0.01,
        kl_coef=0.0,
        missing_eos_penalty=None,
        logging_steps=8,
    )
    ppo.train()
    scores = [e["objective/scores"] for e in ppo.state.log_history if "objective/scores" in e]
    assert scores[0] < 0.3
    assert scores[-1] > 0.9


def test_the_score_scale_gives_the_reference_mean_0_and_std_1(tmp_path, reward_folder):
    worker = make_trainer(tmp_path, reward_folder, missing_eos_penalty=None).worker
    head = worker.roles.head(VALUE)
    weight = head.weight.clone()
    raw = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, std sqrt(14 / 3)
    finished = torch.ones(4, dtype=torch.bool)
    scale = worker.scorer.measure_scale(raw)
    with torch.no_grad():
        worker.rescale_value_head(scale, raw, {"reward_model": raw.tolist()})
    scores = worker.scorer.effective_scores(raw, finished)
    assert scores.mean() == pytest.approx(0, abs=1e-6)
    assert scores.std() == pytest.approx(1, rel=1e-5)
    # What the value predicts moves with the scores: w·h = 3 was the mean, so it is now 0.
    torch.testing.assert_close(head.weight, weight / (14 / 3) ** 0.5)
    torch.testing.assert_close(head.bias, torch.tensor([-3 / (14 / 3) ** 0.5]))
    later = worker.scorer.effective_scores(raw + 10, finished)
    torch.testing.assert_close(later, scores + 10 / (14 / 3) ** 0.5)


def test_the_values_of_the_first_rollout_are_on_the_scale_of_its_rewards(tmp_path, reward_folder):
    """The first scores rescale the value head: values taken before would be on another scale."""
    worker = make_trainer(tmp_path, reward_folder).worker
    episodes = worker.collect(PROMPTS["prompt"][:4], seed=1).episodes
    assert worker.scorer.scale.std != 1.0
    outputs = worker.run_roles(
        episodes.input_ids, episodes.attention_mask, episodes.completion_mask
    )
    assert torch.equal(outputs.values, episodes.old_values)


def test_checkpointing_changes_neither_what_is_sampled_nor_what_is_learned(tmp_path, reward_folder):
    plain, checkpointed = (
        make_trainer(tmp_path / str(on), reward_folder, activation_checkpointing=on, max_steps=5)
        for on in (False, True)
    )
    plain.train()
    checkpointed.train()
    assert torch.equal(plain.episodes.input_ids, checkpointed.episodes.input_ids)
    for name, parameter in plain.roles.named_parameters():
        torch.testing.assert_close(
            parameter, dict(checkpointed.roles.named_parameters())[name], rtol=1e-4, atol=1e-6
        )


def test_the_seed_governs_the_policys_first_weights(tmp_path, reward_folder):
    first, again, other = (
        weights(make_trainer(tmp_path, reward_folder, seed=seed).roles) for seed in (1, 1, 2)
    )
    name = next(n for n in first if f"lora_A.{POLICY}." in n)
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_episodes_are_cut_to_what_their_rows_need(tmp_path, reward_folder):
    worker = make_trainer(tmp_path, reward_folder).worker
    episodes = worker.collect(PROMPTS["prompt"][:6], seed=1).episodes
    row = torch.tensor([0])
    cut = episodes.select(row)
    assert cut.attention_mask.all()
    assert cut.input_ids.tolist() == [episodes.input_ids[0][episodes.attention_mask[0]].tolist()]
    assert cut.completion_mask.shape[1] == int(episodes.completion_mask[0].sum())


def test_total_episodes_sets_the_number_of_steps(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder, max_steps=-1, total_episodes=20)
    assert ppo.args.max_steps == 3 * 4  # rollouts of 8 episodes; 2 epochs of 2 minibatches


def test_completions_are_written_for_every_rollout(tmp_path, reward_folder):
    make_trainer(tmp_path, reward_folder, max_steps=8).train()
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert [t.name for t in tables] == ["completions_00000.parquet", "completions_00001.parquet"]
    table = pd.read_parquet(tables[1])
    assert len(table) == 8
    assert {"prompt", "completion", "score", "kl", "finished"} <= set(table.columns)


def test_fewer_prompts_than_a_rollout_takes_is_an_error(tmp_path, reward_folder):
    with pytest.raises(RecipeError, match="There are 3 training rows"):
        make_trainer(tmp_path, reward_folder, prompts=PROMPTS.select(range(3))).train()


def test_a_reward_model_of_another_base_is_an_error(tmp_path, reward_folder):
    folder = Path(shutil.copytree(reward_folder, tmp_path / "other"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "someone/else"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="was trained on `someone/else`"):
        make_trainer(tmp_path, str(folder))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_ppo_epochs", 0), ("gamma", 1.5), ("temperature", 0.0), ("cliprange", -0.1)],
)
def test_a_value_out_of_range_is_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}"):
        PPOConfig(output_dir=str(tmp_path), **{name: value})
