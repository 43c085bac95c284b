"""From a dataset as found to prepared data: parse, filter, measure, split, write."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes.arguments import resolved_recipe
from rlhf_recipes.collector import no_collection
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.preferences.arguments import DataArguments
from rlhf_recipes.preferences.files import Splits, read_splits
from rlhf_recipes.preferences.filtering import Dropped, Sieve
from rlhf_recipes.preferences.findings import Findings, count_repeats
from rlhf_recipes.preferences.formats import Reader
from rlhf_recipes.preferences.lengths import Ruler, TokenRuler, WordRuler
from rlhf_recipes.preferences.shapes import NOT_MEASURED, REASONS, REMEDIES, Pair, Reason
from rlhf_recipes.preferences.splits import hold_out, in_balanced_order
from rlhf_recipes.preferences.statistics import first_turn_counts, pair_statistics
from rlhf_recipes.records import run_record, write_json

SPLITS = ("train", "validation")
SPLIT_FILES = ("train.jsonl", "validation.jsonl")
FOLDERS = ("data", "judge/data")  # finished once they hold a run.json
STATISTICS, FIGURE = "dataset_stats.json", "dataset_distribution.png"


@dataclass
class Prepared:
    """Pairs ready to be written, what was left out on the way, and how long it took.

    `rows` and `usable` are the sizes of the splits before and after filtering; `pairs` may be
    fewer by `judge_fraction`, `max_train_samples` and `max_eval_samples`. `judge` has the pairs of
    the training prompts that are kept for a judge. `not_measured` counts the usable pairs that a
    sample needed no lengths of, so that some of them may be too long.
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


@no_collection()
def prepare(arguments: DataArguments) -> Prepared:
    """Balanced training and validation pairs of a dataset; nothing is written.

    A test split is the pool of validation, less the pairs whose first user turn is in the training
    pool too: the training pool loses none. Without one, a part of the training pairs is held out.
    """
    start = time.perf_counter()
    found = read_splits(
        arguments.dataset_name,
        arguments.dataset_config,
        arguments.dataset_train_split,
        arguments.dataset_test_split,
    )
    ruler: Ruler = WordRuler()
    if arguments.model_name_or_path is not None:
        ruler = TokenRuler(
            arguments.model_name_or_path, arguments.chat_template, arguments.model_revision
        )
    reader = Reader(arguments.columns)
    sieve = Sieve(reader, ruler, arguments.max_length)
    pool = _pool(found, sieve, arguments)
    reader.check_mapping()
    _check_pool(arguments.dataset_name, pool, sieve)
    repeats = count_repeats(pair for pairs in pool.values() for pair in pairs)
    too_long = sieve.dropped["too_long"].count
    usable = {split: len(pool[split]) + too_long[split] for split in SPLITS}
    judge: list[Pair] = []
    if arguments.judge_fraction is not None:
        pool["train"], judge = hold_out(pool["train"], arguments.judge_fraction, arguments.seed)
        _check_pool(arguments.dataset_name, {**pool, "a judge": judge}, sieve)
    cut = next((p for pairs in pool.values() for p in pairs if p.cut), None)
    pairs, not_measured = _samples(pool, sieve, arguments)
    judged, _ = _sample(judge, "train", arguments.max_train_samples, sieve, arguments.seed)
    _check_pool(arguments.dataset_name, pairs, sieve)
    return Prepared(
        pairs=pairs,
        judge=judged,
        rows=sieve.rows,
        usable={split: usable[split] - too_long[split] for split in SPLITS},
        not_measured=not_measured,
        dropped=sieve.dropped,
        findings=Findings(
            formats=reader.formats,
            ignored_columns=sorted(reader.ignored),
            unread_files=list(found.unread),
            notes=sieve.notes,
            cut=cut is not None,
            **repeats,
        ),
        example=ruler.shown(pairs["train"][0]),
        length_unit=ruler.unit,
        duration_seconds=time.perf_counter() - start,
    )


