"""The `ffr` command. Commands are loaded when called, so that `ffr --help` is quick and torch-free."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata

from cyclopts import App, CycloptsError
from rich.console import Console

from ffr.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, CliError, ConfigError


def _version() -> str:
    return f"ffr {metadata.version('find-fix-reason')}"


app = App(
    name="ffr",
    help=(
        "Find, Fix, Reason: context repair for video reasoning. When a student answers a question about a "
        "video wrongly, a teacher shows it where to look, not the answer, and it tries again."
    ),
    help_epilogue="Exit codes: 0 done, 1 the run failed, 2 the command or its configuration is wrong.",
    help_format="plaintext",
    version=_version,
    suppress_keyboard_interrupt=False,
)
app.command("ffr.cli.demo:demo", name="demo", help="Train a tiny student on made-up videos, on a CPU.")
app.command("ffr.cli.train:app", name="train", help="Train a student with Find-Fix-Reason or a baseline.")
app.command("ffr.cli.eval:app", name="eval", help="Measure a model on video benchmarks.")
app.command("ffr.cli.teach:app", name="teach", help="Ask a teacher about failed rollouts; no training.")
app.command("ffr.cli.trace:app", name="trace", help="Look at the traces of a run.")
app.command("ffr.cli.report:app", name="report", help="Print a run's table, its page, its profile.")
app.command("ffr.cli.audit:app", name="audit", help="Check what patches give away.")
app.command("ffr.cli.serve:app", name="serve", help="Put a checkpoint behind the OpenAI API.")
app.command(
    "ffr.cli.serve_teacher:serve_teacher",
    name="serve-teacher",
    help="Offer the teacher and the leak gate over HTTP.",
)
app.command("ffr.cli.doctor:app", name="doctor", help="Check that this machine can do the job.")


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        tokens: Command-line words; those of the process when None.
    """
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        result = app(tokens, exit_on_error=False, result_action="return_value", error_console=err)
    except ConfigError as error:
        for problem in error.problems:
            err.print(f"error: {problem}", markup=False, style="red")
        return EXIT_USAGE
    except CycloptsError:
        return EXIT_USAGE  # cyclopts has printed it
    except CliError as error:
        err.print(f"error: {error}", markup=False, style="red")
        return EXIT_FAILED
    except KeyboardInterrupt:
        err.print("stopped; `--resume` goes on from the last checkpoint", markup=False)
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else EXIT_OK


def run() -> None:
    """The console script: exits with the command's code."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has had enough (`ffr ... | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    sys.exit(code)


if __name__ == "__main__":
    run()
