"""Runs the MicroWorld study: several arms from the same cold start, several seeds, equal rollouts.

Each run appends to `docs/results/micro/<arm>_<seed>.jsonl`: an evaluation row before and after
training (held-out test clips, one rollout per question at temperature 1), and a row per optimiser
step. A run whose last row is there is not run again, so an interrupted study goes on where it stopped.

    python scripts/run_micro.py --arms grpo ffr ffr_released --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ffr.config import Config
from ffr.data import read_video_r1
from ffr.data.microworld import write_microworld
from ffr.engines.micro.evaluate import demo_settings, held_out, load_student, measure, summarize
from ffr.engines.trl import train
from ffr.fix import make_teacher
from ffr.types import Trace

ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "grpo": {"train": {"algorithm": "grpo"}, "reason": {"baseline": "group", "scale": "std"}},
    "ffr": {"train": {"algorithm": "ffr"}, "reason": {"baseline": "group", "scale": "std"}},
    "ffr_released": {
        "train": {"algorithm": "ffr_released"},
        "reason": {"baseline": "group", "scale": "std", "loss_norm": "seq_mean"},
    },
    "ffr_first_pass": {"train": {"algorithm": "ffr"}, "reason": {"baseline": "first_pass", "scale": "none"}},
    "ffr_no_std": {"train": {"algorithm": "ffr"}, "reason": {"baseline": "group", "scale": "none"}},
    "ffr_reattach": {
        "train": {"algorithm": "ffr"},
        "reason": {"baseline": "first_pass", "scale": "none", "train_view": "reattach"},
    },
}
OUT = Path("docs/results/micro")


class ResultSink:
    """Appends one row per optimiser step and counts rollouts.

    Args:
        path: JSONL file.
        arm: Name of the arm.
        seed: Of the run.
        per_step: First-pass rollouts of one step; repairs are added as they happen.
    """

    def __init__(self, path: Path, arm: str, seed: int, per_step: int) -> None:
        self.path, self.arm, self.seed, self.per_step = path, arm, seed, per_step
        self.rollouts = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the step's metrics."""
        repairs = values.get("fix/repaired", 0.0) + values.get("fix/still_wrong", 0.0)
        self.rollouts += self.per_step + round(repairs)
        row = {"kind": "train", "arm": self.arm, "seed": self.seed, "step": step, "rollouts": self.rollouts}
        kept = {
            k: round(v, 6) for k, v in values.items() if k.split("/")[0] in ("find", "fix", "reason", "train")
        }
        append(self.path, {**row, **kept})

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        """Traces are not part of the study's results."""

    def finish(self, summary: Mapping[str, float]) -> None:
        """The last evaluation row closes the file."""


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one JSON row."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def config_for(arm: str, seed: int, args: argparse.Namespace) -> Config:
    """The demo's configuration with the arm's switches and this study's length."""
    tree = demo_settings().model_dump()
    steps = args.grpo_steps if arm == "grpo" else args.steps
    shared = {
        "train": {
            "seed": seed,
            "max_steps": steps,
            "save_every": 10_000,
            "learning_rate": args.learning_rate,
        },
        "data": {"seed": seed, "num_samples": None},
        "report": {"output_dir": args.work / f"{arm}_{seed}", "display": "none"},
    }
    for changes in (shared, ARMS[arm]):
        for section, values in changes.items():
            tree[section].update(values)
    return Config.model_validate(tree)


def evaluate(path: Path, arm: str, seed: int, step: int, model: Path | str, args: argparse.Namespace) -> None:
    """One row of held-out accuracy."""
    cfg = demo_settings()
    samples = held_out(args.work / "test", args.questions)
    sampler = load_student(model, cfg, seed=1000 + seed)
    summary = summarize(asyncio.run(measure(samples, sampler, cfg, repairs=False)))
    append(path, {"kind": "eval", "arm": arm, "seed": seed, "step": step, **summary})


def run_one(arm: str, seed: int, args: argparse.Namespace) -> None:
    """One run from the cold start to its last evaluation."""
    final = OUT / f"{arm}_{seed}.jsonl"
    if final.exists():
        return
    cfg = config_for(arm, seed, args)
    path = args.work / f"{arm}_{seed}.jsonl"
    path.unlink(missing_ok=True)
    shutil.rmtree(cfg.report.output_dir, ignore_errors=True)
    num_train = (cfg.train.max_steps or 0) * cfg.train.questions_per_step
    root = args.work / "train" / f"{seed}_{num_train}"
    world = write_microworld(root, num_train=num_train, num_test=0, seed=100 + seed)
    samples = read_video_r1(world.train, root, name="microworld").samples
    evaluate(path, arm, seed, 0, args.student, args)
    sink = ResultSink(path, arm, seed, cfg.train.questions_per_step * cfg.find.group_size)
    teacher = None if arm == "grpo" else make_teacher(cfg.fix, cfg.observe)
    result = train(cfg, samples, teacher=teacher, sinks=[sink])
    evaluate(path, arm, seed, result.steps, result.student_dir, args)
    final.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, final)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run the MicroWorld study (hours on two cores).")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument(
        "--grpo-steps", type=int, default=120, help="more steps: grpo spends no rollouts on repairs"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--questions", type=int, default=300, help="held-out questions per evaluation")
    parser.add_argument("--student", type=Path, default=Path("src/ffr/assets/micro-student"))
    parser.add_argument("--work", type=Path, default=Path("outputs/micro"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        for arm in args.arms:
            run_one(arm, seed, args)


if __name__ == "__main__":
    main()
