"""One writer per file, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ffr.fix.file_lock import FileLock, FileLocked
from ffr.fix.patch_file import PatchFile, PatchFileError

HOLDER = """
import sys, time
from pathlib import Path
from ffr.fix.file_lock import FileLock
FileLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_the_second_is_told_who_holds_it_and_a_kill_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "patches.jsonl"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(
            PatchFileError, match=rf"patches\.jsonl is being written by process {holder.pid} on "
        ):
            PatchFile(path, "setup")
        with pytest.raises(FileLocked, match="wait until it has ended, or choose another --output"):
            FileLock(path).acquire()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    assert (tmp_path / ".patches.jsonl.lock").exists()  # left behind by the killed process: no lock
    row = {"uid": "a", "rollout_hash": "1", "status": "patched", "final": True}
    with PatchFile(path, "setup") as rows:
        rows.write(row)
        with pytest.raises(PatchFileError, match=f"process {os.getpid()} on "):
            PatchFile(path, "setup")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["patches.jsonl"]
    with PatchFile(path, "setup") as rows:
        assert list(rows.done) == [("a", "1")]


def test_a_file_that_is_refused_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "patches.jsonl"
    path.write_text("{}\n")
    for _ in range(2):
        with pytest.raises(PatchFileError, match="field 'uid' is missing"):
            PatchFile(path, "setup")
    with FileLock(path):
        assert json.loads((tmp_path / ".patches.jsonl.lock").read_text())["process"] == os.getpid()


def test_many_takers_never_hold_it_together(tmp_path: Path) -> None:
    path, inside, taken = tmp_path / "p.jsonl", [0], [0]

    def take() -> None:
        done = 0
        while done < 20:
            try:
                with FileLock(path):
                    inside[0] += 1
                    assert inside[0] == 1
                    taken[0] += 1
                    inside[0] -= 1
                    done += 1
            except FileLocked:
                continue

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert taken[0] == 80 and inside[0] == 0
