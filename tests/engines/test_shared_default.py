"""What a user gets without a setting: a group in one pass, its clip through the vision tower once."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch

from ffr.algorithms import make_algorithm
from ffr.config import Config
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import run as train_module
from ffr.engines.trl import setup

repair_module = import_module("ffr.fix.repair")  # the package exports a function of this name


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)
    clips = tiny.samples(tmp_path / "clips", 2)

    def make(**changes):
        changes.setdefault("train", {}).setdefault("algorithm", "ffr")
        cfg = tiny.config(checkpoint, tmp_path / "run", **changes)
        args, teacher = setup.grpo_arguments(cfg, 1), tiny.FakeTeacher()
        trainer = train_module._build(cfg, clips, [0, 1], args, make_algorithm(cfg), teacher, ())
        trainer.model.train()
        return trainer

    return make


def _round(trainer):
    size = trainer.cfg.find.group_size
    rows = [{"prompt": "ffr", "index": i} for i in (0, 1) for _ in range(size)]
    return trainer._round(rows, trainer.args.steps_per_generation, training=True)


def _step(trainer):
    """Loss and gradients of one optimiser step, and the length of every sequence that was read."""
    lengths: list[tuple[int, int]] = []
    hook = trainer.model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: lengths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    micro = _round(trainer)
    lengths.clear()
    trainer.model.zero_grad()
    loss = sum(trainer._compute_loss(trainer.model, m) for m in micro)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    hook.remove()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads, lengths


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 8),
        ({"find": {"group_size": 4}}, 4),
        ({"model": {"shared_prefix": False}}, 1),
        ({"train": {"algorithm": "sft"}}, 1),
        ({"train": {"micro_batch_size": 2}}, 2),
    ],
)
def test_rows_of_a_pass(changes: dict, rows: int) -> None:
    assert Config.model_validate(changes).rows_per_pass == rows


def test_the_default_is_one_group_a_pass_and_accumulates_over_questions(build) -> None:
    trainer = build(train={"micro_batch_size": None})
    args = trainer.args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 2)
    micro = _round(trainer)
    assert [len({row.prompt.sample_uid for row in m.rows}) for m in micro] == [1, 1]
    assert len({row.prompt.view_id for m in micro for row in m.rows}) > 2  # patched ones among them


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_loss_and_gradients_do_not_depend_on_how_a_group_is_cut(build, rows: int) -> None:
    expected, grads, whole = _step(build(model={"shared_prefix": False}, train={"micro_batch_size": 1}))
    loss, found, lengths = _step(build(train={"micro_batch_size": rows}))
    assert len(whole) == 8 and len(lengths) == 8 // rows
    assert {batch for batch, _ in lengths} == {1}  # packs, not rows
    assert sum(length for _, length in lengths) < sum(length for _, length in whole)
    assert loss == pytest.approx(expected, abs=1e-6)
    for name, grad in grads.items():
        assert float((grad - found[name]).norm()) <= 1e-4 * float(grad.norm()) + 1e-8, name


def test_old_policy_reference_and_policy_run_the_tower_once_per_group(build) -> None:
    trainer = build(train={"micro_batch_size": None, "updates_per_batch": 2})
    tiny.require_shared_media(trainer.model)
    runs: dict[str, list[int]] = {"policy": [], "reference": []}
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        model.model.visual.register_forward_hook(
            lambda _m, args, _o, name=name: runs[name].append(len(args[0]))
        )
    micro = _round(trainer)
    sampled = len(runs["policy"]) - len(micro)  # the rest is find and fix
    assert sampled > 0 and runs["reference"] == [2 * 16] * 2
    assert runs["policy"][-2:] == [2 * 16] * 2  # old policy, one clip of 2 x 4 x 4 patches a group
    runs["policy"].clear()
    for m in micro:
        trainer._compute_loss(trainer.model, m)
    assert runs["policy"] == [2 * 16] * 2


def test_a_frozen_tower_runs_once_for_sampling_and_all_passes(build) -> None:
    trainer = build(model={"freeze_vision": True}, train={"micro_batch_size": None, "updates_per_batch": 2})
    tiny.require_shared_media(trainer.model)
    runs: list[int] = []
    trainer.model.model.visual.register_forward_hook(lambda _m, args, _o: runs.append(len(args[0])))
    for m in _round(trainer):
        trainer._compute_loss(trainer.model, m)
    assert sum(runs) == 2 * 2 * 16


def test_a_model_that_cannot_share_is_named_when_training_starts(build, caplog) -> None:
    from ffr.engines.packed import warn_unshared

    warn_unshared.cache_clear()
    build(model={"attention": "eager"})
    [line] = [r.message for r in caplog.records if "cannot share" in r.message]
    assert "model.attention = 'eager'" in line and "train.micro_batch_size" in line
