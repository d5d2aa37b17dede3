"""`ffr report profile`: phases, slow steps and their reasons, and what to change."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffr.cli.main import main
from ffr.report.profile import profile_run

PHASE_S = {"observe": 1.0, "generate": 10.0, "vision": 1.0, "fix": 4.0, "score": 2.0, "update": 6.0}


def write(run: Path, steps: list[dict[str, Any]], settings: dict[str, Any] | None = None) -> Path:
    run.mkdir(exist_ok=True)
    lines = []
    for number, step in enumerate(steps, start=1):
        row = {f"time/{name}_s": step.get(name, seconds) for name, seconds in PHASE_S.items()}
        row["time/step_s"] = sum(row.values())
        lines.append(json.dumps({"step": number, **row, **{k: v for k, v in step.items() if "/" in k}}))
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if settings is not None:
        (run / "config.json").write_text(json.dumps(settings))
    return run


def test_phases_have_medians_and_shares_of_all_the_time(tmp_path: Path) -> None:
    run = write(tmp_path, [{}, {"fix": 30.0}, {}, {}])
    found = profile_run(run)
    assert (found.num_steps, found.step_s) == (4, 24.0)
    phases = {phase.name: phase for phase in found.phases}
    assert list(phases) == ["observe", "generate", "vision", "fix", "score", "update"]  # no save, no other
    fix = phases["fix"]
    assert (fix.median_s, fix.longest_s) == (4.0, 30.0)
    assert fix.share == pytest.approx((3 * 4 + 30) / (3 * 24 + 50))
    assert sum(phase.share for phase in found.phases) == pytest.approx(1.0)


def test_a_slow_step_is_named_with_the_phase_that_made_it_slow(tmp_path: Path) -> None:
    run = write(tmp_path, [{}, {"fix": 30.0}, {}, {"observe": 8.0, "update": 7.0}, {}])
    first, second = profile_run(run).slowest
    assert (first.step, first.phase, first.phase_s, first.usual_s) == (2, "fix", 30.0, 4.0)
    assert (second.step, second.phase, second.extra_s) == (4, "observe", 7.0)
    assert len(profile_run(run, num_slowest=1).slowest) == 1


def test_an_even_run_has_no_slow_step_and_no_warning(tmp_path: Path) -> None:
    found = profile_run(write(tmp_path, [{}] * 3))
    assert found.slowest == () and found.warnings == ()


@pytest.mark.parametrize(
    ("step", "settings", "phrase"),
    [
        ({"fix": 34.0}, {"fix": {"teacher": {"concurrency": 7}}},
         "the teacher is waited for 63% of the time: raise fix.teacher.concurrency (now 7)"),
        ({"observe": 9.0}, {}, "decoding takes 28% of the time: set observe.cache_dir"),
        ({"observe": 9.0}, {"observe": {"cache_dir": "c"}}, "on a slow disk?"),
        ({"vision": 20.0}, {}, "model.freeze_vision = true keeps"),
        ({"vision": 20.0}, {"model": {"freeze_vision": True}}, "lower observe.max_frame_px"),
        ({"generate": 60.0}, {}, "sampling takes 81% of the time: raise train.questions_per_step"),
        ({"find/truncated_rate": 0.5}, {"find": {"max_completion_tokens": 64}},
         "50% of the rollouts are cut off at find.max_completion_tokens = 64"),
        ({"reason/zero_advantage_groups": 0.75}, {}, "75% of the groups are dead"),
        ({"sampler/logprob_mismatch": 0.2}, {}, "differ by 0.2 in log-probability"),
        ({"memory/peak_gib": 77.0, "memory/device_gib": 79.2}, {}, "77.0 of 79.2 GiB are used"),
    ],
)  # fmt: skip
def test_what_stands_out_is_said_with_what_to_change(
    tmp_path: Path, step: dict[str, Any], settings: dict[str, Any], phrase: str
) -> None:
    (note,) = profile_run(write(tmp_path, [step] * 3, settings)).warnings
    assert phrase in note


def test_the_command_prints_bars_numbers_and_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    numbers = {"speed/generate_tok_s": 812.4, "mfu/step": 0.314, "sampler/logprob_mismatch": 0.0031}
    run = write(tmp_path, [numbers, {"fix": 30.0} | numbers, numbers])
    assert main(["report", "profile", str(run)]) == 0
    out = capsys.readouterr().out
    assert "3 steps, 24 s each (median)" in out
    rows = [line.split() for line in out.splitlines() if "%" in line and "\u2588" in line]
    bars = {words[0]: " ".join(words).count("\u2588") for words in rows}
    assert bars["generate"] > bars["update"] > bars["score"] > 0
    for phrase in (
        "812  tokens sampled",
        "31.4%",
        "0.0031",
        "fix: 30 s, usually 4 s",
        "the teacher is waited",
    ):
        assert " ".join(phrase.split()) in " ".join(out.split())
    assert main(["report", str(run)]) == 0  # the table is still the command's default
    assert "find, fix, reason" in capsys.readouterr().out


def test_a_run_without_times_is_refused_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n')
    assert main(["report", "profile", str(tmp_path)]) == 1
    assert "has no step with time/*_s" in capsys.readouterr().err


def test_profiles_are_read_without_torch(tmp_path: Path) -> None:
    run = write(tmp_path, [{}])
    code = (
        "import sys\nfrom ffr.cli.main import main\n"
        f"assert main(['report', 'profile', {str(run)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
