"""Sampling a group: prefill once against transformers' default, and repairs on the kept prefix.

    python bench/rollout.py
    python bench/rollout.py --quick
    python bench/rollout.py --device cuda --model 7b

A group: one question, G rollouts. `ours` is `HFSampler`: the clip goes through the vision tower once, the
prompt through the language model once, and its key-value states are repeated. `transformers` is what
`generate(num_return_sequences=G)` does: pixels and prompt are repeated G times before the prefill.

Repairs: G / 2 failed rollouts of the group, each with a patch of its own, text only or with frames that are
shown again. `kept_prefix` goes on from the first pass, `from_scratch` is the same sampler without it,
`transformers` is `generate` on the padded batch. The first pass itself is not timed here.

Each is timed up to the first token (prefill) and to the end (whole; no end token is drawn). Preparing pixels
is left out everywhere. All variants take turns within a round; ratios are taken within a round and the median
is reported, of wall time and of the process's CPU time (on a shared machine the steadier one). The limit of a
prefill is the ratio of floating-point operations, that of the whole lets only the prefill cost less. Exit
code 1 if the target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench.machine import environment  # noqa: E402
from bench.students import build  # noqa: E402
from bench.train_step import write_clip  # noqa: E402
from ffr.config import FindConfig, ObserveConfig  # noqa: E402
from ffr.engines.encode import EncodedPrompt, Encoder  # noqa: E402
from ffr.engines.hf import HFSampler  # noqa: E402
from ffr.engines.prefix import ROUND_BYTES  # noqa: E402
from ffr.observe import apply_patch, observe  # noqa: E402
from ffr.types import ErrorType, EvidencePatch, Observation, Option, ProblemType, Sample  # noqa: E402

PACKAGES = ("find-fix-reason", "torch", "transformers", "numpy")
TARGETS = {"prefill_vs_transformers": 4.0}
"""Smallest speed-up on CPU."""
BASELINES = {
    "group": {"ours": ("transformers",)},
    "repairs_text": {"kept_prefix": ("from_scratch", "transformers")},
    "repairs_frames": {"kept_prefix": ("from_scratch", "transformers")},
}
"""For each task our variant, and what it is compared with."""
PARTS = ("prefill", "whole")


def first_view(clip: Path, frames: int) -> Observation:
    """The question, as the student is asked."""
    sample = Sample(
        uid="bench/0",
        question="What happens first?",
        answer="B",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=clip,
        options=(Option("A", "one"), Option("B", "two"), Option("C", "three")),
        source="bench",
    )
    limits = {"max_frame_px": 1280 * 28 * 28, "min_frame_px": 28 * 28, "prompt": "brief"}
    return observe(sample, ObserveConfig.model_validate({"num_frames": frames, **limits}))


def patched(view: Observation, num: int, visual: str) -> list[Observation]:
    """The view with patches of its own for each failed rollout; frames: two of the clip's again."""
    out: list[Observation] = []
    for k in range(num):
        start = 1 + k % (len(view.frames) - 1)
        patch = EvidencePatch(
            error_types=(ErrorType.TEMPORAL,),
            key_frames=((start, start + 1),),
            guidance=f"Look at what moves before {'the other ' * (k % 3)}object comes in.",
        )
        out.append(apply_patch(view, patch, visual=visual))
    return out


