"""The memory estimate against what torch holds, for small models; and what it says about large ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from ffr.config import Config
from ffr.engines.batch import Batcher
from ffr.engines.encode import Encoder
from ffr.engines.memory import (
    CONTEXT_BYTES,
    GIB,
    LOST_SHARE,
    Load,
    block_bytes,
    estimate,
    layer_bytes,
    load_of,
    trainable,
)
from ffr.engines.memory_advice import Change, Plan, advice, changes
from ffr.engines.packed import completion_logprobs
from ffr.engines.shapes import KNOWN, find_shape
from ffr.engines.trl import setup

SEVEN = KNOWN["Qwen/Qwen2.5-VL-7B-Instruct"]
CARD = 80e9
"""Bytes of an 80 GB card."""


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {"qwen2.5": tiny.build(root / "a"), "qwen3": tiny.build_qwen3(root / "b")}


def loaded(path: Path, *, rank: int, dtype: str, checkpointing: bool = False, frozen: bool = False):
    """The student as the engine loads it, adapters included; its configuration and sizes."""
    cfg = Config.model_validate(
        {
            "model": {
                "path": str(path), "dtype": dtype, "gradient_checkpointing": checkpointing,
                "lora": {"rank": rank}, "freeze_vision": frozen,
            },
            "find": {"max_completion_tokens": 64},
        }
    )  # fmt: skip
    model, processor = setup.load_student(cfg, sharded=False)
    if rank:
        from peft import get_peft_model

        model = get_peft_model(model, setup.lora_config(cfg))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if rank:
            model.enable_input_require_grads()
    return cfg, model.train(), processor, find_shape(str(path))[0]


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize(
    ("rank", "frozen", "dtype"),
    [(0, False, "bfloat16"), (0, True, "float32"), (4, False, "bfloat16"), (4, True, "bfloat16")],
)
def test_weights_gradients_and_optimiser_are_exact(
    students: dict[str, Path], name: str, rank: int, frozen: bool, dtype: str
) -> None:
    cfg, model, _, shape = loaded(students[name], rank=rank, dtype=dtype, frozen=frozen)
    learned = [p for p in model.parameters() if p.requires_grad]
    for p in learned:
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(learned)
    optimizer.step()
    parts = {part.name: part.num_bytes for part in estimate(cfg, shape, load_of(cfg, shape)).parts}
    adapters = {id(p) for n, p in model.named_parameters() if "lora_" in n}
    assert parts["weights"] == nbytes(p for p in model.parameters() if id(p) not in adapters)
    assert parts.get("adapters", 0) == nbytes(p for p in model.parameters() if id(p) in adapters)
    assert trainable(cfg, shape) == sum(p.numel() for p in learned)
    assert parts["gradients"] == nbytes(p.grad for p in learned)
    states = [x for state in optimizer.state.values() for n, x in state.items() if n != "step"]
    assert parts["optimiser"] == nbytes(states)
    if not rank:
        assert parts["reference"] == nbytes(model.parameters())


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize(
    ("rank", "dtype", "checkpointing"),
    [(0, "float32", False), (0, "bfloat16", True), (4, "bfloat16", False), (4, "bfloat16", True)],
)
def test_activations_are_what_autograd_keeps(
    students: dict[str, Path], name: str, rank: int, dtype: str, checkpointing: bool
) -> None:
    """Bytes that autograd saves for a packed group of 8, against the formula, within 20 %."""
    cfg, model, processor, shape = loaded(students[name], rank=rank, dtype=dtype, checkpointing=checkpointing)
    encoder = Encoder(processor, max_prompt_tokens=4096)
    side = 2 * shape.vision.factor_px
    prompt = encoder.encode(tiny.view(1, num_frames=8, side=side, prompt="what is the answer ? " * 16))
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}
    held: list[torch.Tensor] = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        completion_logprobs(model, Batcher(model, encoder.pad_id), [prompt] * 8, [tuple(range(20, 84))] * 8)
    patches = sum(medium.num_features for medium in prompt.media) * shape.vision.merge**2
    load = Load(prompt.num_tokens, patches, branch=0, completion=64, rows=8, questions=1)
    parts = {part.name: part.num_bytes for part in estimate(cfg, shape, load, cuda=False).parts}
    expected = parts["activations"] + parts["vision activations"]
    if checkpointing:
        # The one layer (and block) that is computed again is not there yet after the forward pass.
        sizes = {"compute": 2, "stream": 2 if rank else 4, "lora": bool(rank)}
        expected -= load.packed * layer_bytes(shape.text, **sizes)
        expected -= patches * block_bytes(shape.vision, **sizes)
    expected += parts["logits"] / 3  # log-probabilities over the vocabulary are kept once
    assert sum(saved.values()) / 1.2 < expected < 1.2 * sum(saved.values())


def test_an_80_gb_card_trains_7b_with_lora_at_the_papers_settings() -> None:
    """By the estimate, not by a measurement: 27.9 GiB at rank 64, group of 8, completions of 1,024.

    Derivation for Qwen2.5-VL-7B: 8,292,166,656 weights of 2 bytes = 15.45 GiB. Adapters of rank 64 on every
    linear layer: 64 * (sum of inputs and outputs) = 207 M parameters; 4 bytes each as weights (0.77), as
    gradients (0.77) and 8 as AdamW states (1.54). 16 frames of 128 * 28 * 28 px are 8 pairs of 128 visual
    tokens = 1,024, with 350 of text 1,374; a packed group has 1,374 + 8 * (160 + 1,024) = 10,846 tokens.
    """
    cfg = Config.model_validate({"model": {"lora": {"rank": 64}}})
    load = load_of(cfg, SEVEN)
    assert (load.prompt, load.patches, load.packed) == (1374, 4096, 10_846)
    found = estimate(cfg, SEVEN, load)
    parts = {part.name: part.num_bytes / GIB for part in found.parts}
    adapters = 64 * (
        # language model: q, o: 3584 + 3584; k, v: 3584 + 512; gate, up, down: 3584 + 18944; 28 layers
        28 * (2 * 7168 + 2 * 4096 + 3 * 22_528)
        # vision tower: qkv 1280 + 3840, proj 1280 + 1280, three of 1280 + 3420; 32 blocks; merger
        + 32 * (5120 + 2560 + 3 * 4700)
        + (5120 + 5120)
        + (5120 + 3584)
    )
    assert parts["weights"] == pytest.approx(8_292_166_656 * 2 / GIB)
    assert parts["adapters"] == pytest.approx(4 * adapters / GIB)
    assert parts["gradients"] == pytest.approx(4 * adapters / GIB)
    assert parts["optimiser"] == pytest.approx(8 * adapters / GIB)
    assert "reference" not in parts  # the policy without its adapters
    # Of one layer: fp32 inputs of two norms, bf16 inputs of q k v gate up, q k v and twice the output of
    # attention with log-sum-exps and rotary factors, four MLP tensors.
    layer = 2 * 4 * 3584 + 5 * 2 * 3584 + 2 * (3 * 3584 + 2 * 512) + 4 * 28 + 2 * 2 * 128 + 4 * 2 * 18_944
    ends = 3584 * (1 + 4 + 2)
    expected = 10_846 * (layer + 28 * 3584 * 2 + ends) / GIB
    assert parts["activations"] == pytest.approx(expected)
    # Keys and values: 28 layers * 2 * 4 heads * 128 * 2 bytes a token, 8 rollouts.
    assert parts["KV cache"] == pytest.approx(8 * (1374 + 160 + 1024) * 28 * 2 * 4 * 128 * 2 / GIB)
    held = sum(part.num_bytes for part in found.parts if part.moment != "sampling")
    assert found.needed == pytest.approx(CONTEXT_BYTES + (1 + LOST_SHARE) * held)
    assert round(found.needed / GIB, 1) == 27.9
    assert found.needed < CARD
    # Also with the longest prompts that find.max_prompt_tokens lets through.
    longest = estimate(cfg, SEVEN, load_of(cfg, SEVEN, prompt_tokens=16_384))
    assert found.needed < longest.needed < CARD


def test_full_training_of_7b_needs_sharding() -> None:
    """The paper's ZeRO-3 on 8 GPUs fits; the same on one card, or on 8 whole copies, does not."""
    alone, copies, sharded = (Plan(Config(), s, n) for s, n in (("ddp", 1), ("ddp", 8), ("zero3", 8)))
    assert alone.estimate(SEVEN).needed > 2 * CARD
    # DDP keeps all of it and a second copy of the gradients.
    gradients = 4 * SEVEN.num_parameters
    difference = copies.estimate(SEVEN).needed - alone.estimate(SEVEN).needed
    assert difference == pytest.approx((1 + LOST_SHARE) * gradients)
    parts = {part.name: part.num_bytes for part in sharded.estimate(SEVEN).parts}
    assert parts["weights"] == SEVEN.num_parameters * 2 / 8
    assert parts["optimiser"] == SEVEN.num_parameters * 12 / 8  # float32 weights and two moments
    assert parts["gathered weights"] == SEVEN.num_parameters * 2  # to sample
    assert sharded.estimate(SEVEN).needed < CARD
    assert Plan(Config(), "fsdp2", 8).estimate(SEVEN).needed < CARD


