"""What the profiles share: small builders of scores, and notes by one name."""

from __future__ import annotations

from typing import Final

from ffr.eval.base import Score

NEEDS_JUDGE: Final = "needs_judge"
"""The harness would ask a language model."""
RANDOM: Final = "random_in_harness"
"""The harness would draw a random letter."""
DROPPED: Final = "dropped_by_harness"
"""The harness would leave the item out of the denominator."""
NO_TASK: Final = "no_task_in_harness"
"""The harness has no task for this benchmark; the value says nothing."""
MAX_EXTRACTED_CHARS: Final = 200
"""An answer in a row is for people; the whole output is beside it."""


def nothing(note: str = "") -> Score:
    """No answer was found: wrong, and counted."""
    return Score(0.0, "", "none", note)


def found(value: float, extracted: str, rule: str, note: str = "") -> Score:
    """An answer was found; an empty one is none.

    Args:
        value: In [0, 1].
        extracted: The answer.
        rule: Dotted name of what fired.
        note: What a person should know.

    Returns:
        The score, with the answer cut to a readable length.
    """
    shown = extracted.strip()[:MAX_EXTRACTED_CHARS].strip()
    return Score(value, shown, rule, note) if shown else Score(value, "", "none", note)
