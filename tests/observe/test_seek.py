"""Seeking leaves out pictures that nothing is built from, and shows the same pixels as a pass over all."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from ffr.observe import video
from ffr.observe.video import decode_frames, index_video

NUM, SIZE = 50, (96, 64)


def _clip(path: Path, codec: str = "libx264", **options: str) -> Path:
    """Noise that moves: every picture differs from every other, and B pictures pay."""
    rng = np.random.default_rng(0)
    plane = np.kron(rng.integers(0, 256, (64, 64), dtype=np.uint8), np.ones((4, 4), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for k in range(NUM):
            part = plane[k : k + SIZE[1], 2 * k : 2 * k + SIZE[0]]
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.stack([part] * 3, -1), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def _all_frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Times of the frames that each opened reader gave."""
    opened: list[object] = []
    times: list[list[int]] = []
    frames_from = video._Reader.frames_from

    def counted(reader, key):
        if not any(container is reader.container for container in opened):
            opened.append(reader.container)
            times.append([])
        for frame in frames_from(reader, key):
            times[-1].append(frame.pts)
            yield frame

    monkeypatch.setattr(video._Reader, "frames_from", counted)
    return times


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "veryfast", "g": "25", "bf": "3"},
        {"preset": "medium", "g": "250", "bf": "8", "x264-params": "b-pyramid=normal:open-gop=1"},
        {"preset": "medium", "g": "20", "bf": "2", "x264-params": "b-pyramid=none:open-gop=1:keyint_min=5"},
        {"preset": "ultrafast", "g": "30", "bf": "0"},
    ],
    ids=["short", "deep", "open", "no_b"],
)
def test_every_frame_alone_equals_a_pass_over_all(tmp_path: Path, options: dict[str, str], passes) -> None:
    path = _clip(tmp_path / "a.mp4", **options)
    expected = _all_frames(path)
    index = index_video(path)
    assert len(index.pts) == len(expected) == NUM
    for k in range(NUM):
        got, notes = decode_frames(path, index, [k])
        assert notes == () and np.array_equal(got[k], expected[k]), k
    assert len(passes) == NUM  # one reader each: the thrifty one found them all
    got, notes = decode_frames(path, index, range(0, NUM, 7))
    assert notes == () and all(np.array_equal(pixels, expected[k]) for k, pixels in got.items())


def test_pictures_that_nothing_is_built_from_are_left_out(tmp_path: Path, passes) -> None:
    path = _clip(tmp_path / "a.mp4", preset="veryfast", g="250", bf="3")
    index = index_video(path)
    decode_frames(path, index, [NUM - 1])
    [times] = passes
    assert len(times) < 0.7 * NUM and times[-1] == index.pts[-1] and times == sorted(times)


def test_an_interlaced_clip_is_decoded_whole(tmp_path: Path, passes) -> None:
    path = _clip(tmp_path / "a.mp4", preset="veryfast", bf="2", **{"x264-params": "interlaced=1"})
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    got, notes = decode_frames(path, index_video(path), [3, 20, 41])
    expected = _all_frames(path)
    assert notes == () and all(np.array_equal(pixels, expected[k]) for k, pixels in got.items())
    assert [len(times) for times in passes] == [
        0,
        42,
    ]  # the first reader gave nothing, the second all up to the last


def test_a_damaged_clip_shows_what_a_whole_pass_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _clip(tmp_path / "a.mp4", preset="veryfast", g="50", bf="3")
    index = index_video(path)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(1)
    for at in rng.integers(len(data) // 3, len(data) * 2 // 3, 40):
        data[at] ^= 0xFF
    path.write_bytes(data)
    wanted = range(0, NUM, 3)
    got, notes = decode_frames(path, index, wanted)
    assert any(note.startswith(("corrupt", "fallback", "partial")) for note in notes)
    monkeypatch.setattr(video._Reader, "frames_from", _from)
    plain, plain_notes = decode_frames(path, index, wanted)
    assert notes == plain_notes and got.keys() == plain.keys()
    assert all(np.array_equal(pixels, plain[k]) for k, pixels in got.items())


def _from(reader: video._Reader, key: int):
    reader.container.seek(key, stream=reader.stream, backward=True)
    return reader.container.decode(reader.stream)


def test_other_codecs_are_opened_once(tmp_path: Path, passes) -> None:
    path = _clip(tmp_path / "a.mp4", codec="mpeg4", g="12")
    got, notes = decode_frames(path, index_video(path), [5, 30])
    expected = _all_frames(path)
    assert notes == () and len(passes) == 1
    assert all(np.array_equal(pixels, expected[k]) for k, pixels in got.items())
