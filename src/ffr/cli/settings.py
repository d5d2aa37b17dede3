"""From TOML files and flags to one validated Config, with errors that a person can act on.

Files are merged in the order given, flags come last. Every problem names the key, where it was set
(file or flag), what the key allows, and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ffr.cli.errors import ConfigError
from ffr.cli.schema import SECTIONS, SETTINGS, children, find_setting
from ffr.config import Config

Tree = dict[str, Any]
Override = tuple[str, str]
"""Dotted key and the text of its value, as typed."""


def load_config(files: Sequence[Path] = (), overrides: Sequence[Override] = ()) -> Config:
    """The settings of `files`, the later ones winning, then those of `overrides`.

    Args:
        files: TOML files that say only what differs from the defaults.
        overrides: `(dotted key, text)` pairs such as `("reason.patch_tax", "0.5")`; an item of a list is
            reached by its index, `("data.sources.0.root", "/data")`.

    Raises:
        ConfigError: A file is missing or is not TOML, a key does not exist, a value is impossible.

    Example:
        >>> load_config(overrides=[("find.group_size", "4")]).find.group_size
        4
    """
    tree: Tree = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        try:
            layer = read_toml(file)
        except ConfigError as error:
            problems += error.problems
            continue
        _merge(tree, layer, str(file), origins)
    for key, text in overrides:
        problem = _apply(tree, key, text, origins)
        problems += [problem] if problem else []
    if problems:
        raise ConfigError(problems)
    problems = [_explain_boolean(key, origins) for key in _booleans_for_numbers(tree)]
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += [_explain(dict(item), origins, files) for item in error.errors(include_url=False)]
        raise ConfigError(dict.fromkeys(problems)) from error
    if problems:
        raise ConfigError(problems)
    return config


def read_toml(file: Path) -> Tree:
    """The tables of a TOML file; raises ConfigError if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{file}: not valid TOML: {error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file}: not valid TOML: byte {error.start} is not UTF-8"]) from error
    except FileNotFoundError as error:
        near = sorted(path.name for path in file.parent.glob("*.toml")) if file.parent.is_dir() else []
        have = f"; {file.parent} has: {', '.join(near)}" if near else ""
        raise ConfigError([f"{file}: no such file{have}"]) from error
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error


def parse_overrides(tokens: Sequence[str], *, flags: Sequence[str] = ()) -> list[Override]:
    """Dotted keys and texts from command-line tokens.

    Args:
        tokens: `--find.group-size 4`, `--find.group-size=4`, or `--train.cpu` alone for true.
        flags: The command's own flags, for "did you mean".

    Raises:
        ConfigError: A token is no setting, or its value is missing.

    Example:
        >>> parse_overrides(["--find.group-size", "4", "--train.cpu"])
        [('find.group_size', '4'), ('train.cpu', 'true')]
    """
    pairs: list[Override] = []
    problems: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            problems.append(f"{token!r}: unexpected; settings are written --section.key VALUE")
            continue
        name, equals, value = token[2:].partition("=")
        key = name.replace("-", "_")
        setting = find_setting(key)
        has_value = bool(rest) and not rest[0].startswith("--")
        if setting is None:
            problems.append(f"--{name}: no such setting or flag" + suggest(key, flags=flags, dashes=True))
            if has_value and not equals:
                rest.pop(0)
        elif equals:
            pairs.append((key, value))
        elif setting.kind == "boolean":
            literal = has_value and rest[0].lower() in {"true", "false", "yes", "no", "on", "off", "1", "0"}
            pairs.append((key, rest.pop(0) if literal else "true"))
        elif has_value:
            pairs.append((key, rest.pop(0)))
        else:
            problems.append(f"--{name}: value missing; it takes {setting.allowed}")
    if problems:
        raise ConfigError(problems)
    return pairs


def suggest(key: str, *, flags: Sequence[str] = (), dashes: bool = False) -> str:
    """`; did you mean ...?` for an unknown dotted key, or nothing if no key is near.

    Args:
        key: What was written, with underscores.
        flags: Other names that the command knows.
        dashes: Write the suggestion as a flag.

    Example:
        >>> suggest("reason.patch_tx")
        '; did you mean reason.patch_tax?'
    """
    known = [*SETTINGS, *SECTIONS, *(flag.lstrip("-").replace("-", "_") for flag in flags)]
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in SETTINGS if name.rsplit(".", 1)[-1] == leaf]
    near_leaf = difflib.get_close_matches(leaf, [name.rsplit(".", 1)[-1] for name in SETTINGS], 1, 0.8)
    near = difflib.get_close_matches(key, known, 1, 0.75) or same_leaf
    near = near or [name for name in SETTINGS if name.rsplit(".", 1)[-1] in near_leaf]
    near = near or difflib.get_close_matches(key, known, 1, 0.55)
    shown = [f"--{name.replace('_', '-')}" if dashes else name for name in near[:3]]
    return f"; did you mean {' or '.join(shown)}?" if shown else ""


