"""The table of a run: denominators, official overall numbers, what is flagged, and how it is written."""

import io
import json
import math

import pytest
from rich.console import Console

from ffr.eval.benchmarks.video_mmmu import delta_knowledge
from ffr.eval.results import Cell, load_run
from ffr.eval.rows import BenchmarkInfo, RunFileError
from ffr.eval.stats import clustered_estimate
from ffr.eval.table import build_table
from ffr.eval.table_text import to_json, to_markdown, to_rich, write_tables
from tests.eval.small_runs import fake_score, item, mvbench_record, row, scored, tagged, write_run


def mvbench(count=4, **changes):
    return [
        item("mvbench", f"action_count/{i}", mvbench_record(**changes), group=f"v{i // 2}", index=i)
        for i in range(count)
    ]


def table_of(folder, **options):
    return build_table(load_run(folder, scorer=fake_score), **options)


def vsi(kind, own_id, answer, options=None):
    record = {
        "id": own_id,
        "dataset": "scannet",
        "scene_name": f"s{own_id}",
        "question_type": kind,
        "question": "How many?",
        "ground_truth": answer,
        "options": options,
    }
    return item("vsi_bench", str(own_id), record)


def mmmu(track, own_id):
    record = {"id": own_id, "question": "q", "options": ["a", "b"], "answer": "A", "track": track}
    return item("video_mmmu", f"{track}/{own_id}", record, group=own_id)


def test_a_question_without_an_output_counts_as_zero_and_is_named(tmp_path):
    items = mvbench(4)
    rows = [scored(items[0].uid, 1.0), scored(items[1].uid, 1.0), row(items[2].uid, error="timeout: 60 s")]
    (line,) = table_of(write_run(tmp_path / "r", items, rows)).lines
    assert line.accuracy["robust"].mean == 0.5  # 2 of 4, not 2 of 2
    assert (line.num_scored, line.num_total, line.num_items) == (2, 4, 4)
    assert line.errors == {"timeout": 1, "no_row": 1}
    assert line.covered == {"video_r1": 1.0, "robust": 1.0}
    assert line.num_videos == 2
    assert line.chance == pytest.approx(1 / 3)
    assert "MVBench\\*" in to_markdown(table_of(tmp_path / "r"))
    expected = clustered_estimate([1, 1, 0, 0], ["v0", "v0", "v1", "v1"])
    assert line.accuracy["robust"] == expected


def test_a_complete_run_has_no_covered_part(tmp_path):
    items = mvbench(2)
    (line,) = table_of(write_run(tmp_path / "r", items, [scored(i.uid, 1.0) for i in items])).lines
    assert line.covered == {}
    assert line.errors == {}
    assert "MVBench\\*" not in to_markdown(table_of(tmp_path / "r"))


def test_profiles_that_rows_do_not_hold_are_scored_now(tmp_path):
    items = mvbench(2)
    rows = [row(items[0].uid, "B"), row(items[1].uid, "It is B")]
    (line,) = table_of(write_run(tmp_path / "r", items, rows), profiles=("video_r1", "robust")).lines
    assert line.accuracy["video_r1"].mean == 0.5
    assert line.accuracy["robust"].mean == 1.0
    assert line.no_answer == 0.0


def test_the_real_scorers_tell_strict_from_robust_and_count_failures_of_form(tmp_path):
    items = mvbench(4)
    texts = [tagged("B"), tagged("B."), "It shows (B).", "no idea at all"]
    ends = ["stop", "stop", "stop", "length"]
    rows = [row(i.uid, t, finish=f) for i, t, f in zip(items, texts, ends, strict=True)]
    (line,) = build_table(load_run(write_run(tmp_path / "r", items, rows))).lines
    assert line.accuracy["video_r1"].mean == 0.25
    assert line.accuracy["robust"].mean == 0.75
    assert (line.format_failures, line.no_answer, line.cut) == (0.5, 0.25, 0.25)


def test_thoughts_that_a_server_took_out_are_no_failure_of_form(tmp_path):
    items = mvbench(1)
    rows = [row(items[0].uid, "<answer>B</answer>", reasoning="look")]
    (line,) = build_table(load_run(write_run(tmp_path / "r", items, rows))).lines
    assert line.format_failures == 0.0


def test_prompts_that_ask_for_no_tags_have_no_failures_of_form(tmp_path):
    items = mvbench(1)
    run = write_run(
        tmp_path / "r", items, [row(items[0].uid, "B")], config={"prompt": "official", "temperature": 0.7}
    )
    (line,) = build_table(load_run(run)).lines
    assert math.isnan(line.format_failures)
    assert json.loads(to_json(build_table(load_run(run))))["lines"][0]["format_failures"] is None


