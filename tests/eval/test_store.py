"""A run's directory: one writer, rows that survive a kill, and nothing that does not belong together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ffr.eval.rows import EvalRow, ItemRow, RunFileError, RunInfo, read_items, read_rows, read_run
from ffr.eval.store import RunMixError, RunStore

ITEMS = [ItemRow(uid=f"b/{k}", benchmark="b", task="t", group=str(k), source_index=k) for k in range(3)]


def info(**changes):
    values = {
        "name": "m", "model": "m", "engine": "fake", "config_hash": "ab", "frames": (4,), "seeds": (1,),
        "config": {"prompt": "brief", "weights_sha256": "0" * 64}, "benchmarks": {"b": {"num_items": 3}},
    }  # fmt: skip
    return RunInfo.model_validate({**values, **changes})


def row(k, **changes):
    values = {"config_hash": "ab", "uid": f"b/{k}", "num_frames": 4, "seed": 1, "raw": "B\n\u2028é"}
    return EvalRow.model_validate({**values, **changes})


def opened(run, *, resume=False, items=ITEMS, **changes):
    return RunStore(run, info(**changes), items, resume=resume)


def test_rows_are_on_disk_when_append_returns(tmp_path):
    store = opened(tmp_path)
    store.append([row(0), row(1, raw="", error="timeout: x")])
    assert read_rows(tmp_path) == [row(0), row(1, raw="", error="timeout: x")]
    assert store.done(row(0).key) and not store.done(row(1).key) and not store.done(row(2).key)
    store.append([row(1)])
    assert store.done(row(1).key) and read_rows(tmp_path) == [row(0), row(1)]
    store.close()
    store.close()
    assert list(read_items(tmp_path).values()) == ITEMS and read_run(tmp_path) == info()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, cut):
    with opened(tmp_path) as store:
        store.append([row(0), row(1)])
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with opened(tmp_path, resume=True) as store:
        assert list(store.rows) == [row(0).key]
        store.append([row(1), row(2)])
    assert read_rows(tmp_path) == [row(0), row(1), row(2)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with opened(tmp_path) as store:
        store.append([row(0), row(1)])
    path = tmp_path / "rows.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0][:30], *lines[1:]]))
    with pytest.raises(RunFileError, match=r"rows.jsonl, line 1"):
        opened(tmp_path, resume=True)
    path.write_bytes(b"\n".join(lines[1:]))
    opened(tmp_path, resume=True).close()  # the failed opening has let go of the directory


def test_rows_of_another_configuration_are_refused(tmp_path):
    with opened(tmp_path) as store:
        store.append([row(0, config_hash="cd")])
    with pytest.raises(RunFileError, match="of another configuration"):
        opened(tmp_path, resume=True)


HOLD = """
import sys
from pathlib import Path
from tests.eval.test_store import opened
with opened(Path(sys.argv[1]), resume=True):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_directory(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(RunMixError, match="another `ffr eval` writes here"):
            opened(tmp_path, resume=True)
        other.kill()  # a dead process holds nothing
        other.wait(30)
        opened(tmp_path, resume=True).close()
    finally:
        other.kill()
        other.communicate(timeout=30)


def test_what_may_grow_and_what_may_not(tmp_path):
    with opened(tmp_path) as store:
        store.append([row(0)])
    for changes, words in (
        ({"config_hash": "cd", "config": {"prompt": "official"}}, "prompt brief, now official"),
        ({"seeds": (2,)}, "--seeds 1; 1 is missing"),
        ({"frames": (8,)}, "--frames 4; 4 is missing"),
        ({"items": ITEMS[:2]}, r"1 gone \(first b/2\)"),
        ({"items": [*ITEMS, ITEMS[0].model_copy(update={"uid": "b/9"})]}, r"1 new \(first b/9\)"),
        ({"items": [ITEMS[0].model_copy(update={"gold": "C"}), *ITEMS[1:]]}, r"1 changed \(first b/0\)"),
    ):
        with pytest.raises(RunMixError, match=words):
            opened(tmp_path, resume=True, **changes)
    more = [*ITEMS, ItemRow(uid="c/0", benchmark="c", task="t", group="v", source_index=0)]
    benchmarks = {"b": {"num_items": 3}, "c": {"num_items": 1}}
    with opened(
        tmp_path, resume=True, items=more, benchmarks=benchmarks, frames=(4, 8), seeds=(1, 2)
    ) as store:
        assert store.done(row(0).key)
    assert list(read_items(tmp_path)) == ["b/0", "b/1", "b/2", "c/0"] and read_run(tmp_path).frames == (4, 8)


def test_a_kill_before_the_run_began_is_no_run(tmp_path):
    opened(tmp_path).close()
    (tmp_path / "eval.json").unlink()  # items are written first, eval.json makes the run
    (tmp_path / "rows.jsonl").unlink()
    opened(tmp_path).close()
    with pytest.raises(RunMixError, match="--resume, choose another --output-dir"):
        opened(tmp_path)
