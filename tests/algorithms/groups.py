"""Small rollout groups made by hand, for the tests of this room."""

from collections.abc import Sequence
from pathlib import Path

from ffr.reason import choose
from ffr.types import (
    Observation,
    ProblemType,
    Repair,
    RepairStatus,
    Rollout,
    RolloutGroup,
    Sample,
    Verdict,
)

SAMPLE = Sample(
    uid="toy/1",
    question="Where?",
    answer="B",
    problem_type=ProblemType.MULTIPLE_CHOICE,
    video=Path("toy.mp4"),
)
X = Observation(sample_uid="toy/1", frames=(), prompt="Where?", view_id="x")


def patched(index: int) -> Observation:
    return Observation(
        sample_uid="toy/1",
        frames=(),
        prompt="Where?",
        view_id=f"x+c{index}",
        patch_text="Look at frames 3-5.",
    )


def verdict(correct: bool, score: float | None = None) -> Verdict:
    return Verdict(
        score=float(correct) if score is None else score,
        correct=correct,
        extracted="",
        rule="test",
        format_score=1.0,
    )


def rollout(observation: Observation, tokens: Sequence[int], logprob: float = -1.0) -> Rollout:
    return Rollout(
        observation=observation,
        text="",
        token_ids=tuple(tokens),
        logprobs=(logprob,) * len(tokens),
        source="repaired" if observation.patched else "policy",
    )


def make_group(kinds: str) -> RolloutGroup:
    """One slot per letter: `r` right, `o` repaired and right, `f` repaired and wrong, `l` leaked.

    First pass tokens are (1, i), repaired ones (2, i, 3).
    """
    firsts = tuple(rollout(X, (1, i)) for i in range(len(kinds)))
    repairs: list[Repair | None] = []
    for i, kind in enumerate(kinds):
        if kind == "r":
            repairs.append(None)
        elif kind == "l":
            repairs.append(Repair(status=RepairStatus.LEAKED))
        else:
            status = RepairStatus.REPAIRED if kind == "o" else RepairStatus.STILL_WRONG
            repairs.append(
                Repair(
                    status=status, rollout=rollout(patched(i), (2, i, 3), -0.5), verdict=verdict(kind == "o")
                )
            )
    return RolloutGroup(
        sample=SAMPLE,
        first_G=firsts,
        first_verdicts_G=tuple(verdict(kind == "r") for kind in kinds),
        repairs_G=tuple(repairs),
        chosen_G=tuple(choose(f, r) for f, r in zip(firsts, repairs, strict=True)),
        chosen_verdicts_G=tuple(verdict(kind in "ro") for kind in kinds),
    )
