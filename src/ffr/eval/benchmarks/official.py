"""What the benchmarks share: rows of a file become items, their media is looked for under the root."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ffr.eval.base import EvalDataError, Item, Loaded, MissingMedia, Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import Fields
from ffr.eval.benchmarks.files import Annotations, SourceRow, locate, read_split
from ffr.eval.benchmarks.media import find_media
from ffr.types import Evidence, ProblemType, Sample

_PROBLEM_TYPES = {"choice": ProblemType.MULTIPLE_CHOICE, "number": ProblemType.REGRESSION}


class OfficialBenchmark(ABC):
    """A benchmark read from its own files; each subclass says what its rows mean.

    Example:
        >>> from ffr.eval.benchmarks import get_benchmark
        >>> get_benchmark("mvbench").title
        'MVBench'
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str]
    licence: ClassVar[str]
    layout: ClassVar[str]
    """What to put where under the root, for people."""
    files: ClassVar[tuple[str, ...]] = ()
    """Glob patterns of the annotation file, the official name first."""
    tasks: ClassVar[tuple[str, ...]]
    headline: ClassVar[str] = "micro"
    default_tasks: ClassVar[tuple[str, ...]] = ()
    """What published tables of video reasoners use, where that is less than all tasks."""
    split: ClassVar[str] = "test"

    @abstractmethod
    def target(self, record: Mapping[str, Any]) -> Target:
        """What a scorer needs of an official row, or of the hub's variant of it."""

    def rows(self, root: Path, tasks: Sequence[str]) -> Annotations:
        """The annotation rows under `root`, of the asked tasks where each has a file of its own."""
        return read_split(locate(root, self.name, self.files))

    @abstractmethod
    def media(self, row: Fields) -> tuple[str, ...]:
        """Where a row's media may lie, relative to the root, the official place first."""

    def own_id(self, row: Fields, source: SourceRow) -> str:
        """The row's id within the benchmark."""
        return row.text("id", default=str(source.source_index))

    def group(self, row: Fields) -> str:
        """The video's name."""
        return self.media(row)[0]

    def question(self, row: Fields, target: Target) -> str:
        """The question without its options, as the student is asked."""
        return row.text("question")

    @abstractmethod
    def prompt(self, row: Fields, target: Target) -> str:
        """The text that the benchmark's authors put to a model."""

    def clip_s(self, row: Fields, video: Path) -> tuple[float, float] | None:
        """Official bounds inside the file, seconds."""
        return None

    def folder_fps(self, row: Fields, video: Path) -> float | None:
        """Frames per second where the media is a folder of images."""
        return None

    def evidence(self, row: Fields) -> Evidence | None:
        """Where the answer can be seen, if the benchmark says so."""
        return None

    def labels(self, task: str) -> tuple[str, ...]:
        """The question types that a task name stands for: several for LVBench."""
        return (task,)

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        """`num` of `total` frames, spread evenly with the first and the last."""
        return sampling.linspace(total, num)

    def overall(self, by_task: Mapping[str, tuple[float, int]]) -> float:
        """Micro average: every question counts the same."""
        return micro(by_task)

    def load(self, root: Path, *, tasks: Sequence[str] = ()) -> Loaded:
        """Reads the official files under `root`; see `Benchmark.load`.

        Raises:
            EvalDataError: If a file is missing, a task is unknown or a row can't be read.
        """
        root = Path(root)
        unknown = sorted(set(tasks) - set(self.tasks))
        if unknown:
            raise EvalDataError(f"{self.name}: unknown tasks {unknown}; known: {', '.join(self.tasks)}")
        annotations = self.rows(root, tasks)
        items: list[Item] = []
        missing: list[MissingMedia] = []
        uids: set[str] = set()
        doubles = 0
        for source in annotations.rows:
            try:
                item, found = self._item(root, source)
            except EvalDataError as error:
                raise EvalDataError(f"{source.file}, row {source.number}: {error}") from None
            if tasks and not set(self.labels(item.task)) & set(tasks):
                continue
            if item.uid in uids:
                doubles += 1
                item = _renamed(item, f"{item.uid}#{source.number}")
            uids.add(item.uid)
            items.append(item)
            if not found:
                missing.append(MissingMedia(item.uid, item.task, item.sample.video))
        files = tuple((path, annotations.files[path]) for path in sorted(annotations.files))
        notes = [f"{doubles} rows have the id of another one; theirs ends in #<row>"] if doubles else []
        return Loaded(self.name, tuple(items), files, tuple(missing), (*annotations.notes, *notes))

    def _item(self, root: Path, source: SourceRow) -> tuple[Item, bool]:
        row = Fields(self.name, source.record)
        target = self.target(source.record)
        uid = f"{self.name}/{self.own_id(row, source)}"
        video, found = find_media(root, self.media(row), row)
        fps = self.folder_fps(row, video)
        sample = Sample(
            uid=uid,
            question=self.question(row, target),
            answer=target.answer,
            problem_type=_PROBLEM_TYPES.get(target.kind, ProblemType.FREE_FORM),
            video=video,
            options=target.options if target.kind == "choice" else (),
            source=self.name,
            scenario=target.task,
            clip_s=self.clip_s(row, video),
            evidence=self.evidence(row),
            meta={"folder_fps": fps} if fps else {},
        )
        item = Item(
            benchmark=self.name,
            uid=uid,
            record=source.record,
            sample=sample,
            target=target,
            group=self.group(row),
            source_index=source.source_index,
            split=source.split or self.split,
            chance=chance(target),
            official_prompt=self.prompt(row, target),
        )
        return item, found


def _renamed(item: Item, uid: str) -> Item:
    return replace(item, uid=uid, sample=replace(item.sample, uid=uid))


def chance(target: Target) -> float:
    """Probability that a blind guess is right: 1 / number of options, 1/2 for yes or no, else 0."""
    if target.kind == "yes_no":
        return 0.5
    return 1 / len(target.options) if target.kind in ("choice", "match") and target.options else 0.0


def micro(by_task: Mapping[str, tuple[float, int]]) -> float:
    """Mean over questions; 0 without any."""
    total = sum(count for _, count in by_task.values())
    return sum(mean * count for mean, count in by_task.values()) / total if total else 0.0


def macro(means: Sequence[float]) -> float:
    """Mean over tasks; 0 without any."""
    return sum(means) / len(means) if means else 0.0


def lettered_lines(target: Target, form: str = "{label}. {text}") -> str:
    """The options, one per line."""
    return "\n".join(form.format(label=o.label, text=o.text) for o in target.options)
