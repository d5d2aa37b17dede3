"""Measures a student on MicroWorld's held-out clips, through the real decoder, sampler and teacher.

Three numbers per question: is a first rollout right; and where it is wrong, is a second rollout right
without help (the honest control) and with a truthful patch in view.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ffr.config import Config
from ffr.data import read_video_r1
from ffr.data.microworld import write_microworld
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler
from ffr.find import Sampler, thresholds_from, verify
from ffr.fix import RepairFlow
from ffr.fix.oracle import OracleTeacher
from ffr.observe import observe
from ffr.types import Rollout, Sample, Verdict


@dataclass(frozen=True)
class Outcome:
    """One question's rollouts, judged.

    Example:
        >>> Outcome(scenario="logic", first=True, format_ok=True).second is None
        True
    """

    scenario: str
    first: bool
    format_ok: bool
    second: bool | None = None
    """Re-roll without patch, asked where the first was wrong."""
    patched: bool | None = None
    """Re-roll under x + c, asked where the first was wrong."""


async def measure(
    samples: Sequence[Sample], sampler: Sampler, cfg: Config, *, repairs: bool = True, batch: int = 32
) -> list[Outcome]:
    """Returns one outcome per sample; no rollout is trained on.

    Args:
        samples: Held-out questions.
        sampler: Of the student to be measured.
        cfg: Observation, sampling and teacher settings.
        repairs: Also re-roll failures with and without a patch.
        batch: Questions sampled together.
    """
    limits = thresholds_from(cfg.find)
    flow = RepairFlow(teacher=OracleTeacher(cfg.fix), sampler=sampler, fix=cfg.fix, find=cfg.find)
    outcomes: list[Outcome] = []
    for start in range(0, len(samples), batch):
        part = samples[start : start + batch]
        observations = [observe(sample, cfg.observe) for sample in part]
        firsts = [group[0] for group in await sampler.sample(observations, num=1)]
        verdicts = [_judge(s, r, cfg, limits) for s, r in zip(part, firsts, strict=True)]
        failed = [i for i, verdict in enumerate(verdicts) if not verdict.correct] if repairs else []
        seconds: dict[int, bool] = {}
        patched: dict[int, bool] = {}
        if failed:
            again = await sampler.sample([observations[i] for i in failed], num=1)
            repaired = await flow.repair_batch([(part[i], firsts[i]) for i in failed])
            for i, group, repair in zip(failed, again, repaired, strict=True):
                seconds[i] = _judge(part[i], group[0], cfg, limits).correct
                if repair.verdict is not None:
                    patched[i] = repair.verdict.correct
        outcomes += [
            Outcome(
                scenario=sample.scenario,
                first=verdicts[i].correct,
                format_ok=verdicts[i].format_score == 1.0,
                second=seconds.get(i),
                patched=patched.get(i),
            )
            for i, sample in enumerate(part)
        ]
    return outcomes


def _judge(sample: Sample, rollout: Rollout, cfg: Config, limits: Any) -> Verdict:
    return verify(sample, rollout.text, profile=cfg.find.profile, thresholds=limits)


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Shares over outcomes, apart by question kind; counts beside every share."""

    def share(values: Sequence[bool]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    kinds = sorted({outcome.scenario for outcome in outcomes})
    by_kind = {kind: share([o.first for o in outcomes if o.scenario == kind]) for kind in kinds}
    seconds = [o.second for o in outcomes if o.second is not None]
    patched = [o.patched for o in outcomes if o.patched is not None]
    return {
        "num_questions": len(outcomes),
        "first_pass_accuracy": share([o.first for o in outcomes]),
        "format_rate": share([o.format_ok for o in outcomes]),
        "num_failed": len(seconds),
        "reroll_accuracy_on_failed": share(seconds),
        "num_patched": len(patched),
        "patched_accuracy_on_failed": share(patched),
        "by_scenario": by_kind,
    }


def load_student(path: str | Path, cfg: Config, *, seed: int = 0) -> HFSampler:
    """A sampler over a checkpoint folder, float32 on CPU."""
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    return HFSampler(model.eval(), Encoder(AutoProcessor.from_pretrained(path)), find=cfg.find, seed=seed)


def demo_settings() -> Config:
    """The packaged demo configuration: how the micro student is shown clips."""
    text = (files("ffr") / "assets" / "demo.toml").read_text()
    return Config.model_validate(tomllib.loads(text))


def held_out(root: Path, num: int, *, seed: int = 0) -> tuple[Sample, ...]:
    """Writes (once) and reads `num` questions of MicroWorld's test split."""
    world = write_microworld(root, num_train=0, num_test=num, seed=seed)
    return read_video_r1(world.test, root, name="microworld").samples


def main() -> None:
    """Command line: prints and optionally writes the summary as JSON."""
    parser = argparse.ArgumentParser(description="Measure a micro student on held-out MicroWorld clips.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--clips", type=Path, required=True, help="folder for the held-out clips")
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    cfg = demo_settings()
    samples = held_out(args.clips, args.questions)
    outcomes = asyncio.run(measure(samples, load_student(args.model, cfg, seed=args.seed), cfg))
    summary = {"seed": args.seed, **summarize(outcomes)}
    print(json.dumps(summary, indent=1))
    if args.out:
        args.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
