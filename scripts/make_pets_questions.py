"""Questions about a real camera's footage, with answers and evidence that tracks verify.

Input: PETS2009 S2L1 (`vtest.avi` of the Debian package `opencv-doc`, 768x576, 10 fps, 795 frames) and
tracks of its pedestrians in MOT format (`frame,id,x,y,w,h,...`, frame k is the k-th decoded frame).
Output: clips of 5-10 s as MP4 and a Video-R1 JSON whose rows also have `evidence` and `scenario`.

    python scripts/make_pets_questions.py --video vtest.avi --tracks tracks.txt --out data/pets

The tracks are a tracker's, so only what small errors don't change is asked: counts that hold for half a
second around the moment, walks of many pixels, positions far from every border, clear differences.
The same arguments give the same questions.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from ffr.observe import decode_frames, index_video

FPS = 10
WIDTH, HEIGHT = 768, 576
LETTERS = "ABCD"
THIRDS = ("left", "middle", "right")
BORDER_PX = 30
"""A person closer than this to a region's border is in no region for sure."""
MIN_WALK_PX = 110
"""A walk shorter than this has no clear direction."""
MIN_LEAD_PX = 60
"""Who is furthest to one side must be so by this much."""
HOLD = FPS // 2
"""Frames around a moment for which a count has to hold."""
LOST = 4 * FPS
"""How long a person whose track broke off inside the picture may still be there, untracked."""

Xywh = tuple[float, float, float, float]
Span = tuple[int, int]


@dataclass(frozen=True)
class Tracks:
    """Boxes of all persons by 0-based frame and identity, in pixels of the footage.

    Example:
        >>> Tracks({0: {7: (10.0, 20.0, 30.0, 60.0)}}).feet(0)[7]
        (25.0, 80.0)
    """

    boxes: dict[int, dict[int, Xywh]]
    doubtful: frozenset[int] = frozenset()
    """Frames in which somebody may be hidden and untracked: no count is asked of them."""

    def feet(self, frame: int) -> dict[int, tuple[float, float]]:
        """Where each person of a frame stands: the middle of the box's lower edge."""
        return {who: (x + w / 2, y + h) for who, (x, y, w, h) in self.boxes.get(frame, {}).items()}


@dataclass(frozen=True)
class Question:
    """One question about one clip, frames counted from the footage's start.

    Example:
        >>> Question("counting", "How many?", ("1", "2", "3", "4"), "2", (5, 9)).gold
        '2'
    """

    scenario: str
    text: str
    choices: tuple[str, ...]
    gold: str
    span: Span
    boxes: tuple[Xywh, ...] = ()
    in_order: bool = False
    """Choices have a natural order (numbers, left to right) and are not shuffled."""


