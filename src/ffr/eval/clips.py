"""Clips for the runner: decoded ahead in threads, each file once for all numbers of frames."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ffr.config import ObserveConfig
from ffr.eval.benchmarks import OfficialBenchmark
from ffr.observe import UNIFORM, DecodeLimits, FrameRule, load_clips, render_prompt, view_id
from ffr.observe.cache import CachedClip, file_identity
from ffr.types import Observation, Sample

_Key = tuple[str, str, tuple[float, float] | None, str]


@dataclass(frozen=True, slots=True)
class Clips:
    """One sample's clip at each number of frames.

    Example:
        >>> Clips(by_num={}, video_sha256="ab").video_sha256
        'ab'
    """

    by_num: Mapping[int, CachedClip]
    video_sha256: str
    """Of the file; `m-...` for large files and folders (`ffr.observe.cache.file_identity`)."""


class ClipLoader:
    """Decodes clips in threads; questions about the same clip, one after the other, share one decode.

    Args:
        cfg: Pixel limits and frame cache.
        nums: Numbers of frames; their union is decoded once.
        workers: Threads.
        limits: What a file may cost, and whether each is decoded in a process of its own.
        held: Clips kept for the questions that follow.

    Example:
        >>> loader = ClipLoader(ObserveConfig(), (16, 32))
        >>> loader.close()
    """

    def __init__(
        self,
        cfg: ObserveConfig,
        nums: Sequence[int],
        *,
        workers: int = 2,
        limits: DecodeLimits | None = None,
        held: int = 8,
    ) -> None:
        self._cfg = cfg
        self._nums = tuple(nums)
        self._limits = limits or DecodeLimits()
        self._held = held
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ffr-decode")
        self._clips: OrderedDict[_Key, Future[Clips]] = OrderedDict()
        self._hashes: dict[str, str] = {}
        self._lock = threading.Lock()

    def start(self, sample: Sample, rule: FrameRule = UNIFORM) -> Future[Clips]:
        """The future of a sample's clips by number of frames; it may raise MediaError."""
        key = (str(sample.video), sample.media_type, sample.clip_s, rule.name)
        with self._lock:
            future = self._clips.get(key)
            if future is None:
                future = self._clips[key] = self._pool.submit(self._load, sample, rule)
                while len(self._clips) > self._held:
                    self._clips.popitem(last=False)
            else:
                self._clips.move_to_end(key)
        return future

    def _load(self, sample: Sample, rule: FrameRule) -> Clips:
        clips = load_clips(sample, self._cfg, self._nums, self._limits, rule)
        path = str(sample.video)
        if path not in self._hashes:
            self._hashes[path] = file_identity(sample.video).removeprefix("c-")
        return Clips(clips, self._hashes[path])

    def close(self) -> None:
        """Forgets what has not begun; decodes under way end on their own limits."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def make_observation(sample: Sample, clip: CachedClip, cfg: ObserveConfig, official: str = "") -> Observation:
    """The question with its frames as the student sees it.

    Args:
        sample: The question.
        clip: Its frames.
        cfg: Prompt template and whether frame times are stated.
        official: The text to ask with instead of the template.
    """
    prompt = official or render_prompt(sample, clip.frames, style=cfg.prompt, state_frames=cfg.state_frames)
    return Observation(
        sample_uid=sample.uid,
        frames=clip.frames,
        prompt=prompt,
        view_id=view_id(clip.frames, prompt),
        duration_s=clip.duration_s,
        notes=clip.notes,
        prompt_style=cfg.prompt,
    )


def shown_fps(obs: Observation) -> float:
    """Frames per second as shown; 0 for a still image."""
    if len(obs.frames) < 2:
        return 0.0
    span = obs.frames[-1].timestamp_s - obs.frames[0].timestamp_s
    return round((len(obs.frames) - 1) / span, 4) if span > 0 else 0.0


def frame_rule(benchmark: OfficialBenchmark) -> FrameRule:
    """The frames that the benchmark's authors take."""
    return FrameRule(
        f"official/{benchmark.name}",
        lambda total, num, fps: benchmark.frame_indices(total, num, fps=fps),
    )
