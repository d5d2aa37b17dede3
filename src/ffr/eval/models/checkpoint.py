"""What can be known of a local checkpoint without loading it: no torch here."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

from ffr.eval.base import EvalDataError

MICRO_STUDENT = "micro-student"
STUDENT = "student"
"""Where `ffr train` leaves the trained model, inside its output directory."""
_WHOLE_BYTES = 4 * 2**20
_PROBES, _PROBE_BYTES = 256, 64 * 2**10
_PREPROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A model directory and how its student was shown clips in training, where that is known.

    Example:
        >>> find_checkpoint("micro-student").size_factor_px
        28
    """

    path: Path
    weights_sha256: str
    template_sha256: str
    size_factor_px: int | None = None
    """Patch size times merge size, which the frames' sides must be multiples of."""
    trained: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`observe` and `find` of the run that made it, as far as they differ from our defaults."""


def find_checkpoint(name: str) -> Checkpoint:
    """The checkpoint that a name stands for.

    Args:
        name: A model directory, the output directory of `ffr train`, a hub id whose files are on this
            machine, or `micro-student` for the student inside this package.

    Raises:
        EvalDataError: If there is no such checkpoint, with the remedy.
    """
    trained: Mapping[str, Any] = {}
    if name == MICRO_STUDENT:
        assets = Path(str(resources.files("ffr"))) / "assets"
        path = assets / MICRO_STUDENT
        trained = _sections(tomllib.loads((assets / "demo.toml").read_text(encoding="utf-8")))
    else:
        path = Path(name).expanduser()
        if path.is_dir() and (path / STUDENT / "config.json").is_file():
            path = path / STUDENT
        if not path.is_dir():
            path = _from_hub(name)
        if path.name == STUDENT and (path.parent / "config.json").is_file():
            trained = _sections(_json(path.parent / "config.json"))
    if not (path / "config.json").is_file():
        raise EvalDataError(f"{path}: no config.json; is it the directory of a Hugging Face checkpoint?")
    return Checkpoint(
        path=path,
        weights_sha256=fingerprint(path),
        template_sha256=_template(path),
        size_factor_px=_size_factor(path),
        trained=trained,
    )


def default_name(path: Path) -> str:
    """The directory's name, with the run's for the `student` folder of a training run.

    Example:
        >>> default_name(Path("outputs/ffr/student"))
        'ffr/student'
    """
    return f"{path.parent.name}/{path.name}" if path.name == STUDENT else path.name


def fingerprint(path: Path) -> str:
    """sha256 (hex) over a checkpoint's files: small ones whole, large ones by size and even probes.

    A 7B model is known again in a second; weights that were trained further differ in every tensor.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.iterdir() if p.is_file() and p.suffix in _KINDS):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= _WHOLE_BYTES:
                digest.update(stream.read())
                continue
            for k in range(_PROBES):
                stream.seek((size - _PROBE_BYTES) * k // (_PROBES - 1))
                digest.update(stream.read(_PROBE_BYTES))
    return digest.hexdigest()


_KINDS = frozenset({".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"})


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise EvalDataError(
            f"{name}: no such directory; hub ids need the extra find-fix-reason[train]"
        ) from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise EvalDataError(
            f"{name}: no such directory, and no model of that name in the Hugging Face cache; "
            f"fetch it first with `hf download {name}`, or give --base-url for a model behind a server"
        ) from None


def _sections(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tree[name] for name in ("observe", "find") if isinstance(tree.get(name), dict)}


def _template(path: Path) -> str:
    file = path / "chat_template.jinja"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _json(path / name).get("chat_template")
        if template:
            return hashlib.sha256(json.dumps(template).encode()).hexdigest()
    return ""


def _size_factor(path: Path) -> int | None:
    for name in _PREPROCESSOR_FILES:
        data = _json(path / name)
        for part in (data.get("video_processor"), data.get("image_processor"), data):
            if isinstance(part, dict):
                found = cast("dict[str, Any]", part)
                patch, merge = found.get("patch_size"), found.get("merge_size")
                if isinstance(patch, int) and isinstance(merge, int):
                    return patch * merge
    return None


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvalDataError(f"{path}: not JSON ({error}); fetch the checkpoint again") from None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else {}
