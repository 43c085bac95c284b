"""From a dataset as found to prepared data: parse, filter, measure, split, write."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_recipes.arguments import resolved_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.files import read_splits
from rlhf_recipes.preferences.lengths import Ruler, TokenRuler, WordRuler
from rlhf_recipes.preferences.shapes import REASONS, Pair, Reason
from rlhf_recipes.preferences.sieve import Dropped, Sieve
from rlhf_recipes.preferences.splits import hold_out, in_balanced_order
from rlhf_recipes.preferences.statistics import pair_statistics
from rlhf_recipes.records import run_record, write_json

SPLITS = ("train", "validation")
FILES = ("train.jsonl", "validation.jsonl", "run.json")  # run.json says: finished


@dataclass
class Prepared:
    """Pairs ready to be written, what was left out on the way, and how long it took.

    `rows` and `usable` are the sizes of the splits before and after filtering; `pairs` may be
    fewer by `judge_fraction`, `max_train_samples` and `max_eval_samples`. `judge` has the pairs of
    the training prompts that are kept for a judge.
    """

    pairs: dict[str, list[Pair]]
    judge: list[Pair]
    rows: dict[str, int]
    usable: dict[str, int]
    dropped: dict[Reason, Dropped]
    length_unit: str
    duration_seconds: float


def prepare(arguments: DataArguments) -> Prepared:
    """Balanced training and validation pairs of a dataset; nothing is written.

    A test split is the pool of validation, less the prompts that are in the training pool too.
    Without one, a part of the training prompts is held out.
    """
    start = time.perf_counter()
    train, test = read_splits(
        arguments.dataset_name,
        arguments.dataset_config,
        arguments.dataset_train_split,
        arguments.dataset_test_split,
    )
    ruler: Ruler = WordRuler()
    if arguments.model_name_or_path is not None:
        ruler = TokenRuler(arguments.model_name_or_path, arguments.chat_template)
    sieve = Sieve(ruler, arguments.max_length)
    pool = {"train": sieve.usable(train, "train")}
    if test is None:
        splits = hold_out(pool["train"], arguments.validation_fraction, arguments.seed)
        pool = dict(zip(SPLITS, splits, strict=True))
    else:
        pool["validation"] = sieve.unseen(sieve.usable(test, "validation"), pool["train"])
    _check_pool(arguments.dataset_name, pool, sieve)
    usable = {split: len(pool[split]) for split in SPLITS}
    judge: list[Pair] = []
    if arguments.judge_fraction is not None:
        pool["train"], judge = hold_out(pool["train"], arguments.judge_fraction, arguments.seed)
        _check_pool(arguments.dataset_name, pool, sieve)
    samples = (arguments.max_train_samples, arguments.max_eval_samples)
    return Prepared(
        pairs={
            split: in_balanced_order(pool[split], arguments.seed)[:count]
            for split, count in zip(SPLITS, samples, strict=True)
        },
        judge=in_balanced_order(judge, arguments.seed)[: arguments.max_train_samples],
        rows={"train": len(train), "validation": len(test or [])},
        usable=usable,
        dropped=sieve.dropped,
        length_unit=ruler.unit,
        duration_seconds=time.perf_counter() - start,
    )


def write_prepared(prepared: Prepared, arguments: DataArguments) -> None:
    """Write OUT/data, OUT/dataset_stats.json, OUT/dataset_distribution.png, perhaps OUT/judge/data.

    The files of OUT/data are written beside it and moved when all is done, run.json last: finished
    data that is to be replaced stays until then.
    """
    check_writable(arguments)
    out = Path(arguments.output_dir)
    data, judge = out / "data", out / "judge" / "data"
    try:
        _write_files(prepared.pairs, prepared, arguments, data)
        if prepared.judge:
            pairs = {"train": prepared.judge, "validation": prepared.pairs["validation"]}
            _write_files(pairs, prepared, arguments, judge)
        _write_statistics(prepared, arguments, out)
        # Neither counts as finished beside the other's old pairs, which may be its own now.
        for folder in (data, judge):
            (folder / "run.json").unlink(missing_ok=True)
        if prepared.judge:
            _finish(judge)
        _finish(data)
    except OSError as error:
        raise RecipeError(
            f"{error.filename or out} cannot be written ({error.strerror}). Free disk space or "
            "change its permissions, or set `output_dir` to another folder."
        ) from error


def check_writable(arguments: DataArguments) -> None:
    """Raise RecipeError if OUT/data holds something that is not to be replaced."""
    data = Path(arguments.output_dir) / "data"
    if not (data / "run.json").exists():
        taken = [name for name in FILES if (data / name).exists()]
        if taken and not data.with_name("data.partial").exists():
            raise RecipeError(
                f"{data} holds {' and '.join(taken)} that were not written by this script, and "
                "prepared data would replace them. Set `output_dir` to another folder."
            )
    elif not arguments.overwrite:
        raise RecipeError(
            f"{data} holds finished data, which is not replaced without being told to. "
            "Add `--overwrite`, or set `output_dir` to another folder."
        )


def dataset_statistics(prepared: Prepared, arguments: DataArguments) -> dict[str, object]:
    """What dataset_stats.json holds: sizes, rows left out, and the statistics of each split."""
    return {
        "dataset_name": arguments.dataset_name,
        "length_unit": prepared.length_unit,
        "max_length": arguments.max_length,
        "sizes": {
            split: {
                "rows": prepared.rows[split],
                "usable": prepared.usable[split],
                "written": len(prepared.pairs[split]),
            }
            for split in SPLITS
        },
        "judge_pairs": len(prepared.judge),
        "dropped": {
            reason: {"meaning": REASONS[reason], **vars(dropped)}
            for reason, dropped in prepared.dropped.items()
        },
        "splits": pair_statistics(prepared.pairs),
    }


def size_table(prepared: Prepared) -> str:
    """Rows found, left out by reason, usable and written, for each split."""
    lines = [("rows found", prepared.rows)]
    lines += [
        (f"- {reason}", d.count) for reason, d in prepared.dropped.items() if any(d.count.values())
    ]
    lines += [("usable", prepared.usable), ("written", {s: len(prepared.pairs[s]) for s in SPLITS})]
    if prepared.judge:
        lines.append(("for a judge", {"train": len(prepared.judge), "validation": 0}))
    table = [f"{'':24}{'train':>12}{'validation':>12}"]
    table += [f"{name:24}{n['train']:>12,}{n['validation']:>12,}" for name, n in lines]
    return "\n".join(table)


def _write_files(
    written: Mapping[str, list[Pair]], prepared: Prepared, arguments: DataArguments, data: Path
) -> None:
    partial = data.with_name(f"{data.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    fingerprint = hashlib.sha256()
    for split, pairs in written.items():
        lines = [json.dumps(pair.as_row(), ensure_ascii=False) + "\n" for pair in pairs]
        content = "".join(lines).encode()
        fingerprint.update(content)
        (partial / f"{split}.jsonl").write_bytes(content)
    facts = run_record(
        "data",
        resolved_recipe(arguments),
        dataset_fingerprint=fingerprint.hexdigest(),
        seed=arguments.seed,
        sizes={split: len(pairs) for split, pairs in written.items()},
        duration_seconds=round(prepared.duration_seconds, 3),
    )
    write_json(partial / "run.json", facts)


def _finish(data: Path) -> None:
    partial = data.with_name(f"{data.name}.partial")
    data.mkdir(exist_ok=True)
    for name in FILES:
        (partial / name).replace(data / name)
    partial.rmdir()


def _write_statistics(prepared: Prepared, arguments: DataArguments, out: Path) -> None:
    # Imported here: matplotlib is slow to start, and a plan or an error needs no figure.
    from rlhf_recipes.preferences.figure import distribution_figure

    statistics = dataset_statistics(prepared, arguments)
    distribution_figure(statistics, out / "dataset_distribution.png")
    write_json(out / "dataset_stats.json", statistics)


def _check_pool(name: str, pool: Mapping[str, list[Pair]], sieve: Sieve) -> None:
    """Raise RecipeError unless both splits have pairs and all pairs are of one shape."""
    empty = [split for split in SPLITS if not pool[split]]
    if empty:
        reasons = [
            f"- {reason}: {sum(d.count.values()):,} ({REASONS[reason]})"
            for reason, d in sieve.dropped.items()
            if any(d.count.values())
        ]
        raise RecipeError(
            f"`{name}` leaves nothing for {' and '.join(empty)}. Rows left out:\n"
            + "\n".join(reasons or ["- none: there were too few rows to begin with"])
            + "\nCheck the data, or raise `max_length` if it is the reason."
        )
    plain = [p for pairs in pool.values() for p in pairs if isinstance(p.prompt, str)]
    total = sum(len(pairs) for pairs in pool.values())
    if 0 < len(plain) < total:
        raise RecipeError(
            f"`{name}` mixes plain text ({len(plain):,} rows, such as {plain[0].place}) with "
            f"conversations ({total - len(plain):,} rows). A model is trained on one "
            "of them: give the parts as separate datasets."
        )
