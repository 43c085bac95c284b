"""PPOTrainer apart from its updates: penalties, stops, evaluations, starts."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.logprobs import kl_estimate
from rlhf_recipes.models.loading import open_base
from rlhf_recipes.ppo.attaching import POLICY, REFERENCE, VALUE
from rlhf_recipes.ppo.objective import adapted_kl_coef
from rlhf_recipes.roles import Roles
from tests.ppo.conftest import PROMPTS, lora, make_trainer, weights

NOTHING: dict[str, Any] = {}


def random_adapter(folder, seed: int = 0) -> str:
    """A policy adapter that is not the base: what supervised fine-tuning would leave."""
    roles = Roles(open_base("tiny"))
    roles.attach(POLICY, lora(), trainable=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in roles.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    roles.save_role(POLICY, folder)
    return str(folder)


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_the_reference_of_a_policy_that_starts_from_an_adapter_is_that_adapter(
    tmp_path, reward_folder
):
    start = random_adapter(tmp_path / "sft")
    ppo = make_trainer(tmp_path / "run", reward_folder, sft_model_path=start)
    assert ppo.worker.reference == REFERENCE
    before = weights(ppo.roles)
    ppo.train()
    # The bare base would be far away.
    assert logged(ppo, "objective/kl")[0] == pytest.approx(0, abs=1e-5)
    after = weights(ppo.roles)
    assert all(torch.equal(after[n], before[n]) for n in before if f".{REFERENCE}." in n)
    assert any(not torch.equal(after[n], before[n]) for n in before if f".{POLICY}." in n)
    base = make_trainer(tmp_path / "base", reward_folder).worker
    episodes = base.collect(PROMPTS["prompt"][:4], seed=1).episodes
    outputs = ppo.worker.run_roles(
        episodes.input_ids, episodes.attention_mask, episodes.completion_mask
    )
    kl = kl_estimate(outputs.ref_logps, episodes.old_logps, "k3").sum()
    assert kl > 0.01


def test_without_a_reward_model_the_value_starts_at_zero_and_learns(tmp_path):
    def length(completions, **_):
        return [float(len(text)) for text in completions]

    ppo = make_trainer(tmp_path, None, reward_funcs=[length])
    assert not ppo.worker.collect(PROMPTS["prompt"][:4], seed=1).episodes.old_values.any()
    ppo.train()
    assert ppo.roles.head(VALUE).weight.any()


def test_reward_functions_read_the_other_columns_of_the_dataset(tmp_path, reward_folder):
    seen = []

    def closeness(completions, target, **_):
        seen.extend(target)
        return [-abs(len(text) - t) for text, t in zip(completions, target, strict=True)]

    prompts = PROMPTS.add_column("target", list(range(16)))
    ppo = make_trainer(
        tmp_path, reward_folder, prompts=prompts, reward_funcs=[closeness], num_generations=2
    )
    ppo.train()
    rows = ppo.schedule.prompt_rows(0)
    assert seen[:8] == [row for row in rows for _ in range(2)]
    assert {"rewards/reward_model", "rewards/closeness"} <= set(ppo.state.log_history[0])


def test_the_value_head_predicts_the_mix_of_which_the_reward_model_is_a_part(
    tmp_path, reward_folder
):
    """V' = (w V + mean of the others - mean) / std: exact for the reward model's own score.

    With a constant beside it the mix has the reward model's scale times its weight.
    """

    def constant(completions, **_):
        return [7.0] * len(completions)

    plain, mixed = (
        make_trainer(tmp_path / str(i), reward_folder, **changes).worker
        for i, changes in enumerate(
            [{}, {"reward_funcs": [constant], "reward_weights": [3.0, 1.0]}]
        )
    )
    first, second = (w.collect(PROMPTS["prompt"][:8], seed=1).episodes for w in (plain, mixed))
    assert mixed.scorer.scale.mean == pytest.approx(3 * plain.scorer.scale.mean + 7, rel=1e-5)
    torch.testing.assert_close(first.old_values, second.old_values, rtol=1e-5, atol=1e-5)


def test_completions_of_one_prompt_stand_together(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder, num_generations=4)
    table = ppo.worker.collect(PROMPTS["prompt"][:2], seed=1).table
    assert table["prompt"] == [p for p in PROMPTS["prompt"][:2] for _ in range(4)]
    assert len(set(table["completion"])) > 2
    assert len(ppo.schedule.prompt_rows(0)) == 2


def test_log_probabilities_are_those_of_the_temperature_sampled_at(tmp_path, reward_folder):
    worker = make_trainer(tmp_path, reward_folder, temperature=0.5).worker
    episodes = worker.collect(PROMPTS["prompt"][:3], seed=1).episodes
    row = torch.tensor([1])
    one = episodes.select(row)
    logits = open_base("tiny")(input_ids=one.input_ids).logits[0] / 0.5
    length = one.completion_mask.shape[1]
    expected = logits.log_softmax(-1)[-length - 1 : -1].gather(
        -1, one.input_ids[0, -length:, None]
    )[:, 0]
    torch.testing.assert_close(one.old_logps[0], expected, rtol=1e-5, atol=1e-5)


def test_the_penalty_moves_towards_its_target():
    """Ziegler et al. 2019, section 2.2: proportional to the error, at most a fifth of it."""
    assert adapted_kl_coef(0.1, kl=6.0, target=6.0, episodes=64, horizon=640) == 0.1
    assert adapted_kl_coef(0.1, kl=6.6, target=6.0, episodes=64, horizon=640) == pytest.approx(
        0.1 * 1.01
    )
    assert adapted_kl_coef(0.1, kl=60.0, target=6.0, episodes=64, horizon=640) == pytest.approx(
        0.1 * 1.02
    )
    assert adapted_kl_coef(0.1, kl=0.0, target=6.0, episodes=64, horizon=640) == pytest.approx(
        0.1 * 0.98
    )
    # More episodes than the horizon change it no further: it never reaches zero.
    assert adapted_kl_coef(0.1, kl=0.0, target=6.0, episodes=9999, horizon=640) == pytest.approx(
        0.1 * 0.8
    )


def test_the_penalty_in_use_is_logged_and_changes_after_each_rollout(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder, kl_coef=0.5, kl_target=1.0, kl_horizon=80)
    ppo.args.max_steps = 8
    ppo.train()
    found = logged(ppo, "objective/kl_coef")
    assert found[0] == 0.5
    assert found[1] == pytest.approx(0.5 * 0.98)  # no divergence yet: e = -0.2, 8 of 80 episodes


def test_an_update_that_went_far_enough_is_stopped_there(tmp_path, reward_folder):
    """The rest of the rollout changes nothing, and the next rollout learns again."""
    states = []

    def remember(ppo):
        original = ppo.log

        def log(logs, start_time=None):
            states.append(weights(ppo.roles))
            original(logs, start_time)

        ppo.log = log

    ppo = make_trainer(
        tmp_path, reward_folder, learning_rate=0.05, early_stop_approxkl=1e-6, max_steps=8
    )
    remember(ppo)
    ppo.train()
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in pairwise(states[:8])]
    # Step 1 is on-policy, step 2 goes too far, 3 and 4 are left out; then a new rollout.
    assert same == [False, True, True, False, False, True, True]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder)
    before = weights(ppo.roles)
    collect = ppo.worker.collect

    def broken(*arguments):
        rollout = collect(*arguments)
        rollout.episodes.advantages[:] = math.nan
        return rollout

    ppo.worker.collect = broken
    with pytest.raises(RecipeError, match="The policy loss is nan at step 0"):
        ppo.train()
    saved = torch.load(tmp_path / "not_finite_0.pt", weights_only=True)
    assert saved["advantages"].isnan().any()
    head = {n for n in before if n.startswith("heads.value")}  # rescaled by the first rollout
    after = weights(ppo.roles)
    assert all(torch.equal(after[n], before[n]) for n in before.keys() - head)


def test_evaluations_are_on_held_out_prompts_and_disturb_nothing(tmp_path, reward_folder, capsys):
    held_out = Dataset.from_dict({"prompt": ["tell me", "tell them", "and now"]})
    plain = make_trainer(tmp_path / "plain", reward_folder, max_steps=8, learning_rate=0.05)
    watched = make_trainer(
        tmp_path / "watched",
        reward_folder,
        eval_dataset=held_out,
        max_steps=8,
        learning_rate=0.05,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_objective/scores",
        greater_is_better=True,
    )
    plain.train()
    watched.train()
    scores = logged(watched, "eval_objective/scores")
    assert len(scores) == 4
    assert len(set(scores)) > 1
    assert "-> " in capsys.readouterr().out
    assert (tmp_path / "watched" / "completions" / "eval_00002.parquet").exists()
    assert logged(watched, "objective/scores") == logged(plain, "objective/scores")
    best = watched.state.best_model_checkpoint
    assert watched.state.best_metric == max(scores)
    found = make_trainer(tmp_path / "best", reward_folder)
    found.roles.load_role(POLICY, best)
    after, wanted = weights(watched.roles), weights(found.roles)
    assert all(torch.equal(after[n], wanted[n]) for n in after if f".{POLICY}." in n)


def test_under_bf16_the_first_update_still_starts_on_policy(tmp_path, reward_folder):
    ppo = make_trainer(tmp_path, reward_folder, bf16=True, use_cpu=True)
    ppo.train()
    first = ppo.state.log_history[0]
    assert first["objective/kl"] == 0.0
    assert first["val/ratio"] == pytest.approx(1, abs=5e-3)
    assert first["policy/approxkl_avg"] < 1e-4
    assert all(p.dtype == torch.float32 for p in ppo.roles.parameters() if p.requires_grad)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tmp_path, reward_folder):
    long = Dataset.from_dict({"prompt": ["say"] * 15 + ["so " * 3000]})
    with pytest.raises(RecipeError, match=r"The longest train row has .* and the base takes"):
        make_trainer(tmp_path, reward_folder, prompts=long)


def test_the_value_starts_as_the_reward_model(tmp_path, reward_folder):
    """At a completion's last token it predicts the effective score of what stands there."""
    ppo = make_trainer(tmp_path, reward_folder, missing_eos_penalty=None)
    collected = ppo.worker.collect(PROMPTS["prompt"][:4], seed=1)
    one = collected.episodes.select(torch.tensor([2]))
    scale = ppo.worker.scorer.scale
    raw = ppo.roles.scores("reward", one.input_ids, one.attention_mask)[
        0, -one.old_values.shape[1] - 1 : -1
    ]
    torch.testing.assert_close(one.old_values[0], (raw - scale.mean) / scale.std)


