import pytest
import torch
from scipy.stats import chisquare
from transformers import DynamicCache, LlamaConfig

from rlhf_recipes.errors import RecipeError
from rlhf_recipes.generation.kv_cache import block_cache
from rlhf_recipes.generation.sampling import end_ids, sample
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.prompts import prompt_ids

PROMPTS = ["a", "what is a name?", "tell me all of it, and slowly please"]


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer("tiny")


@pytest.fixture(scope="module")
def model():
    return open_base("tiny")


def plain_logits(model, ids: list[int]) -> torch.Tensor:
    """Compute logits of one unpadded sequence in one pass, without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def test_greedy_completions_follow_an_unpadded_forward_pass_token_by_token(model, tokenizer):
    rows = sample(model, tokenizer, PROMPTS, max_completion_length=12, temperature=0)
    for prompt, (completion,) in zip(PROMPTS, rows, strict=True):
        ids = prompt_ids(tokenizer, prompt)
        for token in completion.ids:
            assert token == plain_logits(model, ids)[-1].argmax().item()
            ids.append(token)


def test_sampling_several_completions_per_prompt_does_not_change_them(model, tokenizer):
    alone = sample(model, tokenizer, PROMPTS, max_completion_length=9, temperature=0)
    grouped = sample(
        model, tokenizer, PROMPTS, max_completion_length=9, temperature=0, num_completions=3
    )
    for single, group in zip(alone, grouped, strict=True):
        assert group == single * 3


def test_tokens_are_drawn_with_the_models_own_probabilities(model, tokenizer):
    """All tokens can be drawn; `generate` would keep only the 50 most probable by default."""
    temperature = 1.5
    (row,) = sample(
        model,
        tokenizer,
        PROMPTS[:1],
        max_completion_length=1,
        num_completions=20_000,
        batch_size=20_000,
        temperature=temperature,
        seed=3,
    )
    logits = plain_logits(model, prompt_ids(tokenizer, PROMPTS[0]))[-1]
    expected = torch.softmax(logits / temperature, -1).double()
    counts = torch.bincount(torch.tensor([c.ids[0] for c in row]), minlength=len(expected))
    # The chi-square test needs five expected counts per cell, so rare tokens share one.
    common = expected * 20_000 >= 5
    observed = [*counts[common].tolist(), int(counts[~common].sum())]
    predicted = [*expected[common].tolist(), float(expected[~common].sum())]
    assert common.sum() > 50
    assert chisquare(observed, [20_000 * p / sum(predicted) for p in predicted]).pvalue > 0.001


def test_a_completion_ends_at_its_end_token_or_at_the_cap(model, tokenizer):
    rows = sample(
        model, tokenizer, PROMPTS, max_completion_length=40, num_completions=40, temperature=2.0
    )
    ends = end_ids(model, tokenizer)
    completions = [completion for row in rows for completion in row]
    assert {c.finished for c in completions} == {True, False}
    for completion in completions:
        assert not set(completion.ids[:-1]) & set(ends)
        assert completion.finished == (completion.ids[-1] in ends)
        assert completion.finished or len(completion.ids) == 40
        assert "<|" not in completion.text


def test_the_order_of_the_prompts_is_kept(model, tokenizer):
    forward = sample(model, tokenizer, PROMPTS, max_completion_length=6, temperature=0)
    backward = sample(model, tokenizer, PROMPTS[::-1], max_completion_length=6, temperature=0)
    assert forward == backward[::-1]


def test_only_the_same_seed_gives_the_same_completions(model, tokenizer):
    first, again, other = (
        sample(model, tokenizer, PROMPTS, max_completion_length=8, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_prefilling_a_few_prompts_at_a_time_does_not_change_completions(model, tokenizer):
    """Ten prompts of different lengths are prefilled in three batches of one padded cache."""
    prompts = ["so " * i + "say it" for i in range(10)]
    settings = {"max_completion_length": 5, "temperature": 0}
    together = sample(model, tokenizer, prompts, **settings)
    alone = [sample(model, tokenizer, [prompt], **settings)[0] for prompt in prompts]
    assert together == alone


def test_an_empty_prompt_is_refused(model):
    tokenizer = open_tokenizer("tiny")
    with pytest.raises(RecipeError, match="'' has no token"):
        sample(model, tokenizer, ["a", ""], max_completion_length=2)


def test_log_probabilities_and_entropies_are_those_of_a_plain_forward_pass(model, tokenizer):
    rows = sample(model, tokenizer, PROMPTS, max_completion_length=70, temperature=0.8, seed=2)
    for prompt, (completion,) in zip(PROMPTS, rows, strict=True):
        ids = prompt_ids(tokenizer, prompt) + completion.ids
        logits = plain_logits(model, ids)[-len(completion.ids) - 1 : -1] / 0.8
        plain = torch.distributions.Categorical(logits=logits)
        expected = plain.log_prob(torch.tensor(completion.ids))
        torch.testing.assert_close(torch.tensor(completion.logps), expected, rtol=1e-4, atol=1e-4)
        entropy = torch.tensor(completion.entropy)
        torch.testing.assert_close(entropy, plain.entropy(), rtol=1e-4, atol=1e-4)


def test_identical_prompts_need_not_be_adjacent(model, tokenizer):
    settings = {"max_completion_length": 6, "temperature": 0, "batch_size": 4}
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[1]]
    alone = {p: sample(model, tokenizer, [p], **settings)[0] for p in PROMPTS}
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, ids, __: seen.append(ids[0].shape)
    )
    assert sample(model, tokenizer, prompts, **settings) == [alone[p] for p in prompts]
    hook.remove()
    # The five rows make two batches, of which the first has two different prompts.
    assert sum(rows for rows, length in seen if length > 1) == 3


def test_a_cache_grows_by_blocks_and_selects_rows():
    grown, plain = block_cache(LlamaConfig(num_hidden_layers=1)), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    rows = 3
    for step, length in enumerate((5, 1, 1, 70, 1)):
        states = torch.randn(2, rows, 2, length, 4, generator=generator)
        for ours, expected in zip(grown.update(*states, 0), plain.update(*states, 0), strict=True):
            assert torch.equal(ours, expected)
        if step in (1, 3):
            for cache in (grown, plain):
                cache.reorder_cache(torch.tensor([2, 0, 0, 1]))
            rows = 4
        if step == 0:
            for cache in (grown, plain):
                cache.reorder_cache(torch.tensor([2, 0, 1]))
