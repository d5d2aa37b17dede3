"""The golden tables and the checks that read them.

Each check takes the module under test, so that the mutation test can hand it a broken one.
"""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-6
GOLDEN = Path(__file__).parent / "golden"


def load(name: str) -> list[dict[str, Any]]:
    """Rows of one table; every row says how its numbers were derived."""
    rows = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert rows and all(row["derivation"] for row in rows)
    return rows


def number(text: str) -> float:
    return float(Fraction(text))


def logs(rows: list[list[str]]) -> torch.Tensor:
    return torch.tensor([[math.log(Fraction(p)) for p in row] for row in rows], dtype=torch.float64)


def close(
    actual: float | torch.Tensor, expected: float | list, where: str, tolerance: float = TOLERANCE
) -> None:
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(expected, dtype=torch.float64),
        rtol=0.0,
        atol=tolerance,
        msg=lambda text: f"{where}: {text}",
    )


def group_tensors(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The columns of a (right, repaired ok, repaired fail) group with format 1."""
    counts = (row["right"], row["repaired_ok"], row["repaired_fail"])

    def column(values: tuple[float, float, float]) -> torch.Tensor:
        return torch.tensor(
            [v for v, n in zip(values, counts, strict=True) for _ in range(n)], dtype=torch.float64
        )

    return {
        "acc": column((1, 1, 0)),
        "fmt": column((1, 1, 1)),
        "first_correct": column((1, 0, 0)).bool(),
        "patched": column((0, 1, 1)).bool(),
        "first_rewards": column((2, 1, 1)),
    }


def check_groups(reward: Any, advantage: Any) -> None:
    """Eq. 8 then eq. 9 on whole groups: methods.md 4.2 and peers.md 0.1."""
    for row in load("groups"):
        t = group_tensors(row)
        rewards = reward.robust_improvement_reward(
            t["acc"],
            t["fmt"],
            t["first_correct"],
            t["patched"],
            patch_tax=number(row["kappa"]),
            tax_on=row["tax_on"],
        )
        actual = advantage.group_advantages(
            rewards, scale=row["scale"], baseline=row["baseline"], first_rewards_PG=t["first_rewards"]
        )
        kinds = [k for k in ("right", "repaired_ok", "repaired_fail") for _ in range(row[k])]
        close(actual, [row["expected"][kind] for kind in kinds], row["name"])


def check_reward(reward: Any) -> None:
    """Eq. 8, one rollout at a time, both tax rules."""
    for row in load("reward"):
        acc, fmt = (torch.tensor([number(row[k])], dtype=torch.float64) for k in ("acc", "fmt"))
        flags = {k: torch.tensor([row[k]]) for k in ("first_correct", "patched", "chosen_correct")}
        for rule in ("assisted_success", "any_patched"):
            actual = reward.robust_improvement_reward(
                acc, fmt, **flags, patch_tax=number(row["kappa"]), tax_on=rule
            )
            close(actual, [number(row[rule])], f"{row['name']}, {rule}")


def check_advantage(advantage: Any) -> None:
    """Eq. 1 and 9 on bare rewards."""
    for row in load("advantage"):
        rewards = torch.tensor([number(r) for r in row["rewards"]], dtype=torch.float64)
        close(advantage.group_advantages(rewards), row["expected"], row["name"])
        # Single precision in, the same to 1e-6 out; two questions at once are two groups.
        both = advantage.group_advantages(torch.stack([rewards, rewards]).float())
        close(both, [row["expected"]] * 2, row["name"])


def check_ratio(ratio: Any) -> None:
    """Eq. 10."""
    for row in load("ratio"):
        new, old = logs([[row["new"]]]), logs([[row["old"]]])
        close(ratio.importance_ratio(new, old), [[row["expected"]]], row["name"])
        close(ratio.token_log_ratio(new, old), [[math.log(row["expected"])]], row["name"])


def check_shaping(ratio: Any) -> None:
    """LUFFY's f(p) and its slope."""
    for row in load("shaping"):
        p = torch.tensor(number(row["p"]), dtype=torch.float64, requires_grad=True)
        value = ratio.shaped_weight(p.log(), number(row["gamma"]))
        value.backward()
        close(value.detach(), row["expected"], row["p"])
        assert p.grad is not None
        close(p.grad, row["slope"], row["p"])


def check_sampler_correction(ratio: Any) -> None:
    """Truncated weight of a token that another program sampled; 1 outside the mask and where unknown."""
    for row in load("sampler_correction"):
        old, mu = logs([[row["old"], row["old"], "1/3"]]), logs([[row["sampler"], row["sampler"], "1/7"]])
        mu[0, 2] = math.nan
        weights = ratio.sampler_correction(old, mu, torch.tensor([[1, 0, 1]]), number(row["cap"]))
        close(weights, [[number(row["expected"]), 1.0, 1.0]], row["name"])


def check_weighted_loss(loss: Any) -> None:
    """Token weights multiply the policy term and leave the KL term alone.

    Ratio 1, advantages 2 and -1, weights 3/2 and 1/4 on one token each: policy loss
    -(3/2 * 2 + 1/4 * -1) / 2 = -11/8. KL of p = 1/2 against ref 1/4: r = 1/2, r - 1 - log r = log 2 - 1/2.
    Slopes in log p: -(3/2 * 2) / 2 = -3/2 and +1/8, and beta / 2 * (1 - r) = 1/4 each from the KL at beta 1.
    """
    lp = logs([["1/2"], ["1/2"]]).requires_grad_()
    out = loss.ffr_loss(
        lp,
        lp.detach(),
        torch.tensor([2.0, -1.0], dtype=torch.float64),
        torch.ones(2, 1),
        ref_logprobs_BT=logs([["1/4"], ["1/4"]]),
        kl_beta=1.0,
        token_weights_BT=torch.tensor([[1.5], [0.25]], dtype=torch.float64),
    )
    out.loss.backward()
    close(out.metrics["policy_loss"], -11 / 8, "policy loss")
    close(out.loss.detach(), -11 / 8 + math.log(2) - 0.5, "loss")
    assert lp.grad is not None
    close(lp.grad, [[-1.5 + 0.25], [0.125 + 0.25]], "slopes")


def check_kl(kl: Any) -> None:
    """The k3 estimator and its slope in log p."""
    for row in load("kl"):
        lp = logs([[row["p"]]]).requires_grad_()
        value = kl.kl_k3(lp, logs([[row["ref"]]]))
        value.sum().backward()
        close(value.detach(), [[row["expected"]]], row["name"])
        assert lp.grad is not None
        close(lp.grad, [[row["slope"]]], row["name"])


def check_loss(loss: Any) -> None:
    """Eq. 11: value, slope in every log-probability, clip fraction, KL."""
    for row in load("loss"):
        lp = logs(row["new"]).requires_grad_()
        out = loss.ffr_loss(
            lp,
            logs(row["old"]),
            torch.tensor(row["advantages"], dtype=torch.float64),
            torch.tensor(row["mask"]),
            ref_logprobs_BT=logs(row["ref"]) if "ref" in row else None,
            kl_beta=row.get("kl_beta", 0.0),
            norm=row.get("norm", "token_mean"),
            normalizer=row.get("normalizer"),
            max_completion_tokens=row.get("max_completion_tokens"),
            view_treatment_B=row.get("view_treatment"),
        )
        out.loss.backward()
        close(out.loss.detach(), row["expected"], row["name"])
        assert lp.grad is not None
        close(lp.grad, row["slope"], row["name"])
        close(out.metrics["clip_fraction"], row["clip_fraction"], row["name"])
        close(out.metrics["kl"], row.get("kl", 0.0), row["name"])
