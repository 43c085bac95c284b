"""Evaluation of a policy, ours or the naive way: `python -m benchmarks.evaluate CASE.json`.

Sample a completion per prompt, score it by the reward model, and sum its exact KL to the reference
model.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.cases import COMPLETION_LENGTH, Setting, settle
from benchmarks.measure import Case, measured, read_case, report
from rlhf_recipes.evaluation.arguments import EvaluationArguments
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.generation.sampling import Completion
from rlhf_recipes.models.loading import open_base, open_tokenizer
from rlhf_recipes.prompts import Prompt, prompt_ids
from rlhf_recipes.rewards import RewardModel, scored_ids
from rlhf_recipes.roles import Roles

PEER = "one by one, three models"
UNIT = "response"
EQUAL = "KL of given responses"

SEED = 42
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cases(setting: Setting) -> list[Case]:
    """Return one case. At 4 s per completion the naive run takes 2 min, all six less than 10."""
    prompts = setting.prompts(32)
    answers = [pair.chosen for pair in setting.pairs(8)]
    tokenizer = open_tokenizer(setting.base)
    texts = [a if isinstance(a, str) else a[-1]["content"] for a in answers]
    return [
        setting.case(
            f"{len(prompts)} prompts",
            units=len(prompts),
            prompts=prompts,
            responses=[tokenizer(text=text)["input_ids"][:COMPLETION_LENGTH] for text in texts],
            policy=setting.adapter("policy"),
            reward=setting.adapter("reward", head=True),
        )
    ]


Evaluate = Callable[[list[Prompt]], list[dict[str, Any]]]
Divergences = Callable[[], list[float]]


def ours(case: Case) -> tuple[Evaluate, Divergences]:
    """Return our functions: evaluate prompts, and the KL of the case's completions.

    One base serves all roles, and prompts are processed in batches.
    """
    roles = Roles(open_base(case["base"]))
    for role in ("policy", "reward"):
        roles.attach_saved(role, case[role], trainable=False)
    roles.to(DEVICE).eval()
    tokenizer = open_tokenizer(case["base"])
    reward_model = RewardModel(roles, tokenizer)
    sampler = KLSampler(
        roles,
        tokenizer,
        reference=None,
        max_completion_length=COMPLETION_LENGTH,
        temperature=1.0,
        batch_size=EvaluationArguments().batch_size,
    )

    def evaluate(prompts: list[Prompt]) -> list[dict[str, Any]]:
        records = sampler.sample("policy", prompts, count=1, seed=SEED)
        scores = reward_model(prompts, [record["response"] for record in records])
        return [record | {"reward": s} for record, s in zip(records, scores, strict=True)]

    def divergences() -> list[float]:
        completions = [Completion(ids, "", finished=False) for ids in case["responses"]]
        samples = list(zip(case["prompts"], completions, strict=False))
        return [record["kl"] for record in sampler.divergences("policy", samples)]

    return evaluate, divergences


def theirs(case: Case) -> tuple[Evaluate, Divergences]:
    """Return the same functions with one prompt at a time and three models in memory."""
    tokenizer = open_tokenizer(case["base"])
    causal, classifier = AutoModelForCausalLM, AutoModelForSequenceClassification
    base: Any
    reference: Any
    base, reference = (causal.from_pretrained(case["base"], dtype="float32") for _ in range(2))
    scorer = classifier.from_pretrained(case["base"], num_labels=1, dtype="float32")
    scorer.config.pad_token_id = tokenizer.pad_token_id
    policy: Any = PeftModel.from_pretrained(base, case["policy"]).to(DEVICE).eval()
    reward: Any = PeftModel.from_pretrained(scorer, case["reward"]).to(DEVICE).eval()
    reference.to(DEVICE)

    @torch.no_grad()
    def evaluate(prompts: list[Prompt]) -> list[dict[str, Any]]:
        torch.manual_seed(SEED)
        return [evaluate_one(prompt) for prompt in prompts]

    def evaluate_one(prompt: Prompt) -> dict[str, Any]:
        ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=DEVICE)
        sampled = policy.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=COMPLETION_LENGTH,
        )
        text = str(tokenizer.decode(sampled[0, ids.shape[1] :], skip_special_tokens=True))
        scored = torch.tensor([scored_ids(tokenizer, prompt, text)], device=DEVICE)
        score = reward(input_ids=scored).logits.item()
        return {"response": text, "reward": score, "kl": divergence(sampled, ids.shape[1])}

    def divergence(ids: torch.Tensor, prompt_length: int) -> float:
        logps, ref_logps = (
            model(input_ids=ids).logits[:, prompt_length - 1 : -1].log_softmax(-1)
            for model in (policy, reference)
        )
        return float((logps.exp() * (logps - ref_logps)).sum())

    @torch.no_grad()
    def divergences() -> list[float]:
        prompts = [prompt_ids(tokenizer, prompt) for prompt in case["prompts"]]
        pairs = zip(prompts, case["responses"], strict=False)
        return [
            divergence(torch.tensor([prompt + completion], device=DEVICE), len(prompt))
            for prompt, completion in pairs
        ]

    return evaluate, divergences


def main() -> None:
    """Evaluate the case's prompts, after one of them to warm up."""
    case = read_case(sys.argv[1])
    settle(case)
    evaluate, divergences = (ours if case["side"] == "ours" else theirs)(case)
    evaluate(case["prompts"][:1])
    measurement = measured(lambda: evaluate(case["prompts"]), case["count_flops"])
    report(**measurement, values=divergences())


if __name__ == "__main__":
    main()
