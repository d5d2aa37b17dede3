"""Majority vote: several seeded answers, the one that most of them give (self-consistency)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ffr.eval.base import Item
from ffr.eval.models.base import Answerer, Generation, Reply
from ffr.eval.runner import Answer, Asked, Respond
from ffr.eval.scorers import score_target
from ffr.eval.settings import OptionConfig
from ffr.find.verify.text import fold_words
from ffr.types import Observation

TEMPERATURE_STEP, TOP_P_STEP, MAX_TOP_P = 0.15, 0.05, 0.95
"""Video-RTS: vote i is drawn at T + 0.15 i from the nucleus min(0.95, p + 0.05 i)."""
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, slots=True)
class Vote:
    """One sampled answer.

    Example:
        >>> Vote(reply=Reply("B", "stop", 1), seed=42, answer="B").key
        'B'
    """

    reply: Reply
    seed: int
    answer: str
    """As the robust profile reads it; empty if it finds none: such a vote does not count."""

    @property
    def key(self) -> str:
        """Equal for equal answers: words without case, articles and marks."""
        if len(self.answer) == 1:
            return self.answer
        return (
            " ".join(word for word in fold_words(self.answer).split() if word not in _ARTICLES) or self.answer
        )

    @property
    def row(self) -> dict[str, Any]:
        """What a row keeps of it."""
        return {
            "seed": self.seed,
            "answer": self.answer,
            "text": self.reply.text,
            "finish": self.reply.finish,
            "num_tokens": self.reply.num_tokens,
        }


@dataclass(frozen=True, slots=True)
class Ballot:
    """All votes on one view of a question.

    Example:
        >>> votes = [Vote(Reply(a, "stop", 1), k, a) for k, a in enumerate("ABBA")]
        >>> Ballot(tuple(votes)).winner.answer, Ballot(tuple(votes)).agreement
        ('A', 0.5)
    """

    votes: tuple[Vote, ...]

    @property
    def counts(self) -> Counter[str]:
        """Votes by answer; in the order in which the answers first came."""
        return Counter(vote.key for vote in self.votes if vote.key)

    @property
    def winner(self) -> Vote:
        """The first vote for the answer that most give; of equally many the one that came first."""
        counts = self.counts
        most = max(counts.values(), default=0)
        return next((vote for vote in self.votes if vote.key and counts[vote.key] == most), self.votes[0])

    @property
    def agreement(self) -> float:
        """Share of the votes that give the winner's answer; 0 if none gives any."""
        return max(self.counts.values(), default=0) / len(self.votes)

    @property
    def unanimous(self) -> bool:
        """Whether all give the same answer."""
        return self.agreement == 1.0

    @property
    def error(self) -> str:
        """Why a vote is missing; the question then counts as not answered."""
        return next((vote.reply.error for vote in self.votes if vote.reply.error), "")

    @property
    def row(self) -> dict[str, Any]:
        """What a row keeps of it."""
        return {"votes": [vote.row for vote in self.votes], "agreement": round(self.agreement, 4)}


def vote_generation(base: Generation, number: int, *, rising: bool) -> Generation:
    """How vote `number` (0-based) is drawn; the first one is the plain answer with the same seed.

    Example:
        >>> drawn = vote_generation(Generation(temperature=0.8, top_p=0.7), 4, rising=True)
        >>> round(drawn.temperature, 2), round(drawn.top_p, 2)
        (1.4, 0.9)
    """
    seed = base.seed
    if number:
        digest = hashlib.sha256(f"vote/{base.seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big") >> 1
    if not rising:
        return replace(base, seed=seed)
    return replace(
        base,
        seed=seed,
        temperature=base.temperature + TEMPERATURE_STEP * number,
        top_p=max(base.top_p, min(MAX_TOP_P, base.top_p + TOP_P_STEP * number)),
    )


async def ask_votes(
    answerer: Answerer,
    questions: Sequence[tuple[Item, Observation]],
    base: Generation,
    cfg: OptionConfig,
) -> list[Ballot]:
    """The votes on some views, all views of one vote in a call.

    Args:
        answerer: The model.
        questions: Each with the view that is shown.
        base: Decoding of the plain answer; its seed names the votes' seeds.
        cfg: How many, and whether they get hotter.
    """
    views = [view for _, view in questions]
    cast: list[list[Vote]] = [[] for _ in questions]
    for number in range(cfg.votes) if views else ():
        generation = vote_generation(base, number, rising=cfg.rising)
        replies = await answerer.answer(views, generation)
        if len(replies) != len(views):
            replies = [Reply.failed("model", f"{len(replies)} replies to {len(views)} questions")] * len(
                views
            )
        for at, reply in enumerate(replies):
            cast[at].append(Vote(reply, generation.seed, _answer(questions[at][0], reply)))
    return [Ballot(tuple(votes)) for votes in cast]


def decided(ballots: Sequence[Ballot], extra: dict[str, Any], view: Observation | None = None) -> Answer:
    """The row's answer: the last ballot's winner, with the cost of all of them.

    Args:
        ballots: On the views of one question, in the order in which they were asked.
        extra: What the row keeps beside it.
        view: That of the last ballot.
    """
    error = next((ballot.error for ballot in ballots if ballot.error), "")
    votes = [vote for ballot in ballots for vote in ballot.votes]
    counted = {**extra, "num_calls": len(votes)}
    reply = replace(
        ballots[-1].winner.reply,
        num_tokens=sum(vote.reply.num_tokens for vote in votes),
        num_prompt_tokens=sum(vote.reply.num_prompt_tokens for vote in votes),
    )
    if error:
        return Answer(replace(reply, text="", error=error), counted, view)
    return Answer(reply, counted, view)


def majority_vote(answerer: Answerer, cfg: OptionConfig) -> Respond:
    """Answers by majority; ties go to the answer that came first."""

    async def respond(asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        questions = [(one.item, one.observation) for one in asked]
        ballots = await ask_votes(answerer, questions, generation, cfg)
        return [decided([ballot], ballot.row) for ballot in ballots]

    return respond


def _answer(item: Item, reply: Reply) -> str:
    if reply.error:
        return ""
    found = score_target(item.benchmark, item.target, item.record, reply.text, profile="robust")
    return "" if found.failed else found.extracted
