"""Several sources into one training set: by weight, by seed, without replacement.

Rows are chosen before their clips are looked for, so a missing clip shrinks the mixture and never
lets another row in: two machines with the same files choose the same rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffr.config import DataConfig, SourceConfig
from ffr.data.base import ReadResult, SkippedRow
from ffr.data.hub import resolve_hub_path
from ffr.data.jsonl import read_jsonl
from ffr.data.video_holmes import read_video_holmes
from ffr.data.video_r1 import read_video_r1
from ffr.types import Sample

Reader = Callable[..., ReadResult]
READERS: Mapping[str, Reader] = {
    "video_r1": read_video_r1,
    "video_holmes": read_video_holmes,
    "jsonl": read_jsonl,
}
"""`SourceConfig.format` to reader."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The chosen samples, and the sources that had too few.

    Example:
        >>> Mixture(samples=(), short={"star": (100, 60)}).short["star"]
        (100, 60)
    """

    samples: tuple[Sample, ...]
    short: Mapping[str, tuple[int, int]]
    """Source name to (rows asked, rows there)."""


def quotas(weights: Sequence[float], num_samples: int) -> tuple[int, ...]:
    """How many rows each source gives: shares of `num_samples`, largest remainders first.

    Returns:
        One number per weight; they sum to `num_samples`.

    Raises:
        ValueError: If a weight is not positive.
    """
    if not weights or any(weight <= 0 for weight in weights):
        raise ValueError(f"data.sources weights must be positive, got {list(weights)}")
    exact = [weight / sum(weights) * num_samples for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: num_samples - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def _order(size: int, seed: int, name: str) -> list[int]:
    return [int(i) for i in np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(size)]


def mix(
    sources: Sequence[tuple[str, float, Sequence[Sample]]], *, seed: int, num_samples: int | None
) -> Mixture:
    """Choose rows from named, weighted sources.

    A source's rows are drawn in an order that depends on the seed and its name only, so a larger
    mixture extends a smaller one. A source with too few rows gives all it has; no other fills in.

    Args:
        sources: (name, weight, samples) of each source.
        seed: Of the draw and of the final order.
        num_samples: Size of the mixture; None takes every row, weights do not count then.

    Returns:
        Samples in training order, and which sources were short.
    """
    if num_samples is None:
        asked = tuple(len(samples) for _, _, samples in sources)
    else:
        asked = quotas([weight for _, weight, _ in sources], num_samples) if sources else ()
    chosen: list[Sample] = []
    short: dict[str, tuple[int, int]] = {}
    for (name, _, samples), count in zip(sources, asked, strict=True):
        if len(samples) < count:
            short[name] = (count, len(samples))
        chosen += [samples[i] for i in _order(len(samples), seed, name)[:count]]
    order = _order(len(chosen), seed, "\0mixture")
    return Mixture(tuple(chosen[i] for i in order), short)


def _named(source: SourceConfig) -> str:
    return source.name or source.path.stem


def load_data(cfg: DataConfig) -> ReadResult:
    """Read all sources and mix them by weight and seed.

    Args:
        cfg: Sources, size, media filter and seed.

    Returns:
        The mixture in training order. `skipped` lists each chosen row whose clip is missing, each row
        that the media filter or a path rule left out, and each source that had too few rows (row 0,
        `short_source`).

    Raises:
        DataError: For an unreadable file or a malformed row.
        ValueError: If two sources have the same name.
    """
    names = [_named(source) for source in cfg.sources]
    if len(set(names)) != len(names):
        raise ValueError(f"data.sources: names must differ, got {names}; set data.sources[].name")
    skipped: list[SkippedRow] = []
    read: list[tuple[str, float, Sequence[Sample]]] = []
    files: dict[str, Path] = {}
    for name, source in zip(names, cfg.sources, strict=True):
        path = resolve_hub_path(source.path)
        result = READERS[source.format](path, source.root, name=name, check_media=False)
        skipped += result.skipped
        kept = [s for s in result.samples if cfg.media in ("both", s.media_type)]
        if len(kept) < len(result.samples):
            count = len(result.samples) - len(kept)
            skipped.append(
                SkippedRow(path, 0, "data_type", f"media_filter: {count} rows are not {cfg.media}")
            )
        read.append((name, source.weight, kept))
        files[name] = path
    mixture = mix(read, seed=cfg.seed, num_samples=cfg.num_samples)
    for name, (asked, there) in mixture.short.items():
        words = f"short_source: {asked} rows asked, {there} there; lower its weight or data.num_samples"
        skipped.append(SkippedRow(files[name], 0, "weight", words))
    samples: list[Sample] = []
    for sample in mixture.samples:
        if sample.video.is_file():
            samples.append(sample)
        else:
            words = f"missing: {sample.uid}: no file {sample.video}; fetch it or correct the row"
            skipped.append(SkippedRow(files[sample.source], 0, "path", words))
    return ReadResult(tuple(samples), tuple(skipped))
