"""Failures that can be read off a response: each a stated rule with a rate, never a judgement."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlhf_recipes.evaluation.samples import Collection, ModelSamples, Record
from rlhf_recipes.evaluation.statistics import Array, holm, rate_difference, sign_test, wilson

EXAMPLES = 5
REPEATED_SHARE = 0.5
LOOP_TIMES = 3
LOOP_WORDS = 6
ECHO_SHARE = 0.5
ECHO_WORDS = 5
SYMBOL_SHARE = 0.5
SYMBOL_CHARACTERS = 8
REFUSAL_CHARACTERS = 200

# Scripts written without spaces count character by character; everything else by word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"  # kana, Han, Thai
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ROLE = re.compile(r"^[ \t]*(?:Human|User|Assistant|System)\s*:", re.MULTILINE)
_UNABLE = r"(?:can ?not|can't|won't|will not|unable|not able|not comfortable|must decline)"
_REFUSAL = re.compile(
    rf"\b(?:sorry|apologi[sz]e|afraid)\b[^.!?\n]{{0,60}}\b{_UNABLE}\b"
    rf"|^\W*(?:unfortunately\W+)?(?:I|we)(?: am|'m| are|'re)? {_UNABLE}"
    r"(?: to)? (?:help|assist|answer|provide|give|offer|comply|fulfil|support|discuss|share|engage"
    r"|write|create|generate|tell you|do that|with that|recommend|advise|encourage|condone)\b"
    r"|\bI (?:must|have to|will have to) (?:decline|refuse)\b"
    r"|\bI (?:do not|don't) feel comfortable\b"
    rf"|\bas an? (?:AI|artificial|language)\b[^.!?\n]{{0,60}}\b(?:{_UNABLE}|don't|do not)\b",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def repeated_share(tokens: list[str], n: int) -> float:
    """rep-n: 1 - unique n-grams / n-grams, 0 for a text shorter than n.

    Welleck et al. (https://arxiv.org/abs/1908.04319). "a b a b a b" has rep-2 = 0.6.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(tokens: list[str]) -> bool:
    """Whether the text ends in a unit said three times in a row, over at least six words."""
    for period in range(1, len(tokens) // LOOP_TIMES + 1):
        length = max(LOOP_TIMES * period, LOOP_WORDS)
        tail = tokens[-length:]
        if len(tail) == length and tail[period:] == tail[:-period]:
            return True
    return False


def is_empty(text: str) -> bool:
    """Whether there is no letter or digit in the text."""
    return not any(character.isalnum() for character in text)


def is_repetitive(text: str) -> bool:
    """Whether over half of the 4-grams are repeats, or the text ends in a loop."""
    tokens = words(text)
    return repeated_share(tokens, 4) > REPEATED_SHARE or ends_in_loop(tokens)


def leaks_role(text: str) -> bool:
    """Whether a line of the response begins with the name of a speaker and a colon."""
    return _ROLE.search(text) is not None


def refuses(text: str) -> bool:
    """Whether the first 200 characters hold a phrase of refusal. A string match: it can err."""
    return _REFUSAL.search(text[:REFUSAL_CHARACTERS].replace("’", "'")) is not None


def echoes_prompt(prompt: str, text: str) -> bool:
    """Whether one run of words copied from the prompt makes up over half of the response."""
    asked, said = words(prompt), words(text)
    run = max(ECHO_WORDS, int(len(said) * ECHO_SHARE) + 1)
    copies = {tuple(asked[i : i + run]) for i in range(len(asked) - run + 1)}
    return any(tuple(said[i : i + run]) in copies for i in range(len(said) - run + 1))


def is_degenerate(text: str) -> bool:
    """Whether over half of the characters are symbols or stand in words that mix scripts."""
    total = sum(not character.isspace() for character in text)
    odd = sum(unicodedata.category(c)[0] not in "LMN" and not c.isspace() for c in text)
    odd += sum(len(word) for word in re.findall(r"[^\W\d_]{2,}", text) if _mixes_scripts(word))
    return total >= SYMBOL_CHARACTERS and odd / total > SYMBOL_SHARE


def _mixes_scripts(word: str) -> bool:
    if word.isascii():
        return False
    scripts = {unicodedata.name(character, "?").split()[0] for character in word}
    return len(scripts & {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "CJK", "HANGUL"}) > 1


class Detector(NamedTuple):
    """A rule in words, and the rule itself."""

    definition: str
    fires: Callable[[Record], bool]


DETECTORS = {
    "empty": Detector("no letter or digit", lambda r: is_empty(r["response"])),
    "truncated": Detector(
        "cut off at the length limit before an end-of-sequence token",
        lambda r: bool(r["finish"] == "length"),
    ),
    "repetition": Detector(
        "over half of the 4-grams are repeats, or the text ends in a unit said 3 times in a row",
        lambda r: is_repetitive(r["response"]),
    ),
    "role_leak": Detector(
        'a line begins with "Human:", "User:", "Assistant:" or "System:"',
        lambda r: leaks_role(r["response"]),
    ),
    "refusal": Detector(
        "a phrase of refusal in the first 200 characters (a string match, which can err)",
        lambda r: refuses(r["response"]),
    ),
    "prompt_echo": Detector(
        "one run of at least 5 words copied from the prompt is over half of the response",
        lambda r: echoes_prompt(r["prompt"], r["response"]),
    ),
    "degenerate_text": Detector(
        "over half of the characters are symbols or in words that mix scripts",
        lambda r: is_degenerate(r["response"]),
    ),
}


def flags(record: Record) -> list[str]:
    """Names of the detectors that fire on a sample."""
    return [name for name, detector in DETECTORS.items() if detector.fires(record)]


def flag_rates(model: ModelSamples, detector: str) -> Array:
    """Share of each prompt's samples on which a detector fires, shape (prompts,)."""
    fires = DETECTORS[detector].fires
    return np.array([np.mean([fires(record) for record in row]) for row in model.records])


def failure_analysis(collection: Collection) -> dict[str, Any]:
    """Per detector its definition and per model n, count, rate, interval, difference to base, ids.

    Intervals are Wilson's over prompts; differences are paired by prompt (Newcombe). p is the
    exact sign test on the prompts whose rates differ, Holm-corrected over all detectors and
    policies.
    """
    analysis: dict[str, Any] = {}
    tested: list[dict[str, Any]] = []
    for name, detector in DETECTORS.items():
        base = flag_rates(collection.base, name)
        per_model = {}
        for model in collection.models.values():
            rates = flag_rates(model, name)
            entry = _failure_entry(model, name, rates)
            if model is not collection.base:
                entry |= _compared(rates, base)
                tested.append(entry)
            per_model[model.name] = entry
        analysis[name] = {"definition": detector.definition, "per_model": per_model}
    for entry, p_holm in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = p_holm
    return analysis


def _failure_entry(model: ModelSamples, detector: str, rates: Array) -> dict[str, Any]:
    records = [record for row in model.records for record in row]
    fired = [record["id"] for record in records if DETECTORS[detector].fires(record)]
    return {
        "n": len(records),
        "count": len(fired),
        "rate": len(fired) / len(records),
        "ci": list(wilson(float(rates.mean()), len(rates))),
        "examples": fired[:EXAMPLES],
    }


def _compared(rates: Array, base: Array) -> dict[str, Any]:
    difference, interval = rate_difference(rates, base)
    p = sign_test(int((rates > base).sum()), int((rates < base).sum()))
    return {"diff_vs_base": difference, "diff_ci": list(interval), "p": p}
