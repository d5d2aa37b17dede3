"""The frame cache: same observation, keyed by content, damage is seen and mended."""

import numpy as np
import pytest

from ffr.config import ObserveConfig
from ffr.observe import MediaError, cache, clip, observe
from tests.observe.clips import make_sample, write_clip


def config(tmp_path, **changes):
    values = {"num_frames": 4, "max_frame_px": 3072, "min_frame_px": 1, "size_factor_px": 8}
    return ObserveConfig(**{**values, "cache_dir": tmp_path / "cache", **changes})


def entries(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_a_cached_observation_is_the_same(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 3)
    cfg = config(tmp_path)
    first = observe(make_sample(path), cfg)
    plain = observe(make_sample(path), config(tmp_path, cache_dir=None))
    assert [e.name[:2] for e in entries(tmp_path)] == ["c-"]

    def no_decoding(*args):
        raise AssertionError("decoded although cached")

    monkeypatch.setattr(clip, "decode_clips", no_decoding)
    again = observe(make_sample(path), cfg)
    assert again == first == plain
    assert again.notes == ("short_clip:3",)
    assert all((a.pixels == b.pixels).all() for a, b in zip(again.frames, first.frames, strict=True))


def test_key_is_the_content_and_the_settings(tmp_path):
    one = write_clip(tmp_path / "a.mp4", 6)
    copy = tmp_path / "b.mp4"
    copy.write_bytes(one.read_bytes())
    observe(make_sample(one), config(tmp_path))
    observe(make_sample(copy), config(tmp_path))
    assert len(entries(tmp_path)) == 1
    observe(make_sample(one), config(tmp_path, num_frames=2))
    observe(make_sample(one, clip_s=(0.1, 0.4)), config(tmp_path))
    observe(make_sample(one), config(tmp_path, max_frame_px=1024))
    assert len(entries(tmp_path)) == 4
    observe(make_sample(one), config(tmp_path, prompt="brief"))
    assert len(entries(tmp_path)) == 4
    before = observe(make_sample(one), config(tmp_path))
    write_clip(one, 5)
    assert observe(make_sample(one), config(tmp_path)).view_id != before.view_id


def test_large_files_are_keyed_by_metadata(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 4)
    monkeypatch.setattr(cache, "HASHED_BYTES", 10)
    assert cache.file_identity(path).startswith("m-")
    observe(make_sample(path), config(tmp_path))
    assert [e.name[:2] for e in entries(tmp_path)] == ["m-"]


@pytest.mark.parametrize("damage", ["cut", "text", "pixels", "pickle"])
def test_damage_is_noted_and_mended(tmp_path, damage):
    path = write_clip(tmp_path / "a.mp4", 6)
    first = observe(make_sample(path), config(tmp_path))
    (entry,) = entries(tmp_path)
    if damage == "cut":
        entry.write_bytes(entry.read_bytes()[:200])
    elif damage == "text":
        entry.write_text("no archive")
    elif damage == "pickle":
        np.savez(entry, pixels=np.array([{"a": 1}], dtype=object), meta=np.array("{}"))
    else:
        with np.load(entry) as data:
            pixels, meta = data["pixels"].copy(), data["meta"]
        pixels[0, 0, 0, 0] ^= 1
        np.savez(entry, pixels=pixels, meta=meta)
    second = observe(make_sample(path), config(tmp_path))
    assert second.notes == (*first.notes, "cache_damaged") and second.view_id == first.view_id
    assert observe(make_sample(path), config(tmp_path)) == first
    assert len(entries(tmp_path)) == 1


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 6)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        observe(make_sample(path), config(tmp_path))
    assert entries(tmp_path) == []


def test_missing_clip_is_missing_with_a_cache_too(tmp_path):
    with pytest.raises(MediaError, match="missing"):
        observe(make_sample(tmp_path / "a.mp4"), config(tmp_path))