def test_masks_come_from_lengths_where_padding_is_the_end_token(tmp_path, reward_folder):
    """Seed 63 ends a completion early: its last token counts though padding looks the same."""
    settings = {"seed": 63, "normalize_rewards": False}
    plain = make_trainer(tmp_path, reward_folder, **settings)
    eos = {"pad_token": plain.processing_class.eos_token}
    same = make_trainer(tmp_path, reward_folder, tokenizer_changes=eos, **settings)
    prompts = PROMPTS.select(plain.schedule.prompt_rows(0))["prompt"]
    wanted, found = (t.worker.collect(prompts, seed=63).episodes for t in (plain, same))
    assert len(set(wanted.completion_mask.sum(-1).tolist())) > 1
    assert torch.equal(found.completion_mask, wanted.completion_mask)
    assert torch.equal(
        found.input_ids[found.attention_mask], wanted.input_ids[wanted.attention_mask]
    )
    torch.testing.assert_close(found.old_logps, wanted.old_logps)
    torch.testing.assert_close(found.old_values, wanted.old_values)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gamma": 0.5}, "returns"),
        ({"lam": 0.1}, "returns"),
        ({"whiten_rewards": True}, "returns"),
        ({"kl_coef": 5.0}, "returns"),
        ({"reward_clip": 0.01}, "returns"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_setting_of_the_rewards_is_used(tmp_path, reward_folder, changes, what):
    start = random_adapter(tmp_path / "sft")
    found = []
    for settings in (NOTHING, changes):
        ppo = make_trainer(tmp_path / "run", reward_folder, sft_model_path=start, **settings)
        randomize(ppo.roles)  # away from its reference, so that there is a divergence
        found.append(getattr(ppo.worker.collect(PROMPTS["prompt"][:8], seed=1).episodes, what))
    assert not torch.allclose(*found)


@pytest.mark.parametrize(
    "changes", [{"vf_coef": 0.0}, {"max_grad_norm": 1e-3}, {"entropy_coef": 1.0}], ids=str
)
def test_a_setting_of_the_update_is_used(tmp_path, reward_folder, changes):
    found = []
    for settings in (NOTHING, changes):
        sgd = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1}
        ppo = make_trainer(tmp_path / "run", reward_folder, **{**sgd, **settings})
        ppo.train()
        found.append(weights(ppo.roles))
    changed = {n for n in found[0] if not torch.equal(found[0][n], found[1][n])}
    role = VALUE if "vf_coef" in changes else POLICY
    assert any(f".{role}." in name for name in changed)


