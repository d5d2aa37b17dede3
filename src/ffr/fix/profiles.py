"""What a server understands: which of JSON schema, tools and box conventions may be sent to it."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

from ffr.config import TeacherConfig
from ffr.types import Box

Schema = Literal["json_schema", "json_object", "prompt"]
Tools = Literal["native", "prompted"]
Boxes = Literal["unit", "per_mille", "pixels"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The features of one kind of server with one family of model.

    Example:
        >>> PROFILES["glm"].schema
        'json_object'
    """

    name: str
    schema: Schema
    """How the patch's JSON is asked for; the prompt always states it and we always validate."""
    tools: Tools
    """`prompted` writes tool calls as JSON text, for chat templates that drop tools."""
    boxes: Boxes = "unit"
    """Fractions, thousandths, or pixels of the pictures as sent."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


PROFILES: Final = {
    "vllm": Profile("vllm", "json_schema", "native"),
    "sglang": Profile("sglang", "json_schema", "native"),
    "openai": Profile("openai", "json_schema", "native", max_tokens_field="max_completion_tokens"),
    "glm": Profile("glm", "json_object", "native", "per_mille"),
    "transformers": Profile("transformers", "prompt", "prompted"),
    "auto": Profile("auto", "json_schema", "native"),
}
_NO_TOOL_TEMPLATE: Final = re.compile(r"qwen2(\.5)?-?vl|glm-?4\.(1v|5v)", re.IGNORECASE)
"""Families whose chat template drops tools or tool results."""
_PER_MILLE: Final = re.compile(r"qwen3(\.5)?-?vl|glm-?4\.\d+v", re.IGNORECASE)
_PIXELS: Final = re.compile(r"qwen2\.5-?vl", re.IGNORECASE)


def choose_profile(cfg: TeacherConfig) -> Profile:
    """The profile that the configuration and the model's family ask for."""
    name = cfg.profile
    if name == "auto":
        host = cfg.base_url.lower()
        if "api.openai.com" in host:
            name = "openai"
        elif any(part in host for part in ("z.ai", "bigmodel.cn")):
            name = "glm"
    profile = PROFILES[name]
    if _NO_TOOL_TEMPLATE.search(cfg.model):
        profile = replace(profile, tools="prompted")
    if _PIXELS.search(cfg.model):
        profile = replace(profile, boxes="pixels")
    elif _PER_MILLE.search(cfg.model):
        profile = replace(profile, boxes="per_mille")
    return profile


def weaker_schema(schema: Schema) -> Schema | None:
    """What to ask for when a server refuses `schema`; None when there is nothing weaker."""
    steps: dict[Schema, Schema] = {"json_schema": "json_object", "json_object": "prompt"}
    return steps.get(schema)


def response_format(profile: Profile, schema: dict[str, Any]) -> dict[str, Any] | None:
    """The `response_format` field of the patch request, or None if the server has none."""
    if profile.schema == "json_schema":
        body = {"name": "evidence_patch", "strict": True, "schema": schema}
        return {"type": "json_schema", "json_schema": body}
    return {"type": "json_object"} if profile.schema == "json_object" else None


def box_unit(boxes: Boxes) -> str:
    """The convention in words, for the prompt."""
    return {
        "unit": "fractions of the width and the height, from 0 to 1",
        "per_mille": "whole thousandths of the width and the height, from 0 to 1000",
        "pixels": "whole pixels of the pictures as you get them",
    }[boxes]


def box_example(boxes: Boxes) -> str:
    """A box in the convention, for the prompt."""
    return {
        "unit": "[0.1, 0.2, 0.6, 0.9]",
        "per_mille": "[100, 200, 600, 900]",
        "pixels": "[20, 30, 90, 110]",
    }[boxes]


def box_to_unit(box: Box, boxes: Boxes, size_px: tuple[int, int]) -> Box:
    """A box of the teacher's convention as fractions, clamped to the frame.

    Args:
        box: x0, y0, x1, y1 as the teacher wrote it.
        boxes: Its convention.
        size_px: Width and height of the pictures as sent, for `pixels`.
    """
    scale = _scale(boxes, size_px)
    x0, y0, x1, y1 = (min(1.0, max(0.0, value / s)) for value, s in zip(box, scale, strict=True))
    return (x0, y0, x1, y1)


def box_from_unit(box: Box, boxes: Boxes, size_px: tuple[int, int]) -> Box:
    """A box of fractions in the teacher's convention; whole numbers unless `unit`."""
    scale = _scale(boxes, size_px)
    x0, y0, x1, y1 = (
        v * s if boxes == "unit" else float(round(v * s)) for v, s in zip(box, scale, strict=True)
    )
    return (x0, y0, x1, y1)


def schema_for(profile: Profile, schema: dict[str, Any], size_px: tuple[int, int]) -> dict[str, Any]:
    """The patch schema with its boxes in the profile's convention."""
    if profile.boxes == "unit":
        return schema
    limit = 1000 if profile.boxes == "per_mille" else max(size_px)
    changed = copy.deepcopy(schema)
    region = changed["properties"]["spatial_regions"]["items"]
    region["properties"]["box"]["items"] = {"type": "integer", "minimum": 0, "maximum": limit}
    return changed


def unit_arguments(arguments: dict[str, Any], boxes: Boxes, size_px: tuple[int, int]) -> dict[str, Any]:
    """A tool's arguments or a region with its `box`, if it is one, as fractions; the rest untouched."""
    box = _as_box(arguments.get("box"))
    if boxes == "unit" or box is None:
        return arguments
    return {**arguments, "box": list(box_to_unit(box, boxes, size_px))}


def unit_reply(text: str, boxes: Boxes, size_px: tuple[int, int]) -> str:
    """The teacher's reply with the boxes of its regions as fractions.

    What is no JSON object comes back as it is, for the parser to refuse with its own reason.
    """
    start, end = text.find("{", text.rfind("</think>") + 1), text.rfind("}") + 1
    if boxes == "unit" or start < 0 or end - start > 20_000 or text[start:end].count("[") > 100:
        return text
    try:
        data = json.loads(text[start:end], object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return text
    regions = cast("dict[str, Any]", data).get("spatial_regions") if isinstance(data, dict) else None
    if not isinstance(regions, list):
        return text
    for region in cast("list[Any]", regions):
        if isinstance(region, dict):
            fields = cast("dict[str, Any]", region)
            fields.update(unit_arguments(fields, boxes, size_px))
    return text[:start] + json.dumps(data) + text[end:]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key appears twice")
    return dict(pairs)


def _scale(boxes: Boxes, size_px: tuple[int, int]) -> Box:
    width, height = {"unit": (1, 1), "per_mille": (1000, 1000), "pixels": size_px}[boxes]
    return (float(width), float(height), float(width), float(height))


def _as_box(value: object) -> Box | None:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if len(items) != 4 or not all(type(item) in (int, float) and abs(item) < 1e9 for item in items):
        return None
    x0, y0, x1, y1 = (float(item) for item in items)
    return (x0, y0, x1, y1)
