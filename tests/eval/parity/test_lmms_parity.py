"""Our profile `lmms_eval` against the scores of the real lmms-eval 0.7.3, item by item."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "lmms_parity.py"


def load_script():
    spec = importlib.util.spec_from_file_location("lmms_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


parity = load_script()
CASES = parity.cases()


@pytest.fixture(scope="module")
def fixture():
    return json.loads(gzip.decompress(parity.FIXTURE.read_bytes()))


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """The interpreter of an environment with lmms-eval: the one that is named, or one built here."""
    named = os.environ.get("LMMS_EVAL_PYTHON")
    if named:
        return named
    try:
        return parity.build_environment(tmp_path_factory.mktemp("lmms"))
    except subprocess.SubprocessError as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        pytest.skip(f"lmms-eval {parity.VERSION} can't be installed here: {lines[-1] if lines else error}")


def differing(cases, scores):
    return [
        (case.question.task, case.question.gold, case.output, mine, theirs)
        for case, theirs in zip(cases, scores, strict=True)
        for mine in (parity.ours(case), parity.ours(case, official=False))
        if not parity.agrees(mine, theirs)
    ]


def test_the_fixture_holds_scores_of_these_cases_and_enough_of_every_kind(fixture):
    assert fixture["lmms_eval"] == parity.VERSION == "0.7.3"
    assert fixture["cases_sha256"] == parity.fingerprint(CASES), "run scripts/lmms_parity.py and commit"
    outputs = Counter(case.question.benchmark for case in CASES)
    assert len(outputs) == 8
    assert min(outputs.values()) >= 500
    styles = {case.question.benchmark: set() for case in CASES}
    for case in CASES:
        styles[case.question.benchmark].add(case.style)
    wanted = {"clean", "tagged", "verbose", "truncated", "other", "options", "mixture"}
    assert all(wanted <= found for found in styles.values())
    values = parity.decode(fixture["scores"])
    for mark in ("judge", "random", "dropped"):
        assert sum(score[mark] for score in values) > 10, mark
    assert {score["value"] for score in values} > {0.0, 0.1, 0.6, 0.9, 1.0}


def test_every_score_and_note_equals_the_harness(fixture):
    assert differing(CASES, parity.decode(fixture["scores"])) == []


def test_the_comparison_sees_one_changed_score(fixture):
    scores = parity.decode(fixture["scores"])
    right = next(i for i, score in enumerate(scores) if score["value"] == 1.0)
    scores[right]["value"] = 0.0
    judged = next(i for i, score in enumerate(scores) if score["judge"])
    scores[judged]["judge"] = False
    changed = {row[2] for row in differing(CASES, scores)}
    assert changed == {CASES[right].output, CASES[judged].output}


def test_the_harness_itself_still_says_so_here_and_on_other_outputs(fixture, harness):
    others = parity.cases(seed=int(os.environ.get("FFR_PARITY_SEED", "4")), per_benchmark=150)
    scores = parity.run_theirs(harness, [*CASES, *others])
    assert parity.encode(scores[: len(CASES)]) == fixture["scores"]
    assert differing(others, scores[len(CASES) :]) == []


def test_the_results_page_is_of_this_fixture(fixture):
    text = parity.PAGE.read_text(encoding="utf-8")
    assert f"0 of {len(CASES)} outputs." in text
    rows = Counter(case.question.benchmark for case in CASES)
    right = Counter(
        case.question.benchmark for case, row in zip(CASES, fixture["scores"], strict=True) if row[0] == 1
    )
    for benchmark, num in rows.items():
        assert f"| {benchmark} | {num} | {right[benchmark]} |" in text
