"""`ffr eval`: benchmarks, models, frames and seeds in; rows, a table and a protocol card out."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ffr.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, CliError
from ffr.cli.eval_flags import AskFlags, LocalFlags, ServerFlags, ShowFlags, eval_config, server_settings
from ffr.cli.eval_options import (
    NO_OPTION,
    TEACHER,
    OptionFlags,
    OptionRun,
    TeacherFlags,
    option_words,
    plan_option,
)
from ffr.cli.eval_progress import EvalProgress, error_lines
from ffr.cli.progress import duration
from ffr.cli.train import log_to

if TYPE_CHECKING:
    from ffr.eval.models import Answerer, ModelIdentity
    from ffr.eval.models.checkpoint import Checkpoint
    from ffr.eval.models.openai import ServerSettings
    from ffr.eval.run import Questions
    from ffr.eval.runner import Runner
    from ffr.eval.settings import EvalConfig
    from ffr.eval.store import RunStore

    Load = Callable[[], tuple[Answerer, ModelIdentity]]

MICRO_BATCH = 32
SHOW, LOCAL, SERVER = ShowFlags(), LocalFlags(), ServerFlags()

app = App(
    name="eval",
    help="Measure a model on video benchmarks: a checkpoint, or any OpenAI-compatible server.",
    help_epilogue="\n".join(
        (
            "Examples:",
            "  ffr eval --model micro-student --benchmarks microworld",
            "  ffr eval --model outputs/ffr --benchmarks mvbench,tempcompass \\",
            "    --root data --frames 16,32,64",
            "  ffr eval --model http://127.0.0.1:8000/v1 --benchmarks mmvu --root data \\",
            "    --temperature 0.6 --seeds 42,123,456",
            "  ffr eval --model micro-student --benchmarks microworld --temperature 0.8 \\",
            "    --repair --vote 5 --teacher.type oracle --teacher-calls 200",
            "  ffr eval show outputs/eval/micro-student",
            "",
            "Benchmarks: mmvu, vsi_bench, video_mmmu, video_holmes, longvideobench, lvbench,",
            "mvbench, tempcompass, microworld, video_r1 (files in Video-R1's form).",
            "ROOT/<benchmark>/ holds a benchmark's official files; `ffr doctor data` lists",
            "what is missing. MicroWorld is written when it is asked for. Every answer is",
            "on disk before it counts: after a stop the same command with --resume goes on.",
            "Exit code 1: the model failed on some questions, which count as wrong.",
        )
    ),
    help_format="plaintext",
)
for _name, _help, *_examples in (
    (
        "compare",
        "Compare two runs question by question: exact McNemar, intervals clustered by video.",
        "ffr eval compare outputs/eval/base outputs/eval/ffr",
        "ffr eval compare outputs/eval/frames16 outputs/eval/frames32 --allow-different",
        "",
        "Runs with other settings, frames, prompts or questions are refused.",
    ),
    (
        "power",
        "How many questions does a difference need to be seen, and what can each benchmark show?",
        "ffr eval power --effect 1.5",
        "ffr eval power outputs/eval/base outputs/eval/ffr --effect 2 --power 0.9",
        "",
        "With one run its accuracy and the likeness of questions on a video are measured,",
        "and the discordance of two of its seeds; with two runs the one between them.",
    ),
    (
        "rescore",
        "Score a run's outputs anew and print its table; no model needed.",
        "ffr eval rescore outputs/eval/base",
        "ffr eval rescore outputs/eval/base --profile robust,official",
    ),
    (
        "export",
        "Write a run's outputs in the form that another harness or script reads.",
        "ffr eval export outputs/eval/base --to lmms-eval",
        "ffr eval export outputs/eval/base --to official -o predictions",
    ),
    (
        "show",
        "Print the table of a run.",
        "ffr eval show outputs/eval/base --by-task",
        "ffr eval show outputs/eval/base --profiles all --markdown table.md",
    ),
):
    _lines = "\n".join(f"  {line}".rstrip() for line in _examples)
    app.command(f"ffr.cli.eval_tools:{_name}", name=_name, help=_help, help_epilogue=f"Examples:\n{_lines}")


@app.default
def evaluate(
    *,
    ask: AskFlags,
    show: ShowFlags = SHOW,
    local: LocalFlags = LOCAL,
    server: ServerFlags = SERVER,
    option: OptionFlags = NO_OPTION,
    teacher: TeacherFlags = TEACHER,
) -> int:
    """Measure a model on video benchmarks: a checkpoint, or any OpenAI-compatible server."""
    from ffr.eval.base import EvalDataError
    from ffr.eval.models.openai import ServerError
    from ffr.eval.rows import RunFileError
    from ffr.eval.runner import ModelGoneError
    from ffr.eval.store import RunMixError

    console = Console(highlight=False, quiet=ask.display == "none")
    log_to(console)
    try:
        cfg, load = _plan(ask, show, local, server)
        around = plan_option(cfg, option, teacher)
        questions = _questions(around.cfg, console)
        answerer, identity = load()
        return _evaluate(ask, around, questions, answerer, identity, console)
    except (EvalDataError, ServerError, RunFileError, RunMixError, ModelGoneError, OSError) as error:
        raise CliError(str(error)) from error


def _plan(ask: AskFlags, show: ShowFlags, local: LocalFlags, server: ServerFlags) -> tuple[EvalConfig, Load]:
    """The settings, and what reaches the model: last, after mistakes that can be seen without it."""
    settings = server_settings(ask, server)
    if settings is not None:
        places = settings.concurrency
        cfg = eval_config(ask, show, {}, size_factor_px=None, batch_size=1, concurrency=places)
        return cfg, lambda: _served(settings, ask.name)
    from ffr.eval.models.checkpoint import MICRO_STUDENT, find_checkpoint

    found = find_checkpoint(ask.model)
    batch = local.batch_size or (MICRO_BATCH if ask.model == MICRO_STUDENT else 8)
    cfg = eval_config(
        ask, show, found.trained, size_factor_px=found.size_factor_px, batch_size=batch, concurrency=1
    )
    return cfg, lambda: _checkpoint(found, ask, local)


def _served(settings: ServerSettings, name: str) -> tuple[Answerer, ModelIdentity]:
    from ffr.eval.models.openai import OpenAIAnswerer, connect

    answerer = OpenAIAnswerer(asyncio.run(connect(settings)), name=name)
    return answerer, answerer.identity()


def _checkpoint(found: Checkpoint, ask: AskFlags, local: LocalFlags) -> tuple[Answerer, ModelIdentity]:
    try:
        from ffr.eval.models.hf import HFAnswerer
    except ImportError as error:
        raise CliError(
            f"a checkpoint needs torch and transformers ({error}): pip install 'find-fix-reason[train]', or "
            "give --base-url of a server"
        ) from None
    answerer = HFAnswerer(
        found, name=ask.name, dtype=local.dtype, attention=local.attention, device=local.device
    )
    return answerer, answerer.identity(ask.model)


def _questions(cfg: EvalConfig, console: Console) -> Questions:
    """The benchmarks' questions, with a line for each benchmark."""
    from ffr.eval.run import MICROWORLD, MICROWORLD_QUESTIONS, load_questions, write_test_world

    if MICROWORLD in cfg.benchmarks:
        num = min(cfg.limit or MICROWORLD_QUESTIONS, MICROWORLD_QUESTIONS)
        with Progress(
            TextColumn("MicroWorld clips"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
        ) as bar:
            task = bar.add_task("clips", total=num, visible=False)
            written = write_test_world(
                cfg.root, num=num, on_clip=lambda: bar.update(task, advance=1, visible=True)
            )
        if written:
            console.print(f"microworld: {num} test clips in {written}", markup=False, soft_wrap=True)
    questions = load_questions(cfg)
    for name, info in questions.info.items():
        part = f" of {info.num_total}" if info.num_total != info.num_items else ""
        tasks = f", tasks {', '.join(info.tasks)}" if info.tasks else ""
        console.print(f"{name}: {info.num_items}{part} questions{tasks}", markup=False, soft_wrap=True)
        for note in info.notes:
            console.print(f"  {note}", markup=False, soft_wrap=True)
        if info.num_missing:
            console.print(
                f"WARNING: {name}: {info.num_missing} questions have no media under the root; they count as "
                "wrong (`ffr doctor data` lists them)",
                style="bold yellow",
                soft_wrap=True,
            )
    return questions


def _evaluate(
    ask: AskFlags,
    around: OptionRun,
    questions: Questions,
    answerer: Answerer,
    identity: ModelIdentity,
    console: Console,
) -> int:
    from ffr.eval.run import finish, make_runner, open_run, run_info

    cfg = around.cfg
    if len(cfg.asked_seeds) < len(cfg.seeds):
        console.print(
            f"WARNING: {len(cfg.seeds)} seeds with temperature 0 give {len(cfg.seeds)} times the same "
            f"answers: only seed {cfg.seeds[0]} is run; give --temperature for seeds to matter",
            style="bold yellow",
            soft_wrap=True,
        )
    if cfg.option is not None:
        console.print(option_words(cfg.option), markup=False, soft_wrap=True)
    name = answerer.name.replace("/", "-") + around.suffix
    output_dir = ask.output_dir or Path("outputs/eval") / name
    info = run_info(cfg, questions, identity, name=answerer.name, engine=answerer.engine)
    started = time.monotonic()
    with open_run(output_dir, info, questions, resume=ask.resume) as store:
        runner = make_runner(cfg, questions, store, around.respond(answerer, output_dir))
        keys = runner.keys()
        done = sum(store.done(key) for key in keys)
        if done:
            console.print(
                f"{output_dir}: {done} of {len(keys)} answers are there already", markup=False, soft_wrap=True
            )
        progress = EvalProgress(len(keys), done, console, ask.display)
        runner.on_row = progress.row
        try:
            asyncio.run(_drive(runner, (answerer, around), console))
        finally:
            progress.close()
            finish(store)
        left = sum(not store.done(key) for key in keys)
        _report(output_dir, store, console)
        for line in around.lines():
            console.print(line, markup=False, soft_wrap=True)
        rate = f"{progress.num_rows} answers in {duration(time.monotonic() - started)}"
        console.print(f"{rate}; run: {output_dir}", markup=False, soft_wrap=True)
    if runner.stopped and left:
        words = f"stopped with {left} of {len(keys)} answers to go; the same command with --resume goes on"
        console.print(words, style="bold yellow", soft_wrap=True)
        return EXIT_INTERRUPTED
    return EXIT_FAILED if _model_failures(store) else EXIT_OK


async def _drive(runner: Runner, used: Sequence[object], console: Console) -> None:
    """Runs until everything is asked; the first Ctrl-C finishes what is under way, the second does not."""
    loop = asyncio.get_running_loop()
    main = asyncio.current_task()

    def stop() -> None:
        """First call: ask nothing new; second: end now."""
        if not runner.stopped:
            runner.stop()
            console.print("stopping when the answers under way are written; Ctrl-C again to drop them")
            return
        for number in signals:
            loop.remove_signal_handler(number)
        if main is not None:
            main.cancel()

    # On Windows, and in a thread, Ctrl-C ends the run at once; rows are on disk all the same.
    catching = sys.platform != "win32" and threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if catching else ()
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        await runner.run()
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for one in used:
            close: Any = getattr(one, "aclose", None)
            if close is not None:
                await close()


def _report(run: Path, store: RunStore, console: Console) -> None:
    """Table, protocol and failures of the run as it is on disk."""
    from ffr.eval.protocol import card_lines, make_cards
    from ffr.eval.results import load_run
    from ffr.eval.table import build_table
    from ffr.eval.table_text import to_rich, write_tables

    table = build_table(load_run(run))
    console.print(to_rich(table))
    write_tables(run, table)
    rows = list(store.rows.values())
    info = store.info
    cards = make_cards(info.config, info.engine, store.items, rows, info.versions)
    for line in card_lines(cards, info.config, rows):
        console.print(line, markup=False, soft_wrap=True, style="dim")
    for line in error_lines(rows):
        console.print(line, markup=False, soft_wrap=True, style="yellow")


def _model_failures(store: RunStore) -> int:
    """Rows on which the model failed, not the clip."""
    from ffr.observe import MEDIA_STATUSES

    errors = (row.error.partition(":")[0] for row in store.rows.values() if row.error)
    return sum(status not in MEDIA_STATUSES for status in errors)
