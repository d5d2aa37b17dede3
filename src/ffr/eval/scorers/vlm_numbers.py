"""The number of an answer to VSI-Bench as VLMEvalKit finds it (`spatial_bench/matching_func.py`)."""

from __future__ import annotations

import ast
import re

from ffr.eval.scorers.vlm_letters import ANSWER_END, ZERO_WIDTH, after_thoughts

_NUMBER = r"[-+]?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?"
_NUMBERS = re.compile(_NUMBER)
_ANSWER_NUMBER = re.compile(
    rf"<\s*answer\b[^>]*>\s*({_NUMBER})(?:[^\d<][^<]*)?{ANSWER_END.pattern}", re.IGNORECASE
)
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_VALUES: dict[str, str] = {word: str(value) for value, word in enumerate(_WORDS)}
_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_MAX_LIST_CHARS = 10_000
"""A longer text in brackets is not read as a list: no number, as for one that is no list."""


def spatial_number(output: str) -> tuple[float | None, str]:
    """The number in `<answer>`, else the last one behind the thoughts, else the last one; and the rule.

    Words up to twenty count; of a text that is a list, its first entry is read.
    """
    text = output.strip()
    if text.startswith("[") and text.endswith("]"):
        try:
            entries = ast.literal_eval(output) if len(output) <= _MAX_LIST_CHARS else None
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            entries = None
        if entries is None:
            return None, "none"
        text = str(entries[0]).strip() if isinstance(entries, list) and entries else text
    text = _WORD.sub(lambda match: _VALUES.get(match[0].lower(), match[0]), ZERO_WIDTH.sub("", text))
    match = _ANSWER_NUMBER.search(text)
    if match:
        return float(match[1]), "answer_tag.number"
    for segment, rule in ((after_thoughts(text), "last_number"), (text, "last_number_of_all")):
        numbers = _NUMBERS.findall(segment)
        if numbers:
            return float(numbers[-1]), rule
    return None, "none"
