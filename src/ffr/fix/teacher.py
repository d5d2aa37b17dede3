"""The teacher's door: what is asked, what may come back, and who can be asked."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from ffr.config import FixConfig, ObserveConfig
from ffr.types import Diagnosis, Rollout, Sample

log = logging.getLogger(__name__)


class FailureKind(StrEnum):
    """Why there is no patch: the value of `Diagnosis.failure`, each with its own counter."""

    TIMEOUT = "timeout"
    """The rollout's deadline passed."""
    STEP_DEADLINE = "step_deadline"
    """The step's deadline passed before this rollout's turn ended."""
    CONNECTION = "connection"
    """Refused, reset or closed early."""
    RATE_LIMITED = "rate_limited"
    """429 until the retries or the deadline ran out."""
    SERVER_ERROR = "server_error"
    """5xx, or a status that says the server is at fault."""
    BAD_REQUEST = "bad_request"
    """A 4xx that no retry mends."""
    PROMPT_TOO_LONG = "prompt_too_long"
    """Longer than the server's context: fewer or smaller pictures (`fix.teacher.max_tool_calls`, `observe`),
    or a server started with more room (vLLM: `--max-model-len`)."""
    AUTH = "auth"
    """401 or 403: the key in `fix.teacher.api_key_env` is missing or wrong."""
    INVALID_RESPONSE = "invalid_response"
    """A 200 that is not a chat completion: HTML, truncated JSON, no choices, wrong types."""
    TOO_LARGE = "too_large"
    """The body passed the size limit."""
    TRUNCATED = "truncated"
    """The reply was cut at `fix.teacher.max_tokens`, twice."""
    INVALID_OUTPUT = "invalid_output"
    """No valid patch, also after one re-ask with the validation error."""
    REFUSAL = "refusal"
    """The model declined."""
    TOOL_BUDGET = "tool_budget"
    """The teacher kept calling tools and never wrote a patch."""
    BREAKER_OPEN = "breaker_open"
    """Not asked: too many transport failures just before."""
    DECODE_ERROR = "decode_error"
    """The clip's frames could not be read for the teacher."""
    NO_EVIDENCE = "no_evidence"
    """The oracle knows nothing of this sample."""
    BLIND_FAULT = "blind_fault"
    """The blind test could not be done, and `fix.leak.blind_on_fault` is `refuse`."""
    INTERNAL = "internal"
    """A defect of ours, logged with its stack."""


CACHEABLE = frozenset({"", FailureKind.INVALID_OUTPUT, FailureKind.REFUSAL, FailureKind.TOOL_BUDGET})
"""Outcomes that the teacher itself produced; a transport fault says nothing about the rollout."""


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One failed rollout, put to the teacher.

    Example:
        >>> TeacherRequest(sample=sample, rollout=rollout, reference_answer=None)  # doctest: +SKIP
    """

    sample: Sample
    rollout: Rollout
    reference_answer: str | None
    """Gold answer, `B. blue` style for multiple choice; None when the teacher must not see it."""
    reask: str = ""
    """What was wrong with the patch before this one: names of leak layers, never their reasons."""


class Teacher(Protocol):
    """Anything that can diagnose a failed rollout.

    `name` identifies all that shapes the reply (back end, model, profile, prompt version, sampling), because
    it is part of the journal's key.
    """

    name: str

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        """A patch or a failure kind; raises nothing but `CancelledError`."""
        ...

    async def aclose(self) -> None:
        """Release connections."""
        ...


@runtime_checkable
class Gauged(Protocol):
    """A teacher with figures that go up and down, shown beside the counters."""

    @property
    def gauges(self) -> Mapping[str, int]:
        """Value by name."""
        ...


def reference_text(sample: Sample) -> str:
    """The gold answer as a person would write it: `B. blue` for multiple choice, else the value."""
    text = sample.answer_text
    return f"{sample.answer}. {text}" if text != sample.answer else sample.answer


async def diagnose(
    sample: Sample, rollout: Rollout, teacher: Teacher, *, reference_answer: bool = True, reask: str = ""
) -> Diagnosis:
    """Ask the teacher about one failed rollout.

    Args:
        sample: The question with its gold answer.
        rollout: The failed rollout, with the observation it was sampled in.
        teacher: Who is asked.
        reference_answer: Whether the gold answer is part of the request.
        reask: Names of the leak layers that stopped the patch before.

    Returns:
        The diagnosis; `patch` is None and `failure` a `FailureKind` when there is none. A teacher that
        breaks its promise and raises gives `internal`, with the stack in the log.
    """
    gold = reference_text(sample) if reference_answer else None
    request = TeacherRequest(sample=sample, rollout=rollout, reference_answer=gold, reask=reask)
    try:
        return await teacher.diagnose(request)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        log.exception("teacher %s raised on %s", teacher.name, sample.uid)
        return Diagnosis(
            patch=None, failure=FailureKind.INTERNAL, detail=f"{type(error).__name__}: {error}"[:300]
        )


def make_teacher(cfg: FixConfig, observe_cfg: ObserveConfig) -> Teacher | None:
    """Build the teacher that `fix.teacher.type` names; None for `none`.

    Raises:
        ValueError: `type = "openai"` without `base_url` or without its extra settings.
    """
    if cfg.teacher.type == "none":
        return None
    if cfg.teacher.type == "oracle":
        from ffr.fix.oracle import OracleTeacher

        return OracleTeacher(cfg)
    # openai takes a second to import, and neither the oracle nor the leak audit needs it.
    from ffr.fix.loop import ChatTeacher

    return ChatTeacher(cfg, observe_cfg)


def short_hash(*parts: str) -> str:
    """First 12 hex digits of the sha256 of the parts, for names and versions."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:12]
