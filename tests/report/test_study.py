"""The comparison of arms, against hand-worked numbers of a tiny made-up data set."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

from ffr.report.stats import t_interval, wilson_interval
from ffr.report.study import (
    StudyError,
    accuracy_table,
    by_arm,
    paired_gain,
    read_results,
    scenario_table,
    training_table,
    write_study,
)

ROOT = Path(__file__).resolve().parents[2]
# End accuracies by arm and seed. Paired differences: 0.10, 0.06, 0.08 -> mean 0.08, std 0.02,
# half width t(0.975, 2) * 0.02 / sqrt(3) = 4.302653 * 0.011547 = 0.049683.
ENDS = {"grpo": (0.60, 0.62, 0.58), "ffr": (0.70, 0.68, 0.66)}


def rows(arm, seed, end):
    same = {"arm": arm, "seed": seed}
    kinds = {"counting": 0.4, "logic": 0.6}
    first = {"kind": "eval", "step": 0, "first_pass_accuracy": 0.5, "num_questions": 200, "rollouts": 0}
    yield same | first | {"format_rate": 0.9, "by_scenario": kinds}
    for step in range(1, 21):
        # ffr: the teacher is asked for 0.5 early and for 0.25 late; a late step without failures has no rate.
        asked = 0.0 if arm == "grpo" else 0.5 if step <= 10 else 0.5 * (step % 2)
        row = {"kind": "train", "step": step, "rollouts": 12 * step}
        row |= {"ffr/first_pass_accuracy": 0.5 + step / 100, "ffr/intervention_rate": asked}
        if arm == "ffr":
            row |= {
                "ffr/repair_success_rate": 0.5 if asked else None,
                "ffr/repaired_negative_advantage": 0.25,
            }
        yield same | row | {"group/zero_std": 0.1}
    last = {"kind": "eval", "step": 20, "first_pass_accuracy": end, "num_questions": 200, "rollouts": 240}
    yield same | last | {"format_rate": 1.0, "by_scenario": {"counting": end, "logic": end}}


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "micro"
    folder.mkdir()
    for arm, ends in ENDS.items():
        for seed, end in enumerate(ends):
            text = "".join(json.dumps(row) + "\n" for row in rows(arm, seed, end))
            (folder / f"{arm}_{seed}.jsonl").write_text(text)
    return folder


def test_intervals_by_hand():
    # 1, 2, 3: mean 2, std 1, t(0.975, 2) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138.
    interval = t_interval([1.0, 2.0, math.nan, 3.0])
    assert [interval.mean, interval.low, interval.high] == pytest.approx([2, -0.484138, 4.484138], abs=1e-6)
    assert t_interval([0.5]).num == 1 and math.isnan(t_interval([0.5]).low) and t_interval([]).num == 0
    # 8 of 10 at z = 1.959964: (0.8 + 0.192073) / 1.384146 = 0.716740; half width 0.226622.
    share = wilson_interval(8, 10)
    assert [share.mean, share.low, share.high] == pytest.approx([0.8, 0.490162, 0.943318], abs=1e-6)
    assert wilson_interval(0, 0).num == 0 and wilson_interval(0, 4).low == 0.0


def test_the_difference_is_paired_by_seed(results):
    arms = by_arm(read_results(results))
    gain = paired_gain(arms["ffr"], arms["grpo"])
    assert [gain.mean, gain.low, gain.high] == pytest.approx([0.08, 0.030317, 0.129683], abs=1e-6)
    assert paired_gain(arms["ffr"][:1], arms["grpo"][1:]).num == 0


def test_the_tables_say_what_the_rows_say(results):
    runs = read_results(results)
    assert [run.arm for run in runs] == ["grpo"] * 3 + ["ffr"] * 3
    accuracy = accuracy_table(runs).splitlines()
    assert accuracy[2] == "| `grpo` | 3 | 50.0 [50.0, 50.0] | 60.0 [55.0, 65.0] |  | 240 |"
    assert accuracy[3].endswith("| 68.0 [63.0, 73.0] | +8.0 [+3.0, +13.0] | 240 |")
    training = training_table(runs).splitlines()
    assert training[2] == "| `grpo` | 0.0 -> 0.0 | - -> - | - | 10.0 |"
    assert training[3] == "| `ffr` | 50.0 -> 25.0 | 50.0 -> 50.0 | 25.0 | 10.0 |"
    assert scenario_table(runs).splitlines()[2] == "| counting | 40.0 | 60.0 | 68.0 |"


def test_the_script_makes_the_page_with_the_analysis_verbatim(results, tmp_path, monkeypatch, capsys):
    analysis = "## What it means\n\nThe *tax* is `inert` {here}.\n"
    (tmp_path / "micro_analysis.md").write_text(analysis)
    arguments = ["--results", str(results), "--out", str(tmp_path / "micro.md")]
    arguments += ["--analysis", str(tmp_path / "micro_analysis.md")]
    script = ROOT / "scripts" / "make_micro_results.py"
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 3
    page = (tmp_path / "micro.md").read_text()
    assert analysis.strip() in page and "+8.0 [+3.0, +13.0]" in page and str(tmp_path) not in page
    assert "Held-out questions, never seen in training: 200." in page
    for name in ("micro.png", "micro_training.png"):
        assert f"({name})" in page and (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert page.count("| `ffr` | ") == 2 + 3


def test_one_seed_has_no_interval_and_says_so(results, tmp_path):
    for path in results.glob("*_[12].jsonl"):
        path.unlink()
    write_study(results, tmp_path / "one.md")
    assert "70.0 (one seed)" in (tmp_path / "one.md").read_text()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"kind": "eval", "arm": "ffr", "seed": 1, "step": 2},
            r"x\.jsonl: row 1: field first_pass_accuracy: None",
        ),
        ({"kind": "eval", "arm": "ffr", "seed": "1", "step": 2}, "field seed: '1'; write it again"),
        ({"kind": "test", "arm": "ffr", "seed": 1, "step": 2}, "field kind: 'test'; allowed: eval, train"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(StudyError, match=message):
        read_results(tmp_path)


def test_no_results_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(StudyError, match=r"run scripts/run_micro\.py first"):
        read_results(tmp_path)
