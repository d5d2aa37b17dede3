"""Questions about real footage: rebuilt from the tracks, checked against the raw file, read back."""

import importlib.util
import json
import sys
from argparse import Namespace
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ffr.config import ObserveConfig
from ffr.data import read_video_r1
from ffr.observe import index_video, observe
from tests.assets import require_asset

REPO = Path(__file__).parents[2]
TRACKS = REPO.parent / "shared" / "data" / "pets09" / "tracks.txt"
needs_tracks = pytest.mark.skipif(
    not TRACKS.is_file(), reason="the PETS tracks are not beside the repository"
)


def load_script():
    spec = importlib.util.spec_from_file_location(
        "make_pets_questions", REPO / "scripts" / "make_pets_questions.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


pets = load_script()
ARGS = Namespace(seed=4, min_s=5.0, max_s=10.0, per_clip=8)


def raw():
    """The track file by frame, in the picture's pixels, without the script's reader."""
    table = np.loadtxt(TRACKS, delimiter=",")
    return {int(f) - 1: table[table[:, 0] == f] for f in np.unique(table[:, 0])}


def gold(row):
    letter = row["solution"].removeprefix("<answer>").removesuffix("</answer>")
    return next(o[3:] for o in row["options"] if o[0] == letter)


@needs_tracks
def test_questions_are_deterministic_and_cover_the_kinds():
    tracks = pets.read_tracks(TRACKS)
    spans, rows = pets.make_rows(tracks, 795, ARGS)
    assert (spans, rows) == pets.make_rows(tracks, 795, ARGS)
    assert rows != pets.make_rows(tracks, 795, Namespace(**{**vars(ARGS), "seed": 1}))[1]
    assert spans[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(spans))
    assert all(50 <= end - start <= 100 for start, end in spans)
    assert set(Counter(r["scenario"] for r in rows)) == {
        "counting",
        "temporal",
        "dynamics",
        "spatial",
        "logic",
    }
    assert len({gold(r) for r in rows}) >= 8
    assert all(r["options"][k][0] == "ABCD"[k] for r in rows for k in range(4))
    for row in rows:
        start, end = spans[int(row["path"][-7:-4])]
        for a, b in row["evidence"]["spans_s"]:
            assert 0 <= a < b <= (end - start) / 10
        for x0, y0, x1, y1 in row["evidence"]["boxes"]:
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@needs_tracks
def test_no_count_is_asked_while_somebody_may_be_hidden():
    """At 1.9-5 s one of three walkers is lost behind the lamp post from frame 19 on."""
    tracks = pets.read_tracks(TRACKS)
    assert set(range(19, 50)) <= tracks.doubtful and not {250, 480, 560} & tracks.doubtful
    spans, rows = pets.make_rows(tracks, 795, ARGS)
    for row in rows:
        if row["scenario"] == "counting":
            start = spans[int(row["path"][-7:-4])][0]
            first, last = (start + round(10 * t) for t in row["evidence"]["spans_s"][0])
            assert tracks.doubtful.isdisjoint(range(first, last + 1))


@needs_tracks
def test_counts_and_walks_agree_with_the_raw_tracks():
    """Recomputed from the file's numbers alone: feet per third, and the sign of the walk."""
    table = raw()
    spans, rows = pets.make_rows(pets.read_tracks(TRACKS), 795, ARGS)
    checked = Counter()
    for row in rows:
        start = spans[int(row["path"][-7:-4])][0]
        first, last = (start + round(10 * t) for t in row["evidence"]["spans_s"][0])
        if row["scenario"] == "counting":
            third = ["left", "middle", "right"].index(row["problem"].split("the ")[1].split(" third")[0])
            moment = table[(first + last) // 2]
            feet = np.clip(moment[:, 2] + moment[:, 4] / 2, 0, 767)
            assert int((feet // 256 == third).sum()) == int(gold(row))
            checked["counting"] += 1
        elif row["scenario"] == "dynamics" and gold(row) in ("to the left", "to the right"):
            begin = table[first]
            pick = np.argmin if "furthest to the left" in row["problem"] else np.argmax
            who = begin[pick(begin[:, 2] + begin[:, 4] / 2), 1]
            x = [table[f][table[f][:, 1] == who][0, 2] for f in (first, last)]
            assert (x[1] < x[0]) == (gold(row) == "to the left")
            checked["dynamics"] += 1
    assert checked["counting"] >= 6 and checked["dynamics"] >= 5


@needs_tracks
def test_built_clips_are_read_back_and_observed(tmp_path, capsys):
    video = require_asset("vtest.avi")
    arguments = ["--video", str(video), "--tracks", str(TRACKS), "--out", str(tmp_path), "--max-clips", "1"]
    assert pets.main([*arguments, "--height", "144"]) == 0
    assert "1 clips" in capsys.readouterr().out
    result = read_video_r1(tmp_path / "pets.json", tmp_path, name="pets")
    assert result.skipped == () and len(result.samples) >= 1
    assert len(json.loads((tmp_path / "pets.json").read_text())) == len(result.samples)
    index = index_video(result.samples[0].video)
    assert 50 <= len(index.pts) <= 100
    for sample in result.samples:
        assert sample.evidence is not None and sample.scenario
        assert all(0 <= s < e <= index.duration_s for s, e in sample.evidence.spans_s)
    obs = observe(result.samples[0], ObserveConfig())
    assert len(obs.frames) == 16 and obs.notes == ()


def test_a_broken_track_file_names_its_line(tmp_path):
    (tmp_path / "t.txt").write_text("1,2,3,4,5,6\n1,2,x,4,5,6\n")
    with pytest.raises(ValueError, match=r"t\.txt: line 2: expected frame,id,x,y,w,h"):
        pets.read_tracks(tmp_path / "t.txt")
