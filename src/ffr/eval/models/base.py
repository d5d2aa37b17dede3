"""What a runner needs of a model: observations in, replies out, never an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ffr.types import Observation


@dataclass(frozen=True, slots=True)
class Generation:
    """How one completion is drawn.

    Example:
        >>> Generation().greedy
        True
    """

    temperature: float = 0.0
    """0 is greedy: the seed then changes nothing."""
    top_p: float = 1.0
    max_tokens: int = 1024
    seed: int = 42

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """One completion, or the error in its place.

    Example:
        >>> Reply(text="", finish="", num_tokens=0, error="timeout: no reply in 60 s").ok
        False
    """

    text: str
    finish: str
    """`stop`, `length`, or what the server calls it."""
    num_tokens: int
    num_prompt_tokens: int = 0
    reasoning: str = ""
    """What a server returned as `reasoning_content`, apart from the answer."""
    error: str = ""
    """`<status>: <detail>` if there is no completion."""

    @property
    def ok(self) -> bool:
        """True if there is a completion, whatever it says."""
        return not self.error

    @classmethod
    def failed(cls, status: str, detail: object) -> Reply:
        """The reply that stands for a failure."""
        return cls(text="", finish="", num_tokens=0, error=f"{status}: {detail}")


class Answerer(Protocol):
    """A model that answers questions about videos.

    Example:
        >>> class Fixed:
        ...     name, engine = "fixed", "fake"
        ...     async def answer(self, observations, generation):
        ...         return [Reply("<answer>B</answer>", "stop", 5) for _ in observations]
    """

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def engine(self) -> str:
        """`hf`, `openai/frames` or `openai/video`."""
        ...

    async def answer(self, observations: Sequence[Observation], generation: Generation) -> list[Reply]:
        """One reply per observation, in order; a failure is a reply with `error`."""
        ...


@dataclass(frozen=True)
class ModelIdentity:
    """Which model answers: the part of a run's configuration that its settings don't say.

    Example:
        >>> ModelIdentity(model="outputs/ffr/student", weights_sha256="ab").model
        'outputs/ffr/student'
    """

    model: str
    """Directory, hub id or a server's name for it, as given."""
    weights_sha256: str = ""
    """Of a local checkpoint (`ffr.eval.models.checkpoint`); empty where a server hides it."""
    template_sha256: str = ""
    """Of the chat template; empty where a server hides it."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the engine, as far as they change outputs: dtype, device, how frames are sent."""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the engine's packages."""
