"""The patch parser: what it takes, what it refuses, and that nothing breaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffr.fix.patch import MAX_REPLY_CHARS, PatchError, PatchReply, parse_patch, patch_json_schema
from ffr.types import ErrorType, EvidencePatch, SpatialRegion

GOOD: dict[str, Any] = {
    "error_types": ["temporal", "spatial"],
    "key_frames": [[5, 8]],
    "temporal_markers": ["when the hand lets go"],
    "spatial_regions": [{"frames": [5, 8], "box": [0, 0.5, 0.33, 1]}],
    "guidance": "Watch the ball when it glows.",
}


@pytest.mark.parametrize(
    "template",
    [
        "%s",
        "\n  %s \n",
        "```json\n%s\n```",
        "```\n%s\n```",
        "<think>frames {5} look odd</think>\n%s",
        "it was frame {5}</think>%s",
        "<|begin_of_box|>%s<|end_of_box|>",
        "<think>x</think><answer>```json\n%s```</answer>",
    ],
)
def test_wrappers_are_taken_off(template: str) -> None:
    reply = parse_patch(template % json.dumps(GOOD), 16)
    patch = reply.to_patch()
    assert patch.error_types == (ErrorType.TEMPORAL, ErrorType.SPATIAL)
    assert patch.spatial_regions == (SpatialRegion((5, 8), (0.0, 0.5, 0.33, 1.0)),)
    assert PatchReply.from_patch(patch) == reply


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not one JSON object"),
        ("no patch today", "not one JSON object"),
        ("Here you are: " + json.dumps(GOOD), "not one JSON object"),
        (json.dumps(GOOD) * 2, "invalid JSON"),
        ("<think>never ends " + json.dumps(GOOD), "not closed"),
        ("```json\n" + json.dumps(GOOD), "fence is not closed"),
        ('{"error_types":["temporal"],"error_types":["logic"],"guidance":"x"}', "twice"),
        ('{"error_types":["temporal"],"guidance":NaN}', "NaN"),
        ("[" * 5000 + "]" * 5000, "not one JSON object"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "longer than|nested deeper"),
        ('{"a":' * 50 + "1" + "}" * 50, "nested deeper"),
        ('{"error_types":["temporal"],"key_frames":[[1,' + "9" * 6000 + "]]}", "too long"),
        ("x" * 10_000_000, f"longer than {MAX_REPLY_CHARS}"),
        ('{"guidance": "\\', "not one JSON object"),
    ],
)
def test_malformed_text_is_refused(text: str, part: str) -> None:
    with pytest.raises(PatchError, match=part):
        parse_patch(text, 16)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"error_types": []}, "error_types"),
        ({"error_types": ["temporal", "temporal"]}, "twice"),
        ({"error_types": ["temporal", "logic", "spatial"]}, "error_types"),
        ({"error_types": ["answer is B"]}, "error_types"),
        ({"key_frames": [[8, 5]]}, "reversed"),
        ({"key_frames": [[0, 5]]}, "key_frames"),
        ({"key_frames": [[12, 17]]}, "1..16"),
        ({"key_frames": [[1.5, 5]]}, "key_frames"),
        ({"key_frames": [["1", 5]]}, "key_frames"),
        ({"key_frames": [[True, 5]]}, "key_frames"),
        ({"key_frames": [[1, 2]] * 4}, "key_frames"),
        ({"key_frames": [[1, 2, 3]]}, "key_frames"),
        ({"temporal_markers": ["x" * 101]}, "temporal_markers"),
        ({"temporal_markers": [""]}, "temporal_markers"),
        ({"temporal_markers": ["a", "b", "c", "d"]}, "temporal_markers"),
        ({"spatial_regions": [{"frames": [1, 20], "box": [0, 0, 1, 1]}]}, "1..16"),
        ({"spatial_regions": [{"frames": [1, 2], "box": [0.5, 0, 0.4, 1]}]}, "x0 < x1"),
        ({"spatial_regions": [{"frames": [1, 2], "box": [0, 0, 0, 1]}]}, "x0 < x1"),
        ({"spatial_regions": [{"frames": [1, 2], "box": [0, 0, 100, 100]}]}, "spatial_regions"),
        ({"spatial_regions": [{"frames": [1, 2], "box": [0, 0, 1]}]}, "spatial_regions"),
        ({"spatial_regions": [{"frames": [1, 2], "box": [0, 0, 1, 1], "name": "B"}]}, "name"),
        ({"guidance": "x" * 301}, "guidance"),
        ({"guidance": "tab\there"}, r"U\+0009"),
        ({"guidance": "zero\u200bwidth"}, r"U\+200B"),
        ({"guidance": "lone \ud800"}, "guidance"),
        ({"guidance": ["list"]}, "guidance"),
        ({"answer": "B"}, "answer"),
        (
            {"key_frames": [], "temporal_markers": [], "spatial_regions": [], "guidance": "  "},
            "empty",
        ),
    ],
)
def test_wrong_fields_are_refused_by_name(change: dict[str, Any], part: str) -> None:
    with pytest.raises(PatchError, match=part):
        parse_patch(json.dumps(GOOD | change), 16)


def test_reason_does_not_echo_the_value() -> None:
    with pytest.raises(PatchError) as caught:
        parse_patch(json.dumps(GOOD | {"guidance": "secret-payload " * 30}), 16)
    assert "secret-payload" not in caught.value.reason


def test_from_patch_checks_the_bounds() -> None:
    with pytest.raises(PatchError, match="guidance"):
        PatchReply.from_patch(EvidencePatch(error_types=(ErrorType.LOGIC,), guidance="x" * 400))


def test_schema_describes_the_model() -> None:
    schema = patch_json_schema(16)
    assert set(schema["properties"]) == set(PatchReply.model_fields) == set(schema["required"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["key_frames"]["items"]["items"]["maximum"] == 16
    assert set(schema["properties"]["error_types"]["items"]["enum"]) == {str(kind) for kind in ErrorType}
    json.dumps(schema)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300) | st.builds(lambda text: "{" + text + "}", st.text(max_size=200)))
def test_any_text_gives_a_patch_or_a_patch_error(text: str) -> None:
    with pytest.raises(PatchError):
        parse_patch(text, 16)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from([*GOOD, "extra"]), json_values))
def test_any_values_give_a_patch_or_a_patch_error(change: dict[str, Any]) -> None:
    try:
        reply = parse_patch(json.dumps(GOOD | change), 16)
    except PatchError as error:
        assert error.reason and len(error.reason) < 2000
    else:
        assert parse_patch(reply.model_dump_json(), 16) == reply


frame_ranges = st.tuples(st.integers(1, 16), st.integers(1, 16)).map(lambda p: (min(p), max(p)))


@settings(max_examples=60, deadline=None)
@given(st.lists(frame_ranges, min_size=1, max_size=3))
def test_round_trip(ranges: list[tuple[int, int]]) -> None:
    patch = EvidencePatch(
        error_types=(ErrorType.COUNTING,), key_frames=tuple(ranges), guidance="Count again."
    )
    assert parse_patch(PatchReply.from_patch(patch).model_dump_json(), 16).to_patch() == patch
