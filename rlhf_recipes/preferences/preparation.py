"""Prepare preference data: read, filter, split and sample a dataset, and write the pairs."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from rlhf_recipes.arguments import resolved_recipe
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.arguments import DataArguments
from rlhf_recipes.preferences.files import Splits, read_splits
from rlhf_recipes.preferences.filtering import Dropped, RowFilter
from rlhf_recipes.preferences.findings import Findings, count_repeats
from rlhf_recipes.preferences.lengths import LengthCounter, TokenCounter, WordCounter
from rlhf_recipes.preferences.reader import Reader
from rlhf_recipes.preferences.shapes import NOT_MEASURED, REASONS, REMEDIES, Pair, Reason
from rlhf_recipes.preferences.splits import hold_out, in_stratified_order
from rlhf_recipes.preferences.statistics import first_turn_counts, pair_statistics
from rlhf_recipes.records import run_record, write_json

SPLITS = ("train", "validation")
SPLIT_FILES = ("train.jsonl", "validation.jsonl")
FOLDERS = ("data", "judge/data")  # finished once they contain run.json
STATISTICS, FIGURE = "dataset_stats.json", "dataset_distribution.png"
STAGED = ".staged."  # prefix of a file that is written and not yet renamed


@dataclass
class Prepared:
    """Pairs ready to be written, with the counts and findings of their preparation.

    Args:
        pairs: The pairs of each split, in stratified order.
        judge: The training pairs that are reserved for a judge.
        rows: Number of rows read, by split.
        usable: Number of pairs after filtering, by split. `pairs` may have fewer because of
            `judge_fraction`, `max_train_samples` and `max_eval_samples`.
        not_measured: Number of the usable pairs whose length was not counted because a sample did
            not need them. Some of them may be too long.
        example: Prompt, chosen and rejected of one pair as the model will see them.
    """

    pairs: dict[str, list[Pair]]
    judge: list[Pair]
    rows: dict[str, int]
    usable: dict[str, int]
    not_measured: dict[str, int]
    dropped: dict[Reason, Dropped]
    findings: Findings
    example: tuple[str, str, str]
    length_unit: str
    duration_seconds: float


def prepare(arguments: DataArguments) -> Prepared:
    """Return the training and validation pairs of a dataset, and write nothing.

    Validation pairs come from the test split, without those whose first user turn is in a training
    pair. If there is no test split, a fraction of the training pairs is held out.

    Raises RecipeError if the dataset cannot be read or a split is left without pairs.
    """
    start = time.perf_counter()
    splits = read_splits(
        arguments.dataset_name,
        arguments.dataset_config,
        arguments.dataset_train_split,
        arguments.dataset_test_split,
    )
    count_lengths: LengthCounter = WordCounter()
    if arguments.model_name_or_path is not None:
        count_lengths = TokenCounter(
            arguments.model_name_or_path,
            arguments.chat_template,
            arguments.model_revision,
            arguments.chat_template_kwargs,
        )
    reader = Reader(arguments.columns)
    row_filter = RowFilter(reader, count_lengths, arguments.max_length)
    pool = _pool(splits, row_filter, arguments)
    reader.check_mapping()
    _check_pool(arguments.dataset_name, pool, row_filter)
    repeats = count_repeats(pair for pairs in pool.values() for pair in pairs)
    too_long = row_filter.dropped["too_long"].count
    usable = {split: len(pool[split]) + too_long[split] for split in SPLITS}
    judge: list[Pair] = []
    if arguments.judge_fraction is not None:
        pool["train"], judge = hold_out(pool["train"], arguments.judge_fraction, arguments.seed)
        _check_pool(arguments.dataset_name, {**pool, "a judge": judge}, row_filter)
    cut = any(pair.cut for pairs in pool.values() for pair in pairs)
    pairs, not_measured = _samples(pool, row_filter, arguments)
    judge, _ = _sample(judge, "train", arguments.max_train_samples, row_filter, arguments.seed)
    _check_pool(arguments.dataset_name, pairs, row_filter)
    return Prepared(
        pairs=pairs,
        judge=judge,
        rows=row_filter.rows,
        usable={split: usable[split] - too_long[split] for split in SPLITS},
        not_measured=not_measured,
        dropped=row_filter.dropped,
        findings=Findings(
            formats=reader.formats,
            ignored_columns=sorted(reader.ignored),
            unread_files=list(splits.unread),
            notes=row_filter.notes,
            cut=cut,
            **repeats,
        ),
        example=count_lengths.example(pairs["train"][0]),
        length_unit=count_lengths.unit,
        duration_seconds=time.perf_counter() - start,
    )


def _pool(splits: Splits, row_filter: RowFilter, arguments: DataArguments) -> dict[str, list[Pair]]:
    """Return the usable pairs of each split; lengths are counted here unless a sample is drawn."""
    train = row_filter.parse(splits.train, "train")
    if arguments.max_train_samples is None:
        train = row_filter.within_max_length(train, "train")
    if splits.test is None:
        sides = hold_out(train, arguments.validation_fraction, arguments.seed)
        return dict(zip(SPLITS, sides, strict=True))
    test = row_filter.parse(splits.test, "validation")
    if arguments.max_eval_samples is None:
        test = row_filter.within_max_length(test, "validation")
    return {"train": train, "validation": row_filter.without_train_prompts(test, train)}


def _samples(
    pool: Mapping[str, list[Pair]], row_filter: RowFilter, arguments: DataArguments
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    """Return the pairs to write, and the number of unmeasured pairs, of each split."""
    counts = {"train": arguments.max_train_samples, "validation": arguments.max_eval_samples}
    pairs: dict[str, list[Pair]] = {}
    not_measured: dict[str, int] = {}
    for split in SPLITS:
        pairs[split], not_measured[split] = _sample(
            pool[split], split, counts[split], row_filter, arguments.seed
        )
    return pairs, not_measured


def _sample(
    pairs: Sequence[Pair], split: str, count: int | None, row_filter: RowFilter, seed: int
) -> tuple[list[Pair], int]:
    """Return the first `count` pairs in stratified order within `max_length`.

    The second result is the number of pairs whose length was not counted. The order is drawn before
    lengths are known, so pairs that are too long are dropped from a random order: each stratum
    keeps the fraction of its pairs that fit, as if the length of all had been counted.
    """
    ordered = in_stratified_order(pairs, seed)
    if count is None:
        if any(pair.lengths is NOT_MEASURED for pair in ordered):
            ordered = row_filter.within_max_length(ordered, split)
        return ordered, 0
    return row_filter.first_within_max_length(ordered, count, split)


def write_prepared(prepared: Prepared, arguments: DataArguments) -> None:
    """Write data/, judge/data/ if there is a judge, dataset_stats.json and the figure.

    Each file is first written under a temporary name in its folder. When all are complete they are
    renamed, data/run.json last. So finished data stays until its replacement is complete, and a
    run that is killed at any point continues with the same command.

    Raises RecipeError if something that must not be replaced is in the way, or if writing fails.
    """
    check_writable(arguments)
    out = Path(arguments.output_dir)
    training = {"judge/data": prepared.judge, "data": prepared.pairs["train"]}
    folders = {name: pairs for name, pairs in training.items() if pairs}
    files = [out / name / file for name in folders for file in SPLIT_FILES]
    files += [out / STATISTICS, out / FIGURE]
    try:
        try:
            _stage(prepared, arguments, folders)
        except OSError:
            for file in filter(Path.is_file, map(_staged, files)):
                file.unlink()  # frees the space on a full disk
            raise
        # A pair may move from one folder to the other: neither is finished until both are replaced.
        (out / "data/run.json").unlink(missing_ok=True)
        if prepared.judge:
            (out / "judge/data/run.json").unlink(missing_ok=True)
        else:
            _remove_judge(out / "judge/data")
        for file in (*files, *(out / name / "run.json" for name in folders)):
            _staged(file).replace(file)
    except OSError as error:
        raise RecipeError(
            f"{error.filename or out} cannot be written ({error.strerror}). Free disk space or "
            "change its permissions, or set `output_dir` to another folder."
        ) from error


def check_writable(arguments: DataArguments) -> None:
    """Raise RecipeError if something that must not be replaced is in the way."""
    out = Path(arguments.output_dir)
    if (out / "data/run.json").exists() and not arguments.overwrite:
        raise RecipeError(
            f"{out / 'data'} already contains finished data. Pass `--overwrite` to replace it, or "
            "set `output_dir` to another folder."
        )
    foreign = _foreign_files(out)
    if foreign:
        raise RecipeError(
            f"{out} holds {' and '.join(foreign)}, not written by this script (or changed since), "
            "which prepared data would replace. Set `output_dir` to another folder."
        )
    source = Path(arguments.dataset_name).expanduser().resolve()
    for name in FOLDERS:
        if source.is_relative_to((out / name).resolve()):
            raise RecipeError(
                f"`dataset_name` is {arguments.dataset_name}, which prepared data would replace "
                "while it is read. Set `output_dir` to another folder."
            )


def encoded_rows(pairs: Sequence[Pair]) -> Iterator[bytes]:
    """Yield the line of each pair in a prepared file."""
    for pair in pairs:
        yield orjson.dumps(pair.as_row(), option=orjson.OPT_APPEND_NEWLINE)


def dataset_statistics(prepared: Prepared, arguments: DataArguments) -> dict[str, object]:
    """Return the contents of dataset_stats.json: sizes, dropped rows, statistics of each split."""
    return {
        "dataset_name": arguments.dataset_name,
        "length_unit": prepared.length_unit,
        "max_length": arguments.max_length,
        "sizes": {
            split: {
                "rows": prepared.rows[split],
                "usable": prepared.usable[split],
                "written": len(prepared.pairs[split]),
                "not_measured": prepared.not_measured[split],
            }
            for split in SPLITS
        },
        **prepared.findings.as_dict(),
        "judge_pairs": len(prepared.judge),
        "first_turns": first_turn_counts({**prepared.pairs, "judge": prepared.judge}),
        "dropped": {
            reason: {"meaning": REASONS[reason], **vars(dropped)}
            for reason, dropped in prepared.dropped.items()
        },
        "splits": pair_statistics(prepared.pairs),
    }


def size_table(prepared: Prepared) -> str:
    """Return a table of the rows read, dropped by reason, usable and written, for each split."""
    lines = [("rows", prepared.rows)]
    lines += [
        (f"- {reason}", d.count) for reason, d in prepared.dropped.items() if any(d.count.values())
    ]
    lines.append(("usable", prepared.usable))
    if any(prepared.not_measured.values()):
        lines.append(("- not measured", prepared.not_measured))
    lines += [("pairs", {s: len(prepared.pairs[s]) for s in SPLITS})]
    if prepared.judge:
        lines.append(("for a judge", {"train": len(prepared.judge), "validation": 0}))
    turns = first_turn_counts(prepared.pairs)
    lines.append(("first user turns", turns["different"]))
    lines.append(("- in both", dict.fromkeys(SPLITS, turns["shared"]["train and validation"])))
    table = [f"{'':24}{'train':>12}{'validation':>12}"]
    table += [f"{name:24}{n['train']:>12,}{n['validation']:>12,}" for name, n in lines]
    return "\n".join(table)


def _staged(file: Path) -> Path:
    return file.with_name(f"{STAGED}{file.name}")


def _stage(prepared: Prepared, arguments: DataArguments, folders: Mapping[str, list[Pair]]) -> None:
    """Write every file under its temporary name, data/run.json last: it tells that all are there.

    Args:
        folders: The training pairs of each folder, those of data/ last.
    """
    # Imported here because matplotlib starts slowly, and a plan or an error needs no figure.
    from rlhf_recipes.preferences.figure import distribution_figure

    out = Path(arguments.output_dir)
    hashes: dict[str, str] = {}
    records: dict[str, dict[str, object]] = {}
    for folder, train in folders.items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        fingerprint = hashlib.sha256()
        written = {"train": train, "validation": prepared.pairs["validation"]}
        for split, pairs in written.items():
            sha256 = hashlib.sha256()
            with _staged(out / folder / f"{split}.jsonl").open("wb") as file:
                for line in encoded_rows(pairs):
                    file.write(line)
                    fingerprint.update(line)
                    sha256.update(line)
            hashes[f"{folder}/{split}.jsonl"] = sha256.hexdigest()
        records[folder] = run_record(
            "data",
            resolved_recipe(vars(arguments)),
            dataset_fingerprint=fingerprint.hexdigest(),
            seed=arguments.seed,
            sizes={split: len(pairs) for split, pairs in written.items()},
            duration_seconds=round(prepared.duration_seconds, 3),
        )
    statistics = dataset_statistics(prepared, arguments)
    distribution_figure(statistics, _staged(out / FIGURE))
    write_json(_staged(out / STATISTICS), statistics | {"sha256": hashes})
    for folder, record in records.items():
        write_json(_staged(out / folder / "run.json"), record)


def _remove_judge(folder: Path) -> None:
    """Remove the pairs of an earlier judge, because some of them may now be training pairs."""
    if (folder / "run.json").exists():
        for name in (*SPLIT_FILES, "run.json"):
            (folder / name).unlink(missing_ok=True)


def _foreign_files(out: Path) -> list[str]:
    """Return the names of files in the way that this script did not write.

    It wrote finished data, files that a killed run was renaming, and files whose hash is in
    dataset_stats.json: their run.json may have been deleted, as make does on an interrupt.
    """
    renaming = _staged(out / "data/run.json").exists()
    statistics = _read_statistics(out / STATISTICS)
    hashes = statistics.get("sha256", {})
    written = {STATISTICS: bool(statistics), FIGURE: bool(statistics)}
    for folder in FOLDERS:
        finished = (out / folder / "run.json").is_file()
        for name in (f"{folder}/{file}" for file in SPLIT_FILES):
            written[name] = finished or hashes.get(name) == _sha256(out / name)
    return [
        name
        for name, by_us in written.items()
        if (out / name).is_dir() or ((out / name).exists() and not (by_us or renaming))
    ]


def _read_statistics(file: Path) -> dict[str, Any]:
    """Return the statistics that this script wrote; empty if the file is missing or another's."""
    try:
        statistics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    by_us = isinstance(statistics, dict) and statistics.keys() >= {"length_unit", "dropped"}
    return statistics if by_us else {}


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _check_pool(name: str, pool: Mapping[str, list[Pair]], row_filter: RowFilter) -> None:
    """Raise RecipeError unless every split has pairs and all are messages, or all plain text."""
    empty = [split for split, pairs in pool.items() if not pairs]
    if empty:
        reasons = [
            f"- {reason}: {sum(d.count.values()):,} ({REASONS[reason]}). {REMEDIES.get(reason, '')}"
            for reason, d in row_filter.dropped.items()
            if any(d.count.values())
        ]
        raise RecipeError(
            f"`{name}` leaves no pairs for {' and '.join(empty)}. Dropped rows:\n"
            + "\n".join(reasons or ["- none: the dataset has too few rows"])
        )
    plain = [p for pairs in pool.values() for p in pairs if isinstance(p.prompt, str)]
    total = sum(len(pairs) for pairs in pool.values())
    if 0 < len(plain) < total:
        raise RecipeError(
            f"`{name}` mixes plain text ({len(plain):,} rows, such as {plain[0].location}) with "
            f"conversations ({total - len(plain):,} rows), and a model is trained on one of them. "
            "Prepare them as separate datasets."
        )
