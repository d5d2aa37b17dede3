"""docs/results/agreement.md: not stale, and its recast questions keep their answers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from ffr.eval.benchmarks import PUBLIC
from ffr.eval.scorers import score
from tests.eval.small_runs import item, row, tagged, write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_agreement.py"
MICRO = {
    "problem_id": 1,
    "problem": "Which ball stops first?",
    "problem_type": "multiple choice",
    "options": ["A. the red one", "B. the blue one", "C. the green one"],
    "solution": "<answer>B</answer>",
    "path": "1.mp4",
    "scenario": "temporal",
}


@pytest.fixture(scope="module")
def agreement():
    spec = importlib.util.spec_from_file_location("make_agreement", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_not_stale(agreement):
    written = agreement.PAGE.read_text(encoding="utf-8")
    assert written == agreement.page(), "run scripts/make_agreement.py and commit docs/results/agreement.md"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_recast_question_keeps_its_answer(agreement, name):
    record = agreement.recast(name, MICRO)
    assert [score(name, record, tagged(letter)).value for letter in "ABC"] == [0.0, 1.0, 0.0]
    assert score(name, record, "B", profile="official").value == 1.0
    assert score(name, record, "B", profile="lmms_eval").value == 1.0


def test_a_kept_run_holds_records_and_outputs_and_no_paths(agreement, tmp_path):
    items = [item("microworld", str(i), MICRO) for i in range(3)]
    rows = [row(items[0].uid, tagged("B")), row(items[1].uid, tagged("C")), row(items[2].uid, error="x: y")]
    path = agreement.keep(write_run(tmp_path / "run", items, rows, name="a/b"), tmp_path / "kept")
    assert path.name == "a-b.jsonl.gz"
    kept = agreement.kept_outputs(path)
    assert [one["raw"] for one in kept] == [tagged("B"), tagged("C")]
    assert "mp4" not in json.dumps(kept)
    text = "\n".join(agreement.real_part(path))
    assert "a-b: 2 outputs" in text
    assert "| MicroWorld, as it is | 2 | 50.0 | 50.0 |" in text
    assert path.read_bytes() == agreement.keep(tmp_path / "run", tmp_path / "kept").read_bytes()


def test_the_share_that_rules_cannot_decide_stands_behind_the_slash(agreement):
    found = [
        agreement.Score(1.0, "B", "letter"),
        agreement.Score(0.0, "", "none", "needs_judge"),
        agreement.Score(0.0, "", "none", agreement.NO_TASK),
    ]
    assert agreement.cell(found) == "50.0 / 50 %"
    assert agreement.cell(found[2:]) == "-"
    assert agreement.cell(found[:1]) == "100.0"
