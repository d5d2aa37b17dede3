"""The oracle: points at the evidence through the same tools and schema, and never names an answer."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.config import FixConfig
from ffr.fix import OracleTeacher, check_leak, diagnose
from ffr.fix.oracle import GUIDANCE, error_type_of, merge_ranges, snap_to_pairs, span_to_range
from ffr.types import Diagnosis, ErrorType, Evidence, Option
from tests.fix.common import failed_rollout, make_frames, make_sample, write_clip

NO_CLIP = Path("missing.mp4")
"""The evidence is enough to point; a look that fails stays on the trace."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "glow.mp4")


def ask(
    clip: Path, error_rate: float = 0.0, text: str = "<answer>A</answer>", **changes: object
) -> Diagnosis:
    cfg = FixConfig.model_validate({"teacher": {"type": "oracle", "oracle_error_rate": error_rate}})
    sample = make_sample(clip, **changes)
    return asyncio.run(diagnose(sample, failed_rollout(sample, text), OracleTeacher(cfg)))


def test_points_at_the_evidence_through_the_tools(clip: Path) -> None:
    diagnosis = ask(clip)
    patch = diagnosis.patch
    assert patch is not None
    assert patch.key_frames == ((3, 4),)  # 1.0 and 1.5 s lie in the span 1.0-1.6 s
    assert patch.spatial_regions[0].frames == (3, 4) and patch.spatial_regions[0].box == (0.0, 0.5, 0.5, 1.0)
    assert patch.error_types == (ErrorType.ATTRIBUTE,)
    assert patch.temporal_markers == ("the moment when the ball glows",)
    assert [(c.name, c.arguments, c.num_images) for c in diagnosis.tool_calls] == [
        ("get_frames", {"start": 3, "end": 4}, 2)
    ]
    assert not check_leak(patch, make_sample(clip)).leaked


def test_without_evidence_there_is_no_patch(clip: Path) -> None:
    assert ask(clip, evidence=None).failure == "no_evidence"
    assert ask(clip, evidence=Evidence(spans_s=())).failure == "no_evidence"


def test_errors_are_deterministic_and_hit_their_rate() -> None:
    right = ask(NO_CLIP).patch
    patches = [ask(NO_CLIP, 0.5, f"reply {i}").patch for i in range(60)]
    wrong = [patch for patch in patches if patch != right]
    assert 15 <= len(wrong) <= 45
    assert all(p is not None and p.key_frames == ((7, 8),) for p in wrong)
    assert wrong[0] is not None and wrong[0].spatial_regions[0].box == (0.5, 0.0, 1.0, 0.5)
    assert patches == [ask(NO_CLIP, 0.5, f"reply {i}").patch for i in range(60)]


def test_note_is_dropped_when_the_gate_named_a_layer(clip: Path) -> None:
    sample = make_sample(clip)
    diagnosis = asyncio.run(diagnose(sample, failed_rollout(sample), OracleTeacher(), reask="lexical"))
    assert diagnosis.patch is not None and diagnosis.patch.temporal_markers == ()


@pytest.mark.parametrize(
    "options",
    [
        ("red", "blue", "green", "yellow"),
        ("1", "2", "3", "4"),
        ("left", "right", "up", "down"),
        ("the ball", "the cube", "the cone", "the star"),
        ("before", "after", "at the same time", "never"),
        ("top left", "top right", "bottom left", "bottom right"),
    ],
)
@pytest.mark.parametrize("kind", list(ErrorType))
def test_no_sentence_of_the_oracle_leaks(kind: ErrorType, options: tuple[str, ...]) -> None:
    assert len(GUIDANCE[kind]) <= 60
    labelled = tuple(Option(label, text) for label, text in zip("ABCD", options, strict=True))
    scenario = "" if kind is ErrorType.MISCONCEPTION else str(kind)
    evidence = Evidence(spans_s=((1.0, 1.6),))
    for gold in "ABCD":
        changes = {"options": labelled, "scenario": scenario, "evidence": evidence, "answer": gold}
        sample = make_sample(question="What happens to the ball?", **changes)
        diagnosis = ask(NO_CLIP, question="What happens to the ball?", **changes)
        assert diagnosis.patch is not None
        assert check_leak(diagnosis.patch, sample).reasons == ()


def test_scenarios_name_error_types() -> None:
    names = ("attribute", "Counting", " temporal ", "", "made up")
    assert [str(error_type_of(name)) for name in names] == [
        "attribute",
        "counting",
        "temporal",
        "misconception",
        "misconception",
    ]


@given(
    st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n))),
)
def test_snapped_ranges_hold_their_input_and_are_two_wide(case: tuple[int, int, int]) -> None:
    total, a, b = case
    start, end = snap_to_pairs((min(a, b), max(a, b)), total)
    assert 1 <= start <= min(a, b) and max(a, b) <= end <= total
    assert end - start >= 1
    assert end % 2 == 0 or end == total


@given(st.floats(-1, 10), st.floats(0, 5), st.integers(1, 24))
def test_any_span_gives_frames_that_exist(start: float, length: float, count: int) -> None:
    low, high = span_to_range((start, start + length), make_frames(count, pixels=False))
    assert 1 <= low <= high <= count
    assert high > low or count == 1


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 9)), max_size=8), st.integers(1, 3))
def test_merged_ranges_cover_all_and_are_few(raw: list[tuple[int, int]], limit: int) -> None:
    ranges = [(start, start + width) for start, width in raw]
    merged = merge_ranges(ranges, limit)
    assert len(merged) <= limit
    assert all(any(a <= start and end <= b for a, b in merged) for start, end in ranges)
    assert all(left[1] < right[0] for left, right in pairwise(merged))
