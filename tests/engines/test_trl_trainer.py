"""Invariants of the trainer on one batch: views, parity, advantages, loss, gradients."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch

from ffr.algorithms import make_algorithm
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import ranks, setup
from ffr.engines.trl import run as train_module
from ffr.reason import ffr_loss, group_advantages
from ffr.types import RepairStatus

INDICES = [0, 1]
repair_module = import_module("ffr.fix.repair")  # the package exports a function of this name


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    return tiny.samples(tmp_path_factory.mktemp("clips"), 4)


@pytest.fixture(autouse=True)
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path, clips):
    def make(*, teacher=None, samples=None, optim: str | None = None, **changes):
        cfg = tiny.config(checkpoint, tmp_path / "run", **changes)
        args = setup.grpo_arguments(cfg, 1)
        if optim:
            args.optim = optim
        trainer = train_module._build(cfg, samples or clips, INDICES, args, make_algorithm(cfg), teacher, ())
        trainer.model.train()
        return trainer

    return make


def _batch(trainer):
    size = trainer.cfg.find.group_size
    return [{"prompt": "ffr", "index": i} for i in INDICES for _ in range(size)]


def _rounds(trainer, *, training: bool = True):
    """The micro-batches of one round, and the questions they were made of."""
    kept = []
    run = trainer.flow.run

    def spy(*args, **kwargs):
        kept.append(run(*args, **kwargs))
        return kept[-1]

    trainer.flow.run = spy
    micro = trainer._round(_batch(trainer), trainer.args.steps_per_generation, training=training)
    trainer.flow.run = run
    return micro, kept[0].questions


def test_every_row_is_scored_under_its_own_observation(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr", "micro_batch_size": 4})
    micro, _ = _rounds(trainer)
    assert len(micro) == 2 and all(len(m.rows) == 4 for m in micro)
    lengths = {row.prompt.num_tokens for m in micro for row in m.rows}
    assert len(lengths) > 1  # patched and un-patched prompts in one batch
    for m in micro:
        logprobs, _ = trainer._logprobs(trainer.model, m.rows)
        for k, row in enumerate(m.rows):
            expected = tiny.plain_logprobs(trainer.model, row.prompt, row.completion)
            n = len(row.completion)
            assert logprobs[k, :n].detach() == pytest.approx(expected, abs=1e-5)
            assert m.ref[k, :n] == pytest.approx(expected, abs=1e-5)  # the reference is where we start


def test_fused_head_scores_the_same(build) -> None:
    from ffr.engines.packed import completion_logprobs

    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    rows = _rounds(trainer)[0][0].rows
    prompts, completions = [r.prompt for r in rows], [r.completion for r in rows]
    with torch.no_grad():
        plain, fused = (
            completion_logprobs(trainer.model, trainer.batcher, prompts, completions, fused=fused)[0]
            for fused in (False, True)
        )
    assert fused == pytest.approx(plain, abs=1e-5)


def test_advantages_and_loss_equal_the_pure_functions(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr", "micro_batch_size": 2})
    micro, questions = _rounds(trainer)
    rows = [row for m in micro for row in m.rows]
    rewards = []
    for question in questions:
        group = question.group
        for first, verdict, patched in zip(
            group.first_verdicts_G, group.chosen_verdicts_G, group.patched_G, strict=True
        ):
            taxed = patched and not first.correct and verdict.correct
            rewards.append(verdict.score + verdict.format_score - 0.3 * taxed)
    expected = group_advantages(torch.tensor(rewards, dtype=torch.float64).view(2, 4)).flatten()
    assert [row.advantage for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)
    total = sum(float(trainer._compute_loss(trainer.model, m).detach()) for m in micro)
    logprobs = torch.stack([tiny.plain_logprobs(trainer.model, r.prompt, r.completion) for r in rows])
    pure = ffr_loss(
        logprobs, logprobs, expected.float(), torch.ones_like(logprobs), ref_logprobs_BT=logprobs
    ).loss
    assert total == pytest.approx(float(pure), abs=1e-6)


@pytest.mark.parametrize("norm", ["token_mean", "seq_mean", "dr_grpo"])
def test_micro_batches_add_up_to_one_batch(build, norm: str) -> None:
    losses, grads = [], []
    for size in (2, 8):
        trainer = build(
            teacher=tiny.FakeTeacher(),
            reason={"loss_norm": norm},
            train={"algorithm": "ffr", "micro_batch_size": size},
        )
        loss = sum(trainer._compute_loss(trainer.model, m) for m in _rounds(trainer)[0])
        loss.backward()
        losses.append(float(loss.detach()))
        grads.append(trainer.model.lm_head.weight.grad.clone())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert grads[0] == pytest.approx(grads[1], abs=1e-6)


def test_changing_the_frames_changes_the_loss_logprobs(build) -> None:
    trainer = build(train={"algorithm": "grpo"})
    rows = _rounds(trainer)[0][0].rows
    before = trainer._logprobs(trainer.model, rows)[0].detach().clone()
    medium = rows[0].prompt.media[0]
    medium.features["pixel_values_videos"].neg_()
    try:
        after = trainer._logprobs(trainer.model, rows)[0].detach()
    finally:
        medium.features["pixel_values_videos"].neg_()
    shows = torch.tensor([row.prompt.media[0] is medium for row in rows])
    assert float((after - before)[shows].abs().max()) > 1e-3
    assert float((after - before)[~shows].abs().max()) < 1e-5


def test_a_clip_passes_the_vision_tower_once_a_forward(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    tiny.require_shared_media(trainer.model)
    micro, _ = _rounds(trainer)
    seen: list[int] = []
    hook = trainer.model.model.visual.register_forward_hook(
        lambda _m, args, _o: seen.append(args[0].shape[0])
    )
    trainer._compute_loss(trainer.model, micro[0])
    hook.remove()
    assert seen == [2 * 32]  # two clips of 2 x 4 x 4 patches for eight rows


def test_repaired_tokens_get_the_gradient_and_failed_ones_none(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    [micro], questions = _rounds(trainer)
    repaired = failed = 0
    for k, question in enumerate(questions):
        for g, repair in enumerate(question.group.repairs_G):
            row = micro.rows[4 * k + g]
            first = question.group.first_G[g]
            if repair is None:
                assert row.completion == first.token_ids
                assert row.prompt.view_id == first.observation.view_id
                continue
            assert repair.status in (RepairStatus.REPAIRED, RepairStatus.STILL_WRONG)
            assert row.completion == repair.rollout.token_ids != first.token_ids
            assert row.prompt.view_id == repair.rollout.observation.view_id != first.observation.view_id
            repaired += 1
            failed += first.token_ids in {r.completion for r in micro.rows}
    assert repaired >= 2 and failed == 0
    kept = []
    logprobs_of = trainer._logprobs

    def spy(*args, **kwargs):
        out = logprobs_of(*args, **kwargs)
        out[0].retain_grad()
        kept.append(out[0])
        return out

    trainer._logprobs = spy
    trainer._compute_loss(trainer.model, micro).backward()
    strength = kept[0].grad.abs().sum(dim=1)
    for k, row in enumerate(micro.rows):
        assert (float(strength[k]) > 0) == (row.advantage != 0)


def test_ratio_is_one_in_the_sampling_view_and_not_in_the_other(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr", "updates_per_batch": 2})
    [micro], questions = _rounds(trainer)
    assert bool(micro.scored.all())
    with torch.no_grad():
        logprobs, mask = trainer._logprobs(trainer.model, micro.rows)
    assert float(((logprobs - micro.old).exp() * mask).sum() / mask.sum()) == pytest.approx(1.0, abs=1e-6)
    sampled = [g.chosen_G[k].logprobs for q in questions for g in (q.group,) for k in range(4)]
    for k, row in enumerate(sampled):
        assert micro.old[k, : len(row)] == pytest.approx(torch.tensor(row), abs=1e-5)
    repairs = [repair for q in questions for repair in q.group.repairs_G]
    k = next(k for k, repair in enumerate(repairs) if repair is not None)
    plain = questions[k // 4].group.first_G[k % 4].observation
    with torch.no_grad():
        other, _ = trainer._logprobs(
            trainer.model, [type(micro.rows[k])(trainer.encoder.encode(plain), micro.rows[k].completion, 0.0)]
        )
    assert float((other[0] - micro.old[k][: other.shape[1]]).abs().max()) > 1e-3


def test_first_update_takes_its_own_logprobs(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    [micro], _ = _rounds(trainer)
    assert micro.old is None and micro.scored is None
    trainer._sums.clear()
    trainer._compute_loss(trainer.model, micro)
    assert trainer._sums["ratio_mean"] / trainer._sums["update_tokens"] == 1.0
    assert trainer._sums["clip_fraction"] == 0


@pytest.mark.parametrize("view", ["reattach", "shaped", "true_is"])
def test_repaired_rows_can_be_trained_in_the_test_view(build, view: str) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"}, reason={"train_view": view})
    [micro], questions = _rounds(trainer)
    repairs = [repair for q in questions for repair in q.group.repairs_G]
    assert any(repairs)
    for k, (row, repair) in enumerate(zip(micro.rows, repairs, strict=True)):
        first = questions[k // 4].group.first_G[k % 4]
        assert row.prompt.view_id == first.observation.view_id
        assert row.treatment == ("own" if repair is None else view)
        if repair is not None and view == "true_is":
            assert row.sampled_in.view_id == repair.rollout.observation.view_id
            n = repair.rollout.num_tokens
            assert micro.old[k, :n] == pytest.approx(torch.tensor(repair.rollout.logprobs), abs=1e-5)
            assert bool(micro.scored[k])
    loss = trainer._compute_loss(trainer.model, micro)
    assert bool(torch.isfinite(loss))


def test_dead_teacher_gives_plain_grpo_and_a_counter(build) -> None:
    dead = tiny.FakeTeacher(dead=True)
    ffr = build(teacher=dead, train={"algorithm": "ffr"})
    [with_teacher], questions = _rounds(ffr)
    grpo = build(train={"algorithm": "grpo"})
    [without], _ = _rounds(grpo)
    assert [r.completion for r in with_teacher.rows] == [r.completion for r in without.rows]
    assert [r.advantage for r in with_teacher.rows] == [r.advantage for r in without.rows]
    assert [r.prompt.view_id for r in with_teacher.rows] == [r.prompt.view_id for r in without.rows]
    failed = sum(repair is not None for q in questions for repair in q.group.repairs_G)
    metrics = ffr._step_metrics()
    assert failed and metrics["fix/teacher_failed"] == failed
    assert metrics["fix/intervention_rate"] == failed / 8 and metrics["fix/repair_rate"] == 0.0


def test_evaluation_never_repairs(build) -> None:
    teacher = tiny.FakeTeacher()
    trainer = build(teacher=teacher, train={"algorithm": "ffr"})
    trainer.model.eval()
    micro = trainer._prepare_inputs(_batch(trainer))
    assert teacher.calls == 0 and not trainer.model.training
    assert len({row.prompt.view_id for row in micro.rows}) == 2
    assert bool(torch.isfinite(trainer._compute_loss(trainer.model, micro)))
    assert not trainer._sums


def test_clip_lost_during_training_leaves_its_group_out(build, tmp_path: Path) -> None:
    samples = tiny.samples(tmp_path / "own", 2)
    trainer = build(samples=samples, train={"algorithm": "grpo", "micro_batch_size": 4})
    samples[1].video.unlink()
    micro, questions = _rounds(trainer)
    assert questions[0].group is not None and "missing" in questions[1].failure
    assert [m.normalizer for m in micro] == [32.0, 32.0]  # 4 rollouts of 8 tokens
    loss = trainer._compute_loss(trainer.model, micro[1])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is None or float(p.grad.abs().max()) == 0.0 for p in trainer.model.parameters())
    assert trainer._step_metrics()["find/skipped_groups"] == 1


def test_buffer_serves_all_passes_over_a_batch(build) -> None:
    trainer = build(train={"algorithm": "grpo", "micro_batch_size": 4, "updates_per_batch": 2})
    batch = _batch(trainer)
    served = []
    for step in range(4):
        trainer._step = step
        served.append(trainer._prepare_inputs(batch))
    assert served[0] is served[2] and served[1] is served[3] and served[0] is not served[1]
    trainer._step = 4
    assert trainer._prepare_inputs(batch) is not served[0]


def test_step_equals_stock_trl_on_the_same_tokens(build, clips, monkeypatch, checkpoint, tmp_path) -> None:
    """No failed rollout, text prompts: the loss and the weights after one step are TRL's own."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText
    from trl import GRPOTrainer

    monkeypatch.setattr(flow_module, "verify", tiny.always_right)
    monkeypatch.setattr(flow_module, "observe", tiny.blank_view)
    ours = build(
        teacher=tiny.FakeTeacher(),
        optim="sgd",
        train={"algorithm": "ffr", "learning_rate": 0.1, "micro_batch_size": 4},
    )
    rounds = []
    plain_round = ours._round
    monkeypatch.setattr(ours, "_round", lambda *a, **k: rounds.append(plain_round(*a, **k)) or rounds[-1])
    ours.train()
    rows = [row for m in rounds[0] for row in m.rows]
    assert len({row.advantage for row in rows}) > 2

    class Stock(GRPOTrainer):
        def _generate(self, prompts):
            ids = [list(row.prompt.train_ids) for row in rows]
            completions = [list(row.completion) for row in rows]
            texts = [[{"role": "assistant", "content": "x"}] for _ in rows]
            return ids, completions, None, texts, None, {}, None, []

    def rewards(prompts, **_):
        return [1.0 + tiny.always_right(clips[INDICES[k // 4]], ours.encoder.decode(
            row.completion, ours.sampler.stop_ids)).format_score for k, row in enumerate(rows)]  # fmt: skip

    args = setup.grpo_arguments(ours.cfg, 1)
    args.optim = "sgd"
    stock = Stock(
        model=AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32),
        reward_funcs=rewards,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "q"}]] * 2}),
        processing_class=ours.processing_class,
    )
    stock.train()
    ours_loss, stock_loss = (
        next(float(row["loss"]) for row in t.state.log_history if "loss" in row) for t in (ours, stock)
    )
    assert ours_loss == pytest.approx(stock_loss, abs=1e-6)
    start = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    theirs = stock.model.state_dict()
    moved = 0.0
    for name, value in ours.model.state_dict().items():
        assert value == pytest.approx(theirs[name], abs=1e-6), name
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-4


