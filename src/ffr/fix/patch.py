"""The teacher's reply: its schema, and a parser that no reply can break.

The reply is data from a model that has read hostile text, so everything here is bounded before it is
parsed: length, nesting, number of items, length of every string. What comes out is an `EvidencePatch`
(FFR eq. 5, arXiv 2604.16243) whose frame numbers exist in the student's observation.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ffr.types import Box, ErrorType, EvidencePatch, FrameRange, SpatialRegion

MAX_REPLY_CHARS: Final = 200_000
"""Longest text looked at: a long chain of thought and a patch; the patch itself is far smaller."""
MAX_JSON_CHARS: Final = 20_000
MAX_JSON_DEPTH: Final = 6
MAX_RANGES: Final = 3
MAX_MARKERS: Final = 3
MAX_REGIONS: Final = 3
MAX_MARKER_CHARS: Final = 100
MAX_GUIDANCE_CHARS: Final = 300

_WRAPPERS: Final = ("<|begin_of_box|>", "<|end_of_box|>", "<answer>", "</answer>")
"""Tokens that GLM and answer-tag prompts put around the object."""
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class PatchError(ValueError):
    """A teacher reply that holds no valid patch; the message is safe to send back to the teacher.

    Example:
        >>> PatchError("guidance: longer than 300 characters").reason
        'guidance: longer than 300 characters'
    """

    def __init__(self, reason: str) -> None:
        """Keep `reason`: field and remedy, never the offending value."""
        super().__init__(reason)
        self.reason = reason


def _clean_text(text: str) -> str:
    """Refuse characters that a person would not see; blanks at the ends are dropped."""
    for char in text:
        if unicodedata.category(char) in _FORBIDDEN_CATEGORIES:
            raise ValueError(f"character U+{ord(char):04X} is not allowed; write plain text on one line")
    return text.strip()


def _ordered_range(frames: FrameRange) -> FrameRange:
    if frames[0] > frames[1]:
        raise ValueError(f"range [{frames[0]}, {frames[1]}] is reversed; write [start, end]")
    return frames


def _ordered_box(box: Box) -> Box:
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        raise ValueError("box must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, as fractions 0..1")
    return box


FrameNumber = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
ReplyRange = Annotated[tuple[FrameNumber, FrameNumber], AfterValidator(_ordered_range)]
Fraction = Annotated[float, Field(strict=True, ge=0.0, le=1.0, allow_inf_nan=False)]
ReplyBox = Annotated[tuple[Fraction, Fraction, Fraction, Fraction], AfterValidator(_ordered_box)]
Marker = Annotated[str, Field(min_length=1, max_length=MAX_MARKER_CHARS), AfterValidator(_clean_text)]
Guidance = Annotated[str, Field(max_length=MAX_GUIDANCE_CHARS), AfterValidator(_clean_text)]


class RegionReply(BaseModel):
    """One box over an inclusive range of frames, as the teacher writes it.

    Example:
        >>> RegionReply(frames=(5, 8), box=(0.0, 0.5, 0.33, 1.0)).frames
        (5, 8)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: ReplyRange
    box: ReplyBox


