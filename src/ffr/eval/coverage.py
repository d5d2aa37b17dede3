"""What of a benchmark is on this machine: questions and media per task, hashes, clips that don't decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ffr.config import ObserveConfig
from ffr.eval.base import EvalDataError, Item, Loaded, MissingMedia
from ffr.eval.benchmarks import OfficialBenchmark, benchmark_root, get_benchmark
from ffr.observe import MediaError, load_clip
from ffr.types import Sample

_PROBE = ObserveConfig(num_frames=2, max_frame_px=28 * 28 * 4, min_frame_px=28 * 28, max_image_px=28 * 28 * 4)
_DAMAGE = ("truncated", "partial", "corrupt")
"""Notes of the decoder that mean lost frames."""


@dataclass(frozen=True, slots=True)
class BadClip:
    """A clip that is there and can't be shown whole.

    Example:
        >>> BadClip("mvbench/sta/3", "sta", Path("a.mp4"), "undecodable", "no video stream").status
        'undecodable'
    """

    uid: str
    task: str
    path: Path
    status: str
    """Of `ffr.observe.MediaError`, or the decoder's note (`truncated`, `partial`, `corrupt`)."""
    detail: str


@dataclass(frozen=True, slots=True)
class TaskCoverage:
    """One task's questions.

    Example:
        >>> TaskCoverage("sta", num_items=200, num_missing=3, num_bad=1).num_ready
        196
    """

    task: str
    num_items: int
    num_missing: int
    num_bad: int

    @property
    def num_ready(self) -> int:
        """Questions whose clip is there and can be decoded, as far as that was tried."""
        return self.num_items - self.num_missing - self.num_bad


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of one benchmark is on this machine.

    Example:
        >>> Coverage(benchmark="mvbench", root=Path("data"), error="no annotation file").complete
        False
    """

    benchmark: str
    root: Path
    tasks: tuple[TaskCoverage, ...] = ()
    files: tuple[tuple[Path, str], ...] = ()
    missing: tuple[MissingMedia, ...] = ()
    bad: tuple[BadClip, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
    """Why the annotation can't be read; empty if it can."""
    num_videos: int = 0

    @property
    def num_items(self) -> int:
        """Number of questions."""
        return sum(task.num_items for task in self.tasks)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing and nothing is damaged."""
        return not (self.error or self.missing or self.bad)

    @property
    def suggestions(self) -> tuple[str, ...]:
        """What a person can do about what is missing."""
        benchmark = get_benchmark(self.benchmark)
        source = f"{benchmark.title}: {benchmark.hub} on the hub ({benchmark.licence})"
        out: list[str] = []
        if self.error or self.missing:
            out.append(f"{source}; under {self.root}: {benchmark.layout}")
        if self.missing:
            first = self.missing[0]
            out.append(f"the first missing clip was looked for at {first.path} ({first.uid})")
        if self.bad:
            out.append(f"fetch the {len(self.bad)} damaged clips again; the first is {self.bad[0].path}")
        return tuple(out)


def check_benchmark(
    name: str,
    root: Path,
    *,
    tasks: Sequence[str] = (),
    decode: bool = True,
    workers: int = 2,
    on_clip: Callable[[int, int], None] | None = None,
) -> Coverage:
    """Reads a benchmark's files and looks at each of its clips.

    Args:
        name: A benchmark's name.
        root: Directory with one folder per benchmark, or of this one.
        tasks: Only these; all when empty.
        decode: Whether to decode the first and the last frame of each clip.
        workers: Threads that decode.
        on_clip: Called with (clips done, clips in all).

    Returns:
        The coverage; an annotation that can't be read is its `error`.

    Raises:
        EvalDataError: If the benchmark or a task is unknown.
    """
    benchmark = get_benchmark(name)
    unknown = sorted(set(tasks) - set(benchmark.tasks))
    if unknown:
        raise EvalDataError(f"{name}: unknown tasks {unknown}; known: {', '.join(benchmark.tasks)}")
    place = benchmark_root(root, name)
    try:
        loaded = benchmark.load(place, tasks=tasks)
    except EvalDataError as error:
        return Coverage(name, place, error=str(error))
    absent = {entry.uid for entry in loaded.missing}
    there = [item for item in loaded.items if item.uid not in absent]
    bad = _undecodable(there, workers, on_clip) if decode else ()
    return Coverage(
        benchmark=name,
        root=place,
        tasks=_by_task(benchmark, loaded, bad),
        files=loaded.files,
        missing=loaded.missing,
        bad=bad,
        notes=loaded.notes,
        num_videos=len({item.group for item in loaded.items}),
    )


def _by_task(
    benchmark: OfficialBenchmark, loaded: Loaded, bad: Sequence[BadClip]
) -> tuple[TaskCoverage, ...]:
    """One line per task, in the benchmark's order; a question of several types counts in each."""
    items, missing, failed = (
        Counter(label for entry in entries for label in benchmark.labels(entry.task))
        for entries in (loaded.items, loaded.missing, bad)
    )
    order = [
        *(task for task in benchmark.tasks if task in items),
        *(t for t in items if t not in benchmark.tasks),
    ]
    return tuple(TaskCoverage(task, items[task], missing[task], failed[task]) for task in order)


def _undecodable(
    items: Sequence[Item], workers: int, on_clip: Callable[[int, int], None] | None
) -> tuple[BadClip, ...]:
    """Questions whose clip fails; each clip with its bounds is decoded once."""
    asked: dict[tuple[Path, tuple[float, float] | None], list[Item]] = {}
    for item in items:
        asked.setdefault((item.sample.video, item.sample.clip_s), []).append(item)
    bad: list[BadClip] = []
    with ThreadPoolExecutor(workers) as pool:
        verdicts = pool.map(_probe, [group[0].sample for group in asked.values()])
        for done, (group, verdict) in enumerate(zip(asked.values(), verdicts, strict=True), start=1):
            if verdict is not None:
                bad += [BadClip(i.uid, i.task, i.sample.video, *verdict) for i in group]
            if on_clip is not None:
                on_clip(done, len(asked))
    return tuple(bad)


def _probe(sample: Sample) -> tuple[str, str] | None:
    """Status and detail of a clip that can't be shown whole."""
    try:
        notes = load_clip(sample, _PROBE).notes
    except MediaError as error:
        return error.status, error.detail
    damage = [note for note in notes if note.partition(":")[0] in _DAMAGE]
    return (damage[0].partition(":")[0], ", ".join(damage)) if damage else None
