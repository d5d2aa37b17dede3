"""Runs an evaluation: questions in, one row on disk for each answer, whatever clips and models do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ffr.eval.base import PROFILES, EvalDataError, Item, Score
from ffr.eval.clips import ClipLoader, Clips, make_observation, shown_fps
from ffr.eval.models.base import Answerer, Generation, Reply
from ffr.eval.rows import EvalRow, ItemRow, ScoreRow
from ffr.eval.scorers import score_target
from ffr.eval.settings import EvalConfig
from ffr.eval.store import RunStore
from ffr.observe import MEDIA_STATUSES, UNIFORM, DecodeLimits, FrameRule, MediaError
from ffr.types import Observation

log = logging.getLogger(__name__)

MAX_RAW_CHARS = 1_000_000
MAX_FAILURES_IN_A_ROW = 24
"""Answers that may fail one after the other before the model counts as gone."""
_AHEAD = 2
"""Calls whose clips are decoded before their turn."""


class ModelGoneError(RuntimeError):
    """The model fails on everything; what was answered is on disk."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in the view that the model gets.

    Example:
        >>> Asked(item=item, observation=obs).item.uid  # doctest: +SKIP
        'mvbench/action_count/7'
    """

    item: Item
    observation: Observation
    video_sha256: str = ""
    views: Mapping[int, Observation] = field(default_factory=dict[int, Observation])
    """By number of frames, fewest first: the rungs of an option's ladder, `observation` last."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and what a test-time option keeps beside it.

    Example:
        >>> Answer(Reply("B", "stop", 1)).extra
        {}
    """

    reply: Reply
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    observation: Observation | None = None
    """The view that the reply was given to, where it is another than `Asked.observation`."""


class Respond(Protocol):
    """How questions are answered: the model alone, or a test-time option around it."""

    async def __call__(self, asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        """One answer per question, in order; a failure is a reply with `error`."""
        ...


def plain(answerer: Answerer) -> Respond:
    """The model alone."""

    async def respond(asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        replies = await answerer.answer([one.observation for one in asked], generation)
        return [Answer(reply) for reply in replies]

    return respond


def item_row(item: Item) -> ItemRow:
    """The item as `items.jsonl` holds it, equal to itself when read back.

    Raises:
        EvalDataError: If the official row can't be written as JSON.
    """
    try:
        record = json.loads(json.dumps(dict(item.record), default=str))
        row = ItemRow(
            uid=item.uid,
            benchmark=item.benchmark,
            task=item.task,
            group=item.group,
            source_index=item.source_index,
            split=item.split,
            kind=item.target.kind,
            gold=item.target.answer,
            chance=item.chance,
            record=record,
        )
        return ItemRow.model_validate_json(row.model_dump_json())
    except (TypeError, ValueError) as error:
        raise EvalDataError(f"{item.uid}: the row can't be kept as JSON ({error}); mend the file") from None


class Runner:
    """One evaluation over the questions of an open run.

    Args:
        cfg: What is asked and how.
        items: The questions, in order.
        store: Where rows go; what it has already is not asked again.
        respond: Who answers (`plain(answerer)`).
        rules: Frame rule by benchmark; uniform where none is given.
        on_row: Called after each row is on disk.

    Example:
        >>> await Runner(cfg, items, store, plain(answerer)).run()  # doctest: +SKIP
    """

    def __init__(
        self,
        cfg: EvalConfig,
        items: Sequence[Item],
        store: RunStore,
        respond: Respond,
        *,
        rules: Mapping[str, FrameRule] | None = None,
        on_row: Callable[[EvalRow], None] | None = None,
    ) -> None:
        self.cfg = cfg
        self.items = tuple(items)
        self.store = store
        self.mode = cfg.mode
        self.counters: Counter[str] = Counter()
        """Rows written by this call: `rows`, `errors`, `error/<status>`, `note/<note>`."""
        self._respond = respond
        self._rules = rules or {}
        self.on_row = on_row
        self._observe = cfg.observe
        self._clips = ClipLoader(
            self._observe,
            sorted({rung for num in cfg.frames for rung in cfg.ladder(num)}),
            workers=cfg.workers,
            limits=DecodeLimits(isolate=cfg.isolate),
            held=max(8, 2 * cfg.batch_size),
        )
        self._answering = asyncio.Semaphore(cfg.concurrency)
        self._stopping = False
        self._failures = 0
        self._gone: ModelGoneError | None = None

    def stop(self) -> None:
        """Asks nothing new; what is under way is still answered and written."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called before everything was asked."""
        return self._stopping

    def keys(self) -> list[tuple[str, int, int, str]]:
        """All rows that the finished run has, in order."""
        return [
            (item.uid, num, seed, self.mode)
            for num in self.cfg.frames
            for seed in self.cfg.asked_seeds
            for item in self.items
        ]

    async def run(self) -> Counter[str]:
        """Asks what has no good row yet.

        Returns:
            The counters.

        Raises:
            ModelGoneError: The model failed `MAX_FAILURES_IN_A_ROW` times one after the other.
        """
        places = asyncio.Semaphore(self.cfg.concurrency + _AHEAD)
        tasks: set[asyncio.Task[None]] = set()
        try:
            for chunk in self._chunks():
                await places.acquire()
                if self._stopping or self._gone or any(t.done() and t.exception() for t in tasks):
                    break
                task = asyncio.create_task(self._ask(chunk))
                tasks.add(task)
                task.add_done_callback(lambda _: places.release())
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._clips.close()
        if self._gone:
            raise self._gone
        return self.counters

    def _chunks(self) -> list[list[Item]]:
        """The questions of each call: always the same ones, so that a resume repeats a batch as it was."""
        size = self.cfg.batch_size
        by_benchmark: dict[str, list[Item]] = {}
        for item in self.items:
            by_benchmark.setdefault(item.benchmark, []).append(item)
        chunks = [part[at : at + size] for part in by_benchmark.values() for at in range(0, len(part), size)]
        return [chunk for chunk in chunks if self._open(chunk)]

    def _open(self, chunk: Sequence[Item]) -> list[tuple[int, int]]:
        """Frames and seeds for which a question of the chunk has no good row."""
        pairs = [(num, seed) for num in self.cfg.frames for seed in self.cfg.asked_seeds]
        return [
            (num, seed)
            for num, seed in pairs
            if not all(self.store.done((item.uid, num, seed, self.mode)) for item in chunk)
        ]

    async def _ask(self, chunk: Sequence[Item]) -> None:
        clips = await asyncio.gather(*(self._load(item) for item in chunk))
        for num, seed in self._open(chunk):
            async with self._answering:
                if self._stopping or self._gone:
                    return
                await self._answer(chunk, clips, num, seed)

    async def _load(self, item: Item) -> Clips | str:
        """An item's clips, or why there are none: no other question may suffer for it."""
        future = self._clips.start(item.sample, self._rules.get(item.benchmark, UNIFORM))
        try:
            return await asyncio.wrap_future(future)
        except MediaError as error:
            return f"{error.status}: {error.path}: {error.detail}"
        except Exception as error:
            log.warning("%s: decoding failed: %s: %s", item.uid, type(error).__name__, error)
            return f"undecodable: {item.sample.video}: {type(error).__name__}: {error}"

    async def _answer(self, chunk: Sequence[Item], clips: Sequence[Clips | str], num: int, seed: int) -> None:
        asked: list[Asked] = []
        failed: list[EvalRow] = []
        for item, clip in zip(chunk, clips, strict=True):
            if isinstance(clip, str):
                failed.append(self._row(item, num, seed, error=clip))
                continue
            official = item.official_prompt if self.cfg.prompt == "official" else ""
            views = {
                rung: make_observation(item.sample, clip.by_num[rung], self._observe, official)
                for rung in self.cfg.ladder(num)
            }
            asked.append(Asked(item, views[num], clip.video_sha256, views))
        self._write(failed)
        if all(self.store.done((one.item.uid, num, seed, self.mode)) for one in asked):
            return
        answers = await self._responses(asked, self.cfg.generation(seed))
        rows = [self._answered(one, answer, num, seed) for one, answer in zip(asked, answers, strict=True)]
        self._write(rows)
        self._watch(rows)

    async def _responses(self, asked: Sequence[Asked], generation: Generation) -> list[Answer]:
        try:
            answers = await self._respond(asked, generation)
        except ModelGoneError as error:
            self._gone = error
            return [Answer(Reply.failed("model", error))] * len(asked)
        except Exception as error:
            log.warning("the model raised %s: %s", type(error).__name__, error)
            return [Answer(Reply.failed("model", f"{type(error).__name__}: {error}"))] * len(asked)
        if len(answers) != len(asked):
            words = f"{len(answers)} replies to {len(asked)} questions"
            return [Answer(Reply.failed("model", words))] * len(asked)
        return answers

    def _answered(self, one: Asked, answer: Answer, num: int, seed: int) -> EvalRow:
        reply, obs = answer.reply, answer.observation or one.observation
        raw, cut = kept_text(reply.text)
        reasoning, _ = kept_text(reply.reasoning)
        size = obs.frames[0] if obs.frames else None
        return self._row(
            one.item,
            num,
            seed,
            raw=raw,
            reasoning=reasoning,
            finish=kept_text(reply.finish)[0][:40],
            num_tokens=reply.num_tokens,
            num_prompt_tokens=reply.num_prompt_tokens,
            frame_indices=tuple(frame.source_index for frame in obs.frames),
            fps=shown_fps(obs),
            width_px=size.width_px if size else 0,
            height_px=size.height_px if size else 0,
            video_sha256=one.video_sha256,
            prompt_sha256=hashlib.sha256(obs.prompt.encode()).hexdigest(),
            error=kept_text(reply.error)[0][:500],
            notes=(*obs.notes, *(("raw_cut",) if cut else ())),
            scores={} if reply.error else score_all(one.item, raw),
            extra=dict(answer.extra),
        )

    def _row(self, item: Item, num: int, seed: int, **values: Any) -> EvalRow:
        fixed = {"config_hash": self.store.info.config_hash, "uid": item.uid, "mode": self.mode}
        return EvalRow(**fixed, num_frames=num, seed=seed, **values)

    def _write(self, rows: Sequence[EvalRow]) -> None:
        new = [row for row in rows if not self.store.done(row.key)]
        # A clip that is missing still is no news: it is counted again, not written again.
        self.store.append([row for row in new if self.store.rows.get(row.key) != row])
        for row in new:
            self.counters["rows"] += 1
            self.counters.update(f"note/{note.partition(':')[0]}" for note in row.notes)
            if row.error:
                self.counters["errors"] += 1
                self.counters[f"error/{row.error.partition(':')[0]}"] += 1
            if self.on_row:
                self.on_row(row)

    def _watch(self, rows: Sequence[EvalRow]) -> None:
        for row in rows:
            bad = row.error and row.error.partition(":")[0] not in MEDIA_STATUSES
            self._failures = self._failures + 1 if bad else 0
            if self._failures >= MAX_FAILURES_IN_A_ROW and not self._gone:
                self._gone = ModelGoneError(
                    f"the model failed {self._failures} times in a row, last with {row.error!r}: mend it, "
                    "then go on with --resume"
                )


def kept_text(text: str) -> tuple[str, bool]:
    """The text as a file can hold it (lone surrogates replaced), and whether it had to be cut."""
    whole = text[:MAX_RAW_CHARS].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole, len(text) > MAX_RAW_CHARS


def score_all(item: Item, text: str) -> dict[str, ScoreRow]:
    """The scores of one output under every profile; one that breaks says so in its note and gives 0."""
    return {profile: _scored(item, text, profile) for profile in PROFILES}


def _scored(item: Item, text: str, profile: str) -> ScoreRow:
    try:
        found = score_target(item.benchmark, item.target, item.record, text, profile=profile)
    except Exception as error:
        log.warning("%s: profile %s failed: %s: %s", item.uid, profile, type(error).__name__, error)
        found = Score(0.0, "", "none", note=f"scorer_failed: {type(error).__name__}")
    return ScoreRow(
        value=found.value, extracted=kept_text(found.extracted)[0], rule=found.rule, note=found.note
    )
