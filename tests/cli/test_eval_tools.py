"""`ffr eval show|compare|power|rescore|export` as a user calls them."""

import json

import pytest

from tests.eval.small_runs import item, mvbench_record, row, tagged, write_run


@pytest.fixture
def items():
    return [
        item("mvbench", f"action_count/{i}", mvbench_record(), group=f"v{i // 2}", index=i) for i in range(8)
    ]


@pytest.fixture
def runs(tmp_path, items):
    """The second run is right where the first one is not, but for the last question, which failed."""
    first = [row(i.uid, tagged("B" if k < 3 else "C")) for k, i in enumerate(items)]
    second = [row(i.uid, tagged("B")) for i in items[:-1]] + [row(items[-1].uid, error="timeout: 60 s")]
    return (
        write_run(tmp_path / "base", items, first, name="base"),
        write_run(tmp_path / "ffr", items, second, name="ffr"),
    )


def test_show_prints_and_writes(ffr, runs, tmp_path):
    code, out, _ = ffr(
        "eval", "show", runs[1], "--by-task", "--json", tmp_path / "t.json", "--markdown", tmp_path / "o/t.md"
    )
    assert code == 0
    assert "87.5" in out
    assert "1 without an output (1 timeout); over the 7 outputs alone strict 100.0" in " ".join(out.split())
    data = json.loads((tmp_path / "t.json").read_text())
    assert [line["part"] for line in data["lines"]] == ["", "action_count"]
    assert data["lines"][0]["accuracy"]["robust"]["mean"] == 87.5
    assert data["lines"][0]["covered"]["robust"] == 100.0
    assert "over the 7 outputs alone strict 100.0, robust 100.0" in (tmp_path / "o/t.md").read_text()


def test_show_takes_all_profiles(ffr, runs, tmp_path):
    code, _, _ = ffr("eval", "show", runs[0], "--profiles", "all", "--json", tmp_path / "t.json")
    assert code == 0
    accuracy = json.loads((tmp_path / "t.json").read_text())["lines"][0]["accuracy"]
    assert set(accuracy) == {"robust", "video_r1", "official", "lmms_eval", "vlmevalkit"}


def test_compare_prints_and_writes(ffr, runs, tmp_path):
    code, out, _ = ffr(
        "eval", "compare", *runs, "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md"
    )
    assert code == 0
    assert "count" in out or "wrong there" in out
    (line,) = json.loads((tmp_path / "c.json").read_text())["lines"]
    assert (line["only_first"], line["only_second"], line["num_errors"]) == (0, 4, 1)
    assert line["p_value"] == 2 / 2**4
    assert (line["first"], line["second"], line["difference"]["mean"]) == (37.5, 87.5, 50.0)
    text = (tmp_path / "c.md").read_text()
    assert "| MVBench | 16 | 42 | 37.5 | 87.5 | +50.0 |" in text
    assert "| 8 | 4 | 0 | 4 | 0.125 | 0.125 |" in text


def test_compare_refuses_other_protocols_and_names_the_way_out(ffr, runs, items, tmp_path):
    other = write_run(
        tmp_path / "other",
        items,
        [row(i.uid, "B") for i in items],
        config={"temperature": 0.7, "prompt": "brief", "max_tokens": 512},
    )
    code, _, err = ffr("eval", "compare", runs[0], other)
    assert code == 1
    assert "prompt: video_r1 and brief" in err
    assert "--allow-different" in err
    code, out, _ = ffr("eval", "compare", runs[0], other, "--allow-different")
    assert code == 0
    assert "not the same: prompt: video_r1 and brief" in " ".join(out.split())


