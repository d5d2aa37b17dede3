"""`ffr doctor data`: coverage of the benchmarks, and training rows that they also have."""

import json

import pytest

from ffr.cli.main import main
from ffr.data import DataError, Dropped, decontaminate
from ffr.data.decontaminate import video_keys
from ffr.eval.base import EvalDataError
from ffr.eval.benchmarks import PUBLIC, get_benchmark
from ffr.eval.benchmarks.samples import write_sample
from ffr.eval.contamination import check_training, write_clean
from ffr.eval.coverage import check_benchmark
from ffr.types import ProblemType, Sample


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    root = tmp_path_factory.mktemp("public")
    for name in PUBLIC:
        write_sample(name, root / name)
    return root


@pytest.fixture
def ffr(capsys):
    def call(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def training_row(number, **changes):
    row = {
        "problem_id": number,
        "problem": f"What is number {number}?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. one", "B. two"],
        "solution": "<answer>A</answer>",
        "path": f"./clips/own_clip_{number}.mp4",
    }
    return {**row, **changes}


def test_all_there(benchmarks, ffr):
    code, out, _ = ffr("doctor", "data", "--root", benchmarks)
    assert code == 0
    assert "8 of 8 benchmarks are complete" in out
    assert "mvbench: 5 questions on 4 videos" in out
    assert "20 annotation files, together sha256" in out
    digest = dict(get_benchmark("mmvu").load(benchmarks / "mmvu").files)
    assert f"validation.json sha256 {next(iter(digest.values()))[:16]}" in out


def test_what_is_missing_and_what_is_damaged(tmp_path, ffr):
    for name in ("mmvu", "video_holmes", "lvbench"):
        write_sample(name, tmp_path / name)
    (tmp_path / "mmvu/videos/Physics/1.mp4").unlink()
    film = tmp_path / "video_holmes/videos_cropped/film0000001.mp4"
    film.write_bytes(film.read_bytes()[:500])
    report = tmp_path / "report.json"
    words = ("--root", tmp_path, "--benchmarks", "mmvu,video_holmes,lvbench,vsi_bench", "--json", report)
    code, out, _ = ffr("doctor", "data", *words)
    assert code == 1
    assert "1 of 4 benchmarks are complete" in out
    assert "missing: mmvu/validation_1: " in out
    assert "undecodable: video_holmes/film0000001/3" in out
    assert "fetch the 2 damaged clips again" in out
    assert "yale-nlp/MMVU on the hub" in out
    assert "vsi_bench: no annotation file under" in out
    by_name = {entry["benchmark"]: entry for entry in json.loads(report.read_text())}
    assert by_name["mmvu"]["tasks"]["multiple-choice"] == {"questions": 3, "missing": 1, "damaged": 0}
    assert [entry["uid"] for entry in by_name["video_holmes"]["damaged"]] == [
        "video_holmes/film0000001/3",
        "video_holmes/film0000001/4",
    ]
    assert by_name["lvbench"]["complete"]
    # Nothing is decoded: the damaged film counts as there.
    code, out, _ = ffr("doctor", "data", "--root", tmp_path, "--benchmarks", "video_holmes", "--no-decode")
    assert (code, "undecodable" in out) == (0, False)


