"""Readers on tiny benchmarks in the official shapes, and on the shapes of the hub."""

import json
import os
import sys

import pytest

from ffr.config import ObserveConfig
from ffr.eval.base import EvalDataError
from ffr.eval.benchmarks import BENCHMARKS, benchmark_root, get_benchmark
from ffr.eval.benchmarks.longvideobench import interleave_subtitles
from ffr.eval.benchmarks.samples import write_sample
from ffr.eval.benchmarks.video_mmmu import QUESTION_ONLY, delta_knowledge
from ffr.observe import MediaError, observe

SMALL = ObserveConfig(num_frames=4, max_frame_px=56 * 56, min_frame_px=28 * 28)
FILES = {
    "mmvu": "validation.json",
    "vsi_bench": "test.jsonl",
    "video_mmmu": "data/perception_video.json",
    "video_holmes": "test_Video-Holmes.json",
    "longvideobench": "lvb_val.json",
    "lvbench": "video_info.meta.jsonl",
    "mvbench": "json/action_count.json",
    "tempcompass": "questions/yes_no.json",
    "video_r1": "eval_squares.json",
}
"""One annotation file of each benchmark that is not written by itself."""


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        write_sample(name, root / name)
    return root


def by_uid(loaded):
    return {item.uid: item for item in loaded.items}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_sample_is_read_and_every_clip_is_seen(samples, name):
    benchmark = get_benchmark(name)
    loaded = benchmark.load(samples / name)
    assert loaded.num_items >= 4
    assert loaded.missing == ()
    assert all(len(digest) == 64 for _, digest in loaded.files)
    assert len({item.uid for item in loaded.items}) == loaded.num_items
    for item in loaded.items:
        assert item.uid == item.sample.uid
        assert item.uid.startswith(f"{name}/")
        assert set(benchmark.labels(item.task)) <= set(benchmark.tasks)
        assert benchmark.target(item.record) == item.target
        json.dumps(dict(item.record))
        assert item.target.text
        assert item.official_prompt
        obs = observe(item.sample, SMALL)
        assert len(obs.frames) == 4
        if item.target.kind == "choice":
            assert item.chance == 1 / len(item.target.options)
            assert item.sample.options == item.target.options
            assert not any(f"{o.label}. {o.text}" in item.sample.question for o in item.target.options)


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_there_is_said(samples, tmp_path, name):
    benchmark = get_benchmark(name)
    with pytest.raises(EvalDataError, match=r"pass the folder"):
        benchmark.load(tmp_path / "nowhere")
    with pytest.raises(EvalDataError, match=rf"{name}: no annotation file under"):
        benchmark.load(tmp_path)
    with pytest.raises(EvalDataError, match=r"unknown tasks \['nope'\]"):
        benchmark.load(samples / name, tasks=("nope",))
    (tmp_path / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / FILES[name]).write_bytes(b'[{"broken": \xff')
    with pytest.raises(EvalDataError) as caught:
        benchmark.load(tmp_path)
    message = str(caught.value)
    assert "no annotation file" in message or ("UTF-8" in message and FILES[name] in message)


def test_missing_media_stay_in_the_denominator(tmp_path):
    write_sample("mmvu", tmp_path)
    (tmp_path / "videos/Physics/2.mp4").unlink()
    loaded = get_benchmark("mmvu").load(tmp_path)
    assert loaded.num_items == 4
    assert [(m.uid, m.task, m.path.name) for m in loaded.missing] == [
        ("mmvu/validation_2", "multiple-choice", "2.mp4")
    ]


def test_a_row_cannot_point_out_of_the_root(tmp_path):
    write_sample("video_r1", tmp_path)
    path = tmp_path / "eval_squares.json"
    rows = json.loads(path.read_text())
    rows[1]["path"] = "../../etc/passwd"
    path.write_text(json.dumps(rows))
    with pytest.raises(
        EvalDataError, match=r"eval_squares.json, row 2: video_r1: field 'video' outside_root"
    ):
        get_benchmark("video_r1").load(tmp_path)


def test_unknown_names(tmp_path):
    with pytest.raises(EvalDataError, match=r"unknown benchmark 'mvbenc'; known: mmvu, "):
        get_benchmark("mvbenc")
    with pytest.raises(EvalDataError, match=r"unknown benchmark 'x'"):
        write_sample("x", tmp_path)


