"""`ffr doctor`: what this machine has, and what a configuration would find missing."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from cyclopts import App
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ffr.cli.errors import EXIT_FAILED, EXIT_OK, CliError, ConfigError
from ffr.cli.settings import load_config, parse_overrides
from ffr.cli.train import ConfigFiles, SettingWords, config_files, print_skipped
from ffr.config import Config

NEEDED = ("pydantic", "numpy", "av", "pillow", "openai", "scipy")
FOR_TRAINING = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft")
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "theora", "mjpeg")
TEST_FRAMES, TEST_SIDE_PX, TEST_FPS = 12, 64, 8


app = App(name="doctor", help="Check that this machine, or a teacher's server, can do the job.")
app.command("ffr.cli.doctor_teacher:teacher", name="teacher", help="Check a server: can it teach?")
app.command("ffr.cli.doctor_train:app", name="train", help="Check a run before it starts: does it fit?")
app.command("ffr.cli.doctor_data:app", name="data", help="Check benchmarks, and training files with them.")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table.

    Example:
        >>> Check("torch", "warn", "not installed").state
        'warn'
    """

    name: str
    state: str
    """`ok`, `warn` (something optional is missing) or `fail`."""
    detail: str


@app.default
def doctor(*settings: SettingWords, config: ConfigFiles = None) -> int:
    """Check that this machine can do the job; with -c also the configuration and its data.

    Args:
        settings: Single settings, which win over the files.
        config: TOML files; later ones win.
    """
    console = Console(highlight=False)
    checks = [*check_versions(), check_gpu(), *check_decoding()]
    cfg: Config | None = None
    if config is not None or settings:
        try:
            cfg = load_config(config_files(config), parse_overrides(settings, flags=("--config", "--help")))
            checks.append(Check("configuration", "ok", f"{cfg.train.algorithm} on {cfg.model.path}"))
        except ConfigError as error:
            checks += [Check("configuration", "fail", problem) for problem in error.problems]
    if cfg is not None:
        checks += check_data(cfg, console)
    print_checks(checks, console)
    return EXIT_FAILED if any(check.state == "fail" for check in checks) else EXIT_OK


def check_versions() -> Iterator[Check]:
    """The interpreter and the packages, those for training as warnings only."""
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "fail", sys.version.split()[0])
    for name in (*NEEDED, *FOR_TRAINING):
        optional = name in FOR_TRAINING
        try:
            yield Check(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            remedy = "needed by `ffr train`: pip install 'find-fix-reason[train]'" if optional else "required"
            yield Check(name, "warn" if optional else "fail", f"not installed; {remedy}")


def check_gpu() -> Check:
    """The accelerators that torch sees."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Check("gpu", "warn", f"unknown: torch cannot be imported ({error})")
    if not torch.cuda.is_available():
        return Check("gpu", "warn", "none; the demo runs on the CPU, a 7B student does not")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("gpu", "ok", f"{len(names)} x {names[0]} (CUDA {torch.version.cuda})")


def check_decoding() -> Iterator[Check]:
    """PyAV's decoders, and a clip that is written, read back through `observe` and compared."""
    try:
        import av
    except ImportError as error:
        yield Check("decoders", "fail", f"PyAV cannot be imported: {error}")
        return
    missing = [name for name in DECODERS if name not in av.codecs_available]
    detail = f"PyAV lacks {', '.join(missing)}" if missing else ", ".join(DECODERS)
    yield Check("decoders", "warn" if missing else "ok", detail)
    yield _guarded("decode self-test", _decode_self_test)


def _guarded(name: str, test: Callable[[], str]) -> Check:
    """A check must report any failure of what it checks, whatever its kind."""
    try:
        return Check(name, "ok", test())
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}")


def _decode_self_test() -> str:
    from ffr.config import ObserveConfig
    from ffr.observe import observe
    from ffr.types import ProblemType, Sample

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ramp.mp4"
        write_ramp(path)
        sample = Sample("doctor/ramp", "Does it get brighter?", "yes", ProblemType.FREE_FORM, path)
        limits = ObserveConfig(num_frames=4, max_frame_px=TEST_SIDE_PX**2, min_frame_px=28 * 28)
        frames = observe(sample, limits).frames
    means = [float(frame.pixels.mean()) for frame in frames if frame.pixels is not None]
    if len(means) != 4 or sorted(means) != means or means[-1] - means[0] < 100:
        raise CliError(f"a clip that gets brighter was read back with the mean values {means}")
    indices = ", ".join(str(frame.source_index) for frame in frames)
    return f"H.264, {TEST_FRAMES} frames written, frames {indices} read back"


def write_ramp(path: Path) -> None:
    """A short H.264 clip whose frames get brighter, from black to white."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=TEST_FPS)
        stream.width = stream.height = TEST_SIDE_PX
        stream.pix_fmt = "yuv420p"
        for value in np.linspace(0, 255, TEST_FRAMES):
            pixels = np.full((TEST_SIDE_PX, TEST_SIDE_PX, 3), round(value), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def check_data(cfg: Config, console: Console) -> Iterator[Check]:
    """Each data source: whether it can be read, and how many of its rows have no usable clip."""
    from ffr.data import DataError, load_data

    if not cfg.data.sources:
        yield Check("data", "warn", "data.sources is empty")
    for source in cfg.data.sources:
        name = f"data: {source.name or source.path.stem}"
        if not source.path.is_file():
            yield Check(name, "fail", f"{source.path}: no such file")
            continue
        only = cfg.data.model_copy(update={"sources": (source,), "num_samples": None})
        try:
            result = load_data(only)
        except DataError as error:
            yield Check(name, "fail", str(error))
            continue
        total = len(result.samples) + len(result.skipped)
        if result.skipped:
            print_skipped(result, console)
        state = "ok" if not result.skipped else "warn" if result.samples else "fail"
        yield Check(name, state, f"{len(result.samples)} of {total} rows can be used")


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """One line per check, its state in colour."""
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(show_header=False, box=None)
    for check in checks:
        table.add_row(Text(check.state, style=colours[check.state]), Text(check.name), Text(check.detail))
    console.print(table)
