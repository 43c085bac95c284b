"""Collect samples, scores, divergences and verdicts, all that evaluation needs the models for.

Finished work is kept in `samples/journal/`, so that an interrupted collection goes on, and one with
another policy or judge does only the new work.
"""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from rlhf_recipes.evaluation.collect.measuring import KLSampler
from rlhf_recipes.evaluation.collect.processes import check_same, from_main, in_turns, is_main
from rlhf_recipes.evaluation.collect.provenance import (
    Adapters,
    SampledModel,
    collection_facts,
    digest,
    sampled_models,
    weights_fingerprint,
)
from rlhf_recipes.evaluation.collect.scorers import (
    Judges,
    ScoringJudge,
    check_judges,
    open_judges,
)
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
    """Sample every model on the same held-out prompts and save one record per completion.

    Writes `samples/<model>_samples.json`, `samples/verdicts_<judge>.json` for each judge that
    compares, and, last, `samples/collection.json`. All models share one base in memory. Raises
    RecipeError for models that cannot be compared, and for existing samples of other settings.

    The processes of a launch sample and score a batch each at a time, and the main one alone asks
    the judges that compare and writes. A batch has its own seed, so the samples of a prompt do not
    depend on the number of processes. It returns earlier on the others.
    """
    check_judges(arguments, adapters)
    collector = _Collector(arguments, adapters, held_out_prompts(arguments))
    collector.sample()
    collector.score()
    if is_main():
        collector.judge()
        collector.write()


def held_out_prompts(arguments: EvaluationArguments) -> list[Prompt]:
    """Return the first `eval_prompts` distinct prompts of the validation split, at least two."""
    split = load_prepared(arguments.dataset_name, max_train_samples=1)["validation"]
    prompts: list[Prompt] = list(unique_prompts(split)["prompt"]) if len(split) else []
    if len(prompts) < 2:
        raise RecipeError(
            f"The validation split of {arguments.dataset_name} has {len(prompts)} different "
            "prompts. Intervals and tests are over prompts and need at least two, better 100. "
            "Prepare data with a larger validation split."
        )
    return prompts[: arguments.eval_prompts]