def test_root_of_one_or_of_many(samples, tmp_path):
    assert benchmark_root(samples, "mmvu") == samples / "mmvu"
    assert benchmark_root(tmp_path, "mmvu") == tmp_path


def test_vsi_overall_is_the_mean_of_eight():
    directions = {
        f"object_rel_direction_{level}": (0.2 + 0.1 * k, 10 * (k + 1))
        for k, level in enumerate(("easy", "medium", "hard"))
    }
    others = (
        "object_counting",
        "object_abs_distance",
        "object_size_estimation",
        "room_size_estimation",
        "object_rel_distance",
        "route_planning",
        "obj_appearance_order",
    )
    by_task = {**directions, **{task: (0.5, 3 + k) for k, task in enumerate(others)}}
    # (7 * 0.5 + mean(0.2, 0.3, 0.4)) / 8 = 3.8 / 8
    assert get_benchmark("vsi_bench").overall(by_task) == pytest.approx(0.475)
    assert get_benchmark("vsi_bench").overall({"object_rel_direction_easy": (0.5, 1)}) == 0.5
    assert get_benchmark("vsi_bench").overall({}) == 0.0


def test_video_mmmu_overall_and_delta():
    by_task = {
        "Perception": (0.6, 300),
        "Comprehension": (0.3, 10),
        "Adaptation": (0.3, 300),
        QUESTION_ONLY: (1.0, 300),
    }
    assert get_benchmark("video_mmmu").overall(by_task) == pytest.approx(0.4)
    # From 40 to 55: 15 of the 60 points that were left.
    assert delta_knowledge(0.55, 0.40) == pytest.approx(25.0)
    assert delta_knowledge(0.2, 0.5) == pytest.approx(-60.0)
    with pytest.raises(ValueError, match="question_only < 1"):
        delta_knowledge(1.0, 1.0)


def test_micro_counts_every_question_the_same():
    assert get_benchmark("mvbench").overall({"a": (1.0, 1), "b": (0.0, 3)}) == 0.25


def test_video_mmmu_tracks_share_their_video(samples):
    benchmark = get_benchmark("video_mmmu")
    loaded = benchmark.load(samples / "video_mmmu")
    assert [item.task for item in loaded.items] == [t for t in benchmark.tasks[:3] for _ in range(2)]
    assert len({item.group for item in loaded.items}) == 2
    only = benchmark.load(samples / "video_mmmu", tasks=(QUESTION_ONLY,))
    assert [item.sample.video.name for item in only.items] == [
        f"validation_Physics_{i}_image.mp4" for i in range(2)
    ]
    adapted = by_uid(loaded)["video_mmmu/Adaptation/validation_Physics_0"]
    assert "<image" not in adapted.sample.question
    assert adapted.sample.question.startswith("The image for this question is at the end of the video.\n")
    assert adapted.official_prompt.startswith(
        "You should watch and learn the video content. Then apply what you learned to answer the following "
        "multi-choice question. The image for this question is at the end of the video.\nWhich way"
    )
    perceived = by_uid(loaded)["video_mmmu/Perception/validation_Physics_0"]
    assert perceived.official_prompt.endswith(
        "D. Downwards\nPlease ignore the Quiz question in last frame of the video."
    )


def test_mvbench_bounds_and_folders(samples):
    items = by_uid(get_benchmark("mvbench").load(samples / "mvbench"))
    bounded, other = items["mvbench/action_sequence/0"], items["mvbench/action_sequence/1"]
    assert bounded.sample.clip_s == (0.5, 2.0)
    assert bounded.group == other.group
    times = [f.timestamp_s for f in observe(bounded.sample, SMALL).frames]
    assert (times[0], times[-1]) == (0.5, 2.0)
    folder = items["mvbench/episodic_reasoning/0"]
    assert folder.sample.video.is_dir()
    frames = observe(folder.sample, SMALL).frames
    assert [f.source_index for f in frames] == [3, 5, 7, 9]  # 1.0 to 3.0 s at 3 pictures per second
    assert items["mvbench/moving_direction/1"].sample.clip_s is None
    assert items["mvbench/moving_direction/1"].official_prompt.endswith(
        "Question: Which way does the square move?\nOptions:\n(A) To the right\n(B) To the left\n"
        "(C) Upwards\n(D) Downwards\nOnly give the best option."
    )


