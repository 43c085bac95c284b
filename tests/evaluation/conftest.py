"""Synthetic samples with known effects: what a collection writes, without any model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_recipes.evaluation.analysis import analyze

Record = dict[str, Any]

SUBJECTS = ("tea", "sleep", "rivers", "bread", "clocks", "gardens", "trains", "winter")
QUESTIONS = (
    "Why do people care about {}?",
    "Explain {} to a child of ten.",
    "What should a beginner know about {}?",
    "Give three facts about {}.",
    "How did {} change over the years?",
    "Write a short note on {}.",
    "What is often misunderstood about {}?",
    "Describe a good day that involves {}.",
)
SENTENCES = (
    "Many people think of {} as something simple.",
    "There is more to {} than one can see at first.",
    "A small habit makes a large difference here.",
    "It helps to begin with one clear step and to keep at it.",
    "Older books describe {} in a very different way.",
    "Friends and family often know a trick or two.",
    "In the end, patience matters more than talent.",
    "You can try this at home with what you have.",
)
# Mean of proxy, gold and KL over base: ppo learns, grpo learns less, dpo learns nothing.
EFFECTS = {
    "base": (0.0, 0.0, 0.0),
    "ppo": (1.3, 14.0, 6.0),
    "grpo": (0.8, 8.0, 2.5),
    "dpo": (0.1, 0.5, 4.0),
    "control": (0.0, 0.0, 0.0),
}


def prompt_text(index: int) -> str:
    again = f" ({index})" if index >= 64 else ""
    return QUESTIONS[index % 8].format(SUBJECTS[(index // 8) % 8]) + again


def make_records(
    name: str, effect: tuple[float, float, float], prompts: int, samples: int, *, gold: bool = True
) -> list[Record]:
    """Records of one model: rewards share a part by prompt, so that pairing matters."""
    rng = np.random.default_rng([5, *name.encode()])
    shared = np.random.default_rng(7).normal(size=(prompts, 2))
    records = []
    for i in range(prompts):
        for k in range(samples):
            proxy = shared[i, 0] + effect[0] + rng.normal()
            judged = 52 + 6 * shared[i, 1] + effect[1] + 4 * (proxy - effect[0]) + 6 * rng.normal()
            kl = effect[2] * rng.gamma(6, 1 / 6)
            subject = SUBJECTS[(i // 8) % 8]
            chosen = rng.choice(len(SENTENCES), size=int(rng.integers(2, 6)), replace=False)
            text = " ".join(SENTENCES[j].format(subject) for j in chosen)
            if name == "ppo" and i % 16 == 3:
                text = "Sure. " + "It is good for you. " * 9
            if name == "dpo" and i % 20 == 5:
                text += f"\n\nHuman: and what else?\n\nAssistant: More about {subject}."
            tokens = len(text.split()) + 4
            records.append(
                {
                    "id": f"{name}-{i:04d}-{k}",
                    "prompt_id": i,
                    "prompt": prompt_text(i),
                    "response": text,
                    "model": name,
                    "reference": "base",
                    "sample_index": k,
                    "seed": 42,
                    "n_tokens": tokens,
                    "finish": "length" if tokens > 45 else "eos",
                    "reward": float(proxy),
                    "gold": float(judged) if gold else None,
                    "kl": float(kl),
                    "kl_k1": float(kl + 1.5 * np.sqrt(kl) * rng.normal()),
                    "kl_per_token": float(kl / tokens),
                    "logp_policy": -1.9 * tokens,
                    "logp_ref": -1.9 * tokens - float(kl),
                    "entropy": float(1.4 + 0.1 * rng.normal()),
                    "kl_curve": curve(kl, tokens),
                }
            )
    return records


def curve(kl: float, tokens: int) -> list[float]:
    """A KL that is spent early in the response."""
    shares = np.exp(-np.arange(tokens) / 12)
    return [float(share) for share in kl * shares / shares.sum()]


def fingerprint(name: str) -> str:
    """What identifies the adapter of a model, in its collection and in its run."""
    return hashlib.sha256(name.encode()).hexdigest()


def write_collection(folder: Path, models: dict[str, list[Record]], **more: Any) -> Path:
    """Write samples/ as a collection does, with more facts; returns the output folder."""
    samples = folder / "samples"
    samples.mkdir(parents=True)
    facts = {
        "models": {
            name: {
                "adapter": None if name in ("base", "control") else f"outputs/models/{name}_model",
                "fingerprint": None if name in ("base", "control") else fingerprint(name),
            }
            for name in models
        },
        "base": "demo",
        "reward_model": "outputs/models/reward_model",
        "gold": "recipes/demo/plain_english.py:reading_ease",
        "generation": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_completion_length": 64},
        "seed": 42,
        "dataset": "outputs/data",
        "run": {
            "recipe": {"seed": 42},
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
            "created": "2026-11-22T14:00:00+00:00",
            "versions": {"python": "3.11.2", "torch": "2.13.0", "trl": "1.16.0"},
        },
        **more,
    }
    (samples / "collection.json").write_text(json.dumps(facts))
    for name, records in models.items():
        (samples / f"{name}_samples.json").write_text(json.dumps(records))
    return folder


def log_histories() -> dict[str, list[dict[str, Any]]]:
    """Logs as the trainers write them, each with its own names."""
    rng = np.random.default_rng(3)
    logs: dict[str, list[dict[str, Any]]] = {"reward": [], "ppo": [], "grpo": [], "dpo": []}
    for step in range(1, 81):
        learned = 1 - np.exp(-step / 25)
        noise = rng.normal(size=8) * 0.1
        pair = {"loss": 0.69 - 0.3 * learned + noise[0], "grad_norm": 2 + 4 * abs(noise[1])}
        accuracy, margin = 0.5 + 0.2 * learned + noise[2], learned + noise[3]
        logs["reward"].append({"step": step, **pair, "accuracy": accuracy, "margin": margin})
        rewards = {"rewards/accuracies": accuracy, "rewards/margins": margin / 4}
        logs["dpo"].append({"step": step, **pair, **rewards})
        online = {"step": step, "loss": noise[4], "grad_norm": 1 + abs(noise[5])}
        online["completions/mean_length"] = 60 + 60 * noise[6]
        entropy, kl = 1.5 - 0.4 * learned, 4 * learned + abs(noise[7])
        scores = {"reward": learned + noise[0], "kl": kl / 60, "entropy": entropy}
        logs["grpo"].append(online | scores)
        if step % 2:
            scores = {"objective/scores": 1.4 * learned + noise[1], "objective/kl": kl}
            logs["ppo"].append(online | scores | {"policy/entropy_avg": entropy})
        if step % 20 == 0:
            held_out = {"eval_loss": 0.66 - 0.2 * learned, "eval_accuracy": 0.5 + 0.15 * learned}
            logs["reward"].append({"step": step, **held_out})
    logs["ppo"].append({"step": 80, "train_runtime": 61.0, "train_loss": 0.1})
    return logs


def make_pairs(n: int = 200) -> list[dict[str, Any]]:
    """Preference pairs scored by a reward model that is right about two times in three."""
    rng = np.random.default_rng(11)
    pairs = []
    for i in range(n):
        gap = int(rng.integers(-20, 21))
        margin = 0.5 + 0.03 * gap + rng.normal()
        refusal = "I'm sorry, but I can't help with that." if i % 9 == 0 else None
        pairs.append(
            {
                "prompt": prompt_text(i),
                "chosen": refusal or SENTENCES[i % 8].format("tea"),
                "rejected": SENTENCES[(i * 3 + 1) % 8].format("tea"),
                "chosen_reward": float(margin),
                "rejected_reward": 0.0,
                "chosen_tokens": 40 + gap,
                "rejected_tokens": 40,
                "turns": 1 + i % 5,
                "source": "demo",
            }
        )
    return pairs


@pytest.fixture(scope="session")
def records_of() -> Callable[..., list[Record]]:
    return make_records


@pytest.fixture(scope="session")
def collection_in() -> Callable[..., Path]:
    return write_collection


@pytest.fixture(scope="session")
def pairs() -> list[dict[str, Any]]:
    return make_pairs()


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole output folder, analyzed once: 64 prompts, 5 models, gold, curves, reward model."""
    output = tmp_path_factory.mktemp("run") / "outputs"
    models = {name: make_records(name, effect, 64, 1) for name, effect in EFFECTS.items()}
    for record in models["base"] + models["control"]:
        record["kl"] = record["kl_k1"] = 0.0
        record["kl_curve"] = [0.0] * record["n_tokens"]
    write_collection(output, models)
    for stage, log in log_histories().items():
        folder = output / "models" / f"{stage}_model"
        folder.mkdir(parents=True)
        state = {"log_history": log, "train_batch_size": 4}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        run = {"stage": stage, "duration_seconds": 183.4, "processes": 1}
        run |= {"recipe": {}, "fingerprint": fingerprint(stage)}
        (folder / "run.json").write_text(json.dumps(run))
    (output / "models" / "reward_model" / "scores.json").write_text(json.dumps(make_pairs()))
    analyze(output)
    return output


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four samples a prompt, checkpoints of two runs, three seeds of another, two more judges."""
    output = tmp_path_factory.mktemp("search") / "outputs"
    effects = {"base": (0.0, 0.0, 0.0), "control": (0.0, 0.0, 0.0)}
    families, checkpoints = {}, {}
    for i, step in enumerate((25, 50, 75, 100, 150)):
        # The proxy of ppo rises all the way, its gold rises and falls; grpo's both rise.
        effects[f"ppo-{step}"] = (0.4 + 0.3 * i, 5 + 4 * i - 1.6 * i * i, 1 + 2.5 * i)
        effects[f"grpo-{step}"] = (0.3 + 0.15 * i, 3 + 2.0 * i, 0.6 + i)
        for family in ("ppo", "grpo"):
            families[f"{family}-{step}"], checkpoints[f"{family}-{step}"] = family, step
    for seed in (1, 2, 3):
        effects[f"dpo-seed{seed}"], families[f"dpo-seed{seed}"] = (0.5, 6.0 + seed, 5.0), "dpo"
    models = {name: make_records(name, effect, 40, 4) for name, effect in effects.items()}
    for record in models["base"] + models["control"]:
        record["kl"] = record["kl_k1"] = 0.0
        record["kl_curve"] = [0.0] * record["n_tokens"]
    for record in (record for records in models.values() for record in records):
        record["scores"] = {"brevity": -float(record["n_tokens"])}
    write_collection(output, models, families=families, checkpoints=checkpoints)
    won = [(1.0, 1.0)] * 28 + [(1.0, 0.0)] * 4 + [(0.0, 0.0)] * 8
    facts = {"sample_index": 0, "model": "grpo-150", "against": "base", "readable": True}
    verdicts = [
        {"prompt_id": i, **facts, "outcome": (a + b) / 2, "first": a, "second": b}
        for i, (a, b) in enumerate(won)
    ]
    (output / "samples" / "verdicts_chat.json").write_text(json.dumps(verdicts))
    analyze(output)
    return output
