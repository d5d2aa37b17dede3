"""A chat request as clients send it: checked at the door, unknown fields kept for a server behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ffr.serve.app import BadRequest

MAX_MESSAGES: Final = 200
MAX_PARTS: Final = 2_000
MAX_CHOICES: Final = 16
MAX_TEXT_CHARS: Final = 400_000
"""Of all texts of one request."""
M = TypeVar("M", bound=BaseModel)


class _Open(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)


class Link(_Open):
    """Where a picture or a clip is.

    Example:
        >>> Link(url="file:///data/a.mp4").url
        'file:///data/a.mp4'
    """

    url: str


class ContentPart(_Open):
    """One piece of a message.

    Example:
        >>> ContentPart(type="image_url", image_url={"url": "data:image/png;base64,AA=="}).link
        'data:image/png;base64,AA=='
    """

    type: str
    text: str | None = None
    image_url: Link | str | None = None
    video_url: Link | str | None = None

    @property
    def link(self) -> str:
        """The address of the picture or clip; empty for text."""
        found = {"image_url": self.image_url, "video_url": self.video_url}.get(self.type)
        return found.url if isinstance(found, Link) else found or ""


class Message(_Open):
    """One turn.

    Example:
        >>> Message(role="user", content="Which?").text
        'Which?'
    """

    role: str
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)] | None = None

    @property
    def parts(self) -> tuple[ContentPart, ...]:
        """The content as parts, whichever way it was sent."""
        if isinstance(self.content, str):
            return (ContentPart(type="text", text=self.content),)
        return tuple(self.content or ())

    @property
    def text(self) -> str:
        """All text of the turn, a line for each part."""
        return "\n".join(part.text or "" for part in self.parts if part.type == "text")


class ChatRequest(_Open):
    """The fields that we read; all others stay on the object.

    Example:
        >>> ChatRequest(model="m", messages=[{"role": "user", "content": "Which?"}]).question
        'Which?'
    """

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def limit(self) -> int | None:
        """Tokens that the client asks for at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def question(self) -> str:
        """Text of the last turn."""
        return self.messages[-1].text

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings at which the completion ends."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in found if text)

    def number(self, where: Literal["media_io_kwargs", "mm_processor_kwargs"], name: str) -> float | None:
        """A positive number of the request's media settings (`media_io_kwargs` has them under `video`, too).

        Raises:
            BadRequest: If it is something else.
        """
        fields: Mapping[str, Any] = getattr(self, where) or {}
        nested = fields.get("video")
        value = fields.get(name, nested.get(name) if isinstance(nested, dict) else None)
        if value is None or (name == "num_frames" and value == -1):  # vLLM's word for all frames
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise BadRequest("bad_request", f"{where}.{name}: must be a positive number", 400)
        return float(value)


def read_request(body: dict[str, Any]) -> ChatRequest:
    """The checked request.

    Raises:
        BadRequest: A field has another type or value than it may, or there is too much text.
    """
    request = checked(ChatRequest, body)
    if sum(len(message.text) for message in request.messages) > MAX_TEXT_CHARS:
        raise BadRequest("too_long", f"more than {MAX_TEXT_CHARS} characters of text", 413)
    return request


def checked(model: type[M], body: dict[str, Any], *, http_status: int = 400) -> M:
    """The body as a model.

    Raises:
        BadRequest: With the first problems, by field; values are not repeated.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part)[:40] for part in item['loc']) or 'body'}: {item['msg'][:160]}"
            for item in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise BadRequest("bad_request", "; ".join(problems), http_status) from error
