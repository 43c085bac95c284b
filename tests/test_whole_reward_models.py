"""Whole classifiers score as AutoModelForSequenceClassification and their tokenizer do by hand."""

import json
import logging
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.models.classifiers import Classifier, is_hub_id, read_reward_model
from rlhf_recipes.models.loading import base_path
from rlhf_recipes.reward_functions import REWARD_MODEL
from rlhf_recipes.rewards import RewardRole, WholeRewardModel, open_reward_model
from tests.ppo.conftest import make_trainer
from tests.test_rewards import grpo_trainer
from tests.whole_reward_models import whole_reward_model

PROMPTS = ["Why?", "Why is it so?", "And then?", "Why?", "Who was it that said so, and when?"]
COMPLETIONS = ["Because.", "", "Nothing at all happened", "It is.", "I."]
TURNS = [
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    for _ in PROMPTS
]


def read_classifier(folder) -> Classifier:
    classifier = read_reward_model(folder)
    assert isinstance(classifier, Classifier)
    return classifier


def conversations():
    return [
        [*turns, {"role": "user", "content": prompt}]
        for turns, prompt in zip(TURNS, PROMPTS, strict=True)
    ]


@torch.no_grad()
def by_hand(folder, texts) -> list[float]:
    """Score one text after the other; each is a conversation, a pair, or plain text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for text in texts:
        if isinstance(text, list):
            inputs = tokenizer.apply_chat_template(text, return_tensors="pt", return_dict=True)
        else:
            inputs = tokenizer(*text, return_tensors="pt")
        scores.append(model(**inputs).logits[0][0].item())
    assert len(set(scores)) == len(texts)
    return scores


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("pad", ["own", "eos", "absent"])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "gemma2"])
def test_a_decoder_scores_conversations_as_by_hand(tmp_path, shape, pad, batch_size):
    reward_model = open_reward_model(whole_reward_model(tmp_path, shape, pad))
    reward_model.batch_size = batch_size
    messages = [
        [*prompt, {"role": "assistant", "content": completion}]
        for prompt, completion in zip(conversations(), COMPLETIONS, strict=True)
    ]
    expected = by_hand(tmp_path, messages)
    assert reward_model(conversations(), COMPLETIONS) == pytest.approx(expected, abs=2e-6)
    as_messages = [m[-1:] for m in messages]
    assert reward_model(conversations(), as_messages) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", ["llama", "qwen2", "gemma2", "deberta-v2"])
def test_the_padding_side_of_the_tokenizer_changes_no_score(tmp_path, shape, side):
    whole_reward_model(tmp_path, shape)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": side}))
    reward_model = open_reward_model(tmp_path)
    assert reward_model.tokenizer.padding_side == side
    alone = [reward_model([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward_model(PROMPTS, COMPLETIONS) == pytest.approx(alone, abs=2e-6)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_an_encoder_without_a_template_reads_prompt_and_completion_as_a_pair(tmp_path, batch_size):
    reward_model = open_reward_model(whole_reward_model(tmp_path, "deberta-v2"))
    reward_model.batch_size = batch_size
    expected = by_hand(tmp_path, list(zip(PROMPTS, COMPLETIONS, strict=True)))
    assert reward_model(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=2e-6)
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert reward_model(turns, COMPLETIONS) == pytest.approx(expected, abs=2e-6)


def test_plain_text_is_a_turn_of_the_user_where_there_is_a_template(tmp_path):
    reward_model = open_reward_model(whole_reward_model(tmp_path))
    messages = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert reward_model(PROMPTS, COMPLETIONS) == pytest.approx(
        by_hand(tmp_path, messages), abs=2e-6
    )


def test_plain_text_without_a_template_is_what_reward_trainer_trains_on(tmp_path):
    reward_model = open_reward_model(whole_reward_model(tmp_path, template=None))
    texts = [(p + c + "</s>",) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert reward_model(PROMPTS, COMPLETIONS) == pytest.approx(by_hand(tmp_path, texts), abs=2e-6)
    with pytest.raises(RecipeError, match="neither a chat template nor a separator"):
        reward_model(conversations(), COMPLETIONS)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_longer_than_the_context_is_cut_as_the_tokenizer_does_and_counted(
    tmp_path, caplog, side
):
    whole_reward_model(tmp_path, max_position_embeddings=40)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": side}))
    reward_model = WholeRewardModel(read_classifier(tmp_path))
    with caplog.at_level(logging.WARNING):
        scores = reward_model(["Why?"] * 3, ["No.", "Because " * 9, "So " * 30])
    assert reward_model.num_cut == 2 and reward_model.num_scored == 3
    cut = [record.message for record in caplog.records if "were cut" in record.message]
    assert [text[:7] for text in cut] == ["1 of 2 ", "2 of 3 "]
    assert f"than the 40 tokens that the reward model `{tmp_path}`" in cut[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So " * 30}]
    ids: Any = tokenizer.apply_chat_template(
        turns, return_tensors="pt", return_dict=True, truncation=True, max_length=40
    )
    assert ids["input_ids"].shape == (1, 40)
    assert scores[2] == pytest.approx(model(**ids).logits[0][0].item(), abs=2e-6)
    with pytest.raises(RecipeError, match="alone has more than the 40 tokens"):
        read_classifier(tmp_path).check_prompt("word " * 30)


def test_an_encoder_s_pair_is_cut_with_its_separators(tmp_path):
    whole_reward_model(tmp_path, "deberta-v2", max_position_embeddings=32)
    reward_model = WholeRewardModel(read_classifier(tmp_path))
    encoded = reward_model.encode("Why?", "Because " * 9)
    assert len(encoded["input_ids"]) == 32 and encoded["input_ids"][-1] == 2
    assert reward_model.num_cut == 1


def test_weights_have_the_type_that_they_were_saved_in(tmp_path):
    whole_reward_model(tmp_path, dtype=torch.bfloat16)
    assert str(read_reward_model(tmp_path).precision) == "bfloat16"
    reward_model = open_reward_model(tmp_path)
    assert isinstance(reward_model, WholeRewardModel)
    assert reward_model.model.dtype == torch.bfloat16
    in_float32 = WholeRewardModel(read_classifier(tmp_path), dtype="float32")
    assert in_float32.model.dtype == torch.float32


def changed(folder, **config):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


def test_what_gives_no_single_score_is_refused_before_weights(tmp_path):
    with pytest.raises(RecipeError, match=r"gives 3 numbers per text \(LABEL_0, LABEL_1, LABEL_2"):
        read_reward_model(whole_reward_model(tmp_path / "labels", num_labels=3))
    with pytest.raises(RecipeError, match=r"is LlamaForCausalLM in its config.json"):
        read_reward_model(base_path("tiny"))
    whole_reward_model(tmp_path / "coded")
    changed(tmp_path / "coded", architectures=["LlamaForRewardModelWithGating"])
    with pytest.raises(RecipeError, match=r"WithGating in its config.json, which is no sequence"):
        read_reward_model(tmp_path / "coded")


@pytest.mark.parametrize("shape", ["llama", "deberta-v2"])
def test_a_model_without_its_tokenizer_is_refused(tmp_path, shape):
    """For DeBERTa transformers makes a tokenizer of seven tokens out of no file."""
    whole_reward_model(tmp_path, shape)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(RecipeError, match="tokenizer") as refused:
        read_reward_model(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_head_that_the_files_lack_is_refused(tmp_path):
    whole_reward_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"lack 1 tensors, such as `score.weight`"):
        open_reward_model(tmp_path)


def test_a_hub_id_is_owner_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("Skywork/Skywork-Reward-V2-Qwen3-0.6B")
    assert is_hub_id("Skywork/Skywork-Reward-V2-Qwen3-0.6B@main")
    assert not is_hub_id("outputs/models/reward_model")
    assert not is_hub_id("reward_model")
    (tmp_path / "outputs").mkdir()
    assert not is_hub_id("outputs/reward_model")
    with pytest.raises(RecipeError, match=r"The reward model `no/such` cannot be opened"):
        read_reward_model("no/such")


def test_ppo_scores_with_it_and_its_value_model_starts_at_0(tmp_path):
    whole_reward_model(tmp_path / "reward")
    trainer = make_trainer(tmp_path / "ppo", str(tmp_path / "reward"))
    scores = trainer.worker.scorer.function_scores(PROMPTS, COMPLETIONS, {})[REWARD_MODEL]
    assert scores == pytest.approx(
        open_reward_model(tmp_path / "reward")(PROMPTS, COMPLETIONS), abs=2e-6
    )
    assert not trainer.roles.head("value").weight.any()
    assert "reward" not in trainer.roles.heads
    before = {n: p.clone() for n, p in trainer.roles.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.roles.named_parameters())
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    again = trainer.worker.scorer.function_scores(PROMPTS, COMPLETIONS, {})[REWARD_MODEL]
    assert again == scores


def test_grpo_scores_with_it(tmp_path):
    whole_reward_model(tmp_path / "reward")
    role = RewardRole(str(tmp_path / "reward"))
    trainer = grpo_trainer(tmp_path / "grpo", role)
    role.attach(trainer.model)
    scores = role(PROMPTS, COMPLETIONS)
    assert scores == pytest.approx(
        open_reward_model(tmp_path / "reward")(PROMPTS, COMPLETIONS), abs=2e-6
    )
    trainer.train()
    assert abs(trainer.state.log_history[-1][f"rewards/{REWARD_MODEL}/mean"]) > 1e-3
    assert role(PROMPTS, COMPLETIONS) == scores
