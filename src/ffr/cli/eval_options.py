"""Test-time options of `ffr eval`: their flags, and what they put around the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from ffr.cli.errors import CliError, ConfigError
from ffr.cli.eval_flags import Switch

if TYPE_CHECKING:
    from ffr.config import FixConfig
    from ffr.eval.models import Answerer
    from ffr.eval.options import BudgetedRepair
    from ffr.eval.runner import Respond
    from ffr.eval.settings import EvalConfig, OptionConfig
    from ffr.fix import Journal, Teacher

JOURNAL = "teacher.sqlite"
_GROUP = Group("Test-time options, reported apart", sort_key=5)


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class OptionFlags:
    """More samples, more frames or a teacher's help for each question.

    Example:
        >>> OptionFlags(vote=5).repair
        False
    """

    vote: int | None = None
    """Sampled answers per question; the one that most give counts. Needs --temperature."""
    sparse_start: int | None = None
    """Vote on so many frames, then on twice as many, while the votes disagree, up to --frames."""
    repair: Switch = False
    """Where the votes disagree a teacher points at frames, never knowing the answer, and votes follow."""
    rising: Switch = False
    """Each vote 0.15 hotter, nucleus 0.05 wider up to 0.95 (Video-RTS: --temperature 0.8 --top-p 0.7)."""
    teacher_calls: int | None = None
    """Patches that the whole run may ask for."""
    visual: Literal["none", "pointers", "frames"] = "pointers"
    """What of a patch's visual context the student is shown."""