def test_lora_trains_adapters_and_keeps_the_reference(build) -> None:
    trainer = build(
        teacher=tiny.FakeTeacher(),
        model={"lora": {"rank": 2}, "freeze_vision": True},
        train={"algorithm": "ffr"},
    )
    names = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n and "visual" not in n for n in names)
    [micro], _ = _rounds(trainer)
    with torch.no_grad():
        for n, p in trainer.model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.5)
        moved, _ = trainer._logprobs(trainer.model, micro.rows)
        with trainer._reference() as reference:
            fixed, _ = trainer._logprobs(reference, micro.rows)
    assert float((moved - micro.ref).abs().max()) > 1e-2
    assert fixed == pytest.approx(micro.ref, abs=1e-5)


def test_gradient_checkpointing_changes_nothing(build) -> None:
    weights = []
    for switch in (False, True):
        trainer = build(
            teacher=tiny.FakeTeacher(),
            optim="sgd",
            model={"gradient_checkpointing": switch},
            train={"algorithm": "ffr", "learning_rate": 0.1},
        )
        start = trainer.model.lm_head.weight.detach().clone()
        trainer.train()
        weights.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
        assert float((weights[-1]["lm_head.weight"] - start).abs().max()) > 1e-4
    for name, value in weights[0].items():
        assert weights[1][name] == pytest.approx(value, abs=1e-6), name


