"""Repairs go on from the first pass: the same tokens and log-probabilities, and only the patch is read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from ffr.algorithms import make_algorithm
from ffr.config import FindConfig
from ffr.engines.batch import Batcher
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler, banned_tokens
from ffr.engines.prefix import PrefixCache, shared_beginning
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import run as train_module
from ffr.engines.trl import setup
from ffr.types import Observation

FIND = FindConfig(max_completion_tokens=10)
ROOM = 64 * 2**20


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def student(request, tmp_path_factory: pytest.TempPathFactory):
    """(model, encoder, frame side in pixels)."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    build, side = {"qwen2_5_vl": (tiny.build, 56), "qwen3_vl": (tiny.build_qwen3, 64)}[request.param]
    path: Path = build(tmp_path_factory.mktemp(request.param))
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    return model, Encoder(AutoProcessor.from_pretrained(path), max_prompt_tokens=4096), side


def _first(side: int) -> list[Observation]:
    return [
        tiny.view(0, side=side),
        tiny.view(3, num_frames=9, side=side),
        tiny.view(4, num_frames=1, side=side),
    ]


def _patched(obs: Observation, patch: str, *, extra: int = 0) -> Observation:
    again = obs.frames[1 : 1 + extra]
    return replace(obs, patch_text=patch, extra_frames=again, view_id=f"{obs.view_id}/{patch}/{extra}")


def _repairs(views: list[Observation]) -> list[Observation]:
    """Text patches of unlike lengths, patches with frames, and a clip that was never sampled."""
    a, b, image = views
    return [
        _patched(a, "look at frames 1-3"),
        _patched(b, "look again at what happens after the first third of it, frames 4-6"),
        _patched(a, "see", extra=2),
        _patched(b, "see these", extra=1),
        _patched(image, "where is it ?"),
        _patched(tiny.view(9, side=a.frames[0].width_px), "another clip"),
    ]


def _round(student, *, prefix_bytes: int, greedy: bool = False, num: int = 1):
    model, encoder, side = student
    sampler = HFSampler(model, encoder, find=FIND, seed=5, greedy=greedy, prefix_bytes=prefix_bytes)
    views = _first(side)
    asyncio.run(sampler.sample(views, num=3))
    again = asyncio.run(sampler.sample(_repairs(views), num=num, source="repaired"))
    return sampler, [rollout for group in again for rollout in group]


@pytest.mark.parametrize(("greedy", "num"), [(False, 2), (True, 1)])
def test_repairs_equal_those_from_scratch_and_a_plain_forward(student, greedy: bool, num: int) -> None:
    model, encoder, _ = student
    kept, with_prefix = _round(student, prefix_bytes=ROOM, greedy=greedy, num=num)
    plain, from_scratch = _round(student, prefix_bytes=0, greedy=greedy, num=num)
    assert (kept.prefixes.counters["hit"], plain.prefixes.counters["hit"]) == (5, 0)
    assert [r.token_ids for r in with_prefix] == [r.token_ids for r in from_scratch]
    for ours, theirs in zip(with_prefix, from_scratch, strict=True):
        assert ours.observation.view_id == theirs.observation.view_id and ours.source == "repaired"
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        expected = tiny.plain_logprobs(model, encoder.encode(ours.observation), ours.token_ids)
        assert torch.tensor(ours.logprobs) == pytest.approx(expected, abs=1e-5)


def test_only_what_is_new_is_read(student) -> None:
    model, encoder, side = student
    read: list[tuple[int, int]] = []
    patches: list[int] = []
    language = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    vision = model.model.visual.register_forward_hook(lambda _m, args, _o: patches.append(len(args[0])))
    sampler = HFSampler(model, encoder, find=replace_tokens(1), prefix_bytes=ROOM)
    view = tiny.view(0, num_frames=8, side=side)
    try:
        asyncio.run(sampler.sample([view], num=4))
        first = encoder.encode(view).num_tokens
        assert read == [(1, first)]
        asyncio.run(sampler.sample([_patched(view, "look at frames 1-3")], num=1, source="repaired"))
    finally:
        language.remove()
        vision.remove()
    prompt = encoder.encode(_patched(view, "look at frames 1-3"))
    shared, num_media = shared_beginning(encoder.encode(view), prompt, sampler.batcher)
    assert read[1:] == [(1, prompt.num_tokens - shared)] and num_media == 1
    # clip and question are shared: what is left are the patch and the closing tokens of the turn
    assert sum(prompt.mm_types[shared:]) == 0
    assert encoder.decode(prompt.train_ids[:shared], frozenset()).endswith(view.prompt)
    assert len(patches) == 1  # the clip went through the vision tower in the first pass only
    assert sampler.prefixes.counters["reused_tokens"] == shared


