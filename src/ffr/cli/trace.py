"""`ffr trace`: look at what a run did, group by group."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from ffr.cli.errors import CliError

app = App(name="trace", help="Look at the traces of a run.", help_format="plaintext", help_epilogue="")


@app.command(name="open")
def open_page(run: Path, /, *, browser: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Write the run's trace page, one self-contained HTML file, and print its path.

    Args:
        run: Run directory (report.output_dir of the run).
        browser: Open the page in a browser, too.
    """
    page = write_page(run)
    print(page)
    if browser and not webbrowser.open(page.resolve().as_uri()):
        raise CliError(f"no browser could be started; open {page} by hand")
    return 0


def write_page(run: Path) -> Path:
    """The path of the freshly written trace page.

    Raises:
        CliError: There is no such run directory, or its traces cannot be read.
    """
    check_run(run)
    from ffr.report import render_page

    try:
        return render_page(run)
    except (ValueError, FileNotFoundError) as error:
        raise CliError(str(error)) from error


def check_run(run: Path) -> None:
    """Raises CliError unless `run` is a directory that a run has written."""
    if not run.is_dir():
        raise CliError(f"{run}: no such run directory; name the report.output_dir of a run")
    if not (run / "metrics.jsonl").is_file() and not (run / "traces").is_dir():
        raise CliError(f"{run}: holds neither metrics.jsonl nor traces/, so it is no run directory")