@pytest.mark.parametrize(
    ("plan", "limit", "phrases"),
    [
        (Plan(Config()), CARD, ["model.lora.rank = 64", "8 GPUs with configs/accelerate/zero3.yaml"]),
        (Plan(Config(), "ddp", 8), CARD, ["--strategy zero3", "model.lora.rank = 64"]),
        (Plan(Config.model_validate({"model": {"lora": {"rank": 64}, "gradient_checkpointing": False}})),
         CARD, ["model.gradient_checkpointing = true", "train.micro_batch_size = 1"]),
    ],
)  # fmt: skip
def test_what_is_advised_fits(plan: Plan, limit: float, phrases: list[str]) -> None:
    hints = advice(plan, SEVEN, limit)
    for phrase in phrases:
        assert any(phrase in hint for hint in hints), hints
    for change in changes(plan):
        said = any(hint.startswith(f"{change.words} (") for hint in hints)
        assert said == (change.applied(plan).estimate(SEVEN).needed <= limit)


def test_changes_are_joined_when_one_is_not_enough_and_nothing_is_said_when_it_fits() -> None:
    plan = Plan(Config.model_validate({"model": {"lora": {"rank": 64}}}))
    (hint,) = advice(plan, SEVEN, 24e9)
    assert hint.startswith("together: train.micro_batch_size = 1, ") and hint.count("micro_batch_size") == 1
    assert advice(plan, SEVEN, CARD) == []
    (hint,) = advice(plan, KNOWN["Qwen/Qwen2.5-VL-72B-Instruct"], CARD)
    assert "GPUs with configs/accelerate/zero3.yaml" in hint or "no setting is enough" in hint


def test_a_change_of_the_frames_forgets_the_measured_row() -> None:
    plan = replace(Plan(Config()), prompt_tokens=900, patches=100)
    kept = Change("", {"train": {"micro_batch_size": 4}}).applied(plan)
    other = Change("", {"observe": {"max_frame_px": 50_176}}).applied(plan)
    assert (kept.prompt_tokens, kept.patches) == (900, 100)
    assert (other.prompt_tokens, other.patches) == (None, None)


def test_rows_without_a_shared_prefix_are_whole_sequences() -> None:
    cfg = Config.model_validate({"model": {"shared_prefix": False}, "train": {"micro_batch_size": 4}})
    load = load_of(cfg, SEVEN)
    assert (load.rows, load.questions, load.packed) == (4, 4, 4 * (1374 + 160 + 1024))
    two = Config.model_validate({"train": {"micro_batch_size": 16, "questions_per_step": 2}})
    assert load_of(two, SEVEN).packed == 2 * 1374 + 16 * (160 + 1024)
