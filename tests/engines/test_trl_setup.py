from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from ffr.engines.trl import checkpoint as cp
from ffr.engines.trl import setup
from ffr.engines.trl.setup import EngineConfigError


def _parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_private_seams_of_trl_are_as_we_use_them() -> None:
    import trl
    from trl import GRPOTrainer

    assert trl.__version__.startswith("1.16.")
    assert _parameters(GRPOTrainer._prepare_inputs) == ["self", "generation_batch"]
    assert _parameters(GRPOTrainer._compute_loss) == ["self", "model", "inputs"]
    assert _parameters(GRPOTrainer.log) == ["self", "logs", "start_time"]
    assert _parameters(GRPOTrainer._save_checkpoint) == ["self", "model", "trial"]
    assert _parameters(GRPOTrainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert _parameters(GRPOTrainer._save_optimizer_and_scheduler) == ["self", "output_dir"]
    assert _parameters(GRPOTrainer._prepare_for_training) == [
        "self", "max_steps", "train_dataloader", "resume_from_checkpoint",
    ]  # fmt: skip
    assert "self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer.compute_loss)
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)
    source = inspect.getsource(GRPOTrainer.__init__)
    for line in ("self._step = 0", "self._buffered_inputs = None", "self.ref_model", "add_fused_lm_head("):
        assert line in source
    assert "if self.beta == 0.0:" in source  # without a reference of its own, FSDP2 shards ours
    assert GRPOTrainer.loss_is_scaled_for_ga is True


def test_arguments_follow_the_configuration(checkpoint: Path, tmp_path: Path) -> None:
    cfg = tiny.config(checkpoint, tmp_path, reason={"loss_norm": "seq_mean"}, train={"micro_batch_size": 2})
    args = setup.grpo_arguments(cfg, 7)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 4)
    assert (args.steps_per_generation, args.generation_batch_size, args.max_steps) == (4, 8, 7)
    assert (args.beta, args.epsilon, args.loss_type) == (0.04, 0.2, "grpo")
    assert not args.use_bias_correction_kl and not args.shuffle_dataset and not args.bf16
    assert (args.learning_rate, args.weight_decay, args.max_grad_norm) == (1e-3, 0.01, 5.0)
    assert args.output_dir == str(tmp_path / "checkpoints") and args.save_total_limit is None


def test_lora_section_becomes_pefts(checkpoint: Path, tmp_path: Path) -> None:
    assert setup.lora_config(tiny.config(checkpoint, tmp_path)) is None
    plain = setup.lora_config(tiny.config(checkpoint, tmp_path, model={"lora": {"rank": 64}}))
    assert (plain.r, plain.lora_alpha, plain.lora_dropout) == (64, 128.0, 0.0)
    assert plain.target_modules == "all-linear" and plain.exclude_modules is None
    lora = {"rank": 4, "alpha": 4.0, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    cfg = tiny.config(checkpoint, tmp_path, model={"lora": lora, "freeze_vision": True})
    chosen = setup.lora_config(cfg)
    assert (chosen.lora_alpha, chosen.lora_dropout, set(chosen.target_modules)) == (
        4.0, 0.1, {"q_proj", "v_proj"},
    )  # fmt: skip
    assert "visual" in chosen.exclude_modules
    # TRL would silently set every dropout to 0, the adapters' included.
    assert not setup.grpo_arguments(cfg, 1).disable_dropout
    assert setup.grpo_arguments(tiny.config(checkpoint, tmp_path), 1).disable_dropout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"micro_batch_size": 3}}, r"micro_batch_size = 3 does not divide .* = 8"),
        ({"find": {"group_size": 1}, "train": {"micro_batch_size": 1}}, r"group_size = 1.*at least 2"),
        ({"train": {"updates_per_batch": 3}}, r"save_every = 100 is not a multiple .* = 3"),
        ({"train": {"algorithm": "sft"}}, r"ffr.engines.traces"),
    ],
)
def test_impossible_settings_are_refused(checkpoint: Path, tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(EngineConfigError, match=message):
        setup.check_config(tiny.config(checkpoint, tmp_path, **changes))


def test_missing_packaged_student_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup.resources, "files", lambda _name: tmp_path)
    with pytest.raises(EngineConfigError, match=r"micro-student.*reinstall"):
        setup.resolve_model_path("micro-student")
    assert setup.resolve_model_path("some/model") == "some/model"


def test_schedule_shows_every_question_once_an_epoch(checkpoint: Path, tmp_path: Path) -> None:
    cfg = tiny.config(checkpoint, tmp_path, train={"num_epochs": 2, "questions_per_step": 2})
    order = setup.schedule(7, cfg, world_size=2)
    assert len(order) == 16  # ceil(14 / 4) batches of 4
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order == setup.schedule(7, cfg, world_size=2)
    assert setup.num_steps(16, cfg, 2) == 4