def test_seeds_are_averaged_per_question_before_the_interval(tmp_path):
    items = mvbench(2)
    values = {(0, 1): 1.0, (0, 2): 0.0, (1, 1): 1.0, (1, 2): 1.0}
    rows = [scored(items[i].uid, v, seed=seed) for (i, seed), v in values.items()]
    table = table_of(write_run(tmp_path / "r", items, rows, seeds=(1, 2)))
    (line,) = table.lines
    assert line.accuracy["robust"].mean == 0.75
    assert line.accuracy["robust"].num == 2
    assert line.by_seed["robust"] == {1: 1.0, 2: 0.5}
    assert (line.num_scored, line.num_total) == (4, 4)
    assert "sampled anew" in table.notes[0]
    assert "by seed: 1: 100.0, 2: 50.0" in to_markdown(table)


def test_greedy_runs_have_one_seed_and_say_so(tmp_path):
    items = mvbench(1)
    run = write_run(
        tmp_path / "r", items, [scored(items[0].uid, 1.0)], seeds=(42, 43), config={"temperature": 0.0}
    )
    table = table_of(run)
    assert table.lines[0].cell == Cell("mvbench", 16, (42,))
    assert table.lines[0].accuracy["robust"].mean == 1.0
    assert "greedy" in table.notes[0]


def test_every_number_of_frames_has_its_line(tmp_path):
    items = mvbench(2)
    rows = [scored(i.uid, float(num == 32), num_frames=num) for i in items for num in (16, 32)]
    lines = table_of(write_run(tmp_path / "r", items, rows, frames=(16, 32))).lines
    assert [(line.cell.num_frames, line.accuracy["robust"].mean) for line in lines] == [(16, 0.0), (32, 1.0)]


def test_vsi_bench_has_its_macro_average_letters_and_numbers(tmp_path):
    letters = ["A. left", "B. right"]
    items = [
        *(vsi(f"object_rel_direction_{level}", i, "A", letters) for i, level in enumerate(("easy", "hard"))),
        vsi("route_planning", 2, "A", letters),
        *(vsi("object_counting", i, "4") for i in (3, 4, 5)),
    ]
    rows = [scored(one.uid, v) for one, v in zip(items, [1, 0, 1, 0.3, 0.6, 0.9], strict=True)]
    whole, choice, number = table_of(write_run(tmp_path / "r", items, rows)).lines
    # Directions 1/2, route 1, counting 0.6: mean of three tasks 0.7; over questions 3.8 / 6.
    assert whole.overall["robust"].mean == pytest.approx(0.7)
    assert whole.accuracy["robust"].mean == pytest.approx(3.8 / 6)
    assert (choice.part, choice.accuracy["robust"].mean) == ("letter questions", pytest.approx(2 / 3))
    assert (number.part, number.accuracy["robust"].mean) == ("number questions", pytest.approx(0.6))
    assert number.chance == 0.0
    assert "| VSI-Bench: macro_8 | 16 | 70.0 [" in to_markdown(table_of(tmp_path / "r"))


def test_video_mmmu_keeps_its_baseline_apart_and_gives_delta_knowledge(tmp_path):
    ids = [f"validation_Art_{i}" for i in range(4)]
    tracks = ("Perception", "Comprehension", "Adaptation", "question_only")
    values = {
        "Perception": [1, 1, 1, 1],
        "Comprehension": [1, 1, 0, 0],
        "Adaptation": [1, 1, 1, 0],
        "question_only": [1, 0, 0, 0],
    }
    items = [mmmu(track, own) for track in tracks for own in ids]
    flat = [v for track in tracks for v in values[track]]
    rows = [scored(i.uid, float(v)) for i, v in zip(items, flat, strict=True)]
    whole, baseline = table_of(write_run(tmp_path / "r", items, rows)).lines
    assert whole.num_items == 12
    assert whole.accuracy["robust"].mean == 0.75
    assert whole.overall["robust"].mean == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert baseline.part == "question_only"
    gain = whole.delta_knowledge["robust"]
    assert gain.mean == pytest.approx(delta_knowledge(0.75, 0.25) / 100)  # (3 - 1) / 3
    assert gain.mean == pytest.approx(2 / 3)
    assert gain.low < gain.mean < gain.high
    assert "| VideoMMMU: delta-knowledge | 16 | 66.7 [" in to_markdown(table_of(tmp_path / "r"))