def test_mvbench_clips_that_are_cut_already_are_not_cut_again(samples, tmp_path):
    source = samples / "mvbench"
    (tmp_path / "json").mkdir()
    for path in (source / "json").glob("*.json"):
        (tmp_path / "json" / path.name).write_text("[]")
    rows = json.loads((source / "json/action_sequence.json").read_text())[:1]
    (tmp_path / "json/action_sequence.json").write_text(json.dumps(rows))
    cut = tmp_path / "star/Charades_segment"
    cut.mkdir(parents=True)
    (cut / "SQUA1_0.5_2.0.mp4").write_bytes((source / "video/star/Charades_v1_480/SQUA1.mp4").read_bytes())
    loaded = get_benchmark("mvbench").load(tmp_path, tasks=("action_sequence",))
    assert loaded.missing == ()
    assert loaded.items[0].sample.clip_s is None
    # The branch `video` as one file: the same rows under `meta`.
    whole = tmp_path / "branch"
    whole.mkdir()
    (whole / "test.json").write_text(json.dumps({"root": {}, "meta": {"action_sequence": rows}}))
    assert get_benchmark("mvbench").load(whole).items[0].uid == "mvbench/action_sequence/0"


def test_mvbench_bounds_without_time_are_left_out(samples, tmp_path):
    rows = [
        {"video": "a.mp4", "question": "q", "candidates": ["x", "y"], "answer": "x", "start": 5.0, "end": 5.0}
    ]
    path = tmp_path / "action_sequence.json"
    path.write_text(json.dumps(rows))
    loaded = get_benchmark("mvbench").load(tmp_path, tasks=("action_sequence",))
    assert loaded.items[0].sample.clip_s is None


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folders_pictures_stay_in_the_folder(samples, tmp_path):
    write_sample("mvbench", tmp_path)
    folder = tmp_path / "video/tvqa/frames_fps3_hq/square_s01e01_seg01_clip_00"
    (folder / "00013.jpg").symlink_to("00001.jpg")
    item = get_benchmark("mvbench").load(tmp_path, tasks=("episodic_reasoning",)).items[0]
    assert len(observe(item.sample, SMALL).frames) == 4
    outside = tmp_path / "secret.jpg"
    outside.write_bytes((folder / "00001.jpg").read_bytes())
    (folder / "00014.jpg").symlink_to(os.path.relpath(outside, folder))
    with pytest.raises(MediaError, match=r"outside_root.*00014.jpg is a link out of the folder"):
        observe(item.sample, SMALL)


def test_lvbench_types(samples):
    benchmark = get_benchmark("lvbench")
    loaded = benchmark.load(samples / "lvbench")
    assert [item.uid for item in loaded.items] == [f"lvbench/{uid}" for uid in ("0", "1", "100", "101")]
    assert benchmark.labels(loaded.items[1].task) == ("key information retrieval", "temporal grounding")
    asked = benchmark.load(samples / "lvbench", tasks=("temporal grounding",))
    assert [item.uid for item in asked.items] == ["lvbench/1", "lvbench/101"]
    assert loaded.items[1].sample.question == "Which way does the square move at 00:01?"


def test_tempcompass_tasks(samples):
    loaded = get_benchmark("tempcompass").load(samples / "tempcompass")
    kinds = {item.task: item for item in loaded.items}
    assert {t: i.target.kind for t, i in kinds.items()} == {
        "multi-choice": "choice",
        "yes_no": "yes_no",
        "caption_matching": "match",
        "captioning": "caption",
    }
    assert [round(kinds[t].chance, 3) for t in kinds] == [0.333, 0.5, 0.5, 0.0]
    assert kinds["captioning"].record["mc_answer"] == "B. To the left"
    assert kinds["yes_no"].sample.question.endswith("\nPlease answer yes or no:")
    assert kinds["multi-choice"].official_prompt.endswith("C. Upwards\nPlease directly give the best option:")
    assert kinds["caption_matching"].target.text == "Option 2: The square moves to the left."


