"""Exports in the forms that other harnesses read, on records in every benchmark's official shape."""

import ast
import csv
import io
import json
from datetime import datetime

import pytest

from ffr.eval.base import PROFILES
from ffr.eval.benchmarks import BENCHMARKS, get_benchmark
from ffr.eval.benchmarks.samples import write_sample
from ffr.eval.export import EXPORTS, NO_OUTPUT, export_run
from ffr.eval.export.lmms_eval import task_name
from ffr.eval.export.vlmevalkit import tsv
from ffr.eval.results import load_run
from ffr.eval.runner import item_row
from ffr.eval.scorers import score, score_item
from tests.eval.small_runs import row, tagged, write_run

HOSTILE = ["", "nan", 'A\tB\n"C"', "\x00 null", "naïve \U0001f600", "x" * 40_000]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Questions of every benchmark, in the order of its files."""
    found = []
    for name in BENCHMARKS:
        root = write_sample(name, tmp_path_factory.mktemp(name))
        found += [item_row(item) for item in get_benchmark(name).load(root).items]
    return found


@pytest.fixture(scope="module")
def run(items, tmp_path_factory):
    """Every question answered rightly with tags, but one of each benchmark not at all."""
    left_out = {name: next(i.uid for i in items if i.benchmark == name) for name in BENCHMARKS}
    rows = [row(i.uid, tagged(i.gold)) for i in items if i.uid != left_out[i.benchmark]]
    rows.append(row(left_out["mvbench"], error="timeout: 60 s"))
    return load_run(write_run(tmp_path_factory.mktemp("run"), items, rows, name="org/student 1"))


def exported(run, to, folder):
    done = export_run(run, to, folder)
    assert all(path.is_file() and folder in path.parents for path in done.files)
    return done, folder / "frames16_seed42"


def read_tsv(path):
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t"))


def test_lmms_eval_files_are_what_from_log_reads(run, tmp_path, items):
    done, folder = exported(run, "lmms-eval", tmp_path)
    read = {}
    for path in folder.glob("*.json"):  # what `from_log` does with each file
        data = json.loads(path.read_text())
        assert data["args"]["limit"] is None
        assert {"model", "model_args"} <= set(data["args"])
        datetime.strptime(data["time"], "%m%d_%H%M")
        read[data["model_configs"]["task"]] = {e["doc_id"]: e["resps"][0] for e in data["logs"]}
    asked = {task_name(i) for i in items} - {""}
    assert set(read) == asked
    assert {"mmvu_val", "vsibench", "video_mmmu_adaptation", "tempcompass_multi_choice"} <= asked
    for one in items:
        if task_name(one):
            row = run.row(one.uid, next(c for c in run.cells() if c.benchmark == one.benchmark), 42)
            text = NO_OUTPUT if row is None or row.error else row.raw
            assert read[task_name(one)][one.source_index] == [text]
    for texts in read.values():
        assert sorted(texts) == list(range(len(texts)))  # it asks for every row of the split
    assert len(read["mmvu_val"]) == 1000
    assert any("microworld" in note for note in done.notes)
    assert any("--model from_log" in note for note in done.notes)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_scorer_finds_an_answer_in_the_text_for_a_missing_output(items, profile):
    for one in items:
        found = score_item(one, NO_OUTPUT, profile)
        assert found.value == 0.0, (one.uid, found)
        if found.note == "dropped_by_harness":  # The row itself has no place in its average.
            assert score_item(one, tagged(one.gold), profile).note == found.note, one.uid


def test_vlmevalkit_files_have_the_data_sets_own_columns(run, tmp_path):
    done, folder = exported(run, "vlmevalkit", tmp_path)
    files = {path.name: read_tsv(path) for path in folder.rglob("*.tsv")}
    name = "org-student-1"
    mvbench = files[f"{name}_MVBench_MP4_16frame.tsv"]
    assert list(mvbench[0]) == [
        *("index", "task_type", "prefix", "video", "question", "answer", "candidates", "prediction"),
    ]
    assert [row["index"] for row in mvbench] == [str(k) for k in range(len(mvbench))]
    assert mvbench[0]["answer"] in ast.literal_eval(mvbench[0]["candidates"])
    assert mvbench[0]["prediction"] == NO_OUTPUT
    lvb = files[f"{name}_LongVideoBench_16frame.tsv"]
    assert {"correct_choice", "candidates", "question_category", "duration_group"} <= set(lvb[0])
    assert lvb[0]["video_path"].startswith("./videos/")
    holmes = files[f"{name}_Video_Holmes_16frame.tsv"]
    assert ast.literal_eval(holmes[0]["candidates"])[0].startswith("A. ")
    assert holmes[1]["prediction"] == tagged(holmes[1]["answer"])
    mmmu = files[f"{name}_VideoMMMU_16frame.tsv"]
    categories = [row["category"] for row in mmmu]
    assert categories == sorted(categories)
    assert "question_only" not in categories
    assert isinstance(json.loads(mmmu[0]["options"]), list)
    mcq = files[f"{name}_TempCompass_MCQ_16frame.tsv"]
    assert {row["task_type"] for row in mcq} <= {"multi-choice", "caption_matching"}
    assert "\n" not in mcq[0]["question"]
    assert isinstance(ast.literal_eval(mcq[0]["candidates"]), list)
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["MVBench_MP4_16frame"] == {
        "class": "MVBench_MP4",
        "dataset": "MVBench_MP4",
        "nframe": 16,
    }
    assert any("mmvu: VLMEvalKit does not have it" in note for note in done.notes)


def test_hostile_outputs_survive_tabs_and_pandas(items, tmp_path):
    asked = [i for i in items if i.benchmark == "mvbench"][: len(HOSTILE)]
    rows = [row(i.uid, text) for i, text in zip(asked, HOSTILE, strict=False)]
    done = export_run(load_run(write_run(tmp_path / "r", asked, rows)), "vlmevalkit", tmp_path / "out")
    texts = [r["prediction"] for r in read_tsv(next(p for p in done.files if p.suffix == ".tsv"))]
    kept = [NO_OUTPUT, "nan ", 'A\tB\n"C"', "� null", "naïve \U0001f600", "x" * 40_000]
    assert texts == kept[: len(texts)]
    assert len(texts) >= 4
    assert tsv([{"a": 'x"y', "b": "1\t2"}]) == 'a\tb\n"x""y"\t"1\t2"\n'


def test_video_r1_results_add_up(run, tmp_path, items):
    done, folder = exported(run, "video-r1", tmp_path)
    assert len(done.files) == len(BENCHMARKS)
    for name in BENCHMARKS:
        data = json.loads((folder / f"eval_{name}_org-student-1_greedy_output.json").read_text())
        results = data["results"]
        assert len(results) == sum(i.benchmark == name for i in items)
        assert [r["output"] for r in results].count("<answer>error</answer>") == 1
        for one in results:
            assert {"problem", "problem_type", "solution", "prediction", "correct", "process"} <= set(one)
            assert one["correct"] == (one["reward"] == 1.0)
        regression = [r["reward"] for r in results if r["problem_type"] == "regression"]
        others = [r["reward"] for r in results if r["problem_type"] != "regression"]
        (final,) = data["final_acc"]
        assert final["mean_acc"] == pytest.approx(sum(others) / len(others) if others else 0.0)
        assert final["mean_mra"] == pytest.approx(sum(regression) / len(regression) if regression else 0.0)
    vsi = json.loads((folder / "eval_vsi_bench_org-student-1_greedy_output.json").read_text())
    assert vsi["final_acc"][0]["mean_mra"] >= 0.5
    micro = json.loads((folder / "eval_microworld_org-student-1_greedy_output.json").read_text())
    source = next(i for i in items if i.benchmark == "microworld")
    assert {key: micro["results"][0][key] for key in source.record} == source.record
    assert micro["results"][1]["process"] == "<think>look</think>"


def test_official_files(run, tmp_path, items):
    done, folder = exported(run, "official", tmp_path)
    tree = json.loads((folder / "tempcompass/predictions/org-student-1/multi-choice.json").read_text())
    answered = [entry for dims in tree.values() for rows in dims.values() for entry in rows]
    wanted = [i for i in items if i.benchmark == "tempcompass" and i.task == "multi-choice"]
    assert len(answered) == len(wanted)
    assert {"question", "answer", "prediction"} <= set(answered[0])
    for video, dims in tree.items():
        assert any(i.record["video_id"] == video and i.record["dim"] in dims for i in wanted)
    letters = json.loads((folder / "lvbench/org-student-1.json").read_text())
    lvbench = [i for i in items if i.benchmark == "lvbench"]
    # No uid is left out: the official script passes over those that are.
    assert set(letters) == {str(i.record["uid"]) for i in lvbench}
    assert [letters[str(i.record["uid"])] for i in lvbench] == ["", *(i.gold for i in lvbench[1:])]
    mmvu = json.loads((folder / "mmvu/org-student-1.json").read_text())
    assert [r["response"] for r in mmvu][1:] == [tagged(i.gold) for i in items if i.benchmark == "mmvu"][1:]
    texts = json.loads((folder / "longvideobench/org-student-1.json").read_text())
    assert set(texts) == {i.record["id"] for i in items if i.benchmark == "longvideobench"}
    assert any("video_holmes: its authors publish no form" in note for note in done.notes)
    assert not (folder / "mvbench").exists()


def test_official_ratings_can_be_computed_from_the_file(run, tmp_path):
    """TempCompass's rules read `prediction` and `answer` alone: equal to our profile on the item."""
    _, folder = exported(run, "official", tmp_path)
    tree = json.loads((folder / "tempcompass/predictions/org-student-1/yes_no.json").read_text())
    for dims in tree.values():
        for rows in dims.values():
            for entry in rows:
                value = float(entry["prediction"].lower().startswith(entry["answer"].lower()))
                record = {"question": entry["question"], "answer": entry["answer"], "task": "yes_no"}
                assert score("tempcompass", record, entry["prediction"], profile="official").value == value


def test_thoughts_apart_are_put_back_where_the_form_wants_one_text(items, tmp_path):
    one = next(i for i in items if i.benchmark == "mvbench")
    run = load_run(write_run(tmp_path / "r", [one], [row(one.uid, "<answer>B</answer>", reasoning="look")]))
    done = export_run(run, "video-r1", tmp_path / "out")
    (result,) = json.loads(done.files[0].read_text())["results"]
    assert result["output"] == tagged("B")


def test_every_set_of_outputs_has_its_folder(items, tmp_path):
    one = next(i for i in items if i.benchmark == "lvbench")
    rows = [row(one.uid, f"{n} {s}", num_frames=n, seed=s) for n in (16, 32) for s in (1, 2)]
    run = load_run(write_run(tmp_path / "r", [one], rows, frames=(16, 32), seeds=(1, 2)))
    done = export_run(run, "lmms-eval", tmp_path / "out")
    found = {p.parent.name: json.loads(p.read_text())["logs"][one.source_index]["resps"] for p in done.files}
    assert found == {f"frames{n}_seed{s}": [[f"{n} {s}"]] for n in (16, 32) for s in (1, 2)}


def test_unknown_forms_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=", ".join(EXPORTS)):
        export_run(run, "opencompass", tmp_path)
