"""docs/results/performance.md says what bench/results/*.json hold."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@pytest.fixture(scope="module")
def performance() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_performance", ROOT / "scripts" / "make_performance.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A copy of the results without those of a GPU."""
    shutil.copytree(RESULTS, tmp_path / "results")
    for path in (tmp_path / "results").glob("*_cuda*.json"):
        path.unlink()
    return tmp_path / "results"


def _change(path: Path, change) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    change(report)
    path.write_text(json.dumps(report), encoding="utf-8")


def test_the_page_is_current(performance: ModuleType) -> None:
    assert performance.main(["--check"]) == 0, "run scripts/make_performance.py and commit the page"


@pytest.mark.parametrize("name", ["train_step", "rollout", "decode", "teacher"])
def test_a_missing_result_names_its_command(
    performance: ModuleType, results: Path, name: str, capsys
) -> None:
    (results / f"{name}.json").unlink()
    assert performance.main(["--check"], folder=results) == 1
    assert f"run `python bench/{name}.py" in capsys.readouterr().err


def test_other_figures_make_the_page_stale_and_a_miss_visible(
    performance: ModuleType, results: Path, tmp_path: Path, capsys
) -> None:
    page = tmp_path / "performance.md"
    assert performance.main([], folder=results, target=page) == 0
    before = page.read_text(encoding="utf-8")
    assert performance.main(["--check"], folder=results, target=page) == 0

    def slower(report) -> None:
        report["tasks"]["group"]["prefill_vs_transformers"] = 1.23

    _change(results / "rollout.json", slower)
    assert performance.main(["--check"], folder=results, target=page) == 1
    assert "stale" in capsys.readouterr().err
    after = performance.page(results)
    [row] = [line for line in after.splitlines() if "prefill of a group" in line]
    assert "| 1.23x |" in row and row.endswith("**missed** |")
    assert after.count("**missed**") == before.count("**missed**") + 1


def test_the_gpu_section_says_what_was_not_measured(performance: ModuleType, results: Path) -> None:
    without = performance.page(results).split("## GPU")[1]
    assert "No GPU was at hand" in without and "--device cuda --model 7b" in without
    shutil.copy(results / "train_step.json", results / "train_step_cuda_7b.json")
    _change(results / "train_step_cuda_7b.json", lambda report: report.update(gpu="some card, CUDA 13.0"))
    found = performance.page(results).split("## GPU")[1]
    assert "No GPU was at hand" not in found and "some card, CUDA 13.0" in found


def test_figures_are_medians_of_at_least_five_rounds() -> None:
    reports = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("rollout", "decode")}
    steps = json.loads((RESULTS / "train_step.json").read_text())["lengths"].values()
    tables = [*reports["rollout"]["tasks"].values(), reports["decode"], *steps]
    ratios = [
        (table[key.removesuffix("_runs")], table[key])
        for table in tables
        for key in table
        if key.endswith("_runs")
    ]
    assert len(ratios) > 10
    for ratio, runs in ratios:
        assert len(runs) >= 5 and ratio == pytest.approx(statistics.median(runs), rel=1e-9)
    for report in reports.values():
        assert len(report["rounds"]) >= 5
