"""A run directory as training would leave it: drawn clips, groups with every status, metrics that move.

`python -m tests.report.fake_run DIR` writes one and renders its page, for looking at the page by hand.
"""

import hashlib
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ffr.report import RunWriter
from ffr.types import (
    Diagnosis,
    ErrorType,
    EvidencePatch,
    Frame,
    LeakFinding,
    LeakReport,
    Observation,
    Option,
    ProblemType,
    Repair,
    RepairStatus,
    Rollout,
    RolloutGroup,
    Sample,
    SpatialRegion,
    TeacherCost,
    ToolCall,
    Trace,
    Verdict,
)

QUESTIONS = (
    ("counting", "How many times does the ball touch the right wall?", ("one", "two", "three", "four"), "B"),
    ("dynamics", "Which way does the cube move after the flash?", ("left", "right", "up", "down"), "A"),
    (
        "temporal",
        "What happens first?",
        ("the ball glows", "the cone falls", "the cube turns", "nothing"),
        "A",
    ),
    ("attribute", "What colour is the ball while it glows?", ("red", "blue", "green", "yellow"), "D"),
)
HOSTILE = (
    "</script><script>window.pwned=1</script><img src=http://evil.example/x onerror=alert(1)> {{ 7*7 }} {% x"
)
COLOURS = ((214, 76, 60), (70, 116, 214), (72, 168, 96), (226, 184, 62))


