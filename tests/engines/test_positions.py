"""Rotary positions of Qwen2-VL and Qwen2.5-VL: worked by hand, and in the model."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from ffr.engines.batch import Batcher
from ffr.engines.encode import Encoder
from ffr.engines.positions import mrope_positions, use_trained_positions

from . import tiny

CLIP = [2] * 4


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Encoder]:
    path = tiny.build(tmp_path_factory.mktemp("tiny"))
    processor = AutoProcessor.from_pretrained(path, padding_side="left")
    return AutoModelForImageTextToText.from_pretrained(path).eval(), Encoder(processor)


def test_text_goes_on_behind_the_largest_position_of_the_clip() -> None:
    # Two words at 0 and 1. Four frame pairs of one token each start at 2; a pair takes 1.5 s at 2 positions
    # a second, so times are 2, 5, 8, 11 and the one row and column stay 2. The next word: 11 + 1.
    found = mrope_positions([0, 0, *CLIP, 0], [(4, 2, 2)], [3.0])
    assert found.tolist() == [[0, 1, 2, 5, 8, 11, 12], [0, 1, 2, 2, 2, 2, 12], [0, 1, 2, 2, 2, 2, 12]]


def test_the_product_of_pair_and_pace_is_cut_and_not_the_seconds_of_a_pair() -> None:
    # 0.4 s a pair, 2 positions a second: 0, 0.8, 1.6, 2.4 -> 0, 0, 1, 2.
    assert mrope_positions(CLIP, [(4, 2, 2)], [0.8])[0].tolist() == [0, 0, 1, 2]


def test_rows_and_columns_count_where_they_are_larger() -> None:
    # An image of 1 x 3 tokens (2 x 6 patches): columns 1, 2, 3, so the word behind it is at 4.
    found = mrope_positions([0, 1, 1, 1, 0], [(1, 2, 6)], [1.0])
    assert found.tolist() == [[0, 1, 1, 1, 4], [0, 1, 1, 1, 4], [0, 1, 2, 3, 4]]


def test_two_clips_each_start_behind_what_stands_before() -> None:
    found = mrope_positions([2, 2, 0, 2, 2], [(2, 2, 2), (2, 2, 2)], [4.0, 1.0])
    assert found[0].tolist() == [0, 4, 5, 6, 7]


@pytest.mark.parametrize("types", [[2, 2], [2] * 4 + [0] + [2] * 4])
def test_tokens_and_media_that_do_not_fit_are_errors(types: list[int]) -> None:
    with pytest.raises(ValueError, match="medium"):
        mrope_positions(types, [(4, 2, 2)], [1.0])
    with pytest.raises(ValueError, match="more media"):
        mrope_positions([0], [(4, 2, 2)], [1.0])


@given(
    words=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    times=st.integers(1, 6),
    side=st.integers(1, 3),
    interval=st.floats(0.0, 5.0),
)
def test_positions_never_go_back_and_words_never_share_one(
    words: list[int], times: int, side: int, interval: float
) -> None:
    medium = [2] * (times * side * side)
    types = [kind for count in words for kind in [0] * count + medium]
    found = mrope_positions(types, [(times, 2 * side, 2 * side)] * len(words), [interval] * len(words))
    text = [t for t, kind in enumerate(types) if kind == 0]
    assert (found[:, text] == found[0, text]).all()
    for at in text:
        assert at == 0 or int(found[:, :at].max()) + 1 == int(found[0, at])


def test_the_model_itself_has_them_in_every_pass(student) -> None:
    model, encoder = student
    prompt = encoder.encode(tiny.view(1, num_frames=8))
    stock = copy.deepcopy(model)
    inputs = {"input_ids": torch.tensor([prompt.train_ids]), **prompt.features}
    inputs["mm_token_type_ids"] = torch.tensor([prompt.mm_types])
    with torch.no_grad():
        before = stock(**inputs).logits
        positions = Batcher(model, encoder.pad_id).positions(prompt)
        after = model(**inputs).logits
        stated = stock(**inputs, position_ids=positions[:, None]).logits
    assert torch.allclose(after, stated, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-3), "the clip is too short to show a difference"


def test_a_clip_of_less_than_a_second_a_pair_keeps_its_order(student) -> None:
    model, encoder = student
    quick = tiny.view(1, num_frames=8)
    frames = tuple(replace(frame, timestamp_s=k * 0.25) for k, frame in enumerate(quick.frames))
    prompt = encoder.encode(replace(quick, frames=frames, duration_s=2.0, view_id="quick"))
    clip = Batcher(model, encoder.pad_id).positions(prompt)[0, [k == 2 for k in prompt.mm_types]]
    assert clip.unique().tolist() == [int(clip[0]) + k for k in range(4)]  # 0.5 s a pair, 2 a second


def test_left_padding_does_not_move_a_row(student) -> None:
    model, encoder = student
    assert use_trained_positions(model)
    long, short = (encoder.encode(tiny.view(k, num_frames=n)) for k, n in ((0, 8), (1, 4)))
    width, pad = long.num_tokens, long.num_tokens - short.num_tokens
    ids = torch.tensor([long.train_ids, (encoder.pad_id,) * pad + short.train_ids])
    types = torch.tensor([long.mm_types, (0,) * pad + short.mm_types])
    mask = torch.ones_like(ids)
    mask[1, :pad] = 0
    grids = torch.cat([p.features["video_grid_thw"] for p in (long, short)])
    seconds = torch.cat([p.features["second_per_grid_ts"] for p in (long, short)])
    found, added = model.model.get_rope_index(
        ids, types, video_grid_thw=grids, second_per_grid_ts=seconds, attention_mask=mask
    )
    batcher = Batcher(model, encoder.pad_id)
    assert torch.equal(found[:, 0], batcher.positions(long))
    assert torch.equal(found[:, 1, pad:], batcher.positions(short))
    assert added[:, 0].tolist() == [
        int(batcher.positions(long).max()) + 1 - width,
        int(batcher.positions(short).max()) + 1 - short.num_tokens,
    ]


def test_generating_step_by_step_goes_on_where_the_prompt_ended(student) -> None:
    model, encoder = student
    assert use_trained_positions(model)
    prompt = encoder.encode(tiny.view(2, num_frames=8))
    ids, types = torch.tensor([prompt.train_ids]), torch.tensor([prompt.mm_types])
    whole = model.generate(
        input_ids=ids,
        mm_token_type_ids=types,
        **prompt.features,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    completion = whole.sequences[0, ids.shape[1] :].tolist()
    stepwise = torch.stack(whole.logits, 1)[0].log_softmax(-1)[range(6), completion]
    assert torch.allclose(stepwise, tiny.plain_logprobs(model, prompt, completion), atol=1e-5)


def test_qwen2_vl_takes_one_step_a_pair_and_others_are_left_alone(student) -> None:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "vocab_size": 32}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    assert use_trained_positions(model)
    ids, types = torch.tensor([[1, 9, 9, 9, 9, 2]]), torch.tensor([[0, *CLIP, 0]])
    found, added = model.model.get_rope_index(ids, types, video_grid_thw=torch.tensor([[4, 2, 2]]))
    assert found[0, 0].tolist() == [0, 1, 2, 3, 4, 5] and added.item() == 0
    assert not use_trained_positions(torch.nn.Linear(1, 1))
