"""What the service does with a request: check it, look at the clip, ask the teacher, pass the gate."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ffr.config import BudgetConfig, Config
from ffr.data import PathRefused, resolve_media
from ffr.data.base import DataError, RowReader
from ffr.data.video_r1 import label_options, split_options
from ffr.fix import Budget, Journal, Proposal, RepairFlow, Teacher
from ffr.observe import MediaError, observe, render_patch
from ffr.observe.video import DecodeLimits
from ffr.serve.app import BadRequest
from ffr.serve.chat_request import checked
from ffr.serve.http import HttpError
from ffr.types import (
    Diagnosis,
    ErrorType,
    EvidencePatch,
    Observation,
    Option,
    ProblemType,
    Rollout,
    Sample,
)

log = logging.getLogger(__name__)

DECODE: Final = DecodeLimits(timeout_s=30.0, isolate=True)
"""A client names the file: it is decoded in a process that is killed when it hangs or grows."""
MAX_DECODES: Final = 4
RELEASED_KIND: Final = {
    ErrorType.TEMPORAL: "temporal",
    ErrorType.DYNAMICS: "temporal",
    ErrorType.COUNTING: "temporal",
    ErrorType.SPATIAL: "spatial",
    ErrorType.ATTRIBUTE: "spatial",
    ErrorType.LOGIC: "misconception",
    ErrorType.MISCONCEPTION: "misconception",
}
"""The released FFR knows three kinds of error."""
ROUTES: Final = MappingProxyType({"/v1/repair": "POST", "/analyze": "POST"})
_ANSWER_TAG: Final = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_LETTER: Final = re.compile(r"\(?([A-Z])\)?[.):]?")

Text = Annotated[str, Field(max_length=100_000)]
Words = Annotated[str, Field(min_length=1, max_length=20_000)]
NumFrames = Annotated[int, Field(ge=1, le=64)]


class RepairRequest(BaseModel):
    """Body of `POST /v1/repair`: a sample's fields, the clip under the root, the failed rollout.

    Example:
        >>> RepairRequest(question="Why?", answer="rain", video="a.mp4", rollout="sun").problem_type
        <ProblemType.FREE_FORM: 'free-form'>
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    question: Words
    answer: Words
    """Gold; the gate needs it, the teacher sees it only with `reference_answer`."""
    video: Words
    """Relative to the root."""
    rollout: Text
    """What the student wrote."""
    uid: Annotated[str, Field(max_length=200)] = "request"
    problem_type: ProblemType = ProblemType.FREE_FORM
    options: Annotated[tuple[Words, ...], Field(max_length=26)] = ()
    """`A. red` or `red`."""
    media_type: Literal["video", "image"] = "video"
    scenario: Annotated[str, Field(max_length=100)] = ""
    clip_s: tuple[float, float] | None = None
    evidence: dict[str, Any] | None = None
    """Only the oracle reads it; the data format's field of this name."""
    reference_answer: bool = True
    num_frames: NumFrames | None = None
    """Frames that the student saw; the configuration's when absent."""


class AnalyzeRequest(BaseModel):
    """Body of `POST /analyze`, as the released FFR's trainer sends it.

    Example:
        >>> AnalyzeRequest(problem_id="7", question="Why?", video_path="a.mp4", student_response="sun",
        ...     student_score=0.0, ground_truth="<answer>rain</answer>").nframes
        16
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    problem_id: Annotated[str, Field(max_length=200)]
    question: Words
    video_path: Words
    student_response: Text
    student_score: float
    ground_truth: Words
    reference_reasoning: Text | None = None
    """Taken and not used: the teacher judges from the clip."""
    incorrect_only: bool = False
    nframes: NumFrames = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request came to.

    Example:
        >>> Outcome(observation, proposal).status  # doctest: +SKIP
        'ready'
    """

    observation: Observation
    proposal: Proposal

    @property
    def status(self) -> str:
        """`ready`, or the repair's final status: `leaked`, `teacher_failed`, `over_budget`."""
        return "ready" if self.proposal.ready else str(self.proposal.repair.status)


