"""The question and the patch as the student reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.config import ObserveConfig
from ffr.observe import make_frame, observe, render_patch, render_prompt, template_version, user_text, view_id
from ffr.observe.prompt import ERROR_WORDS
from ffr.types import ErrorType, EvidencePatch, Observation, ProblemType, SpatialRegion
from tests.observe.clips import make_sample, write_clip

SAMPLE = make_sample(Path("clips/1.mp4"))


def make_obs(n: int = 8, style: str = "video_r1", **changes: object) -> Observation:
    rng = np.random.default_rng(0)
    frames = tuple(
        make_frame(
            rng.integers(0, 256, (28, 56, 3), np.uint8), number=k + 1, source_index=3 * k, timestamp_s=0.3 * k
        )
        for k in range(n)
    )
    prompt = "Which?\n"
    obs = Observation(
        sample_uid="t/1", frames=frames, prompt=prompt, view_id=view_id(frames, prompt), prompt_style=style
    )
    return replace(obs, **changes)  # type: ignore[arg-type]


def make_patch(**changes: object) -> EvidencePatch:
    patch = EvidencePatch(
        error_types=(ErrorType.TEMPORAL, ErrorType.SPATIAL),
        key_frames=((5, 6), (2, 4)),
        temporal_markers=("when the {ball} glows", "after that"),
        spatial_regions=(SpatialRegion((5, 6), (1 / 3, 0.0, 2 / 3, 0.5)),),
        guidance="Watch the {{ball}}.",
    )
    return replace(patch, **changes)  # type: ignore[arg-type]


def test_brief_prompt_is_exactly_the_question_and_options():
    assert render_prompt(SAMPLE, make_obs().frames, style="brief", state_frames=True) == (
        "Which {colour} is {{it}}?\nA. red\nB. blue {% x %}\n"
        "Think in <think></think>, answer in <answer></answer>."
    )
    plain = replace(SAMPLE, options=(), problem_type=ProblemType.NUMERICAL, question="How many?")
    assert render_prompt(plain, (), style="brief", state_frames=True) == (
        "How many?\nThink in <think></think>, answer in <answer></answer>."
    )


def test_video_r1_prompt_has_the_structure_of_the_field():
    lines = render_prompt(SAMPLE, make_obs(3).frames, style="video_r1", state_frames=True).split("\n")
    assert lines[0] == "The video has 3 frames numbered 1-3; frame k is at t_k s: 0.0 0.3 0.6"
    assert lines[1:5] == ["Which {colour} is {{it}}?", "Options:", "A. red", "B. blue {% x %}"]
    assert len(lines) == 6
    assert "between the <think> </think> tags" in lines[5]
    assert lines[5].endswith(
        "single option letter (for example A, B, C or D) within the <answer> </answer> tags."
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ProblemType.NUMERICAL, "number (for example 42 or 3.14)"),
        (ProblemType.REGRESSION, "number (for example 42 or 3.14)"),
        (ProblemType.OCR, "text of the image or video"),
        (ProblemType.FREE_FORM, "your answer as text"),
    ],
)
def test_each_problem_type_has_its_suffix(kind, words):
    text = render_prompt(
        replace(SAMPLE, options=(), problem_type=kind), (), style="video_r1", state_frames=True
    )
    assert words in text.split("\n")[-1] and "Options:" not in text and "option letter" not in text
    assert text.endswith("within the <answer> </answer> tags.")


def test_state_line_follows_the_switch_and_the_medium():
    frames = make_obs(2).frames
    assert "2 frames numbered 1-2" in render_prompt(SAMPLE, frames, style="video_r1", state_frames=True)
    assert "numbered" not in render_prompt(SAMPLE, frames, style="video_r1", state_frames=False)
    image = replace(SAMPLE, media_type="image")
    assert "numbered" not in render_prompt(image, frames[:1], style="video_r1", state_frames=True)


def test_the_gold_answer_is_not_in_the_prompt():
    for kind in ProblemType:
        sample = replace(SAMPLE, options=(), problem_type=kind, answer="zebra-77")
        for style in ("video_r1", "brief"):
            assert "zebra-77" not in render_prompt(sample, (), style=style, state_frames=True)


def test_observe_uses_the_configured_template(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 6)
    brief = observe(make_sample(path), ObserveConfig(prompt="brief"))
    full = observe(make_sample(path), ObserveConfig())
    assert (brief.prompt_style, full.prompt_style) == ("brief", "video_r1")
    assert brief.prompt.startswith("Which") and full.prompt.startswith("The video has 6 frames numbered 1-6")
    assert brief.view_id != full.view_id


def test_patch_renders_every_field():
    assert render_patch(make_patch(), make_obs()).split("\n")[1:-1] == [
        "What was missed: when things happen and in which order; "
        "where things are and how they lie to each other.",
        "Look again at frames 5-6 (1.2-1.5 s).",
        "Look again at frames 2-4 (0.3-0.9 s).",
        "In frames 5-6 look at the box x 0.33-0.67, y 0.00-0.50 (fractions of the width and the height, "
        "from the top left corner).",
        "Moment to watch: when the {ball} glows",
        "Moment to watch: after that",
        "Guidance: Watch the {{ball}}.",
    ]


def test_brief_patch_is_one_line_per_field():
    assert render_patch(
        make_patch(key_frames=((5, 6),), temporal_markers=("at the end",)), make_obs(style="brief")
    ) == (
        "Miss: temporal, spatial.\n"
        "Look again at frames 5-6.\n"
        "Region: frames 5-6, x 0.33-0.67, y 0.00-0.50.\n"
        "Moment: at the end\n"
        "Watch the {{ball}}."
    )
    assert render_patch(EvidencePatch((ErrorType.COUNTING,)), make_obs(style="brief")) == "Miss: counting."


@pytest.mark.parametrize("style", ["video_r1", "brief"])
def test_no_visual_context_leaves_pointers_out(style):
    text = render_patch(
        make_patch(guidance="Look.", temporal_markers=("then",)), make_obs(style=style), visual="none"
    )
    assert not any(char.isdigit() for char in text)
    assert "then" in text and "Look." in text
    shown = render_patch(make_patch(), make_obs(style=style), visual="frames")
    assert "frames 5-6, frames 2-4, the box in frames 5-6" in shown


def test_unknown_switches_are_refused():
    with pytest.raises(ValueError, match="none, pointers, frames"):
        render_patch(make_patch(), make_obs(), visual="all")
    with pytest.raises(ValueError, match="prompt_style 'odd'"):
        render_patch(make_patch(), make_obs(style="odd"))
    with pytest.raises(ValueError, match="no such template"):
        template_version("odd")


def test_templates_have_versions():
    assert [template_version(n) for n in ("video_r1", "brief", "patch", "patch_brief")] == [
        "video_r1/1",
        "brief/1",
        "patch/1",
        "patch_brief/1",
    ]


def test_user_text_puts_the_patch_on_a_new_line():
    assert user_text(make_obs(prompt="Q")) == "Q"
    assert user_text(make_obs(prompt="Q", patch_text="P")) == "Q\nP"


texts = st.text(min_size=1, max_size=40).filter(str.strip) | st.sampled_from(
    [
        "{{ x }}",
        "{% for %}",
        "{# c #}",
        "{0}",
        "%s",
        "</think><answer>A</answer>",
        "a\nLook again at frames 1-2.",
    ]
)
ranges = st.integers(1, 7).flatmap(lambda a: st.integers(a + 1, 8).map(lambda b: (a, b)))
unit = st.floats(0, 1)
regions = st.tuples(ranges, unit, unit, unit, unit).map(lambda t: SpatialRegion(t[0], t[1:]))
patches = st.builds(
    EvidencePatch,
    error_types=st.lists(st.sampled_from(ErrorType), min_size=1, max_size=2, unique=True).map(tuple),
    key_frames=st.lists(ranges, max_size=3).map(tuple),
    temporal_markers=st.lists(texts, max_size=3).map(tuple),
    spatial_regions=st.lists(regions, max_size=3).map(tuple),
    guidance=st.just("") | texts,
)


def flat(text: str) -> str:
    return " ".join(text.split())


@given(
    patch=patches,
    style=st.sampled_from(["video_r1", "brief"]),
    visual=st.sampled_from(["pointers", "frames"]),
)
def test_every_field_of_any_patch_is_rendered(patch, style, visual):
    lines = render_patch(patch, make_obs(style=style), visual=visual).split("\n")
    text = "\n".join(lines)
    for error in patch.error_types:
        assert (ERROR_WORDS[error] if style == "video_r1" else str(error)) in text
    for first, last in patch.key_frames:
        assert any(line.startswith(f"Look again at frames {first}-{last}") for line in lines)
    for region in patch.spatial_regions:
        x0, y0, x1, y1 = region.box
        assert f"x {x0:.2f}-{x1:.2f}, y {y0:.2f}-{y1:.2f}" in text
    for marker in patch.temporal_markers:
        assert any(line.endswith(flat(marker)) for line in lines)
    assert flat(patch.guidance) in text
    # One line per field: a newline inside a field opens no line of its own.
    fixed = {"video_r1": 2, "brief": 0}[style] + 1 + bool(flat(patch.guidance))
    pointers = len(patch.key_frames) + len(patch.spatial_regions)
    shown = int(visual == "frames" and pointers > 0)
    assert len(lines) == fixed + pointers + len(patch.temporal_markers) + shown


@given(patch=patches, style=st.sampled_from(["video_r1", "brief"]))
def test_nothing_but_the_patch_is_added(patch, style):
    """The text is the same whatever the question, and with empty fields no word of it is left."""
    one, other = make_obs(style=style, prompt="Q1"), make_obs(style=style, prompt="zebra?", sample_uid="t/2")
    assert render_patch(patch, one) == render_patch(patch, other)
    bare = render_patch(EvidencePatch(patch.error_types), one)
    for place in ("left", "upper", "lower", "middle", "centre"):
        assert place not in bare.replace("top left corner", "")
