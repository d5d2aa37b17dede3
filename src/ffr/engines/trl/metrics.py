"""Sums of one step, joined over ranks, and the named metrics made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from ffr.engines.clock import PHASES
from ffr.engines.trl.flow import FlowResult, Question
from ffr.types import RepairStatus

_SECONDS = tuple(PHASES)
_PASSES = ("generate", "score", "update")
_TEACHER = (
    "teacher_calls", "teacher_ok", "leaks", "reasks", "cached", "tool_calls", "images", "prompt_tokens",
    "completion_tokens",
)  # fmt: skip
_ROLLOUT_SUMS = (
    "rollouts", "first_correct", "format", "length_stops", "asked", "shown", "leaked_once", "correct",
    "reward", "taxed", "groups", "zero_groups", "skipped", "patched", "patched_advantage", "assisted",
    "assisted_negative", "completion_tokens", "prompt_tokens", "patched_tokens", "sampled_tokens",
    "right_groups", "wrong_groups", "zero_rollouts",
)  # fmt: skip
_UPDATE_SUMS = (
    "kl", "clip_fraction", "ratio_mean", "ratio_square", "policy_loss", "update_tokens", "micro_batches",
    "mismatch", "mismatch_tokens", "mismatch_cut",
)  # fmt: skip
SUM_NAMES: tuple[str, ...] = (
    *_ROLLOUT_SUMS,
    *_UPDATE_SUMS,
    *(f"status/{status.value}" for status in RepairStatus),
    *(f"teacher/{name}" for name in _TEACHER),
    *(f"seconds/{name}" for name in _SECONDS),
    *(f"lm_tokens/{name}" for name in _PASSES),
    *(f"flops/{name}" for name in (*_PASSES, "vision")),
    "ranks",
)
"""Everything that is added over ranks, in the order in which it travels."""


def flow_sums(result: FlowResult) -> Counter[str]:
    """Sums of one rank's batch of questions."""
    sums: Counter[str] = Counter()
    for question in result.questions:
        _add_question(sums, question)
    for name in _TEACHER:
        sums[f"teacher/{name}"] += result.fix_counts[name]
    return sums


def _add_question(sums: Counter[str], question: Question) -> None:
    group, score = question.group, question.score
    if group is None or score is None:
        sums["skipped"] += 1
        return
    advantages, rewards = score.advantages_G.tolist(), score.rewards_G.tolist()
    sums["groups"] += 1
    sums["zero_groups"] += not any(advantages)
    sums["zero_rollouts"] += advantages.count(0.0)
    right = [verdict.correct for verdict in group.chosen_verdicts_G]
    sums["right_groups"] += all(right)
    sums["wrong_groups"] += not any(right)
    sums["reward"] += sum(rewards)
    sums["taxed"] += sum(score.taxed_G)
    for g, first in enumerate(group.first_G):
        verdict, chosen, repair = group.first_verdicts_G[g], group.chosen_G[g], group.repairs_G[g]
        sums["rollouts"] += 1
        sums["first_correct"] += verdict.correct
        sums["format"] += verdict.format_score  # type: ignore[assignment]
        sums["length_stops"] += first.finish == "length"
        sums["sampled_tokens"] += first.num_tokens
        sums["correct"] += group.chosen_verdicts_G[g].correct
        sums["completion_tokens"] += chosen.num_tokens
        if repair is not None:
            sums[f"status/{repair.status.value}"] += 1
            sums["asked"] += repair.status is not RepairStatus.SKIPPED
            sums["shown"] += repair.rollout is not None
            sums["leaked_once"] += repair.num_leaks > 0
            sums["sampled_tokens"] += repair.rollout.num_tokens if repair.rollout is not None else 0
        if group.patched_G[g]:
            assisted = group.chosen_verdicts_G[g].correct
            sums["patched"] += 1
            sums["patched_tokens"] += chosen.num_tokens
            sums["patched_advantage"] += advantages[g]
            sums["assisted"] += assisted
            sums["assisted_negative"] += assisted and advantages[g] < 0


