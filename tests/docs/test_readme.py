"""Every code block of README.md runs; the demo's blocks at the length of a test."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [(m["info"].strip(), m["body"]) for m in _BLOCK.finditer((ROOT / "README.md").read_text())]
RUNNABLE = [(info, body) for info, body in BLOCKS if info in ("bash", "python")]
NEEDS_GPU = [body for info, body in BLOCKS if info == "bash no-run"]


def run(command: list[str], cwd: Path = ROOT, **env: str) -> str:
    scripts = Path(sys.executable).parent
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_every_block_is_of_a_known_kind():
    assert {info for info, _ in BLOCKS} <= {"bash", "python", "bash no-run"}
    assert len(RUNNABLE) >= 5


@pytest.mark.parametrize("number", range(len(RUNNABLE)))
def test_block_runs(number: int, tmp_path: Path):
    info, body = RUNNABLE[number]
    if info == "python":
        assert run([sys.executable, "-c", body])
        return
    if shutil.which("make") is None and "make " in body:
        pytest.skip("make is not installed")
    # `make demo` and `make test` take their arguments from the environment: the block itself is unchanged.
    narrow = {
        "DEMO_ARGS": f"--steps 2 --output {tmp_path}",
        "PYTEST_ARGS": "tests/meta/test_project.py --collect-only -p no:cacheprovider",
        "WORKERS": "0",
    }
    if "ffr eval" in body:  # a run of an earlier state of the code is not gone on with
        shutil.rmtree(ROOT / "outputs" / "eval" / "first-look", ignore_errors=True)
    output = run(["bash", "-euc", body], **narrow)
    if "ffr eval" in body:
        assert "MicroWorld" in output and "60/60" in output
    if "make demo" in body:
        assert "trace page" in output
        assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2


def test_the_gpu_block_resolves():
    """What needs a GPU and data is at least a configuration that resolves, with its flags."""
    assert len(NEEDS_GPU) == 1
    words = NEEDS_GPU[0].replace("\\\n", " ").split()
    start = words.index("train")
    output = run([sys.executable, "-m", "ffr", *words[start:], "--dry-run"])
    assert '"base_url": "http://127.0.0.1:8000/v1"' in output


def test_named_files_and_functions_exist():
    import ffr.reason

    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"`(tests/[\w/]+\.py|src/ffr/[\w/-]+|configs/[\w.]+)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`ffr\.reason\.(\w+)`", text):
        assert callable(getattr(ffr.reason, name)), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
