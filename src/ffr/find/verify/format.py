"""The answer tag and the format reward, in linear time for any text.

Source: the accuracy and format rewards of Video-R1, which FFR uses unchanged (arXiv 2503.21776). Their
regular expressions backtrack badly on hostile completions, so the same results are computed by search.
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "<answer>", "</answer>"
_BETWEEN = re.compile(r"</think>\s*<answer>")
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE | re.ASCII)


def first_answer(text: str) -> str:
    r"""Text of the first answer tag, stripped; empty if there is none.

    Equal to `re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)` (profile `video_r1_strict`).

    Args:
        text: A completion, or a gold solution with its tags.

    Returns:
        The answer between the tags.
    """
    start = text.find(_OPEN)
    if start < 0:
        return ""
    start += len(_OPEN)
    end = text.find(_CLOSE, start)
    return text[start:end].strip() if end >= 0 else ""


def last_answer(text: str) -> str | None:
    """Text of the last complete answer tag in any letter case, stripped; None if there is none.

    An answer that is opened again and cut off is not final, so the last *complete* one counts.

    Args:
        text: A completion.

    Returns:
        The answer, possibly empty, or None.
    """
    found: str | None = None
    start = -1
    for tag in _TAG.finditer(text):
        name = tag.group().lower()
        if name == _OPEN:
            start = tag.end()
        elif name == _CLOSE and start >= 0:
            found = text[start : tag.start()].strip()
            start = -1
    return found


def strict_format(text: str) -> float:
    r"""1.0 iff `<think>.*?</think>\s*<answer>.*?</answer>` matches the whole text (DOTALL), else 0.0.

    A blank before or after fails and repeated tags pass, as in the released reward.

    Args:
        text: A completion.

    Returns:
        R_fmt.
    """
    if not text.startswith("<think>") or not text.endswith(_CLOSE):
        return 0.0
    between = _BETWEEN.search(text, len("<think>"))
    return 1.0 if between and between.end() <= len(text) - len(_CLOSE) else 0.0


def robust_format(text: str) -> float:
    """1.0 iff the text is one thinking block and then one answer, each tag once; else 0.0.

    Blanks around the two blocks are allowed; repeated or nested tags are not, since they let a policy
    collect the format reward while hedging between answers.

    Args:
        text: A completion.

    Returns:
        R_fmt.
    """
    body = text.strip()
    tags = [tag.group() for tag in _TAG.finditer(body)]
    if tags != ["<think>", "</think>", _OPEN, _CLOSE]:
        return 0.0
    return strict_format(body)
