"""`ffr doctor data`: what is missing of the benchmarks, and what a training file shares with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ffr.cli.errors import EXIT_FAILED, EXIT_OK, CliError, ConfigError

if TYPE_CHECKING:
    from ffr.eval.contamination import TrainingReport
    from ffr.eval.coverage import Coverage

Switch = Annotated[bool, Parameter(negative=())]
MAX_LISTED_FILES = 4
"""Annotation files shown with a hash each; more get one hash together (`--json` has all)."""

app = App(
    name="data",
    help="Check that benchmarks are complete, or that a training file shares nothing with them.",
    help_epilogue=(
        "Examples:\n"
        "  ffr doctor data --root benchmarks --benchmarks mvbench,lvbench\n"
        "  ffr doctor data --root benchmarks --no-decode --json coverage.json\n"
        "  ffr doctor data --root benchmarks --train train.json --write-clean clean.json\n\n"
        "Exit code 1 if a file is missing, a clip is missing or damaged, a training row\n"
        "overlaps (unless a clean file is written) or a benchmark was not compared."
    ),
    help_format="plaintext",
)


@app.default
def data(
    *,
    root: Path,
    benchmarks: str = "",
    train: Path | None = None,
    write_clean: Path | None = None,
    no_decode: Switch = False,
    workers: int = 2,
    shown: int = 5,
    json_out: Annotated[Path | None, Parameter(name="--json")] = None,
) -> int:
    """Check that benchmarks are complete, or that a training file shares nothing with them.

    Exit code 1 if a file is missing, a clip is missing or damaged, a training row overlaps (unless a clean
    file is written) or a benchmark could not be compared with.

    Args:
        root: Directory with one folder per benchmark, or of the one that is asked.
        benchmarks: Names with commas between; the eight public ones when empty.
        train: Video-R1, Video-Holmes or JSONL file to compare with all questions; no clip is needed.
        write_clean: Write the training rows that match nothing, as they are.
        no_decode: Only look whether clips are there.
        workers: Threads that decode.
        shown: Examples printed per problem.
        json_out: Also write everything that was found as JSON.
    """
    from ffr.eval.benchmarks import BENCHMARKS, PUBLIC

    names = tuple(name.strip() for name in benchmarks.split(",") if name.strip()) or PUBLIC
    problems = [
        f"--benchmarks: unknown {n!r}; known: {', '.join(BENCHMARKS)}" for n in names if n not in BENCHMARKS
    ]
    if write_clean is not None and train is None:
        problems.append("--write-clean needs --train: the file to clean")
    if workers < 1 or shown < 0:
        problems.append("--workers must be at least 1 and --shown at least 0")
    if not root.is_dir():
        problems.append(f"--root {root}: no such directory")
    if problems:
        raise ConfigError(problems)
    console = Console(highlight=False, soft_wrap=True)
    if train is not None:
        return _training(train, root, names, write_clean, shown, json_out, console)
    return _coverage(names, root, not no_decode, workers, shown, json_out, console)


def _coverage(
    names: Sequence[str],
    root: Path,
    decode: bool,
    workers: int,
    shown: int,
    json_out: Path | None,
    console: Console,
) -> int:
    from ffr.eval.coverage import check_benchmark

    found: list[Coverage] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in names:
            task = progress.add_task(f"{name}: clips", total=None)

            def advance(done: int, total: int, task: Any = task) -> None:
                progress.update(task, completed=done, total=total)

            found.append(check_benchmark(name, root, decode=decode, workers=workers, on_clip=advance))
            progress.remove_task(task)
    console.print(coverage_table(found, decoded=decode))
    for coverage in found:
        print_problems(coverage, console, shown)
    if json_out is not None:
        _write_json(json_out, [coverage_json(coverage) for coverage in found])
    complete = all(coverage.complete for coverage in found)
    done = sum(coverage.complete for coverage in found)
    console.print(f"{done} of {len(found)} benchmarks are complete")
    return EXIT_OK if complete else EXIT_FAILED


def coverage_table(found: Sequence[Coverage], *, decoded: bool) -> Table:
    """One line per task: questions, those without a clip, those whose clip is damaged."""
    table = Table("benchmark", "task", box=None, pad_edge=False)
    for heading in ("questions", "missing", "damaged", "ready"):
        table.add_column(heading, justify="right")
    for coverage in found:
        if coverage.error:
            table.add_row(coverage.benchmark, "no annotation", "", "", "", "", style="red")
        for task in coverage.tasks:
            whole = task.num_ready == task.num_items
            cells = (str(task.num_items), str(task.num_missing), str(task.num_bad) if decoded else "-")
            style = "" if whole else "red"
            table.add_row(coverage.benchmark, task.task, *cells, str(task.num_ready), style=style)
    return table


def print_problems(coverage: Coverage, console: Console, shown: int) -> None:
    """Hashes, the first missing and damaged clips, and what to do."""
    if coverage.num_items:
        line = f"{coverage.benchmark}: {coverage.num_items} questions on {coverage.num_videos} videos"
        console.print(line, style="bold", markup=False)
    if len(coverage.files) > MAX_LISTED_FILES:
        together = hashlib.sha256("".join(digest for _, digest in coverage.files).encode()).hexdigest()
        console.print(f"  {len(coverage.files)} annotation files, together sha256 {together[:16]}")
    else:
        for path, digest in coverage.files:
            console.print(f"  {path.name} sha256 {digest[:16]}", markup=False)
    if coverage.error:
        console.print(f"  {coverage.error}", style="red", markup=False)
    for entry in coverage.missing[:shown]:
        console.print(f"  missing: {entry.uid}: {entry.path}", style="red", markup=False)
    for clip in coverage.bad[:shown]:
        console.print(f"  {clip.status}: {clip.uid}: {clip.path}: {clip.detail}", style="red", markup=False)
    rest = len(coverage.missing[shown:]) + len(coverage.bad[shown:])
    if rest:
        console.print(f"  ... and {rest} more (--shown, --json)")
    for line in (*coverage.notes, *coverage.suggestions):
        console.print(f"  {line}", style="yellow", markup=False)


def coverage_json(coverage: Coverage) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    return {
        "benchmark": coverage.benchmark,
        "complete": coverage.complete,
        "error": coverage.error,
        "num_questions": coverage.num_items,
        "num_videos": coverage.num_videos,
        "files": {path.name: digest for path, digest in coverage.files},
        "tasks": {
            t.task: {"questions": t.num_items, "missing": t.num_missing, "damaged": t.num_bad}
            for t in coverage.tasks
        },
        "missing": [{"uid": m.uid, "task": m.task, "path": str(m.path)} for m in coverage.missing],
        "damaged": [
            {"uid": b.uid, "task": b.task, "path": str(b.path), "status": b.status, "detail": b.detail}
            for b in coverage.bad
        ],
        "suggestions": list(coverage.suggestions),
    }


def _training(
    train: Path,
    root: Path,
    names: Sequence[str],
    clean: Path | None,
    shown: int,
    json_out: Path | None,
    console: Console,
) -> int:
    from ffr.data import DataError
    from ffr.eval.contamination import check_training, write_clean

    try:
        report = check_training(train, root, names)
        if clean is not None:
            write_clean(report, clean)
    except (DataError, ValueError, OSError) as error:
        raise CliError(str(error)) from error
    print_training(report, names, console, shown)
    if json_out is not None:
        _write_json(json_out, training_json(report))
    if clean is not None:
        console.print(f"{len(report.kept_rows)} of {report.num_rows} rows written to {clean}", markup=False)
    overlaps = bool(report.dropped) and clean is None
    return EXIT_FAILED if overlaps or report.unchecked else EXIT_OK


def print_training(report: TrainingReport, names: Sequence[str], console: Console, shown: int) -> None:
    """Overlaps per benchmark, the first of them, and what could not be compared."""
    counts = report.counts
    table = Table("benchmark", box=None, pad_edge=False)
    for heading in ("questions", "same clip", "same question"):
        table.add_column(heading, justify="right")
    for name in names:
        if name in report.unchecked:
            table.add_row(name, "not compared", "", "", style="red")
            continue
        clips, questions = counts.get((name, "video"), 0), counts.get((name, "question"), 0)
        style = "red" if clips or questions else ""
        table.add_row(name, str(report.checked[name]), str(clips), str(questions), style=style)
    console.print(table)
    for entry in report.dropped[:shown]:
        console.print(f"  {entry.uid}: same {entry.by} as {entry.evaluation_uid}", style="red", markup=False)
    if report.dropped[shown:]:
        console.print(f"  ... and {len(report.dropped) - shown} more (--shown, --json)")
    for name, reason in report.unchecked.items():
        console.print(f"WARNING: {name} was not compared: {reason}", style="bold yellow", markup=False)
    for row, reason in list(report.skipped.items())[:shown]:
        console.print(f"WARNING: row {row} can't be read: {reason}", style="bold yellow", markup=False)
    line = f"{report.file}: {len(report.dropped)} of {report.num_rows} rows overlap"
    skipped = f", {len(report.skipped)} can't be read" if report.skipped else ""
    console.print(line + skipped, style="bold", markup=False)


def training_json(report: TrainingReport) -> dict[str, Any]:
    """Everything that was found, as plain JSON values."""
    return {
        "file": report.file.name,
        "num_rows": report.num_rows,
        "num_kept": len(report.kept_rows),
        "overlaps": [{"uid": d.uid, "by": d.by, "evaluation_uid": d.evaluation_uid} for d in report.dropped],
        "skipped": {str(row): reason for row, reason in report.skipped.items()},
        "checked": dict(report.checked),
        "unchecked": dict(report.unchecked),
    }


def _write_json(path: Path, document: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CliError(f"{path}: can't be written ({error})") from error
