"""The progress sink shows the five numbers and the ETA, in a terminal and in a log."""

import io
import re

import pytest
from rich.console import Console

from ffr.cli.progress import RichProgress, duration, read_columns

STEP = {
    "find/first_pass_accuracy": 0.5,
    "fix/intervention_rate": 0.25,
    "fix/repair_rate": 0.75,
    "train/loss": 0.1234567,
    "policy/kl_ref": 3.0,
}


def shown(display, *, terminal, steps=3, summary=None):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, color_system=None, legacy_windows=False)
    sink = RichProgress(10, display=display, console=console)
    for step in range(1, steps + 1):
        sink.metrics(step, STEP)
        sink.traces(step, ())
    sink.finish({"reason/final_accuracy": 0.875, "fix/images": 3.0} if summary is None else summary)
    sink.close()
    return out.getvalue()


def test_plain_prints_one_line_a_step():
    lines = shown("plain", terminal=True).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("step 1/10  first 50%  asked 25%  repaired 75%  loss 0.1235  ETA -")
    assert re.search(r"^step 3/10 .* ETA \d+:\d\d$", lines[2])
    assert lines[3] == "done: reason/final_accuracy 0.875"


def test_rich_outside_a_terminal_is_plain():
    assert shown("rich", terminal=False).startswith("step 1/10")


def test_rich_draws_a_bar_with_all_columns():
    text = shown("rich", terminal=True)
    for word in ("step", "3/10", "first 50%", "asked 25%", "repaired 75%", "loss 0.1235", "ETA"):
        assert word in text


def test_what_a_step_costs_is_shown_where_it_is_measured():
    cost = {"speed/generate_tok_s": 1234.4, "time/teacher_share": 0.61, "memory/peak_gib": 31.27}
    out = io.StringIO()
    sink = RichProgress(10, display="plain", console=Console(file=out, width=160))
    sink.metrics(1, STEP | cost)
    line = out.getvalue().strip()
    assert "loss 0.1235  sampled/s 1234  teacher 61%  memory 31.3 GiB  ETA -" in line
    assert len(line) < 120  # one line of a usual log


def test_rich_averages_over_steps():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    sink = RichProgress(10, console=console, smoothing=0.5)
    sink.metrics(1, {"train/loss": 1.0})
    sink.metrics(2, {"train/loss": 0.0})
    sink.metrics(3, {"train/loss": float("nan")})
    sink.close()
    assert sink._averages == {"loss": 0.5}


def test_none_prints_nothing():
    assert shown("none", terminal=True) == ""


def test_a_step_without_repairs_shows_a_dash_not_a_zero():
    assert "repaired" not in read_columns({"fix/intervention_rate": 0.0, "fix/repair_rate": float("nan")})
    assert read_columns({"ffr/first_pass_accuracy": 1}) == {"first": 1.0}


def test_a_summary_without_numbers_is_still_an_end():
    assert shown("plain", terminal=False, summary={"x": float("nan")}).splitlines()[-1] == "done"


def test_more_steps_than_planned_do_not_break_the_bar():
    assert "12/12" in shown("rich", terminal=True, steps=12)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3725.0, "1:02:05"), (-1, "0:00")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