class RepairService:
    """Diagnosis and leak gate for one failed rollout at a time; the student is the client's.

    Args:
        cfg: Observation, teacher, gate and budget.
        teacher: Who diagnoses.
        root: Only files under it are opened.
        journal: Replays outcomes and keeps new ones; none when absent.
    """

    def __init__(self, cfg: Config, teacher: Teacher, root: Path, journal: Journal | None = None) -> None:
        self._cfg = cfg
        self._teacher = teacher
        self._root = root.resolve()
        self._decodes = asyncio.Semaphore(MAX_DECODES)
        # A request is neither a step nor a group: only the run's limit can mean anything here.
        limits = BudgetConfig(max_calls_per_run=cfg.fix.budget.max_calls_per_run)
        self._budget = Budget(limits, ledger=journal)
        self._flows = {
            seen: RepairFlow(
                teacher=teacher,
                sampler=_NoStudent(),
                fix=cfg.fix.model_copy(update={"reference_answer": seen}),
                find=cfg.find,
                journal=journal,
                budget=self._budget,
            )
            for seen in (True, False)
        }

    routes = ROUTES

    @property
    def model(self) -> str:
        """The teacher's model, for `/health`."""
        teacher = self._cfg.fix.teacher
        return teacher.model if teacher.type == "openai" else teacher.type

    async def aclose(self) -> None:
        """Close the teacher's connections."""
        for flow in self._flows.values():
            await flow.aclose()
        await self._teacher.aclose()

    def redact(self, text: str) -> str:
        """The text without the root's place on this machine."""
        return text.replace(json.dumps(str(self._root))[1:-1], "<root>")

    def refusal(self, error: HttpError) -> dict[str, Any]:
        """The released FFR's form of a failure."""
        return error.body()

    async def handle(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """`repair` or `analyze`."""
        return await (self.repair(body) if path == "/v1/repair" else self.analyze(body))

    async def repair(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /v1/repair`: status, patch and its text, diagnosis, leak report, frames.

        Raises:
            BadRequest: Wrong fields, or a clip that is outside the root or cannot be read.
        """
        request = checked(RepairRequest, body, http_status=422)
        row = {"clip_s": request.clip_s, "evidence": request.evidence}
        try:
            reader = RowReader(Path("request"), 1, row)
            clip_s, evidence = reader.clip(), reader.evidence()
        except DataError as error:
            raise BadRequest("bad_request", f"{error.field} {error.problem}"[:500]) from error
        sample = Sample(
            uid=request.uid,
            question=request.question,
            answer=request.answer,
            problem_type=request.problem_type,
            video=self._inside_root(request.video),
            options=label_options(list(request.options)),
            media_type=request.media_type,
            scenario=request.scenario,
            clip_s=clip_s,
            evidence=evidence,
        )
        outcome = await self._propose(
            sample, request.rollout, request.num_frames, seen=request.reference_answer
        )
        return _repair_reply(outcome, self._teacher.name, self._cfg.fix.visual)

    async def analyze(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /analyze`: the released FFR's reply; no patch is `success: false` with the reason.

        Raises:
            BadRequest: As `repair`.
        """
        request = checked(AnalyzeRequest, body, http_status=422)
        tagged = _ANSWER_TAG.search(request.ground_truth)
        gold = tagged.group(1) if tagged else request.ground_truth.strip()
        question, options = split_options(request.question)
        letter = _LETTER.fullmatch(gold)
        kind = _problem_type(gold, options, is_letter=letter is not None)
        if kind is ProblemType.MULTIPLE_CHOICE and letter is not None:
            gold = letter.group(1)
        sample = Sample(
            uid=request.problem_id,
            question=question,
            answer=gold,
            problem_type=kind,
            video=self._inside_root(request.video_path),
            options=options,
        )
        outcome = await self._propose(
            sample, request.student_response, request.nframes, seen=self._cfg.fix.reference_answer
        )
        return _released_reply(outcome, request, self.model, self._cfg.fix.visual)

    async def _propose(self, sample: Sample, text: str, num_frames: int | None, *, seen: bool) -> Outcome:
        """Look at the clip as the student did, then ask the teacher and pass the gate."""
        cfg = self._cfg.observe
        if num_frames is not None:
            cfg = cfg.model_copy(update={"num_frames": num_frames})
        try:
            async with self._decodes:
                view = await asyncio.to_thread(observe, sample, cfg, limits=DECODE)
        except MediaError as error:
            status = 404 if error.status == "missing" else 422
            raise BadRequest(error.status, "the clip cannot be read", status) from error
        self._budget.begin_step()  # forgets the names of earlier requests
        proposal = await self._flows[seen].propose(sample, Rollout(view, text))
        return Outcome(view, proposal)

    def _inside_root(self, written: str) -> Path:
        """The real path; an absolute one is taken only when it names the root itself first.

        Raises:
            BadRequest: `missing`, or `outside_root` whatever is there or not.
        """
        path = Path(written)
        try:
            if path.is_absolute() and path.is_relative_to(self._root):
                written = str(path.relative_to(self._root))
            return resolve_media(self._root, written)
        except (PathRefused, OSError, ValueError) as error:
            missing = isinstance(error, PathRefused) and error.status == "missing"
            if missing:
                raise BadRequest("missing", "there is no such file under the root", 404) from error
            raise BadRequest(
                "outside_root", "name a file under the root by its relative path", 403
            ) from error


class _NoStudent:
    """The sampler of a service that never samples: the client owns the student."""

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        raise RuntimeError(f"the service has no student ({len(observations)} x {num} {source} rollouts)")


def _problem_type(gold: str, options: tuple[Option, ...], *, is_letter: bool) -> ProblemType:
    """The released schema names no type; the answer's form tells."""
    if options or is_letter:
        return ProblemType.MULTIPLE_CHOICE
    try:
        float(gold.replace(",", ""))
    except ValueError:
        return ProblemType.FREE_FORM
    return ProblemType.NUMERICAL


def _repair_reply(outcome: Outcome, teacher: str, visual: str) -> dict[str, Any]:
    repair, obs = outcome.proposal.repair, outcome.observation
    patch = outcome.proposal.patch
    return {
        "status": outcome.status,
        "detail": repair.detail,
        "patch": asdict(patch) if patch is not None else None,
        "patch_text": render_patch(patch, obs, visual=visual) if patch is not None else "",
        "diagnosis": _diagnosis(repair.diagnosis),
        "leak": {
            "leaked": repair.leak.leaked,
            "num_leaks": repair.num_leaks,
            "findings": [asdict(finding) for finding in repair.leak.findings],
        }
        if repair.leak is not None
        else None,
        "frames": [{"number": f.number, "timestamp_s": f.timestamp_s} for f in obs.frames],
        "notes": list(obs.notes),
        "teacher": teacher,
    }


def _diagnosis(diagnosis: Diagnosis | None) -> dict[str, Any] | None:
    """Without the patch: the one that passed the gate stands by itself, a stopped one is not shown."""
    if diagnosis is None:
        return None
    value = asdict(diagnosis)
    del value["patch"]
    return {**value, "error_types": [str(kind) for kind in diagnosis.error_types]}


def _released_reply(outcome: Outcome, request: AnalyzeRequest, model: str, visual: str) -> dict[str, Any]:
    repair, patch = outcome.proposal.repair, outcome.proposal.patch
    reply: dict[str, Any] = {"success": patch is not None, "problem_id": request.problem_id}
    if patch is None:
        reason = f"{outcome.status}: {repair.detail}" if repair.detail else outcome.status
        return {**reply, "data": None, "error": reason}
    return {
        **reply,
        "data": {
            "raw_response": json.dumps(asdict(patch)),
            "thinking": "",
            "error_classification": RELEASED_KIND[patch.error_types[0]],
            "evidence_patch": _released_patch(patch, render_patch(patch, outcome.observation, visual=visual)),
            "parse_success": True,
            "metadata": {
                "student_score": request.student_score,
                "incorrect_only_mode": request.incorrect_only,
                "model_used": model,
                "timestamp": datetime.now(UTC).isoformat(),
            },
        },
        "error": None,
    }


def _released_patch(patch: EvidencePatch, content: str) -> dict[str, Any]:
    """The released trainer shows the student `content` alone, so all of the patch is in it."""
    numbers = {n for start, end in patch.key_frames for n in range(start, end + 1)}
    regions = [
        f"frames {r.frames[0]}-{r.frames[1]}: [{', '.join(f'{v:.2f}' for v in r.box)}]"
        for r in patch.spatial_regions
    ]
    return {
        "content": content.strip(),
        "key_frames": sorted(numbers),
        "temporal_markers": list(patch.temporal_markers),
        "spatial_regions": regions,
    }