def clip(seed: int, num_frames: int = 16, size: int = 84) -> tuple[Frame, ...]:
    """A ball that crosses a floor and glows for a while."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[0:size, 0:size]
    frames = []
    speed, phase = rng.uniform(1.5, 3.0), rng.uniform(0, math.tau)
    for i in range(num_frames):
        floor = np.stack([150 + xx * 0.5, 140 + yy * 0.6, 150 + 0 * xx], axis=-1)
        cx = size * (0.5 + 0.38 * math.sin(phase + i * speed / 4))
        cy = size * (0.55 + 0.25 * math.cos(phase + i * speed / 7))
        ball = (xx - cx) ** 2 + (yy - cy) ** 2
        if num_frames // 3 <= i < num_frames // 2:
            floor[ball < 300] = (255, 244, 190)
        floor[ball < 110] = COLOURS[seed % 4]
        floor[8:22, 60 : 60 + 14] = COLOURS[(seed + 1) % 4]
        pixels = floor.clip(0, 255).astype(np.uint8)
        sha = hashlib.sha256(pixels.tobytes()).hexdigest()
        frames.append(Frame(i + 1, i * 4, round(i * 0.27, 3), sha, size, size, pixels))
    return tuple(frames)


def sample(seed: int, *, hostile: bool = False) -> Sample:
    kind, question, texts, answer = QUESTIONS[seed % len(QUESTIONS)]
    options = tuple(Option(label, text) for label, text in zip("ABCD", texts, strict=True))
    if hostile:
        question, options = question + HOSTILE, (replace(options[0], text=HOSTILE), *options[1:])
    return Sample(
        uid=f"micro/{seed}",
        question=question,
        answer=answer,
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=Path(f"clips/{seed}.mp4"),
        options=options,
        source="micro",
        scenario=kind,
    )


def patch(seed: int) -> EvidencePatch:
    start = 3 + seed % 6
    kinds = list(ErrorType)
    return EvidencePatch(
        error_types=(kinds[seed % 7],) if seed % 3 else (kinds[seed % 7], kinds[(seed + 2) % 7]),
        key_frames=((start, start + 3),) if seed % 4 else ((2, 3), (start + 3, start + 6)),
        temporal_markers=("just after the flash",) if seed % 2 else (),
        spatial_regions=(SpatialRegion((start, start + 3), (0.5, 0.3, 0.97, 0.8)),),
        guidance="Follow the ball through these frames and note each time it reaches the edge.",
    )


def rendered(p: EvidencePatch) -> str:
    ranges = ", ".join(f"{a}-{b}" for a, b in p.key_frames)
    region = p.spatial_regions[0]
    return (
        f"Look again at frames {ranges}.\n"
        + "".join(f"When: {m}.\n" for m in p.temporal_markers)
        + f"Region in frames {region.frames[0]}-{region.frames[1]}: {region.box}.\nHint: {p.guidance}"
    )


def answer_text(letter: str, *, hostile: bool = False) -> str:
    thought = "The ball starts on the left, it moves to the right side and comes back in the later frames."
    return f"<think>{thought}{HOSTILE if hostile else ''}</think>\n<answer>{letter}</answer>"


def verdict(right: bool, letter: str) -> Verdict:
    reason = "" if right else f"answered {letter}"
    return Verdict(float(right), right, letter, "mcq.letter", 1.0, reason)


def repair(seed: int, obs: Observation, status: RepairStatus, gold: str, *, hostile: bool = False) -> Repair:
    cost = TeacherCost(3, 2140, 131, 8, 2.31, seed % 5 == 0)
    if status == RepairStatus.TEACHER_FAILED:
        return Repair(
            status,
            Diagnosis(None, "timeout", "no reply in 60 s after 3 attempts", cost=cost),
            detail="timeout",
        )
    if status == RepairStatus.OVER_BUDGET:
        return Repair(status, detail="step budget of 8 calls spent")
    p = patch(seed)
    leaked = status == RepairStatus.LEAKED
    if leaked:
        p = replace(p, guidance=f"The answer is option {gold}." + (HOSTILE if hostile else ""))
    calls = (
        ToolCall("get_frames", {"start": p.key_frames[0][0], "end": p.key_frames[0][1]}, "4 frames", True, 4),
        ToolCall("zoom_region", {"frame": 7, "box": [0.5, 0.3, 0.97, 0.8]}, "1 image", True, 1),
        ToolCall("get_segment", {"t0": 9.0, "t1": 2.0, "fps": 4}, "t1 must be after t0", False, 0),
    )
    reason = "guidance names option " + gold
    leak = LeakReport(
        (
            LeakFinding("schema", False),
            LeakFinding("lexical", leaked, "guidance" if leaked else "", reason if leaked else ""),
            LeakFinding("pinpoint", False),
        )
    )
    diagnosis = Diagnosis(p, tool_calls=calls, cost=cost)
    if leaked:
        return Repair(status, diagnosis, leak, num_leaks=2)
    text = rendered(p)
    view = replace(obs, patch_text=text, view_id=hashlib.sha256((obs.view_id + text).encode()).hexdigest())
    right = status == RepairStatus.REPAIRED
    letter = gold if right else "C"
    rollout = Rollout(
        view, answer_text(letter, hostile=hostile), (1, 2, 3), (-0.1, -0.4, -0.2), source="repaired"
    )
    return Repair(status, diagnosis, leak, rollout, verdict(right, letter), num_leaks=seed % 2)


def advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / max(len(rewards) - 1, 1))
    return tuple((r - mean) / (std + 1e-4) for r in rewards)


def trace(step: int, seed: int, statuses: Sequence[str], *, hostile: bool = False) -> Trace:
    """A trace whose slot i ends with `statuses[i]` (`right`, `wrong`, or a repair status)."""
    x = sample(seed, hostile=hostile)
    prompt = x.question + "\n" + "\n".join(f"{o.label}. {o.text}" for o in x.options)
    obs = Observation(x.uid, clip(seed), prompt, hashlib.sha256(x.uid.encode()).hexdigest(), duration_s=4.3)
    first, z, repairs, chosen, z2, rewards, taxed = [], [], [], [], [], [], []
    for i, status in enumerate(statuses):
        letter = x.answer if status == "right" else "C"
        rollout = Rollout(obs, answer_text(letter, hostile=hostile), tuple(range(i + 4)), (-0.3,) * (i + 4))
        first.append(rollout)
        z.append(verdict(status == "right", letter))
        fixed = None
        if status not in ("right", "wrong"):
            fixed = repair(seed + i, obs, RepairStatus(status), x.answer, hostile=hostile)
        repairs.append(fixed)
        second = fixed is not None and fixed.rollout is not None and fixed.verdict is not None
        chosen.append(fixed.rollout if second else rollout)
        z2.append(fixed.verdict if second else z[-1])
        taxed.append(status == "repaired")
        rewards.append(z2[-1].score + z2[-1].format_score - 0.3 * taxed[-1])
    group = RolloutGroup(x, tuple(first), tuple(z), tuple(repairs), tuple(chosen), tuple(z2))
    return Trace(step, group, tuple(rewards), advantages(rewards), tuple(taxed), "fake")


def statuses(rng: random.Random, skill: float, size: int = 8) -> list[str]:
    failed = ["repaired"] * 6 + ["still_wrong"] * 3 + ["leaked", "teacher_failed", "over_budget"]
    return ["right" if rng.random() < skill else rng.choice(failed) for _ in range(size)]


def write_run(run_dir: Path, *, num_steps: int = 40, trace_every: int = 2, hostile: bool = True) -> Path:
    rng = random.Random(7)
    writer = RunWriter(run_dir, {"train": {"algorithm": "ffr"}, "model": {"path": "micro-student"}})
    for step in range(num_steps):
        skill = 0.42 + 0.4 * step / num_steps
        first = skill + rng.uniform(-0.12, 0.12)
        fixed = 0.55 + 0.1 * step / num_steps + rng.uniform(-0.2, 0.2)
        writer.metrics(
            step,
            {
                "ffr/first_pass_accuracy": first,
                "ffr/intervention_rate": 1 - first,
                "ffr/repair_success_rate": fixed,
                "ffr/leaked": 0.02,
                "ffr/teacher_failed": 0.0,
                "ffr/final_accuracy": first + (1 - first) * fixed,
                "reward/rir": 1 + first + 0.7 * (1 - first) * fixed,
                "policy/kl_ref": 0.0002 * step,
            },
        )
        if step % trace_every == 0:
            found = [trace(step, 10 * step + k, statuses(rng, skill)) for k in range(2)]
            if step == 4 and hostile:
                found.append(
                    trace(step, 999, ["repaired", "leaked", "right", "teacher_failed"], hostile=True)
                )
            writer.traces(step, found)
    writer.finish({"steps": num_steps, "first_pass_accuracy": 0.8})
    return run_dir


if __name__ == "__main__":
    from ffr.report.page import render_page

    print(render_page(write_run(Path(sys.argv[1]))))
