"""The nouns of the house: frozen dataclasses that every room shares, and nothing that computes.

Axis suffixes used across the project: `_P` questions of a step, `_G` rollouts of one question's
group, `_T` completion tokens, `_F` frames. Frame numbers are 1-based positions in the student's own
observation (frame 1 is the first frame the student sees), the same for student, teacher and report.
Boxes are `(x0, y0, x1, y1)` as fractions of the frame, 0..1, origin top left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Box = tuple[float, float, float, float]
FrameRange = tuple[int, int]


class ProblemType(StrEnum):
    """How an answer is written and scored; the values are Video-R1's own strings."""

    MULTIPLE_CHOICE = "multiple choice"
    NUMERICAL = "numerical"
    FREE_FORM = "free-form"
    OCR = "OCR"
    REGRESSION = "regression"


class ErrorType(StrEnum):
    """What kind of evidence a failed rollout missed (FFR Table 1, plus `misconception`)."""

    TEMPORAL = "temporal"
    SPATIAL = "spatial"
    ATTRIBUTE = "attribute"
    COUNTING = "counting"
    DYNAMICS = "dynamics"
    LOGIC = "logic"
    MISCONCEPTION = "misconception"


class RepairStatus(StrEnum):
    """How one repair ended. Exactly one status per failed rollout, always counted."""

    REPAIRED = "repaired"  # The student answered rightly with the patch in view.
    STILL_WRONG = "still_wrong"  # The patch was shown, the new rollout is still wrong.
    LEAKED = "leaked"  # The patch gave the answer away twice and was dropped.
    TEACHER_FAILED = "teacher_failed"  # No usable patch: time-out, server error, invalid reply, circuit open.
    OVER_BUDGET = "over_budget"  # The call, step or run budget was spent.
    SKIPPED = "skipped"  # Repair was not asked for (evaluation, annealing, an algorithm without repairs).


@dataclass(frozen=True, slots=True)
class Option:
    """One choice of a multiple-choice question.

    Example:
        >>> Option(label="B", text="a red ball")
        Option(label='B', text='a red ball')
    """

    label: str  # Upper-case letter
    text: str  # The choice without its label


