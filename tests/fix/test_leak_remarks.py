"""Remarks on the attempt, the film and the view pass the gate; content dressed as a remark does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ffr.fix.audit import audit_rows, read_patches
from ffr.fix.leak import check_leak
from tests.fix.test_leak import make_patch, make_sample

LEAKS = Path(__file__).parents[1] / "leaks"
TOWER = make_sample(
    "What happens to the tower?",
    ("It falls over", "It stays standing", "The cat climbs on it", "A child removes a block"),
    "A",
)
LIMP = make_sample("Why does the man limp?", (), "he slipped on the ice", "free-form")
SIGN = make_sample("What is written on the sign?", (), "Harbour", "OCR")


@pytest.mark.parametrize(
    ("sample", "guidance"),
    [
        (TOWER, "Your answer is based on frame 3. Compare the tower in frames 5-8."),
        (TOWER, "You stopped at frame 4; watch the tower in frames 5-8, too."),
        (LIMP, "You described a dog, but check what the man does in frames 5-8."),
        (LIMP, "The camera moves, so follow the man through the cut."),
        (SIGN, "The sign is faint; zoom in on it in frames 5-8."),
        (SIGN, "The sign is hidden by the waiter in frame 6. Use a later frame."),
        (SIGN, "The sign is out of focus at the start, so use the frames after it."),
    ],
)
def test_remarks_pass(sample, guidance):
    assert check_leak(make_patch(guidance), sample).reasons == ()


@pytest.mark.parametrize(
    ("sample", "guidance"),
    [
        (TOWER, "The clip shows the blocks scattered on the carpet."),
        (TOWER, "Your answer comes from the time when the tower was still complete."),
        (TOWER, "You described a tower that is upright."),
        (LIMP, "The video shows him sliding on the frozen pond."),
        (LIMP, "The camera captures his tumble."),
        (LIMP, "You answered before the skid on the frozen pond happened."),
        (LIMP, "You missed the frozen pond."),
        (SIGN, "The sign is faint but names the place where ships lie."),
    ],
)
def test_content_dressed_as_a_remark_is_caught(sample, guidance):
    assert check_leak(make_patch(guidance), sample).leaked


def test_the_independent_sets_keep_what_was_reached():
    rows = [r for name in ("independent", "independent2") for r in read_patches(LEAKS / f"{name}.jsonl").rows]
    rates = audit_rows(rows).tables["label"]
    assert {label: rate.total for label, rate in rates.items()} == {"direct": 55, "partial": 55, "clean": 110}
    assert rates["direct"].share >= 0.98
    assert rates["partial"].share >= 0.90
    assert rates["clean"].share <= 0.05


def test_the_page_of_results_is_current():
    script = LEAKS.parents[1] / "scripts" / "make_leak_results.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or "run scripts/make_leak_results.py and commit the page"
