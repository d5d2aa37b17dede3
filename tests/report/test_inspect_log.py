"""The export to Inspect: written and read back where inspect_ai is installed, a clear error elsewhere."""

import importlib.util

import pytest

from ffr.report import inspect_log
from ffr.report.trace import read_traces
from tests.report import fake_run

HAS_INSPECT = importlib.util.find_spec("inspect_ai") is not None


def test_without_inspect_the_error_names_the_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name}", name="inspect_ai")

    monkeypatch.setattr(inspect_log.importlib, "import_module", missing)
    with pytest.raises(inspect_log.InspectMissingError, match=r"pip install 'find-fix-reason\[view\]'"):
        inspect_log.export_inspect(tmp_path)


def test_a_broken_inspect_is_not_called_missing(tmp_path, monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named anyio", name="anyio")

    monkeypatch.setattr(inspect_log.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="anyio") as caught:
        inspect_log.export_inspect(tmp_path)
    assert not isinstance(caught.value, inspect_log.InspectMissingError)


@pytest.mark.skipif(
    not HAS_INSPECT, reason="inspect_ai is not installed (extra `view`): the log was not written"
)
def test_the_log_is_read_back_with_every_rollout(tmp_path):
    from inspect_ai.log import read_eval_log

    run = fake_run.write_run(tmp_path / "fake", num_steps=3)
    path = inspect_log.export_inspect(run)
    rows = read_traces(run)
    samples = read_eval_log(str(path)).samples
    assert len(samples) == sum(len(row.slots) for row in rows)
    repaired = next(sample for sample in samples if sample.metadata["status"] == "repaired")
    assert [event.id for event in repaired.events if event.event == "span_begin"] == ["find", "fix", "reason"]
    assert len(repaired.messages) == 5 and repaired.scores["reward"].value == pytest.approx(1.7, abs=1e-9)