def read_tracks(path: Path) -> Tracks:
    """Boxes of a MOT file, cut to the picture.

    Raises:
        ValueError: Naming file and line, if a line is not `frame,id,x,y,w,h,...`.
    """
    boxes: dict[int, dict[int, Xywh]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            frame, who, x, y, w, h = (float(v) for v in line.split(",")[:6])
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: expected frame,id,x,y,w,h,..., got {line!r}") from error
        x0, y0, x1, y1 = max(0.0, x), max(0.0, y), min(WIDTH, x + w), min(HEIGHT, y + h)
        if x1 > x0 and y1 > y0:
            boxes.setdefault(int(frame) - 1, {})[int(who)] = (x0, y0, x1 - x0, y1 - y0)
    return Tracks(boxes, doubtful_frames(boxes))


def doubtful_frames(boxes: dict[int, dict[int, Xywh]]) -> frozenset[int]:
    """Frames near a place where a track breaks off, starts or has a gap inside the picture.

    People come and go at the picture's edges only; elsewhere a lamp post or another person hid them.
    """
    frames_of: dict[int, list[int]] = {}
    for frame in sorted(boxes):
        for who in boxes[frame]:
            frames_of.setdefault(who, []).append(frame)
    ends = (min(boxes, default=0), max(boxes, default=0))
    doubtful: set[int] = set()
    for who, frames in frames_of.items():
        for before, after in pairwise(frames):
            doubtful.update(range(before + 1, after))
        first, last = frames[0], frames[-1]
        if first != ends[0] and not _at_edge(boxes[first][who]):
            doubtful.update(range(first - LOST, first + HOLD))
        if last != ends[1] and not _at_edge(boxes[last][who]):
            doubtful.update(range(last - HOLD, last + LOST))
    return frozenset(doubtful)


def _at_edge(box: Xywh) -> bool:
    return min(box[0], box[1], WIDTH - box[0] - box[2], HEIGHT - box[1] - box[3]) < BORDER_PX


def cut_spans(total: int, rng: np.random.Generator, min_s: float, max_s: float) -> list[Span]:
    """Half-open frame spans of min_s..max_s seconds that follow each other through the footage."""
    spans: list[Span] = []
    start = 0
    while total - start >= round(min_s * FPS):
        length = min(int(rng.integers(round(min_s * FPS), round(max_s * FPS) + 1)), total - start)
        spans.append((start, start + length))
        start += length
    return spans


def _third(x: float) -> int | None:
    """Which third of the picture's width; None near a border."""
    for k in (1, 2):
        if abs(x - k * WIDTH / 3) < BORDER_PX:
            return None
    return min(2, int(x / (WIDTH / 3)))


def _union(boxes: Sequence[Xywh]) -> Xywh:
    x0, y0 = min(b[0] for b in boxes), min(b[1] for b in boxes)
    x1, y1 = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    return (x0, y0, x1 - x0, y1 - y0)


def _around(moment: int, span: Span) -> Span:
    return (max(span[0], moment - HOLD), min(span[1] - 1, moment + HOLD))


def _seconds(frame: int, span: Span) -> str:
    return f"{(frame - span[0]) / FPS:.1f}"


def counting(tracks: Tracks, span: Span, rng: np.random.Generator) -> Iterator[Question]:
    """How many people stand in a third of the picture at a moment."""
    for moment in range(span[0] + HOLD, span[1] - HOLD, HOLD):
        around = range(moment - HOLD, moment + HOLD + 1)
        if not tracks.doubtful.isdisjoint(around):
            continue
        places = [[_third(x) for x, _ in tracks.feet(f).values()] for f in around]
        for k, name in enumerate(THIRDS):
            counts = {sum(place == k for place in at) for at in places}
            if any(None in at for at in places) or len(counts) != 1 or not 1 <= min(counts) <= 4:
                continue
            gold = counts.pop()
            lowest = max(0, gold - int(rng.integers(1, 4)))
            yield Question(
                "counting",
                f"How many people are in the {name} third of the picture at {_seconds(moment, span)} s?",
                tuple(str(lowest + i) for i in range(4)),
                str(gold),
                _around(moment, span),
                ((k * WIDTH / 3, 0.0, WIDTH / 3, float(HEIGHT)),),
                in_order=True,
            )


def first_entry(tracks: Tracks, span: Span, rng: np.random.Generator) -> Iterator[Question]:
    """From which side the first newcomer of the clip walks in."""
    del rng
    seen = set(tracks.boxes.get(span[0], {}))
    births: list[tuple[int, int]] = []
    for frame in range(span[0] + 1, span[1]):
        new = set(tracks.boxes.get(frame, {})) - seen
        births += [(frame, who) for who in sorted(new)]
        seen |= new
    if not births or births[0][0] - span[0] < FPS // 2:
        return
    frame, who = births[0]
    if len(births) > 1 and births[1][0] - frame < FPS:
        return
    x, _, w, _ = tracks.boxes[frame][who]
    side = "from the left" if x < BORDER_PX else "from the right" if x + w > WIDTH - BORDER_PX else ""
    later = min(frame + HOLD, span[1] - 1)
    if not side or who not in tracks.boxes.get(later, {}):
        return
    yield Question(
        "temporal",
        "Which side does the first person to walk into the picture come from?",
        ("from the left", "from the right", "from the bottom", "nobody walks in"),
        side,
        (max(span[0], frame - 2), later),
        (_union([tracks.boxes[f][who] for f in range(frame, later + 1) if who in tracks.boxes.get(f, {})]),),
    )


def _extreme(feet: dict[int, tuple[float, float]], axis: int, sign: int) -> int | None:
    """Who is furthest along an axis, if by MIN_LEAD_PX."""
    order = sorted(feet, key=lambda who: -sign * feet[who][axis])
    if len(order) < 2 or abs(feet[order[0]][axis] - feet[order[1]][axis]) < MIN_LEAD_PX:
        return None
    return order[0]


def walking(tracks: Tracks, span: Span, rng: np.random.Generator) -> Iterator[Question]:
    """Which way someone walks who is named by position at a moment."""
    del rng
    for moment in range(span[0], span[1] - 3 * FPS, HOLD):
        for name, sign in (("left", -1), ("right", 1)):
            who = _extreme(tracks.feet(moment), 0, sign)
            end = min(span[1] - 1, moment + 3 * FPS)
            frames = range(moment, end + 1)
            if (
                who is None
                or moment in tracks.doubtful
                or any(who not in tracks.boxes.get(f, {}) for f in frames)
            ):
                continue
            (x0, y0), (x1, y1) = tracks.feet(moment)[who], tracks.feet(end)[who]
            dx, dy = x1 - x0, y1 - y0
            if max(abs(dx), abs(dy)) < MIN_WALK_PX or max(abs(dx), abs(dy)) < 2 * min(abs(dx), abs(dy)):
                continue
            across = "to the left" if dx < 0 else "to the right"
            gold = across if abs(dx) > abs(dy) else "towards the camera" if dy > 0 else "away from the camera"
            yield Question(
                "dynamics",
                f"Which way does the person furthest to the {name} at {_seconds(moment, span)} s walk "
                "in the next three seconds?",
                ("to the left", "to the right", "towards the camera", "away from the camera"),
                gold,
                (moment, end),
                (_union([tracks.boxes[f][who] for f in frames]),),
            )


def nearest(tracks: Tracks, span: Span, rng: np.random.Generator) -> Iterator[Question]:
    """In which part of the picture the person nearest to the camera stands."""
    del rng
    for moment in range(span[0] + HOLD, span[1] - HOLD, HOLD):
        around = range(moment - HOLD, moment + HOLD + 1)
        leaders = {_extreme(tracks.feet(f), 1, 1) for f in around}
        who = leaders.pop()
        if leaders or who is None:
            continue
        thirds = {_third(tracks.feet(f)[who][0]) for f in around}
        place = thirds.pop()
        if thirds or place is None:
            continue
        yield Question(
            "spatial",
            f"Where does the person nearest to the camera stand at {_seconds(moment, span)} s?",
            ("in the left third", "in the middle third", "in the right third", "nobody is in the picture"),
            f"in the {THIRDS[place]} third",
            _around(moment, span),
            (_union([tracks.boxes[f][who] for f in around]),),
            in_order=True,
        )


def compare(tracks: Tracks, span: Span, rng: np.random.Generator) -> Iterator[Question]:
    """Whether the picture is fuller at the end of the clip than at its start."""
    del rng
    ends = (range(span[0], span[0] + HOLD), range(span[1] - HOLD, span[1]))
    first, last = (sorted(len(tracks.boxes.get(f, {})) for f in frames) for frames in ends)
    doubted = any(not tracks.doubtful.isdisjoint(frames) for frames in ends)
    if first[-1] - first[0] > 1 or last[-1] - last[0] > 1 or min(first[0], last[0]) < 1:
        return
    difference = last[HOLD // 2] - first[HOLD // 2]
    if abs(difference) < (3 if doubted else 2):
        return
    yield Question(
        "logic",
        "Are there more people in the picture at the end of the clip than at its start?",
        ("more at the end", "fewer at the end", "as many as at the start", "nobody at the end"),
        "more at the end" if difference > 0 else "fewer at the end",
        (span[0], span[1] - 1),
    )


MAKERS = (counting, first_entry, walking, nearest, compare)


def _normal(box: Xywh) -> list[float]:
    x, y, w, h = box
    return [
        round(v, 4) for v in (x / WIDTH, y / HEIGHT, min(1.0, (x + w) / WIDTH), min(1.0, (y + h) / HEIGHT))
    ]


def to_row(
    question: Question, span: Span, clip: str, number: int, rng: np.random.Generator
) -> dict[str, Any]:
    """A Video-R1 row; spans are seconds of the cut clip, boxes fractions of the picture."""
    order = list(range(4)) if question.in_order else [int(i) for i in rng.permutation(4)]
    choices = [question.choices[i] for i in order]
    start, end = ((f - span[0]) / FPS for f in question.span)
    boxes = [_normal(box) for box in question.boxes]
    return {
        "problem_id": number,
        "problem": question.text,
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=True)],
        "solution": f"<answer>{LETTERS[choices.index(question.gold)]}</answer>",
        "path": f"./clips/{clip}",
        "data_source": "PETS2009-S2L1",
        "scenario": question.scenario,
        "evidence": {"spans_s": [[round(start, 2), round(end, 2)]], "boxes": boxes, "note": ""},
    }


