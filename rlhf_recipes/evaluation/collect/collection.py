"""Collect what evaluation is about, with the models: samples, scores, divergences, verdicts.

Everything that needs a model happens here and is saved; the rest of this folder reads the files.
What is done is kept in `samples/journal/`, so that a collection that was cut off goes on, and one
with another policy or judge does only what is new.
"""

import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from rlhf_recipes.arguments import resolved_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.evaluation.arguments import (
    BASE,
    GOLD,
    REFERENCE,
    REWARD,
    EvaluationArguments,
)
from rlhf_recipes.evaluation.collect.chat_judge import in_order, record_verdicts
from rlhf_recipes.evaluation.collect.journal import Journal
from rlhf_recipes.evaluation.collect.measuring import Meter
from rlhf_recipes.evaluation.collect.provenance import (
    Adapters,
    Model,
    collection_facts,
    digest,
    sampled_models,
    weights_fingerprint,
)
from rlhf_recipes.evaluation.collect.scorers import Panel, Scorer, check_judges, open_panel
from rlhf_recipes.evaluation.metrics.samples import Record
from rlhf_recipes.evaluation.output_files import collecting_folder
from rlhf_recipes.hub.model_card import public_base
from rlhf_recipes.models.loading import open_base
from rlhf_recipes.models.logits import check_logits
from rlhf_recipes.preferences import load_prepared, unique_prompts
from rlhf_recipes.prompts import Prompt, prompt_ids, prompt_text
from rlhf_recipes.records import run_record, write_json, write_json_rows
from rlhf_recipes.roles import Roles


def collect(arguments: EvaluationArguments, adapters: Adapters) -> None:
    """Sample every model on the same held-out prompts and save one record a response.

    Writes `samples/<model>_samples.json`, `samples/verdicts_<judge>.json` for each judge that
    compares, and, last, `samples/collection.json`. All models share one base in memory. Raises
    RecipeError where models cannot be compared, and where samples of other settings are there.
    """
    check_judges(arguments, adapters)
    collection = _Collection(arguments, adapters, held_out_prompts(arguments))
    collection.sample()
    collection.score()
    collection.judge()
    collection.write()


def held_out_prompts(arguments: EvaluationArguments) -> list[Prompt]:
    """The first `eval_prompts` prompts of the validation split, each once; at least two."""
    split = load_prepared(arguments.dataset_name, max_train_samples=1)["validation"]
    prompts: list[Prompt] = list(unique_prompts(split)["prompt"]) if len(split) else []
    if len(prompts) < 2:
        raise RecipeError(
            f"The validation split of {arguments.dataset_name} has {len(prompts)} different "
            "prompts. Intervals and tests are over prompts and need at least two, better 100. "
            "Prepare data with a larger validation split."
        )
    return prompts[: arguments.eval_prompts]


