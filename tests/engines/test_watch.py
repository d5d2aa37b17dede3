"""The watchdog in one process: what it notes, when it tells, and that it lets a finished run go."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from ffr.engines.trl.watch import EXIT_CODE, Watch


def test_notes_name_phase_step_and_samples(tmp_path: Path) -> None:
    with Watch(tmp_path / "ranks", rank=1, num_ranks=2) as watch:
        watch.enter("find", step=3, samples=["a/1", "a/2"])
        note = json.loads((tmp_path / "ranks" / "rank_1.json").read_text())
        assert (note["rank"], note["phase"], note["step"], note["samples"]) == (1, "find", 3, ["a/1", "a/2"])
        watch.enter("fix")
        assert watch.beat.samples == ("a/1", "a/2") and watch.beat.step == 3


def test_report_says_who_is_behind(tmp_path: Path) -> None:
    with (
        Watch(tmp_path, rank=0, num_ranks=3, timeout_s=60.0) as ahead,
        Watch(tmp_path, rank=1, num_ranks=3) as behind,
    ):
        ahead.enter("score", step=5, samples=["a/1"])
        behind.enter("fix", step=5, samples=[f"b/{k}" for k in range(9)])
        Watch(tmp_path, rank=2)._file(2).write_text(json.dumps(
            {"rank": 2, "phase": "update", "step": 5, "since_s": 0.0, "samples": []}
        ))  # fmt: skip
        lines = ahead.report().splitlines()
    assert lines[0].startswith("watchdog: rank 0: score for 0 s (since ")
    assert lines[0].endswith("step 5, samples a/1: no progress for 60 s")
    assert lines[2].startswith("  rank 1: fix for ") and lines[2].endswith("b/7 and 1 more")
    assert lines[4] == "  the others wait for rank 1, in phase fix"


def test_nobody_is_behind_when_all_are_in_one_phase(tmp_path: Path) -> None:
    with Watch(tmp_path, timeout_s=60.0) as watch:
        watch.enter("update", step=1)
        assert "wait for" not in watch.report()


def test_a_rank_without_a_note_has_not_begun(tmp_path: Path) -> None:
    with Watch(tmp_path, num_ranks=2, timeout_s=60.0) as watch:
        watch.enter("find", step=1)
        assert "the others wait for rank 1, in phase start" in watch.report()


def test_a_stall_is_told_once_with_stacks(tmp_path: Path) -> None:
    told = threading.Event()
    with (tmp_path / "told.txt").open("w+") as out, Watch(tmp_path, timeout_s=0.05, out=out) as watch:
        tell = watch._tell

        def telling() -> None:
            tell()
            told.set()

        watch._tell = telling  # type: ignore[method-assign]
        watch.enter("fix", step=2, samples=["a/1"])
        assert told.wait(60)
        told.clear()
        assert not told.wait(0.5)  # the same stall is not told again
        watch.enter("fix", step=2, samples=["a/1"])
        assert told.wait(60)  # the next one is
        out.seek(0)
        text = out.read()
    assert text.count("watchdog: rank 0: fix") == 2
    assert "step 2, samples a/1: no progress for 0.05 s" in text
    assert "test_a_stall_is_told_once_with_stacks" in text and "Thread 0x" in text


def test_abort_ends_the_process_with_its_status(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom ffr.engines.trl.watch import Watch\n"
        "with Watch(Path(sys.argv[1]), timeout_s=0.2, abort=True) as watch:\n"
        "    watch.enter('update', step=4)\n    time.sleep(120)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == EXIT_CODE
    assert "rank 0: update for" in done.stderr and "rank 0 ends (train.watchdog_abort)" in done.stderr
