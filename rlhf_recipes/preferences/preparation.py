"""From a dataset as found to prepared data: parse, filter, measure, split, write."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_recipes.arguments import RecipeError, resolved_recipe
from rlhf_recipes.preferences import DataArguments
from rlhf_recipes.preferences.files import RawRow, read_splits
from rlhf_recipes.preferences.lengths import Ruler, TokenRuler, WordRuler
from rlhf_recipes.preferences.shapes import (
    REASONS,
    Pair,
    Reason,
    UnusableRow,
    is_hh,
    parse_pair,
)
from rlhf_recipes.preferences.splits import hold_out, in_balanced_order, prompt_key
from rlhf_recipes.preferences.statistics import pair_statistics
from rlhf_recipes.records import run_record, write_json

SPLITS = ("train", "validation")
FILES = ("train.jsonl", "validation.jsonl", "run.json")  # run.json says: finished
COLUMNS = {"chosen", "rejected"}
EXAMPLES_PER_REASON = 3
EXAMPLE_CHARACTERS = 60


@dataclass
class Dropped:
    """How many rows of each split were left out for one reason, and the first few of them."""

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Prepared:
    """Pairs ready to be written, what was left out on the way, and how long it took.

    `rows` and `usable` are the sizes of the splits before and after filtering; `pairs` may be
    fewer by `max_train_samples` and `max_eval_samples`.
    """

    pairs: dict[str, list[Pair]]
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
    sieve = _Sieve(ruler, arguments.max_length)
    pool = {"train": sieve.usable(train, "train")}
    if test is None:
        splits = hold_out(pool["train"], arguments.validation_fraction, arguments.seed)
        pool = dict(zip(SPLITS, splits, strict=True))
    else:
        pool["validation"] = sieve.unseen(sieve.usable(test, "validation"), pool["train"])
    _check_pool(arguments.dataset_name, pool, sieve)
    samples = (arguments.max_train_samples, arguments.max_eval_samples)
    return Prepared(
        pairs={
            split: in_balanced_order(pool[split], arguments.seed)[:count]
            for split, count in zip(SPLITS, samples, strict=True)
        },
        rows={"train": len(train), "validation": len(test or [])},
        usable={split: len(pool[split]) for split in SPLITS},
        dropped=sieve.dropped,
        length_unit=ruler.unit,
        duration_seconds=time.perf_counter() - start,
    )


def write_prepared(prepared: Prepared, arguments: DataArguments) -> None:
    """Write OUT/data, OUT/dataset_stats.json and OUT/dataset_distribution.png.

    The files of OUT/data are written beside it and moved when all is done, run.json last: finished
    data that is to be replaced stays until then.
    """
    check_writable(arguments)
    out = Path(arguments.output_dir)
    data, partial = out / "data", out / "data.partial"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _write_files(prepared, arguments, partial)
        data.mkdir(exist_ok=True)
        (data / "run.json").unlink(missing_ok=True)
        for name in FILES:
            (partial / name).replace(data / name)
        partial.rmdir()
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
    table = [f"{'':24}{'train':>12}{'validation':>12}"]
    table += [f"{name:24}{n['train']:>12,}{n['validation']:>12,}" for name, n in lines]
    return "\n".join(table)


def _write_files(prepared: Prepared, arguments: DataArguments, folder: Path) -> None:
    # Imported here: matplotlib is slow to start, and a plan or an error needs no figure.
    from rlhf_recipes.preferences.figure import distribution_figure

    fingerprint = hashlib.sha256()
    for split, pairs in prepared.pairs.items():
        lines = [json.dumps(pair.as_row(), ensure_ascii=False) + "\n" for pair in pairs]
        content = "".join(lines).encode()
        fingerprint.update(content)
        (folder / f"{split}.jsonl").write_bytes(content)
    facts = run_record(
        "data",
        resolved_recipe(arguments),
        dataset_fingerprint=fingerprint.hexdigest(),
        seed=arguments.seed,
        sizes={split: len(pairs) for split, pairs in prepared.pairs.items()},
        duration_seconds=round(prepared.duration_seconds, 3),
    )
    write_json(folder / "run.json", facts)
    statistics = dataset_statistics(prepared, arguments)
    distribution_figure(statistics, folder.parent / "dataset_distribution.png")
    write_json(folder.parent / "dataset_stats.json", statistics)


class _Sieve:
    """Turns rows into pairs and keeps count of those it leaves out."""

    def __init__(self, ruler: Ruler, max_length: int | None) -> None:
        self.dropped: dict[Reason, Dropped] = {reason: Dropped() for reason in REASONS}
        self._ruler = ruler
        self._max_length = max_length

    def usable(self, rows: list[RawRow], split: str) -> list[Pair]:
        """The pairs that can be used, with their lengths."""
        _check_columns(rows)
        hh = is_hh(row.fields for row in rows)
        pairs = []
        for row in rows:
            try:
                pairs.append(parse_pair(row.fields, hh, row.source, row.place))
            except UnusableRow as unusable:
                texts = row.fields["chosen"], row.fields["rejected"]
                self._drop(unusable.reason, split, row.place, *texts)
        for pair, lengths in zip(pairs, self._ruler(pairs), strict=True):
            pair.lengths = lengths
        limit = self._max_length
        return self._keep(
            pairs, lambda p: limit is None or p.lengths.longest <= limit, "too_long", split
        )

    def unseen(self, pairs: list[Pair], train: list[Pair]) -> list[Pair]:
        """The validation pairs whose prompt is no training prompt."""
        seen = {prompt_key(pair.prompt) for pair in train}
        return self._keep(
            pairs, lambda p: prompt_key(p.prompt) not in seen, "prompt_in_train", "validation"
        )

    def _keep(
        self, pairs: list[Pair], fits: Callable[[Pair], bool], reason: Reason, split: str
    ) -> list[Pair]:
        kept = []
        for pair in pairs:
            if fits(pair):
                kept.append(pair)
            else:
                self._drop(reason, split, pair.place, pair.chosen, pair.rejected)
        return kept

    def _drop(
        self, reason: Reason, split: str, place: str, chosen: object, rejected: object
    ) -> None:
        dropped = self.dropped[reason]
        dropped.count[split] += 1
        if len(dropped.examples) < EXAMPLES_PER_REASON:
            dropped.examples.append(
                {"row": place, "chosen": _ending(chosen), "rejected": _ending(rejected)}
            )


def _ending(text: object) -> str:
    """The last characters of a text or of its last message: raw rows may be of any type."""
    if isinstance(text, list) and text:
        text = text[-1].get("content") if isinstance(text[-1], Mapping) else text[-1]
    ending = " ".join(str(text).split())
    return ending if len(ending) <= EXAMPLE_CHARACTERS else "…" + ending[-EXAMPLE_CHARACTERS:]


def _check_columns(rows: list[RawRow]) -> None:
    for row in rows:
        if not row.fields.keys() >= COLUMNS:
            raise RecipeError(
                f"{row.place} has the columns {', '.join(map(repr, row.fields)) or 'none'}; "
                "preference data needs 'chosen' and 'rejected', and may have 'prompt'. "
                "Rename the columns, or give another dataset."
            )


def _check_pool(name: str, pool: Mapping[str, list[Pair]], sieve: _Sieve) -> None:
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