@dataclass(frozen=True, slots=True)
class SpatialRegion:
    """A box that holds over an inclusive range of frames.

    Example:
        >>> SpatialRegion(frames=(5, 8), box=(0.0, 0.5, 0.33, 1.0)).frames
        (5, 8)
    """

    frames: FrameRange
    box: Box


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a question's answer can be seen: known for MicroWorld and tracked footage, else absent.

    Times are seconds of the source clip, so that they hold for every frame sampling.

    Example:
        >>> Evidence(spans_s=((1.0, 1.5),), boxes=((0.0, 0.5, 0.33, 1.0),), note="ball glows").note
        'ball glows'
    """

    spans_s: tuple[tuple[float, float], ...]
    boxes: tuple[Box, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One video-question pair x = (v, q) with gold answer y.

    Example:
        >>> options = (Option("A", "red"), Option("B", "blue"))
        >>> Sample("a/7", "Which?", "B", ProblemType.MULTIPLE_CHOICE, Path("7.mp4"), options).answer_text
        'blue'
    """

    uid: str  # Unique over a mixture: `<source>/<id>`
    question: str  # The question alone; options are kept apart
    answer: str  # Gold: the letter for multiple choice, else the value as written
    problem_type: ProblemType
    video: Path  # Resolved path of the clip or image, inside its media root
    options: tuple[Option, ...] = ()
    media_type: str = "video"
    """`video` or `image`."""
    source: str = ""
    """Name of the data source, for mixtures and tables."""
    scenario: str = ""
    """Question kind where the data set names one (MicroWorld: the rows of FFR Table 1)."""
    clip_s: tuple[float, float] | None = None  # Optional bounds of the clip inside the file, seconds
    evidence: Evidence | None = None
    meta: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of the source row that no room reads."""

    @property
    def answer_text(self) -> str:
        """The gold answer in words: the option's text for multiple choice, else the answer."""
        for option in self.options:
            if option.label == self.answer:
                return option.text
        return self.answer


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame as the student sees it.

    Example:
        >>> Frame(number=1, source_index=0, timestamp_s=0.0, sha256="ab", width_px=84, height_px=56).number
        1
    """

    number: int  # 1-based position in the observation
    source_index: int  # 0-based index in the source file
    timestamp_s: float  # Seconds from the first displayed frame of the clip
    sha256: str  # Hash of the pixels: the frame's name in the cache and in traces
    width_px: int
    height_px: int
    pixels: npt.NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """RGB, shape (height_px, width_px, 3); None in a trace that was read back."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything the student sees for one question: x, or x + c when a patch was applied.

    Example:
        >>> obs = Observation(sample_uid="micro/7", frames=(), prompt="Where?", view_id="ab")
        >>> obs.patched
        False
    """

    sample_uid: str
    frames: tuple[Frame, ...]
    prompt: str  # The user text after the video: question, options, instruction
    view_id: str  # sha256 of all that the model sees; two observations are the same view iff it is equal
    system: str | None = None
    patch_text: str = ""
    """The rendered patch, appended after `prompt`; empty for x."""
    extra_frames: tuple[Frame, ...] = ()
    """Frames or crops shown again after the patch text (`visual = "frames"`)."""
    duration_s: float = 0.0
    notes: tuple[str, ...] = ()
    """What was unusual in the decode (`short_clip:9`, `fallback`): a status, never an exception."""
    prompt_style: str = "video_r1"
    """Family of the prompt's template (`ObserveConfig.prompt`): the patch is rendered in the same one."""

    @property
    def patched(self) -> bool:
        """True for x + c."""
        return bool(self.patch_text or self.extra_frames)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled completion with the observation it was really sampled in.

    Example:
        >>> obs = Observation(sample_uid="micro/7", frames=(), prompt="Where?", view_id="ab")
        >>> Rollout(observation=obs, text="<answer>B</answer>", token_ids=(5, 9)).num_tokens
        2
    """

    observation: Observation
    text: str
    token_ids: tuple[int, ...] = ()  # Completion tokens, end token included when the model wrote one
    logprobs: tuple[float, ...] | None = None
    """log pi_old of each completion token at the sampling temperature, before top-p truncation."""
    finish: str = "stop"
    """`stop` or `length`."""
    source: str = "policy"
    """`policy` for a first pass, `repaired` for a rollout under x + c."""

    @property
    def num_tokens(self) -> int:
        """Number of completion tokens, |tau|."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule-based verifier says of one completion.

    Example:
        >>> Verdict(score=1.0, correct=True, extracted="B", rule="mcq.letter", format_score=1.0).correct
        True
    """

    score: float  # R_acc in [0, 1]
    correct: bool  # z = 1[score >= threshold(problem type)], FFR eq. 4
    extracted: str  # The answer as found in the completion; empty if none was found
    rule: str  # Which rule fired, dotted: `mcq.exact`, `number.rounded`
    format_score: float = 0.0  # R_fmt in {0, 1}
    reason: str = ""
    """Why the score is not 1, in words a person can act on."""


@dataclass(frozen=True, slots=True)
class EvidencePatch:
    """What the teacher gives the student: where to look, never what is there (FFR eq. 5).

    Example:
        >>> EvidencePatch((ErrorType.TEMPORAL,), ((5, 8),), guidance="Watch the ball.").key_frames
        ((5, 8),)
    """

    error_types: tuple[ErrorType, ...]
    key_frames: tuple[FrameRange, ...] = ()
    """Inclusive ranges of the student's frame numbers, at least two frames wide."""
    temporal_markers: tuple[str, ...] = ()
    spatial_regions: tuple[SpatialRegion, ...] = ()
    guidance: str = ""
    """At most 300 characters."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a teacher tool and what came of it.

    Example:
        >>> ToolCall(name="get_frames", arguments={"start": 5, "end": 8}, result="4 frames").ok
        True
    """

    name: str
    arguments: Mapping[str, Any]
    result: str = ""
    ok: bool = True
    num_images: int = 0


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """What one diagnosis cost.

    Example:
        >>> TeacherCost(num_calls=2, prompt_tokens=900, completion_tokens=80).num_calls
        2
    """

    num_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_tokens: int = 0  # Of all tokens here, those that no server reported
    num_blind_calls: int = 0  # Requests of the blind test (`fix.leak.blind`)
    blind_prompt_tokens: int = 0
    blind_completion_tokens: int = 0
    num_images: int = 0
    wall_s: float = 0.0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The teacher's answer to one failed rollout; `patch` is None when it failed.

    Example:
        >>> Diagnosis(patch=None, failure="timeout").ok
        False
    """

    patch: EvidencePatch | None
    failure: str = ""  # Empty, or one of the failure kinds of `ffr.fix.teacher.FailureKind`
    detail: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    cost: TeacherCost = TeacherCost()

    @property
    def ok(self) -> bool:
        """True if there is a patch."""
        return self.patch is not None

    @property
    def error_types(self) -> tuple[ErrorType, ...]:
        """The patch's error types; empty when the teacher failed."""
        return self.patch.error_types if self.patch else ()


