"""Trace rows survive the disk, whatever the student wrote; broken files say what is broken."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ffr.report.rows import TraceRow
from ffr.report.trace import (
    TraceError,
    TraceWarning,
    frame_path,
    read_traces,
    step_path,
    store_frames,
    trace_row,
    write_traces,
)
from ffr.types import RepairStatus, RolloutGroup, ToolCall
from tests.report import fake_run

STATUSES = ["right", "wrong", *(status.value for status in RepairStatus)]


def every_text(row: TraceRow) -> str:
    return row.model_dump_json()


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(0, 10**6),
    seed=st.integers(0, 50),
    statuses=st.lists(st.sampled_from(STATUSES), min_size=1, max_size=8),
    text=st.text(st.characters(), max_size=80),
    number=st.floats(),
)
def test_a_trace_survives_the_file(tmp_path_factory, step, seed, statuses, text, number):
    run = tmp_path_factory.mktemp("run")
    trace = fake_run.trace(step, seed, statuses)
    first = tuple(replace(rollout, text=text) for rollout in trace.group.first_G)
    group = replace(trace.group, first_G=first)
    row = trace_row(
        replace(trace, group=group, rewards_G=(number,) * len(statuses), run=text.strip("\ud800"))
    )
    write_traces(run, step, [row])
    (back,) = read_traces(run)
    # NaN differs from itself, so the rows are compared as they are written.
    assert back.model_dump_json() == row.model_dump_json()
    assert back.slots[0].first.text == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert [slot.status for slot in back.slots] == statuses


def test_line_separators_inside_answers_do_not_end_a_row(tmp_path):
    trace = fake_run.trace(1, 3, ["right"])
    nasty = "a\u2028b\u0085c\x0bd\x1ce\r\nf\x00"
    rollout = replace(trace.group.first_G[0], text=nasty)
    write_traces(tmp_path, 1, [trace_row(replace(trace, group=replace(trace.group, first_G=(rollout,))))])
    assert read_traces(tmp_path)[0].slots[0].first.text == nasty


def test_every_noun_of_the_trace_is_kept(tmp_path):
    trace = fake_run.trace(7, 3, ["repaired", "leaked", "teacher_failed", "right"])
    write_traces(tmp_path, 7, [trace_row(trace)])
    (row,) = read_traces(tmp_path)
    repaired, leaked, failed, right = row.slots
    source = trace.group.repairs_G[0]
    assert repaired.patch.guidance == source.diagnosis.patch.guidance
    assert repaired.patch.spatial_regions[0].box == source.diagnosis.patch.spatial_regions[0].box
    assert repaired.repair.diagnosis.tool_calls[1].arguments["box"] == [0.5, 0.3, 0.97, 0.8]
    assert repaired.repair.diagnosis.cost.prompt_tokens == 2140
    assert row.observations[repaired.repair.rollout.view_id].patch_text == fake_run.rendered(
        fake_run.patch(3)
    )
    assert (repaired.chosen, leaked.chosen, right.chosen) == ("repair", "first", "first")
    assert [finding.leaked for finding in leaked.repair.leak] == [False, True, False]
    assert failed.repair.diagnosis.failure == "timeout" and failed.patch is None
    assert repaired.taxed and repaired.reward == pytest.approx(1.7, abs=1e-9)
    assert row.sample.answer_text == "yellow" and len(row.observation.frames) == 16


def test_best_of_group_names_the_slot_it_took(tmp_path):
    trace = fake_run.trace(0, 3, ["still_wrong", "repaired"])
    best = trace.group.repairs_G[1].rollout
    group = replace(trace.group, chosen_G=(best, best))
    assert [slot.chosen for slot in trace_row(replace(trace, group=group)).slots] == ["repair:2", "repair"]


def test_tool_arguments_of_any_kind_become_json(tmp_path):
    trace = fake_run.trace(0, 3, ["repaired"])
    repair = trace.group.repairs_G[0]
    strange = {"a": np.float32(0.5), "b": Path("x"), "c": float("nan"), 4: {1}, "d": "\ud83d", "e": None}
    diagnosis = replace(repair.diagnosis, tool_calls=(ToolCall("t", strange),))
    group: RolloutGroup = replace(trace.group, repairs_G=(replace(repair, diagnosis=diagnosis),))
    write_traces(tmp_path, 0, [trace_row(replace(trace, group=group))])
    arguments = read_traces(tmp_path)[0].slots[0].repair.diagnosis.tool_calls[0].arguments
    assert arguments == {"a": 0.5, "b": "x", "c": "nan", "4": [1], "d": "\ufffd", "e": None}


def test_no_absolute_path_enters_a_trace(tmp_path):
    trace = fake_run.trace(0, 3, ["right"])
    sample = replace(trace.group.sample, video=tmp_path / "media" / "7.mp4")
    assert trace_row(replace(trace, group=replace(trace.group, sample=sample))).sample.video == "7.mp4"


def test_a_cut_off_last_row_is_left_out_visibly(tmp_path):
    path = write_traces(tmp_path, 3, [trace_row(fake_run.trace(3, s, ["right"])) for s in (1, 2)])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(TraceWarning, match=r"step_000003\.jsonl: row 2 is cut off"):
        assert [row.sample.uid for row in read_traces(tmp_path)] == ["micro/1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r"row 1: not JSON .*restore the file"),
        (json.dumps({"schema_version": 99}), r"row 1: field schema_version: 99; .*upgrade"),
        (json.dumps({"schema_version": 1, "step": "x"}), r"row 1: field step: .*RunWriter"),
        ("[1]", r"row 1: field \(row\)"),
    ],
)
def test_a_broken_row_is_an_error_that_names_it(tmp_path, line, message):
    path = step_path(tmp_path, 2)
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(TraceError, match=message):
        read_traces(tmp_path)


def test_a_hash_that_is_a_path_is_refused(tmp_path):
    row = json.loads(trace_row(fake_run.trace(0, 1, ["right"])).model_dump_json())
    next(iter(row["observations"].values()))["frames"][0]["sha256"] = "../../etc/passwd"
    path = step_path(tmp_path, 0)
    path.parent.mkdir()
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TraceError, match="sha256"):
        read_traces(tmp_path)


def test_frames_are_stored_once_and_small_ones_exactly(tmp_path):
    frames = fake_run.clip(5)
    assert store_frames(tmp_path, frames) == 16
    assert store_frames(tmp_path, frames) == 0
    stored = np.asarray(Image.open(frame_path(tmp_path, frames[4].sha256)).convert("RGB"))
    assert np.array_equal(stored, frames[4].pixels)
    assert not list(tmp_path.rglob("*.partial"))
    assert store_frames(tmp_path, [replace(frames[0], pixels=None, sha256="ab")]) == 0
