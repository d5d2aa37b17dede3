"""The bench of sampling runs and writes what it counted; nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import rollout
from ffr.engines.batch import Batcher


def test_quick_bench_writes_what_it_counted(tmp_path: Path, model) -> None:
    output = tmp_path / "rollout.json"
    assert rollout.main(["--quick", "--threads", "1", "--output", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    group, n, m = 4, report["prompt_tokens"], 4
    assert (report["group_size"], report["completion_tokens"], report["threads"]) == (group, m, 1)
    # 4 frames of 56 x 84 px: 2 temporal steps of 2 x 3 merged patches
    assert report["visual_tokens"] == 2 * 2 * 3 and report["missed_targets"] == []
    found = report["tasks"]["group"]
    positions = found["language_positions"]
    assert positions["ours/prefill"] == n and positions["transformers/prefill"] == group * n
    assert positions["ours/whole"] == n + group * (m - 1)
    assert positions["transformers/whole"] == group * (n + m - 1)
    text = report["tasks"]["repairs_text"]
    lengths = report["repaired_prompt_tokens"]["repairs_text"]
    assert len(lengths) == group // 2 and min(lengths) > n
    assert text["language_positions"]["from_scratch/prefill"] == group // 2 * max(lengths)
    assert (
        text["language_positions"]["kept_prefix/prefill"] < text["language_positions"]["from_scratch/prefill"]
    )
    if Batcher(model, pad_id=0).shares_media:
        # each of 2 x 2 x 3 merged patches is 4 of the tower's; text patches show nothing new
        assert (
            found["vision_patches"]["ours/prefill"] == 4 * 12
            and text["vision_patches"]["kept_prefix/prefill"] == 0
        )
    [runs] = [found["prefill_vs_transformers_runs"]]
    assert found["prefill_vs_transformers"] == runs[0] and len(report["rounds"]) == len(runs) == 1
    assert found["prefill_vs_transformers_fraction_of_limit"] == pytest.approx(
        runs[0] / found["prefill_vs_transformers_limit"]
    )


def test_work_counts_weights_attention_and_the_tower() -> None:
    student = {"layer_parameters": 1000, "vision_parameters": 10, "hidden": 8, "layers": 2}
    run = {"language_positions": 5, "attended_pairs": 25, "vision_patches": 3}
    # weights, then two products per pair and layer with a multiplication and an addition each, then the tower
    assert rollout.work(student, run) == 10_000 + 1_600 + 60
