"""Properties of one text: words, repetition, refusal and other signs of a failure."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

from rlhf_recipes.preferences.lengths import UNSPACED

REPEATED_FRACTION = 0.5
LOOP_TIMES = 3
LOOP_WORDS = 6
ECHO_FRACTION = 0.5
ECHO_WORDS = 5
SYMBOL_FRACTION = 0.5
SYMBOL_CHARACTERS = 8
REFUSAL_CHARACTERS = 200
THINKING, THOUGHT = "<think>", "</think>"
"""Tags around what a reasoning model thinks before it answers."""

# Scripts written without spaces count character by character; everything else by word.
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_ASCII_SPACE, _ASCII_PLAIN = re.compile(r"\s+"), re.compile(r"[A-Za-z0-9\s]+")
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


@lru_cache(maxsize=8)
def words(text: str) -> tuple[str, ...]:
    """Split a text into words in lower case, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def opening(text: str, count: int) -> tuple[str, ...]:
    """Return the first words of a text, split as `words` does."""
    return tuple(match[0] for match in islice(_WORD.finditer(text.lower()), count))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """List the runs of n consecutive words."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repeated_fraction(tokens: Sequence[str], n: int) -> float:
    """Compute rep-n = 1 - unique n-grams / n-grams, 0 for a text shorter than n.

    Welleck et al. (https://arxiv.org/abs/1908.04319). "a b a b a b" has rep-2 = 0.6.
    """
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def ends_in_loop(tokens: Sequence[str]) -> bool:
    """Whether the text ends in a unit repeated three times in a row, over at least six words."""
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
    return repeated_fraction(tokens, 4) > REPEATED_FRACTION or ends_in_loop(tokens)


def ends_in_thinking(text: str) -> bool:
    """Whether the last `<think>` of the text has no `</think>` after it."""
    return text.rfind(THINKING) > text.rfind(THOUGHT)


def leaks_role(text: str) -> bool:
    """Whether a line of the completion begins with the name of a speaker and a colon."""
    return _ROLE.search(text) is not None


def refuses(text: str) -> bool:
    """Whether the first 200 characters contain a phrase of refusal. A string match can err."""
    return _REFUSAL.search(text[:REFUSAL_CHARACTERS].replace("’", "'")) is not None


def echoes_prompt(prompt: str, text: str) -> bool:
    """Whether one run of words copied from the prompt makes up over half of the completion."""
    source, copy = words(prompt), words(text)
    run = max(ECHO_WORDS, int(len(copy) * ECHO_FRACTION) + 1)
    return not set(ngrams(source, run)).isdisjoint(ngrams(copy, run))


def is_degenerate(text: str) -> bool:
    """Whether over half of the characters are symbols or stand in words that mix scripts."""
    if text.isascii():
        total, odd = (len(kind.sub("", text)) for kind in (_ASCII_SPACE, _ASCII_PLAIN))
    else:
        counts = {c: n for c, n in Counter(text).items() if not c.isspace()}
        total = sum(counts.values())
        odd = sum(n for c, n in counts.items() if unicodedata.category(c)[0] not in "LMN")
        odd += sum(len(word) for word in re.findall(r"[^\W\d_]{2,}", text) if _mixes_scripts(word))
    return total >= SYMBOL_CHARACTERS and odd / total > SYMBOL_FRACTION


def _mixes_scripts(word: str) -> bool:
    if word.isascii():
        return False
    scripts = {unicodedata.name(character, "?").split()[0] for character in word}
    return len(scripts & {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "CJK", "HANGUL"}) > 1