def test_bfloat16_computes_on_float32_weights(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), model={"dtype": "bfloat16"}, train={"algorithm": "ffr"})
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.last_metrics["train/grad_norm"] > 0
    assert trainer.last_metrics["train/kl"] == pytest.approx(0.0, abs=1e-3)


def test_every_rank_makes_the_same_passes(build) -> None:
    """A micro-batch that shows nothing, of a rank whose clip was lost, while others see clips and images."""
    trainer = build(train={"algorithm": "grpo", "micro_batch_size": 4})
    lost = trainer._rows(flow_module.Question(0, trainer.flow._samples[0], failure="missing"))
    need = ranks.Chunk(frozenset({"video", "image"}), scored=True)
    micro = trainer._micro(lost, need, 32.0)
    assert [row.active for row in micro.rows] == [False] * 5 and trainer._needs(
        micro.rows
    ).kinds == need.kinds
    assert micro.old is not None and not bool(micro.scored.any())
    loss = trainer._compute_loss(trainer.model, micro)
    loss.backward()
    assert float(loss.detach()) == 0.0
    grads = {name: p.grad for name, p in trainer.model.named_parameters()}
    assert all(grad is not None and float(grad.abs().max()) == 0.0 for grad in grads.values())
    alone = trainer._micro(lost, ranks.Chunk(), 32.0)
    assert len(alone.rows) == 4 and alone.old is None


def test_frozen_tower_and_reference_stay_where_they_were(build, checkpoint: Path) -> None:
    from transformers import AutoModelForImageTextToText

    start = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    trainer = build(
        teacher=tiny.FakeTeacher(),
        optim="sgd",
        model={"freeze_vision": True},
        train={"algorithm": "ffr", "learning_rate": 0.1},
    )
    trainer.train()
    moved = {n for n, value in trainer.model.state_dict().items() if not torch.equal(value, start[n])}
    assert "lm_head.weight" in moved and not any("visual" in name for name in moved)
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())
    assert all(torch.equal(value, start[n]) for n, value in trainer.ref_model.state_dict().items())


def test_streams_are_a_ranks_own_only_where_a_question_comes_twice() -> None:
    class Accelerator:
        device, process_index = "cpu", 3

        def gather(self, local: torch.Tensor) -> torch.Tensor:
            return torch.cat([local, torch.tensor([7, 8])])

    assert ranks.stream_of(Accelerator(), [5, 6]) == 0
    assert ranks.stream_of(Accelerator(), [5, 7]) == 3
