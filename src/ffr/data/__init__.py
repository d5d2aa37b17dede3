"""Readers, mixture and decontamination: files in, `Sample`s out. No torch, no decoding."""

from ffr.data.base import DataError, ReadResult, SkippedRow
from ffr.data.decontaminate import Decontaminated, Dropped, decontaminate
from ffr.data.hub import resolve_hub_path
from ffr.data.jsonl import read_jsonl, write_jsonl
from ffr.data.mixture import Mixture, load_data, mix
from ffr.data.paths import PathRefused, resolve_media
from ffr.data.video_holmes import read_video_holmes
from ffr.data.video_r1 import read_video_r1

__all__ = [
    "DataError",
    "Decontaminated",
    "Dropped",
    "Mixture",
    "PathRefused",
    "ReadResult",
    "SkippedRow",
    "decontaminate",
    "load_data",
    "mix",
    "read_jsonl",
    "read_video_holmes",
    "read_video_r1",
    "resolve_hub_path",
    "resolve_media",
    "write_jsonl",
]
