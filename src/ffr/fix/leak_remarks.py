"""Statements that tell nothing of the answer: about the student's attempt, the film, or what is hard to see.

A good teacher says "you counted from frame 4 on", "the camera moves later", "the logo is faint". No student
who lacks the video can answer from that. Their words still pass the layers for options, fields and numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ffr.fix.leak_text import content, lexicon, stem, stems

MAX_NEW: Final = 1
"""Words of a remark on the attempt that name something: what the student said it saw."""


def is_remark(words: Sequence[str], topic: frozenset[str]) -> bool:
    """True for a clause about the student's own attempt or about the film.

    Args:
        words: The clause.
        topic: Stems of the question: where it asks about the camera, the camera's moves are no remark.
    """
    lists = lexicon().lists
    if set(words) & lists["turning"]:  # "but", "because": what follows may tell
        return False
    if _of_the_attempt(words):
        known = lexicon().prop_stems | topic
        new = [word for word in content(words[1:]) if stem(word) not in known | stems(lists["attempt_verbs"])]
        return len(new) <= MAX_NEW
    head = [word for word in words[:3] if word not in lists["articles"]]
    if not head or head[0] not in lists["film"] or stem(head[0]) in topic:
        return False
    usual = lists["film"] | lists["camera_verbs"] | lists["viewing"]
    return all(word in usual or stem(word) in topic for word in content(words))


def _of_the_attempt(words: Sequence[str]) -> bool:
    """'You described ...', 'your reading comes from ...'; not 'you missed ...', which tells what there is."""
    lists = lexicon().lists
    if set(words) & lists["omission"] or (set(words) & lists["persons"] and not set(words) & lists["wh"]):
        return False
    relative = "that" in words and any(word in lists["be"] for word in words[words.index("that") :])
    if relative:  # "you described a tower that is upright"
        return False
    if words[0] == "your" and len(words) > 2:
        return bool(set(words[1:3]) & lists["attempts"])
    if words[0] != "you":
        return False
    verb = next((word for word in words[1:] if word not in lists["attempt_leading"]), "")
    return verb in lists["attempt_verbs"]


def only_viewing(words: Sequence[str], topic: frozenset[str], guarded: frozenset[str]) -> bool:
    """'The logo is faint', 'the first reaction lasts only briefly': how well something asked for shows.

    Args:
        words: A clause that states something.
        topic: Stems of the question.
        guarded: Stems of the answers, which no remark may use.
    """
    viewing = lexicon().lists["viewing"]
    told = [word for word in content(words) if stem(word) not in topic]
    return bool(told) and all(word in viewing and stem(word) not in guarded for word in told)


def only_warns(words: Sequence[str], topic: frozenset[str]) -> bool:
    """'Two men are present', 'there are several umbrellas': more than one thing of the question's kind."""
    lists = lexicon().lists
    rest = [word for word in words if word not in {"there", "are", "more", "than", "one"}]
    if len(rest) == len(words) or not {"are", "present", "appear"} & set(words):
        return False
    several = bool(set(rest) & lists["several"]) or {"more", "than"} <= set(words)
    others = [word for word in content(rest) if word not in lists["several"] | lists["viewing"]]
    return several and bool(others) and all(stem(word) in topic for word in others)


def mere_landmarks(words: Sequence[str], topic: frozenset[str]) -> bool:
    """A list after a colon that goes on with an instruction: 'look at the pieces: their edges'."""
    lex = lexicon()
    known = lex.prop_stems | topic
    finite = any(word in lex.lists["be"] or word in lex.lists["aux"] for word in words)
    return not finite and all(stem(word) in known for word in content(words))
