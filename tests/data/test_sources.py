"""Video-Holmes, our JSONL, the hub, the mixture, decontamination."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.config import DataConfig, SourceConfig
from ffr.data import (
    DataError,
    decontaminate,
    load_data,
    mix,
    read_jsonl,
    read_video_holmes,
    read_video_r1,
    resolve_hub_path,
    write_jsonl,
)
from ffr.data.mixture import quotas
from ffr.types import Evidence, Option, ProblemType, Sample
from tests.data.rows import row, write_rows

HOLMES = Path(__file__).parents[2].parent / "shared" / "data" / "video_holmes"


def holmes_row(**changes):
    values = {
        "video ID": "abc",
        "Question ID": 1,
        "Question Type": "SR",
        "Question": "Who?",
        "Options": {"A": "one", "B": "two"},
        "Answer": "B",
        "Explanation": "because",
    }
    return {**values, **changes}


def test_video_holmes_row(tmp_path):
    path = write_rows(
        tmp_path, [holmes_row(), holmes_row(**{"Question ID": 2, "video ID": "xyz"})], media=["abc.mp4"]
    )
    result = read_video_holmes(path, tmp_path, name="holmes")
    (sample,) = result.samples
    assert (sample.uid, sample.scenario, sample.answer_text) == ("holmes/abc/1", "SR", "two")
    assert sample.video == (tmp_path / "abc.mp4").resolve() and sample.meta["Explanation"] == "because"
    assert result.counts == {"missing": 1} and result.skipped[0].field == "video ID"
    assert len(read_video_holmes(path, tmp_path, check_media=False).samples) == 2


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("Options", {}, "object of letters and texts"),
        ("Options", {"AB": "x"}, "letters A-Z"),
        ("Answer", "C", "one of the letters"),
        ("Question Type", "XX", "allowed: SR, IMC"),
        ("Question", " ", "is empty"),
    ],
)
def test_video_holmes_bad_row(tmp_path, field, value, words):
    path = write_rows(tmp_path, [holmes_row(**{field: value})])
    with pytest.raises(DataError, match=words) as caught:
        read_video_holmes(path, tmp_path)
    assert "row 1" in str(caught.value) and repr(field) in str(caught.value)


def test_video_holmes_path_cannot_leave(tmp_path):
    path = write_rows(tmp_path / "root", [holmes_row(**{"video ID": "../abc"})])
    (tmp_path / "abc.mp4").touch()
    assert read_video_holmes(path, tmp_path / "root").counts == {"outside_root": 1}


@pytest.mark.skipif(
    not HOLMES.is_dir(), reason="the two real Video-Holmes files are not beside the repository"
)
def test_real_video_holmes_files(tmp_path):
    files = sorted(HOLMES.glob("*.json"))
    assert len(files) == 2
    for file in files:
        parsed = read_video_holmes(file, tmp_path, check_media=False)
        assert len(parsed.samples) == 8 and parsed.skipped == ()
        assert {s.scenario for s in parsed.samples} == {"SR", "IMC", "TCI", "TA", "MHR", "PAR", "CTI"}
        assert all(len(s.options) == 6 and s.answer_text != s.answer for s in parsed.samples)
        assert len({s.uid for s in parsed.samples}) == 8
        on_disk = read_video_holmes(file, tmp_path)
        assert on_disk.samples == () and on_disk.counts == {"missing": 8}


def make(root, i, **changes):
    sample = Sample(
        uid=f"s/{i}",
        question=f"Question {i}?",
        answer="A",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=(root / f"clip_{i:05}.mp4").resolve(),
        options=(Option("A", "x"), Option("B", "y")),
        source="s",
    )
    return replace(sample, **changes)


def test_jsonl_round_trip(tmp_path):
    evidence = Evidence(spans_s=((0.5, 1.0),), boxes=((0.1, 0.2, 0.3, 0.4),), note="n")
    samples = (
        make(tmp_path, 0),
        make(tmp_path, 1, evidence=evidence, clip_s=(1.0, 2.0), scenario="logic", meta={"k": [1, None]}),
        make(
            tmp_path, 2, problem_type=ProblemType.OCR, options=(), answer="é\u2028\n{x}", media_type="image"
        ),
    )
    for sample in samples:
        sample.video.touch()
    write_jsonl(samples, tmp_path / "out" / "a.jsonl", tmp_path)
    assert read_jsonl(tmp_path / "out" / "a.jsonl", tmp_path).samples == samples
    named = read_jsonl(tmp_path / "out" / "a.jsonl", tmp_path, name="n").samples
    assert {s.source for s in named} == {"n"} and named[0].uid == "s/0"
    assert str(tmp_path) not in (tmp_path / "out" / "a.jsonl").read_text()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.jsonl"]


@given(
    question=st.text(min_size=1, max_size=50).filter(
        lambda t: t.strip() and not any(0xD800 <= ord(c) < 0xE000 for c in t)
    ),
    options=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4),
)
def test_jsonl_keeps_any_text(tmp_path_factory, question, options):
    root = tmp_path_factory.mktemp("jsonl")
    labelled = tuple(Option(chr(65 + i), text) for i, text in enumerate(options))
    sample = make(root, 1, question=question, options=labelled)
    write_jsonl([sample], root / "a.jsonl", root)
    assert read_jsonl(root / "a.jsonl", root, check_media=False).samples == (sample,)


def test_jsonl_refuses(tmp_path):
    with pytest.raises(DataError, match="not under the media root"):
        write_jsonl([make(tmp_path, 1)], tmp_path / "a.jsonl", tmp_path / "root")
    with pytest.raises(DataError, match="field 'meta' is not JSON"):
        write_jsonl([make(tmp_path, 1, meta={"x": object()})], tmp_path / "a.jsonl", tmp_path)
    write_jsonl([make(tmp_path, 1)], tmp_path / "a.jsonl", tmp_path)
    good = json.loads((tmp_path / "a.jsonl").read_text())
    for changes, words in [
        ({"extra": 1}, "field 'extra' is unknown; put it into 'meta'"),
        ({"options": [["A"]]}, "list of"),
        ({"media_type": "audio"}, "allowed: video, image"),
        ({"problem_type": "quiz"}, "allowed: multiple choice"),
        ({"meta": [1]}, "must be an object"),
    ]:
        (tmp_path / "a.jsonl").write_text(json.dumps({**good, **changes}))
        with pytest.raises(DataError, match="row 1") as caught:
            read_jsonl(tmp_path / "a.jsonl", tmp_path)
        assert words in str(caught.value)


def test_hub_paths(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    def fetch(**kwargs):
        calls.append(kwargs)
        return str(tmp_path / "a.json")

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    assert resolve_hub_path("plain/a.json") == Path("plain/a.json")
    assert resolve_hub_path(Path("hf://datasets/Video-R1/Video-R1-data/x/a.json")) == tmp_path / "a.json"
    resolve_hub_path("hf://datasets/o/n@abc/a.json")
    assert calls == [
        {
            "repo_id": "Video-R1/Video-R1-data",
            "filename": "x/a.json",
            "repo_type": "dataset",
            "revision": None,
        },
        {"repo_id": "o/n", "filename": "a.json", "repo_type": "dataset", "revision": "abc"},
    ]
    with pytest.raises(DataError, match="write hf://datasets/<owner>/<name>/<file>"):
        resolve_hub_path("hf://models/o/n/a.json")

    def offline(**kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(DataError, match="go online or give the path of a local copy"):
        resolve_hub_path("hf://datasets/o/n/a.json")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match="needs huggingface_hub"):
        resolve_hub_path("hf://datasets/o/n/a.json")


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), n=st.integers(1, 5000))
def test_quotas_sum_and_are_fair(weights, n):
    counts = quotas(weights, n)
    assert sum(counts) == n
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - weight / sum(weights) * n) < 1 + 1e-6


def test_quotas_of_the_paper():
    assert quotas([2, 1, 1], 4000) == (2000, 1000, 1000)
    assert quotas([1, 1, 1], 4000) == (1334, 1333, 1333)
    with pytest.raises(ValueError, match="must be positive"):
        quotas([1, 0], 10)


def pool(name, n):
    return [make(Path("/media"), i, uid=f"{name}/{i}", source=name) for i in range(n)]


def test_mixture_is_deterministic_weighted_and_without_replacement():
    sources = [("a", 3.0, pool("a", 100)), ("b", 1.0, pool("b", 100))]
    one = mix(sources, seed=1, num_samples=40)
    assert one == mix(sources, seed=1, num_samples=40)
    assert Counter(s.source for s in one.samples) == {"a": 30, "b": 10}
    assert len({s.uid for s in one.samples}) == 40 and one.short == {}
    assert one.samples != mix(sources, seed=2, num_samples=40).samples
    larger = mix(sources, seed=1, num_samples=80)
    assert {s.uid for s in one.samples} < {s.uid for s in larger.samples}
    assert [s.source for s in one.samples] != sorted(s.source for s in one.samples)
    assert len(mix(sources, seed=1, num_samples=None).samples) == 200


def test_a_short_source_is_said_and_not_filled_up():
    out = mix([("a", 1.0, pool("a", 5)), ("b", 1.0, pool("b", 100))], seed=0, num_samples=40)
    assert Counter(s.source for s in out.samples) == {"a": 5, "b": 20}
    assert out.short == {"a": (20, 5)}
    assert mix([], seed=0, num_samples=10).samples == ()


def sources_on_disk(tmp_path, missing=()):
    rows = [row(problem_id=i, path=f"./src/{i:03}.mp4") for i in range(20)]
    rows += [
        row(
            problem_id=90, data_type="image", path="./src/p.jpg", problem_type="OCR", options=[], solution="x"
        )
    ]
    media = [f"src/{i:03}.mp4" for i in range(20) if i not in missing]
    write_rows(tmp_path / "r1", rows, "r1.json", [*media, "src/p.jpg"])
    holmes = [holmes_row(**{"video ID": f"film{i}"}) for i in range(10)]
    write_rows(tmp_path / "vh", holmes, "vh.json", [f"film{i}.mp4" for i in range(10)])
    return (
        SourceConfig(path=tmp_path / "r1" / "r1.json", root=tmp_path / "r1", weight=2.0),
        SourceConfig(path=tmp_path / "vh" / "vh.json", root=tmp_path / "vh", format="video_holmes"),
    )


def test_load_data_mixes_files(tmp_path):
    cfg = DataConfig(sources=sources_on_disk(tmp_path), num_samples=12, media="video")
    result = load_data(cfg)
    assert Counter(s.source for s in result.samples) == {"r1": 8, "vh": 4}
    assert result == load_data(cfg)
    assert result.counts == {"media_filter": 1} and "1 rows are not video" in result.skipped[0].reason
    everything = load_data(cfg.model_copy(update={"num_samples": None, "media": "both"}))
    assert len(everything.samples) == 31 and everything.skipped == ()
    short = load_data(cfg.model_copy(update={"num_samples": 60}))
    assert len(short.samples) == 30
    assert "40 rows asked, 20 there" in next(s for s in short.skipped if s.status == "short_source").reason


def test_a_missing_clip_shrinks_the_mixture_and_lets_no_other_row_in(tmp_path):
    cfg = DataConfig(sources=sources_on_disk(tmp_path), num_samples=12)
    whole = [s.uid for s in load_data(cfg).samples]
    gone = [uid for uid in whole if uid.startswith("r1/")][:2]
    for uid in gone:
        (tmp_path / "r1" / "src" / f"{int(uid.split('/')[1]):03}.mp4").unlink()
    result = load_data(cfg)
    assert [s.uid for s in result.samples] == [uid for uid in whole if uid not in gone]
    assert result.counts == {"missing": 2}
    assert all(uid in " ".join(s.reason for s in result.skipped) for uid in gone)


def test_equal_source_names_are_refused(tmp_path):
    source = sources_on_disk(tmp_path)[0]
    with pytest.raises(ValueError, match="names must differ"):
        load_data(DataConfig(sources=(source, source)))


def test_decontamination(tmp_path):
    training = [
        make(tmp_path, 1),
        make(tmp_path, 2),
        make(tmp_path, 3, question="What  HAPPENS, then?"),
        make(tmp_path, 4, question="What happens then", options=(Option("A", "other"), Option("B", "y"))),
        make(tmp_path, 5, video=tmp_path / "1.mp4"),
    ]
    evaluation = [
        make(
            tmp_path / "eval", 2, uid="e/2", question="another", video=tmp_path / "eval" / "CLIP_00002.webm"
        ),
        make(
            tmp_path,
            9,
            uid="e/9",
            question="what happens then?",
            options=(Option("A", "Y."), Option("B", "x")),
        ),
        make(tmp_path, 8, uid="e/8", question="a third", video=tmp_path / "eval" / "1.mp4"),
    ]
    result = decontaminate(training, evaluation)
    assert [s.uid for s in result.kept] == ["s/1", "s/4", "s/5"]
    assert [(d.uid, d.by, d.evaluation_uid) for d in result.dropped] == [
        ("s/2", "video", "e/2"),
        ("s/3", "question", "e/9"),
    ]
    assert decontaminate(training, []).kept == tuple(training)


def test_reading_needs_no_torch_and_no_decoder(tmp_path):
    import subprocess

    path = write_rows(tmp_path, [row()])
    code = (
        "import sys; from ffr.data import read_video_r1; from pathlib import Path;"
        f"assert len(read_video_r1(Path({str(path)!r}), Path({str(tmp_path)!r})).samples) == 1;"
        "assert not {'torch', 'transformers', 'av'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_video_r1(path, tmp_path).counts == {}
