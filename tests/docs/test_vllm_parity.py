"""The page about a real vLLM server says what its measurement says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def test_the_page_is_current_and_within_tolerance() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "vllm_parity.py"))
    report = json.loads((RESULTS / "vllm_parity.json").read_text())
    assert (RESULTS / "vllm_parity.md").read_text() == script["page"](report)
    assert [row["view"] for row in report["rows"]] == list(script["views"]())
    assert all(row["max_logprob_difference"] <= script["TOLERANCE"] for row in report["rows"])
    assert all(row["same_seeds_same_tokens"] and row["tokens"] for row in report["rows"])
