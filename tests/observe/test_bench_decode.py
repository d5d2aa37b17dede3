"""The bench of decoding runs and writes what it found; nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

from bench import decode, decode_clips


def test_quick_bench_is_exact_and_reports_every_length(tmp_path: Path) -> None:
    output = tmp_path / "decode.json"
    words = ["--quick", "--clips", str(tmp_path / "clips"), "--output", str(output)]
    assert decode.main(words) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    lengths = ["1s", "6s", "12s"]
    assert report["exact_frames"] == {name: dict.fromkeys(lengths, 4) for name in ("ours", "sequential")}
    assert list(report["bytes"]) == lengths and "was not run" in report["torchcodec"]
    assert set(report["median_s"]) == {f"{v}/{n}" for v in ("ours", "sequential") for n in lengths}
    [round_] = report["rounds"]
    assert report["growth_6s_to_12s"] == round_["ours/12s"]["seconds"] / round_["ours/6s"]["seconds"]
    assert (
        report["ours_vs_sequential_at_12s"]
        == round_["sequential/12s"]["seconds"] / round_["ours/12s"]["seconds"]
    )
    assert len(list((tmp_path / "clips").iterdir())) == 3  # kept for the next run


def test_a_wrong_frame_is_a_missed_target(tmp_path: Path, monkeypatch) -> None:
    clip = decode_clips.ready(tmp_path, 1, (64, 48))
    right = decode.ours

    def off_by_one(path: Path, num: int) -> decode.Decoded:
        got = right(path, num)
        first = min(got)
        return {**got, first: got[max(got)]}

    assert off_by_one(clip, 4).keys() == right(clip, 4).keys()
    monkeypatch.setattr(decode, "ours", off_by_one)
    output = tmp_path / "decode.json"
    assert decode.main(["--quick", "--clips", str(tmp_path), "--output", str(output)]) == 1
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["exact_frames"]["ours"]["1s"] == 3 and "not exact" in report["missed_targets"][0]
