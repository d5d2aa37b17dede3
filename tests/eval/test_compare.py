"""Paired comparison of two runs: counts, refusals, and what is left out."""

import math

import pytest

from ffr.eval.compare import ProtocolMismatchError, compare_runs, protocol_differences
from ffr.eval.results import load_run
from tests.eval.small_runs import fake_score, item, mvbench_record, row, scored, write_run


def questions(count, **changes):
    return [
        item("mvbench", f"action_count/{i}", mvbench_record(**changes), group=f"v{i // 2}", index=i)
        for i in range(count)
    ]


def run(folder, items, values, **changes):
    rows = [scored(one.uid, float(v)) for one, v in zip(items, values, strict=True) if v is not None]
    return load_run(write_run(folder, items, rows, name=folder.name, **changes), scorer=fake_score)


@pytest.fixture
def two(tmp_path):
    items = questions(8)
    a = run(tmp_path / "a", items, [1, 1, 0, 0, 0, 0, 0, 0])
    b = run(tmp_path / "b", items, [1, 0, 1, 1, 1, 1, 1, 0])
    return a, b


def test_pairs_are_counted_by_hand(two):
    (line,) = compare_runs(*two).lines
    assert (line.num_pairs, line.num_videos) == (8, 4)
    assert (line.only_first, line.only_second) == (1, 5)
    assert line.p_value == 2 * (1 + 6) / 2**6
    assert line.adjusted == line.p_value
    assert (line.first, line.second, line.difference.mean) == (0.25, 0.75, 0.5)
    # Gains by video: v0 0 -1, v1 1 1, v2 1 1, v3 1 0; residual sums -2, 1, 1, 0:
    # var = 4/3 * 6 / 64 = 1/8, t(3, .975) = 3.182446.
    assert line.difference.std_error == pytest.approx(math.sqrt(1 / 8))
    assert line.difference.high == pytest.approx(0.5 + 3.182446 * math.sqrt(1 / 8), abs=1e-6)
    # Means by video are -1/2, 1, 1, 1/2: no draw leaves their range.
    assert -0.5 <= line.bootstrap[0] < 0.5 < line.bootstrap[1] <= 1.0


def test_the_other_way_round_is_the_negative(two):
    a, b = two
    there, back = compare_runs(a, b).lines[0], compare_runs(b, a).lines[0]
    assert back.difference.mean == -there.difference.mean
    assert (back.only_first, back.only_second) == (there.only_second, there.only_first)
    assert back.p_value == there.p_value
    assert back.bootstrap == pytest.approx((-there.bootstrap[1], -there.bootstrap[0]), abs=1e-9)


def test_a_run_against_itself_differs_in_nothing(two):
    (line,) = compare_runs(two[0], two[0]).lines
    assert (line.only_first, line.only_second, line.p_value) == (0, 0, 1.0)
    assert (line.difference.mean, line.bootstrap) == (0.0, (0.0, 0.0))


def test_a_missing_output_is_wrong_unless_left_out(tmp_path):
    items = questions(4)
    a = run(tmp_path / "a", items, [1, 1, 1, 1])
    rows = [scored(items[0].uid, 1.0), scored(items[1].uid, 1.0), row(items[2].uid, error="timeout: x")]
    b = load_run(write_run(tmp_path / "b", items, rows), scorer=fake_score)
    result = compare_runs(a, b)
    assert (result.lines[0].only_first, result.lines[0].num_pairs, result.lines[0].num_errors) == (2, 4, 2)
    assert "no output" in " ".join(result.notes)
    (line,) = compare_runs(a, b, answered_only=True).lines
    assert (line.only_first, line.num_pairs, line.num_errors) == (0, 2, 2)


def test_seeds_have_a_line_each_and_their_mean_no_mcnemar(tmp_path):
    items = questions(4)
    runs = []
    for name, right in (("a", 1), ("b", 2)):
        rows = [scored(i.uid, float(k < right + s), seed=s) for k, i in enumerate(items) for s in (0, 1)]
        runs.append(load_run(write_run(tmp_path / name, items, rows, seeds=(0, 1)), scorer=fake_score))
    lines = compare_runs(*runs).lines
    assert [line.seeds for line in lines] == [("0",), ("1",), ("0", "1")]
    assert [(line.only_first, line.only_second) for line in lines] == [(0, 1), (0, 1), (None, None)]
    assert math.isnan(lines[2].p_value)
    assert lines[2].difference.mean == 0.25