def test_tasks_have_lines_when_asked_and_a_question_may_be_of_several(tmp_path):
    record = {"question": "Why?\n(A) x\n(B) y", "answer": "B", "key": "v", "uid": "7"}
    items = [
        item("lvbench", "7", {**record, "question_type": ["reasoning", "summarization"]}),
        item("lvbench", "8", {**record, "question_type": ["reasoning"]}),
    ]
    run = write_run(tmp_path / "r", items, [scored(items[0].uid, 1.0), scored(items[1].uid, 0.0)])
    whole, *parts = table_of(run, by_task=True).lines
    assert whole.num_items == 2
    assert {p.part: (p.num_items, p.accuracy["robust"].mean) for p in parts} == {
        "reasoning": (2, 0.5),
        "summarization": (1, 1.0),
    }


def test_test_time_options_are_apart(tmp_path):
    items = mvbench(4)
    rows = [scored(i.uid, 0.0) for i in items] + [scored(i.uid, 1.0, mode="vote") for i in items]
    table = table_of(write_run(tmp_path / "r", items, rows, modes=("plain", "vote")))
    assert [line.accuracy["robust"].mean for line in table.lines] == [0.0]
    assert [(x.cell.mode, x.accuracy["robust"].mean) for x in table.option_lines] == [("vote", 1.0)]
    plain, options = to_markdown(table).split("## Test-time options")
    assert "| 0.0 [0.0, " in plain
    assert "vote" not in plain
    assert "| MVBench, vote | 16 | 100.0 [" in options


def test_a_run_of_an_option_alone_has_no_plain_line(tmp_path):
    items = mvbench(1)
    table = table_of(
        write_run(tmp_path / "r", items, [scored(items[0].uid, 1.0, mode="vote")], modes=("vote",))
    )
    assert table.lines == ()
    assert len(table.option_lines) == 1


def test_limits_and_missing_media_are_said(tmp_path):
    items = mvbench(2)
    told = {"mvbench": BenchmarkInfo(num_items=2, num_total=4000, num_missing=1, tasks=("action_count",))}
    notes = " ".join(table_of(write_run(tmp_path / "r", items, [], benchmarks=told)).notes)
    assert "2 of 4000 questions were asked" in notes
    assert "1 questions without media" in notes
    assert "tasks action_count" in notes


def test_rows_of_another_run_are_refused(tmp_path):
    items = mvbench(1)
    with pytest.raises(RunFileError, match="another configuration"):
        table_of(write_run(tmp_path / "a", items, [scored(items[0].uid, 1.0, config_hash="ff")]))
    with pytest.raises(RunFileError, match="no question of items"):
        table_of(write_run(tmp_path / "b", items, [scored("mvbench/other/1", 1.0)]))


def test_a_run_without_rows_has_a_table_of_zeros(tmp_path):
    run = write_run(tmp_path / "r", mvbench(3), [])
    (run / "rows.jsonl").unlink()
    (line,) = table_of(run).lines
    assert (line.num_scored, line.accuracy["robust"].mean) == (0, 0.0)
    assert math.isnan(line.no_answer)
    assert "| - |" in to_markdown(table_of(run))


def test_the_files_hold_what_the_terminal_shows(tmp_path):
    items = mvbench(4)
    rows = [scored(i.uid, float(k > 0)) for k, i in enumerate(items)]
    run = write_run(tmp_path / "r", items, rows, name="a|b <c>")
    table = table_of(run)
    markdown, data = write_tables(run, table)
    text = markdown.read_text()
    shown = "75.0 [" + text.split("75.0 [")[1].split("]")[0] + "]"
    assert text.startswith("# a\\|b \\<c>\n")
    assert "| MVBench | 16 | " + shown in text
    console = Console(width=200, file=io.StringIO())
    console.print(to_rich(table))
    number, bounds = shown.rstrip("]").split(" [")
    assert number in console.file.getvalue()
    assert bounds.replace(", ", "-") in console.file.getvalue()
    line = json.loads(data.read_text())["lines"][0]
    assert line["accuracy"]["robust"]["mean"] == 75.0
    assert line["accuracy"]["robust"]["num_clusters"] == 2
    assert line["cell"] == {"benchmark": "mvbench", "num_frames": 16, "seeds": [42], "mode": "plain"}
    assert line["chance"] == pytest.approx(33.3333)
    assert line["by_seed"]["robust"] == {"42": 75.0}
