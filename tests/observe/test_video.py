"""Decoding: exact frames and times on clips whose frame numbers can be read from the pixels."""

import struct

import numpy as np
import pytest
from PIL import Image

from ffr.config import ObserveConfig
from ffr.observe import (
    DecodeLimits,
    MediaError,
    decode_frames,
    index_video,
    observe,
    read_frames_at,
    uniform_indices,
)
from tests.observe.clips import make_sample, read_number, write_clip

CFG = ObserveConfig(num_frames=8, max_frame_px=48 * 64, min_frame_px=1, size_factor_px=8)
VARIANTS = {
    "b_frames.mp4": {"codec": "libx264"},
    "one_key.mp4": {"codec": "libx264", "options": {"crf": "4", "g": "250", "bf": "3", "preset": "veryfast"}},
    "open_gop.mkv": {
        "codec": "libx265",
        "options": {"crf": "4", "x265-params": "keyint=8:open-gop=1:log-level=none"},
    },
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {"crf": "4", "b": "0", "cpu-used": "8", "deadline": "realtime"},
    },
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "20M", "qmin": "1", "qmax": "1", "g": "12"}},
    "mpeg4_b.avi": {
        "codec": "mpeg4",
        "options": {"b": "20M", "qmin": "1", "qmax": "1", "bf": "2", "g": "12"},
    },
    "mpeg2.mpg": {
        "codec": "mpeg2video",
        "rate": 25,
        "options": {"b": "20M", "qmin": "1", "qmax": "1", "bf": "2", "g": "12"},
    },
    "stream.ts": {"codec": "libx264"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_exact_frames(tmp_path, name):
    path = write_clip(tmp_path / name, 60, **VARIANTS[name])
    obs = observe(make_sample(path), CFG)
    expected = list(uniform_indices(60, 8))
    assert [f.source_index for f in obs.frames] == expected
    assert [read_number(f.pixels) for f in obs.frames] == expected
    rate = VARIANTS[name].get("rate", 10)
    assert [f.timestamp_s for f in obs.frames] == pytest.approx([i / rate for i in expected], abs=1.5e-3)
    assert obs.duration_s == pytest.approx(60 / rate, abs=5e-3)
    assert [f.number for f in obs.frames] == list(range(1, 9))
    assert all(note in ("linear", "fallback") for note in obs.notes)


def test_mp4_with_b_frames_needs_no_fallback(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60)
    assert observe(make_sample(path), CFG).notes == ()
    assert len(index_video(path).keys) == 8


def test_every_frame_in_any_order(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 40)
    index = index_video(path)
    assert len(index.pts) == 40
    got, notes = decode_frames(path, index, [39, 3, 17, 3, 0])
    assert notes == ()
    assert {i: read_number(p) for i, p in got.items()} == {0: 0, 3: 3, 17: 17, 39: 39}


def test_variable_frame_rate(tmp_path):
    # 20 frames at 50 fps, then 10 frames at 2 fps: frame k and time k are far apart.
    times = [20 * k for k in range(20)] + [400 + 500 * k for k in range(10)]
    path = write_clip(tmp_path / "vfr.mp4", 30, times_ms=times)
    obs = observe(make_sample(path), CFG)
    assert [read_number(f.pixels) for f in obs.frames] == [f.source_index for f in obs.frames]
    assert [f.timestamp_s for f in obs.frames] == pytest.approx(
        [times[f.source_index] / 1000 for f in obs.frames], abs=1e-6
    )
    at = read_frames_at(path, [0.9, 0.39, 4.4], max_px=10_000)
    assert [read_number(f.pixels) for f in at] == [21, 19, 28]


def test_times_count_from_the_first_displayed_frame(tmp_path):
    path = write_clip(tmp_path / "late.mkv", 10, times_ms=[3000 + 100 * k for k in range(10)])
    obs = observe(make_sample(path), CFG)
    assert obs.frames[0].timestamp_s == 0.0
    assert obs.frames[-1].timestamp_s == pytest.approx(0.9, abs=1e-6)


def test_clip_bounds(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60)
    obs = observe(make_sample(path, clip_s=(2.0, 3.5)), CFG)
    assert [read_number(f.pixels) for f in obs.frames] == [20 + i for i in uniform_indices(16, 8)]
    assert obs.frames[0].timestamp_s == pytest.approx(2.0)
    assert obs.duration_s == pytest.approx(1.5)
    outside = read_frames_at(path, [0.0, 9.0], max_px=10_000, clip_s=(2.0, 3.5))
    assert [read_number(f.pixels) for f in outside] == [20, 35]
    with pytest.raises(MediaError, match="no frame between 7 s and 8 s") as caught:
        observe(make_sample(path, clip_s=(7.0, 8.0)), CFG)
    assert caught.value.status == "empty"


def test_short_clip_gives_all_its_frames_and_says_so(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 5)
    obs = observe(make_sample(path), CFG)
    assert [read_number(f.pixels) for f in obs.frames] == [0, 1, 2, 3, 4]
    assert obs.notes == ("short_clip:5",)
    single = write_clip(tmp_path / "b.mp4", 1)
    assert len(observe(make_sample(single), CFG).frames) == 1


def test_rotation_tag_is_applied(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 3, split=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    frame = observe(make_sample(path), CFG).frames[0]
    assert (frame.width_px, frame.height_px) == (48, 64)
    # Turned clockwise: the white left half is on top.
    assert frame.pixels[:24].mean() > 200 and frame.pixels[40:].mean() < 60


def test_truncated_file_is_said(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60, size=(320, 240), container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 6 // 10])
    obs = observe(make_sample(path), CFG)
    assert "truncated" in obs.notes
    assert [read_number(f.pixels) for f in obs.frames] == [f.source_index for f in obs.frames]
    assert obs.frames[-1].source_index < 59
    lost = [note for note in obs.notes if note.startswith("partial:")]
    assert len(obs.frames) == 8 - (int(lost[0].split(":")[1]) if lost else 0)


def test_truncated_before_its_index_is_undecodable(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 60)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path), CFG)
    assert caught.value.status == "undecodable" and caught.value.path == path


def test_wrong_key_index_falls_back_to_a_linear_pass(tmp_path):
    """Where seeking can't be trusted the frames are still the ones asked for, and the note says so."""
    from dataclasses import replace

    path = write_clip(tmp_path / "a.mp4", 40, options={"crf": "4", "g": "250", "bf": "0"})
    index = index_video(path)
    lying = replace(index, keys=tuple(p + 1 for p in index.pts[1:]))
    got, notes = decode_frames(path, lying, [5, 30])
    assert {i: read_number(p) for i, p in got.items()} == {5: 5, 30: 30}
    assert notes in ((), ("fallback",))
    gone = replace(index, pts=(*index.pts, index.pts[-1] + 9999))
    got, notes = decode_frames(path, gone, [5, 40])
    assert list(got) == [5] and notes == ("fallback", "partial:1")


@pytest.mark.parametrize("seed", range(24))
def test_damaged_bytes_end_in_a_status(tmp_path, seed):
    """A flipped or cut file gives an observation or a MediaError, never anything else."""
    path = write_clip(tmp_path / "a.mp4", 20, container_options={"movflags": "faststart"})
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in rng.integers(0, len(data), 12):
        data[at] = int(rng.integers(0, 256))
    path.write_bytes(data[: int(rng.integers(len(data) // 2, len(data)))] if seed % 3 == 0 else data)
    try:
        obs = observe(make_sample(path), CFG)
    except MediaError as error:
        assert error.status in ("undecodable", "empty", "too_big", "too_long")
    else:
        lost = [int(n.split(":")[1]) for n in obs.notes if n.startswith("partial:")]
        short = [int(n.split(":")[1]) for n in obs.notes if n.startswith("short_clip:")]
        assert len(obs.frames) == (short[0] if short else 8) - (lost[0] if lost else 0)
        stamps = [f.timestamp_s for f in obs.frames]
        assert stamps == sorted(set(stamps))


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (DecodeLimits(max_px=1000), "too_big"),
        (DecodeLimits(max_bytes=100), "too_big"),
        (DecodeLimits(max_duration_s=1.0), "too_long"),
        (DecodeLimits(max_packets=10), "too_long"),
        (DecodeLimits(timeout_s=-1.0), "timeout"),
    ],
)
def test_limits(tmp_path, limits, status):
    path = write_clip(tmp_path / "a.mp4", 30)
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path), CFG, limits=limits)
    assert caught.value.status == status


def test_frames_at_times(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 30)
    frames = read_frames_at(path, [2.9, 0.04, 0.06, 99.0, -3.0], max_px=64 * 48)
    assert [read_number(f.pixels) for f in frames] == [29, 0, 1, 29, 0]
    assert [f.number for f in frames] == [1, 2, 3, 4, 5]
    assert frames[0].timestamp_s == pytest.approx(2.9)
    small = read_frames_at(path, [1.0], max_px=600)[0]
    assert small.width_px * small.height_px <= 600 and small.width_px > small.height_px
    snapped = read_frames_at(path, [1.0], max_px=64 * 48, size_factor_px=28)[0]
    assert (snapped.width_px, snapped.height_px) == (
        56,
        28,
    ) or snapped.width_px % 28 == snapped.height_px % 28 == 0
    assert read_frames_at(path, [], max_px=600) == ()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_image_is_one_frame(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    Image.new("RGB", (100, 60), (10, 200, 30)).save(path)
    obs = observe(make_sample(path, media_type="image"), ObserveConfig())
    assert len(obs.frames) == 1 and obs.duration_s == 0.0 and obs.notes == ()
    assert (obs.frames[0].width_px, obs.frames[0].height_px) == (168, 112)
    assert "frames numbered" not in obs.prompt
    assert np.abs(obs.frames[0].pixels.reshape(-1, 3).mean(0) - (10, 200, 30)).max() < 3
    assert len(read_frames_at(path, [0.0, 1.0], max_px=999)) == 2


def test_broken_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path, media_type="image"), CFG)
    assert caught.value.status == "undecodable"
    Image.new("RGB", (300, 300)).save(path)
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path, media_type="image"), CFG, limits=DecodeLimits(max_px=1000))
    assert caught.value.status == "too_big"
