"""Whose tokens move: a toy language model that really depends on the view.

The authors' release fails the first two tests: it never trains a repaired token.
"""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ffr.algorithms import FFR, GRPO, FFRReleased, GroupScore
from ffr.config import ReasonConfig
from ffr.reason import ffr_loss, importance_ratio, reliance, true_is_ratio
from ffr.types import Observation, Rollout, RolloutGroup
from tests.algorithms.groups import X, make_group

torch.set_num_threads(1)
PATTERN = "rrofl"  # two unaided successes, a repair that worked, one that did not, a leaked patch
REPAIRED = (2, 3)


class ToyPolicy(nn.Module):
    """Next-token logits from the previous token and from an embedding of the view."""

    def __init__(self, group: RolloutGroup) -> None:
        super().__init__()
        torch.manual_seed(0)
        views = sorted({r.observation.view_id for r in (*group.first_G, *group.chosen_G)})
        self.view_index = {view: i for i, view in enumerate(views)}
        self.token = nn.Embedding(16, 8)
        self.view = nn.Embedding(len(views), 8)
        self.head = nn.Linear(8, 16)

    def logprobs(self, tokens: tuple[int, ...], observation: Observation) -> Tensor:
        previous = torch.tensor((0, *tokens[:-1]))
        view = torch.tensor(self.view_index[observation.view_id])
        logits = self.head(torch.tanh(self.token(previous) + self.view(view)))
        return logits.log_softmax(-1).gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1)


def sampled(group: RolloutGroup, policy: ToyPolicy) -> RolloutGroup:
    """The same group with the log-probabilities that this policy gives under each sampling view."""

    def fill(rollout: Rollout) -> Rollout:
        values = policy.logprobs(rollout.token_ids, rollout.observation).detach().tolist()
        return dataclasses.replace(rollout, logprobs=tuple(values))

    firsts = tuple(fill(r) for r in group.first_G)
    chosen = tuple(
        fill(c) if c.observation.patched else f for f, c in zip(firsts, group.chosen_G, strict=True)
    )
    return dataclasses.replace(group, first_G=firsts, chosen_G=chosen)


@pytest.fixture
def group() -> RolloutGroup:
    return make_group(PATTERN)


def step(group: RolloutGroup, policy: ToyPolicy, score: GroupScore) -> dict[tuple[str, int], Tensor]:
    """One backward pass; returns d loss / d log p of every completion that exists, trained or not."""
    leaves: dict[tuple[str, int], Tensor] = {}
    for kind, rollouts in (("first", group.first_G), ("chosen", group.chosen_G)):
        for i, rollout in enumerate(rollouts):
            if kind == "chosen" and not rollout.observation.patched:
                continue
            leaves[kind, i] = policy.logprobs(rollout.token_ids, rollout.observation)
            leaves[kind, i].retain_grad()
    rows: list[Tensor] = []
    for i, trained in enumerate(score.trained_G):
        name = "chosen" if trained.observation.patched else "first"
        rows.append(leaves[name, i])
    old = [torch.tensor(r.logprobs) for r in score.trained_G]
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    out = ffr_loss(
        nn.utils.rnn.pad_sequence(rows, batch_first=True),
        nn.utils.rnn.pad_sequence(old, batch_first=True),
        score.advantages_G,
        mask,
        kl_beta=0.0,
        view_treatment_B=score.view_treatment_G,
    )
    out.loss.backward()
    ratios = (out.metrics["ratio_min"], out.metrics["ratio_max"])
    assert all(abs(float(r) - 1.0) < 1e-6 for r in ratios)
    return {key: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for key, leaf in leaves.items()}


