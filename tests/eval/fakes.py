"""Small benchmarks, and models that say what a test wants; no torch."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ffr.data.microworld import write_microworld
from ffr.eval.models import Generation, ModelIdentity, Reply
from ffr.eval.rows import EvalRow
from ffr.eval.run import Questions, finish, load_questions, make_runner, open_run, run_info
from ffr.eval.runner import Respond, Runner, plain
from ffr.eval.settings import EvalConfig
from ffr.types import Observation

IDENTITY = ModelIdentity(model="fake", settings={"kind": "fake"})
Say = Callable[[Observation, Generation], str | Reply]


class FakeModel:
    """Answers with `say(observation, generation)`; keeps what it was asked."""

    name, engine = "fake", "fake"

    def __init__(self, say: Say) -> None:
        self.say = say
        self.calls: list[tuple[int, int, tuple[str, ...]]] = []
        """Frames of the first observation, seed, uids of one call."""

    async def answer(self, observations: Sequence[Observation], generation: Generation) -> list[Reply]:
        await asyncio.sleep(0)
        uids = tuple(obs.sample_uid for obs in observations)
        self.calls.append((len(observations[0].frames), generation.seed, uids))
        said = [self.say(obs, generation) for obs in observations]
        return [r if isinstance(r, Reply) else Reply(r, "stop", len(r.split())) for r in said]


def by_view(obs: Observation, generation: Generation) -> str:
    """A letter that depends on all that the model sees and, when sampling, on the seed: like a real model."""
    words = obs.view_id if generation.greedy else f"{obs.view_id}/{generation.seed}"
    letter = "ABCD"[hashlib.sha256(words.encode()).digest()[0] % 4]
    return f"<think>looks like {letter}</think><answer>{letter}</answer>"


def world(root: Path, num: int = 12) -> Path:
    """MicroWorld's test split under `root/microworld`."""
    write_microworld(root / "microworld", num_train=0, num_test=num)
    return root


def config(root: Path, **changes: object) -> EvalConfig:
    values: dict[str, object] = {
        "benchmarks": ("microworld",),
        "root": root,
        "frames": (4,),
        "prompt": "brief",
        "max_frame_px": 84 * 56,
        "min_frame_px": 28 * 28,
        "max_tokens": 48,
        "batch_size": 4,
    }
    return EvalConfig.model_validate({**values, **changes})


def evaluate(
    cfg: EvalConfig,
    run: Path,
    say: Say | FakeModel,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    respond: Respond | None = None,
    questions: Questions | None = None,
) -> Runner:
    """A whole run with a fake model; `stop_after` rows it is asked to stop."""
    model = say if isinstance(say, FakeModel) else FakeModel(say)
    questions = questions or load_questions(cfg)
    info = run_info(cfg, questions, IDENTITY, name="fake", engine="fake")
    with open_run(run, info, questions, resume=resume) as store:
        runner = make_runner(cfg, questions, store, respond or plain(model))

        def on_row(row: EvalRow) -> None:
            if stop_after is not None and runner.counters["rows"] >= stop_after:
                runner.stop()

        runner.on_row = on_row
        try:
            asyncio.run(runner.run())
        finally:
            finish(store)
    return runner
