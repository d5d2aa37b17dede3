"""`ffr report`: the find/fix/reason table of a run, its trace page, and where its time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from ffr.cli.errors import CliError
from ffr.cli.trace import check_run, write_page

app = App(
    name="report",
    help="Print a run's table and write its page; `ffr report profile RUN` says where its time goes.",
    help_epilogue="Examples:\n  ffr report outputs/ffr\n  ffr report profile outputs/ffr --slowest 10",
    help_format="plaintext",
)


@app.default
def report(run: Path, /, *, windows: Annotated[int, Parameter(validator=Number(gte=1))] = 8) -> int:
    """Print the find/fix/reason table of a run and write its trace page.

    Args:
        run: Run directory (report.output_dir of the run).
        windows: Number of rows: the steps are averaged over that many windows.
    """
    from ffr.report import summary_text

    check_run(run)
    try:
        print(summary_text(run, num_windows=windows))
    except ValueError as error:
        raise CliError(str(error)) from error
    if (run / "traces").is_dir():
        print(f"page: {write_page(run)}")
    else:
        print("page: none, the run has no traces")
    return 0


@app.command
def profile(run: Path, /, *, slowest: Annotated[int, Parameter(validator=Number(gte=0))] = 5) -> int:
    """Print where the time of a run goes, its slowest steps and what could be changed.

    Args:
        run: Run directory (report.output_dir of the run); it may still be training.
        slowest: Number of slow steps that are explained.
    """
    from ffr.report.profile import profile_run
    from ffr.report.profile_text import profile_view

    check_run(run)
    try:
        found = profile_run(run, num_slowest=slowest)
    except ValueError as error:
        raise CliError(str(error)) from error
    Console(highlight=False).print(profile_view(found))
    return 0
