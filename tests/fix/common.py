"""Small samples, observations, students and teachers for the tests of this room."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from ffr.fix.teacher import TeacherRequest
from ffr.types import (
    Diagnosis,
    ErrorType,
    Evidence,
    EvidencePatch,
    Frame,
    Observation,
    Option,
    ProblemType,
    Rollout,
    Sample,
)

WIDTH, HEIGHT, FPS = 96, 64, 8


def write_clip(path: Path, seconds: float = 4.0) -> Path:
    """A real MP4 whose frames get brighter and whose right half is lighter than its left half."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(int(seconds * FPS)):
            pixels = np.full((HEIGHT, WIDTH, 3), 20 + 5 * i, np.uint8)
            pixels[:, WIDTH // 2 :] += 60
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def make_frames(count: int = 8, step_s: float = 0.5, *, pixels: bool = True) -> tuple[Frame, ...]:
    """Frames 1..count at 0, step_s, 2 step_s, ... seconds."""
    frames: list[Frame] = []
    for i in range(count):
        image = np.full((HEIGHT, WIDTH, 3), 10 * (i + 1), np.uint8)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        frames.append(Frame(i + 1, i * 4, i * step_s, digest, WIDTH, HEIGHT, image if pixels else None))
    return tuple(frames)


def make_sample(video: Path = Path("clip.mp4"), **changes: object) -> Sample:
    """A four-option question with evidence from 1.0 to 1.6 seconds."""
    fields: dict[str, object] = {
        "uid": "micro/7",
        "question": "What colour is the ball when it glows?",
        "answer": "B",
        "problem_type": ProblemType.MULTIPLE_CHOICE,
        "video": video,
        "options": (
            Option("A", "red"),
            Option("B", "blue"),
            Option("C", "green"),
            Option("D", "yellow"),
        ),
        "scenario": "attribute",
        "evidence": Evidence(
            spans_s=((1.0, 1.6),), boxes=((0.0, 0.5, 0.5, 1.0),), note="the moment when the ball glows"
        ),
    }
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


def make_observation(sample: Sample, count: int = 8, *, pixels: bool = True) -> Observation:
    """The student's view of `sample`: `count` frames, half a second apart."""
    frames = make_frames(count, pixels=pixels)
    return Observation(
        sample_uid=sample.uid,
        frames=frames,
        prompt=sample.question,
        view_id=f"view-{sample.uid}",
        duration_s=frames[-1].timestamp_s,
    )


def failed_rollout(sample: Sample, text: str = "<think>It is red.</think><answer>A</answer>") -> Rollout:
    """A first pass that says A."""
    return Rollout(observation=make_observation(sample), text=text, token_ids=(1, 2, 3))


class Student:
    """A sampler that gives a fixed answer, and remembers what it was shown."""

    def __init__(self, answer: str = "B") -> None:
        self.answer = answer
        self.calls: list[tuple[int, str]] = []
        self.seen: list[Observation] = []

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """One call, `num` equal rollouts each."""
        self.calls.append((len(observations), source))
        self.seen.extend(observations)
        text = f"<think>Look.</think><answer>{self.answer}</answer>"
        return [[Rollout(obs, text, (4, 5), source=source)] * num for obs in observations]


GOOD_PATCH = EvidencePatch(
    error_types=(ErrorType.TEMPORAL,), key_frames=((3, 4),), guidance="Look at these frames again."
)
LEAKING_PATCH = EvidencePatch(
    error_types=(ErrorType.ATTRIBUTE,), key_frames=((3, 4),), guidance="The answer is B, the ball is blue."
)


class ScriptedTeacher:
    """Gives the scripted diagnoses in turn, the last one for ever."""

    name = "scripted"

    def __init__(self, *script: Diagnosis | Exception) -> None:
        self.script = list(script)
        self.requests: list[TeacherRequest] = []

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        """The next diagnosis."""
        self.requests.append(request)
        item = self.script[min(len(self.requests), len(self.script)) - 1]
        if isinstance(item, Exception):
            raise item
        return item

    async def aclose(self) -> None:
        """Nothing to close."""
