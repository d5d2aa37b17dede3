"""What an evaluation is: which questions, shown how, answered how often, and the hash of it all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ffr.config import NonNegFloat, NonNegInt, ObserveConfig, PositiveInt, Section
from ffr.eval.base import EvalDataError
from ffr.eval.models.base import Generation, ModelIdentity
from ffr.observe import template_version

PromptProfile = Literal["video_r1", "brief", "official"]


OptionMode = Literal["vote", "sparse_to_dense", "repair"]


class OptionConfig(Section):
    """A test-time option: more samples, more frames or a teacher's help for each question.

    Its rows have its mode, and its numbers a table of their own: they are no plain accuracy.

    Example:
        >>> OptionConfig(mode="vote").votes
        5
    """

    mode: OptionMode
    votes: int = Field(default=5, ge=2, le=64)
    """Answers that are sampled for each question, and for each number of frames or view of it."""
    rising: bool = False
    """Each further vote is drawn 0.15 hotter and from a nucleus 0.05 wider, up to 0.95 (Video-RTS)."""
    start_frames: PositiveInt = 4
    """`sparse_to_dense`: frames of the first votes; twice as many while they disagree."""
    teacher: str = ""
    """`repair`: who gives patches, with all that shapes them (`Teacher.name`)."""
    visual: Literal["none", "pointers", "frames"] = "pointers"
    """`repair`: what of a patch's visual context the student is shown."""
    max_teacher_calls: PositiveInt | None = None
    """`repair`: patches that the whole run may ask for."""
    settings: str = ""
    """`repair`: short hash of the gate's and the teacher's further settings."""

    def decisive(self) -> dict[str, Any]:
        """The settings that decide an output, by name; those of other modes are left out."""
        names = {
            "vote": (),
            "sparse_to_dense": ("start_frames",),
            "repair": ("teacher", "visual", "max_teacher_calls", "settings"),
        }[self.mode]
        return {name: getattr(self, name) for name in ("mode", "votes", "rising", *names)}

    def ladder(self, num: int) -> tuple[int, ...]:
        """Numbers of frames that a question is shown with, fewest first, `num` last.

        Example:
            >>> OptionConfig(mode="sparse_to_dense", start_frames=4).ladder(20)
            (4, 8, 16, 20)
        """
        if self.mode != "sparse_to_dense":
            return (num,)
        rungs: list[int] = []
        frames = self.start_frames
        while frames < num:
            rungs.append(frames)
            frames *= 2
        return (*rungs, num)


