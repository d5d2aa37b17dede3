"""Real clips from public packages: mp4, mov, avi, ogv, mpg, webm, from 160 px to 1080p."""

from itertools import pairwise

import numpy as np
import pytest

from ffr.config import ObserveConfig
from ffr.observe import decode_frames, index_video, observe, uniform_indices
from tests.assets import CLIPS, require_asset
from tests.observe.clips import make_sample


@pytest.mark.parametrize("name", CLIPS)
def test_real_clip(name):
    path = require_asset(name)
    cfg = ObserveConfig()
    obs = observe(make_sample(path), cfg)
    index = index_video(path)
    assert len(obs.frames) == 16
    assert [f.source_index for f in obs.frames] == list(uniform_indices(len(index.pts), 16))
    times = [f.timestamp_s for f in obs.frames]
    assert times[0] == 0.0 and all(a < b for a, b in pairwise(times))
    assert times[-1] <= obs.duration_s
    shapes = {f.pixels.shape for f in obs.frames}
    assert len(shapes) == 1
    height, width, _ = shapes.pop()
    assert height % 28 == width % 28 == 0 and height * width <= cfg.max_frame_px
    assert len({f.sha256 for f in obs.frames}) > 8
    assert not [n for n in obs.notes if n.startswith(("partial", "truncated", "corrupt"))]


def test_vtest_is_what_the_tracks_were_made_on():
    path = require_asset("vtest.avi")
    index = index_video(path)
    assert len(index.pts) == 795 and index.duration_s == pytest.approx(79.5)
    got, notes = decode_frames(path, index, [0, 400, 794])
    assert notes == () and got[0].shape == (576, 768, 3)
    assert np.abs(got[0].astype(int) - got[400]).mean() > 1
