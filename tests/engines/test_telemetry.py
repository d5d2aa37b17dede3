"""Where the time goes, what a pass costs, and whether sampler and trainer agree."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils.flop_counter import FlopCounterMode

from ffr.algorithms import make_algorithm
from ffr.engines import flops
from ffr.engines.clock import PHASES, Clock, TimedSampler
from ffr.engines.packed import lay_out, plan
from ffr.engines.shapes import KNOWN, ShapeError, find_shape, shape_of
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import run as train_module
from ffr.engines.trl import setup
from ffr.engines.trl.metrics import SUM_NAMES, named_metrics
from ffr.engines.trl.telemetry import PEAKS

INDICES = [0, 1]
repair_module = import_module("ffr.fix.repair")  # the package exports a function of this name


class Ticks:
    """A clock's hand that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds


def test_an_inner_phase_is_taken_out_of_the_outer_one() -> None:
    ticks = Ticks()
    clock = Clock(now=ticks)
    ticks.go(100.0)  # before the first phase: no part of a step
    with clock.phase("fix"):
        ticks.go(3.0)
        with clock.phase("generate"):
            ticks.go(2.0)
            with clock.phase("vision"):
                ticks.go(0.5)
        ticks.go(1.0)
    ticks.go(0.25)
    clock.base("update")
    ticks.go(7.0)
    taken = clock.take()
    assert taken == {"fix": 4.0, "generate": 2.0, "vision": 0.5, "other": 0.25, "update": 7.0}
    assert sum(taken.values()) == ticks.now - 100.0
    ticks.go(1.0)
    assert clock.take() == {"update": 1.0}


def test_coroutines_that_interleave_share_the_time_and_nothing_is_lost() -> None:
    ticks = Ticks()
    clock = Clock(now=ticks)

    async def one(name: str, seconds: list[float]) -> None:
        with clock.phase(name):
            for part in seconds:
                ticks.go(part)
                await asyncio.sleep(0)

    async def both() -> None:
        # a: 1, b: 10, a (b is on top): 2, b: 20, b's end, a's rest: 4
        await asyncio.gather(one("fix", [1.0, 2.0, 4.0]), one("generate", [10.0, 20.0]))

    asyncio.run(both())
    assert clock.take() == {"fix": 1.0, "generate": 10.0 + 2.0 + 20.0 + 4.0}
    assert clock.current == "other"


def test_a_phase_ends_with_its_error() -> None:
    ticks = Ticks()
    clock = Clock(now=ticks)
    with pytest.raises(KeyError), clock.phase("save"):
        ticks.go(1.0)
        raise KeyError
    assert clock.current == "other" and clock.take() == {"save": 1.0}


def test_the_gpu_is_waited_for_at_borders_only_when_asked() -> None:
    waits: list[int] = []
    clock = Clock(synchronize=lambda: waits.append(1))
    with clock.phase("score"):
        assert len(waits) == 1
    clock.take()
    assert len(waits) == 3


def test_a_timed_sampler_is_the_sampler() -> None:
    class Sampler:
        lock_step = True

        async def sample(self, observations, *, num, source="policy"):
            return [[clock.current, source]] * num

        async def sample_one(self, obs, *, source, stream):
            return clock.current, stream

    clock = Clock()
    timed = TimedSampler(Sampler(), clock)
    assert timed.lock_step
    assert asyncio.run(timed.sample([], num=2, source="repaired")) == [["generate", "repaired"]] * 2
    assert asyncio.run(timed.sample_one(None, source="policy", stream=3)) == ("generate", 3)
    assert not hasattr(timed, "sample_none") and clock.current == "other"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    return tiny.samples(tmp_path_factory.mktemp("clips"), 2)


@pytest.fixture(autouse=True)
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path, clips):
    def make(*, teacher=None, **changes):
        cfg = tiny.config(checkpoint, tmp_path / "run", **changes)
        args = setup.grpo_arguments(cfg, 1)
        trainer = train_module._build(cfg, clips, INDICES, args, make_algorithm(cfg), teacher, ())
        trainer.model.train()
        return trainer

    return make


