"""Make the demo's preference data: answers of the demo model, compared by plain_english.py.

python recipes/demo/make_preferences.py --output_dir recipes/demo
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from plain_english import reading_ease

from rlhf_recipes.arguments import parse_recipe
from rlhf_recipes.ending import run_script
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.generation.sampling import sample
from rlhf_recipes.models.loading import open_base, open_tokenizer

PROMPTS = Path(__file__).parent / "prompts.txt"


@dataclass
class MakePreferencesArguments:
    """Settings of sampling, and of pairing the answers."""

    output_dir: str = field(metadata={"help": "Writes preferences/{train,test}.jsonl in here."})
    model_name_or_path: str = field(default="demo", metadata={"help": "Model that answers."})
    num_completions: int = field(default=4, metadata={"help": "Answers to each prompt."})
    max_completion_length: int = field(default=48, metadata={"help": "Tokens of an answer."})
    temperature: float = field(default=0.7, metadata={"help": "Of the sampling."})
    batch_size: int = field(default=32, metadata={"help": "Answers sampled at once."})
    min_gap: float = field(default=10.0, metadata={"help": "Least difference in a pair."})
    test_fraction: float = field(default=0.2, metadata={"help": "Share of prompts held out."})
    limit: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    seed: int = field(default=42, metadata={"help": "Of the split and of the sampling."})

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing to compare."""
        if self.num_completions < 2:
            raise RecipeError(
                f"`num_completions` is {self.num_completions}: a pair needs 2 or more."
            )
        if self.min_gap <= 0:
            raise RecipeError(
                f"`min_gap` is {self.min_gap}: equal answers make no pair. Use 1 or more."
            )
        if not 0 < self.test_fraction < 1:
            raise RecipeError(
                f"`test_fraction` is {self.test_fraction}: it must lie between 0 and 1."
            )


def preference_pairs(
    answers: Sequence[str], scores: Sequence[float], min_gap: float
) -> list[tuple[int, int]]:
    """Indices (chosen, rejected) of the pairs that one prompt's answers make.

    The best is paired with the worst, the second best with the second worst, and so on inwards,
    as far as the scores of a pair differ by `min_gap` or more. No answer is in two pairs, no
    label is flipped, and empty answers are left out.
    """
    ranked = sorted((i for i, answer in enumerate(answers) if answer), key=lambda i: -scores[i])
    outer = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
    return [(best, worst) for best, worst in outer if scores[best] - scores[worst] >= min_gap]


def preference_rows(prompt: str, answers: Sequence[str], min_gap: float) -> list[dict[str, object]]:
    """The prompt's pairs as rows of TRL's conversational preference format, with gold scores."""
    scores = reading_ease([prompt] * len(answers), list(answers))
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": answers[chosen]}],
            "rejected": [{"role": "assistant", "content": answers[rejected]}],
            "gold_chosen": round(scores[chosen], 1),
            "gold_rejected": round(scores[rejected], 1),
        }
        for chosen, rejected in preference_pairs(answers, scores, min_gap)
    ]


def main() -> None:
    """Sample, pair and write both splits."""
    (arguments,), _ = parse_recipe(MakePreferencesArguments)
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    random.Random(arguments.seed).shuffle(prompts)
    prompts = prompts[: arguments.limit]
    completions = sample(
        open_base(arguments.model_name_or_path),
        open_tokenizer(arguments.model_name_or_path),
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        max_completion_length=arguments.max_completion_length,
        num_completions=arguments.num_completions,
        temperature=arguments.temperature,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        progress="answers",
    )
    # An answer that met the length limit stays cut where it was: so will the policy's. Cut back
    # to its last full sentence, it would lose the more the longer its sentences are, and length
    # would tell the chosen answer from the rejected one.
    rows = [
        preference_rows(prompt, [one.text.strip() for one in answers], arguments.min_gap)
        for prompt, answers in zip(prompts, completions, strict=True)
    ]
    held_out = round(arguments.test_fraction * len(prompts))
    folder = Path(arguments.output_dir) / "preferences"
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in {"test": rows[:held_out], "train": rows[held_out:]}.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for pairs in part for row in pairs]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder / split}.jsonl: {len(lines)} pairs from {len(part)} prompts")


if __name__ == "__main__":
    run_script(main)
