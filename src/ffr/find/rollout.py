"""The find door: a group of rollouts for one question (FFR section 3.2, first stage)."""

from __future__ import annotations

from ffr.find.sampler import Sampler
from ffr.types import Observation, Rollout


class SamplerError(RuntimeError):
    """A back end that broke the sampler protocol; the message says how.

    Example:
        >>> str(SamplerError("3 rollouts instead of 8"))
        '3 rollouts instead of 8'
    """


async def find(obs: Observation, sampler: Sampler, *, group_size: int) -> list[Rollout]:
    """Sample the G first-pass rollouts of one question, tau_i ~ pi_old(. | x).

    Args:
        obs: x, the unpatched observation.
        sampler: The policy.
        group_size: G.

    Returns:
        Exactly `group_size` rollouts, each carrying an observation with the view of `obs`.

    Raises:
        SamplerError: The sampler returned another number of groups or rollouts, or rollouts of another
            observation: training on those would silently use a wrong ratio.
    """
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}")
    groups = await sampler.sample([obs], num=group_size)
    if len(groups) != 1:
        raise SamplerError(f"sampler returned {len(groups)} groups for 1 observation of {obs.sample_uid}")
    rollouts = list(groups[0])
    if len(rollouts) != group_size:
        raise SamplerError(
            f"sampler returned {len(rollouts)} rollouts instead of {group_size} for {obs.sample_uid}"
        )
    for index, rollout in enumerate(rollouts):
        if rollout.observation.view_id != obs.view_id:
            raise SamplerError(
                f"rollout {index} of {obs.sample_uid} was sampled in view "
                f"{rollout.observation.view_id[:12]}, not in {obs.view_id[:12]}"
            )
    return rollouts
