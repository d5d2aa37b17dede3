"""Patched and disturbed observations: pure, and a new view exactly where the model sees something new."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.observe import (
    apply_patch,
    crop_frame,
    drop_video,
    make_frame,
    mask_frames,
    pixel_hash,
    reverse_frames,
    shuffle_frames,
    view_id,
)
from ffr.types import ErrorType, EvidencePatch, SpatialRegion
from tests.observe.test_prompt import make_obs, make_patch, patches


def seen(obs):
    return (
        tuple((f.sha256, f.timestamp_s) for f in obs.frames),
        obs.prompt,
        obs.system,
        obs.patch_text,
        tuple((f.sha256, f.timestamp_s) for f in obs.extra_frames),
    )


def snapshot(obs):
    return obs, [f.pixels.copy() for f in obs.frames]


def assert_untouched(obs, before):
    assert obs == before[0]
    assert all((f.pixels == p).all() for f, p in zip(obs.frames, before[1], strict=True))


@given(patch=patches, visual=st.sampled_from(["none", "pointers"]))
def test_apply_patch_is_pure_and_keeps_the_rest(patch, visual):
    obs = make_obs()
    before = snapshot(obs)
    patched = apply_patch(obs, patch, visual=visual)
    assert_untouched(obs, before)
    assert patched.patched and not obs.patched
    assert patched.view_id != obs.view_id
    assert (patched.frames, patched.prompt, patched.sample_uid) == (obs.frames, obs.prompt, obs.sample_uid)
    assert apply_patch(obs, patch, visual=visual).view_id == patched.view_id
    assert apply_patch(patched, patch, visual=visual) == patched
    assert patched.extra_frames == ()


def test_frames_are_shown_again_with_their_times():
    obs = make_obs()
    patched = apply_patch(obs, make_patch(), visual="frames")
    whole, crops = patched.extra_frames[:5], patched.extra_frames[5:]
    assert [f.number for f in whole] == [2, 3, 4, 5, 6] and list(whole) == list(obs.frames[1:6])
    assert [f.number for f in crops] == [5, 6]
    assert [f.timestamp_s for f in crops] == [obs.frames[4].timestamp_s, obs.frames[5].timestamp_s]
    assert all((f.width_px, f.height_px) == (56, 28) for f in crops)
    assert {f.sha256 for f in crops}.isdisjoint({f.sha256 for f in obs.frames})
    assert patched.view_id != apply_patch(obs, make_patch(), visual="pointers").view_id


def test_too_many_extra_frames_are_thinned_and_noted():
    region = SpatialRegion((1, 16), (0.0, 0.0, 0.5, 0.5))
    patch = EvidencePatch((ErrorType.LOGIC,), key_frames=((1, 16),), spatial_regions=(region,))
    patched = apply_patch(make_obs(16), patch, visual="frames")
    assert len(patched.extra_frames) == 16
    assert "extra_frames_limited:32" in patched.notes


def test_unknown_visual_is_refused():
    with pytest.raises(ValueError, match=r"fix\.visual"):
        apply_patch(make_obs(), make_patch(), visual="crops")


def test_crop_shows_the_box_undistorted():
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[40:80, 80:160] = 200
    frame = make_frame(pixels, number=3, source_index=9, timestamp_s=0.9)
    quarter = crop_frame(frame, (0.5, 0.5, 1.0, 1.0))
    assert quarter.pixels.shape == (80, 160, 3) and (quarter.pixels == 200).all()
    assert (quarter.number, quarter.source_index, quarter.timestamp_s) == (3, 9, 0.9)
    # A tall box is widened to the frame's aspect ratio around its centre, and stays inside.
    tall = crop_frame(frame, (0.9, 0.5, 1.0, 1.0))
    assert (tall.pixels == 200).all()
    assert crop_frame(frame, (0.0, 0.0, 1.0, 1.0)).sha256 == frame.sha256
    with pytest.raises(ValueError, match="has no area"):
        crop_frame(frame, (0.5, 0.5, 0.5, 0.9))
    with pytest.raises(ValueError, match="no pixels"):
        crop_frame(replace(frame, pixels=None), (0.0, 0.0, 1.0, 1.0))


unit = st.floats(0, 1)


@given(box=st.tuples(unit, unit, unit, unit).filter(lambda b: b[0] + 1e-3 < b[2] and b[1] + 1e-3 < b[3]))
def test_any_box_gives_a_frame_of_the_same_size(box):
    frame = make_obs(1).frames[0]
    cut = crop_frame(frame, box)
    assert (cut.width_px, cut.height_px) == (frame.width_px, frame.height_px)


def test_view_id_changes_iff_what_is_seen_changes():
    obs = make_obs()
    other = make_frame(np.full((28, 56, 3), 9, np.uint8), number=1, source_index=0, timestamp_s=0.0)
    late = replace(obs.frames[0], timestamp_s=9.0)
    ids = {
        "same": view_id(obs.frames, obs.prompt, obs.system),
        "pixels": view_id((other, *obs.frames[1:]), obs.prompt),
        "order": view_id((obs.frames[1], obs.frames[0], *obs.frames[2:]), obs.prompt),
        "time": view_id((late, *obs.frames[1:]), obs.prompt),
        "fewer": view_id(obs.frames[:-1], obs.prompt),
        "prompt": view_id(obs.frames, "Q", None),
        "system": view_id(obs.frames, obs.prompt, "S"),
        "empty system": view_id(obs.frames, obs.prompt, ""),
        "patch": view_id(obs.frames, obs.prompt, None, "P"),
        "moved": view_id(obs.frames, obs.prompt + "P"),
        "extra": view_id(obs.frames, obs.prompt, None, "", obs.frames[:1]),
        "split": view_id(obs.frames[:-1], obs.prompt, None, "", obs.frames[-1:]),
    }
    assert ids["same"] == obs.view_id
    assert len(set(ids.values())) == len(ids)
    renamed = [replace(f, source_index=f.source_index + 1, number=f.number) for f in obs.frames]
    assert view_id(renamed, obs.prompt) == obs.view_id


@given(n=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_shuffle_moves_pixels_and_leaves_slots(n, seed):
    obs = make_obs(n)
    out = shuffle_frames(obs, seed)
    assert sorted(f.sha256 for f in out.frames) == sorted(f.sha256 for f in obs.frames)
    assert [f.sha256 for f in out.frames] != [f.sha256 for f in obs.frames]
    assert [(f.number, f.timestamp_s) for f in out.frames] == [(f.number, f.timestamp_s) for f in obs.frames]
    assert out.view_id != obs.view_id and shuffle_frames(obs, seed) == out


def test_reverse_twice_is_the_same_view():
    obs = make_obs()
    once = reverse_frames(obs)
    assert [f.source_index for f in once.frames] == [f.source_index for f in reversed(obs.frames)]
    assert [f.timestamp_s for f in once.frames] == [f.timestamp_s for f in obs.frames]
    assert once.view_id != obs.view_id
    assert reverse_frames(once).view_id == obs.view_id


def test_mask_hides_the_named_frames_only():
    obs = make_obs()
    before = snapshot(obs)
    out = mask_frames(obs, {2, 5})
    assert_untouched(obs, before)
    changed = [a.number for a, b in zip(obs.frames, out.frames, strict=True) if a.sha256 != b.sha256]
    assert changed == [2, 5] and (out.frames[1].pixels == 128).all()
    assert out.frames[1].sha256 == pixel_hash(out.frames[1].pixels)
    assert out.notes == ("masked:2,5",) and out.view_id != obs.view_id
    with pytest.raises(ValueError, match=r"no frames numbered \[99\]"):
        mask_frames(obs, {99})


def test_drop_video_leaves_the_words():
    obs = apply_patch(make_obs(), make_patch(), visual="frames")
    out = drop_video(obs)
    assert out.frames == () and out.extra_frames == ()
    assert (out.prompt, out.patch_text) == (obs.prompt, obs.patch_text)
    assert seen(out) != seen(obs) and out.view_id != obs.view_id