def randomize(roles: Roles) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in roles.base.named_parameters():
            if f".{POLICY}." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_more_processes_than_prompts_to_evaluate_on_is_refused(tmp_path, reward_folder):
    with pytest.raises(RecipeError, match="There are 0 prompts to evaluate on"):
        make_trainer(tmp_path, reward_folder, eval_dataset=PROMPTS.select([]))


def test_a_tokenizer_without_padding_is_refused(tmp_path, reward_folder):
    with pytest.raises(RecipeError, match="has no pad_token"):
        make_trainer(tmp_path, reward_folder, tokenizer_changes={"pad_token": None})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kl_coef", -0.1, "`kl_coef` is -0.1, but must not be negative"),
        ("cliprange", 0.0, "`cliprange` is 0.0, but must be above 0"),
        ("num_generations", 3, "`num_generations` is 3, which does not divide the 8 episodes"),
        ("num_generations", 0, "`num_generations` is 0, but must be at least 1"),
        ("kl_target", 0.0, "`kl_target` is 0.0, but must be above 0"),
        ("total_episodes", 8, "`total_episodes` is 8 and `max_steps` 4, but each sets"),
        ("eval_on_start", True, "PPO has no `eval_on_start`"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(tmp_path, reward_folder, name, value, text):
    with pytest.raises(ValueError, match=text):
        make_trainer(tmp_path, reward_folder, **{name: value})
