"""The run writer: nothing is counted twice, nothing secret is written, a kill costs one line at most."""

import json
import math
import os
import subprocess
import sys

import pytest

from ffr.report.metrics import RunWriter, metric, nanmean, read_metrics, redact
from ffr.report.trace import TraceWarning, read_traces
from tests.report import fake_run


def steps(run):
    return [row["step"] for row in read_metrics(run)]


def test_rows_come_back_as_written_and_non_finite_is_nan(tmp_path):
    writer = RunWriter(tmp_path)
    writer.metrics(0, {"loss": 0.5, "ffr/first_pass_accuracy": 0.25})
    writer.metrics(1, {"loss": float("nan"), "x": float("inf"), "step": 9})
    first, second = read_metrics(tmp_path)
    assert first == {"step": 0, "loss": 0.5, "ffr/first_pass_accuracy": 0.25}
    assert second["step"] == 1 and math.isnan(second["loss"]) and math.isnan(second["x"])
    assert json.loads(writer.metrics_path.read_text().splitlines()[1])["loss"] is None


def test_truncate_after_drops_the_steps_that_are_done_again(tmp_path):
    fake_run.write_run(tmp_path, num_steps=6)
    before = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:4]
    writer = RunWriter(tmp_path)
    assert writer.truncate_after(4) == 2 + 1
    assert steps(tmp_path) == [0, 1, 2, 3]
    assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")[:4] == before
    assert {row.step for row in read_traces(tmp_path)} == {0, 2}
    writer.metrics(4, {"loss": 1.0})
    writer.traces(4, [fake_run.trace(4, 1, ["right"])])
    assert steps(tmp_path) == [0, 1, 2, 3, 4]


def test_a_step_that_is_there_already_is_replaced_with_a_warning(tmp_path):
    fake_run.write_run(tmp_path, num_steps=6)
    writer = RunWriter(tmp_path)
    with pytest.warns(TraceWarning, match="holds steps up to 5 and the run goes on at 4"):
        writer.traces(4, [fake_run.trace(4, 1, ["right"])])
    writer.metrics(4, {"loss": 1.0})
    writer.metrics(4, {"eval": 1.0})
    assert steps(tmp_path) == [0, 1, 2, 3, 4, 4]
    assert [row.sample.uid for row in read_traces(tmp_path) if row.step == 4] == ["micro/1"]


def test_going_on_after_the_last_step_drops_nothing(tmp_path, recwarn):
    RunWriter(tmp_path).metrics(0, {"loss": 1.0})
    RunWriter(tmp_path).metrics(1, {"loss": 0.5})
    assert steps(tmp_path) == [0, 1] and not recwarn.list


def test_a_kill_in_the_middle_of_a_row_costs_that_row(tmp_path):
    writer = RunWriter(tmp_path)
    writer.metrics(0, {"loss": 1.0})
    writer.metrics(1, {"loss": 0.5})
    writer.metrics_path.write_bytes(writer.metrics_path.read_bytes()[:-4])
    with pytest.warns(TraceWarning, match="row 2 is cut off"):
        assert steps(tmp_path) == [0]
    with pytest.warns(TraceWarning, match="cut-off last row was dropped"):
        writer = RunWriter(tmp_path)
    writer.metrics(1, {"loss": 0.25})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [1.0, 0.25]


def test_a_broken_row_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: row 2: .*delete the row"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"loss": 0}\n')
    with pytest.raises(ValueError, match="row 1: field step"):
        read_metrics(tmp_path)


def test_secrets_are_masked_and_names_of_variables_are_not():
    config = {
        "teacher": {
            "api_key": "sk-1",
            "api_key_env": "KEY_NAME",
            "max_tokens": 5,
            "base_url": "http://u:p@host:8/v1",
        },
        "hub_token": "hf_1",
        "password": "",
        "list": [{"secret": "x"}],
    }
    assert redact(config) == {
        "teacher": {
            "api_key": "(hidden)",
            "api_key_env": "KEY_NAME",
            "max_tokens": 5,
            "base_url": "http://host:8/v1",
        },
        "hub_token": "(hidden)",
        "password": "",
        "list": [{"secret": "(hidden)"}],
    }


def test_the_environment_says_versions_and_no_path(tmp_path, monkeypatch):
    monkeypatch.setenv("FFR_TEACHER_API_KEY", "sk-very-secret")
    RunWriter(tmp_path, {"path": tmp_path / "x"})
    text = (tmp_path / "env.json").read_text()
    env = json.loads(text)
    assert env["packages"]["numpy"] and env["python"].count(".") == 2
    for word in ("sk-very-secret", str(tmp_path), os.path.expanduser("~") + "/", sys.prefix, os.getcwd()):
        assert word not in text
    assert json.loads((tmp_path / "config.json").read_text()) == {"path": str(tmp_path / "x")}


def test_finish_writes_the_summary(tmp_path):
    RunWriter(tmp_path).finish({"accuracy": 0.5, "bad": float("nan")})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"accuracy": 0.5, "bad": "nan"}


def test_metric_reads_the_first_name_that_is_there():
    assert metric({"ffr/repair_rate": 0.5}, "repair_rate") == 0.5
    assert metric({"ffr/repair_rate": 0.5, "ffr/repair_success_rate": 0.7}, "repair_rate") == 0.7
    assert math.isnan(metric({}, "repair_rate")) and metric({"loss": 2}, "loss") == 2.0


def test_nanmean_weights_and_emptiness():
    assert nanmean([1.0, math.nan, 3.0]) == 2.0
    assert nanmean([1.0, 3.0], [3.0, 1.0]) == 1.5
    assert math.isnan(nanmean([])) and math.isnan(nanmean([1.0], [0.0]))


def test_report_never_imports_torch():
    code = (
        "import sys, ffr.report, ffr.report.page, ffr.report.figures, ffr.report.study\n"
        "import ffr.report.picture, ffr.report.inspect_log\n"
        "bad = {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
