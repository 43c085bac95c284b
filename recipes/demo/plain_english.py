"""Plain English: the demo's gold rule, the Flesch reading ease of an answer.

Nothing else about an answer is judged: not whether it is true, helpful, polite or to the point.
Very short sentences of very short words score best, whatever they say.
"""

import re
import unicodedata

# One-syllable words in one-word sentences: 206.835 - 1.015 - 84.6.
HIGHEST = 121.22
# Where Flesch's own scale ends. Without this bound one sentence that never ends would outweigh
# all the other answers in a mean.
LOWEST = 0.0

_ABBREVIATIONS = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e", "a.m", "p.m", "u.s", "u.k"]
)
# A point, question or exclamation mark, with the quotes, brackets or asterisks that close after
# it, before a space or the end of the line: 3.5 and example.org hold none.
_SENTENCE_END = re.compile(r"""([.!?]+)["')\]*_]*(?=\s|$)""")
# Letters, with hyphens and apostrophes inside. Flesch counts figures too; here they are no words,
# as their spoken length would have to be guessed.
_WORD = re.compile(r"(?<![a-z0-9])[a-z]+(?:['-][a-z]+)*(?![a-z0-9])")

_VOWELS = re.compile(r"[aeiouy]+")
# An e that is written and not spoken.
_SILENT_E = re.compile(
    # like, likes, liked; but table, acres, hundred, places, wanted
    r"(?<=[^aeiouy])(?<![^aeiouylr]l)(?<![^aeiouyr']r)"
    r"(?:e$|(?<![cgsxz])(?<![cs]h)es$|(?<![dt])ed$)"
    # safely, largely, careful, movement
    r"|(?:(?<=[aeiouy][^aeiouy])|(?<=[aeiouy][^aeiouy]{2}))e(?=(?:ly|ments?|ful|less|ness)$)"
    # something, homework, lifestyle, every
    r"|(?:(?<=^som)|(?<=^hom)|(?<=^lif))e(?=[^n])|(?<=^ev)e(?=ry)"
    # league, unique
    r"|(?<=[gq])ues?$"
)
_IRREGULAR = {"business": 2, "maybe": 2, "safety": 2, "behavior": 3, "behaviour": 3, "recipe": 3}
# Neighboring vowels that are two syllables, and syllables without a vowel.
_SPLIT = re.compile(
    r"[aeiouy](?=ing)"  # being, trying
    r"|[aeou](?=y[aou]|ye[er])|y(?=one?$)"  # beyond, employee, anyone
    r"|(?<![cghlnstx])i(?=a(?!ge?$)|o|u)|i(?=um)"  # radio, various; but social, nation, marriage
    r"|(?<![ct])i(?=en[ct])|i(?=et)|(?<=sc)i(?=en)"  # experience, quiet, science; but patient
    r"|[aeiouy][^aeiouy]+i(?=e(?:rs?|st)$)"  # easier, happiest
    r"|(?<![gq])u(?=a|ou)"  # actual, continuous; but language, quality
    r"|(?<=cr)e(?=at(?!u))|(?<=th)e(?=at)|(?<=r)e(?=ali|act)"  # create, theatre, reality
    r"|(?<=id)e(?=a)|(?<=ar)e(?=as?$)|e(?=um)|(?<=d)e(?=o)|o(?=e[mt])"  # idea, museum, video, poem
    r"|[st](?=h?ms?$)|(?<=[^aeiouy])n(?='t$)"  # tourism, rhythm, didn't
)


def count_syllables(word: str) -> int:
    """Count the syllables of a lower-case English word by its spelling; at least one.

    Groups of vowels, without a silent e and with the usual places where two vowels are spoken
    apart. It agrees with the CMU pronouncing dictionary on 99 in 100 words of everyday prose.
    """
    total = 0
    for part in word.removesuffix("'s").split("-"):
        spoken = _SILENT_E.sub("", part)
        by_rule = len(_VOWELS.findall(spoken)) + len(_SPLIT.findall(spoken))
        total += _IRREGULAR.get(part, max(1, by_rule))
    return total


def sentences(text: str) -> list[list[str]]:
    """The lower-case words of each sentence of a text.

    A sentence ends at a point, question or exclamation mark, and at the end of a line, so that
    each item of a list is one. It has at least one word: the "1." before an item is none. What a
    length limit cut off in the middle counts as it stands.
    """
    plain = unicodedata.normalize(
        "NFKD", text.lower().replace("\u2019", "'").replace("\u201d", '"')
    )
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    pieces = []
    for line in plain.splitlines():
        start = 0
        for end in _SENTENCE_END.finditer(line):
            last = line[start : end.start()].split()[-1:]
            if end[1] == "." and last and last[0].strip("\"'(*_") in _ABBREVIATIONS:
                continue
            pieces.append(line[start : end.end()])
            start = end.end()
        pieces.append(line[start:])
    return [words for piece in pieces if (words := _WORD.findall(piece))]


def flesch(text: str) -> float:
    """Flesch reading ease of a text, from LOWEST (or no English word at all) to HIGHEST.

    206.835 - 1.015 words / sentences - 84.6 syllables / words

    Rudolf Flesch, "A new readability yardstick", Journal of Applied Psychology 32(3), 1948.
    Bounded below, and with the sentences, words and syllables as counted in this file.
    """
    found = sentences(text)
    words = [word for sentence in found for word in sentence]
    if not words:
        return LOWEST
    syllables = sum(count_syllables(word) for word in words)
    score = 206.835 - 1.015 * len(words) / len(found) - 84.6 * syllables / len(words)
    return max(LOWEST, score)


def reading_ease(prompts: list[str], completions: list[str]) -> list[float]:
    """The gold score of each completion: its reading ease, whatever the prompt was."""
    assert len(prompts) == len(completions), (len(prompts), len(completions))
    return [flesch(completion) for completion in completions]