def test_official_prompts_by_hand(samples):
    def first(name):
        return get_benchmark(name).load(samples / name).items[0].official_prompt

    assert first("longvideobench") == (
        "Question: When the voice says 'Here it goes.', which way does the square move?\nA. To the right\n"
        "B. To the left\nC. Upwards\nD. Downwards\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert first("vsi_bench") == (
        "These are frames of a video.\nHow many square(s) are in this room?\n"
        "Please answer the question using a single word or phrase."
    )
    assert first("mmvu").startswith("\nQuestion: Which way does the square move?\nA: To the right\nB: ")
    assert ". The options are: A: To the right, B: To the left, C: Upwards, D:" in first("video_holmes")
    assert first("video_r1").endswith(
        "does the square move?Options:\nA. To the right\nB. To the left\nC. Upwards\nD. Downwards\n"
    )


def test_subtitles_come_where_the_official_loader_puts_them():
    said = [
        {"timestamp": [0.0, 2.0], "text": "one"},  # middle 1.0: after the frame at 0.5, which lies in it
        {"timestamp": [2.1, 2.3], "text": "short"},  # widened to 1.7..2.7: the frame at 2.5 lies in it
        {"start": "00:00:04", "end": "00:00:05.5", "line": "three"},
        {"timestamp": [7.0, 7.2], "text": "unseen"},
        {"timestamp": [8.0, None], "text": "to the end"},
    ]
    frames = [0.5, 2.5, 4.5, 9.5]
    found = interleave_subtitles(said, frames, start_s=0.0, duration_s=10.0)
    # Middle of the last: 9.0. The frame at 4.5 is not after 4.75, so it comes first.
    assert found == (0, "one", "short", 1, 2, "three", "to the end", 3)
    later = interleave_subtitles(said[:1], frames, start_s=-4.0, duration_s=10.0)
    assert later == (0, 1, 2, "one", 3)
    with pytest.raises(EvalDataError, match="subtitle 1: needs 'timestamp'"):
        interleave_subtitles([{"text": "x"}], frames, start_s=0.0, duration_s=1.0)


def test_microworld_is_written_when_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("ffr.eval.benchmarks.microworld.NUM_TEST", 6)
    loaded = get_benchmark("microworld").load(tmp_path / "world")
    assert sorted(item.task for item in loaded.items) == sorted(get_benchmark("microworld").tasks)
    assert all(item.sample.evidence is not None for item in loaded.items)
    monkeypatch.undo()
    assert get_benchmark("microworld").load(tmp_path / "world").num_items == 6


def test_microworlds_test_split_is_large_enough():
    from ffr.eval.benchmarks.microworld import NUM_TEST

    assert NUM_TEST >= 600


def test_parquet_tsv_and_jsonl_say_the_same(samples, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = json.loads((samples / "longvideobench/lvb_val.json").read_text())
    expected = [
        (i.uid, i.target) for i in get_benchmark("longvideobench").load(samples / "longvideobench").items
    ]
    for row in rows:
        texts = row.pop("candidates")
        row |= {f"option{k}": (texts + ["N/A"] * 5)[k] for k in range(5)}
    for k, part in enumerate((rows[:3], rows[3:])):  # two shards of one split
        name = f"validation-0000{k}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / name)
    loaded = get_benchmark("longvideobench").load(tmp_path)
    assert [(i.uid, i.target) for i in loaded.items] == expected
    assert [i.source_index for i in loaded.items] == [0, 1, 2, 3]

    lines = "\t".join(["video ID", "Question Type", "Question", "Options", "Answer", "Question ID"])
    cells = "\t".join(["film1", "SR", "Who?", "\"{'A': 'x', 'B': 'it''s y'}\"", "B", "3"])
    (tmp_path / "holmes").mkdir()
    (tmp_path / "holmes/Video_Holmes.tsv").write_text(f"{lines}\n{cells}\n")
    item = get_benchmark("video_holmes").load(tmp_path / "holmes").items[0]
    assert (item.uid, item.target.answer, len(item.target.options)) == ("video_holmes/film1/3", "B", 2)

    part = tmp_path / "one.jsonl"
    part.write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1]) + "\n")
    assert get_benchmark("longvideobench").load(part).num_items == 2


def test_a_second_row_with_the_same_id_gets_its_own(tmp_path):
    write_sample("longvideobench", tmp_path)
    path = tmp_path / "lvb_val.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, rows[0]]))
    loaded = get_benchmark("longvideobench").load(tmp_path)
    assert loaded.items[-1].uid == f"{loaded.items[0].uid}#5"
    assert loaded.notes == ("1 rows have the id of another one; theirs ends in #<row>",)
