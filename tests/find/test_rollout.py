"""The find door returns exactly the group it was asked for, or says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ffr.find import Sampler, SamplerError, find
from ffr.types import Observation, Rollout

OBS = Observation(sample_uid="t/1", frames=(), prompt="Where?", view_id="view-1")


class FakeSampler:
    """Answers with `extra` rollouts too many, in `view`."""

    def __init__(self, *, extra: int = 0, view: str = "view-1", groups: int = 1) -> None:
        self.extra, self.view, self.groups = extra, view, groups
        self.calls: list[tuple[int, int, str]] = []

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        self.calls.append((len(observations), num, source))
        seen = replace(observations[0], view_id=self.view)
        return [[Rollout(seen, f"{i}", source=source) for i in range(num + self.extra)]] * self.groups


def test_group_has_the_asked_size_in_one_call() -> None:
    sampler = FakeSampler()
    protocol: Sampler = sampler
    rollouts = asyncio.run(find(OBS, protocol, group_size=8))
    assert [rollout.text for rollout in rollouts] == [str(i) for i in range(8)]
    assert sampler.calls == [(1, 8, "policy")]


@pytest.mark.parametrize(
    ("sampler", "part"),
    [
        (FakeSampler(extra=-1), "7 rollouts instead of 8"),
        (FakeSampler(extra=1), "9 rollouts instead of 8"),
        (FakeSampler(groups=2), "2 groups"),
        (FakeSampler(view="other"), "sampled in view other"),
    ],
)
def test_broken_samplers_are_named(sampler: FakeSampler, part: str) -> None:
    with pytest.raises(SamplerError, match=part):
        asyncio.run(find(OBS, sampler, group_size=8))


def test_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size"):
        asyncio.run(find(OBS, FakeSampler(), group_size=0))
