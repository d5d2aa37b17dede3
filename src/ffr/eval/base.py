"""The nouns of evaluation: what a benchmark is, what an item asks, what a score says.

A record is a row of a benchmark's official file, as it is on the hub; nothing of it is renamed. A
`Target` is what a scorer needs of it, an `Item` what a student is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from ffr.types import Option, Sample

Kind = Literal["choice", "number", "open", "yes_no", "match", "caption"]
"""How a target is answered: a letter, a number, free words, yes or no, one of the option sentences
(TempCompass caption matching), a caption."""

Profile = Literal["robust", "video_r1", "official", "lmms_eval", "vlmevalkit"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


@dataclass(frozen=True, slots=True)
class Target:
    """What a scorer needs of a record.

    Example:
        >>> Target("choice", "B", (Option("A", "a dog"), Option("B", "a cat"))).text
        'a cat'
    """

    kind: Kind
    answer: str
    """Gold: the letter for `choice`, `yes` or `no`, else the answer as the official file writes it."""
    options: tuple[Option, ...] = ()
    task: str = ""
    """The benchmark's own name of the question type (`object_counting`, `action_sequence`)."""
    accepted: tuple[str, ...] = ()
    """Further gold answers of an open question."""

    @property
    def text(self) -> str:
        """Gold in words: the option's text for `choice`, else the answer."""
        return next((o.text for o in self.options if o.label == self.answer), self.answer)


@dataclass(frozen=True, slots=True)
class Score:
    """What one profile says of one output. A failed extraction is wrong and counted, never dropped.

    Example:
        >>> Score(value=1.0, extracted="B", rule="answer_tag.letter").correct
        True
    """

    value: float
    """In [0, 1]; mean relative accuracy for numbers of VSI-Bench, else 0 or 1."""
    extracted: str
    """The answer as found; empty if none was."""
    rule: str
    """Which rule fired, dotted (`answer_tag.letter`); `none` if nothing could be extracted."""
    note: str = ""
    """What a person should know: `needs_judge`, `dropped_by_harness`, `random_in_harness`."""

    @property
    def correct(self) -> bool:
        """Whether the score is full."""
        return self.value >= 1.0

    @property
    def failed(self) -> bool:
        """Whether no answer could be extracted."""
        return self.rule == "none"


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark, ready to be asked.

    Example:
        >>> item.uid, item.task  # doctest: +SKIP
        ('mvbench/action_sequence/7', 'action_sequence')
    """

    benchmark: str
    uid: str
    """Unique over all benchmarks and stable between versions of ours: `<benchmark>/<own id>`."""
    record: Mapping[str, Any]
    sample: Sample
    """What the student is asked; its `clip_s` holds the official bounds, its `uid` is this one."""
    target: Target
    group: str
    """The video: questions on one video are one cluster of the interval."""
    source_index: int
    """Row in the official split (lmms-eval's `doc_id`)."""
    split: str = "test"
    chance: float = 0.0
    """Probability that a blind guess is right: 1 / number of options, 0 for open questions."""
    official_prompt: str = ""
    """The question as the benchmark's authors put it to a model, options and instruction included."""

    @property
    def task(self) -> str:
        """The benchmark's own name of the question type."""
        return self.target.task


@dataclass(frozen=True, slots=True)
class MissingMedia:
    """A question whose media is not on this machine.

    Example:
        >>> MissingMedia("mvbench/sta/3", "sta", Path("video/a.mp4")).task
        'sta'
    """

    uid: str
    task: str
    path: Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """A benchmark as found under a local root.

    Example:
        >>> Loaded(benchmark="mvbench", items=(), files=()).num_items
        0
    """

    benchmark: str
    items: tuple[Item, ...]
    """Every question of the asked tasks, those with missing media too: they count in the denominator."""
    files: tuple[tuple[Path, str], ...]
    """Annotation files read and their sha256."""
    missing: tuple[MissingMedia, ...] = ()
    notes: tuple[str, ...] = ()
    """What was unusual (`3 rows without a known task`), for people."""

    @property
    def num_items(self) -> int:
        """Size of the denominator."""
        return len(self.items)


class EvalDataError(ValueError):
    """A benchmark's files can't be read; the message names file, row, field and remedy."""


class Benchmark(Protocol):
    """One benchmark: where its files are, what a row means, which frames its authors take."""

    name: str
    title: str
    """As people write it (`VSI-Bench`)."""
    hub: str
    """Where it comes from, a name on the hub; nothing is downloaded."""
    licence: str
    tasks: tuple[str, ...]
    headline: str
    """Name of the official overall number (`micro`, `macro_8`, `mean_of_tracks`)."""

    def load(self, root: Path, *, tasks: Sequence[str] = ()) -> Loaded:
        """Reads the official files under `root`.

        Args:
            root: Directory with the annotation files and the media, laid out as on the hub.
            tasks: Only these; all when empty.

        Raises:
            EvalDataError: If a file is missing or a row can't be read.
        """
        ...

    def target(self, record: Mapping[str, Any]) -> Target:
        """What a scorer needs of an official row (also of the hub's variants of its field names).

        Raises:
            EvalDataError: If a field is missing.
        """
        ...

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        """The official choice of `num` frames out of `total` (0-based, within the bounds)."""
        ...

    def overall(self, by_task: Mapping[str, tuple[float, int]]) -> float:
        """The official overall number from `{task: (mean score, number of items)}`, in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class ProtocolCard:
    """All that decides a number besides the weights, stored with every result.

    Example:
        >>> ProtocolCard(num_frames=16, prompt_profile="video_r1", engine="hf").num_frames
        16
    """

    num_frames: int
    prompt_profile: str
    engine: str
    max_frame_px: int = 0
    min_frame_px: int = 0
    frame_rule: str = "uniform"
    indices_sha256: str = ""
    """Over the frame indices of all items, in order."""
    prompt_sha256: str = ""
    """Over the prompts of all items, in order."""
    template_sha256: str = ""
    """Of the model's chat template; empty where a server hides it."""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
