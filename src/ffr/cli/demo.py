"""`ffr demo`: the whole job on clips that it makes itself, with the embedded student and teacher."""

from __future__ import annotations

import shutil
import time
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ffr.cli.settings import load_config, to_json
from ffr.cli.train import run_training
from ffr.config import Config


def demo_config(output: Path, *, steps: int | None, seed: int) -> Config:
    """The packaged `assets/demo.toml` with this call's folder, length and seed.

    Args:
        output: Folder of the clips and the run.
        steps: Optimiser steps; the file's own number when None.
        seed: Of the data order, sampling and clips.
    """
    world = output / "microworld"
    overrides = [
        ("data.sources.0.path", str(world / "train.json")),
        ("data.sources.0.root", str(world)),
        ("data.seed", str(seed)),
        ("train.seed", str(seed)),
        ("report.output_dir", str(output / "run")),
    ]
    if steps is not None:
        overrides.append(("train.max_steps", str(steps)))
    with as_file(files("ffr") / "assets" / "demo.toml") as path:
        return load_config([path], overrides)


def write_world(root: Path, cfg: Config, console: Console) -> None:
    """Writes the demo's clips (real MP4 files) and questions, with a progress bar."""
    from ffr.data.microworld import write_microworld

    num_train = cfg.data.num_samples or 0
    with Progress(
        TextColumn("MicroWorld clips"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("clips", total=num_train)
        write_microworld(root, num_train=num_train, num_test=0, on_clip=lambda: bar.advance(task))


def demo(*, output: Path = Path("outputs/demo"), steps: int | None = None, seed: int = 42) -> int:
    """Train the embedded student with Find-Fix-Reason on clips made here, on CPU, in a few minutes.

    Writes real MP4 clips, trains against the embedded teacher, prints the find/fix/reason table and
    the path of the trace page.

    Args:
        output: Folder for clips, run and page.
        steps: Optimiser steps (default: the packaged configuration's).
        seed: Of data order and sampling.
    """
    from ffr.report import render_page, summary_table

    console = Console()
    started = time.monotonic()
    cfg = demo_config(output, steps=steps, seed=seed)
    write_world(output / "microworld", cfg, console)
    console.print(f"{cfg.data.num_samples} clips in {output / 'microworld'}", highlight=False)
    stamp = output / "demo.json"
    if stamp.exists():  # an earlier demo in this folder: this one starts anew
        shutil.rmtree(cfg.report.output_dir, ignore_errors=True)
    stamp.write_text(to_json(cfg) + "\n")
    run_training(cfg, console=console)
    page = render_page(cfg.report.output_dir)
    console.print(summary_table(cfg.report.output_dir))
    console.print(f"took {time.monotonic() - started:.0f} s", highlight=False)
    console.print(f"trace page: {page}", highlight=False, soft_wrap=True)
    return 0
