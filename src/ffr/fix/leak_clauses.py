"""Clauses of a patch: which ones instruct, which ones point, and which ones state what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ffr.fix.leak_text import lexicon, tokens

_SENTENCE = re.compile(r"[.;:!?\n]+|\s-\s|\s--+\s")
_COMMA = re.compile(r",")
_LEADING: Final = frozenset(
    "please now then first next also again carefully instead finally and but so just simply always closely only slowly "
    "afterwards second third lastly here once or therefore thus hence specifically especially particularly thirdly secondly firstly "
    "try to you should must need can may could might have will want".split()
)
_SUBORDINATE: Final = frozenset(
    "in within during at around between before after when while as from to for by across near inside if because given "
    "using with without until on throughout over once since whenever wherever rather instead not especially particularly "
    "whether including such although though unless".split()
)
_WH: Final = frozenset("which what where when whether how who whom whose why if".split())
_AUX: Final = frozenset(
    "is are was were does do did has have had can could will would should may might am isn't aren't".split()
)
_BE: Final = frozenset("is are was were be been being isn't aren't wasn't weren't".split())
_META: Final = frozenset(
    "key relevant important critical crucial decisive main evidence moment moments clue clues cue cues detail details "
    "information answer event events question focus attention frame frames segment segments window windows interval range "
    "ranges clip video region regions part part area portion timing order difference action interaction task".split()
)
_POINTING: Final = frozenset(
    "in within at near around during between when after before on where inside by from while just right visible shown "
    "found located there close next towards toward about throughout across key important relevant decisive crucial critical "
    "enough needed what which how who not all only easy hard subtle brief short clear clearer clearest best partly "
    "partially sometimes".split()
)
_MODAL: Final = frozenset("may might can could should must would need needs".split())


@dataclass(frozen=True, slots=True)
class Clause:
    """One clause: its words and whether it states something about the video.

    Example:
        >>> split_clauses("watch the ball. it is red")[1].states
        True
    """

    words: tuple[str, ...]
    states: bool


def split_clauses(text: str) -> tuple[Clause, ...]:
    """Clauses of a folded text.

    An instruction ("watch the ball"), a question ("which one moves?"), a pointing sentence ("the key
    moment is in the middle") and a side clause state nothing; "it is red", "notice that it is red" and
    "the ball rolls away" do.

    Args:
        text: Folded text without pointers.

    Returns:
        The clauses in order.
    """
    result: list[Clause] = []
    for sentence in _SENTENCE.split(text):
        previous_states = False
        for index, part in enumerate(_COMMA.split(sentence)):
            words = tokens(part)
            if not words:
                continue
            for piece in _split_that(words):
                states = _states(piece, continues=index > 0, previous=previous_states)
                result.append(Clause(tuple(piece), states))
                previous_states = states
    return tuple(result)


def _split_that(words: list[str]) -> list[list[str]]:
    """'notice that X' is an instruction and the statement X; so is 'X because Y'."""
    factive = lexicon().lists["factive"]
    for index, word in enumerate(words[1:], 1):
        if word == "that" and words[index - 1] in factive and index + 1 < len(words):
            return [words[:index], ["that", *words[index + 1 :]]]
    return [words]


def _states(words: list[str], *, continues: bool, previous: bool) -> bool:
    if words[0] == "that" and len(words) > 2:
        return not _points(words)
    body = list(words)
    while body and (body[0] in _LEADING or body[0].endswith("ly")):
        body = body[1:]
    if not body:
        return False
    first = body[0]
    if first in lexicon().imperatives or first in {"don't", "let", "make"}:
        return _embedded_statement(body)
    if first in _WH or first in _AUX or first in _SUBORDINATE:
        return previous and first not in _WH and continues
    if continues and not previous and (first.endswith("ing") or not set(body) & (_BE | _AUX)):
        return False  # an apposition or a list inside an instruction
    return not _points(body)


def _points(body: list[str]) -> bool:
    """'The decisive contact happens near the end': a place is named and nothing is said of it."""
    if not set(body[:5]) & _META:
        return False
    for index, word in enumerate(body):
        if word in _BE and index + 1 < len(body):
            return body[index + 1] in _POINTING
    return True


def _embedded_statement(body: list[str]) -> bool:
    """'Notice the ball is red': an instruction with a finite clause that no question word opens."""
    seen_wh = False
    for index, word in enumerate(body):
        if word in _WH or (
            word in {"that", "as", "than", "until", "once", "while", "because", "before", "after"}
        ):
            seen_wh = True
        if word in _BE and index > 1 and not seen_wh and body[0] not in {"do", "don't", "make"}:
            return True
        if word == "because" and index > 0:
            return True
    return False