@Parameter(group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """Who repairs.

    Example:
        >>> TeacherFlags().type
        'openai'
    """

    type: Literal["openai", "oracle"] = "openai"
    """A server, or the oracle that knows MicroWorld's evidence."""
    base_url: Annotated[str, Parameter(show_default=False)] = ""
    """Of the teacher's server."""
    model: Annotated[str, Parameter(show_default=False)] = ""
    """The server's name for it."""
    api_key_env: str = "FFR_TEACHER_API_KEY"
    """Environment variable with its key."""
    profile: Literal["auto", "vllm", "sglang", "openai", "glm", "transformers"] = "auto"
    """What the server understands (`ffr doctor teacher` finds it out)."""


NO_OPTION, TEACHER = OptionFlags(), TeacherFlags()


class OptionRun:
    """A test-time option around a model, and what has to be closed after it; plain answers without one.

    Args:
        cfg: The run; its option is added by `plan`.
    """

    def __init__(self, cfg: EvalConfig, teacher: Teacher | None = None, fix: FixConfig | None = None) -> None:
        self.cfg = cfg
        self._teacher, self._fix = teacher, fix
        self._journal: Journal | None = None
        self._repair: BudgetedRepair | None = None

    @property
    def suffix(self) -> str:
        """What the run's default directory ends in: its rows are no plain ones."""
        option = self.cfg.option
        return f"-{option.mode}{option.votes}" if option else ""

    def respond(self, answerer: Answerer, run: Path) -> Respond:
        """Who answers the runner's questions; the teacher's outcomes are kept in the run's directory.

        Raises:
            CliError: The journal can't be kept.
        """
        from ffr.eval.runner import plain

        option = self.cfg.option
        if option is None:
            return plain(answerer)
        from ffr.eval.options import BudgetedRepair, majority_vote, sparse_to_dense
        from ffr.fix import Journal, JournalError

        if option.mode != "repair":
            return (majority_vote if option.mode == "vote" else sparse_to_dense)(answerer, option)
        assert self._teacher is not None and self._fix is not None  # `plan` has made them
        try:
            self._journal = Journal(run / JOURNAL)
        except JournalError as error:
            raise CliError(str(error)) from error
        self._repair = BudgetedRepair(answerer, option, self._teacher, self._fix, self._journal)
        return self._repair

    async def aclose(self) -> None:
        """Closes the teacher and its journal."""
        if self._teacher is not None:
            await self._teacher.aclose()
        if self._journal is not None:
            self._journal.close()

    def lines(self) -> list[str]:
        """What the teacher was asked and what came of it."""
        if self._repair is None:
            return []
        statuses = ", ".join(f"{number} {status}" for status, number in sorted(self._repair.statuses.items()))
        counts = self._repair.counters
        cost = f"{counts['teacher_calls']} teacher calls, {counts['cached']} replayed, "
        cost += f"{counts['prompt_tokens']} + {counts['completion_tokens']} tokens"
        failures = sorted(name for name in counts if name.startswith("failure/") and counts[name])
        told = [f"{counts[name]} {name.removeprefix('failure/')}" for name in failures]
        return [f"repair: {statuses}", cost + (f"; failures: {', '.join(told)}" if told else "")]


def plan_option(cfg: EvalConfig, flags: OptionFlags, teacher: TeacherFlags) -> OptionRun:
    """The run with its option, and the teacher where one is needed.

    Raises:
        ConfigError: Flags that exclude each other, or a value that is not allowed.
    """
    from pydantic import ValidationError

    from ffr.eval.settings import EvalConfig

    mode = _mode(flags)
    if mode is None:
        return OptionRun(cfg)
    values: dict[str, Any] = {"mode": mode, "rising": flags.rising}
    if flags.vote is not None:
        values["votes"] = flags.vote
    if flags.sparse_start is not None:
        values["start_frames"] = flags.sparse_start
    found, fix = _teacher(cfg, flags, teacher) if flags.repair else (None, None)
    if found is not None and fix is not None:
        values |= {
            "teacher": found.name,
            "visual": flags.visual,
            "max_teacher_calls": flags.teacher_calls,
            "settings": _gate_hash(fix),
        }
    try:
        full = EvalConfig.model_validate({**cfg.model_dump(), "option": values})
    except ValidationError as error:
        problems = (str(one["msg"]).removeprefix("Value error, ") for one in error.errors(include_url=False))
        raise ConfigError([f"--{mode.replace('_', '-')}: {problem}" for problem in problems]) from None
    return OptionRun(full, found, fix)


def _mode(flags: OptionFlags) -> Literal["vote", "sparse_to_dense", "repair"] | None:
    if flags.repair and flags.sparse_start is not None:
        raise ConfigError(["--repair and --sparse-start: give one of them"])
    if not flags.repair and (flags.teacher_calls is not None or flags.visual != "pointers"):
        raise ConfigError(["--teacher-calls and --visual go with --repair"])
    if flags.repair:
        return "repair"
    if flags.sparse_start is not None:
        return "sparse_to_dense"
    if flags.vote is None and flags.rising:
        raise ConfigError(["--rising goes with --vote, --sparse-start or --repair"])
    return None if flags.vote is None else "vote"


def _teacher(cfg: EvalConfig, flags: OptionFlags, teacher: TeacherFlags) -> tuple[Teacher, FixConfig]:
    from pydantic import ValidationError

    from ffr.config import FixConfig
    from ffr.fix import make_teacher

    server = {
        "type": teacher.type,
        "base_url": teacher.base_url,
        "api_key_env": teacher.api_key_env,
        "profile": teacher.profile,
        **({"model": teacher.model} if teacher.model else {}),
    }
    try:
        fix = FixConfig.model_validate({"teacher": server, "reference_answer": False, "visual": flags.visual})
        found = make_teacher(fix, cfg.observe)
    except ValidationError as error:
        raise ConfigError([f"--teacher: {one['msg']}" for one in error.errors(include_url=False)]) from None
    except ValueError as error:
        words = str(error).replace("fix.teacher.base_url", "--teacher.base-url")
        raise ConfigError([words.replace("fix.teacher.type", "--teacher.type")]) from None
    assert found is not None  # both types make one
    return found, fix


def _gate_hash(fix: FixConfig) -> str:
    """Of what shapes a patch besides the teacher's name."""
    from ffr.fix.teacher import short_hash

    return short_hash(fix.leak.model_dump_json(), fix.prompt_config)


def option_words(option: OptionConfig) -> str:
    """The option for people.

    Example:
        >>> from ffr.eval.settings import OptionConfig
        >>> option_words(OptionConfig(mode="vote", rising=True))
        'vote: 5 answers per question and view, rising temperature'
    """
    words = f"{option.mode}: {option.votes} answers per question and view"
    if option.rising:
        words += ", rising temperature"
    if option.mode == "sparse_to_dense":
        words += f", from {option.start_frames} frames on"
    if option.mode == "repair":
        budget = (
            "any number of" if option.max_teacher_calls is None else f"at most {option.max_teacher_calls}"
        )
        words += f", teacher {option.teacher} ({budget} calls, no reference answer)"
    return words
