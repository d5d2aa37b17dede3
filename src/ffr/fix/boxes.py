"""Box conventions of the teacher families, and the one place where they become fractions 0..1.

Qwen2.5-VL writes absolute pixels of the picture as its processor resized it, Qwen3-VL and GLM-4.xV
thousandths (GLM inside box tokens, often nested once more), everything else what the prompt asks for:
fractions. Inside the house there are only fractions of the displayed frame.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal, cast

from ffr.observe import fit_size
from ffr.types import Box

Boxes = Literal["unit", "per_mille", "pixels"]

BOX_TOKENS: Final = ("<|begin_of_box|>", "<|end_of_box|>")
"""GLM's marks around a box, or around the whole answer; they are no JSON."""
SIDE_FACTOR_PX: Final = 28
MIN_INPUT_PX: Final = 56 * 56
MAX_INPUT_PX: Final = 16_384 * 28 * 28
"""What Qwen2.5-VL's own processor resizes to: sides are multiples of 28, the area within these bounds."""

_PER_MILLE: Final = re.compile(r"qwen3(\.5)?-?vl|glm-?4\.\d+v", re.IGNORECASE)
_PIXELS: Final = re.compile(r"qwen2\.5-?vl", re.IGNORECASE)


def family_boxes(model: str) -> Boxes | None:
    """The convention of a model's family by its name; None for a family that follows the prompt."""
    if _PIXELS.search(model):
        return "pixels"
    return "per_mille" if _PER_MILLE.search(model) else None


def input_size(size_px: tuple[int, int]) -> tuple[int, int]:
    """Width and height that Qwen2.5-VL's processor gives a picture: the pixels that its boxes count."""
    width, height = size_px
    return fit_size(width, height, max_px=MAX_INPUT_PX, min_px=MIN_INPUT_PX, factor=SIDE_FACTOR_PX)


def box_unit(boxes: Boxes) -> str:
    """The convention in words, for the prompt."""
    return {
        "unit": "fractions of the width and the height, from 0 to 1",
        "per_mille": "whole thousandths of the width and the height, from 0 to 1000",
        "pixels": "whole pixels of the student's frames as you first get them",
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
        size_px: Width and height of the pictures as sent; for `pixels` the server resizes them first.
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
    if boxes == "unit":
        return text
    if boxes == "per_mille":
        for token in BOX_TOKENS:
            text = text.replace(token, "")
    start, end = text.find("{", text.rfind("</think>") + 1), text.rfind("}") + 1
    if start < 0 or end - start > 20_000 or text[start:end].count("[") > 100:
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
    width, height = {"unit": (1, 1), "per_mille": (1000, 1000), "pixels": input_size(size_px)}[boxes]
    return (float(width), float(height), float(width), float(height))


def _as_box(value: object) -> Box | None:
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if len(items) == 1 and isinstance(items[0], list):  # GLM: [[x0, y0, x1, y1]]
        items = cast("list[Any]", items[0])
    if len(items) != 4 or not all(type(item) in (int, float) and abs(item) < 1e9 for item in items):
        return None
    x0, y0, x1, y1 = (float(item) for item in items)
    return (x0, y0, x1, y1)
