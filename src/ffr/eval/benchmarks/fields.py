"""Typed access to an official row; every complaint is an `EvalDataError` that names the field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ffr.eval.base import EvalDataError
from ffr.types import Option

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\s*\(?([A-Z])\s*[.):]\s*(.*)", re.DOTALL)


class Fields:
    """One row of a benchmark's file, its fields under any of their published names.

    Example:
        >>> Fields("mmvu", {"answer": "B"}).text("answer")
        'B'
    """

    def __init__(self, benchmark: str, record: Mapping[str, Any]) -> None:
        """Wrap a row.

        Raises:
            EvalDataError: If it is not a mapping.
        """
        if not isinstance(record, Mapping):
            raise EvalDataError(f"{benchmark}: a record must be an object, got {type(record).__name__}")
        self.benchmark, self.record = benchmark, record

    def error(self, field: str, problem: str) -> EvalDataError:
        """An error of this row."""
        return EvalDataError(f"{self.benchmark}: field {field!r} {problem}")

    def get(self, *names: str) -> Any:
        """The first of the named fields that is there and not null; None if none is."""
        return next((self.record[n] for n in names if self.record.get(n) is not None), None)

    def text(self, *names: str, default: str | None = None) -> str:
        """A string (numbers as text) under the first name that is there.

        Raises:
            EvalDataError: If it is absent without a default, blank, or of another type.
        """
        value = self.get(*names)
        if value is None:
            if default is None:
                raise self.error(names[0], "is missing; give the row as the official file has it")
            return default
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(names[0], f"must be text, got {type(value).__name__}")
        if default is None and not str(value).strip():
            raise self.error(names[0], "is empty; fetch the annotation file again")
        return str(value)

    def number(self, *names: str) -> float | None:
        """A finite number (also as text), None if absent.

        Raises:
            EvalDataError: If it is something else.
        """
        value = self.get(*names)
        if value is None:
            return None
        try:
            out = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            out = float("nan")
        if not abs(out) < float("inf"):
            raise self.error(names[0], f"must be a number, got {value!r}")
        return out

    def texts(self, *names: str) -> list[str]:
        """A list of texts under the first name that is there (an array of a parquet file too); [] if none.

        Raises:
            EvalDataError: If it is not a list of texts or numbers.
        """
        value = self.get(*names)
        if value is None:
            return []
        items = as_list(value)
        if items is None or any(isinstance(x, bool) or not isinstance(x, (str, int, float)) for x in items):
            raise self.error(names[0], f"must be a list of texts, got {value!r:.80}")
        return [str(x) for x in items]

    def lettered(self, *names: str) -> tuple[Option, ...]:
        """Options of an object `{"A": text, ...}` or a list of texts; empty texts and nulls are padding.

        Raises:
            EvalDataError: If it is neither.
        """
        value = self.get(*names)
        if not isinstance(value, Mapping):
            return bare_options(self.texts(*names))
        entries = cast("Mapping[object, object]", value)
        out: list[Option] = []
        for label, text in sorted(entries.items(), key=lambda entry: str(entry[0])):
            if text is None or not str(text).strip():
                continue
            if len(str(label)) != 1 or str(label) not in LETTERS:
                raise self.error(names[0], f"has the entry {label!r}; letters A-Z are allowed")
            out.append(Option(str(label), str(text).strip()))
        return tuple(out)

    def labelled(self, *names: str) -> tuple[Option, ...]:
        """Options of a list of texts that carry their letters, or don't."""
        return labelled_options(self.texts(*names))

    def letter(self, options: Sequence[Option], *names: str) -> str:
        """The gold letter; it must be one of the options'.

        Raises:
            EvalDataError: If it is not.
        """
        raw = self.text(*names)
        found = re.fullmatch(r"\s*\(?([A-Za-z])[).:]?(?:\s.*)?", raw, re.DOTALL)
        letter = found.group(1).upper() if found else ""
        if letter not in {option.label for option in options}:
            allowed = ", ".join(option.label for option in options) or "none: the row has no options"
            raise self.error(names[0], f"is {raw!r}; it must be the letter of an option ({allowed})")
        return letter


def as_list(value: object) -> list[Any] | None:
    """A list from a list, a tuple or an array; None for anything else."""
    if hasattr(value, "tolist"):
        value = cast("Any", value).tolist()
    return list(cast("Iterable[Any]", value)) if isinstance(value, (list, tuple)) else None


def bare_options(texts: Sequence[str]) -> tuple[Option, ...]:
    """Options of texts without labels, lettered in their order."""
    return tuple(
        Option(LETTERS[i] if i < len(LETTERS) else str(i), text.strip()) for i, text in enumerate(texts)
    )


def labelled_options(texts: Sequence[str]) -> tuple[Option, ...]:
    """Options of texts like `A. x`, `(A) x`; lettered in order where not all have their own letter."""
    matches = [_LABEL.match(text) for text in texts]
    if all(m is not None and m.group(1) == LETTERS[i : i + 1] for i, m in enumerate(matches)):
        return tuple(Option(m.group(1), m.group(2).strip()) for m in matches if m)
    return bare_options(texts)


def embedded_options(question: str) -> tuple[str, tuple[Option, ...]]:
    """A question and the options at its end, from the last line `A. x` or `(A) x` that has a B after it.

    A line that is not the next letter's belongs to the option before it. The question comes back as it
    is, without options, if there are none.
    """
    lines = question.rstrip().split("\n")
    labels = [m.group(1) if (m := _LABEL.match(line)) else "" for line in lines]
    for start in range(len(lines) - 1, 0, -1):
        if labels[start] != "A":
            continue
        texts: list[str] = []
        for line, label in zip(lines[start:], labels[start:], strict=True):
            if label and label == LETTERS[len(texts) : len(texts) + 1]:
                texts.append(line)
            else:
                texts[-1] += "\n" + line
        if len(texts) > 1:
            return "\n".join(lines[:start]).rstrip(), labelled_options(texts)
    return question, ()