def _pool(found: Splits, sieve: Sieve, arguments: DataArguments) -> dict[str, list[Pair]]:
    """The pairs of each split. They are measured here only if no sample is to be drawn."""
    train = sieve.parsed(found.train, "train")
    if arguments.max_train_samples is None:
        train = sieve.fitting(train, "train")
    if found.test is None:
        splits = hold_out(train, arguments.validation_fraction, arguments.seed)
        return dict(zip(SPLITS, splits, strict=True))
    test = sieve.parsed(found.test, "validation")
    if arguments.max_eval_samples is None:
        test = sieve.fitting(test, "validation")
    return {"train": train, "validation": sieve.unseen(test, train)}


def _samples(
    pool: Mapping[str, list[Pair]], sieve: Sieve, arguments: DataArguments
) -> tuple[dict[str, list[Pair]], dict[str, int]]:
    counts = {"train": arguments.max_train_samples, "validation": arguments.max_eval_samples}
    drawn = {
        split: _sample(pool[split], split, counts[split], sieve, arguments.seed) for split in SPLITS
    }
    pairs, not_measured = ({split: part[i] for split, part in drawn.items()} for i in (0, 1))
    return pairs, not_measured  # type: ignore[return-value]


def _sample(
    pairs: Sequence[Pair], split: str, count: int | None, sieve: Sieve, seed: int
) -> tuple[list[Pair], int]:
    """The first pairs in balanced order that fit, and how many were not measured for them.

    The order is drawn before lengths are known, so pairs that are too long drop out of a random
    order: each stratum keeps the fraction of its pairs that fit, as if all had been measured.
    """
    ordered = in_balanced_order(pairs, seed)
    if count is None:
        if any(pair.lengths is NOT_MEASURED for pair in ordered):
            ordered = sieve.fitting(ordered, split)
        return ordered, 0
    return sieve.first_fitting(ordered, count, split)