def _round(trainer):
    size = trainer.cfg.find.group_size
    batch = [{"prompt": "ffr", "index": i} for i in INDICES for _ in range(size)]
    return trainer._round(batch, trainer.args.steps_per_generation, training=True)


def test_sampler_and_trainer_agree_and_a_disagreement_is_measured(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    (micro,) = _round(trainer)
    assert all(row.sampled_logprobs is not None for row in micro.rows)
    assert len({row.prompt.num_tokens for row in micro.rows}) > 1  # patched rows are compared too
    trainer._compute_loss(trainer.model, micro)
    sums, peaks = trainer.telemetry.take(), dict(zip(PEAKS, trainer.telemetry.take_peaks(), strict=True))
    assert sums["mismatch_tokens"] == sum(len(row.completion) for row in micro.rows)
    assert peaks["mismatch"] < 1e-4 and sums["ratio_square"] == sums["mismatch_tokens"]
    row = micro.rows[0]
    object.__setattr__(row, "sampled_logprobs", tuple(x - 0.5 for x in row.sampled_logprobs))
    trainer._compute_loss(trainer.model, micro)
    sums, peaks = trainer.telemetry.take(), dict(zip(PEAKS, trainer.telemetry.take_peaks(), strict=True))
    assert peaks["mismatch"] == pytest.approx(0.5, abs=1e-4)
    assert sums["mismatch"] == pytest.approx(0.5 * len(row.completion), abs=1e-3)


def test_second_tries_are_sampling_not_waiting_and_the_tower_is_timed_inside(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"})
    clock, sample, tower = trainer.flow.clock, trainer.sampler.sample, trainer.model.model.visual
    seen: list[tuple[str, str]] = []

    async def spy(observations, *, num, source="policy"):
        seen.append((source, clock.current))
        return await sample(observations, num=num, source=source)

    trainer.sampler.sample = spy
    tower.blocks[0].register_forward_pre_hook(lambda *_: seen.append(("tower", clock.current)))
    _round(trainer)
    assert set(seen) == {("policy", "generate"), ("repaired", "generate"), ("tower", "vision")}
    assert clock.current == "other"


def test_rows_of_another_view_are_not_compared(build) -> None:
    trainer = build(teacher=tiny.FakeTeacher(), train={"algorithm": "ffr"}, reason={"train_view": "reattach"})
    (micro,) = _round(trainer)
    moved = [row.treatment != "own" for row in micro.rows]
    assert any(moved) and [row.sampled_logprobs is None for row in micro.rows] == moved


def test_ratios_after_an_update_have_a_spread(build) -> None:
    trainer = build(train={"algorithm": "grpo"})
    (micro,) = _round(trainer)
    logprobs, mask = trainer._logprobs(trainer.model, micro.rows)
    old = logprobs.detach() - 0.1 * mask
    old[0, 0] = logprobs.detach()[0, 0] + 0.3
    trainer.telemetry.take(), trainer.telemetry.take_peaks()
    trainer.telemetry.loss(logprobs, old, mask, micro.rows)
    sums, peaks = trainer.telemetry.take(), dict(zip(PEAKS, trainer.telemetry.take_peaks(), strict=True))
    assert peaks["ratio"] == pytest.approx(0.1, abs=1e-5)
    assert peaks["ratio_inverse"] == pytest.approx(0.3, abs=1e-5)
    n = int(mask.sum())
    # (n - 1) ratios of e^0.1 and one of e^-0.3, squared
    expected = (n - 1) * 2.718281828**0.2 + 2.718281828**-0.6
    assert sums["ratio_square"] == pytest.approx(expected, rel=1e-4)


def test_tokens_and_operations_of_a_packed_pass_are_counted(build) -> None:
    trainer = build(train={"algorithm": "grpo"})
    (micro,) = _round(trainer)
    trainer.telemetry.take()
    clock = trainer.flow.clock
    with clock.phase("update"):
        trainer._logprobs(trainer.model, micro.rows)
    prompts, completions = [r.prompt for r in micro.rows], [r.completion for r in micro.rows]
    layout = lay_out(plan(prompts), prompts, completions, trainer.batcher, "cpu").layout
    pairs = int(layout.allowed().sum())  # the mask itself
    shape = trainer.telemetry.shape
    sums = trainer.telemetry.take()
    assert sums["lm_tokens/update"] == layout.num_tokens
    vision = flops.vision_flops(shape.vision, [(2, 4, 4)] * 2)  # 4 frames of 56 px, two clips
    assert sums["flops/vision"] == vision
    forward = flops.text_flops(shape.text, num_tokens=layout.num_tokens, num_pairs=pairs)
    forward += flops.head_flops(shape.text, sum(map(len, completions)))
    # Backward: twice the forward pass, and twice the tower's, which was counted as `vision` before.
    assert sums["flops/update"] == pytest.approx(3 * forward + 2 * vision, rel=1e-9)


def test_operations_equal_torchs_own_count(model, checkpoint: Path, encoder) -> None:
    model.set_attn_implementation("eager")  # whose products torch counts: all n * n pairs
    shape = find_shape(str(checkpoint))[0]
    prompt = encoder.encode(tiny.view(1, num_frames=2, side=56))
    types = torch.tensor([prompt.mm_types])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(
            input_ids=torch.tensor([prompt.train_ids]), mm_token_type_ids=types, **prompt.features,
            use_cache=False,
        )  # fmt: skip
    n = prompt.num_tokens
    expected = flops.text_flops(shape.text, num_tokens=n, num_pairs=n * n)
    expected += flops.head_flops(shape.text, n) + flops.vision_flops(shape.vision, [(1, 4, 4)])
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


def test_a_run_reports_times_that_add_up_speeds_and_memory(checkpoint: Path, tmp_path: Path, clips) -> None:
    class Slow(tiny.FakeTeacher):
        async def diagnose(self, request):
            await asyncio.sleep(0.2)
            return await super().diagnose(request)

    notes = tiny.Notes()
    train = {"algorithm": "ffr", "num_epochs": 2.0, "save_every": 1}
    cfg = tiny.config(checkpoint, tmp_path / "run", train=train)
    train_module.train(cfg, clips, teacher=Slow(), sinks=[notes])
    first, second = notes.rows
    for row in notes.rows:
        parts = [row[f"time/{name}_s"] for name in PHASES]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(row["time/step_s"], rel=1e-9)
        # All failures of a step are asked about at once; sampling the second tries is `generate`.
        assert row["time/fix_s"] >= 0.2 and row["time/teacher_share"] == pytest.approx(
            row["time/fix_s"] / row["time/step_s"], rel=1e-9
        )
        assert row["time/generate_s"] > 0 and row["time/update_s"] > 0 and row["time/vision_s"] > 0
        sampled = row["speed/generate_tok_s"] * row["time/generate_s"]
        assert sampled >= row["tokens/completion"] - 1e-6
        assert row["speed/score_tok_s"] > 0 and row["speed/update_tok_s"] > 0
        assert 0.05 < row["memory/peak_gib"] < 64 and "memory/device_gib" not in row
        assert not [name for name in row if name.startswith("mfu/")]  # not shown on a CPU
        assert row["sampler/logprob_mismatch"] <= row["sampler/logprob_mismatch_max"] < 1e-4
        assert row["policy/ratio_min"] == row["policy/ratio_max"] == 1.0
        assert row["policy/ratio_std"] == pytest.approx(0.0, abs=1e-3)
        assert 0 <= row["reason/zero_advantage_share"] <= 1
    assert second["time/save_s"] > 0 and first["time/save_s"] == 0


def test_dead_groups_and_speeds_are_what_their_sums_say() -> None:
    sums = dict.fromkeys(SUM_NAMES, 0.0) | {
        "ranks": 2.0, "rollouts": 16.0, "groups": 2.0, "zero_groups": 1.0, "zero_rollouts": 10.0,
        "right_groups": 1.0, "sampled_tokens": 3000.0, "seconds/generate": 20.0, "seconds/update": 8.0,
        "seconds/fix": 12.0, "lm_tokens/update": 800.0, "flops/update": 4e12, "flops/generate": 2e12,
        "update_tokens": 100.0, "ratio_mean": 100.0, "ratio_square": 125.0,
    }  # fmt: skip
    peaks = dict.fromkeys(PEAKS, 0.0) | {"peak_flops": 1e12, "memory_bytes": 3 * 2**30}
    found = named_metrics(sums, peaks)
    assert found["group/all_right"] == 0.5 and found["group/all_wrong"] == 0.0
    assert found["reason/zero_advantage_groups"] == 0.5
    assert found["reason/zero_advantage_share"] == 10 / 16
    assert found["time/step_s"] == 20.0  # (20 + 8 + 12) / 2 ranks
    assert found["time/teacher_share"] == 6 / 20
    assert found["speed/generate_tok_s"] == 300.0 and found["speed/update_tok_s"] == 200.0
    assert found["mfu/update"] == pytest.approx(4e12 / (2e12 * 4.0))
    assert found["mfu/step"] == pytest.approx(6e12 / (2e12 * 20.0))
    assert found["policy/ratio_std"] == pytest.approx(0.5)
    assert found["memory/peak_gib"] == 3.0


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 311.9),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", None),
    ],
)
def test_peaks_go_by_the_devices_name(device: str, tflops: float | None) -> None:
    found = flops.peak_flops(device)
    assert found == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_the_table_of_released_sizes_is_the_architectures(tmp_path: Path) -> None:
    """Parameters of each released model, built without memory, against the formulas."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
    )

    for name in ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"):
        shape = KNOWN[name]
        text, vision = shape.text, shape.vision
        config: dict = {
            "text_config": {
                "vocab_size": text.vocab, "hidden_size": text.hidden, "intermediate_size": text.intermediate,
                "num_hidden_layers": text.num_layers, "num_attention_heads": text.num_heads,
                "num_key_value_heads": text.num_kv_heads,
            },
            "vision_config": {
                "depth": vision.num_layers, "hidden_size": vision.hidden, "num_heads": vision.num_heads,
                "intermediate_size": vision.intermediate, "out_hidden_size": vision.out_hidden,
                "patch_size": vision.patch_px,
            },
            "tie_word_embeddings": text.tied,
        }  # fmt: skip
        with torch.device("meta"):
            if vision.gated:
                built = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
            else:
                config["text_config"]["head_dim"] = text.head_dim
                built = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
        built.tie_weights()
        assert sum(p.numel() for p in built.parameters()) == shape.num_parameters, name
        assert shape_of(built.config.to_dict()) == shape
    # What the model cards state.
    assert round(KNOWN["Qwen/Qwen2.5-VL-3B-Instruct"].num_parameters / 1e9, 2) == 3.75
    assert round(KNOWN["Qwen/Qwen3-VL-2B-Instruct"].num_parameters / 1e9, 2) == 2.13
    assert round(KNOWN["Qwen/Qwen2.5-VL-32B-Instruct"].num_parameters / 1e9, 1) == 33.5
    assert round(KNOWN["Qwen/Qwen2.5-VL-72B-Instruct"].num_parameters / 1e9, 1) == 73.4
    assert round(KNOWN["Qwen/Qwen3-VL-4B-Instruct"].num_parameters / 1e9, 2) == 4.44


def test_a_model_of_unknown_sizes_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="'llava': sizes are known of qwen2_5_vl and qwen3_vl only"):
        shape_of({"model_type": "llava"})
    with pytest.raises(ShapeError, match="qwen3_vl without 'vision_config'"):
        shape_of({"model_type": "qwen3_vl", "hidden_size": 8, "num_attention_heads": 2,
                  "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 8})  # fmt: skip
    with pytest.raises(ShapeError, match=r"no config\.json there nor in the hub's local cache"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ShapeError, match="restore the file"):
        find_shape(str(tmp_path))
