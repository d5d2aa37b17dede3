"""Sparse to dense: few frames first, twice as many while the votes disagree.

Source: Video-RTS (Ziyang412/Video-RTS), which begins with 32 frames and ends with 128: votes on few frames
are cheap, and only where they disagree more frames are looked at. Its presence and frequency penalties are
left out; its temperatures are `OptionConfig.rising`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ffr.eval.models.base import Answerer, Generation
from ffr.eval.options.vote import Ballot, ask_votes, decided
from ffr.eval.runner import Answer, Asked, Respond
from ffr.eval.settings import OptionConfig
from ffr.types import Observation


def sparse_to_dense(answerer: Answerer, cfg: OptionConfig) -> Respond:
    """Answers by majority, on as many frames as it takes for the votes to agree.

    A clip with fewer frames than a rung wants is not shown twice.
    """

    async def respond(asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        """One answer per question, from the rung at which its votes agreed."""
        climbs = [_Climb(one) for one in asked]
        for rung in _rungs(asked):
            open_ = [climb for climb in climbs if climb.wants(rung)]
            questions = [(climb.asked.item, climb.asked.views[rung]) for climb in open_]
            ballots = await ask_votes(answerer, questions, generation, cfg)
            for climb, ballot in zip(open_, ballots, strict=True):
                climb.take(ballot, climb.asked.views[rung])
        return [climb.answer() for climb in climbs]

    return respond


def _rungs(asked: Sequence[Asked]) -> list[int]:
    return sorted({rung for one in asked for rung in one.views})


class _Climb:
    """One question on its way up."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._ballots: list[Ballot] = []
        self._views: list[Observation] = []

    def wants(self, rung: int) -> bool:
        """Whether the votes so far leave something open that this number of frames could settle."""
        view = self.asked.views.get(rung)
        if view is None:
            return False
        if not self._ballots:
            return True
        settled = self._ballots[-1].unanimous or bool(self._ballots[-1].error)
        return not settled and view.view_id != self._views[-1].view_id

    def take(self, ballot: Ballot, view: Observation) -> None:
        self._ballots.append(ballot)
        self._views.append(view)

    def answer(self) -> Answer:
        """The last votes' majority; the row says on how many frames."""
        rungs: list[dict[str, Any]] = [
            {"frames": len(view.frames), **ballot.row}
            for view, ballot in zip(self._views, self._ballots, strict=True)
        ]
        extra = {"rungs": rungs, "frames": len(self._views[-1].frames)}
        return decided(self._ballots, extra, self._views[-1])
