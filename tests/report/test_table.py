"""The find/fix/reason table, against hand-worked windows."""

import io
import itertools
import math

import pytest
from rich.console import Console

from ffr.report import RunWriter, summary_table, summary_text
from ffr.report.table import windows


def rows():
    # Steps 0 and 1: 8 rollouts each, 6 and 2 failed, 3 and 2 of them repaired -> 5 of 8 repaired = 0.625,
    # while the mean of the per-step rates would be (0.5 + 1.0) / 2 = 0.75.
    return [
        {
            "step": 0,
            "ffr/first_pass_accuracy": 0.25,
            "ffr/intervention_rate": 0.75,
            "ffr/repair_success_rate": 0.5,
        },
        {
            "step": 1,
            "ffr/first_pass_accuracy": 0.75,
            "ffr/intervention_rate": 0.25,
            "ffr/repair_success_rate": 1.0,
        },
        {
            "step": 2,
            "ffr/first_pass_accuracy": 1.0,
            "ffr/intervention_rate": 0.0,
            "ffr/repair_success_rate": math.nan,
        },
        {"step": 2, "eval/seconds": 3.0},
        {"step": 9, "eval/seconds": 3.0},
    ]


def test_the_repair_rate_of_a_window_is_the_share_of_its_failures():
    early, late = windows(rows(), num_windows=2)
    assert (early.label, late.label) == ("0-1", "2")
    assert early.values["repair_rate"] == pytest.approx(0.625, abs=1e-12)
    assert early.values["first_pass_accuracy"] == pytest.approx(0.5, abs=1e-12)
    assert math.isnan(late.values["repair_rate"]) and late.values["first_pass_accuracy"] == 1.0


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_windows_partition_the_steps(count):
    many = [{"step": step, "reward": float(step)} for step in range(7)]
    found = windows(many, num_windows=count)
    assert len(found) == min(count, 7)
    assert found[0].first_step == 0 and found[-1].last_step == 6
    assert all(a.last_step + 1 == b.first_step for a, b in itertools.pairwise(found))


def test_both_forms_say_the_same(tmp_path):
    writer = RunWriter(tmp_path)
    for row in rows()[:3]:
        writer.metrics(row["step"], {key: value for key, value in row.items() if key != "step"})
    text = summary_text(tmp_path, num_windows=2)
    assert text.splitlines()[0].split() == ["steps", "right", "first", "asked", "repaired"]
    assert text.splitlines()[2].split() == ["0-1", "50", "%", "50", "%", "62", "%"]
    assert text.splitlines()[3].split() == ["2", "100", "%", "0", "%", "-"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table(tmp_path, num_windows=2))
    assert "62 %" in console.export_text()


def test_an_empty_run_has_an_empty_table(tmp_path):
    assert summary_text(tmp_path) == "find, fix, reason: no metrics yet"
    assert summary_table(tmp_path).row_count == 0
