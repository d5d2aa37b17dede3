"""Conversations for a Hugging Face model: the turns of a `Chat` as they were sent, through one encoder."""

from __future__ import annotations

from typing import Any

from ffr.engines.encode import Encoder, Medium
from ffr.observe.chat import Chat, Part, Turn
from ffr.types import Observation


class ChatEncoder(Encoder):
    """An `Encoder` that also takes a `Chat`; other observations are encoded as by the parent.

    Example:
        >>> encoder = ChatEncoder(AutoProcessor.from_pretrained(path))  # doctest: +SKIP
        >>> encoder.encode(chat_view("r", [Turn("user", (Part("Hello."),))]))  # doctest: +SKIP
    """

    def _template_switches(self, obs: Observation) -> dict[str, Any]:
        return dict(obs.template) if isinstance(obs, Chat) else {}

    def _messages(self, obs: Observation) -> list[dict[str, Any]]:
        if not isinstance(obs, Chat):
            return super()._messages(obs)
        return [{"role": turn.role, "content": self._content(turn)} for turn in obs.turns]

    def _content(self, turn: Turn) -> list[dict[str, Any]]:
        return [
            {"type": "text", "text": self._plain(part.text)} if part.kind == "text" else {"type": part.kind}
            for part in turn.parts
        ]

    def _media_of(self, obs: Observation) -> tuple[Medium, ...]:
        if not isinstance(obs, Chat):
            return super()._media_of(obs)
        shown = [part for part in obs.parts if part.kind != "text"]
        return tuple(self._medium(_clip(obs, part), part.kind, part.frames) for part in shown)


def _clip(chat: Chat, part: Part) -> Observation:
    """One medium by itself: its features depend on its own length only."""
    return Observation(chat.sample_uid, part.frames, "", "", duration_s=part.duration_s)