def test_power_alone_and_from_runs(ffr, runs, tmp_path):
    code, out, _ = ffr("eval", "power", "--effect", "5", "--icc", "0", "--json", tmp_path / "p.json")
    assert code == 0
    assert "658 questions" in " ".join(out.split())
    assert "LVBench" in out
    assert json.loads((tmp_path / "p.json").read_text())["needed"] == {"paired": 658, "unpaired": 1471}
    code, out, _ = ffr("eval", "power", *runs, "--effect", "5")
    assert code == 0
    assert "discordance 50.0 %" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["power", "--effect", "0"], "effect"),
        (["power", "--effect", "30"], "discordance"),
        (["power", "--clusters", "1"], "--clusters"),
        (["show", "nowhere", "--profiles", "kind"], "kind"),
        (["show", "nowhere", "--profiles", ","], "--profile"),
        (["compare", "a", "b", "--profile", "robust,official"], "--profile"),
        (["compare", "a", "b", "--draws", "3"], "--draws"),
        (["export", "nowhere", "--to", "opencompass"], "lmms-eval"),
    ],
)
def test_wrong_words_are_usage_errors(ffr, words, message):
    code, _, err = ffr("eval", *words)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("command", [["show"], ["rescore"], ["export", "--to", "lmms-eval"], ["power"]])
def test_a_folder_without_a_run_is_named(ffr, tmp_path, command):
    code, _, err = ffr("eval", *command, tmp_path)
    assert code == 1
    assert "is a run of `ffr eval`" in err or f"{tmp_path} a run of `ffr eval`" in err


def test_rescore_writes_scores_once_and_keeps_outputs(ffr, runs):
    path = runs[1] / "rows.jsonl"
    before = [json.loads(line) for line in path.read_text().splitlines()]
    code, out, _ = ffr("eval", "rescore", runs[1], "--profile", "robust,video-r1")
    assert code == 0
    assert "7 outputs scored under robust, video_r1: 7 got another score" in out
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert [{**row, "scores": {}} for row in after] == [{**row, "scores": {}} for row in before]
    assert [row["scores"].get("robust", {}).get("value") for row in after] == [1.0] * 7 + [None]
    written = path.read_bytes()
    code, out, _ = ffr("eval", "rescore", runs[1], "--profile", "robust,video-r1")
    assert (code, path.read_bytes()) == (0, written)
    assert "0 got another score" in out
    code, _, _ = ffr("eval", "rescore", runs[1])
    assert set(json.loads(path.read_text().splitlines()[0])["scores"]) == {
        *("robust", "video_r1", "official", "lmms_eval", "vlmevalkit"),
    }
    assert (runs[1] / "table.md").read_text().startswith("# ffr")
    assert not list(runs[1].glob(".*.part"))


def test_rescore_mends_wrong_scores_and_keeps_superseded_lines(ffr, tmp_path, items):
    wrong = {"robust": {"value": 0.0, "extracted": "C", "rule": "old"}}
    rows = [
        row(items[0].uid, error="timeout: 60 s"),
        row(items[0].uid, tagged("B"), scores=wrong),
        row(items[1].uid, tagged("B"), scores={**wrong, "kept": wrong["robust"]}),
    ]
    run = write_run(tmp_path / "r", items, rows)
    with (run / "rows.jsonl").open("ab") as file:
        file.write(b'{"config_hash": "cut')
    assert ffr("eval", "rescore", run, "--profile", "robust")[0] == 0
    lines = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    assert [line["scores"].get("robust", {}).get("value") for line in lines] == [None, 1.0, 1.0]
    assert lines[0]["error"] == "timeout: 60 s"
    assert lines[2]["scores"]["kept"]["rule"] == "old"


def test_rescore_leaves_the_file_alone_if_a_record_is_broken(ffr, tmp_path, items):
    broken = items[0].model_copy(update={"record": {"question": "?"}})
    run = write_run(tmp_path / "r", [broken], [row(broken.uid, "B")])
    before = (run / "rows.jsonl").read_bytes()
    code, _, err = ffr("eval", "rescore", run)
    assert code == 1
    assert "candidates" in err
    assert (run / "rows.jsonl").read_bytes() == before


def test_export_says_what_it_wrote(ffr, runs, tmp_path):
    code, out, _ = ffr("eval", "export", runs[1], "--to", "lmms-eval")
    assert code == 0
    path = runs[1] / "export" / "lmms-eval" / "frames16_seed42" / "mvbench_action_count.json"
    assert len(json.loads(path.read_text())["logs"]) == 8
    assert "7 outputs in 1 files" in out
    assert "1 of 8 rows have no output" in out
    code, _, err = ffr("eval", "export", runs[1], "--to", "official", "-o", tmp_path / "x")
    assert code == 1
    assert "nothing could be exported" in err
