"""Configurations, layers, imports, doctests and the wheel: what a stranger's first commands rely on."""

import doctest
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import ffr
from ffr.config import Config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.toml"))
ROOMS = (
    "types",
    "config",
    "data",
    "observe",
    "find",
    "fix",
    "reason",
    "algorithms",
    "engines",
    "eval",
    "report",
)
TORCH_FREE = (
    "types",
    "config",
    "data",
    "observe",
    "find",
    "fix",
    "report",
    "serve",
    "cli.main",
    "cli.train",
    "cli.eval",
    "cli.doctor",
    "cli.serve",
    "cli.serve_teacher",
    "cli.doctor_teacher",
)
HEAVY = ("torch", "transformers", "trl", "verl", "accelerate", "peft", "vllm")
PYTHON = (sys.executable, "-X", "utf8")


def eval_modules() -> list[str]:
    """Every module of evaluation but the one that runs a model in this process."""
    paths = sorted((ROOT / "src" / "ffr" / "eval").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in paths]
    return [name.removesuffix(".__init__") for name in names if name != "ffr.eval.models.hf"]


def exists(name: str) -> bool:
    base = ROOT / "src" / "ffr" / name.replace(".", "/")
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def modules_with_examples() -> list[str]:
    paths = (path for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))
    dotted = (".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in dotted)


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path):
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    config = Config.model_validate(tables)
    for section in tables:
        assert getattr(config, section) is not None
    assert not config.report.output_dir.is_absolute()
    assert all(not source.path.is_absolute() for source in config.data.sources)


def test_there_are_configurations():
    assert {"ffr_qwen2_5vl_7b", "grpo_qwen2_5vl_7b", "ffr_released_qwen2_5vl_7b"} <= {p.stem for p in CONFIGS}


def test_the_papers_configuration_changes_no_default_of_the_method():
    paper = tomllib.loads((ROOT / "configs" / "ffr_qwen2_5vl_7b.toml").read_text(encoding="utf-8"))
    assert set(paper) == {"report", "data"}


def test_rooms_import_only_what_they_may():
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-logo", PYTHONPATH=str(ROOT / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_forbidden_contract_lists_every_torch_free_room():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "forbidden")
    rooms = {f"ffr.{name}" for name in TORCH_FREE if exists(name) and not name.startswith("cli")}
    listed = set(contract["source_modules"])
    assert rooms <= listed
    packages = {"ffr.eval", "ffr.eval.models"}  # they hold the exception; their own lines are checked below
    unlisted = [
        name for name in eval_modules() if name not in packages
        and not any(name == one or name.startswith(f"{one}.") for one in listed)
    ]  # fmt: skip
    assert unlisted == []


def test_torch_free_rooms_do_not_load_torch():
    names = [f"ffr.{name}" for name in TORCH_FREE if exists(name)] + eval_modules()
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    done = run(*PYTHON, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_in_the_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted >= {"ffr.types": 15, "ffr.config": 10}.get(name, 0)


def test_every_column_of_the_table_is_a_metric_that_the_engine_writes():
    from ffr.engines.trl.metrics import SUM_NAMES, named_metrics
    from ffr.engines.trl.telemetry import PEAKS
    from ffr.report.metrics import METRIC_NAMES
    from ffr.report.table import COLUMNS

    written = set(named_metrics(dict.fromkeys(SUM_NAMES, 1.0), dict.fromkeys(PEAKS, 1.0)))
    assert [name for name, _, _ in COLUMNS if not written & set(METRIC_NAMES[name])] == []


def test_constraints_cover_the_dependencies_and_name_no_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["train"], *extras["dev"]]
    assert {re.split(r"[\[<>=!~ ]", item)[0].lower().replace("_", "-") for item in wanted} <= pinned
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-"))]


def test_the_wheel_carries_the_files_that_are_not_python(tmp_path):
    done = run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check",
        "-w", str(tmp_path), str(ROOT),
    )  # fmt: skip
    if done.returncode:
        # The build back end comes from the package index; without it there is nothing to look at.
        pytest.skip(f"no wheel could be built here: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    wanted = {
        path.relative_to(package).as_posix()
        for path in (package / "ffr").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert wanted - inside == set()
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_version_is_one_number():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert getattr(ffr, "__version__", project["version"]) == project["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {project['version']}\n" in citation