@no_collection()
def write_prepared(prepared: Prepared, arguments: DataArguments) -> None:
    """Write OUT/data, OUT/dataset_stats.json, OUT/dataset_distribution.png, perhaps OUT/judge/data.

    Each file is first written under another name beside its own. When all are there they are moved
    to their names, data/run.json last. So finished data stays until all that replaces it is
    written, and a run that is killed at any point goes on with the same command.
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
                file.unlink()  # a full disk gets its room back
            raise
        # Neither counts as finished beside the other's old pairs, which may be its own now.
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
    """Raise RecipeError if something that is not to be replaced is in the way."""
    out = Path(arguments.output_dir)
    if (out / "data/run.json").exists() and not arguments.overwrite:
        raise RecipeError(
            f"{out / 'data'} holds finished data, which is not replaced without being told to. "
            "Add `--overwrite`, or set `output_dir` to another folder."
        )
    foreign = _foreign_files(out)
    if foreign:
        raise RecipeError(
            f"{out} holds {' and '.join(foreign)}, not known to be written by this script, and "
            "prepared data would replace them. Set `output_dir` to another folder."
        )
    source = Path(arguments.dataset_name).expanduser().resolve()
    for name in FOLDERS:
        if source.is_relative_to((out / name).resolve()):
            raise RecipeError(
                f"`dataset_name` is {arguments.dataset_name}, which prepared data would replace "
                "while it is read. Set `output_dir` to another folder."
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
    """Rows found, left out by reason, usable and written, for each split."""
    lines = [("rows found", prepared.rows)]
    lines += [
        (f"- {reason}", d.count) for reason, d in prepared.dropped.items() if any(d.count.values())
    ]
    lines.append(("usable", prepared.usable))
    if any(prepared.not_measured.values()):
        lines.append(("- not measured", prepared.not_measured))
    lines += [("written", {s: len(prepared.pairs[s]) for s in SPLITS})]
    if prepared.judge:
        lines.append(("for a judge", {"train": len(prepared.judge), "validation": 0}))
    turns = first_turn_counts(prepared.pairs)
    lines.append(("first user turns", turns["different"]))
    lines.append(("- in both", dict.fromkeys(SPLITS, turns["shared"]["train and validation"])))
    table = [f"{'':24}{'train':>12}{'validation':>12}"]
    table += [f"{name:24}{n['train']:>12,}{n['validation']:>12,}" for name, n in lines]
    return "\n".join(table)


def _staged(file: Path) -> Path:
    return file.with_name(f".staged.{file.name}")


def _stage(prepared: Prepared, arguments: DataArguments, folders: Mapping[str, list[Pair]]) -> None:
    """Write every file under its staged name; data/run.json, which says that all are there, last.

    Args:
        folders: The training pairs of each folder, those of data/ last.
    """
    # Imported here: matplotlib is slow to start, and a plan or an error needs no figure.
    from rlhf_recipes.preferences.figure import distribution_figure

    out = Path(arguments.output_dir)
    hashes: dict[str, str] = {}
    records: dict[str, dict[str, object]] = {}
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for folder, train in folders.items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        fingerprint = hashlib.sha256()
        written = {"train": train, "validation": prepared.pairs["validation"]}
        for split, pairs in written.items():
            sha256 = hashlib.sha256()
            with _staged(out / folder / f"{split}.jsonl").open("wb") as file:
                for pair in pairs:
                    line = (encode(pair.as_row()) + "\n").encode()
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
    """Remove the pairs of an earlier judge, some of which may be training pairs now."""
    if (folder / "run.json").exists():
        for name in (*SPLIT_FILES, "run.json"):
            (folder / name).unlink(missing_ok=True)


def _foreign_files(out: Path) -> list[str]:
    """Names of files in the way that no run of this script is known to have written.

    Known are finished data, what a killed run was moving to its name, and files whose hash is in
    dataset_stats.json: those whose run.json was deleted, as make does on an interrupt.
    """
    moving = _staged(out / "data/run.json").exists()
    statistics = _statistics_at(out / STATISTICS)
    hashes = statistics.get("sha256", {})
    known = {STATISTICS: bool(statistics), FIGURE: bool(statistics)}
    for folder in FOLDERS:
        finished = (out / folder / "run.json").is_file()
        for name in (f"{folder}/{file}" for file in SPLIT_FILES):
            known[name] = finished or hashes.get(name) == _sha256(out / name)
    return [
        name
        for name, ours in known.items()
        if (out / name).is_dir() or ((out / name).exists() and not (ours or moving))
    ]


def _statistics_at(file: Path) -> dict[str, Any]:
    """What a run of this script wrote there; empty where it is another's file or none."""
    try:
        statistics = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(statistics, dict) and statistics.keys() >= {"length_unit", "dropped"}
    return statistics if ours else {}


def _sha256(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _check_pool(name: str, pool: Mapping[str, list[Pair]], sieve: Sieve) -> None:
    """Raise RecipeError unless every split has pairs and all pairs are of one shape."""
    empty = [split for split, pairs in pool.items() if not pairs]
    if empty:
        reasons = [
            f"- {reason}: {sum(d.count.values()):,} ({REASONS[reason]}). {REMEDIES.get(reason, '')}"
            for reason, d in sieve.dropped.items()
            if any(d.count.values())
        ]
        raise RecipeError(
            f"`{name}` leaves nothing for {' and '.join(empty)}. Rows left out:\n"
            + "\n".join(reasons or ["- none: there were too few rows to begin with"])
        )
    plain = [p for pairs in pool.values() for p in pairs if isinstance(p.prompt, str)]
    total = sum(len(pairs) for pairs in pool.values())
    if 0 < len(plain) < total:
        raise RecipeError(
            f"`{name}` mixes plain text ({len(plain):,} rows, such as {plain[0].place}) with "
            f"conversations ({total - len(plain):,} rows). A model is trained on one "
            "of them: give the parts as separate datasets."
        )