class PatchReply(BaseModel):
    """A whole reply of the teacher: bounded fields, unknown ones refused.

    Example:
        >>> PatchReply(error_types=("temporal",), key_frames=((5, 8),)).to_patch().key_frames
        ((5, 8),)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    error_types: Annotated[tuple[ErrorType, ...], Field(min_length=1, max_length=2)]
    key_frames: Annotated[tuple[ReplyRange, ...], Field(max_length=MAX_RANGES)] = ()
    temporal_markers: Annotated[tuple[Marker, ...], Field(max_length=MAX_MARKERS)] = ()
    spatial_regions: Annotated[tuple[RegionReply, ...], Field(max_length=MAX_REGIONS)] = ()
    guidance: Guidance = ""

    @model_validator(mode="after")
    def _says_something(self) -> PatchReply:
        if len(set(self.error_types)) != len(self.error_types):
            raise ValueError("error_types holds the same type twice")
        if not (self.key_frames or self.temporal_markers or self.spatial_regions or self.guidance):
            raise ValueError("the patch is empty: give key_frames, a region, a marker or guidance")
        return self

    def to_patch(self) -> EvidencePatch:
        """The shared dataclass with the same contents."""
        return EvidencePatch(
            error_types=self.error_types,
            key_frames=self.key_frames,
            temporal_markers=self.temporal_markers,
            spatial_regions=tuple(SpatialRegion(r.frames, r.box) for r in self.spatial_regions),
            guidance=self.guidance,
        )

    @classmethod
    def from_patch(cls, patch: EvidencePatch) -> PatchReply:
        """The reply that says what `patch` says; raises `PatchError` if the patch breaks the bounds."""
        return _validated(
            {
                "error_types": [str(kind) for kind in patch.error_types],
                "key_frames": [list(frames) for frames in patch.key_frames],
                "temporal_markers": list(patch.temporal_markers),
                "spatial_regions": [
                    {"frames": list(region.frames), "box": list(region.box)}
                    for region in patch.spatial_regions
                ],
                "guidance": patch.guidance,
            }
        )


def parse_patch(text: str, num_frames: int) -> PatchReply:
    """Read one patch from a teacher's reply.

    A thinking block before it, a code fence, GLM's box tokens and answer tags around it are taken off;
    anything else beside the one JSON object is refused, as are duplicate keys, NaN and deep nesting.
    Time and memory are linear in `min(len(text), MAX_REPLY_CHARS)`.

    Args:
        text: What the teacher wrote.
        num_frames: Frames of the student's observation; frame numbers must lie in 1..num_frames.

    Returns:
        The validated reply.

    Raises:
        PatchError: No valid patch; the reason names the field and the remedy.
    """
    data = _load_object(_unwrap(text))
    reply = _validated(data)
    _check_frames(reply, num_frames)
    return reply


def patch_json_schema(num_frames: int) -> dict[str, Any]:
    """JSON schema of a patch for servers that constrain decoding.

    Only keywords that vLLM, SGLang (xgrammar) and OpenAI's strict mode all accept; every property is
    required because strict mode asks for it. Order rules (start <= end) are `parse_patch`'s.

    Args:
        num_frames: Frames of the student's observation.

    Returns:
        A JSON-serialisable dictionary.
    """
    frame = {"type": "integer", "minimum": 1, "maximum": max(1, num_frames)}
    frames = {"type": "array", "items": frame, "minItems": 2, "maxItems": 2}
    box = {
        "type": "array",
        "items": {"type": "number", "minimum": 0, "maximum": 1},
        "minItems": 4,
        "maxItems": 4,
    }
    region = _closed_object({"frames": frames, "box": box})
    return _closed_object(
        {
            "error_types": {
                "type": "array",
                "items": {"type": "string", "enum": [str(kind) for kind in ErrorType]},
                "minItems": 1,
                "maxItems": 2,
            },
            "key_frames": {"type": "array", "items": frames, "minItems": 0, "maxItems": MAX_RANGES},
            "temporal_markers": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": MAX_MARKER_CHARS},
                "minItems": 0,
                "maxItems": MAX_MARKERS,
            },
            "spatial_regions": {"type": "array", "items": region, "minItems": 0, "maxItems": MAX_REGIONS},
            "guidance": {"type": "string", "minLength": 1, "maxLength": MAX_GUIDANCE_CHARS},
        }
    )


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _unwrap(text: str) -> str:
    """The JSON text inside the wrappers, still unparsed."""
    if len(text) > MAX_REPLY_CHARS:
        raise PatchError(f"reply is longer than {MAX_REPLY_CHARS} characters")
    # Chat templates often open the thinking block themselves, so only its end may be in the text.
    head, closed, tail = text.rpartition("</think>")
    body = tail if closed else head + tail
    if "<think>" in body:
        raise PatchError("the thinking block is not closed; write the JSON object after it")
    body = body.strip()
    for token in _WRAPPERS:
        body = body.removeprefix(token).removesuffix(token).strip()
    if body.startswith("```"):
        if not body.endswith("```") or len(body) < 6:
            raise PatchError("the code fence is not closed")
        body = body[3:-3].removeprefix("json").removeprefix("JSON").strip()
    for token in _WRAPPERS:
        body = body.removeprefix(token).removesuffix(token).strip()
    if len(body) > MAX_JSON_CHARS:
        raise PatchError(f"the JSON object is longer than {MAX_JSON_CHARS} characters")
    if not (body.startswith("{") and body.endswith("}")):
        raise PatchError("reply is not one JSON object; write the object alone")
    return body


def _load_object(body: str) -> dict[str, Any]:
    """Parse with the standard library under our own limits."""
    _check_depth(body)
    try:
        data = json.loads(body, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise PatchError(f"invalid JSON at character {error.pos}: {error.msg}") from error
    except PatchError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise PatchError("a number is too long") from error
    return data


def _check_depth(body: str) -> None:
    """Refuse deep nesting before the recursive parser sees it; strings are skipped."""
    depth, in_string, escaped = 0, False, False
    for char in body:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise PatchError(f"JSON is nested deeper than {MAX_JSON_DEPTH} levels")
        elif char in "]}":
            depth -= 1


def _unique_pairs(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise PatchError(f"key {key[:40]!r} appears twice")
        result[key] = value
    return result


def _refuse_constant(name: str) -> Any:
    raise PatchError(f"{name} is not a JSON number")


def _validated(data: dict[str, Any]) -> PatchReply:
    try:
        return PatchReply.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part)[:40] for part in item['loc']) or 'patch'}: {item['msg'][:160]}"
            for item in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise PatchError("; ".join(problems)) from error


def _check_frames(reply: PatchReply, num_frames: int) -> None:
    ranges = [("key_frames", frames) for frames in reply.key_frames]
    ranges += [("spatial_regions", region.frames) for region in reply.spatial_regions]
    for name, (start, end) in ranges:
        if end > num_frames:
            raise PatchError(f"{name}: range [{start}, {end}] leaves the student's frames 1..{num_frames}")
