"""A conversation as somebody else's program sends it: turns of text, pictures and clips in any order.

Our own questions are an `Observation` (clip, prompt, patch). A served model is asked by harnesses, whose
turns have another order: the text before the pictures, several clips, an earlier answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ffr.types import Frame, Observation

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a turn: text, one picture, or a clip.

    Example:
        >>> Part(text="Which?").kind
        'text'
    """

    text: str = ""
    frames: tuple[Frame, ...] = ()
    duration_s: float = 0.0
    """Of the clip, as it is displayed."""

    @property
    def kind(self) -> Literal["text", "image", "video"]:
        """`image` for one frame: a single frame is never shown as a clip."""
        if not self.frames:
            return "text"
        return "image" if len(self.frames) == 1 else "video"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    Example:
        >>> Turn("user", (Part("Which?"),)).role
        'user'
    """

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Chat(Observation):
    """An observation whose turns are given; make one with `chat_view`.

    Example:
        >>> chat = chat_view("request", [Turn("user", (Part("Which?"),))])
        >>> chat.prompt, len(chat.frames)
        ('Which?', 0)
    """

    turns: tuple[Turn, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Switches of the chat template (`enable_thinking`)."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The pieces of all turns, in order."""
        return tuple(part for turn in self.turns for part in turn.parts)


def chat_view(uid: str, turns: Sequence[Turn], template: Mapping[str, Any] | None = None) -> Chat:
    """The conversation as an observation; equal conversations have equal `view_id`s, whatever their name.

    Args:
        uid: For messages about it.
        turns: In order; the model answers after the last one.
        template: Switches of the chat template.
    """
    switches = dict(template or {})
    parts = [part for turn in turns for part in turn.parts]
    seen = [
        [[turn.role, [_seen(part) for part in turn.parts]] for turn in turns],
        sorted((name, json.dumps(value)) for name, value in switches.items()),
    ]
    return Chat(
        sample_uid=uid,
        frames=tuple(frame for part in parts for frame in part.frames),
        prompt="\n".join(part.text for part in parts if part.text),
        view_id=hashlib.sha256(json.dumps(seen).encode()).hexdigest(),
        turns=tuple(turns),
        template=switches,
    )


def _seen(part: Part) -> list[Any]:
    frames = [[frame.sha256, round(frame.timestamp_s, 4)] for frame in part.frames]
    return [part.text, frames, round(part.duration_s, 4)]
