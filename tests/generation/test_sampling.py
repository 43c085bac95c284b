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
    """Logits of a forward pass over one unpadded sequence, without a cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def test_greedy_completions_follow_an_unpadded_forward_pass_token_by_token(model, tokenizer):
    rows = sample(model, tokenizer, PROMPTS, max_completion_length=12, temperature=0)
    for prompt, (completion,) in zip(PROMPTS, rows, strict=True):
        ids = prompt_ids(tokenizer, prompt)
        for token in completion.ids:
            assert token == plain_logits(model, ids)[-1].argmax().item()
            ids.append(token)


def test_a_prompt_shared_by_its_completions_gives_what_it_gives_alone(model, tokenizer):
    alone = sample(model, tokenizer, PROMPTS, max_completion_length=9, temperature=0)
    grouped = sample(
        model, tokenizer, PROMPTS, max_completion_length=9, temperature=0, num_completions=3
    )
    for one, three in zip(alone, grouped, strict=True):
        assert three == one * 3


def test_tokens_are_drawn_with_the_models_own_probabilities(model, tokenizer):
    """All tokens are possible: the default of `generate` would cut the distribution at 50."""
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
    # Chi-square wants five expected in each cell: the rare tokens share one.
    common = expected * 20_000 >= 5
    observed = [*counts[common].tolist(), int(counts[~common].sum())]
    wanted = [*expected[common].tolist(), float(expected[~common].sum())]
    assert common.sum() > 50
    assert chisquare(observed, [20_000 * p / sum(wanted) for p in wanted]).pvalue > 0.001


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


def test_a_seed_gives_the_same_completions_again_and_another_seed_does_not(model, tokenizer):
    first, again, other = (
        sample(model, tokenizer, PROMPTS, max_completion_length=8, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_prompts_prefilled_in_parts_give_what_each_gives_alone(model, tokenizer):
    """Ten prompts of other lengths are three parts, whose caches are joined on the left."""
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
        found = torch.tensor(completion.entropy)
        torch.testing.assert_close(found, plain.entropy(), rtol=1e-4, atol=1e-4)


def test_equal_prompts_may_stand_anywhere(model, tokenizer):
    settings = {"max_completion_length": 6, "temperature": 0, "batch_size": 4}
    prompts = [PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[2], PROMPTS[1]]
    alone = {p: sample(model, tokenizer, [p], **settings)[0] for p in PROMPTS}
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, ids, __: seen.append(ids[0].shape)
    )
    assert sample(model, tokenizer, prompts, **settings) == [alone[p] for p in prompts]
    hook.remove()
    # Four rows and one are two batches, of which the first has two different prompts.
    assert sum(rows for rows, length in seen if length > 1) == 3


def test_a_cache_grows_by_blocks_and_keeps_chosen_rows():
    grown, plain = block_cache(LlamaConfig(num_hidden_layers=1)), DynamicCache()
    generator = torch.Generator().manual_seed(0)
    rows = 3
    for step, length in enumerate((5, 1, 1, 70, 1)):
        states = torch.randn(2, rows, 2, length, 4, generator=generator)
        for one, other in zip(grown.update(*states, 0), plain.update(*states, 0), strict=True):
            assert torch.equal(one, other)
        if step in (1, 3):
            for cache in (grown, plain):
                cache.reorder_cache(torch.tensor([2, 0, 0, 1]))
            rows = 4
        if step == 0:
            for cache in (grown, plain):
                cache.reorder_cache(torch.tensor([2, 0, 1]))
