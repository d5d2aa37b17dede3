"""Files that want FFmpeg to open something else, and paths that are no files."""

import http.server
import threading
from pathlib import Path

import pytest

from ffr.config import ObserveConfig
from ffr.observe import MEDIA_STATUSES, MediaError, check_clips, observe, read_frames_at
from tests.observe.clips import make_sample, write_clip

CFG = ObserveConfig(num_frames=4, max_frame_px=48 * 64, min_frame_px=1, size_factor_px=8)


@pytest.fixture(scope="module")
def server():
    """A loopback web server that counts what is asked of it."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            hits.append(format % args)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", hits
        httpd.shutdown()


def playlists(url: str, clip: Path) -> dict[str, str]:
    return {
        "text": "this is no video\n" * 50,
        "m3u8_http": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{url}/a.ts\n#EXT-X-ENDLIST\n",
        "m3u8_file": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile {clip}\n",
        "dash": f'<?xml version="1.0"?><MPD><Period><BaseURL>{url}/x.mp4</BaseURL></Period></MPD>',
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\n"
        f"c=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{url}\n",
    }


@pytest.mark.parametrize("kind", ["text", "m3u8_http", "m3u8_file", "ffconcat", "dash", "sdp"])
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat"])
def test_playlists_open_nothing(tmp_path, server, kind, suffix):
    url, hits = server
    clip = write_clip(tmp_path / "secret.ts", 5)
    path = tmp_path / f"a{suffix}"
    path.write_text(playlists(url, clip)[kind])
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path), CFG)
    assert caught.value.status == "undecodable"
    assert hits == []


@pytest.mark.parametrize(
    "form",
    [
        "{url}/a.mp4",
        "concat:{clip}|{clip}",
        "subfile,,start,0,end,9,,:{clip}",
        "file:{clip}",
        "pipe:0",
        "async:{clip}",
    ],
)
def test_protocol_paths_are_no_files(tmp_path, server, form):
    url, hits = server
    clip = write_clip(tmp_path / "a.mp4", 5)
    path = Path(form.format(url=url, clip=clip))
    for call in (lambda: observe(make_sample(path), CFG), lambda: read_frames_at(path, [0.0], max_px=999)):
        with pytest.raises(MediaError) as caught:
            call()
        assert caught.value.status == "missing"
    assert hits == []


def test_a_file_may_have_a_protocol_like_name(tmp_path, monkeypatch):
    write_clip(tmp_path / "a.mp4", 5)
    (tmp_path / "a.mp4").rename(tmp_path / "concat:a.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(observe(make_sample(Path("concat:a.mp4")), CFG).frames) == 4


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [("gone.mp4", None, "missing"), ("empty.mp4", b"", "empty"), ("nul\0.mp4", None, "missing")],
)
def test_no_file(tmp_path, name, content, status):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        observe(make_sample(path), CFG)
    assert caught.value.status == status and caught.value.path == path
    assert caught.value.status in MEDIA_STATUSES
    assert status in str(caught.value)


def test_a_folder_and_a_sound_file_are_no_clips(tmp_path):
    with pytest.raises(MediaError, match="missing"):
        observe(make_sample(tmp_path), CFG)
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\0" * 800)
    with pytest.raises(MediaError, match="undecodable"):
        observe(make_sample(tmp_path / "a.wav"), CFG)


def test_unknown_status_is_refused():
    with pytest.raises(ValueError, match="unknown media status"):
        MediaError("odd", Path("a"), "x")


def test_media_error_travels_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(MediaError("missing", Path("a"), "x")))
    assert (error.status, error.path, str(error)) == ("missing", Path("a"), "missing: a: x")


def test_check_clips_splits_and_lists(tmp_path):
    good = write_clip(tmp_path / "a.mp4", 5)
    (tmp_path / "b.mp4").write_text("no video")
    samples = [
        make_sample(p, uid=f"t/{i}")
        for i, p in enumerate([good, tmp_path / "b.mp4", tmp_path / "c.mp4", good])
    ]
    kept, skipped = check_clips(samples, CFG)
    assert [s.uid for s in kept] == ["t/0", "t/3"]
    assert [(s.uid, s.status) for s in skipped] == [("t/1", "undecodable"), ("t/2", "missing")]
