"""One GRPO optimiser step on the same rollouts: group in one sequence, row by row, and stock TRL.

    python bench/train_step.py
    python bench/train_step.py --quick
    python bench/train_step.py --device cuda --model 7b --lora-rank 64 --completions 256 1024

A step is: score with the old policy and with the reference, forward and backward, clip, AdamW. Generation is
not part of it; the completions are given. Variants, each in a process of its own, take turns within a round:

    shared               one sequence for the group (the default)
    unshared             model.shared_prefix = false, the group in one padded batch
    unshared_row_by_row  the same, one rollout a pass with gradient accumulation (on request)
    stock_trl            TRL's GRPOTrainer with the same arguments and its frames as images: TRL trains blind
                         on video, and an image fills two temporal patches, so a frame costs twice the tokens

Ratios are taken within a round and the median is reported, of wall time and of CPU time (which neighbours on
the machine disturb less). Wall time leaves out what TRL spends on processing pixels and ours on encoding; CPU
time does not. Memory is the highest resident size of the process over all steps, less its size with the
weights loaded (CUDA: of allocated memory). Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from bench.machine import environment  # noqa: E402
from bench.students import build  # noqa: E402

MARK = "@train_step "
VARIANTS = ("shared", "unshared", "unshared_row_by_row", "stock_trl")
PASSES = 3
"""Old policy, reference, policy."""
PACKAGES = ("find-fix-reason", "torch", "transformers", "trl", "accelerate", "numpy")
TARGETS = {
    "shared_vs_unshared_at_128": 3.0,
    "shared_vs_unshared_at_256": 2.5,
    "shared_vs_stock_trl": 4.0,
    "peak_memory_shared_of_unshared": 0.5,
}
"""Smallest speed-ups, and the largest share of memory, on CPU."""
GPU_NOTE = (
    "--device cuda (bfloat16, LoRA, FlexAttention; shapes 3b and 7b) is written and was not run: "
    "no GPU was at hand"
)


class Worker:
    """A variant in its own process."""

    def __init__(self, spec: dict[str, Any], log: Path) -> None:
        self.name = spec["variant"]
        self._log = log.open("w+", encoding="utf-8")
        command = [sys.executable, str(ROOT / "bench" / "train_step_worker.py"), json.dumps(spec)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def ready(self) -> int:
        """Waits until the weights are loaded; bytes resident then."""
        return self._read()["resident_bytes"]

    def step(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
        self._log.seek(0)
        raise RuntimeError(f"variant {self.name} ended:\n{self._log.read()[-4000:]}")


def write_clip(path: Path, frames: int, width: int, height: int) -> None:
    """Coloured noise in blocks of 14 px, one frame a second."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            blocks = rng.integers(0, 256, (height // 14, width // 14, 3), dtype=np.uint8)
            pixels = np.kron(blocks, np.ones((14, 14, 1), dtype=np.uint8))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def measure(specs: list[dict[str, Any]], folder: Path, repeats: int) -> dict[str, Any]:
    """One warm-up step of each variant, then `repeats` rounds in which each takes one step."""
    workers = [Worker(spec, folder / f"{spec['variant']}.log") for spec in specs]
    resident = {worker.name: worker.ready() for worker in workers}
    warm_up = {worker.name: worker.step() for worker in workers}
    rounds: list[dict[str, Any]] = []
    for k in range(repeats):
        order = workers[k % len(workers) :] + workers[: k % len(workers)]
        rounds.append({worker.name: worker.step() for worker in order})
        times = ", ".join(f"{name} {run['step_s']:.2f} s" for name, run in sorted(rounds[-1].items()))
        print(f"  round {k + 1}: {times}", flush=True)
    for worker in workers:
        worker.close()
    return {"resident_bytes_with_weights": resident, "warm_up": warm_up, "rounds": rounds}


