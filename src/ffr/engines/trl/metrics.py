"""Sums of one step, joined over ranks, and the named metrics made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ffr.engines.trl.flow import FlowResult, Question
from ffr.types import RepairStatus

_SECONDS = ("observe", "generate", "verify", "fix", "score", "update")
_TEACHER = (
    "teacher_calls", "teacher_ok", "leaks", "reasks", "cached", "tool_calls", "images", "prompt_tokens",
    "completion_tokens",
)  # fmt: skip
_ROLLOUT_SUMS = (
    "rollouts", "first_correct", "format", "length_stops", "asked", "shown", "leaked_once", "correct",
    "reward", "taxed", "groups", "zero_groups", "skipped", "patched", "patched_advantage", "assisted",
    "assisted_negative", "completion_tokens", "prompt_tokens", "patched_tokens",
)  # fmt: skip
_UPDATE_SUMS = ("kl", "clip_fraction", "ratio_mean", "policy_loss", "update_tokens", "micro_batches")
SUM_NAMES: tuple[str, ...] = (
    *_ROLLOUT_SUMS,
    *_UPDATE_SUMS,
    *(f"status/{status.value}" for status in RepairStatus),
    *(f"teacher/{name}" for name in _TEACHER),
    *(f"seconds/{name}" for name in _SECONDS),
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
    for name, seconds in result.seconds.items():
        sums[f"seconds/{name}"] += seconds
    return sums


def _add_question(sums: Counter[str], question: Question) -> None:
    group, score = question.group, question.score
    if group is None or score is None:
        sums["skipped"] += 1
        return
    advantages, rewards = score.advantages_G.tolist(), score.rewards_G.tolist()
    sums["groups"] += 1
    sums["zero_groups"] += not any(advantages)
    sums["reward"] += sum(rewards)
    sums["taxed"] += sum(score.taxed_G)
    for g, first in enumerate(group.first_G):
        verdict, chosen, repair = group.first_verdicts_G[g], group.chosen_G[g], group.repairs_G[g]
        sums["rollouts"] += 1
        sums["first_correct"] += verdict.correct
        sums["format"] += verdict.format_score  # type: ignore[assignment]
        sums["length_stops"] += first.finish == "length"
        sums["correct"] += group.chosen_verdicts_G[g].correct
        sums["completion_tokens"] += chosen.num_tokens
        if repair is not None:
            sums[f"status/{repair.status.value}"] += 1
            sums["asked"] += repair.status is not RepairStatus.SKIPPED
            sums["shown"] += repair.rollout is not None
            sums["leaked_once"] += repair.num_leaks > 0
        if group.patched_G[g]:
            assisted = group.chosen_verdicts_G[g].correct
            sums["patched"] += 1
            sums["patched_tokens"] += chosen.num_tokens
            sums["patched_advantage"] += advantages[g]
            sums["assisted"] += assisted
            sums["assisted_negative"] += assisted and advantages[g] < 0


def named_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics of one step from the sums of all ranks; a share of nothing is 0.

    Args:
        sums: values for `SUM_NAMES`.
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
    out |= {f"time/{name}_s": share(f"seconds/{name}", "ranks") for name in _SECONDS}
    return out
