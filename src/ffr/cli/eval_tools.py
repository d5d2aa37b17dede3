"""`ffr eval show|compare|power|rescore|export`: what can be done with runs that are on disk; no model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ffr.cli.errors import EXIT_OK, CliError, ConfigError

if TYPE_CHECKING:
    from ffr.eval.results import EvalRun

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
JsonFile = Annotated[Path | None, Parameter(name="--json", show_default=False)]
MarkdownFile = Annotated[Path | None, Parameter(name="--markdown", show_default=False)]
RobustProfile = Annotated[str, Parameter(name="--profile")]


def show(
    run: Path,
    /,
    *,
    profiles: Annotated[str, Parameter(name=["--profiles", "--profile"])] = "video_r1,robust",
    by_task: Switch = False,
    json_out: JsonFile = None,
    markdown_out: MarkdownFile = None,
) -> int:
    """Print the table of a run.

    Args:
        run: Run directory of ffr eval.
        profiles: Columns with commas: robust, video_r1 (strict), official, lmms_eval, vlmevalkit, or all.
        by_task: A line per question type, too.
        json_out: Also write the table as JSON to this file.
        markdown_out: Also write the table as Markdown to this file.
    """
    from ffr.eval.table import build_table
    from ffr.eval.table_text import to_json, to_markdown, to_rich

    names = _profiles(profiles)
    with _failures():
        table = build_table(_load(run), profiles=names, by_task=by_task)
        _console().print(to_rich(table))
        _write(markdown_out, to_markdown(table))
        _write(json_out, to_json(table))
    return EXIT_OK


def compare(
    first: Path,
    second: Path,
    /,
    *,
    profile: RobustProfile = "robust",
    allow_different: Switch = False,
    answered_only: Switch = False,
    draws: int = 10_000,
    json_out: JsonFile = None,
    markdown_out: MarkdownFile = None,
) -> int:
    """Compare two runs question by question: exact McNemar, and intervals clustered by video.

    Args:
        first: Run directory that is compared with.
        second: Run directory that is hoped to be better; differences are second less first.
        profile: Whose scores.
        allow_different: Compare although the protocols differ; the differences are listed.
        answered_only: Leave out questions for which a run has no output, instead of counting them as wrong.
        draws: Number of bootstrap draws.
        json_out: Also write the comparison as JSON to this file.
        markdown_out: Also write it as Markdown to this file.
    """
    from ffr.eval.compare import compare_runs
    from ffr.eval.compare_text import comparison_json, comparison_markdown, comparison_rich

    (name,) = _profiles(profile, most=1)
    if draws < 100:
        raise ConfigError([f"--draws: is {draws}, must be at least 100"])
    with _failures("; --allow-different compares them all the same"):
        result = compare_runs(
            _load(first),
            _load(second),
            profile=name,
            allow_different=allow_different,
            answered_only=answered_only,
            num_draws=draws,
        )
        _console().print(comparison_rich(result))
        _write(markdown_out, comparison_markdown(result))
        _write(json_out, comparison_json(result))
    return EXIT_OK


def power(
    run: Path | None = None,
    other: Path | None = None,
    /,
    *,
    effect: float = 1.5,
    base: float = 60.0,
    discordance: float = 20.0,
    power: float = 0.8,
    alpha: float = 0.05,
    icc: float = 0.05,
    per_video: float = 1.0,
    clusters: Annotated[int | None, Parameter(show_default=False)] = None,
    profile: RobustProfile = "robust",
    json_out: JsonFile = None,
    markdown_out: MarkdownFile = None,
) -> int:
    """How many questions does a difference need to be seen, and what can each benchmark show?

    Args:
        run: Run directory to measure on.
        other: A second one.
        effect: Difference of the accuracies, in points of 100.
        base: The lower accuracy, in points.
        discordance: Questions that one run alone has right, in percent.
        power: Probability to see the difference.
        alpha: Level of the two-sided test.
        icc: Likeness of questions on one video (intraclass correlation), 0 to 1.
        per_video: Questions per video.
        clusters: Number of videos, where that is the limit.
        profile: Whose scores of the runs.
        json_out: Also write the result as JSON to this file.
        markdown_out: Also write it as Markdown to this file.
    """
    from ffr.eval.power import Design, measure
    from ffr.eval.power_text import power_json, power_markdown, power_report, power_rich

    try:
        design = Design(
            effect=effect / 100,
            base=base / 100,
            discordance=discordance / 100,
            power=power,
            alpha=alpha,
            icc=icc,
            per_video=per_video,
        )
    except ValueError as error:
        raise ConfigError([f"{error} (as shares of 1)"]) from None
    if clusters is not None and clusters < 2:
        raise ConfigError([f"--clusters: is {clusters}, must be at least 2"])
    (name,) = _profiles(profile, most=1)
    with _failures():
        measured = [] if run is None else measure(_load(run), _load(other) if other else None, profile=name)
        report = power_report(design, num_videos=clusters, measured=measured)
        _console().print(power_rich(report))
        _write(markdown_out, power_markdown(report))
        _write(json_out, power_json(report))
    return EXIT_OK


def rescore(
    run: Path, /, *, profile: Annotated[str, Parameter(name=["--profile", "--profiles"])] = "all"
) -> int:
    """Score a run's outputs anew and print its table; no model needed, the outputs stay as they are.

    Args:
        run: Run directory of ffr eval.
        profile: Profiles with commas, or all; other profiles' scores are kept.
    """
    from ffr.eval.rescore import rescore as rescored
    from ffr.eval.table import build_table
    from ffr.eval.table_text import to_rich, write_tables

    names = _profiles(profile)
    console = _console()
    with _failures():
        loaded = _load(run)
        bar = Progress(
            TextColumn("scoring"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        with bar:
            task = bar.add_task("", total=len(loaded.rows))
            done = rescored(run, names, on_row=lambda: bar.advance(task))
        table = build_table(_load(run))
        write_tables(run, table)
        console.print(to_rich(table))
    console.print(
        f"{done.num_outputs} outputs scored under {', '.join(done.profiles)}: {done.num_changed} got another "
        "score than they had",
        soft_wrap=True,
    )
    return EXIT_OK


def export(
    run: Path,
    /,
    *,
    to: str,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], show_default=False)] = None,
) -> int:
    """Write a run's outputs in the form that another harness or script reads.

    Args:
        run: Run directory of ffr eval.
        to: lmms-eval (its model from_log), vlmevalkit (TSV), video-r1 (results and final_acc) or official
            (the authors' scripts).
        output: Directory to write into; RUN/export/TO when not given.
    """
    from ffr.eval.export import EXPORTS, export_run

    if to not in EXPORTS:
        raise ConfigError([f"--to: is {to!r}, must be one of {', '.join(EXPORTS)}"])
    folder = output or run / "export" / to
    console = _console()
    with _failures():
        done = export_run(_load(run), to, folder)
    for note in done.notes:
        console.print(note, markup=False, soft_wrap=True)
    if not done.files:
        raise CliError(f"{run}: nothing could be exported to {to}")
    console.print(f"{done.num_answers} outputs in {len(done.files)} files: {folder}", soft_wrap=True)
    return EXIT_OK


def _console() -> Console:
    return Console(highlight=False, markup=False)


def _load(run: Path) -> EvalRun:
    from ffr.eval.results import load_run

    return load_run(run)


def _profiles(words: str, *, most: int | None = None) -> tuple[str, ...]:
    from ffr.eval.base import PROFILES
    from ffr.eval.results import chosen

    names = [word.strip().replace("-", "_") for word in words.split(",") if word.strip()]
    try:
        found = chosen(names, PROFILES, "profile")
    except ValueError as error:
        raise ConfigError([f"--profile: {error}"]) from None
    if not found or (most is not None and len(found) > most):
        raise ConfigError([f"--profile: is {words!r}, must be one of {', '.join(PROFILES)}"])
    return found


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        from ffr.eval.table_text import write_text

        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


@contextmanager
def _failures(hint: str = "") -> Iterator[None]:
    """Turns what a user can mend into an error without a traceback.

    Args:
        hint: Added where protocols differ.

    Raises:
        CliError: In place of a run's, a benchmark's or a file's error.
    """
    from ffr.eval.base import EvalDataError
    from ffr.eval.compare import ProtocolMismatchError
    from ffr.eval.rows import RunFileError
    from ffr.eval.store import RunMixError

    try:
        yield
    except ProtocolMismatchError as error:
        raise CliError(f"{error}{hint}") from error
    except (EvalDataError, RunFileError, RunMixError, ValueError, OSError) as error:
        raise CliError(str(error)) from error
