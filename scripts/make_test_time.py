"""Writes docs/results/test_time.md from docs/results/test_time.json, or the latter from runs of `ffr eval`.

python scripts/make_test_time.py --runs outputs/eval   # reads plain/ vote/ sparse/ repair/ repair30/
python scripts/make_test_time.py                       # the page again, from the file in the repository
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ffr.eval.rows import read_rows, read_run

ROOT = Path(__file__).resolve().parents[1]
DATA, PAGE = ROOT / "docs/results/test_time.json", ROOT / "docs/results/test_time.md"
TITLES = {
    "plain": "one answer",
    "vote": "majority of 5 (`--vote 5`)",
    "sparse": "4, 8, 16 frames until 5 votes agree (`--sparse-start 4`)",
    "repair": "5 votes; where they disagree a patch and 5 more (`--repair`)",
    "repair30": "the same with at most 30 patches (`--teacher-calls 30`)",
}


def collect(runs: Path) -> dict[str, Any]:
    """Per mode and question: right or not, calls, tokens, what became of the repair."""
    found: dict[str, Any] = {}
    for name in TITLES:
        info = read_run(runs / name)
        rows = {}
        for row in read_rows(runs / name):
            repair = row.extra.get("repair", {})
            rows[row.uid] = [
                int(not row.error and row.scores["robust"].value >= 1.0),
                row.extra.get("num_calls", 1),
                row.num_tokens,
                repair.get("status", ""),
                repair.get("teacher", {}).get("num_calls", 0),
            ]
        found[name] = {"config_hash": info.config_hash, "rows": dict(sorted(rows.items()))}
    return found


def interval(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval, in percent; every question has a clip of its own."""
    z = 1.959964
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2)) / (1 + z * z / total)
    return 100 * (middle - half), 100 * (middle + half)


def page(found: dict[str, Any]) -> str:
    """The page."""
    total = len(found["plain"]["rows"])
    out = [
        "# Test-time options on MicroWorld",
        "",
        f"The shipped student on {total} questions of MicroWorld's test split: 16 frames, temperature 1,",
        "seed 42, robust accuracy. The teacher is the oracle: it knows where to look, is not asked for the",
        "answer, and its patches pass the leak gate. These are different things, never mixed: `--vote` is",
        "the student alone with more samples, `--repair` is the student with help.",
        "",
        "| | accuracy | 95 % | answers per question | tokens per question | teacher calls |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, title in TITLES.items():
        rows = list(found[name]["rows"].values())
        right = sum(row[0] for row in rows)
        low, high = interval(right, len(rows))
        calls, tokens = (sum(row[k] for row in rows) / len(rows) for k in (1, 2))
        asked = sum(row[4] for row in rows)
        shown = f"{100 * right / len(rows):.1f} | {low:.1f}-{high:.1f}"
        out.append(f"| {title} | {shown} | {calls:.1f} | {tokens:.0f} | {asked} |")
    out += ["", *_where(found), "", "Made by `scripts/make_test_time.py`; commands:", "", "```"]
    base = "ffr eval --model micro-student --benchmarks microworld --limit 150 --temperature 1 --frames 16"
    for name, words in (
        ("plain", ""),
        ("vote", " --vote 5"),
        ("sparse", " --sparse-start 4"),
        ("repair", " --repair --teacher.type oracle"),
        ("repair30", " --repair --teacher.type oracle --teacher-calls 30"),
    ):
        out.append(f"{base}{words} --output-dir outputs/eval/{name}")
    return "\n".join([*out, "```", ""])


def _where(found: dict[str, Any]) -> list[str]:
    """What became of the questions on which the votes disagreed."""
    vote, repair = found["vote"]["rows"], found["repair"]["rows"]
    split = [uid for uid, row in repair.items() if row[3] not in ("agreed", "not_asked")]
    patched = [uid for uid in split if repair[uid][3] == "patched"]
    before, after = (sum(rows[uid][0] for uid in patched) for rows in (vote, repair))
    agreed = [uid for uid, row in repair.items() if row[3] == "agreed"]
    sure = sum(repair[uid][0] for uid in agreed)
    return [
        f"The votes disagreed on {len(split)} of {len(repair)} questions; {len(patched)} got a patch that",
        f"passed the gate, and there the majority was right {before} times without it and {after} times",
        f"with it. On the {len(agreed)} questions on which all votes agreed nobody was asked; {sure} of them",
        "were right.",
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder with the five runs")
    args = parser.parse_args()
    if args.runs:
        DATA.write_text(json.dumps(collect(args.runs), indent=None, separators=(",", ":")) + "\n")
    PAGE.write_text(page(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