def test_schedule_and_steps_under_a_step_limit(checkpoint: Path, tmp_path: Path) -> None:
    cfg = tiny.config(
        checkpoint, tmp_path, train={"max_steps": 3, "updates_per_batch": 2, "questions_per_step": 2}
    )
    order = setup.schedule(100, cfg, world_size=1)
    assert len(order) == 4  # 2 batches of rollouts serve 3 steps of two passes
    assert setup.num_steps(len(order), cfg, 1) == 3
    few = setup.schedule(1, cfg, world_size=1)
    assert few == [0, 0]


def _checkpoint(root: Path, step: int, *, whole: bool = True, position: cp.Position | None = None) -> Path:
    path = root / f"checkpoint-{step}"
    (path / "sub").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"x" * 100)
    (path / "sub" / "rng.pth").write_bytes(b"y" * 10)
    if whole:
        cp.write_manifest(path, position)
    return path


def test_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert cp.find_checkpoint(tmp_path / "none").path is None
    nine = _checkpoint(tmp_path, 9)
    ten = _checkpoint(tmp_path, 10)
    assert cp.find_checkpoint(tmp_path).path == ten
    eleven = _checkpoint(tmp_path, 11, whole=False)
    found = cp.find_checkpoint(tmp_path)
    assert found.path == ten
    assert found.refused == ((eleven, "it was not finished (no manifest)"),)
    (ten / "model.safetensors").write_bytes(b"x" * 99)
    found = cp.find_checkpoint(tmp_path)
    assert found.path == nine
    assert found.refused[1] == (ten, "model.safetensors has 99 bytes instead of 100")
    (ten / "sub" / "rng.pth").unlink()
    (ten / "model.safetensors").write_bytes(b"x" * 100)
    assert cp.damage(ten) == "sub/rng.pth is missing"
    weights = nine / "model.safetensors"
    weights.write_bytes(b"x" * 50 + b"z" + b"x" * 49)  # tampered with, of the same size
    assert cp.damage(nine) == "model.safetensors has another content than was written (SHA-256)"
    assert cp.damage(nine, content=False) == ""
    weights.write_bytes(b"x" * 100)
    assert cp.damage(nine) == ""
    (nine / cp.MANIFEST).write_text("{", encoding="utf-8")
    assert "cannot be read" in cp.damage(nine)
    assert cp.find_checkpoint(tmp_path).path is None


POSITION = cp.Position(step=1, num_processes=2, num_questions=4, questions="ab", teacher_outcomes=7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 1}, r"checkpoint-1: it was made by 2 processes, this run has 1"),
        ({"questions": "cd"}, r"after 4 other questions than this run shows until step 1; data, train\.seed"),
        ({"num_questions": 5}, r"after 4 other questions"),
    ],
)
def test_checkpoint_of_another_place_in_the_data_is_refused(tmp_path: Path, changes, message: str) -> None:
    path = _checkpoint(tmp_path, 1, position=POSITION)
    assert cp.damage(path) == "" and cp.check_position(path, POSITION) == ""
    with pytest.raises(cp.CheckpointError, match=message):
        cp.check_position(path, replace(POSITION, **changes))


def test_what_cannot_be_checked_of_a_position_is_said(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 1, position=POSITION)
    assert cp.check_position(path, replace(POSITION, teacher_outcomes=9)) == ""
    lost = cp.check_position(path, replace(POSITION, teacher_outcomes=3))
    assert "journal holds 3 outcomes, 7 when the checkpoint was made" in lost
    assert "does not say where" in cp.check_position(_checkpoint(tmp_path, 2), POSITION)


def test_named_checkpoint_must_be_whole(tmp_path: Path) -> None:
    good, bad = _checkpoint(tmp_path, 1), _checkpoint(tmp_path, 2, whole=False)
    assert cp.named_checkpoint(good) == good
    with pytest.raises(cp.CheckpointError, match=r"checkpoint-2: it was not finished"):
        cp.named_checkpoint(bad)
    with pytest.raises(cp.CheckpointError, match="named checkpoint-<step>"):
        cp.named_checkpoint(tmp_path)


def test_rotation_counts_whole_checkpoints_only(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        _checkpoint(tmp_path, step)
    _checkpoint(tmp_path, 3, whole=False)
    _checkpoint(tmp_path, 14, whole=False)
    cp.keep_newest(tmp_path, 2)
    assert [p.name for p in cp.list_checkpoints(tmp_path)] == [
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-14",
    ]


def test_rewriting_a_checkpoint_takes_its_manifest_back(tmp_path: Path) -> None:
    path = _checkpoint(tmp_path, 5)
    cp.open_for_writing(path)
    assert cp.damage(path) == "it was not finished (no manifest)"