class _Collection:
    """The models of one evaluation, opened, and how far each of their jobs is."""

    def __init__(
        self,
        arguments: EvaluationArguments,
        adapters: Adapters,
        prompts: list[Prompt],
    ) -> None:
        self.arguments = arguments
        self.adapters = adapters
        self.prompts = prompts
        self.texts = [prompt_text(prompt) for prompt in prompts]
        self.folder = collecting_folder(Path(arguments.output_dir))
        self.tokenizer = adapters.tokenizer
        encoded = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        self.by_length = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), i))
        base = adapters.proxy.base
        kwargs = adapters.precision.kwargs()
        self.roles = Roles(open_base(base.name, revision=base.revision or "main", **kwargs))
        check_logits(self.roles.base)
        self.settings = self._settings(encoded)
        for policy in adapters.evaluated:
            if policy.name == policy.run:
                adapter = adapters.policies[policy.name]
                self.roles.attach_saved(policy.run, adapter, trainable=False)
        if adapters.start:
            self.roles.attach_saved(REFERENCE, adapters.start, trainable=False)
        self.models = sampled_models(arguments, adapters)
        # All are opened before anything is sampled: other settings are refused at once.
        self.responses = {
            model.name: self._journal(model.name, self.settings | model.settings)
            for model in self.models
        }
        self.roles.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.panel: Panel = open_panel(arguments, self.roles, adapters)
        self.seconds = 0.0

    def _settings(self, encoded: Sequence[Sequence[int]]) -> dict[str, Any]:
        """What all models' samples share: of other samples at least one of these differs."""
        arguments, adapters = self.arguments, self.adapters
        return {
            "base": {
                "name": public_base(adapters.proxy.base.name),
                "fingerprint": weights_fingerprint(self.roles.base),
                "dtype": str(adapters.precision),
            },
            "reference": adapters.start.fingerprint if adapters.start else None,
            "generation": arguments.generation() | {"batch_size": arguments.batch_size},
            "prompts": {"number": len(self.prompts), "token_ids": digest(encoded)},
        }

    def _journal(self, name: str, settings: Mapping[str, Any]) -> Journal:
        path = self.folder / "journal" / f"{name}.jsonl"
        finished = Path(self.arguments.output_dir) / "samples" / "journal" / path.name
        overwrite = self.arguments.overwrite
        return Journal(path, settings, overwrite=overwrite, finished=finished)

    def sample(self) -> None:
        """Every model's responses and divergences, a batch of prompts at a time."""
        arguments = self.arguments
        reference = REFERENCE if arguments.sft_model_path else None
        meter = Meter(
            self.roles,
            self.tokenizer,
            reference,
            arguments.max_completion_length,
            arguments.temperature,
            arguments.batch_size,
        )
        for model in self.models:
            journal = self.responses[model.name]
            batches = _batches(self.by_length, arguments.batch_size // model.count)
            left = batches[len(journal.entries) :]
            if left and model.policy is not None and model.adapter is not None:
                self.roles.load_role(model.policy.run, model.adapter)
            for batch in tqdm(left, desc=f"{model.name}: responses", disable=not left):
                started = time.monotonic()
                prompts = [self.prompts[i] for i in batch]
                # A model's own and a batch's own: answers of two models are independent, and what
                # a batch draws depends neither on other models nor on where a run was cut off.
                own = [model.seed, zlib.crc32(model.name.encode()), batch[0]]
                seed = int(np.random.SeedSequence(own).generate_state(1)[0])
                found = meter.respond(model.role, prompts, model.count, seed)
                places = [(i, k) for i in batch for k in range(model.count)]
                rows = [
                    {"prompt_id": i, "sample_index": k, **facts}
                    for (i, k), facts in zip(places, found, strict=True)
                ]
                journal.append({"seconds": time.monotonic() - started, "rows": rows})
            self.seconds += sum(entry["seconds"] for entry in journal.entries)
            model.records = self._records(model, journal)

    def _records(self, model: Model, journal: Journal) -> list[Record]:
        rows = in_order([row for entry in journal.entries for row in entry["rows"]])
        return [
            {
                "id": f"{model.name}-{row['prompt_id']:04d}-{row['sample_index']}",
                "prompt_id": row["prompt_id"],
                "prompt": self.texts[row["prompt_id"]],
                "response": row["response"],
                "model": model.name,
                "reference": BASE,
                "seed": model.seed,
                "reward": None,
                "gold": None,
                "scores": {},
                **row,
            }
            for row in rows
        ]

    def score(self) -> None:
        """Every scoring judge's scores of every response."""
        for model in self.models:
            responses = digest([record["response"] for record in model.records])
            settings = {"responses": responses, "batch_size": self.arguments.batch_size}
            for scorer in self.panel.scorers:
                own = {"judge": scorer.identity, **settings}
                self._score(model, scorer, self._journal(f"{model.name}.{scorer.name}", own))

    def _score(self, model: Model, scorer: Scorer, journal: Journal) -> None:
        batches = _batches(model.records, self.arguments.batch_size)
        left = batches[len(journal.entries) :]
        for batch in tqdm(left, desc=f"{model.name}: {scorer.name}", leave=False, disable=not left):
            started = time.monotonic()
            prompts = [self.prompts[record["prompt_id"]] for record in batch]
            scores = scorer(prompts, [record["response"] for record in batch])
            journal.append({"seconds": time.monotonic() - started, "scores": scores})
        self.seconds += sum(entry["seconds"] for entry in journal.entries)
        found = [score for entry in journal.entries for score in entry["scores"]]
        for record, score in zip(model.records, found, strict=True):
            into = record if scorer.name in (REWARD, GOLD) else record["scores"]
            into[scorer.name] = score

    def judge(self) -> None:
        """Every comparing judge's verdicts on the finished models against base."""
        base, *others = self.models
        answers = {(r["prompt_id"], r["sample_index"]): r for r in base.records}
        self.verdicts: dict[str, list[Mapping[str, Any]]] = {}
        for name, judge in self.panel.judges.items():
            self.verdicts[name] = []
            for model in others:
                if not model.finished:
                    continue
                pairs = [(r, answers[r["prompt_id"], r["sample_index"]]) for r in model.records]
                texts = [[own["response"], other["response"]] for own, other in pairs]
                settings = {"judge": judge.identity, "responses": digest(texts)}
                journal = self._journal(f"verdicts_{name}.{model.name}", settings)
                title = f"{model.name}: {name}"
                record_verdicts(judge, pairs, journal, self.arguments.judge_workers, title)
                self.verdicts[name] += in_order(journal.entries)

    def write(self) -> None:
        """The files that the analysis reads; collection.json last, so that it vouches for all."""
        arguments = self.arguments
        (self.folder / "collection.json").unlink(missing_ok=True)
        for path in self.folder.glob("verdicts_*.json"):
            path.unlink()
        for model in self.models:
            write_json_rows(self.folder / f"{model.name}_samples.json", model.records)
        for name, verdicts in self.verdicts.items():
            write_json_rows(self.folder / f"verdicts_{name}.json", verdicts)
        judges = self.panel.described()
        facts = collection_facts(
            arguments, self.settings, self.adapters, self.models, judges, self.prompts
        )
        record = run_record("evaluate", resolved_recipe(arguments))
        facts |= {"duration_seconds": round(self.seconds, 1), "run": record}
        write_json(self.folder / "collection.json", facts)


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    size = max(1, size)
    return [items[start : start + size] for start in range(0, len(items), size)]
