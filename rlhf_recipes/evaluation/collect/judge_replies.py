"""The verdict in a judge's reply, in the spellings that judges use."""

import json
import re

FIRST, SECOND, TIE = 1.0, 0.0, 0.5
SIDES = {"A": FIRST, "1": FIRST, "B": SECOND, "2": SECOND}
KEYS = {"verdict", "winner", "answer", "choice", "preference", "preferred", "decision", "better"}

_NOUN = r"(?:(?:answer|response|assistant|option|completion|candidate|model|output)[\s_-]*)?"
_LEAD = (
    r"(?:(?:my|the|final|overall|verdict|answer|response|winner|choice|decision|preference|one"
    r"|judge?ment|conclusion|better|best|preferred|is|would|be|so|therefore|i|choose|prefer|pick"
    r"|select|it(?:'s| s)?)\b[\s:=,-]*)*"
)
_ADVERB = r"(?:(?:clearly|slightly|somewhat|much|far|significantly|the)\s+)*"
_SIDE = re.compile(
    rf"{_LEAD}{_NOUN}(?P<side>[AB12])"
    rf"(?:\s+wins|\s+is\s+{_ADVERB}(?:better|best|preferred|superior|winner)"
    rf"(?:\s+{_NOUN})?(?:\s+than\s+{_NOUN}(?P<other>[AB12]))?)?",
    re.IGNORECASE,
)
_TIE = re.compile(
    rf"{_LEAD}(?:an?\s+)?(?:tie|tied|draw|neither|equal(?:ly good)?|no preference"
    r"|both(?:\s+are)?(?:\s+(?:equal|equally good|the same))?)",
    re.IGNORECASE,
)
_COMPARED = re.compile(r"([AB])\s*(>+|<+|=+)\s*([AB])", re.IGNORECASE)
_MARKED = re.compile(
    r"\[\[([^\[\]]*)\]\]|\\boxed\{([^{}]*)\}|<(?:verdict|answer|winner|choice)>([^<]*)</",
    re.IGNORECASE,
)
_LABELED = re.compile(
    r"^\W*(?:(?:my|the|final|overall)\s+)*(?:verdict|winner|answer|choice|decision)\W*[:=]\W*(.+)$",
    re.IGNORECASE | re.MULTILINE,
)
_THOUGHT = r"(?:think|thinking|thought|reasoning)"
_OBJECT = re.compile(r"\{[^{}]*\}(?=[\s`]*$)")


def preference(reply: str) -> float | None:
    """Read a reply: 1 the first answer is better, 0 the second, 1/2 a tie, None unreadable.

    What a model thinks before it answers is not looked at. Marks such as [[A]] count wherever they
    are and must agree with each other; else a JSON object at the end, the last line, or lines
    with a label such as "Verdict:", which must agree.
    """
    text = re.split(rf"</{_THOUGHT}>", reply, flags=re.IGNORECASE)[-1].strip()
    if not text or re.search(rf"<{_THOUGHT}>", text, re.IGNORECASE):  # cut off while it thought
        return None
    if marks := ["".join(found).strip() for found in _MARKED.findall(text)]:
        # [[C]] is the tie of MT-Bench.
        return _agreed([TIE if mark.upper() == "C" else _spelled(mark) for mark in marks])
    if found := _OBJECT.search(text):
        return _of_object(found[0])
    last = text.rstrip("`\n ").splitlines()[-1:]
    if last and (value := _spelled(last[0])) is not None:
        return value
    labeled = [_spelled(line) for line in _LABELED.findall(text)]
    return _agreed(labeled) if labeled else None


def _agreed(values: list[float | None]) -> float | None:
    return values[0] if len(set(values)) == 1 else None


def _of_object(text: str) -> float | None:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return None
    values = [_spelled(str(value)) for key, value in found.items() if key.lower() in KEYS]
    return _agreed(values) if values else None


def _spelled(text: str) -> float | None:
    """The verdict that a text is, not one that it contains."""
    plain = " ".join(re.sub(r"[*_`#\"'“”‘’\[\](){}|]", " ", text).split()).strip(" .!:;,-→")
    if found := _COMPARED.fullmatch(plain):
        first, sign, second = found[1].upper(), found[2][0], found[3].upper()
        if first == second:
            return None
        return TIE if sign == "=" else SIDES[first if sign == ">" else second]
    if found := _SIDE.fullmatch(plain):
        side = SIDES[found["side"].upper()]
        other = found["other"] and SIDES[found["other"].upper()]
        return None if other == side else side
    return TIE if _TIE.fullmatch(plain) else None
