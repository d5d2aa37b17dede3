"""`ffr train` with `algorithm = "sft"`: the shipped student learns from written traces, by the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ffr.data.microworld import write_microworld


def test_the_command_trains_on_rows_with_a_process(tmp_path: Path) -> None:
    world = write_microworld(tmp_path / "world", num_train=4, num_test=0)
    rows = json.loads(world.train.read_text())
    for row in rows[:3]:
        row["process"] = "<think>frames 1-2: so red.</think>"
    world.train.write_text(json.dumps(rows))
    (tmp_path / "sft.toml").write_text(
        f'[model]\npath = "micro-student"\ndtype = "float32"\ngradient_checkpointing = false\n'
        f'[observe]\nmax_frame_px = 4704\nmin_frame_px = 784\nprompt = "brief"\n'
        f'[train]\nalgorithm = "sft"\ncpu = true\nquestions_per_step = 3\nmicro_batch_size = 3\n'
        f'max_steps = 2\nnum_epochs = 2\nlearning_rate = 1e-3\nschedule = "constant"\n'
        f'[report]\noutput_dir = "{tmp_path / "run"}"\ndisplay = "plain"\n'
        f'[[data.sources]]\npath = "{world.train}"\nroot = "{world.root}"\n'
    )
    command = [sys.executable, "-m", "ffr", "train", "-c", str(tmp_path / "sft.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert "1 of 4 rows teach nothing" in " ".join((done.stdout + done.stderr).split())
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
