"""What a server understands: which of JSON schema, tools and box conventions may be sent to it."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ffr.config import TeacherConfig
from ffr.fix.boxes import Boxes, family_boxes, input_size

Schema = Literal["json_schema", "json_object", "prompt"]
Tools = Literal["native", "prompted"]


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
    boxes = family_boxes(cfg.model) if cfg.boxes == "auto" else cfg.boxes
    return replace(profile, boxes=boxes) if boxes else profile


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


def schema_for(profile: Profile, schema: dict[str, Any], size_px: tuple[int, int]) -> dict[str, Any]:
    """The patch schema with its boxes in the profile's convention."""
    if profile.boxes == "unit":
        return schema
    limit = 1000 if profile.boxes == "per_mille" else max(input_size(size_px))
    changed = copy.deepcopy(schema)
    region = changed["properties"]["spatial_regions"]["items"]
    region["properties"]["box"]["items"] = {"type": "integer", "minimum": 0, "maximum": limit}
    return changed
