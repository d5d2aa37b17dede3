"""Write `docs/results/micro.md` and its figures from the committed `docs/results/micro/*.jsonl`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ffr.report.study import write_study

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


def main() -> None:
    """Parse the paths and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS / "micro", help="folder of *.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "micro.md", help="the page")
    parser.add_argument(
        "--analysis", type=Path, default=RESULTS / "micro_analysis.md", help="put in verbatim"
    )
    arguments = parser.parse_args()
    for path in write_study(arguments.results, arguments.out, analysis=arguments.analysis):
        print(path)


if __name__ == "__main__":
    main()