def summary(found: dict[str, Any], spec: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    """Medians, ratios, tokens and the limit of one completion length."""
    rounds, names = found["rounds"], list(found["warm_up"])
    last, group, m = rounds[-1], spec["group_size"], spec["completion"]
    per_pass = {name: last[name]["language_positions"] // PASSES for name in names}
    patches = {name: last[name]["vision_patches"] / PASSES for name in names}
    seconds = {name: statistics.median(r[name]["step_s"] for r in rounds) for name in names}
    memory = {name: max(r[name]["peak_memory_bytes"] for r in rounds) for name in names}
    n = per_pass["unshared"] // group - m
    out: dict[str, Any] = {
        "completion_tokens": m,
        "prompt_tokens": n,
        "passes": PASSES,
        "language_positions_per_pass": per_pass,
        "vision_patches_per_pass": patches,
        "median_step_s": seconds,
        "peak_memory_bytes": memory,
        "completion_tokens_per_s": {name: group * m / s for name, s in seconds.items()},
        "tflop_per_s": {
            name: tflop(student, spec, per_pass[name], patches[name]) / seconds[name] for name in names
        },
        "token_limit_shared_vs_unshared": group * (n + m) / (n + group * m),
    }
    if peak := spec.get("peak_tflops"):
        out["model_flops_utilisation"] = {name: rate / peak for name, rate in out["tflop_per_s"].items()}
    for other in names:
        if other != "shared":
            ratios = [r[other]["step_s"] / r["shared"]["step_s"] for r in rounds]
            out[f"shared_vs_{other}"] = statistics.median(ratios)
            out[f"shared_vs_{other}_runs"] = ratios
            cpu = [r[other]["cpu_s"] / r["shared"]["cpu_s"] for r in rounds]
            out[f"cpu_time_shared_vs_{other}"] = statistics.median(cpu)
            out[f"peak_memory_shared_of_{other}"] = memory["shared"] / memory[other]
            out[f"positions_{other}_of_shared"] = per_pass[other] / per_pass["shared"]
    work = {name: tflop(student, spec, per_pass[name], patches[name]) for name in names}
    out["work_limit_shared_vs_unshared"] = work["unshared"] / work["shared"]
    out["fraction_of_token_limit"] = out["shared_vs_unshared"] / out["token_limit_shared_vs_unshared"]
    return {**out, **found}


def tflop(student: dict[str, Any], spec: dict[str, Any], positions: float, patches: float) -> float:
    """Floating-point work of a step by the weights it meets (2 a weight and token; attention not counted)."""
    forward = 2 * (student["layer_parameters"] * positions + student["vision_parameters"] * patches)
    backward = 1 if spec["lora_rank"] else 2  # frozen weights need no gradient of their own
    return (PASSES + backward) * forward / 1e12


def missed(lengths: dict[str, Any]) -> list[str]:
    """Targets that the medians do not reach."""
    out: list[str] = []
    for m, found in lengths.items():
        for name, bound in TARGETS.items():
            key, _, at = name.partition("_at_")
            value = found.get(key)
            if value is None or (at and at != m):
                continue
            if value > bound if key.startswith("peak") else value < bound:
                out.append(f"{key} = {value:.2f} at {m} (target {bound:g})")
    return out


def show(found: dict[str, Any]) -> None:
    """One completion length on the terminal."""
    print(f"completion {found['completion_tokens']}, prompt {found['prompt_tokens']} tokens:")
    for name, seconds in found["median_step_s"].items():
        print(
            f"  {name:20} {seconds:7.2f} s  {found['language_positions_per_pass'][name]:6d} positions and "
            f"{found['vision_patches_per_pass'][name]:7.0f} patches a pass  "
            f"{found['peak_memory_bytes'][name] / 2**20:7.0f} MiB"
        )
    for key in [k for k in found if k.startswith("shared_vs") and not k.endswith("_runs")]:
        other = key.removeprefix("shared_vs_")
        memory = 1 / found[f"peak_memory_shared_of_{other}"]
        cpu = found[f"cpu_time_{key}"]
        print(f"  {other}: {found[key]:.2f}x the time ({cpu:.2f}x of CPU), {memory:.2f}x the memory")
    print(
        f"  limit of shared against unshared by tokens {found['token_limit_shared_vs_unshared']:.2f}x, "
        f"reached {found['fraction_of_token_limit']:.0%}; with the vision tower's part, the same in both, "
        f"{found['work_limit_shared_vs_unshared']:.2f}x"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--completions", type=int, nargs="+", default=[128, 256])
    parser.add_argument(
        "--variants", nargs="+", default=["shared", "unshared", "stock_trl"], choices=VARIANTS
    )
    parser.add_argument("--threads", type=int, default=0, help="of a variant's process; 0: torch's choice")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", choices=("20m", "3b", "7b"), default="20m")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--peak-tflops", type=float, help="of the device, for its utilisation")
    parser.add_argument("--quick", action="store_true", help="a smoke test: minute shapes, one round")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "train_step.json")
    return parser.parse_args()


def plan(words: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the run."""
    if words.quick:
        return {"shape": "quick", "repeats": 1, "group": 4, "frames": 4, "side": (56, 84), "lengths": [8]}
    sizes = {"shape": words.model, "repeats": words.repeats, "lengths": words.completions}
    return {**sizes, "group": 8, "frames": 16, "side": (252, 392)}


def main() -> int:
    words = parse()
    sizes = plan(words)
    group, frames, (height, width) = sizes["group"], sizes["frames"], sizes["side"]
    variants = list(dict.fromkeys(["shared", "unshared", *words.variants]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip, path = folder / "clip.mp4", folder / "student"
        write_clip(clip, frames, width, height)
        student = build(
            path,
            sizes["shape"],
            dtype="bfloat16" if words.device == "cuda" else "float32",
            device=words.device,
        )
        spec = {
            "student": str(path), "clip": str(clip), "output": str(folder / "run"), "device": words.device,
            "group_size": group, "frames": frames, "lora_rank": words.lora_rank,
            "peak_tflops": words.peak_tflops, "threads": 1 if words.quick else words.threads,
        }  # fmt: skip
        report: dict[str, Any] = {
            "bench": "train_step",
            "step": "old-policy and reference scoring, forward, backward, AdamW; completions given",
            "device": words.device,
            "group_size": group,
            "frames": frames,
            "visual_tokens": frames // 2 * height * width // 28**2,
            "student": student,
            "targets": TARGETS,
            "memory": "highest resident size of the variant's process less that with the weights loaded",
            "gpu": GPU_NOTE if words.device == "cpu" else environment_gpu(),
            "threads": spec["threads"] or os.cpu_count(),
            "environment": environment(PACKAGES),
            "missed_targets": [],
            "lengths": {},
        }
        parameters = student["parameters"] / 1e6
        print(f"{parameters:.1f} M parameters, {report['visual_tokens']} visual tokens, G {group}")
        for m in sizes["lengths"]:
            specs = [{**spec, "variant": variant, "completion": m} for variant in variants]
            found = measure(specs, folder, sizes["repeats"])
            report["lengths"][str(m)] = summary(found, specs[0], student)
            show(report["lengths"][str(m)])
            if not words.quick and words.device == "cpu":
                report["missed_targets"] = missed(report["lengths"])
            words.output.parent.mkdir(parents=True, exist_ok=True)
            words.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        "missed: " + "; ".join(report["missed_targets"]) if report["missed_targets"] else "all targets held"
    )
    return 1 if report["missed_targets"] else 0


def environment_gpu() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    sys.exit(main())
