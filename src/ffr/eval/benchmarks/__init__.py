"""The benchmarks by name; `get_benchmark` imports the one that is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ffr.eval.base import EvalDataError
from ffr.eval.benchmarks.official import OfficialBenchmark

BENCHMARKS = {
    "mmvu": "Mmvu",
    "vsi_bench": "VsiBench",
    "video_mmmu": "VideoMmmu",
    "video_holmes": "VideoHolmes",
    "longvideobench": "LongVideoBench",
    "lvbench": "LvBench",
    "mvbench": "MvBench",
    "tempcompass": "TempCompass",
    "microworld": "MicroWorld",
    "video_r1": "VideoR1",
}
"""Class by name; a benchmark's module has its name."""
PUBLIC = tuple(BENCHMARKS)[:8]
"""The eight public benchmarks: what training files are checked against."""


def get_benchmark(name: str) -> OfficialBenchmark:
    """A benchmark by its name.

    Raises:
        EvalDataError: If the name is unknown; the message lists the known ones.
    """
    if name not in BENCHMARKS:
        raise EvalDataError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return getattr(import_module(f"ffr.eval.benchmarks.{name}"), BENCHMARKS[name])()


def benchmark_root(root: Path, name: str) -> Path:
    """`root/<name>` if there is such a directory, else the root itself: it holds this one benchmark."""
    return root / name if (root / name).is_dir() else root


__all__ = ["BENCHMARKS", "PUBLIC", "OfficialBenchmark", "benchmark_root", "get_benchmark"]
