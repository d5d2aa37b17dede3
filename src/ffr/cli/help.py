"""The list of settings that the help of a command ends with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ffr.cli.schema import Setting, children, find_setting, sections

WIDTH = 79


def settings_help(*, examples: Sequence[str], only: Sequence[str] = ()) -> str:
    """Examples and settings, a few lines each: flag, what it takes, its documentation, its default.

    Args:
        examples: Lines to start with.
        only: Sections to list; all when empty.
    """
    lines = ["Examples:", *(f"  {example}" for example in examples), ""]
    lines += [
        "Settings: key = value under [section] of a TOML file, or a flag; flags win.",
        "Lists are written a,b or in TOML syntax; `none` unsets what may be unset.",
    ]
    for name, members in sections():
        if only and name not in only:
            continue
        lines += ["", f"[{name}]"]
        for setting in members:
            lines += _entry(setting)
            if setting.key == "data.sources":
                lines += _sources()
    return "\n".join(lines)


def _entry(setting: Setting) -> list[str]:
    default = f"(default {setting.default_text})"
    notes = f"{setting.doc} {default}" if setting.doc else default
    return [f"  {setting.flag}  {setting.allowed}", *_wrapped(notes, 6)]


def _sources() -> list[str]:
    lines = ["      One table [[data.sources]] each, with:"]
    for name in children("data.sources.0"):
        item = find_setting(f"data.sources.0.{name}")
        if item is not None:
            lines += _wrapped(f"{name}: {item.allowed}. {item.doc}".rstrip(), 8)
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    margin = " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=margin)
