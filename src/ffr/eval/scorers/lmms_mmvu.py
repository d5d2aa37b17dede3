"""MMVU's rules in lmms-eval 0.7.3: whatever lets one of them fire makes the output right.

For a choice the gold letter as a word anywhere suffices; for an open question, one text inside the other
(the empty one is inside every text), the first number within 0.01, or all longer words of a short answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

_SUBJECTS = frozenset(
    {
        *("Biology", "Chemistry", "Modern_Physics", "Astronomy", "Geography", "Materials_Science"),
        *("Neurobiology", "Electromagnetism", "Thermodynamics", "Mechanics", "Civil_Engineering"),
        *("Electrical_Engineering", "Mechanical_Engineering", "Biomedical_Engineering"),
        *("Electronics_and_Communication", "Computer_Science", "Clinical_Medicine", "Basic_Medicine"),
        *("Preventive_Medicine", "Pharmacy", "Dentistry", "Art", "Literature", "History", "Law"),
        *("Economics", "Management"),
    }
)
_POWERS = str.maketrans(
    {"\u00b2": "^2", "\u00b3": "^3", "\u00b9": "^1", "\u2070": "^0", "\u2074": "^4", "\u2075": "^5"}
)
_MORE_POWERS = str.maketrans({"\u2076": "^6", "\u2077": "^7", "\u2078": "^8", "\u2079": "^9"})
_NUMBER = re.compile(r"\d+\.?\d*")
_BIG_O = re.compile(r"o\s*\([^)]+\)", re.IGNORECASE)
_SAME_NUMBER = 0.01


def mmvu_subject_counts(record: Mapping[str, Any]) -> bool:
    """Whether the folder of the video is a subject that the task's average counts."""
    path = record.get("video_path") or record.get("video")
    parts = path.split("/") if isinstance(path, str) else []
    return len(parts) < 2 or parts[-2] in _SUBJECTS


def mmvu_choice(text: str, gold: str, choices: Mapping[str, str]) -> tuple[str, str]:
    """The rule that makes an output right (empty: wrong), and the letter it seems to give."""
    text, gold = text.strip(), gold.strip()
    first = re.search(r"\b([A-E])\b", text, re.IGNORECASE)
    letter = first[1].upper() if first else ""
    if letter and letter == gold.upper():
        return "letter_word", letter
    gold_inside = gold.upper() in text.upper()
    if gold_inside and re.search(rf"\b{re.escape(gold)}\b", text, re.IGNORECASE):
        return "letter_word_anywhere", gold
    if gold in choices:
        option, lower = choices[gold].strip().lower(), text.lower()
        if option in lower:
            return "option_text", gold
        words = [word for word in map(_bare, option.split()) if len(word) > 2]
        if gold_inside and any(word in lower for word in words):
            return "letter_and_word", gold
    return "", letter


def mmvu_open(text: str, gold: str) -> str:
    """The rule that makes an open answer right; empty where a judge is asked."""
    text, gold = _plain(text), _plain(gold)
    said, wanted = " ".join(text.split()), " ".join(gold.split())
    if said == wanted:
        return "equal"
    if wanted in said:
        return "contains_gold"
    if said in wanted:
        return "inside_gold"
    if _same_first_number(text, gold):
        return "first_number"
    words = [word for word in map(_bare, wanted.split()) if word]
    if 2 <= len(words) <= 5 and {word for word in words if len(word) > 2} <= set(map(_bare, said.split())):
        return "all_words"
    return "complexity" if _same_complexity(said, wanted) else ""


def _plain(text: str) -> str:
    return text.strip().lower().translate(_POWERS).translate(_MORE_POWERS)


def _bare(word: str) -> str:
    return word.strip(string.punctuation)


def _same_first_number(text: str, gold: str) -> bool:
    ours, theirs = _NUMBER.search(text), _NUMBER.search(gold)
    return bool(ours and theirs) and abs(float(theirs[0]) - float(ours[0])) < _SAME_NUMBER  # type: ignore[index]


def _same_complexity(said: str, wanted: str) -> bool:
    theirs = _BIG_O.search(wanted)
    if theirs is None:
        return False
    ours = _BIG_O.search(said[: said.rfind(")") + 1])  # no closing one behind: no match, found in linear time
    return ours is not None and ours[0].lower() == theirs[0].lower()
