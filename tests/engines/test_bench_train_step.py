"""The bench of the training step runs and writes its fields; nothing here looks at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(600)
def test_quick_bench_writes_what_it_counted(tmp_path: Path) -> None:
    output = tmp_path / "train_step.json"
    command = [sys.executable, str(ROOT / "bench" / "train_step.py"), "--quick", "--output", str(output)]
    command += ["--variants", "unshared", "stock_trl"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["group_size"] == 4 and report["student"]["shape"] == "quick"
    assert "was not run" in report["gpu"] and report["missed_targets"] == []
    assert report["environment"]["packages"]["trl"].startswith("1.16.")
    found = report["lengths"]["8"]
    n, m, group = found["prompt_tokens"], found["completion_tokens"], 4
    # 4 frames of 56 x 84 px: 2 temporal steps of 2 x 3 merged patches, of 4 patches each
    assert report["visual_tokens"] == 2 * 2 * 3
    positions = found["language_positions_per_pass"]
    assert positions["unshared"] == group * (n + m)
    # every branch keeps the prompt's last token, which predicts its first completion token
    assert positions["shared"] == n - 1 + group * (m + 1)
    # each frame as an image of its own: twice the patches, in every row, and its two tokens of frame
    assert found["vision_patches_per_pass"] == {
        "shared": 2 * 4 * 6,
        "unshared": 2 * 4 * 6,
        "stock_trl": group * 4 * 4 * 6,
    }
    assert positions["stock_trl"] == group * (n + m + 2 * 6 + 3 * 2)
    assert found["token_limit_shared_vs_unshared"] == pytest.approx(group * (n + m) / (n + group * m))
    names = {"shared", "unshared", "stock_trl"}
    assert set(found["median_step_s"]) == set(found["peak_memory_bytes"]) == names
    assert all(value > 0 for value in found["peak_memory_bytes"].values())
    [one] = found["rounds"]
    assert set(one) == names and found["shared_vs_unshared_runs"] == [
        one["unshared"]["step_s"] / one["shared"]["step_s"]
    ]
    assert found["fraction_of_token_limit"] == pytest.approx(
        found["shared_vs_unshared"] / found["token_limit_shared_vs_unshared"]
    )
