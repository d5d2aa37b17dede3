"""Video-R1 and VideoRFT files: every form that their rows take."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.data import DataError, read_video_r1
from ffr.data.video_r1 import label_options, split_options
from ffr.types import Evidence, Option, ProblemType
from tests.data.rows import row, write_rows

ABC = (Option("A", "a cat"), Option("B", "a dog"), Option("C", "a {bird}"))


def one(tmp_path, **changes):
    result = read_video_r1(write_rows(tmp_path, [row(**changes)]), tmp_path)
    assert result.skipped == ()
    return result.samples[0]


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_a_row(tmp_path, name):
    path = write_rows(tmp_path, [row(), row(problem_id=3)], name)
    first, second = read_video_r1(path, tmp_path).samples
    assert (first.uid, second.uid) == ("train/2", "train/3")
    assert (first.question, first.answer, first.answer_text) == ("What appears on the screen?", "B", "a dog")
    assert first.options == ABC and first.problem_type is ProblemType.MULTIPLE_CHOICE
    assert first.video == (tmp_path / "src" / "clip_00001.mp4").resolve()
    assert (first.source, first.media_type, first.evidence, first.clip_s) == ("train", "video", None, None)
    assert first.meta == {"problem_id": 2, "process": "<think>x</think>", "data_source": "STAR"}


def test_the_form_is_told_from_the_content_not_the_suffix(tmp_path):
    path = write_rows(tmp_path, [row()], "train.jsonl")
    path.rename(tmp_path / "data.json")
    assert len(read_video_r1(tmp_path / "data.json", tmp_path).samples) == 1
    (tmp_path / "data.json").write_text("﻿" + json.dumps([row()], indent=2), encoding="utf-8")
    assert len(read_video_r1(tmp_path / "data.json", tmp_path).samples) == 1


@pytest.mark.parametrize(
    ("kind", "solution", "answer"),
    [
        ("numerical", "<answer>1</answer>", "1"),
        ("free-form", "<answer>The person cracks\nan egg.</answer>", "The person cracks\nan egg."),
        ("OCR", '<answer>" You should.</answer>', '" You should.'),
        ("regression", "<answer> 13.1 </answer>", "13.1"),
        ("regression", "13.1", "13.1"),
        ("Free-Form", "<think>a</think><answer>b</answer>", "b"),
    ],
)
@pytest.mark.parametrize("options", [[], None, ...])
def test_open_answers(tmp_path, kind, solution, answer, options):
    sample = one(tmp_path, problem_type=kind, solution=solution, options=options)
    assert (sample.answer, sample.options, sample.answer_text) == (answer, (), answer)
    assert sample.problem_type == kind.lower().replace("ocr", "OCR")


@pytest.mark.parametrize(
    "options",
    [
        ["A. a cat", "B. a dog", "C. a {bird}"],
        ["A) a cat", "B) a dog", "C) a {bird}"],
        ["(A) a cat", "(B) a dog", "(C) a {bird}"],
        ["A: a cat", "B: a dog", "C: a {bird}"],
        [" A.  a cat ", "B. a dog", "C. a {bird}"],
        ["a cat", "a dog", "a {bird}"],
    ],
)
def test_option_labels(tmp_path, options):
    assert one(tmp_path, options=options).options == ABC


def test_labels_only_where_all_options_have_one():
    assert label_options(["A. Lincoln", "Grant"]) == (Option("A", "A. Lincoln"), Option("B", "Grant"))
    assert label_options(["A. x", "A. y"]) == (Option("A", "A. x"), Option("B", "A. y"))
    assert label_options(["B. x", "A. y"]) == (Option("B", "x"), Option("A", "y"))
    assert label_options(["A.", "B. two\nlines"]) == (Option("A", ""), Option("B", "two\nlines"))


@pytest.mark.parametrize(
    "solution", ["B", "<answer>B</answer>", "<answer>B.</answer>", "(B)", "B. a dog", "a dog", "B)"]
)
def test_letters_of_the_gold_answer(tmp_path, solution):
    assert one(tmp_path, solution=solution).answer == "B"


EMBEDDED = {
    "lines": "What is it?\nA. a cat\nB. a dog\nC. a {bird}",
    "header": "What is it?\nOptions:\nA) a cat\nB) a dog\nC) a {bird}\n",
    "same line": "What is it? Options:\n(A) a cat\n(B) a dog\n(C) a {bird}",
    "blank": "What is it?\n\nOptions:\n\nA. a cat\nB. a dog\nC. a {bird}".replace("\n\nA", "\nA"),
}


@pytest.mark.parametrize("form", EMBEDDED)
@pytest.mark.parametrize("options", [[], ["A. a cat", "B. a dog", "C. a {bird}"]])
def test_embedded_options_are_split_off(tmp_path, form, options):
    sample = one(tmp_path, problem=EMBEDDED[form], options=options)
    assert (sample.question, sample.options) == ("What is it?", ABC)


@pytest.mark.parametrize(
    "problem",
    [
        "What is it?",
        "A. Which?",
        "A. one\nB. two",
        "Steps:\nA. cut\nB. fry\nWhich is first?",
        "Which?\nB. x\nC. y",
    ],
)
def test_what_is_no_option_list_stays(problem):
    assert split_options(problem) == (problem, ())


def test_letters_that_are_in_the_picture_need_no_options(tmp_path):
    sample = one(tmp_path, options=[], solution="C", data_type="image", path="./src/clip_00001.mp4")
    assert (sample.answer, sample.options, sample.media_type) == ("C", (), "image")


def test_extra_keys(tmp_path):
    sample = one(
        tmp_path,
        evidence={"spans_s": [[1, 2.5]], "boxes": [[0, 0.1, 0.5, 1]], "note": "ball"},
        scenario="counting",
        clip_s=[0, 4],
        new_key={"a": 1},
    )
    assert sample.evidence == Evidence(spans_s=((1.0, 2.5),), boxes=((0.0, 0.1, 0.5, 1.0),), note="ball")
    assert (sample.scenario, sample.clip_s, sample.meta["new_key"]) == ("counting", (0.0, 4.0), {"a": 1})
    assert "evidence" not in sample.meta


BAD = {
    "problem": ("", "is empty"),
    "problem_type": ("quiz", "allowed: multiple choice, numerical, free-form, OCR, regression"),
    "data_type": ("audio", "allowed: video, image"),
    "options": ("A. x", "must be a list of texts, got str"),
    "solution": ("D", "needs the letter of an option: A, B, C"),
    "path": (7.5j, "is missing"),
    "clip_s": ([3, 1], "0 <= start < end"),
    "evidence": ({"spans": []}, "unknown keys ['spans']; allowed: spans_s, boxes, note"),
    "evidence.boxes": ([[0, 0, 2, 1]], "in 0..1 with area"),
    "evidence.spans_s": ([[0]], "list of 2 numbers"),
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_row_names_file_row_field_and_remedy(tmp_path, field):
    value, words = BAD[field]
    key, _, inner = field.partition(".")
    changes = {key: {inner: value} if inner else (... if isinstance(value, complex) else value)}
    path = write_rows(tmp_path, [row(), row(**changes)])
    with pytest.raises(DataError) as caught:
        read_video_r1(path, tmp_path)
    text = str(caught.value)
    assert str(path) in text and "row 2" in text and repr(field) in text and words in text
    result = read_video_r1(path, tmp_path, strict=False)
    assert len(result.samples) == 1
    assert [(s.row, s.field, s.status) for s in result.skipped] == [(2, field, "malformed")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{]", "not valid JSON"),
        ('{"a": 1}\n{"b"', "row 2"),
        ("[1]", "must be a JSON object, got int"),
        ("\xff", "UTF-8"),
    ],
)
def test_broken_files(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        list(read_video_r1(path, tmp_path, strict=False).samples)
        read_video_r1(path, tmp_path)
    assert words in str(caught.value) or "problem" in str(caught.value) or "path" in str(caught.value)
    with pytest.raises(DataError, match="can't be read"):
        read_video_r1(tmp_path / "gone.json", tmp_path)


def test_a_missing_clip_is_counted_and_not_replaced(tmp_path):
    path = write_rows(
        tmp_path, [row(problem_id=i, path=f"./src/{i}.mp4") for i in range(3)], media=["src/1.mp4"]
    )
    result = read_video_r1(path, tmp_path)
    assert [s.uid for s in result.samples] == ["train/1"]
    assert result.counts == {"missing": 2} and [s.row for s in result.skipped] == [1, 3]
    assert "fetch it or correct the row" in result.skipped[0].reason
    assert len(read_video_r1(path, tmp_path, check_media=False).samples) == 3


OUTSIDE = [
    "/etc/passwd",
    "../out.mp4",
    "./a/../../out.mp4",
    "a/../src/clip_00001.mp4",
    "C:\\clips\\a.mp4",
    "\\\\host\\share\\a.mp4",
    "src\\..\\..\\a.mp4",
    "http://host/a.mp4",
    "file:///etc/passwd",
    "concat:src/clip_00001.mp4|src/clip_00001.mp4",
    "subfile,,start,0,end,9,,:/etc/passwd",
    "link/secret.mp4",
    "out.mp4",
    "src/clip\0.mp4",
    ".",
]


@pytest.mark.parametrize("written", OUTSIDE)
@pytest.mark.parametrize("check_media", [True, False])
def test_paths_stay_in_the_root(tmp_path, written, check_media):
    root = tmp_path / "root"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "secret.mp4").touch()
    (tmp_path / "out.mp4").touch()
    path = write_rows(root, [row(path=written)])
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "out.mp4").symlink_to(tmp_path / "out.mp4")
    result = read_video_r1(path, root, check_media=check_media)
    subfile = written.startswith("subfile")
    if subfile and not check_media:
        assert str(result.samples[0].video).startswith(str(root))
    else:
        assert result.samples == ()
        assert result.counts == {"missing" if subfile else "outside_root": 1}


def test_a_link_inside_the_root_is_fine(tmp_path):
    path = write_rows(tmp_path / "root", [row(path="./again/clip_00001.mp4")])
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "src")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    assert len(read_video_r1(path, tmp_path / "alias").samples) == 1


def test_uids_are_unique(tmp_path):
    path = write_rows(tmp_path, [row(), row(), row(problem_id=...)])
    assert [s.uid for s in read_video_r1(path, tmp_path, name="star").samples] == [
        "star/2",
        "star/2#2",
        "star/3",
    ]


words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@given(
    texts=st.lists(words, min_size=2, max_size=8, unique=True),
    form=st.sampled_from(["{}. ", "{}) ", "({}) "]),
)
def test_labels_come_off_and_nothing_else(texts, form):
    labelled = [form.format(chr(65 + i)) + text for i, text in enumerate(texts)]
    expected = tuple(Option(chr(65 + i), text) for i, text in enumerate(texts))
    assert label_options(labelled) == expected
    assert split_options("Which?\nOptions:\n" + "\n".join(labelled)) == ("Which?", expected)