class _Collector:
    """The opened models of one evaluation, and the progress of each of their jobs."""

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
        check_same(self.settings | {model.name: model.settings for model in self.models})
        # All journals are opened before anything is sampled, so other settings are refused at once.
        self.responses = {
            model.name: self._open_journal(model.name, self.settings | model.settings)
            for model in self.models
        }
        self.roles.eval()
        self.judges: Judges = open_judges(arguments, self.roles, adapters)
        check_same({judge.name: judge.identity for judge in self.judges.scoring})
        self.seconds = 0.0

    def _settings(self, encoded: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return the settings that all models' samples have in common."""
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

    def _open_journal(self, name: str, settings: Mapping[str, Any]) -> Journal:
        """Return a journal with the same entries on every process, which the main one writes."""
        return from_main(lambda: self._journal(name, settings))

    def _complete(
        self,
        journal: Journal,
        batches: Sequence[Any],
        work: Callable[[Any], dict[str, Any]],
        title: str,
    ) -> None:
        """Do the work on the batches that a journal does not have yet, and append it."""
        remaining = batches[len(journal.entries) :]
        shown = is_main() and len(remaining) > 0
        with tqdm(total=len(remaining), desc=title, disable=not shown) as bar:
            started = time.monotonic()
            for results in in_turns(remaining, work):
                now = time.monotonic()
                for result in results:  # computed at the same time
                    journal.append({"seconds": (now - started) / len(results), **result})
                bar.update(len(results))
                started = now
        self.seconds += sum(entry["seconds"] for entry in journal.entries)

    def sample(self) -> None:
        """Sample completions and measure divergences of every model, in batches of prompts."""
        arguments = self.arguments
        reference = REFERENCE if arguments.sft_model_path else None
        sampler = KLSampler(
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
            remaining = len(journal.entries) < len(batches)
            if remaining and model.policy is not None and model.adapter is not None:
                self.roles.load_role(model.policy.run, model.adapter)
            work = partial(self._sample_batch, sampler, model)
            self._complete(journal, batches, work, f"{model.name}: completions")
            model.records = self._records(model, journal)

    def _sample_batch(
        self, sampler: KLSampler, model: SampledModel, batch: Sequence[int]
    ) -> dict[str, Any]:
        prompts = [self.prompts[i] for i in batch]
        # One seed per model and batch: completions of two models are independent, and those of a
        # batch depend neither on other models nor on where a run was cut off.
        entropy = [model.seed, zlib.crc32(model.name.encode()), batch[0]]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        completions = sampler.sample(model.role, prompts, model.count, seed)
        indices = [(i, k) for i in batch for k in range(model.count)]
        rows = [
            {"prompt_id": i, "sample_index": k, **completion}
            for (i, k), completion in zip(indices, completions, strict=True)
        ]
        return {"rows": rows}

    def _records(self, model: SampledModel, journal: Journal) -> list[Record]:
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
        """Score every completion with every scoring judge."""
        for model in self.models:
            responses = digest([record["response"] for record in model.records])
            settings = {"responses": responses, "batch_size": self.arguments.batch_size}
            for judge in self.judges.scoring:
                name = f"{model.name}.{judge.name}"
                journal = self._open_journal(name, {"judge": judge.identity, **settings})
                self._score(model, judge, journal)

    def _score(self, model: SampledModel, judge: ScoringJudge, journal: Journal) -> None:
        batches = _batches(model.records, self.arguments.batch_size)
        work = partial(self._score_batch, judge)
        self._complete(journal, batches, work, f"{model.name}: {judge.name}")
        scores = [score for entry in journal.entries for score in entry["scores"]]
        for record, score in zip(model.records, scores, strict=True):
            fields = record if judge.name in (REWARD, GOLD) else record["scores"]
            fields[judge.name] = score

    def _score_batch(self, judge: ScoringJudge, batch: Sequence[Record]) -> dict[str, Any]:
        prompts = [self.prompts[record["prompt_id"]] for record in batch]
        return {"scores": judge(prompts, [record["response"] for record in batch])}

    def judge(self) -> None:
        """Compare the finished models with base by every comparing judge."""
        base, *others = self.models
        of_base = {(r["prompt_id"], r["sample_index"]): r for r in base.records}
        self.verdicts: dict[str, list[Mapping[str, Any]]] = {}
        for name, judge in self.judges.comparing.items():
            self.verdicts[name] = []
            for model in others:
                if not model.finished:
                    continue
                pairs = [(r, of_base[r["prompt_id"], r["sample_index"]]) for r in model.records]
                texts = [[r["response"], opponent["response"]] for r, opponent in pairs]
                settings = {"judge": judge.identity, "responses": digest(texts)}
                journal = self._journal(f"verdicts_{name}.{model.name}", settings)
                title = f"{model.name}: {name}"
                record_verdicts(judge, pairs, journal, self.arguments.judge_workers, title)
                self.verdicts[name] += in_order(journal.entries)

    def write(self) -> None:
        """Write the files that the analysis reads; collection.json last, once all are complete."""
        arguments = self.arguments
        (self.folder / "collection.json").unlink(missing_ok=True)
        for path in self.folder.glob("verdicts_*.json"):
            path.unlink()
        for model in self.models:
            write_json_rows(self.folder / f"{model.name}_samples.json", model.records)
        for name, verdicts in self.verdicts.items():
            write_json_rows(self.folder / f"verdicts_{name}.json", verdicts)
        judges = self.judges.described()
        facts = collection_facts(
            arguments, self.settings, self.adapters, self.models, judges, self.prompts
        )
        record = run_record("evaluate", resolved_recipe(vars(arguments)))
        facts |= {"duration_seconds": round(self.seconds, 1), "run": record}
        write_json(self.folder / "collection.json", facts)


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    size = max(1, size)
    return [items[start : start + size] for start in range(0, len(items), size)]
