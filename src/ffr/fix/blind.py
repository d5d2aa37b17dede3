"""The blind test: does a patch help a model that sees no video? Then it says what is there, not where.

Each question is asked without its video, alone and with the rendered patch, under the same seeds and the
same orders of the options. A text model is enough; any OpenAI-compatible server will do.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ffr.config import TeacherConfig
from ffr.find import verify
from ffr.fix.audit import AuditRow
from ffr.fix.client import ChatClient
from ffr.fix.faults import TeacherFault
from ffr.fix.prompting import blind_prompts
from ffr.types import EvidencePatch, Option, Sample

Ask = Callable[[str, int], Awaitable[str]]
"""Prompt and seed in, completion out; raises `TeacherFault`."""


@dataclass(frozen=True, slots=True)
class BlindResult:
    """Paired accuracies without the video.

    Example:
        >>> BlindResult(2, 6, 0, alone=0.25, patched=0.5, wins=1, losses=0, p_value=1.0).lift
        0.25
    """

    rows: int
    pairs: int
    """(question alone, with patch) pairs where both were answered."""
    failed: int
    """Pairs lost to a fault of the server."""
    alone: float
    patched: float
    wins: int
    """Rows right more often with the patch than without."""
    losses: int
    p_value: float
    """Exact McNemar over rows, two-sided: the shufflings of a row are no independent trials."""
    first_fault: str = ""

    @property
    def lift(self) -> float:
        """Accuracy with the patch less accuracy without; 0 for a patch that only points."""
        return self.patched - self.alone


async def blind_test(
    rows: Sequence[AuditRow], ask: Ask, *, num_shuffles: int = 3, seed: int = 0
) -> BlindResult:
    """Ask every row `2 * num_shuffles` times and compare.

    Args:
        rows: Patches with their questions.
        ask: The model.
        num_shuffles: Orders of the options per row; the first is the row's own. Open questions are asked as
            often, with other seeds.
        seed: Of the orders and of the model.

    Returns:
        Accuracies over all answered pairs, and the sign of each row's difference tested exactly.

    Raises:
        ValueError: `num_shuffles` is not positive.
    """
    if num_shuffles < 1:
        raise ValueError(f"num_shuffles must be at least 1, got {num_shuffles}")
    jobs = [
        (at, shuffled(row.sample, seed + turn, keep=turn == 0), row.patch, seed + turn)
        for at, row in enumerate(rows)
        for turn in range(num_shuffles)
    ]
    outcomes = await asyncio.gather(*(_pair(ask, sample, patch, s) for _, sample, patch, s in jobs))
    difference = [0] * len(rows)
    answered: list[tuple[bool, bool]] = []
    faults: list[str] = []
    for (at, *_), outcome in zip(jobs, outcomes, strict=True):
        if isinstance(outcome, TeacherFault):
            faults.append(str(outcome))
            continue
        answered.append(outcome)
        difference[at] += outcome[1] - outcome[0]
    wins, losses = sum(d > 0 for d in difference), sum(d < 0 for d in difference)
    total = max(1, len(answered))
    return BlindResult(
        rows=len(rows),
        pairs=len(answered),
        failed=len(faults),
        alone=sum(first for first, _ in answered) / total,
        patched=sum(second for _, second in answered) / total,
        wins=wins,
        losses=losses,
        p_value=mcnemar(wins, losses),
        first_fault=faults[0] if faults else "",
    )


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided exact p-value of `wins` against `losses` under equal chances; 1 without any."""
    if wins + losses == 0:
        return 1.0
    stats: Any = importlib.import_module("scipy.stats")
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def shuffled(sample: Sample, seed: int, *, keep: bool = False) -> Sample:
    """The sample with its options in another order and the gold letter to match; `keep` leaves it."""
    if keep or len(sample.options) < 2:
        return sample
    texts = list(sample.options)
    random.Random(f"{seed}/{sample.uid}").shuffle(texts)
    letters = [option.label for option in sample.options]
    options = tuple(Option(label, option.text) for label, option in zip(letters, texts, strict=True))
    gold = next(label for label, option in zip(letters, texts, strict=True) if option.label == sample.answer)
    return replace(sample, options=options, answer=gold)


async def _pair(
    ask: Ask, sample: Sample, patch: EvidencePatch, seed: int
) -> tuple[bool, bool] | TeacherFault:
    alone, patched = blind_prompts(sample, patch)
    try:
        texts = await asyncio.gather(ask(alone, seed), ask(patched, seed))
    except TeacherFault as fault:
        return fault
    first, second = (verify(sample, text).correct for text in texts)
    return first, second


async def blind_test_server(
    rows: Sequence[AuditRow], cfg: TeacherConfig, *, num_shuffles: int = 3, seed: int = 0
) -> BlindResult:
    """The blind test with the model of a server: `cfg.base_url`, `cfg.model`, its limits and retries."""
    client = ChatClient(cfg)

    async def ask(prompt: str, seed: int) -> str:
        """One answer of the server, as text."""
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": cfg.temperature,
            "max_tokens": cfg.max_tokens,
            "seed": seed,
        }
        # Time spent waiting for a free place is no fault of the server: each attempt has its own limit.
        async with places:
            return (await client.complete(body, deadline=time.monotonic() + cfg.rollout_deadline_s)).text

    places = asyncio.Semaphore(cfg.concurrency)
    try:
        return await blind_test(rows, ask, num_shuffles=num_shuffles, seed=seed)
    finally:
        await client.aclose()