class Bench:
    """The student, its samplers, and what was counted."""

    def __init__(self, path: Path, clip: Path, words: argparse.Namespace, sizes: dict[str, Any]) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = torch.device(words.device)
        dtype = torch.bfloat16 if words.device == "cuda" else torch.float32
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype).to(self.device).eval()
        self.encoder = Encoder(AutoProcessor.from_pretrained(path))
        self.group, self.completion = sizes["group"], sizes["completion"]
        self.view = first_view(clip, sizes["frames"])
        self.prompt = self.encoder.encode(self.view)
        self.repairs = {
            f"repairs_{name}": patched(self.view, self.group // 2, visual)
            for name, visual in (("text", "pointers"), ("frames", "frames"))
        }
        self.samplers = {
            (part, kept): self._sampler(1 if part == "prefill" else self.completion, kept)
            for part in PARTS
            for kept in (True, False)
        }
        self.tokens: Counter[str] = Counter()
        self._count()

    def _sampler(self, num_tokens: int, kept: bool) -> HFSampler:
        find = FindConfig(max_completion_tokens=num_tokens)
        room = ROUND_BYTES if kept else 0
        sampler = HFSampler(self.model, self.encoder, find=find, prefix_bytes=room)
        sampler._banned[sorted(sampler.stop_ids)] = True  # every rollout has its full length
        return sampler

    def _count(self) -> None:
        def language(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            batch, length = kwargs["inputs_embeds"].shape[:2]
            cache = kwargs.get("past_key_values")
            self.tokens["language_positions"] += batch * length
            self.tokens["attended_pairs"] += (
                batch * length * ((cache.get_seq_length() if cache else 0) + length)
            )

        self.model.model.language_model.register_forward_pre_hook(language, with_kwargs=True)
        self.model.model.visual.register_forward_pre_hook(
            lambda _module, args, kwargs: self.tokens.update(
                vision_patches=len(args[0] if args else kwargs["hidden_states"])
            ),
            with_kwargs=True,
        )

    def run(self, task: str, variant: str, part: str) -> dict[str, float]:
        """One timed run; what a variant needs beforehand is not timed."""
        prepare, body = self._work(task, variant, part)
        prepare()
        self.tokens.clear()
        self._wait()
        started, used = time.perf_counter(), time.process_time()
        body()
        self._wait()
        seconds, used = time.perf_counter() - started, time.process_time() - used
        return {"seconds": seconds, "cpu_s": used, **self.tokens}

    def _work(self, task: str, variant: str, part: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        num_tokens = 1 if part == "prefill" else self.completion
        if task == "group":
            sampler = self.samplers[part, True]
            if variant == "ours":
                return partial(sampler.reseed, 0), partial(_sample, sampler, [self.view], self.group)
            return _nothing, partial(self._generate, [self.prompt], num_tokens, self.group)
        views = self.repairs[task]
        if variant == "transformers":
            return _nothing, partial(self._generate, list(map(self.encoder.encode, views)), num_tokens, 1)
        sampler = self.samplers[part, variant == "kept_prefix"]

        def prepare() -> None:
            sampler.reseed(0)
            if variant == "kept_prefix":
                _sample(self.samplers["prefill", True], [self.view], 1)
                sampler.prefixes = self.samplers["prefill", True].prefixes

        return prepare, partial(_sample, sampler, views, 1)

    def _generate(self, prompts: Sequence[EncodedPrompt], num_tokens: int, num: int) -> None:
        find = self.samplers["prefill", True].find
        width = max(prompt.num_tokens for prompt in prompts)
        pads = [width - prompt.num_tokens for prompt in prompts]

        def rows(values: list[tuple[int, ...]], fill: int) -> Tensor:
            filled = [[fill] * pad + list(row) for pad, row in zip(pads, values, strict=True)]
            return torch.tensor(filled, device=self.device)

        features = [prompt.features for prompt in prompts]
        self.model.generate(
            input_ids=rows([prompt.train_ids for prompt in prompts], self.encoder.pad_id),
            attention_mask=rows([(1,) * prompt.num_tokens for prompt in prompts], 0),
            mm_token_type_ids=rows([prompt.mm_types for prompt in prompts], 0),
            **{name: torch.cat([f[name] for f in features]).to(self.device) for name in features[0]},
            do_sample=True,
            temperature=find.temperature,
            top_p=find.top_p,
            top_k=0,
            num_return_sequences=num,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=self.encoder.pad_id,
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _sample(sampler: HFSampler, views: Sequence[Observation], num: int) -> None:
    asyncio.run(sampler.sample(views, num=num))


def _nothing() -> None:
    return None


def cases() -> list[tuple[str, str, str]]:
    """(task, variant, part) of all that is timed."""
    return [
        (task, variant, part)
        for task, table in BASELINES.items()
        for ours, others in table.items()
        for variant in (ours, *others)
        for part in PARTS
    ]


def measure(bench: Bench, repeats: int) -> list[dict[str, Any]]:
    """One warm-up, then `repeats` rounds in which every case runs once, in turned order."""
    todo = cases()
    for case in todo:
        bench.run(*case)
    rounds: list[dict[str, Any]] = []
    for k in range(repeats):
        at = k * len(todo) // max(1, repeats)
        rounds.append({"/".join(case): bench.run(*case) for case in todo[at:] + todo[:at]})
        line = ", ".join(f"{name} {run['seconds']:.2f}" for name, run in sorted(rounds[-1].items()))
        print(f"  round {k + 1} (s): {line}", flush=True)
    return rounds


def work(student: dict[str, Any], run: dict[str, float]) -> float:
    """Floating-point operations of the language model's layers and, but for its attention, of the tower."""
    weights = 2.0 * student["layer_parameters"] * run["language_positions"]
    attention = 4.0 * student["hidden"] * student["layers"] * run["attended_pairs"]
    return weights + attention + 2.0 * student["vision_parameters"] * run.get("vision_patches", 0)


def summary(rounds: list[dict[str, Any]], student: dict[str, Any]) -> dict[str, Any]:
    """Medians, ratios and their limits, for each task."""
    out: dict[str, Any] = {}
    for task, table in BASELINES.items():
        [(ours, others)] = table.items()
        names = {(v, part): f"{task}/{v}/{part}" for v in (ours, *others) for part in PARTS}
        last = {case: rounds[-1][name] for case, name in names.items()}
        seconds = {c: statistics.median(r[name]["seconds"] for r in rounds) for c, name in names.items()}
        found: dict[str, Any] = {
            "median_s": {f"{v}/{part}": s for (v, part), s in seconds.items()},
            "language_positions": {f"{v}/{p}": run["language_positions"] for (v, p), run in last.items()},
            "vision_patches": {f"{v}/{p}": run.get("vision_patches", 0) for (v, p), run in last.items()},
        }
        for other in others:
            limit = work(student, last[other, "prefill"]) / work(student, last[ours, "prefill"])
            # What is left of the whole when only the prefill costs less, by as much as its work.
            left = seconds[other, "whole"] - seconds[other, "prefill"] * (1 - 1 / limit)
            for part, bound in (("prefill", limit), ("whole", seconds[other, "whole"] / left)):
                ratios = [r[names[other, part]]["seconds"] / r[names[ours, part]]["seconds"] for r in rounds]
                key = f"{part}_vs_{other}"
                used = [r[names[other, part]]["cpu_s"] / r[names[ours, part]]["cpu_s"] for r in rounds]
                ratio = statistics.median(ratios)
                found |= {key: ratio, f"{key}_runs": ratios, f"{key}_limit": bound}
                found[f"{key}_by_cpu_time"] = statistics.median(used)
                found[f"{key}_fraction_of_limit"] = ratio / bound
        out[task] = found
    return out


def show(tasks: dict[str, Any]) -> None:
    for task, found in tasks.items():
        print(f"{task}:")
        for name, seconds in found["median_s"].items():
            positions, patches = found["language_positions"][name], found["vision_patches"][name]
            print(f"  {name:22} {seconds:7.3f} s  {positions:6.0f} positions  {patches:6.0f} patches")
        for key in [key for key in found if f"{key}_limit" in found]:
            limit, share = found[f"{key}_limit"], found[f"{key}_fraction_of_limit"]
            used = found[f"{key}_by_cpu_time"]
            times = f"{found[key]:.2f}x, by CPU time {used:.2f}x"
            print(f"  {key}: {times} (limit {limit:.2f}x, reached {share:.0%})")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--completion", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its own choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("20m", "3b", "7b"), default="20m")
    parser.add_argument("--quick", action="store_true", help="a smoke test: minute shapes, one round")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "rollout.json")
    return parser.parse_args(argv)


def plan(words: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the run."""
    if words.quick:
        return {"shape": "quick", "repeats": 1, "group": 4, "frames": 4, "side": (56, 84), "completion": 4}
    sizes = {"shape": words.model, "repeats": words.repeats, "completion": words.completion}
    return {**sizes, "group": 8, "frames": 16, "side": (252, 392)}


def main(argv: Sequence[str] | None = None) -> int:
    words = parse(argv)
    sizes = plan(words)
    frames, (height, width) = sizes["frames"], sizes["side"]
    if words.threads:
        torch.set_num_threads(words.threads)
    before = environment(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        clip, path = Path(name) / "clip.mp4", Path(name) / "student"
        write_clip(clip, frames, width, height)
        dtype = "bfloat16" if words.device == "cuda" else "float32"
        student = build(path, sizes["shape"], dtype=dtype, device=words.device)
        bench = Bench(path, clip, words, sizes)
        print(f"{student['parameters'] / 1e6:.1f} M parameters, prompt {bench.prompt.num_tokens} tokens")
        rounds = measure(bench, sizes["repeats"])
        repaired = {
            task: [bench.encoder.encode(view).num_tokens for view in views]
            for task, views in bench.repairs.items()
        }
    tasks = summary(rounds, student)
    missed = [
        f"group.{key} = {tasks['group'][key]:.2f} (target {bound:g})"
        for key, bound in TARGETS.items()
        if tasks["group"][key] < bound and not words.quick and words.device == "cpu"
    ]
    report = {
        "bench": "rollout",
        "device": words.device if words.device == "cpu" else torch.cuda.get_device_name(),
        "group_size": sizes["group"],
        "frames": frames,
        "visual_tokens": frames // 2 * height * width // 28**2,
        "prompt_tokens": bench.prompt.num_tokens,
        "repaired_prompt_tokens": repaired,
        "completion_tokens": sizes["completion"],
        "threads": torch.get_num_threads(),
        "student": student,
        "targets": TARGETS,
        "missed_targets": missed,
        "environment": {**before, "load_1min_after": round(os.getloadavg()[0], 2)},
        "tasks": tasks,
        "rounds": rounds,
    }
    show(tasks)
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("missed: " + "; ".join(missed) if missed else "all targets held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