@dataclass(frozen=True, slots=True)
class LeakFinding:
    """One layer's opinion of one patch.

    Example:
        >>> LeakFinding(layer="lexical", leaked=True, field="guidance", reason="names option B").layer
        'lexical'
    """

    layer: str
    leaked: bool
    field: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """All layers' findings; the patch leaks if any layer says so.

    Example:
        >>> LeakReport(findings=(LeakFinding(layer="schema", leaked=False),)).leaked
        False
    """

    findings: tuple[LeakFinding, ...]

    @property
    def leaked(self) -> bool:
        """True if any layer found a leak."""
        return any(finding.leaked for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """`layer: reason` of each leak found."""
        return tuple(f"{f.layer}: {f.reason}" for f in self.findings if f.leaked)


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one failed rollout.

    Example:
        >>> Repair(status=RepairStatus.OVER_BUDGET, detail="run budget of 100 calls spent").rollout is None
        True
    """

    status: RepairStatus
    diagnosis: Diagnosis | None = None
    leak: LeakReport | None = None  # Report of the last patch that was checked
    rollout: Rollout | None = None  # tau*, sampled under x + c; None if the student was not asked again
    verdict: Verdict | None = None
    num_leaks: int = 0  # Leaking patches seen on the way (0, 1 or 2)
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one question through find, fix and reason.

    Example:
        >>> group = RolloutGroup(sample=sample, first_G=first, first_verdicts_G=z,
        ...     repairs_G=(None, repair), chosen_G=chosen, chosen_verdicts_G=z2)  # doctest: +SKIP
    """

    sample: Sample
    first_G: tuple[Rollout, ...]
    first_verdicts_G: tuple[Verdict, ...]
    repairs_G: tuple[Repair | None, ...]  # None where the first pass was right or nothing was asked
    chosen_G: tuple[Rollout, ...]
    chosen_verdicts_G: tuple[Verdict, ...]

    @property
    def patched_G(self) -> tuple[bool, ...]:
        """True where the chosen rollout was sampled under x + c."""
        return tuple(rollout.observation.patched for rollout in self.chosen_G)


@dataclass(frozen=True, slots=True)
class Trace:
    """A group with its rewards at one training step: what the trace file keeps.

    Example:
        >>> Trace(step=3, group=group, rewards_G=(2.0, 1.7), advantages_G=(0.7, -0.7))  # doctest: +SKIP
    """

    step: int
    group: RolloutGroup
    rewards_G: tuple[float, ...]
    advantages_G: tuple[float, ...]
    taxed_G: tuple[bool, ...] = ()
    run: str = ""
