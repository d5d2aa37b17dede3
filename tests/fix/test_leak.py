"""The leak gate on the labelled patches, and the promises of its door."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffr.config import LeakConfig
from ffr.fix.leak import check_leak
from ffr.types import ErrorType, EvidencePatch, Option, ProblemType, Sample, SpatialRegion

LEAKS = Path(__file__).parents[1] / "leaks"
COLOURS = ("red", "blue", "green", "yellow")


def make_sample(question: str, options: tuple[str, ...], gold: str, kind: str = "multiple choice") -> Sample:
    labelled = tuple(Option("ABCDEFGH"[i], text) for i, text in enumerate(options))
    return Sample("t/1", question, gold, ProblemType(kind), Path("clip.mp4"), labelled)


def make_patch(guidance: str, *markers: str, **fields: Any) -> EvidencePatch:
    fields.setdefault("key_frames", ((5, 8),))
    return EvidencePatch((ErrorType.TEMPORAL,), temporal_markers=markers, guidance=guidance, **fields)


def read_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in ("direct", "partial", "clean"):
        lines = (LEAKS / f"{name}.jsonl").read_text().splitlines()
        rows += [json.loads(line) for line in lines]
    return rows


def row_leaks(row: dict[str, Any]) -> bool:
    options = tuple(re.sub(r"^[A-H][.)] ", "", text) for text in row["options"])
    sample = make_sample(row["question"], options, row["gold"], row["problem_type"])
    patch = EvidencePatch(
        error_types=tuple(ErrorType(kind) for kind in row["error_types"]),
        key_frames=tuple((start, end) for start, end in row["key_frames"]),
        temporal_markers=tuple(row["temporal_markers"]),
        spatial_regions=tuple(
            SpatialRegion(tuple(region["frames"]), tuple(region["box"])) for region in row["spatial_regions"]
        ),
        guidance=row["guidance"],
    )
    return check_leak(patch, sample).leaked


def test_confusion_table(capsys: pytest.CaptureFixture[str]) -> None:
    total: Counter[str] = Counter()
    alarmed: Counter[str] = Counter()
    by_scenario: Counter[tuple[str, str]] = Counter()
    for row in read_rows():
        total[row["label"]] += 1
        if row_leaks(row):
            alarmed[row["label"]] += 1
        by_scenario[row["scenario"], row["label"]] += 1
    with capsys.disabled():
        print("\nleak gate: label, alarmed, passed, rows")
        for label in ("direct", "partial", "clean"):
            print(f"  {label:8} {alarmed[label]:4} {total[label] - alarmed[label]:4} {total[label]:4}")
    assert alarmed["direct"] / total["direct"] >= 0.98
    assert alarmed["partial"] / total["partial"] >= 0.90
    assert alarmed["clean"] / total["clean"] <= 0.05
    scenarios = {"counting", "dynamics", "temporal", "spatial", "attribute", "logic"}
    assert {(s, label) for s in scenarios for label in total} <= set(by_scenario)
    assert sum(total.values()) >= 1000


MICRO = (
    ("What colour is the ball when it glows?", COLOURS, "the ball glows"),
    (
        "Where is the cube when it glows?",
        ("far left", "near middle", "far right", "near left"),
        "the cube glows",
    ),
    ("Which object glows first?", ("ball", "cube", "cone", "star"), "the first glow starts"),
    ("Which way does the cone roll when it glows?", ("left", "right", "up", "down"), "the cone glows"),
    ("How many objects are on the table when the ball glows?", ("1", "2", "3", "4"), "the ball glows"),
)


@pytest.mark.parametrize("gold", ["A", "B", "C", "D"])
@pytest.mark.parametrize(("question", "options", "moment"), MICRO)
def test_micro_world_patches_pass(question: str, options: tuple[str, ...], moment: str, gold: str) -> None:
    sample = make_sample(question, options, gold)
    region = SpatialRegion((5, 8), (0.0, 0.5, 0.33, 1.0))
    patch = make_patch(
        f"Find the moment when {moment} and look at the table then.",
        f"when {moment}",
        spatial_regions=(region,),
    )
    assert check_leak(patch, sample).reasons == ()


@pytest.mark.parametrize(
    "guidance",
    [
        "Recount the subjects within the frame range [13, 17].",
        "Track and analyze the subject's movement direction across the provided clip.",
        "Examine the temporal relationship and causal sequence between the two identified events.",
        "Observe the visual features (color/material) of the object involved in the interaction.",
        "Analyze the interaction between the moving object and its surrounding environment.",
    ],
)
@pytest.mark.parametrize(("question", "options", "moment"), MICRO)
def test_the_papers_good_examples_pass(
    question: str, options: tuple[str, ...], moment: str, guidance: str
) -> None:
    assert check_leak(make_patch(guidance), make_sample(question, options, "B")).reasons == ()


def test_question_words_are_allowed_unless_it_lists_the_choices() -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    assert not check_leak(make_patch("Watch the ball and the glow."), sample).leaked
    listed = make_sample("Does the man hit the red cube or the blue cube?", ("red cube", "blue cube"), "A")
    assert check_leak(make_patch("Look at the red cube."), listed).leaked
    assert not check_leak(make_patch("Compare the red cube and the blue cube."), listed).leaked


@pytest.mark.parametrize(
    ("guidance", "layer"),
    [
        ("The answer is somewhere: B.", "letter"),
        ("Look at the second option.", "cue"),
        ("It rhymes with shoe.", "cue"),
        ("Watch the b\u200blue ball.", "characters"),
        ("Watch the bl\u0443e ball.", "characters"),
        ("La pelota es azul.", "language"),
        ("\u84dd\u8272", "language"),
        ("Read this: eulb.", "disguise"),
        ("Read this: b-l-u-e.", "disguise"),
        ("Bring Light Upon Evidence.", "disguise"),
        ("Read this: Ymx1ZQ==", "encoding"),
        ("The ball is blue.", "option"),
        ("The ball is navy.", "field"),
        ("It is like the sky.", "field"),
        ("It looks cheap.", "statement"),
    ],
)
def test_layers_name_themselves(guidance: str, layer: str) -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    report = check_leak(make_patch(guidance), sample)
    assert layer in {finding.layer for finding in report.findings if finding.leaked}
    assert all(finding.reason for finding in report.findings if finding.leaked)


def test_report_has_one_entry_per_layer_in_order() -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    names = [finding.layer for finding in check_leak(make_patch("Watch the ball."), sample).findings]
    assert (
        names
        == (
            "schema pinpoint letter place cue language characters disguise encoding "
            "option gold number field polarity order statement cause reader"
        ).split()
    )


def test_pinpoint_ranges_boxes_and_images() -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    narrow = make_patch("Look at the ball.", key_frames=((6, 6),))
    assert check_leak(narrow, sample).reasons == ("pinpoint: range of 1 frames is narrower than 2",)
    assert check_leak(make_patch("Look."), sample, LeakConfig(min_range_frames=5)).leaked
    tiny = make_patch("Look.", spatial_regions=(SpatialRegion((5, 8), (0.5, 0.5, 0.55, 0.55)),))
    assert check_leak(tiny, sample).leaked
    assert not check_leak(tiny, sample, LeakConfig(min_box_area=0.001)).leaked
    image = Sample("t/2", sample.question, "B", sample.problem_type, Path("a.png"), sample.options, "image")
    assert not check_leak(make_patch("Look at the ball.", key_frames=((1, 1),)), image).leaked


def test_schema_bounds_and_the_switch() -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    long = make_patch("Look at the ball. " * 20)
    assert check_leak(long, sample).findings[0].leaked
    assert check_leak(make_patch("Look.", "a", "b", "c", "d"), sample).findings[0].leaked
    assert check_leak(make_patch("The ball is blue."), sample, LeakConfig(enabled=False)).findings == ()


def test_a_leak_in_a_marker_names_the_field() -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    report = check_leak(make_patch("Look at the ball.", "when it glows", "blue glow"), sample)
    hit = next(finding for finding in report.findings if finding.leaked)
    assert hit.field == "temporal_markers[1]"


texts = st.text(max_size=120) | st.lists(
    st.sampled_from("the ball is blue B . , -- frame 3 [ 13 17 ] it's not a' \u0130 \u00df 1e9 ==".split()),
    max_size=12,
).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(texts, texts, texts, st.sampled_from([str(kind) for kind in ProblemType]))
def test_any_text_is_judged(guidance: str, marker: str, gold: str, kind: str) -> None:
    options = ("red", gold) if kind == "multiple choice" else ()
    sample = make_sample(marker, options, "B" if options else gold, kind)
    report = check_leak(make_patch(guidance, marker), sample)
    assert len(report.findings) == 18


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["a " * 50_000, "-" * 100_000, "a-" * 50_000, "frame 1, " * 12_000, "count " * 20_000, "*" * 100_000],
)
def test_hostile_lengths_end(text: str) -> None:
    sample = make_sample("What colour is the ball when it glows?", COLOURS, "B")
    assert check_leak(make_patch(text, text[:90_000]), sample).leaked