class EvalConfig(Section):
    """One evaluation run.

    Example:
        >>> EvalConfig(benchmarks=("mvbench",), root=Path("data"), frames=(16, 32)).seeds
        (42,)
    """

    benchmarks: tuple[str, ...] = Field(min_length=1)
    root: Path
    """Directory with one folder per benchmark, or of the one benchmark that is asked."""
    tasks: tuple[str, ...] = ()
    """`<task>` or `<benchmark>:<task>`; `all` for every task, empty for those that published tables use."""
    limit: PositiveInt | None = None
    """Questions per benchmark, taken from its tasks in turn."""
    frames: tuple[PositiveInt, ...] = (16,)
    """Every question is asked with each of these numbers of frames."""
    seeds: tuple[NonNegInt, ...] = (42,)
    frame_rule: Literal["uniform", "official"] = "uniform"
    """`official`: the frames that the benchmark's authors take; `uniform` is what students are trained on."""
    prompt: PromptProfile = "video_r1"
    state_frames: bool = True
    """Say in the prompt how many frames there are and when, as in training."""
    max_frame_px: PositiveInt = 128 * 28 * 28
    min_frame_px: PositiveInt = 16 * 28 * 28
    max_image_px: PositiveInt = 401_408
    size_factor_px: PositiveInt = 28
    """Sides of frames are multiples of it."""
    temperature: NonNegFloat = 0.0
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    max_tokens: PositiveInt = 1024
    batch_size: PositiveInt = 8
    """Questions answered in one call of a local model. Part of the configuration: in bfloat16 a row's
    rounding depends on its neighbours, so calls are the same ones after a resume."""
    concurrency: PositiveInt = 1
    """Calls that may be under way at once."""
    workers: PositiveInt = 2
    """Threads that decode ahead."""
    isolate: bool = False
    """Decode each clip in a process that can be killed: for files nobody vouches for."""
    cache_dir: Path | None = None
    """Frame cache, shared with training."""
    option: OptionConfig | None = None
    """A test-time option around the model; none for plain accuracy."""

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        for name in ("benchmarks", "frames", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must hold at least one value and none twice, got {values}")
        if self.min_frame_px > self.max_frame_px:
            raise ValueError(f"min_frame_px {self.min_frame_px} is above max_frame_px {self.max_frame_px}")
        if self.size_factor_px**2 > self.max_frame_px:
            raise ValueError(
                f"max_frame_px {self.max_frame_px} is less than one tile of {self.size_factor_px} px squared"
            )
        if self.option is not None and self.temperature == 0.0:
            raise ValueError(
                f"{self.option.mode} needs answers that differ: give a temperature above 0 (Video-RTS: "
                "temperature 0.8, top_p 0.7, rising)"
            )
        if self.isolate and self.frame_rule != "uniform":
            raise ValueError("isolate works with frame_rule 'uniform' only")
        return self

    @property
    def mode(self) -> str:
        """Of the rows: `plain`, or the option's."""
        return self.option.mode if self.option else "plain"

    def ladder(self, num: int) -> tuple[int, ...]:
        """Numbers of frames that a question of a row with `num` frames is shown with."""
        return self.option.ladder(num) if self.option else (num,)

    @property
    def greedy(self) -> bool:
        """Whether seeds change nothing."""
        return self.temperature == 0.0

    @property
    def asked_seeds(self) -> tuple[int, ...]:
        """The seeds that are run: the first alone when decoding is greedy."""
        return self.seeds[:1] if self.greedy else self.seeds

    @property
    def observe(self) -> ObserveConfig:
        """How clips are shown; `num_frames` is set per question."""
        return ObserveConfig(
            max_frame_px=self.max_frame_px,
            min_frame_px=self.min_frame_px,
            max_image_px=self.max_image_px,
            size_factor_px=self.size_factor_px,
            prompt="video_r1" if self.prompt == "official" else self.prompt,
            state_frames=self.state_frames,
            cache_dir=self.cache_dir,
        )

    def generation(self, seed: int) -> Generation:
        """How completions are drawn with one seed."""
        return Generation(
            temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, seed=seed
        )


def output_settings(cfg: EvalConfig, identity: ModelIdentity, *, engine: str) -> dict[str, Any]:
    """All that decides an output besides question, number of frames and seed; plain JSON values.

    Neither a server's address nor a checkpoint's directory is among them (both may change between a stop
    and the resume), nor are the questions asked.
    """
    return {
        "engine": engine,
        "model": "" if identity.weights_sha256 else identity.model,
        "weights_sha256": identity.weights_sha256,
        "template_sha256": identity.template_sha256,
        **{f"engine_{name}": value for name, value in sorted(identity.settings.items())},
        "frame_rule": cfg.frame_rule,
        "prompt": cfg.prompt,
        "prompt_version": "" if cfg.prompt == "official" else template_version(cfg.prompt),
        "state_frames": cfg.state_frames,
        "max_frame_px": cfg.max_frame_px,
        "min_frame_px": cfg.min_frame_px,
        "max_image_px": cfg.max_image_px,
        "size_factor_px": cfg.size_factor_px,
        "temperature": cfg.temperature,
        "top_p": cfg.top_p,
        "max_tokens": cfg.max_tokens,
        "batch_size": cfg.batch_size,
        **({f"option_{name}": value for name, value in cfg.option.decisive().items()} if cfg.option else {}),
    }


def config_hash(settings: Mapping[str, Any]) -> str:
    """Short name of `output_settings`: 16 hexadecimal digits.

    Example:
        >>> config_hash({"engine": "hf"})
        '8d500d637c1a3e32'
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tasks_of(
    benchmark: str, known: Sequence[str], asked: Sequence[str], default: Sequence[str] = ()
) -> tuple[str, ...]:
    """The tasks of one benchmark that `--tasks` names; empty stands for all of them.

    Args:
        benchmark: Its name.
        known: Its tasks.
        asked: Words of `--tasks`; those with another benchmark's prefix are passed over.
        default: What is run when no word is for this benchmark.

    Raises:
        EvalDataError: If a word with this benchmark's prefix is none of its tasks.

    Example:
        >>> tasks_of("mvbench", ["action_count"], ["mvbench:action_count", "lvbench:reasoning"])
        ('action_count',)
    """
    if "all" in asked or f"{benchmark}:all" in asked:
        return ()
    found: list[str] = []
    for word in asked:
        name, colon, task = word.rpartition(":")
        if colon and name != benchmark:
            continue
        if task in known:
            found.append(task)
        elif colon:
            raise EvalDataError(f"--tasks {word}: {benchmark} has the tasks {', '.join(known)}")
    return tuple(found or default)