def named_metrics(sums: Mapping[str, float], peaks: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one step from the sums of all ranks; a share of nothing is 0.

    Args:
        sums: values for `SUM_NAMES`.
        peaks: largest values of all ranks, for `telemetry.PEAKS`.
    """

    def share(part: str, whole: str) -> float:
        return sums[part] / sums[whole] if sums[whole] else 0.0

    out: dict[str, float] = {}
    if sums["rollouts"] or sums["skipped"]:
        out |= {
            "find/first_pass_accuracy": share("first_correct", "rollouts"),
            "find/format_rate": share("format", "rollouts"),
            "find/truncated_rate": share("length_stops", "rollouts"),
            "find/skipped_groups": sums["skipped"],
            "fix/intervention_rate": share("asked", "rollouts"),
            "fix/shown_rate": share("shown", "rollouts"),
            "fix/repair_rate": share("status/repaired", "asked"),
            "fix/leak_rate": share("leaked_once", "asked"),
            "reason/final_accuracy": share("correct", "rollouts"),
            "reason/reward_mean": share("reward", "rollouts"),
            "reason/taxed_rate": share("taxed", "rollouts"),
            "reason/advantage_mean_repaired": share("patched_advantage", "patched"),
            "reason/repaired_negative_share": share("assisted_negative", "assisted"),
            "reason/zero_advantage_groups": share("zero_groups", "groups"),
            "reason/zero_advantage_share": share("zero_rollouts", "rollouts"),
            "group/all_right": share("right_groups", "groups"),
            "group/all_wrong": share("wrong_groups", "groups"),
            "tokens/completion": sums["completion_tokens"],
            "tokens/prompt": sums["prompt_tokens"],
            "tokens/completion_mean": share("completion_tokens", "rollouts"),
            "tokens/patched_share": share("patched_tokens", "completion_tokens"),
        }
        out |= {f"fix/{status.value}": sums[f"status/{status.value}"] for status in RepairStatus}
        out |= {f"fix/{name}": sums[f"teacher/{name}"] for name in _TEACHER}
    out |= {
        "train/kl": share("kl", "update_tokens"),
        "train/clip_fraction": share("clip_fraction", "update_tokens"),
        "train/ratio_mean": share("ratio_mean", "update_tokens") if sums["update_tokens"] else 1.0,
    }
    return out | _agreement(sums, peaks) | _cost(sums, peaks)


def _agreement(sums: Mapping[str, float], peaks: Mapping[str, float]) -> dict[str, float]:
    """Importance ratios, and the sampler's log-probabilities against the trainer's."""
    out: dict[str, float] = {}
    if tokens := sums["update_tokens"]:
        mean = sums["ratio_mean"] / tokens
        out |= {
            "policy/ratio_std": math.sqrt(max(0.0, sums["ratio_square"] / tokens - mean**2)),
            "policy/ratio_max": math.exp(min(peaks["ratio"], 700.0)),
            "policy/ratio_min": math.exp(-min(peaks["ratio_inverse"], 700.0)),
        }
    if tokens := sums["mismatch_tokens"]:
        out["sampler/logprob_mismatch"] = sums["mismatch"] / tokens
        out["sampler/logprob_mismatch_max"] = peaks["mismatch"]
        out["sampler/cut_share"] = sums["mismatch_cut"] / tokens
    return out


def _cost(sums: Mapping[str, float], peaks: Mapping[str, float]) -> dict[str, float]:
    """Seconds (means over ranks), speeds of all ranks together, memory of the fullest one."""
    ranks = sums["ranks"] or 1.0
    seconds = {name: sums[f"seconds/{name}"] / ranks for name in _SECONDS}
    step_s = sum(seconds.values())

    def per_second(amount: float, phase: str) -> dict[str, float]:
        return {f"speed/{phase}_tok_s": amount / seconds[phase]} if amount and seconds[phase] else {}

    out = {f"time/{name}_s": value for name, value in seconds.items()} | {"time/step_s": step_s}
    out |= per_second(sums["sampled_tokens"], "generate")
    out |= per_second(sums["lm_tokens/score"], "score") | per_second(sums["lm_tokens/update"], "update")
    if step_s:
        out |= {
            "time/teacher_share": seconds["fix"] / step_s,
            "time/vision_share": seconds["vision"] / step_s,
            "speed/step_tok_s": sums["update_tokens"] / step_s,
        }
    out["memory/peak_gib"] = peaks["memory_bytes"] / 2**30
    if peaks["device_bytes"]:
        out["memory/device_gib"] = peaks["device_bytes"] / 2**30
    if peak := peaks["peak_flops"] * ranks:
        for name in (*_PASSES, "vision"):
            if seconds[name] and sums[f"flops/{name}"]:
                out[f"mfu/{name}"] = sums[f"flops/{name}"] / (peak * seconds[name])
        if step_s:
            out["mfu/step"] = sum(sums[f"flops/{name}"] for name in (*_PASSES, "vision")) / (peak * step_s)
    return out
