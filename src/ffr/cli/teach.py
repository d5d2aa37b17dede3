"""`ffr teach`: evidence patches for failures that are already on disk; no training, no torch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console

from ffr.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CliError, ConfigError
from ffr.cli.help import settings_help
from ffr.cli.schema import find_setting
from ffr.cli.settings import Override, load_config, parse_overrides
from ffr.cli.teach_progress import TeachProgress, summary_table
from ffr.cli.train import ConfigFiles, SettingWords, config_files, log_to, print_skipped
from ffr.config import Config

if TYPE_CHECKING:
    from ffr.data import ReadResult
    from ffr.fix import Teacher
    from ffr.fix.offline import FailedRollout, OfflineRun, Selection

SHORT, LONG = "--teacher.", "--fix.teacher."
FLAGS = ("--rollouts", "--output", "--root", "--format", "--name", "--budget", "--config", "--help")
FLAGS += ("--no-reference-answer", "--no-visual")
SHOWN_SECTIONS = ("observe", "find", "fix", "fix.teacher", "fix.leak", "fix.budget")
Switch = Annotated[bool, Parameter(negative=())]

app = App(
    name="teach",
    help="Ask a teacher for evidence patches for failed rollouts; no training and no torch.",
    help_prologue="ffr teach QUESTIONS --rollouts FILE --output FILE [--teacher.key VALUE ...]",
    help_epilogue=settings_help(
        examples=(
            "ffr teach questions.json --rollouts rollouts.jsonl -o patches.jsonl \\",
            "  --teacher.base-url URL --teacher.model zai-org/GLM-4.5V",
            "ffr teach questions.json --rollouts rollouts.jsonl -o patches.jsonl \\",
            "  --teacher.base-url URL --no-reference-answer --budget 100",
            "ffr teach world/train.json --rollouts r.jsonl -o p.jsonl \\",
            "  --teacher.type oracle",
            "",
            'ROLLOUTS: {"uid": "<file stem>/<id>", "text": "...<answer>A</answer>"}',
            "Only rollouts that the verifier finds wrong are put to the teacher.",
            "",
            "PATCHES: one row each, status patched, leaked, teacher_failed, over_budget",
            "or media_error. A leaked row's patch is there to be audited, never shown.",
            "Stop with Ctrl-C; the same command goes on: PATCHES and its journal beside",
            "it keep what was paid for, and --budget counts over all these runs.",
            "",
            "--teacher.x is short for --fix.teacher.x.",
        ),
        only=SHOWN_SECTIONS,
    ),
    help_format="plaintext",
    usage="",
)


@app.default
def teach(
    *words: SettingWords,
    rollouts: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    root: Path | None = None,
    format: str = "auto",
    name: str = "",
    budget: int | None = None,
    no_reference_answer: Switch = False,
    no_visual: Switch = False,
    config: ConfigFiles = None,
) -> int:
    """Ask a teacher for evidence patches for failed rollouts; no training and no torch.

    Args:
        words: The question file, and single settings, which win over the files.
        rollouts: JSONL file of rollouts, rows of uid and text; several per question allowed.
        output: JSONL file of patches; an earlier run's is continued.
        root: Media root of the questions; the question file's folder when not given.
        format: Of the question file: auto, video_r1, video_holmes or jsonl.
        name: Source name in uids; the question file's stem when not given.
        budget: Teacher calls that may be paid in all.
        no_reference_answer: Keep the gold answer from the teacher.
        no_visual: Leave frame ranges and boxes out of the text for the student.
        config: TOML files; later ones win.
    """
    console = Console(highlight=False)
    questions, overrides = split_words(words)
    if no_reference_answer:
        overrides.append(("fix.reference_answer", "false"))
    if no_visual:
        overrides.append(("fix.visual", "none"))
    if budget is not None:
        overrides.append(("fix.budget.max_calls_per_run", str(budget)))
    cfg = load_config(config_files(config), overrides)
    log_to(console)
    result = read_questions(questions, root or questions.parent, format, name)
    print_skipped(result, console)
    selection = select(result, rollouts, cfg, console)
    return run_teaching(cfg, selection, output, make(cfg), console)


def split_words(words: Sequence[str]) -> tuple[Path, list[Override]]:
    """The question file, and the settings with `--teacher.x` written out.

    Raises:
        ConfigError: Not exactly one question file, or a word that is no setting.

    Example:
        >>> split_words(["--teacher.model", "m", "q.json"])
        (PosixPath('q.json'), [('fix.teacher.model', 'm')])
    """
    files: list[str] = []
    tokens: list[str] = []
    rest = list(words)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            files.append(token)
            continue
        tokens.append(LONG + token.removeprefix(SHORT) if token.startswith(SHORT) else token)
        setting = find_setting(tokens[-1][2:].replace("-", "_"))
        takes_value = "=" not in token and (setting is None or setting.kind != "boolean")
        literal = rest and rest[0].lower() in {"true", "false", "yes", "no", "on", "off", "1", "0"}
        if rest and (literal if not takes_value else not rest[0].startswith("--")) and "=" not in token:
            tokens.append(rest.pop(0))
    overrides = parse_overrides(tokens, flags=FLAGS)
    if len(files) != 1:
        given = ", ".join(files) or "none"
        raise ConfigError([f"QUESTIONS: one question file is needed, given: {given}"])
    return Path(files[0]), overrides


def read_questions(path: Path, root: Path, form: str, name: str) -> ReadResult:
    """The question file through the reader that `form` names, or that its first row asks for.

    Raises:
        ConfigError: An unknown format.
        CliError: The file cannot be read or is malformed.
    """
    from ffr.data import DataError, read_jsonl, read_video_holmes, read_video_r1
    from ffr.data.base import load_rows

    readers = {"video_r1": read_video_r1, "video_holmes": read_video_holmes, "jsonl": read_jsonl}
    if form not in ("auto", *readers):
        raise ConfigError([f"--format: is {form!r}, must be one of auto, {', '.join(readers)}"])
    try:
        if form == "auto":
            _, first = next(load_rows(path), (0, {}))
            form = "jsonl" if "uid" in first else "video_holmes" if "video ID" in first else "video_r1"
        return readers[form](path, root, name=name)
    except DataError as error:
        raise CliError(str(error)) from error


def select(result: ReadResult, rollouts: Path, cfg: Config, console: Console) -> Selection:
    """The failed rollouts, with a loud count of those that name no question.

    Raises:
        CliError: The rollouts cannot be read, or none of them names a question of the file.
    """
    from ffr.data import DataError
    from ffr.fix.offline import read_rollouts, select_failed

    try:
        found = select_failed(result.samples, read_rollouts(rollouts), cfg)
    except DataError as error:
        raise CliError(str(error)) from error
    total = len(found.failed) + found.num_correct + found.num_duplicates + len(found.unknown)
    console.print(
        f"rollouts: {total}, {len(found.failed)} wrong, {found.num_correct} right, "
        f"{found.num_duplicates} repeated",
        markup=False,
    )
    if found.unknown:
        example = result.samples[0].uid if result.samples else "none"
        words = f"{len(found.unknown)} rollouts name no usable question, the first {found.unknown[0]!r}"
        words += f" (a uid of the question file: {example!r}; --name sets the part before the slash)"
        if len(found.unknown) == total:
            raise CliError(f"{rollouts}: field 'uid': all {words}")
        console.print(f"WARNING: {words}", style="bold yellow", markup=False, soft_wrap=True)
    return found


def make(cfg: Config) -> Teacher:
    """The teacher of `fix.teacher`.

    Raises:
        CliError: None is named, or its settings do not do.
    """
    from ffr.fix import make_teacher

    try:
        teacher = make_teacher(cfg.fix, cfg.observe)
    except ValueError as error:
        raise CliError(str(error)) from error
    if teacher is None:
        raise CliError("fix.teacher.type is 'none'; give --teacher.base-url, or --teacher.type oracle")
    return teacher


def run_teaching(cfg: Config, selection: Selection, output: Path, teacher: Teacher, console: Console) -> int:
    """Ask about everything that has no final row yet, then print the summary.

    Returns:
        Exit code: 0 when every rollout has a row, 130 when it was interrupted.

    Raises:
        CliError: The teacher never worked or stopped working, or the files cannot be used.
    """
    from ffr.fix import Journal, JournalError, NoTeacherError
    from ffr.fix.offline import OfflineRun, setup_of
    from ffr.fix.patch_file import PatchFile, PatchFileError

    started, code = time.monotonic(), EXIT_FAILED
    try:
        with PatchFile(output, setup_of(cfg, teacher.name)) as rows:
            journal = Journal(output.with_name(f"{output.name}.journal.sqlite"))
            todo = [item for item in selection.failed if item.key not in rows.done]
            if rows.done:
                console.print(f"{output}: {len(rows.done)} rows are there already, {len(todo)} to do")
            progress = TeachProgress(len(todo), cfg, console)

            def on_row(row: Mapping[str, object]) -> None:
                rows.write(row)
                progress.row(str(row["status"]), run.counters)

            run = OfflineRun(cfg, teacher, journal=journal, on_row=on_row)
            try:
                asyncio.run(_run(run, todo, teacher))
                code = EXIT_OK
            except KeyboardInterrupt:
                code = EXIT_INTERRUPTED
            finally:
                progress.close()
                journal.close()
                seconds = time.monotonic() - started
                console.print(summary_table(rows.statuses, progress.num_rows, run.counters, cfg, seconds))
    except (PatchFileError, JournalError, NoTeacherError) as error:
        raise CliError(str(error)) from error
    if code == EXIT_INTERRUPTED:
        console.print("stopped; the same command goes on from here")
    console.print(f"patches: {output}", soft_wrap=True)
    return code


async def _run(run: OfflineRun, todo: Sequence[FailedRollout], teacher: Teacher) -> None:
    try:
        await run(todo)
    finally:
        await run.aclose()
        await teacher.aclose()
