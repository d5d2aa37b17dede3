"""One batch of questions through find, fix and score. Knows no gradient and no TRL."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from ffr.algorithms import Algorithm, GroupScore
from ffr.config import Config
from ffr.engines.clock import Clock
from ffr.engines.trl.overlap import Overlap, SingleSampler
from ffr.engines.trl.watch import Watch
from ffr.find import Sampler, thresholds_from, verify
from ffr.fix import RepairFlow, run_blocking
from ffr.fix.overlap import OverlapFlow
from ffr.observe import MediaError, observe
from ffr.reason import choose
from ffr.types import Observation, Repair, RepairStatus, Rollout, RolloutGroup, Sample, Verdict

log = logging.getLogger(__name__)
Stages = tuple[list[list[Rollout]], list[list[Verdict]], list[list[Repair | None]]]
"""First passes, their verdicts and their repairs, by question."""
_CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Question:
    """What became of one question of the batch.

    Example:
        >>> Question(index=3, sample=sample, failure="missing: clips/3.mp4").group is None  # doctest: +SKIP
        True
    """

    index: int
    sample: Sample
    group: RolloutGroup | None = None
    score: GroupScore | None = None
    failure: str = ""
    """Why there is no group: the clip could not be decoded."""


@dataclass(frozen=True)
class FlowResult:
    """A finished batch, with what the teacher did.

    Example:
        >>> FlowResult(questions=()).fix_counts
        Counter()
    """

    questions: tuple[Question, ...]
    fix_counts: Counter[str] = field(default_factory=Counter)
    """What `RepairFlow.counters` gained."""


class Views:
    """Observations by sample index, decoded once while they fit in memory."""

    def __init__(self, samples: Sequence[Sample], cfg: Config, *, limit_bytes: int = _CACHE_BYTES) -> None:
        self._samples = samples
        self._cfg = cfg.observe
        self._limit = limit_bytes
        self._held = 0
        self._kept: OrderedDict[int, Observation] = OrderedDict()

    def get(self, index: int) -> Observation:
        """The un-patched observation of one sample.

        Raises:
            MediaError: The clip cannot be decoded.
        """
        obs = self._kept.get(index)
        if obs is None:
            obs = observe(self._samples[index], self._cfg)
            self._kept[index] = obs
            self._held += _nbytes(obs)
            while self._held > self._limit and len(self._kept) > 1:
                self._held -= _nbytes(self._kept.popitem(last=False)[1])
        else:
            self._kept.move_to_end(index)
        return obs


class GroupFlow:
    """Find, fix and score for the questions of a batch.

    Args:
        samples: all samples; questions are named by their index.
        cfg: the run.
        sampler: the policy.
        algorithm: scores the groups and says whether failures are repaired.
        repairs: who repairs; None for plain GRPO (the caller has said so, loudly).
        watch: told when this rank begins to repair.
        clock: told where the time goes; its own if None.
        overlap: `sampler` takes single rollouts and `repairs` is an `OverlapFlow`: no rollout waits for
            another one. What the clock calls `fix` is then the time after the last first pass.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        cfg: Config,
        *,
        sampler: Sampler,
        algorithm: Algorithm,
        repairs: RepairFlow | None,
        watch: Watch | None = None,
        clock: Clock | None = None,
        overlap: bool = False,
    ) -> None:
        if overlap and repairs is not None and not isinstance(repairs, OverlapFlow):
            raise TypeError(f"overlapping repairs need an OverlapFlow, not {type(repairs).__name__}")
        self.clock = clock or Clock()
        self._samples = samples
        self._cfg = cfg
        self._sampler = sampler
        self._algorithm = algorithm
        self._repairs = repairs
        self._watch = watch
        self._overlap = overlap
        self._views = Views(samples, cfg)
        self._thresholds = thresholds_from(cfg.find)
        self._warned: set[str] = set()

    def uids(self, indices: Sequence[int]) -> list[str]:
        """Names of questions, for messages."""
        return [self._samples[index].uid for index in indices]

    def run(self, indices: Sequence[int], *, training: bool) -> FlowResult:
        """One batch, in the caller's thread.

        Args:
            indices: sample index of each question.
            training: failed rollouts are repaired only in training.

        Returns:
            One `Question` per index, in order.

        Raises:
            NoTeacherError: the teacher never succeeded and that was not allowed.
            EncodeError: a prompt is too long or does not fit the student.
        """
        with self.clock.phase("observe"):
            views = [self._observe(index) for index in indices]
        before = Counter(self._repairs.counters) if self._repairs else Counter[str]()
        stages = self._overlapped if self._overlap else self._in_step
        firsts, verdicts, repairs = stages(indices, views, training=training)
        gained = Counter(self._repairs.counters) - before if self._repairs else before
        with self.clock.phase("score"):
            questions = tuple(
                self._question(index, views[k], firsts[k], verdicts[k], repairs[k])
                for k, index in enumerate(indices)
            )
        return FlowResult(questions, gained)

    def _in_step(
        self, indices: Sequence[int], views: Sequence[Observation | str], *, training: bool
    ) -> Stages:
        """All first passes, then all diagnoses, then all second tries."""
        shown = [view for view in views if isinstance(view, Observation)]
        with self.clock.phase("generate"):
            size = self._cfg.find.group_size
            sampled = iter(_now(self._sampler.sample(shown, num=size)) if shown else [])
        firsts = [next(sampled) if isinstance(view, Observation) else [] for view in views]
        with self.clock.phase("verify"):
            verdicts = [
                [self._verify(index, rollout) for rollout in first]
                for index, first in zip(indices, firsts, strict=True)
            ]
        if self._watch is not None:
            self._watch.enter("fix")
        with self.clock.phase("fix"):
            return firsts, verdicts, self._repair(indices, firsts, verdicts, training=training)

    def _overlapped(
        self, indices: Sequence[int], views: Sequence[Observation | str], *, training: bool
    ) -> Stages:
        """Every rollout through all stages on its own."""
        places = [k for k, view in enumerate(views) if isinstance(view, Observation)]
        repairing = training and self._algorithm.repairs
        flow = self._repairs if repairing and isinstance(self._repairs, OverlapFlow) else None
        find, token = self._cfg.find, object()

        def judge(sample: Sample, rollout: Rollout) -> Verdict:
            return verify(sample, rollout.text, profile=find.profile, thresholds=self._thresholds)

        def sampled() -> None:
            self.clock.enter("fix", token)
            if self._watch is not None:
                self._watch.enter("fix")

        overlap = Overlap(cast(SingleSampler, self._sampler), judge, flow, group_size=find.group_size)
        questions = [(self._samples[indices[k]], cast(Observation, views[k])) for k in places]
        with self.clock.phase("generate"):
            try:
                groups = dict(zip(places, run_blocking(overlap.run(questions, sampled)), strict=True))
            finally:
                self.clock.leave(token)
        firsts = [groups[k].first_G if k in groups else [] for k in range(len(views))]
        verdicts = [groups[k].verdicts_G if k in groups else [] for k in range(len(views))]
        if repairing and self._repairs is None:
            return firsts, verdicts, self._repair(indices, firsts, verdicts, training=training)
        return firsts, verdicts, [groups[k].repairs_G if k in groups else [] for k in range(len(views))]

    def _observe(self, index: int) -> Observation | str:
        try:
            return self._views.get(index)
        except MediaError as error:
            uid = self._samples[index].uid
            if uid not in self._warned:
                self._warned.add(uid)
                log.warning("sample %s is left out of training: %s", uid, error)
            return str(error)

    def _verify(self, index: int, rollout: Rollout) -> Verdict:
        find = self._cfg.find
        return verify(self._samples[index], rollout.text, profile=find.profile, thresholds=self._thresholds)

    def _repair(
        self,
        indices: Sequence[int],
        firsts: Sequence[Sequence[Rollout]],
        verdicts: Sequence[Sequence[Verdict]],
        *,
        training: bool,
    ) -> list[list[Repair | None]]:
        out: list[list[Repair | None]] = [[None] * len(first) for first in firsts]
        failed = [(k, g) for k, row in enumerate(verdicts) for g, v in enumerate(row) if not v.correct]
        if not (training and self._algorithm.repairs):
            return out
        if self._repairs is None:
            for k, g in failed:
                out[k][g] = Repair(RepairStatus.SKIPPED, detail="no teacher")
            return out
        items = [(self._samples[indices[k]], firsts[k][g]) for k, g in failed]
        # Also with nothing to repair: the flow keeps the ranks of a collective sampler together.
        for (k, g), repair in zip(failed, self._repairs.repair_batch_blocking(items), strict=True):
            out[k][g] = repair
        return out

    def _question(
        self,
        index: int,
        view: Observation | str,
        first: Sequence[Rollout],
        verdicts: Sequence[Verdict],
        repairs: Sequence[Repair | None],
    ) -> Question:
        sample = self._samples[index]
        if isinstance(view, str):
            return Question(index, sample, failure=view)
        chosen = [choose(rollout, repair) for rollout, repair in zip(first, repairs, strict=True)]
        final = [
            verdict if again is rollout else _verdict_of(repair)
            for rollout, verdict, again, repair in zip(first, verdicts, chosen, repairs, strict=True)
        ]
        group = RolloutGroup(
            sample=sample,
            first_G=tuple(first),
            first_verdicts_G=tuple(verdicts),
            repairs_G=tuple(repairs),
            chosen_G=tuple(chosen),
            chosen_verdicts_G=tuple(final),
        )
        return Question(index, sample, group, self._algorithm.score(group))


def _verdict_of(repair: Repair | None) -> Verdict:
    if repair is None or repair.verdict is None:
        raise ValueError("a chosen repair carries no verdict")
    return repair.verdict


def _now(coroutine: object) -> list[list[Rollout]]:
    return asyncio.run(coroutine)  # type: ignore[arg-type]


def _nbytes(obs: Observation) -> int:
    return sum(f.pixels.nbytes for f in (*obs.frames, *obs.extra_frames) if f.pixels is not None)
