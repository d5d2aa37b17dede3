"""Training rows that an evaluation set also has: found by clip and by question, dropped and listed.

LVBench is in Video-Thinker's training data and the train part of Video-Holmes is in FFR's 4,000
(arXiv 2604.16243, section 4.1): gains there may be in-domain, so the check belongs to the data room.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ffr.types import Sample

MIN_ID_CHARS = 5
"""Shorter file stems (`1`, `0042`) name no clip beyond their own data set."""

_CUT = re.compile(r"_\d+(?:\.\d+)?_\d+(?:\.\d+)?$")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A training row that an evaluation row matches.

    Example:
        >>> Dropped(uid="train/1", by="video", evaluation_uid="test/9").by
        'video'
    """

    uid: str
    by: str
    """`video` (same clip id) or `question` (same question and options)."""
    evaluation_uid: str


@dataclass(frozen=True, slots=True)
class Decontaminated:
    """What is left of the training set, and what was dropped.

    Example:
        >>> Decontaminated(kept=(), dropped=()).dropped
        ()
    """

    kept: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]


def video_key(sample: Sample) -> str | None:
    """Clip id: the lower-case stem of the file name; None where it is too short to mean anything."""
    stem = sample.video.stem.casefold()
    return stem if len(stem) >= MIN_ID_CHARS else None


def video_keys(sample: Sample) -> tuple[str, ...]:
    """`video_key`, and the id without the bounds of a cut clip (`NBMH9_21.4_37.6` is a part of `NBMH9`)."""
    key = video_key(sample)
    whole = _CUT.sub("", key) if key is not None else ""
    return () if key is None else (key, whole) if whole != key and len(whole) >= MIN_ID_CHARS else (key,)


def question_key(sample: Sample) -> str:
    """sha256 of the question and its options, without case, punctuation, spacing and option order.

    The options belong to it: "What happens in the video?" alone is no contamination.
    """
    parts = [_normal(sample.question), *sorted(_normal(option.text) for option in sample.options)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _normal(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


def decontaminate(
    training: Iterable[Sample],
    evaluation: Iterable[Sample],
    *,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> Decontaminated:
    """Drop each training row whose clip or question occurs in the evaluation rows.

    Args:
        training: Rows to filter.
        evaluation: Rows to keep out; read them with `check_media=False`, no clip is needed.
        aliases: Further clip ids of evaluation rows, by uid (the YouTube id behind `0.mp4`).

    Returns:
        Kept rows in their order, and each dropped row with the first evaluation row that it matches.
    """
    videos: dict[str, str] = {}
    questions: dict[str, str] = {}
    for sample in evaluation:
        further = (aliases or {}).get(sample.uid, ())
        for key in (*video_keys(sample), *(alias.casefold() for alias in further)):
            videos.setdefault(key, sample.uid)
        questions.setdefault(question_key(sample), sample.uid)
    kept: list[Sample] = []
    dropped: list[Dropped] = []
    for sample in training:
        seen = next((videos[key] for key in video_keys(sample) if key in videos), None)
        asked = questions.get(question_key(sample))
        if seen is not None:
            dropped.append(Dropped(sample.uid, "video", seen))
        elif asked is not None:
            dropped.append(Dropped(sample.uid, "question", asked))
        else:
            kept.append(sample)
    return Decontaminated(tuple(kept), tuple(dropped))
