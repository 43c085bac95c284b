"""Parsing of a judge's reply into a preference, in the spellings that judges use."""

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
    """Parse a reply: 1 if the first answer is better, 0 the second, 1/2 a tie, None unreadable.

    Thinking before the answer is ignored. Marks such as [[A]] count wherever they are and must
    agree with each other. Otherwise a JSON object at the end counts, else the last line, else lines
    with a label such as "Verdict:", which must agree.
    """
    text = re.split(rf"</{_THOUGHT}>", reply, flags=re.IGNORECASE)[-1].strip()
    if not text or re.search(rf"<{_THOUGHT}>", text, re.IGNORECASE):  # cut off while it thought
        return None
    if marks := ["".join(groups).strip() for groups in _MARKED.findall(text)]:
        # [[C]] is the tie of MT-Bench.
        return _agreed([TIE if mark.upper() == "C" else _parse(mark) for mark in marks])
    if match := _OBJECT.search(text):
        return _parse_object(match[0])
    last = text.rstrip("`\n ").splitlines()[-1:]
    if last and (value := _parse(last[0])) is not None:
        return value
    labeled = [_parse(line) for line in _LABELED.findall(text)]
    return _agreed(labeled) if labeled else None


def _agreed(values: list[float | None]) -> float | None:
    return values[0] if len(set(values)) == 1 else None


def _parse_object(text: str) -> float | None:
    try:
        reply = json.loads(text)
    except json.JSONDecodeError:
        return None
    values = [_parse(str(value)) for key, value in reply.items() if key.lower() in KEYS]
    return _agreed(values) if values else None


def _parse(text: str) -> float | None:
    """Parse a text that is a verdict as a whole, not one that contains a verdict."""
    plain = " ".join(re.sub(r"[*_`#\"'“”‘’\[\](){}|]", " ", text).split()).strip(" .!:;,-→")
    if match := _COMPARED.fullmatch(plain):
        first, sign, second = match[1].upper(), match[2][0], match[3].upper()
        if first == second:
            return None
        return TIE if sign == "=" else SIDES[first if sign == ">" else second]
    if match := _SIDE.fullmatch(plain):
        side = SIDES[match["side"].upper()]
        other = match["other"] and SIDES[match["other"].upper()]
        return None if other == side else side
    return TIE if _TIE.fullmatch(plain) else None
