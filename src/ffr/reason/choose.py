"""Which rollout of a slot enters the update (FFR eq. 7, arXiv 2604.16243)."""

from __future__ import annotations

from collections.abc import Sequence

from ffr.types import Repair, RepairStatus, Rollout

_ANSWERED = (RepairStatus.REPAIRED, RepairStatus.STILL_WRONG)


def choose(first: Rollout, repair: Repair | None) -> Rollout:
    """Pick the rollout of one slot that is scored and trained.

        chosen_i = tau_i    if z_i = 1 (no repair was asked for), or no repair was possible
                   tau*_i   otherwise, right or wrong

    Source: FFR eq. 7. The authors' release has no counterpart: it keeps the failed tau_i and only
    overwrites its scalar reward.

    Args:
        first: tau_i, sampled under x.
        repair: what became of it; None if the first pass was right or nothing was asked.

    Returns:
        The repaired rollout if the student answered again (`repaired` or `still_wrong`), else `first`:
        a teacher that is down, a leak, or a spent budget turns the slot into plain GRPO.

    Raises:
        ValueError: The repaired rollout answers another sample or does not carry a patched observation;
            its ratio would be taken under the wrong view.
    """
    if repair is None or repair.rollout is None or repair.status not in _ANSWERED:
        return first
    again = repair.rollout
    if again.observation.sample_uid != first.observation.sample_uid:
        raise ValueError(
            f"repair of {first.observation.sample_uid!r} answers {again.observation.sample_uid!r}; "
            "pair each repair with the rollout it came from"
        )
    if not again.observation.patched:
        raise ValueError(
            f"repair of {first.observation.sample_uid!r} carries an un-patched observation; "
            "sample it under apply_patch(obs, patch)"
        )
    return again


def best_of_group(rewards_G: Sequence[float], patched_G: Sequence[bool]) -> int:
    """Index of the one rollout that `chosen = "best_of_group"` trains.

        argmax_i (R_i, not patched_i), the lowest index among equals

    Source: FFR appendix D.2: the highest reward of the group, and among equals one that succeeded without
    the teacher. It disagrees with eq. 7, which keeps all G slots; the released code does neither.

    Args:
        rewards_G: R_i of the chosen rollouts.
        patched_G: True where the chosen rollout saw a patch.

    Returns:
        A 0-based index.

    Raises:
        ValueError: The group is empty or the lengths differ.
    """
    if not rewards_G or len(rewards_G) != len(patched_G):
        raise ValueError(
            f"best_of_group needs one patched flag per reward, got {len(rewards_G)} rewards and "
            f"{len(patched_G)} flags"
        )
    return max(range(len(rewards_G)), key=lambda i: (rewards_G[i], not patched_G[i], -i))
