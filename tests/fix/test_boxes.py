"""Box conventions: every family's notation becomes the same fractions, and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ffr.config import TeacherConfig
from ffr.fix import parse_patch, patch_json_schema
from ffr.fix.boxes import (
    Boxes,
    box_from_unit,
    box_to_unit,
    family_boxes,
    input_size,
    unit_arguments,
    unit_reply,
)
from ffr.fix.profiles import choose_profile, schema_for

fraction = st.floats(0.0, 1.0)


@given(
    st.tuples(fraction, fraction, fraction, fraction),
    st.sampled_from(["unit", "per_mille", "pixels"]),
    st.tuples(st.integers(28, 2000), st.integers(28, 2000)),
)
def test_box_round_trip_is_within_half_a_unit(
    box: tuple[float, float, float, float], boxes: Boxes, size_px: tuple[int, int]
) -> None:
    back = box_to_unit(box_from_unit(box, boxes, size_px), boxes, size_px)
    steps = {"unit": (1e12, 1e12), "per_mille": (1000, 1000), "pixels": input_size(size_px)}[boxes]
    for i in range(4):
        assert abs(back[i] - box[i]) <= 0.5 / steps[i % 2] + 1e-9


def test_replies_are_converted_and_rubbish_is_left_alone() -> None:
    reply = {
        "error_types": ["spatial"],
        "key_frames": [],
        "temporal_markers": [],
        "spatial_regions": [{"frames": [1, 2], "box": [0, 250, 500, 1000]}],
        "guidance": "Look there.",
    }
    text = "<think>{a}</think>\n```json\n" + json.dumps(reply) + "\n```"
    region = parse_patch(unit_reply(text, "per_mille", (1, 1)), 8).spatial_regions[0]
    assert region.box == (0.0, 0.25, 0.5, 1.0)
    for rubbish in ("", "no", '{"a": 1, "a": 2}', "{" * 50, '{"spatial_regions": 3}', "[1]", "}{"):
        assert unit_reply(rubbish, "per_mille", (1, 1)) == rubbish
    odd = {"box": [1, 2, "3", 4], "frame": 2}
    assert unit_arguments(odd, "per_mille", (1, 1)) == odd


@given(st.text(max_size=200))
def test_no_reply_breaks_the_conversion(text: str) -> None:
    assert isinstance(unit_reply("{" + text + "}", "pixels", (100, 100)), str)


def reply_with(box: str) -> str:
    return (
        '{"error_types": ["spatial"], "key_frames": [], "temporal_markers": [], "guidance": "Look there.", '
        f'"spatial_regions": [{{"frames": [1, 2], "box": {box}}}]}}'
    )


@given(
    st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100),
    st.sampled_from(["Qwen/Qwen2.5-VL-72B-Instruct", "Qwen3-VL-32B", "zai-org/GLM-4.5V", "gpt-x"]),
    st.tuples(st.integers(28, 1500), st.integers(28, 1500)),
)  # fmt: skip
def test_one_region_means_the_same_in_every_familys_reply(
    x0: int, y0: int, width: int, height: int, model: str, size_px: tuple[int, int]
) -> None:
    box = (x0 / 100, y0 / 100, min(1.0, (x0 + width) / 100), min(1.0, (y0 + height) / 100))
    boxes = choose_profile(TeacherConfig(model=model)).boxes
    written = [int(v) if boxes != "unit" else v for v in box_from_unit(box, boxes, size_px)]
    # A sliver of less than a pixel has no notation in whole numbers.
    assume(written[0] != written[2] and written[1] != written[3])
    text = f"<|begin_of_box|>[{written}]<|end_of_box|>" if "GLM" in model else str(written)
    region = parse_patch(unit_reply(reply_with(text), boxes, size_px), 8).spatial_regions[0]
    side = {"unit": (1e12, 1e12), "per_mille": (1000, 1000), "pixels": input_size(size_px)}[boxes]
    for i in range(4):
        assert abs(region.box[i] - box[i]) <= 0.5 / side[i % 2] + 1e-9


def test_pixels_are_those_of_the_resized_input() -> None:
    # 1000 x 500: Qwen2.5-VL's processor rounds both sides to multiples of 28.
    assert input_size((1000, 500)) == (1008, 504)
    assert box_to_unit((504.0, 126.0, 1008.0, 504.0), "pixels", (1000, 500)) == (0.5, 0.25, 1.0, 1.0)
    # Below 56 x 56 pixels in area both sides grow.
    assert input_size((28, 28)) == (56, 56)
    profile = choose_profile(TeacherConfig(model="Qwen2.5-VL-7B"))
    schema = schema_for(profile, patch_json_schema(8), (1000, 500))
    items = schema["properties"]["spatial_regions"]["items"]["properties"]["box"]["items"]
    assert items["maximum"] == 1008


def test_glm_marks_around_the_whole_answer_are_taken_off() -> None:
    text = f"<think>hm</think><|begin_of_box|>{reply_with('[0, 0, 500, 1000]')}<|end_of_box|>"
    region = parse_patch(unit_reply(text, "per_mille", (1, 1)), 8).spatial_regions[0]
    assert region.box == (0.0, 0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("model", "boxes"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "pixels"),
        ("qwen3-vl-8b", "per_mille"),
        ("zai-org/GLM-4.6V", "per_mille"),
        ("my-teacher", None),
    ],
)
def test_the_family_is_told_by_the_name(model: str, boxes: str | None) -> None:
    assert family_boxes(model) == boxes


def test_a_served_name_that_says_nothing_can_be_told() -> None:
    assert choose_profile(TeacherConfig(model="my-teacher", boxes="pixels")).boxes == "pixels"
    assert choose_profile(TeacherConfig(model="Qwen2.5-VL-7B", boxes="unit")).boxes == "unit"
