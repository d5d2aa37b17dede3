"""`ffr audit`: what the patches of a file give away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffr.cli.errors import EXIT_FAILED, EXIT_OK, CliError, ConfigError

if TYPE_CHECKING:
    from ffr.fix.audit import AuditRow, LeakAudit, Rate
    from ffr.fix.blind import BlindResult

app = App(name="audit", help="Check what patches give away.", help_format="plaintext", help_epilogue="")


@app.command
def leaks(
    patches: Path,
    /,
    *,
    threshold: float | None = None,
    json_out: Annotated[Path | None, Parameter(name="--json")] = None,
    blind_model: str = "",
    blind_base_url: str = "",
    blind_shuffles: int = 3,
    seed: int = 0,
) -> int:
    """Run the leak gate over a file of patches and print the rates; exit code 1 above the threshold.

    Args:
        patches: JSONL: question, options, gold (or answer), problem_type and the patch's fields, flat or
            under "patch"; optional scenario, prompt_config, label (direct, partial, leak, clean).
        threshold: Highest leak rate, 0 to 1, that still exits with 0.
        json_out: Also write the report, with every alarm and its reason, as JSON.
        blind_model: Model of the blind test: question and patch without video against the question alone.
        blind_base_url: Its OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1. The key is read from
            FFR_TEACHER_API_KEY.
        blind_shuffles: Orders of the options per patch in the blind test.
        seed: Of the blind test.
    """
    _check_usage(threshold, blind_model, blind_base_url, blind_shuffles)
    from ffr.fix.audit import audit_json, audit_rows

    console = Console(highlight=False)
    rows, without = _read(patches)
    audit = audit_rows(rows)
    _print(audit, without, console)
    document = {"file": patches.name, "num_without_patch": without, **audit_json(audit)}
    if blind_model:
        document["blind"] = _blind(rows, blind_model, blind_base_url, blind_shuffles, seed, console)
    if json_out is not None:
        _write(json_out, document)
    if threshold is not None and audit.overall.share > threshold:
        console.print(f"leak rate {audit.overall.share:.1%} is above the threshold {threshold:.1%}")
        return EXIT_FAILED
    return EXIT_OK


def _check_usage(threshold: float | None, model: str, base_url: str, shuffles: int) -> None:
    problems: list[str] = []
    if threshold is not None and not 0 <= threshold <= 1:
        problems.append(f"--threshold {threshold}: give a rate from 0 to 1")
    if bool(model) != bool(base_url):
        problems.append("the blind test needs both --blind-model and --blind-base-url")
    if shuffles < 1:
        problems.append(f"--blind-shuffles {shuffles}: give at least 1")
    if problems:
        raise ConfigError(problems)


def _read(path: Path) -> tuple[tuple[AuditRow, ...], int]:
    from ffr.data import DataError
    from ffr.fix.audit import problems_of, read_patches

    try:
        file = read_patches(path)
    except DataError as error:
        raise ConfigError([str(error)]) from error
    if file.errors:
        raise ConfigError(problems_of(file.errors))
    if not file.rows:
        raise CliError(
            f"{path}: holds no patch ({file.num_without_patch} rows without one); nothing to audit"
        )
    return file.rows, file.num_without_patch


def _print(audit: LeakAudit, without: int, console: Console) -> None:
    overall = audit.overall
    console.print(f"{overall.total} patches, {overall.count} leak: {interval_words(overall)}")
    if without:
        console.print(f"{without} rows without a patch are not counted")
    for name, rates in audit.tables.items():
        if name == "label":
            continue
        table = Table(f"by {name}", "leaks", "of", "rate, 95 % interval", box=None, padding=(0, 2, 0, 0))
        for key, rate in rates.items():
            table.add_row(Text(key), str(rate.count), str(rate.total), interval_words(rate))
        console.print(table, end="\n\n")
    labels = audit.tables.get("label")
    if labels:
        table = Table("label", "alarm", "pass", "rate of alarms", box=None, padding=(0, 2, 0, 0))
        for key, rate in labels.items():
            table.add_row(Text(key), str(rate.count), str(rate.total - rate.count), interval_words(rate))
        console.print(table)


def interval_words(rate: Rate) -> str:
    """`12.5 % [0.3, 52.7]`."""
    return f"{100 * rate.share:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _blind(
    rows: tuple[AuditRow, ...], model: str, base_url: str, shuffles: int, seed: int, console: Console
) -> dict[str, Any]:
    from dataclasses import asdict

    from ffr.config import TeacherConfig
    from ffr.fix.blind import blind_test_server

    cfg = TeacherConfig(base_url=base_url, model=model)
    result = asyncio.run(blind_test_server(rows, cfg, num_shuffles=shuffles, seed=seed))
    if result.pairs == 0:
        raise CliError(f"blind test: {base_url} answered none of {result.failed} pairs: {result.first_fault}")
    console.print(blind_words(result))
    return {**asdict(result), "lift": result.lift, "model": model}


def blind_words(result: BlindResult) -> str:
    """The blind test in one line."""
    failed = f", {result.failed} pairs failed: {result.first_fault}" if result.failed else ""
    return (
        f"blind test: {100 * result.alone:.1f} % right alone, {100 * result.patched:.1f} % with the patch, "
        f"lift {100 * result.lift:+.1f} points over {result.pairs} pairs; rows better {result.wins}, "
        f"worse {result.losses}, exact McNemar p = {result.p_value:.3g}{failed}"
    )


def _write(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CliError(f"--json {path}: cannot be written ({error})") from error
