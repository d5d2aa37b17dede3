"""Pydantic models of the trace file: one border of the house, versioned, readable without torch.

A run directory holds `traces/step_000010.jsonl` (one `TraceRow` a line) and `frames/<sha256>.webp`
(each frame once). Token ids and per-token log-probabilities are left out: a trace is for reading, and
decoded text is what a reader needs.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ffr.types import RepairStatus

SCHEMA_VERSION = 1
_SHA = r"^[0-9A-Za-z_-]{0,128}$"


class Row(BaseModel):
    """Base of all rows: frozen, non-finite numbers survive as strings, unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class FrameRow(Row):
    """One frame by reference; the pixels are `frames/<sha256>.webp`."""

    number: int
    source_index: int
    timestamp_s: float
    sha256: str = Field(pattern=_SHA)
    width_px: int
    height_px: int


class ObservationRow(Row):
    """What the student saw."""

    view_id: str
    frames: tuple[FrameRow, ...] = ()
    prompt: str = ""
    system: str | None = None
    patch_text: str = ""
    extra_frames: tuple[FrameRow, ...] = ()
    duration_s: float = 0.0
    notes: tuple[str, ...] = ()


class OptionRow(Row):
    """One choice."""

    label: str
    text: str


class SampleRow(Row):
    """The question; `video` never is an absolute path."""

    uid: str
    question: str
    answer: str
    answer_text: str
    problem_type: str
    options: tuple[OptionRow, ...] = ()
    video: str = ""
    media_type: str = "video"
    source: str = ""
    scenario: str = ""
    clip_s: tuple[float, float] | None = None


class RolloutRow(Row):
    """One completion; `view_id` points into `TraceRow.observations`."""

    view_id: str
    text: str
    num_tokens: int = 0
    mean_logprob: float | None = None
    finish: str = "stop"
    source: str = "policy"


class VerdictRow(Row):
    """What the verifier said."""

    score: float
    correct: bool
    extracted: str = ""
    rule: str = ""
    format_score: float = 0.0
    reason: str = ""


class RegionRow(Row):
    """A box over an inclusive range of frames."""

    frames: tuple[int, int]
    box: tuple[float, float, float, float]


class PatchRow(Row):
    """The evidence patch."""

    error_types: tuple[str, ...] = ()
    key_frames: tuple[tuple[int, int], ...] = ()
    temporal_markers: tuple[str, ...] = ()
    spatial_regions: tuple[RegionRow, ...] = ()
    guidance: str = ""


class ToolCallRow(Row):
    """One look of the teacher."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    result: str = ""
    ok: bool = True
    num_images: int = 0


class CostRow(Row):
    """What the diagnosis cost."""

    num_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_images: int = 0
    wall_s: float = 0.0
    cached: bool = False


class DiagnosisRow(Row):
    """The teacher's answer."""

    patch: PatchRow | None = None
    failure: str = ""
    detail: str = ""
    tool_calls: tuple[ToolCallRow, ...] = ()
    cost: CostRow = CostRow()


class LeakRow(Row):
    """One layer's opinion."""

    layer: str
    leaked: bool
    field: str = ""
    reason: str = ""


class RepairRow(Row):
    """What became of one failed rollout; `leak` is None when no patch was checked."""

    status: RepairStatus
    diagnosis: DiagnosisRow | None = None
    leak: tuple[LeakRow, ...] | None = None
    rollout: RolloutRow | None = None
    verdict: VerdictRow | None = None
    num_leaks: int = 0
    detail: str = ""


class SlotRow(Row):
    """One of the G slots of a group, from the first answer to the advantage."""

    first: RolloutRow
    first_verdict: VerdictRow
    repair: RepairRow | None = None
    chosen: str = "first"
    """`first`, `repair`, or `first:3` / `repair:3` for another slot's rollout (1-based), else `other`."""
    chosen_verdict: VerdictRow
    reward: float
    advantage: float
    taxed: bool = False

    @property
    def status(self) -> str:
        """`right` for a right first pass, the repair's status, or `wrong` if nothing was asked."""
        if self.first_verdict.correct:
            return "right"
        return self.repair.status.value if self.repair else "wrong"

    @property
    def patch(self) -> PatchRow | None:
        """The patch that the teacher gave, shown or not."""
        return self.repair.diagnosis.patch if self.repair and self.repair.diagnosis else None


class TraceRow(Row):
    """One question at one step: a line of the trace file."""

    schema_version: int = SCHEMA_VERSION
    step: int
    run: str = ""
    sample: SampleRow
    observations: dict[str, ObservationRow]
    slots: tuple[SlotRow, ...]

    @property
    def observation(self) -> ObservationRow | None:
        """The un-patched observation x of the group."""
        return self.observations.get(self.slots[0].first.view_id) if self.slots else None

    @property
    def num_repaired(self) -> int:
        """How many slots ended as `repaired`."""
        return sum(slot.status == RepairStatus.REPAIRED for slot in self.slots)