def test_single_seeds_are_paired_though_they_differ(tmp_path):
    items = questions(2)
    a = load_run(write_run(tmp_path / "a", items, [scored(i.uid, 0.0, seed=1) for i in items], seeds=(1,)))
    b = load_run(write_run(tmp_path / "b", items, [scored(i.uid, 1.0, seed=2) for i in items], seeds=(2,)))
    (line,) = compare_runs(a, b).lines
    assert (line.seeds, line.only_second) == (("1/2",), 2)


def test_several_benchmarks_are_corrected_for(tmp_path):
    items = [
        *questions(8),
        *(
            item(
                "lvbench", str(i), {"question": "Why?\n(A) x\n(B) y", "answer": "B", "key": f"v{i}"}, index=i
            )
            for i in range(8)
        ),
    ]
    a = run(tmp_path / "a", items, [0] * 16)
    b = run(tmp_path / "b", items, [1] * 8 + [1] * 7 + [0])
    first, second = compare_runs(a, b).lines
    assert (first.p_value, second.p_value) == (2 / 2**8, 2 / 2**7)
    assert (first.adjusted, second.adjusted) == (4 / 2**8, 2 / 2**7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"config": {"temperature": 0.0, "prompt": "video_r1", "max_tokens": 512}},
            r"temperature: 0\.7 and 0",
        ),
        (
            {"config": {"temperature": 0.7, "prompt": "brief", "max_tokens": 512}},
            "prompt: video_r1 and brief",
        ),
        ({"cards": {"mvbench@16": {"num_frames": 16, "engine": "openai"}}}, "engine: hf and openai"),
        (
            {"cards": {"mvbench@16": {"versions": {"python": "3.12"}, "engine": "hf"}}},
            r"python 3\.11 and 3\.12",
        ),
    ],
)
def test_other_protocols_are_refused_and_named(two, tmp_path, changes, words):
    a, _ = two
    other = run(tmp_path / "c", list(a.items.values()), [1] * 8, **changes)
    with pytest.raises(ProtocolMismatchError, match=words):
        compare_runs(a, other)
    allowed = compare_runs(a, other, allow_different=True)
    assert allowed.differences
    assert allowed.lines[0].num_pairs == 8


def test_other_frames_prompts_questions_and_golds_are_refused(tmp_path):
    items = questions(4)
    a = load_run(write_run(tmp_path / "a", items, [scored(i.uid, 1.0, frame_indices=(0, 9)) for i in items]))
    frames = [scored(i.uid, 1.0, frame_indices=(0, 8)) for i in items]
    b = load_run(write_run(tmp_path / "b", items, frames))
    listed = ", ".join(f"mvbench/action_count/{i}" for i in range(3))
    assert protocol_differences(a, b) == [f"the frames of 4 questions ({listed}, ...)"]
    prompts = [scored(i.uid, 1.0, frame_indices=(0, 9), prompt_sha256="x") for i in items]
    assert (
        "the prompts of 4" in protocol_differences(a, load_run(write_run(tmp_path / "c", items, prompts)))[0]
    )
    fewer = load_run(write_run(tmp_path / "d", items[:3], []))
    assert "the first run alone has 1 questions (mvbench/action_count/3)" in protocol_differences(a, fewer)[0]
    changed = load_run(write_run(tmp_path / "e", questions(4, answer=0), []))
    assert "the gold answer differs of 4" in protocol_differences(a, changed)[0]


def test_other_weights_and_a_failed_answer_are_no_other_protocol(tmp_path):
    items = questions(2)
    config = {"temperature": 0.7, "prompt": "video_r1", "model": "x", "weights_sha256": "1"}
    rows = [scored(i.uid, 1.0, frame_indices=(0, 9)) for i in items]
    a = load_run(write_run(tmp_path / "a", items, rows, config=config))
    failed = [rows[0], row(items[1].uid, error="timeout: x")]
    b = load_run(
        write_run(
            tmp_path / "b", items, failed,
            config={**config, "model": "y", "weights_sha256": "2"},
            cards={"mvbench@16": {**a.info.cards["mvbench@16"], "indices_sha256": "other"}},
        )
    )  # fmt: skip
    assert protocol_differences(a, b) == []
    assert compare_runs(a, b).lines[0].num_errors == 1


def test_options_are_no_part_of_it(two, tmp_path):
    a, _ = two
    items = list(a.items.values())
    vote = load_run(
        write_run(tmp_path / "v", items, [scored(i.uid, 1.0, mode="vote") for i in items], modes=("vote",))
    )
    with pytest.raises(ValueError, match="in common"):
        compare_runs(a, vote)