def test_the_gradient_is_on_the_repaired_tokens_and_not_on_the_failed_ones(group: RolloutGroup) -> None:
    policy = ToyPolicy(group)
    group = sampled(group, policy)
    score = FFR().score(group)
    grads = step(group, policy, score)
    total = sum(r.num_tokens for r in score.trained_G)
    for i in REPAIRED:
        assert (grads["first", i] == 0).all()
        expected = (-score.advantages_G[i] / total).expand(3)
        torch.testing.assert_close(grads["chosen", i], expected, rtol=0, atol=1e-6)
    for i in (0, 1, 4):
        assert (grads["first", i].abs() > 0).all()
    patched_rows = [policy.view_index[group.chosen_G[i].observation.view_id] for i in REPAIRED]
    assert policy.view.weight.grad is not None
    assert (policy.view.weight.grad[patched_rows].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("method", [FFRReleased(), GRPO()], ids=lambda m: m.name)
def test_released_and_grpo_never_touch_a_repaired_token(group: RolloutGroup, method) -> None:
    policy = ToyPolicy(group)
    group = sampled(group, policy)
    grads = step(group, policy, method.score(group))
    for i in REPAIRED:
        assert (grads["chosen", i] == 0).all()
        assert (grads["first", i].abs() > 0).all()
    assert policy.view.weight.grad is not None
    for i in REPAIRED:
        row = policy.view_index[group.chosen_G[i].observation.view_id]
        assert (policy.view.weight.grad[row] == 0).all()


def test_the_ratio_is_one_under_the_sampling_view_and_not_under_the_other(group: RolloutGroup) -> None:
    policy = ToyPolicy(group)
    group = sampled(group, policy)
    for i in REPAIRED:
        repaired = group.chosen_G[i]
        old = torch.tensor([repaired.logprobs])
        own = policy.logprobs(repaired.token_ids, repaired.observation).unsqueeze(0)
        other = policy.logprobs(repaired.token_ids, X).unsqueeze(0)
        torch.testing.assert_close(importance_ratio(own, old), torch.ones(1, 3), rtol=0, atol=1e-6)
        assert (importance_ratio(other, old) - 1.0).abs().max() > 1e-2
        # The geometric mean of the cross-view ratio is exp(Delta), and the exact weight is the same ratio.
        delta = reliance(other, own, torch.ones(1, 3))
        assert delta.abs().item() > 1e-3
        torch.testing.assert_close(importance_ratio(other, old).log().mean(-1), delta, rtol=0, atol=1e-6)
        torch.testing.assert_close(true_is_ratio(other, old, 1e3), importance_ratio(other, old))


def test_a_step_of_ffr_raises_the_repaired_answer_in_its_own_view() -> None:
    group = make_group("roffff")
    policy = ToyPolicy(group)
    group = sampled(group, policy)
    score = FFR().score(group)
    assert score.advantages_G[1] > 0 > score.advantages_G[2]
    good, bad = group.chosen_G[1], group.chosen_G[2]
    step(group, policy, score)
    with torch.no_grad():
        # Only the view embeddings move: each is private to one repaired rollout.
        assert policy.view.weight.grad is not None
        policy.view.weight -= 0.05 * policy.view.weight.grad
        after_good = policy.logprobs(good.token_ids, good.observation).sum()
        after_bad = policy.logprobs(bad.token_ids, bad.observation).sum()
    assert after_good > sum(good.logprobs or ()) and after_bad < sum(bad.logprobs or ())


@pytest.mark.parametrize("view", ["shaped", "true_is", "reattach"])
def test_train_view_reaches_the_test_view(group: RolloutGroup, view: str) -> None:
    """Repaired tokens scored under x: the gradient reaches x's own embedding, not x + c's."""
    policy = ToyPolicy(group)
    group = sampled(group, policy)
    score = FFR(ReasonConfig(train_view=view)).score(group)
    rows, olds = [], []
    for trained, treatment in zip(score.trained_G, score.view_treatment_G, strict=True):
        row = policy.logprobs(trained.token_ids, trained.observation)
        row.retain_grad()
        rows.append(row)
        olds.append(row.detach() if treatment == "reattach" else torch.tensor(trained.logprobs))
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    ffr_loss(
        nn.utils.rnn.pad_sequence(rows, batch_first=True),
        nn.utils.rnn.pad_sequence(olds, batch_first=True),
        score.advantages_G,
        mask,
        kl_beta=0.0,
        view_treatment_B=score.view_treatment_G,
        true_is_clamp=100.0,
    ).loss.backward()
    total = sum(len(row) for row in rows)
    for i in REPAIRED:
        p = rows[i].detach().exp()
        weight = {
            "reattach": torch.ones_like(p),
            "shaped": p * 0.1 / (p + 0.1) ** 2,
            "true_is": (rows[i].detach() - olds[i]).exp(),
        }[view]
        expected = -score.advantages_G[i] * weight / total
        torch.testing.assert_close(rows[i].grad, expected, rtol=0, atol=1e-6)
        patched_row = policy.view_index[group.chosen_G[i].observation.view_id]
        assert policy.view.weight.grad is not None and (policy.view.weight.grad[patched_row] == 0).all()
