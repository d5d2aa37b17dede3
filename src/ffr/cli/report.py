"""`ffr report`: the find/fix/reason table of a run, and its trace page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ffr.cli.errors import CliError
from ffr.cli.trace import check_run, write_page


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
