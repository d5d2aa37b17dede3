"""The table of all settings, read off the configuration classes: for help, messages and flags."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ffr.config import Config


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the configuration.

    Example:
        >>> SETTINGS["find.group_size"].allowed
        'a whole number >= 1'
    """

    key: str
    """Dotted, with underscores; an item of a list has `#` for its index."""
    kind: str
    """JSON type: boolean, integer, number, string, array."""
    allowed: str
    """What it takes, in words."""
    default: Any
    doc: str
    nullable: bool
    required: bool = False

    @property
    def flag(self) -> str:
        """How it is written on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default as it would be typed; empty for a required key."""
        if self.required:
            return ""
        if self.default is None:
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, list | tuple):
            return ",".join(map(str, self.default)) or "empty"
        return str(self.default) if self.default != "" else "empty"

    def parse(self, text: str) -> Any:
        """The typed text as a value for pydantic: lists as `a,b` or TOML, `none` where it is allowed.

        Raises:
            ValueError: A list in TOML syntax that is not TOML.
        """
        if self.nullable and text.lower() in {"none", "null"}:
            return None
        if self.kind == "array":
            if not text.strip().startswith("["):
                return [item.strip() for item in text.split(",") if item.strip()]
            try:
                return tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError as error:
                raise ValueError(f"is not a TOML list: {error}") from error
        return text


def find_setting(key: str) -> Setting | None:
    """The setting of a dotted key; list items may be named by index (`data.sources.0.path`)."""
    generic = _generic(key)
    return SETTINGS.get(generic) or _ITEMS.get(generic)


def children(parent: str) -> list[str]:
    """Names of the keys and sections right below a dotted key; of the top level if it is empty."""
    names = [*SETTINGS, *SECTIONS, *_ITEMS]
    return [leaf for above, _, leaf in (name.rpartition(".") for name in names) if above == _generic(parent)]


def _generic(key: str) -> str:
    return ".".join("#" if part.isdecimal() else part for part in key.split("."))


def sections() -> Iterator[tuple[str, list[Setting]]]:
    """Section names with their settings, in the order of the configuration."""
    for name in SECTIONS:
        members = [setting for key, setting in SETTINGS.items() if key.rpartition(".")[0] == name]
        if members:
            yield name, members


def _walk(schema: Mapping[str, Any], defs: Mapping[str, Any], at: str = "") -> Iterator[Setting | str]:
    required = set(schema.get("required", ()))
    for name, entry in schema.get("properties", {}).items():
        key = f"{at}{name}"
        target = _resolve(entry, defs)
        if target.get("type") == "object":
            yield key
            yield from _walk(target, defs, f"{key}.")
            continue
        nullable, allowed = _describe(entry, defs)
        kind = target.get("type", "string")
        doc = " ".join(str(entry.get("description", "")).split())
        yield Setting(key, kind, allowed, entry.get("default"), doc, nullable, name in required)
        items = _resolve(target.get("items", {}), defs)
        if items.get("type") == "object":
            yield from _walk(items, defs, f"{key}.#.")


def _resolve(entry: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema behind a reference or behind `X or null`."""
    if "$ref" in entry:
        return defs[entry["$ref"].rpartition("/")[2]]
    options = [option for option in entry.get("anyOf", ()) if option.get("type") != "null"]
    return _resolve(options[0], defs) if options else entry


def _describe(entry: Mapping[str, Any], defs: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether `none` is allowed, and what is allowed in words."""
    nullable = any(option.get("type") == "null" for option in entry.get("anyOf", ()))
    target = _resolve(entry, defs)
    words = _words(target, defs)
    return nullable, f"{words}, or none" if nullable else words


def _words(target: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "enum" in target:
        return "one of " + ", ".join(map(str, target["enum"]))
    if "const" in target:
        return str(target["const"])
    kind = target.get("type", "string")
    if kind == "array":
        items = _resolve(target.get("items", {}), defs)
        return "a list of tables" if items.get("type") == "object" else f"a list of: {_words(items, defs)}"
    if kind in {"integer", "number"}:
        signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
        limits = [f"{sign} {target[name]:g}" for name, sign in signs.items() if name in target]
        noun = "a whole number" if kind == "integer" else "a number"
        return " ".join([noun, " and ".join(limits)]).strip()
    if kind == "boolean":
        return "true or false"
    return "a path" if target.get("format") == "path" else "a text"


def _table() -> tuple[dict[str, Setting], tuple[str, ...], dict[str, Setting]]:
    schema = Config.model_json_schema()
    entries = list(_walk(schema, schema.get("$defs", {})))
    settings = {entry.key: entry for entry in entries if isinstance(entry, Setting)}
    plain = {key: setting for key, setting in settings.items() if "#" not in key}
    items = {key: setting for key, setting in settings.items() if "#" in key}
    return plain, tuple(entry for entry in entries if isinstance(entry, str)), items


SETTINGS, SECTIONS, _ITEMS = _table()
