"""Several numbers of frames out of one pass, official rules, and clips that are folders of pictures."""

import numpy as np
import pytest
from PIL import Image

from ffr.config import ObserveConfig
from ffr.observe import DecodeLimits, FrameRule, MediaError, clip, load_clip, load_clips, observe
from tests.observe.clips import gray, make_sample, read_number, write_clip

CFG = ObserveConfig(num_frames=4, max_frame_px=48 * 64, min_frame_px=1, size_factor_px=8)
NUMS = (4, 7, 16)


def alone(sample, num, cfg=CFG):
    return load_clip(sample, cfg.model_copy(update={"num_frames": num}))


def test_each_number_is_what_it_is_alone_and_the_file_is_decoded_once(tmp_path, monkeypatch):
    sample = make_sample(write_clip(tmp_path / "a.mp4", 30), clip_s=(0.3, 2.6))
    expected = {num: alone(sample, num) for num in NUMS}
    calls = []
    real = clip.decode_frames

    def counted(path, index, wanted, limits):
        calls.append(sorted(wanted))
        return real(path, index, wanted, limits)

    monkeypatch.setattr(clip, "decode_frames", counted)
    got = load_clips(sample, CFG, NUMS)
    assert got == expected
    assert [[read_number(f.pixels) for f in got[n].frames] for n in NUMS] == [
        [f.source_index for f in expected[n].frames] for n in NUMS
    ]
    assert calls == [sorted({f.source_index for n in NUMS for f in expected[n].frames})]
    assert [f.number for f in got[7].frames] == list(range(1, 8))


def test_a_short_clip_is_clamped_for_each_number(tmp_path):
    got = load_clips(make_sample(write_clip(tmp_path / "a.mp4", 6)), CFG, NUMS)
    assert {num: (len(c.frames), c.notes) for num, c in got.items()} == {
        4: (4, ()), 7: (6, ("short_clip:6",)), 16: (6, ("short_clip:6",)),
    }  # fmt: skip


def test_a_file_in_trouble_gives_each_number_its_own_notes(tmp_path):
    path = write_clip(tmp_path / "a.mp4", 40, options={"g": "40", "bf": "0"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 200
    data[start : start + 400] = bytes(400)
    path.write_bytes(data)
    sample = make_sample(path)
    try:
        expected = {num: alone(sample, num) for num in NUMS}
    except MediaError:
        pytest.skip("this FFmpeg refuses the damaged clip altogether")
    assert load_clips(sample, CFG, NUMS) == expected


def test_cache_entries_are_those_of_training(tmp_path, monkeypatch):
    sample = make_sample(write_clip(tmp_path / "a.mp4", 30))
    cfg = CFG.model_copy(update={"cache_dir": tmp_path / "cache"})
    trained = observe(sample, cfg)
    first = load_clips(sample, cfg, NUMS)
    assert first[4].frames == trained.frames
    assert len(list((tmp_path / "cache").iterdir())) == len(NUMS)

    def no_decoding(*args):
        raise AssertionError("decoded although cached")

    monkeypatch.setattr(clip, "decode_clips", no_decoding)
    assert load_clips(sample, cfg, NUMS) == first


def test_a_rule_chooses_and_has_its_own_cache_entries(tmp_path):
    sample = make_sample(write_clip(tmp_path / "a.mp4", 30, rate=10), clip_s=(1.0, 2.0))
    cfg = CFG.model_copy(update={"cache_dir": tmp_path / "cache"})
    seen = []

    def choose(total, num, fps):
        seen.append((total, num, round(fps)))
        return [0, total - 1, total - 1]

    got = load_clips(sample, cfg, (3,), rule=FrameRule("ends", choose))[3]
    assert seen == [(11, 3, 10)]
    assert [f.source_index for f in got.frames] == [10, 20, 20]
    assert [f.number for f in got.frames] == [1, 2, 3]
    assert [f.source_index for f in load_clips(sample, cfg, (3,))[3].frames] == [10, 15, 20]
    with pytest.raises(ValueError, match="'ends'"):
        load_clips(sample, CFG, (3,), DecodeLimits(isolate=True), FrameRule("ends", choose))


def folder_of(path, num):
    path.mkdir()
    for k in range(num):
        Image.fromarray(np.full((48, 64, 3), gray(k), np.uint8)).save(path / f"frame{k}.png")
    return path


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    folder = folder_of(tmp_path / "tvqa", 12)
    sample = make_sample(folder, clip_s=(1.0, 3.0), meta={"folder_fps": 2.0})
    got = load_clips(sample, CFG, (3, 5))
    # 2 pictures a second: 1.0 s..3.0 s are pictures 2..6, `frame10` comes after `frame9`.
    assert [f.source_index for f in got[3].frames] == [2, 4, 6]
    assert [read_number(f.pixels) for f in got[5].frames] == [2, 3, 4, 5, 6]
    assert [f.timestamp_s for f in got[3].frames] == [1.0, 2.0, 3.0]
    cached = CFG.model_copy(update={"cache_dir": tmp_path / "cache"})
    assert load_clips(sample, cached, (3, 5)) == got == load_clips(sample, cached, (3, 5))
    assert load_clips(sample, CFG, (3, 5), DecodeLimits(isolate=True)) == got


def test_a_folder_with_a_bad_picture_or_none(tmp_path):
    folder = folder_of(tmp_path / "tvqa", 4)
    (folder / "frame1.png").write_text("no picture")
    got = load_clips(make_sample(folder), CFG, (4,))[4]
    assert [f.source_index for f in got.frames] == [0, 2, 3] and got.notes == ("partial:1",)
    (tmp_path / "bare").mkdir()
    with pytest.raises(MediaError, match="missing"):
        load_clips(make_sample(tmp_path / "bare"), CFG, (4,))
    with pytest.raises(MediaError, match="meta folder_fps"):
        load_clips(make_sample(folder, meta={"folder_fps": "fast"}), CFG, (4,))
