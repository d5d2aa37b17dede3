"""Clauses of a patch: which ones instruct, which ones point, and which ones state what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ffr.fix.leak_remarks import is_remark, mere_landmarks
from ffr.fix.leak_text import content, lexicon, stem, tokens

_SENTENCE = re.compile(r"([.;:!?\n]+|\s-\s|\s--+\s)")
_PARTICLES: Final = frozenset({"down", "out", "up", "off", "through", "over"})


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause: its words and whether it states something about the video.

    Example:
        >>> split_clauses("watch the ball. it is red")[1].states
        True
    """

    words: tuple[str, ...]
    states: bool


def split_clauses(text: str, topic: frozenset[str] = frozenset()) -> tuple[Clause, ...]:
    """Clauses of a folded text.

    An instruction ("watch the ball"), a question ("which one moves?"), a pointing sentence ("the key
    moment is in the middle") and a side clause state nothing; "it is red", "notice that it is red" and
    "the ball rolls away" do.

    Args:
        text: Folded text without pointers.
        topic: Stems of the question: where it asks about a part, "the part" is no way of pointing.

    Returns:
        The clauses in order.
    """
    result: list[Clause] = []
    pieces = _SENTENCE.split(text)
    before, listed = "start", False
    for sentence, mark in zip(pieces[::2], [*pieces[1::2], "."], strict=True):
        before = "instruction" if listed and before == "instruction" else "start"
        parts = sentence.split(",")
        for part in parts:
            words = tokens(part)
            for piece in _split_that(words) if words else []:
                kind = _kind(piece, before, topic)
                if listed and before == "instruction" and kind == "instruction":
                    kind = "instruction" if mere_landmarks(piece, topic) or _commands(piece) else "statement"
                if kind == "side" and len(parts) == 1 and _is_fragment(piece, topic):
                    kind = "statement"  # "under the carpet." is an answer, not an instruction
                result.append(Clause(tuple(piece), kind == "statement"))
                before = kind
        listed = mark == ":"
    return tuple(result)


def _is(word: str, name: str) -> bool:
    return word in lexicon().lists[name]


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and word not in lexicon().imperatives


def _split_that(words: list[str]) -> list[list[str]]:
    """'Notice that X' is an instruction and the statement X."""
    for index, word in enumerate(words[1:], 1):
        if word == "that" and _is(words[index - 1], "factive") and index + 1 < len(words):
            return [words[:index], words[index:]]
    return [words]


def _kind(words: list[str], before: str, topic: frozenset[str]) -> str:
    """`instruction`, `side` (a phrase of a neighbour), `pointer`, `remark` or `statement`."""
    if words[0] == "that" and len(words) > 2:
        return "pointer" if _points(words, topic) else "statement"
    body = list(words)
    while body and (_is(body[0], "leading") or _is_adverb(body[0])):
        body = body[1:]
    if not body:
        return before
    first = body[0]
    if _commands(body):
        return "statement" if _embedded_statement(body) else "instruction"
    if _is(first, "wh") or _is(first, "aux"):
        return "side"
    if is_remark(words, topic):
        return "remark"
    if _is(first, "subordinate"):
        return "statement" if before == "statement" else "side"
    finite = any(_is(word, "be") or _is(word, "aux") for word in body)
    if before == "instruction" and (first.endswith("ing") or not finite):
        return "instruction"  # an apposition or a list inside an instruction
    return "pointer" if _points(body, topic) else "statement"


def _is_fragment(words: list[str], topic: frozenset[str]) -> bool:
    """A place named alone, as an answer to 'where' would be."""
    return _is(words[0], "place_prepositions") and not _points(words, topic) and len(words) > 1


def _commands(body: list[str]) -> bool:
    return body[0] in lexicon().imperatives or body[0] in {"don't", "let", "make"} or _looks_imperative(body)


def _looks_imperative(body: list[str]) -> bool:
    """'Sketch the path': a bare verb, which no list knows in full, and then an object."""
    first = body[0]
    bare = first not in lexicon().function and not first.endswith(("s", "ed", "ing")) and first.isalpha()
    at = 2 if len(body) > 3 and body[1] in _PARTICLES else 1  # "write down the order"
    return bare and len(body) > 2 and (_is(body[at], "openers") or body[1] in {"them", "it"})


def _points(body: list[str], topic: frozenset[str]) -> bool:
    """'The decisive contact happens near the end': a place is named and nothing is said of it."""
    if not any(_is(word, "meta") and stem(word) not in topic for word in body[:4]):
        return False
    known = lexicon().neutral_stems | topic
    for index, word in enumerate(body):
        if _is(word, "showing") and not any(_is(after, "wh") for after in body[index + 1 :]):
            return all(stem(after) in known for after in content(body[index + 1 :]))
        if _is(word, "be") and index + 1 < len(body):
            return _is(body[index + 1], "pointing")
    return True


def _embedded_statement(body: list[str]) -> bool:
    """'Notice the ball is red', 'notice the ball rolling away': the instruction tells what there is."""
    if "because" in body[1:]:
        return True
    if not _is(body[0], "factive") and body[0] not in {"check", "verify", "ensure"}:
        return False
    if set(body) & {"each", "every", "any", "all"}:
        return False
    open_question = False
    for index, word in enumerate(body[1:], 1):
        open_question = open_question or _is(word, "wh") or _is(word, "pivots")
        if open_question or index < 2:
            continue
        if _is(word, "be") or (body[1] == "the" and index in range(3, 6) and word.endswith("ing")):
            return True
    return False