def test_a_clip_is_decoded_once_and_counts_for_all_its_questions(benchmarks):
    seen = []
    coverage = check_benchmark(
        "video_holmes", benchmarks, on_clip=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (coverage.num_items, coverage.num_videos, coverage.complete) == (7, 4, True)


def test_a_question_of_two_types_counts_in_both(benchmarks):
    tasks = {task.task: task.num_items for task in check_benchmark("lvbench", benchmarks, decode=False).tasks}
    assert tasks == {"key information retrieval": 2, "event understanding": 2, "temporal grounding": 2}
    with pytest.raises(EvalDataError, match=r"unknown tasks \['x'\]"):
        check_benchmark("lvbench", benchmarks, tasks=("x",))


def test_wrong_words(tmp_path, ffr):
    for words, message in [
        (("--root", tmp_path, "--benchmarks", "mvbenc"), "unknown 'mvbenc'; known: mmvu, "),
        (("--root", tmp_path / "no"), "no such directory"),
        (("--root", tmp_path, "--write-clean", tmp_path / "x.json"), "--write-clean needs --train"),
        (("--root", tmp_path, "--workers", 0), "--workers must be at least 1"),
    ]:
        code, _, err = ffr("doctor", "data", *words)
        assert code == 2
        assert message in err.replace("\n", " ")


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_overlaps_are_found_and_a_clean_file_is_written(benchmarks, tmp_path, ffr, form):
    film = get_benchmark("video_holmes").load(benchmarks / "video_holmes").items[0]
    texts = [option.text for option in film.target.options]
    rows = [
        training_row(0),
        training_row(1, path="./elsewhere/FILM0000002.mp4"),  # a film of Video-Holmes, other case and folder
        training_row(2, problem="which way does the square  move", options=texts),
        training_row(3, path="./charades/SQUA1_3.5_9.0.mp4"),  # a part of a clip of MVBench
        training_row(4, problem="Which way does the square move?"),  # the same words, other options
        training_row(5, solution="<answer>Z</answer>"),
    ]
    train = tmp_path / f"train.{form}"
    train.write_text(json.dumps(rows) if form == "json" else "\n".join(json.dumps(r) for r in rows) + "\n")
    code, out, _ = ffr("doctor", "data", "--root", benchmarks, "--train", train)
    assert code == 1
    assert "3 of 6 rows overlap, 1 can't be read" in out
    report = check_training(train, benchmarks)
    assert report.dropped == (
        Dropped("train/1", "video", "video_holmes/film0000002/5"),
        Dropped("train/2", "question", "video_holmes/film0000000/1"),
        Dropped("train/3", "video", "mvbench/action_sequence/0"),
    )
    assert report.kept_rows == (1, 5)
    assert list(report.skipped) == [6]
    assert report.counts == {
        ("video_holmes", "video"): 1,
        ("video_holmes", "question"): 1,
        ("mvbench", "video"): 1,
    }
    clean = tmp_path / f"clean.{form}"
    code, out, _ = ffr("doctor", "data", "--root", benchmarks, "--train", train, "--write-clean", clean)
    assert code == 0
    assert "2 of 6 rows written" in out
    text = clean.read_text()
    written = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert written == [rows[0], rows[4]]
    assert check_training(clean, benchmarks).clean


def test_a_youtube_id_is_a_clip_id(benchmarks, tmp_path):
    root = tmp_path / "mmvu"
    write_sample("mmvu", root)
    annotation = root / "validation.json"
    rows = json.loads(annotation.read_text())
    rows[2]["youtube_url"] = "https://www.youtube.com/watch?v=aB3-_xY9zQ0&t=5"
    annotation.write_text(json.dumps(rows))
    train = tmp_path / "train.json"
    train.write_text(
        json.dumps([training_row(0, path="./yt/aB3-_xY9zQ0.mp4"), training_row(1, path="./0.mp4")])
    )
    report = check_training(train, tmp_path, ("mmvu",))
    assert report.dropped == (Dropped("train/0", "video", "mmvu/validation_2"),)


def test_a_benchmark_that_is_not_there_is_no_clean_bill(benchmarks, tmp_path, ffr):
    write_sample("mmvu", tmp_path / "mmvu")
    train = tmp_path / "train.json"
    train.write_text(json.dumps([training_row(0)]))
    words = (
        "--root",
        tmp_path,
        "--train",
        train,
        "--benchmarks",
        "mmvu,lvbench",
        "--json",
        tmp_path / "r.json",
    )
    code, out, _ = ffr("doctor", "data", *words)
    assert code == 1
    assert "WARNING: lvbench was not compared" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["checked"] == {"mmvu": 4}
    assert list(report["unchecked"]) == ["lvbench"]


def test_errors_of_the_training_file(benchmarks, tmp_path, ffr):
    code, _, err = ffr("doctor", "data", "--root", benchmarks, "--train", tmp_path / "no.json")
    assert code == 1
    assert "no.json" in err
    train = tmp_path / "train.json"
    train.write_text(json.dumps([training_row(0)]))
    with pytest.raises(ValueError, match="is the training file itself"):
        write_clean(check_training(train, benchmarks, ("mmvu",)), train)
    train.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        check_training(train, benchmarks, ("mmvu",))


def test_keys_of_cut_clips(tmp_path):
    def sample(name):
        return Sample(f"a/{name}", "Why?", "A", ProblemType.FREE_FORM, tmp_path / name)

    assert video_keys(sample("NBMH9_21.4_37.6.mp4")) == ("nbmh9_21.4_37.6", "nbmh9")
    assert video_keys(sample("scene0568_00.mp4")) == ("scene0568_00",)
    assert video_keys(sample("a_1_2.mp4")) == ("a_1_2",)
    assert video_keys(sample("7.mp4")) == ()
    found = decontaminate([sample("NBMH9_0_5.mp4")], [sample("b.mp4")], aliases={"a/b.mp4": ("NBMH9",)})
    assert found.dropped == (Dropped("a/NBMH9_0_5.mp4", "video", "a/b.mp4"),)