def write_clip(path: Path, frames: Sequence[np.ndarray], height: int) -> None:
    """RGB frames as an H.264 MP4 at 10 fps, scaled to an even height."""
    width = round(frames[0].shape[1] * height / frames[0].shape[0] / 2) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast", "threads": "1"}
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(width=width, height=height)
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def make_rows(
    tracks: Tracks, total: int, args: argparse.Namespace
) -> tuple[list[Span], list[dict[str, Any]]]:
    """Clip spans, and up to `per_clip` questions each: one of every kind first, then further ones."""
    rng = np.random.default_rng(args.seed)
    spans = cut_spans(total, rng, args.min_s, args.max_s)
    rows: list[dict[str, Any]] = []
    for number, span in enumerate(spans):
        pools = [list(maker(tracks, span, rng)) for maker in MAKERS]
        for pool in pools:
            rng.shuffle(pool)  # type: ignore[arg-type]
        ranked = [pool[depth] for depth in range(args.per_clip) for pool in pools if len(pool) > depth]
        for question in ranked[: args.per_clip]:
            rows.append(to_row(question, span, f"pets_{number:03}.mp4", len(rows), rng))
    return spans, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Write clips and questions; prints what was made."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", type=Path, required=True, help="vtest.avi")
    parser.add_argument("--tracks", type=Path, required=True, help="MOT file: frame,id,x,y,w,h,...")
    parser.add_argument("--out", type=Path, required=True, help="folder for clips/ and pets.json")
    parser.add_argument("--seed", type=int, default=4, help="of cuts and picks; 4 gives all five kinds")
    parser.add_argument("--height", type=int, default=288, help="height of the clips in pixels, even")
    parser.add_argument("--per-clip", type=int, default=8, help="questions per clip at most")
    parser.add_argument("--min-s", type=float, default=5.0)
    parser.add_argument("--max-s", type=float, default=10.0)
    parser.add_argument("--max-clips", type=int, default=None, help="only the first clips, for a quick look")
    args = parser.parse_args(argv)
    index = index_video(args.video)
    spans, rows = make_rows(read_tracks(args.tracks), len(index.pts), args)
    spans = spans[: args.max_clips]
    rows = [row for row in rows if row["path"] < f"./clips/pets_{len(spans):03}.mp4"]
    for number, (start, end) in enumerate(spans):
        decoded, notes = decode_frames(args.video, index, range(start, end))
        if len(decoded) != end - start:
            parser.error(
                f"{args.video}: frames {start}-{end} are not whole ({', '.join(notes)}); fetch it again"
            )
        write_clip(
            args.out / "clips" / f"pets_{number:03}.mp4", [decoded[i] for i in range(start, end)], args.height
        )
    (args.out / "pets.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    kinds = dict(Counter(row["scenario"] for row in rows))
    print(f"{len(spans)} clips, {len(rows)} questions {kinds} in {args.out / 'pets.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
