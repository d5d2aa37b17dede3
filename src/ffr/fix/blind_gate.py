"""The leak gate's last layer: a model that sees no video must not answer better with the patch than without.

One patch at a time, before it is shown; `ffr.fix.blind` does the same over a file. The question is put in as
many orders of its options as `fix.leak.blind_asks` says, in two waves: the second is spared where it could
change nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from ffr.config import FixConfig, LeakConfig, TeacherConfig
from ffr.find import verify
from ffr.fix.ask import NoTeacherError
from ffr.fix.blind import shuffled
from ffr.fix.budget import Budget
from ffr.fix.cache import Journal
from ffr.fix.client import ChatClient
from ffr.fix.faults import TeacherFault
from ffr.fix.loop import ChatTeacher
from ffr.fix.profiles import choose_profile
from ffr.fix.prompting import blind_prompts, prompt_version
from ffr.fix.request import with_usage
from ffr.fix.teacher import Teacher, reference_text
from ffr.types import EvidencePatch, LeakFinding, Sample, TeacherCost

log = logging.getLogger(__name__)

LAYER: Final = "blind"
KEY_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class BlindCounts:
    """How often the model was right, over pairs of a question alone and the same question with the patch.

    Example:
        >>> counts = BlindCounts(pairs=8, alone=2, patched=7, wins=5, losses=0)
        >>> counts.lift, counts.p_value
        (0.625, 0.03125)
    """

    pairs: int = 0
    alone: int = 0
    """Right without the patch."""
    patched: int = 0
    """Right with it."""
    wins: int = 0
    """Right with the patch only."""
    losses: int = 0
    """Right without it only."""
    unread: int = 0
    """Replies in which no answer was found."""

    @property
    def lift(self) -> float:
        """Share right with the patch less share right without; 0 for no pairs."""
        return (self.patched - self.alone) / self.pairs if self.pairs else 0.0

    @property
    def p_value(self) -> float:
        """Exact one-sided sign test: chance of so many wins if wins and losses were equally likely."""
        n = self.wins + self.losses
        return sum(math.comb(n, k) for k in range(self.wins, n + 1)) / 2**n

    def leaks(self, cfg: LeakConfig) -> bool:
        """True if the patch helps clearly: by `blind_lift`, at `blind_p_value`."""
        return self.pairs > 0 and self.lift >= cfg.blind_lift and self.p_value <= cfg.blind_p_value

    def plus(self, alone: bool, patched: bool, times: int = 1) -> BlindCounts:
        """With further pairs of one outcome."""
        return replace(
            self,
            pairs=self.pairs + times,
            alone=self.alone + times * alone,
            patched=self.patched + times * patched,
            wins=self.wins + times * (patched and not alone),
            losses=self.losses + times * (alone and not patched),
        )

    def settled(self, num_left: int, cfg: LeakConfig) -> bool:
        """True if no outcome of the pairs that are left changes the verdict."""
        best, worst = self.plus(False, True, num_left), self.plus(True, False, num_left)
        return best.leaks(cfg) == worst.leaks(cfg)


def first_wave(cfg: LeakConfig) -> int:
    """So many pairs that the test is over if none of them differs: the rest could not reach the p-value.

    Example:
        >>> first_wave(LeakConfig(blind_asks=8, blind_p_value=0.1))  # three wins more: p = 1/8
        5
    """
    return max(
        1, next(k for k in range(cfg.blind_asks + 1) if 0.5 ** (cfg.blind_asks - k) > cfg.blind_p_value)
    )


@dataclass(frozen=True, slots=True)
class BlindOutcome:
    """What the layer says of one patch.

    Example:
        >>> BlindOutcome(LeakFinding("blind", leaked=False), TeacherCost()).shown
        True
    """

    finding: LeakFinding | None
    """None if the test could not be done and the patch is not to be shown."""
    cost: TeacherCost
    """Blind fields only."""
    fault: str = ""
    """Why the test could not be done."""
    limit: str = ""
    """Which budget is spent."""

    @property
    def shown(self) -> bool:
        """True if the student may see the patch."""
        return self.finding is not None and not self.finding.leaked


class BlindGate:
    """Asks the model without the video: journal first, then budget, then the server.

    Args:
        client: Talks to the model.
        judge: Its server settings: model, concurrency, tokens.
        fix: The layer's settings (`fix.leak.blind_*`), and what of a patch the student sees.
        journal: Replays tests and keeps new ones.
        budget: Grants tests: one counts as one call.
        counters: The flow's; `blind_tests`, `blind_cached`, `blind_refused`, `blind_faults`, `blind_calls`,
            `blind_prompt_tokens`, `blind_completion_tokens` and `estimated_tokens` are counted there.
        own_client: Close the client with this gate.
    """

    def __init__(
        self,
        client: ChatClient,
        judge: TeacherConfig,
        fix: FixConfig,
        *,
        journal: Journal | None,
        budget: Budget,
        counters: Counter[str],
        own_client: bool,
    ) -> None:
        self._client = client
        self._judge = judge
        self._fix = fix
        self._journal = journal
        self._budget = budget
        self._counters = counters
        self._own_client = own_client
        self._limit_field = choose_profile(judge).max_tokens_field
        self._send_seed = True
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
        self._key_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._ever_worked = False
        self._faults_so_far = 0
        self._last_fault = ""

    async def check(self, patch: EvidencePatch, sample: Sample) -> BlindOutcome:
        """Test one patch; a test that is in the journal is not paid again."""
        if self._journal is None:
            return await self._pay(patch, sample, "")
        key = self._key(patch, sample)
        lock = self._key_locks.setdefault(key, asyncio.Lock())
        async with lock:
            stored = await asyncio.to_thread(self._journal.get, key)
            counts = _counts_from(stored) if stored is not None else None
            if counts is not None:
                self._counters["blind_cached"] += 1
                return self._judged(counts, TeacherCost())
            return await self._pay(patch, sample, key)

    def check_judge(self) -> None:
        """Stop a run in which the blind test refuses everything because it has never worked.

        Raises:
            NoTeacherError: `fix.no_teacher_after` tests without one that could be done.
        """
        fix = self._fix
        refuses = fix.leak.blind_on_fault == "refuse" and not fix.allow_no_teacher
        if refuses and not self._ever_worked and self._faults_so_far >= fix.no_teacher_after:
            raise NoTeacherError(
                f"none of {self._faults_so_far} blind tests could be done ({self._last_fault}), so no patch "
                f"was shown. Check fix.leak.blind_base_url and fix.leak.blind_model ({self._judge.model}), "
                "or set fix.leak.blind_on_fault = 'pass' or fix.leak.blind = 'off'"
            )

    async def aclose(self) -> None:
        """Close the connections that are this gate's own."""
        if self._own_client:
            await self._client.aclose()

    async def _pay(self, patch: EvidencePatch, sample: Sample, key: str) -> BlindOutcome:
        async with self._slot():
            limit = await asyncio.to_thread(self._budget.take, sample.uid)
            if limit:
                self._counters[f"over_budget/{limit}"] += 1
                return BlindOutcome(None, TeacherCost(), limit=limit)
            self._counters["blind_tests"] += 1
            bill = _Bill()
            counts, fault = await self._test(patch, sample, bill)
        self._counters["blind_calls"] += bill.cost.num_blind_calls
        for name in ("blind_prompt_tokens", "blind_completion_tokens", "estimated_tokens"):
            self._counters[name] += getattr(bill.cost, name)
        if fault:
            return self._not_done(fault, bill.cost)
        self._ever_worked = True
        if key and self._journal is not None:
            await asyncio.to_thread(self._journal.put, key, {"blind": asdict(counts)})
        return self._judged(counts, bill.cost)

    async def _test(self, patch: EvidencePatch, sample: Sample, bill: _Bill) -> tuple[BlindCounts, str]:
        """The counts, and why they are worth nothing if so."""
        started = time.monotonic()
        cfg, total = self._fix.leak, self._fix.leak.blind_asks
        counts, faults = BlindCounts(), list[str]()
        first = first_wave(cfg)
        for wave in (range(first), range(first, total)):
            pairs = [self._pair(patch, sample, turn, started + cfg.blind_deadline_s, bill) for turn in wave]
            for result in await asyncio.gather(*pairs):
                if isinstance(result, TeacherFault):
                    faults.append(str(result))
                    continue
                (alone, _), (patched, _) = result
                unread = counts.unread + sum(not said for _, said in result)
                counts = replace(counts.plus(alone, patched), unread=unread)
            if len(faults) > total / 2 or counts.settled(total - wave.stop, cfg):
                break
        bill.cost = replace(bill.cost, wall_s=time.monotonic() - started)
        if counts.pairs < len(faults) or not counts.pairs:
            return counts, f"{len(faults)} of {len(faults) + counts.pairs} pairs failed: {faults[0]}"
        if counts.unread > counts.pairs:
            said = f"no answer in {counts.unread} of {2 * counts.pairs} replies of {self._judge.model}"
            return counts, said
        return counts, ""

    async def _pair(
        self, patch: EvidencePatch, sample: Sample, turn: int, deadline: float, bill: _Bill
    ) -> Sequence[tuple[bool, bool]] | TeacherFault:
        """(right, an answer was found) without and with the patch; the same order, the same seed."""
        shown = shuffled(sample, turn, keep=turn == 0)
        prompts = blind_prompts(shown, patch, visual=self._fix.visual)
        asked = (self._ask(prompt, turn, deadline, bill) for prompt in prompts)
        texts: list[str] = []
        for reply in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(reply, TeacherFault):
                return reply
            if isinstance(reply, BaseException):
                raise reply
            texts.append(reply)
        verdicts = [verify(shown, text) for text in texts]
        return [(verdict.correct, bool(verdict.extracted)) for verdict in verdicts]

    async def _ask(self, prompt: str, seed: int, deadline: float, bill: _Bill) -> str:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self._fix.leak.blind_temperature,
            self._limit_field: self._judge.max_tokens,
        }
        try:
            completion = await self._complete(body, seed, deadline)
        finally:
            bill.cost = replace(bill.cost, num_blind_calls=bill.cost.num_blind_calls + 1)
        completion = with_usage(completion, body)
        bill.cost = replace(
            bill.cost,
            blind_prompt_tokens=bill.cost.blind_prompt_tokens + completion.prompt_tokens,
            blind_completion_tokens=bill.cost.blind_completion_tokens + completion.completion_tokens,
            estimated_tokens=bill.cost.estimated_tokens + completion.estimated_tokens,
        )
        return completion.text

    async def _complete(self, body: dict[str, Any], seed: int, deadline: float) -> Any:
        if self._send_seed:
            try:
                return await self._client.complete({**body, "seed": seed}, deadline=deadline)
            except TeacherFault as fault:
                if not fault.refuses_form:
                    raise
                log.warning("blind test: the server refuses a seed (%s); asking without", fault.detail)
                self._send_seed = False
        return await self._client.complete(body, deadline=deadline)

    def _judged(self, counts: BlindCounts, cost: TeacherCost) -> BlindOutcome:
        leaked = counts.leaks(self._fix.leak)
        self._counters["blind_refused"] += leaked
        words = (
            f"without the video {self._judge.model} is right {counts.patched} of {counts.pairs} times with "
            f"the patch and {counts.alone} times without it (p = {counts.p_value:.3g})"
        )
        return BlindOutcome(LeakFinding(LAYER, leaked, reason=words), cost)

    def _not_done(self, fault: str, cost: TeacherCost) -> BlindOutcome:
        self._counters["blind_faults"] += 1
        self._faults_so_far += 1
        self._last_fault = fault[:200]
        if self._counters["blind_faults"] == 1:
            log.warning(
                "blind test could not be done (fix.leak.blind_on_fault = %s): %s",
                self._fix.leak.blind_on_fault,
                fault,
            )
        if self._fix.leak.blind_on_fault == "refuse":
            return BlindOutcome(None, cost, fault=fault[:300])
        finding = LeakFinding(LAYER, leaked=False, reason=f"not done: {fault}"[:300])
        return BlindOutcome(finding, cost, fault=fault[:300])

    def _key(self, patch: EvidencePatch, sample: Sample) -> str:
        """Content of the test: what is asked, of whom, how often, and when it counts as settled."""
        leak = self._fix.leak
        parts = {
            "blind": KEY_VERSION,
            "judge": self._judge.model,
            "prompts": prompt_version("blind"),
            "asked": list(blind_prompts(sample, patch, visual=self._fix.visual)),
            "gold": reference_text(sample),
            "kind": str(sample.problem_type),
            # The orders of the options are drawn by it.
            "uid": sample.uid,
            "settings": [leak.blind_asks, leak.blind_temperature, leak.blind_lift, leak.blind_p_value],
            "max_tokens": self._judge.max_tokens,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _slot(self) -> asyncio.Semaphore:
        loop = asyncio.get_running_loop()
        return self._slots.setdefault(loop, asyncio.Semaphore(self._judge.concurrency))


@dataclass(slots=True)
class _Bill:
    """What one test has cost so far."""

    cost: TeacherCost = TeacherCost()


def _counts_from(stored: Mapping[str, Any]) -> BlindCounts | None:
    """The counts of a journal row; None if it holds something else."""
    try:
        values = {name: int(value) for name, value in dict(stored["blind"]).items()}
        return BlindCounts(**values)
    except (KeyError, TypeError, ValueError) as error:
        log.warning("a journal row is no blind test (%s); asking again", error)
        return None


def make_blind_gate(
    teacher: Teacher, fix: FixConfig, *, journal: Journal | None, budget: Budget, counters: Counter[str]
) -> BlindGate | None:
    """The layer that `fix.leak.blind` asks for; None if it is off or the whole gate is.

    With `teacher` the requests share the teacher's connections, places and circuit breaker.

    Raises:
        ValueError: The model has no address.
    """
    leak = fix.leak
    if leak.blind == "off" or not leak.enabled:
        return None
    judge, client = fix.teacher, None
    if leak.blind == "model":
        changes = {
            "base_url": leak.blind_base_url,
            "model": leak.blind_model,
            "api_key_env": leak.blind_api_key_env,
            "profile": "auto",
        }
        judge = fix.teacher.model_copy(update=changes)
    elif isinstance(teacher, ChatTeacher):
        client = teacher.client
    own = client is None
    return BlindGate(
        client or ChatClient(judge),
        judge,
        fix,
        journal=journal,
        budget=budget,
        counters=counters,
        own_client=own,
    )
