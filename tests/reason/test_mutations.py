"""The golden tables must notice a wrong sign, a dropped mask, a wrong deviation: else they prove nothing."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest

from ffr.reason import advantage, kl, loss, ratio, reward
from tests.reason import goldens

Check = Callable[[Any], None]


def groups_with_reward(module: Any) -> None:
    goldens.check_groups(module, advantage)


def groups_with_advantage(module: Any) -> None:
    goldens.check_groups(reward, module)


MUTATIONS: list[tuple[str, Any, str, str, Check]] = [
    ("tax sign", reward, "- patch_tax * taxed", "+ patch_tax * taxed", goldens.check_reward),
    ("tax sign, groups", reward, "- patch_tax * taxed", "+ patch_tax * taxed", groups_with_reward),
    ("tax the unaided", reward, "& ~first_correct.bool()", "", goldens.check_reward),
    ("tax failures too", reward, "return assisted & success", "return assisted", groups_with_reward),
    ("no format reward", reward, "reward = outcome + format", "reward = outcome + 0", goldens.check_reward),
    ("population std", advantage, "rewards.shape[-1] - 1", "rewards.shape[-1]", goldens.check_advantage),
    ("eps 1e-8", advantage, "eps: float = 1e-4", "eps: float = 1e-8", goldens.check_advantage),
    ("advantage sign", advantage, "rewards - center", "center - rewards", goldens.check_advantage),
    (
        "first pass ignored",
        advantage,
        "return first_rewards_PG.double().mean",
        "return rewards.mean",
        groups_with_advantage,
    ),
    ("ratio upside down", ratio, ".exp()", ".neg().exp()", goldens.check_ratio),
    ("gamma lost", ratio, "- math.log(gamma)", "- math.log(2 * gamma)", goldens.check_shaping),
    (
        "correction upside down",
        ratio,
        "old - sampler, torch",
        "sampler - old, torch",
        goldens.check_sampler_correction,
    ),
    ("correction not truncated", ratio, "gap)).clamp(max=cap)", "gap))", goldens.check_sampler_correction),
    ("weights everywhere", ratio, "mask_BT.bool() & ~", "~", goldens.check_sampler_correction),
    (
        "weights lost",
        loss,
        "surrogate * _inside(token",
        "surrogate + 0 * _inside(token",
        goldens.check_weighted_loss,
    ),
    ("kl reversed", kl, "gap.expm1() - gap", "(-gap).expm1() + gap", goldens.check_kl),
    (
        "mask dropped",
        loss,
        "torch.where(mask, values_BT, torch.zeros_like(values_BT)).sum",
        "values_BT.sum",
        goldens.check_loss,
    ),
    ("clip the wrong way", loss, "torch.minimum(ratio_BT", "torch.maximum(ratio_BT", goldens.check_loss),
    ("no clip", loss, "clamp(1.0 - clip_eps, 1.0 + clip_eps)", "clone()", goldens.check_loss),
    ("objective sign", loss, "aggregate(-surrogate", "aggregate(surrogate", goldens.check_loss),
    ("kl sign", loss, "policy_loss + kl_beta", "policy_loss - kl_beta", goldens.check_loss),
]


def mutant(module: Any, old: str, new: str) -> types.ModuleType:
    """The module with one piece of its source replaced; fails if that piece is not there exactly once."""
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
    broken = types.ModuleType(module.__name__)
    exec(compile(source.replace(old, new), f"mutant of {module.__name__}", "exec"), broken.__dict__)
    return broken


@pytest.mark.parametrize(("name", "module", "old", "new", "check"), MUTATIONS, ids=[m[0] for m in MUTATIONS])
def test_goldens_catch(name: str, module: Any, old: str, new: str, check: Check) -> None:
    check(mutant(module, old, old))
    with pytest.raises(AssertionError):
        check(mutant(module, old, new))