def replace_tokens(num: int) -> FindConfig:
    return FIND.model_copy(update={"max_completion_tokens": num})


def test_the_beginning_ends_where_pixels_differ(student) -> None:
    model, encoder, side = student
    batcher = Batcher(model, encoder.pad_id)
    view = tiny.view(0, side=side)
    plain = encoder.encode(view)
    other = encoder.encode(tiny.view(1, side=side))  # the same tokens, other pixels
    assert other.train_ids == plain.train_ids
    shared, num_media = shared_beginning(plain, other, batcher)
    assert num_media == 0 and shared == int(np.flatnonzero(plain.mm_types)[0])
    two = encoder.encode(_patched(view, "see", extra=2))
    swapped = replace(_patched(view, "see", extra=2), extra_frames=view.frames[3:5], view_id="swapped")
    shared, num_media = shared_beginning(two, encoder.encode(swapped), batcher)
    images = np.flatnonzero(np.asarray(two.mm_types) == 1)
    assert num_media == 1 and shared == int(images[0])
    # a prompt that is known whole still reads its last token: it predicts the first one of the completion
    assert shared_beginning(two, two, batcher) == (two.num_tokens - 1, 3)


def _policy_changes(model) -> dict[str, object]:
    def step() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    def load() -> None:
        model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})

    return {"optimiser": step, "loading": load}


@pytest.mark.parametrize("change", ["optimiser", "loading"])
def test_another_policy_version_reads_everything_again(model, encoder: Encoder, change: str) -> None:
    sampler = HFSampler(model, encoder, find=FIND, seed=5, prefix_bytes=ROOM)
    views = _first(56)[:2]
    asyncio.run(sampler.sample(views, num=2))
    assert sampler.prefixes.num_kept == 2
    before = [p.detach().clone() for p in model.parameters()]
    _policy_changes(model)[change]()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    patched = [_patched(view, "look at frames 1-3") for view in views]
    rollouts = asyncio.run(sampler.sample(patched, num=1, source="repaired"))
    counters = sampler.prefixes.counters
    assert (counters["stale"], counters["hit"], counters["miss"]) == (2, 0, 4)
    for [rollout] in rollouts:
        expected = tiny.plain_logprobs(model, encoder.encode(rollout.observation), rollout.token_ids)
        assert torch.tensor(rollout.logprobs) == pytest.approx(expected, abs=1e-5)


def test_adapters_switched_off_are_another_policy(model, encoder: Encoder) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    sampler = HFSampler(wrapped, encoder, find=FIND, prefix_bytes=ROOM)
    view = tiny.view(0)
    asyncio.run(sampler.sample([view], num=2))
    asyncio.run(sampler.sample([_patched(view, "again")], num=1))
    assert sampler.prefixes.counters["hit"] == 1
    with wrapped.disable_adapter():
        asyncio.run(sampler.sample([_patched(view, "once more")], num=1))
    assert (sampler.prefixes.counters["hit"], sampler.prefixes.counters["stale"]) == (1, 1)