def to_json(config: Config) -> str:
    """The resolved configuration as JSON: what `--dry-run` prints and the run directory keeps."""
    return json.dumps(config.model_dump(mode="json"), indent=2)


def _merge(base: Tree, layer: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = "") -> None:
    for name, value in layer.items():
        key = f"{at}{name}"
        if isinstance(value, Mapping):
            if not isinstance(base.get(name), dict):
                base[name] = {}
                origins[key] = origin
            _merge(base[name], value, origin, origins, f"{key}.")
        else:
            base[name] = value
            origins[key] = origin


def _apply(tree: Tree, key: str, text: str, origins: dict[str, str]) -> str:
    """Sets one flag in the tree; the problem in words, or nothing."""
    flag = "--" + key.replace("_", "-")
    setting = find_setting(key)
    if setting is None:
        return f"{flag}: no such setting{suggest(key, dashes=True)}"
    try:
        value = setting.parse(text)
    except ValueError as error:
        return f"{flag}: {error}; it takes {setting.allowed}"
    node: Any = tree
    *path, leaf = key.split(".")
    for depth, name in enumerate(path):
        if isinstance(node, list):
            if int(name) >= len(node):
                return f"{flag}: there is no item {name}; the files set {len(node)}"
            node = node[int(name)]
        else:
            is_list = depth + 1 < len(path) and path[depth + 1].isdecimal()
            node = node.setdefault(name, [] if is_list else {})
        if not isinstance(node, dict | list):
            return f"{flag}: {name} was set to {node!r} before, which has no keys"
    if not isinstance(node, dict):
        return f"{flag}: name a key of the item, not the item"
    node[leaf] = value
    origins[key] = flag
    return ""


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """The file or flag that set `key` or the nearest table around it."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        found = origins.get(".".join(parts[:end]))
        if found:
            return found
    return ""


def _booleans_for_numbers(tree: Tree) -> list[str]:
    """Keys whose value is true or false where a number belongs (pydantic would take 1 or 0)."""
    found: list[str] = []
    for key, setting in SETTINGS.items():
        node: Any = tree
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, bool) and setting.kind in {"integer", "number"}:
            found.append(key)
    return found


def _explain_boolean(key: str, origins: Mapping[str, str]) -> str:
    return _problem(key, f"is true or false, must be {SETTINGS[key].allowed}", origins)


def _problem(key: str, what: str, origins: Mapping[str, str]) -> str:
    origin = _origin(key, origins)
    if origin.startswith("--"):
        return f"{origin}: {what}"
    return f"{origin}: {key}: {what}" if origin else f"{key}: {what}"


def _explain(error: Mapping[str, Any], origins: Mapping[str, str], files: Sequence[Path]) -> str:
    """One pydantic error in our words."""
    key = ".".join(str(part) for part in error["loc"])
    if not key:
        where = ", ".join([*map(str, files), *(o for o in origins.values() if o.startswith("--"))])
        return f"{where}: {str(error['msg']).removeprefix('Value error, ')}"
    setting = find_setting(key) or find_setting(key.rpartition(".")[0])
    if error["type"] == "extra_forbidden":
        parent = key.rpartition(".")[0]
        siblings = ", ".join(children(parent))
        listing = f"\n  {parent or 'the top level'} knows: {siblings}" if siblings else ""
        return _problem(key, f"no such setting{suggest(key)}{listing}", origins)
    if error["type"] == "missing" and setting is not None:
        return _problem(key, f"is required and missing; it takes {setting.allowed}", origins)
    if setting is None:
        kind = "a section, written as a table" if key in SECTIONS else "valid"
        return _problem(key, f"must be {kind}, is {error['input']!r}", origins)
    help_line = f"\n  {setting.doc}" if setting.doc else ""
    default = f" (default {setting.default_text})" if setting.default_text else ""
    return _problem(key, f"must be {setting.allowed}, is {error['input']!r}{default}{help_line}", origins)
