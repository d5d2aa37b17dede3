"""`ffr serve-teacher`: the teacher and the leak gate for trainers that speak HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ffr.cli.errors import EXIT_OK, CliError
from ffr.cli.settings import load_config, parse_overrides
from ffr.cli.train import ConfigFiles, SettingWords, config_files, log_to

if TYPE_CHECKING:
    from ffr.serve import Server

FLAGS = ("--config", "--root", "--host", "--port", "--token-env", "--journal", "--max-requests", "--help")


def serve_teacher(
    *settings: SettingWords,
    root: Path,
    config: ConfigFiles = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8765,
    token_env: str | None = None,
    journal: Path | None = None,
    max_requests: Annotated[int, Parameter(validator=Number(gte=1, lte=1024))] = 16,
) -> int:
    """Offer POST /v1/repair, POST /analyze (the released FFR's) and GET /health over a teacher.

    Any setting may follow, e.g. --fix.teacher.base-url URL --fix.teacher.model NAME. Ctrl-C stops it:
    running requests may end first.

    Args:
        settings: Single settings, which win over the files.
        root: Media root; only files under it are opened.
        config: TOML files; later ones win.
        host: Address to listen on; another than loopback needs --token-env.
        port: Port; 0 takes a free one.
        token_env: Name of the environment variable with the bearer token that clients must send.
        journal: SQLite file that keeps outcomes, so that the same request is paid for once.
        max_requests: Requests worked on at a time; more are answered 503.
    """
    cfg = load_config(config_files(config), parse_overrides(settings, flags=FLAGS))
    from ffr.fix import Journal, JournalError, make_teacher
    from ffr.serve import RepairService, ServeConfig, Server

    console = Console(highlight=False, soft_wrap=True)
    log_to(console)
    logging.getLogger("ffr.serve").setLevel(logging.INFO)
    if not root.is_dir():
        raise CliError(f"--root {root}: no such directory")
    try:
        teacher = make_teacher(cfg.fix, cfg.observe)
        if teacher is None:
            raise CliError("fix.teacher.type is 'none': there is nobody to ask; name a teacher")
        token = read_token(token_env)
        serve = ServeConfig(host, port, token, max_requests=max_requests)
        service = RepairService(cfg, teacher, root, Journal(journal) if journal is not None else None)
        server = Server(serve, service)
    except (ValueError, JournalError) as error:
        raise CliError(str(error)) from error
    try:
        asyncio.run(_serve(server, console, f"{teacher.name}, files under {root}"))
    except OSError as error:
        raise CliError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return EXIT_OK


def read_token(token_env: str | None) -> str:
    """The token in the named variable; raises CliError if it is named and empty or short."""
    if token_env is None:
        return ""
    token = os.environ.get(token_env, "").strip()
    if len(token) < 16 or not token.isascii():
        raise CliError(
            f"--token-env {token_env}: the variable must hold at least 16 ASCII characters, "
            "e.g. of `openssl rand -hex 24`"
        )
    return token


async def _serve(server: Server, console: Console, what: str) -> None:
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if ready.is_set():
        console.print(f"listening on {server.host} port {server.port}: {what}", markup=False)
    waiting.cancel()
    await task
    console.print(f"stopped; responses: {dict(sorted(server.counters.items()))}", markup=False)