def test_memory_is_bounded_and_freed(model, encoder: Encoder) -> None:
    views = [tiny.view(k) for k in range(3)]
    text = model.config.get_text_config()
    size = text.hidden_size // text.num_attention_heads
    # keys and values, 4 bytes each, of every layer, head and token
    one = (
        2 * 4 * text.num_hidden_layers * text.num_key_value_heads * size * encoder.encode(views[0]).num_tokens
    )
    sampler = HFSampler(model, encoder, find=FIND, prefix_bytes=2 * one)
    asyncio.run(sampler.sample(views, num=2))
    assert sampler.prefixes.held_bytes == 2 * one and sampler.prefixes.num_kept == 2
    asyncio.run(sampler.sample([_patched(views[0], "gone"), _patched(views[2], "kept")], num=1))
    counters = sampler.prefixes.counters
    assert counters["hit"] == 1 and counters["evicted"] >= 1 and sampler.prefixes.held_bytes <= 2 * one
    sampler.forget()
    assert (sampler.prefixes.num_kept, sampler.prefixes.held_bytes) == (0, 0)
    asyncio.run(sampler.sample(views[:1], num=1))
    sampler.reseed(0, 1)  # a new round
    assert sampler.prefixes.num_kept == 0
    tight = HFSampler(model, encoder, find=FIND, prefix_bytes=one // 2)
    asyncio.run(tight.sample(views[:1], num=1))
    assert tight.prefixes.num_kept == 0 and tight.prefixes.counters["evicted"] == 1


def test_other_kinds_of_cache_are_not_kept_and_counted(encoder: Encoder) -> None:
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicSlidingWindowLayer

    cache = DynamicCache()
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=4))
    prefixes = PrefixCache(ROOM)
    prefixes.put([encoder.encode(tiny.view(0))], cache)
    assert prefixes.num_kept == 0 and prefixes.counters["unsupported"] == 1


@pytest.mark.parametrize("greedy", [False, True])
def test_no_visual_token_is_ever_sampled(student, greedy: bool) -> None:
    model, encoder, _ = student
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
    ids = [encoder.tokenizer.convert_tokens_to_ids(name) for name in names]
    assert banned_tokens(model, encoder)[ids].all()
    weight = model.lm_head.weight
    saved = weight.detach().clone()
    with torch.no_grad():
        weight[ids] *= 60  # either sign of a hidden state's product: some of them would always win
    try:
        sampler, rollouts = _round(student, prefix_bytes=ROOM, greedy=greedy)
        assert sampler.prefixes.counters["hit"] == 5
        assert not set(ids) & {token for r in rollouts for token in r.token_ids}
        prompt = encoder.encode(rollouts[0].observation)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([prompt.train_ids]),
                mm_token_type_ids=torch.tensor([prompt.mm_types]),
                **prompt.features,
            ).logits[0, -1]
        assert int(logits.argmax()) in ids  # what an unguarded draw would have taken
    finally:
        with torch.no_grad():
            weight.copy_(saved)


def test_a_round_of_training_repairs_on_the_prefix_and_frees_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair_module = import_module("ffr.fix.repair")
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)
    clips = tiny.samples(tmp_path / "clips", 2)
    cfg = tiny.config(checkpoint, tmp_path / "run", train={"algorithm": "ffr", "micro_batch_size": 4})

    def rows_of(room: int):
        args = setup.grpo_arguments(cfg, 1)
        teacher = tiny.FakeTeacher()
        trainer = train_module._build(cfg, clips, [0, 1], args, make_algorithm(cfg), teacher, ())
        trainer.model.train()
        trainer.sampler.prefixes.limit_bytes = min(room, trainer.sampler.prefixes.limit_bytes)
        batch = [{"prompt": "ffr", "index": i} for i in (0, 1) for _ in range(cfg.find.group_size)]
        micro = trainer._round(batch, trainer.args.steps_per_generation, training=True)
        return trainer.sampler.prefixes, [row for m in micro for row in m.rows]

    prefixes, rows = rows_of(ROOM)
    assert len({row.prompt.num_tokens for row in rows}) > 1  # some are patched
    assert prefixes.counters["hit"] > 0 and prefixes.counters["miss"] == 2  # the two questions
    assert (prefixes.num_kept, prefixes.held_bytes) == (0, 0)  # freed when the round's sampling is over
    without, plain = rows_of(0)
    assert without.counters["hit"] == 0
    assert [row.completion for row in rows] == [row.completion for row in plain]
