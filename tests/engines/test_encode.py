from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from ffr.engines.encode import EncodedPrompt, EncodeError, Encoder


def _reference(processor, obs):
    """The same prompt through the processor's own public call, media and text together."""
    from transformers.video_utils import VideoMetadata

    frames = torch.from_numpy(np.stack([f.pixels for f in obs.frames])).permute(0, 3, 1, 2)
    video = len(obs.frames) > 1
    content = [{"type": "video" if video else "image"}, {"type": "text", "text": obs.prompt}]
    if obs.patch_text:
        content[1]["text"] += "\n" + obs.patch_text
    content += [{"type": "image"} for _ in obs.extra_frames]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    images = [torch.from_numpy(f.pixels).permute(2, 0, 1) for f in obs.extra_frames]
    if not video:
        images.insert(0, frames[0])
    kwargs: dict = {"text": [text], "return_tensors": "pt"}
    if images:
        kwargs |= {"images": images, "images_kwargs": {"do_resize": False}}
    if video:
        metadata = VideoMetadata(
            total_num_frames=round(obs.duration_s * 1000),
            fps=1000.0,
            frames_indices=[round(f.timestamp_s * 1000) for f in obs.frames],
        )
        kwargs["videos"] = [frames]
        kwargs["videos_kwargs"] = {
            "do_resize": False, "do_sample_frames": False, "video_metadata": [metadata],
            "cap_pixels_per_frame": False,
        }  # fmt: skip
    return processor(**kwargs)


@pytest.mark.parametrize(
    "obs",
    [
        tiny.view(0),
        tiny.view(1, patch="look at frames 1-3"),
        tiny.view(2, num_frames=5, extra=2, patch="again"),
        tiny.view(3, num_frames=1),
    ],
    ids=["video", "patched", "extra-frames", "image"],
)
def test_equals_the_processors_own_encoding(encoder: Encoder, processor, obs) -> None:
    prompt, expected = encoder.encode(obs), _reference(processor, obs)
    assert list(prompt.train_ids) == expected["input_ids"][0].tolist()
    assert list(prompt.mm_types) == expected["mm_token_type_ids"][0].tolist()
    features = prompt.features
    assert set(features) == set(expected) - {"input_ids", "attention_mask", "mm_token_type_ids"}
    for name, value in features.items():
        assert torch.equal(value.float(), torch.as_tensor(expected[name]).float()), name


def test_generation_gets_one_visual_token_per_medium(encoder: Encoder, processor) -> None:
    prompt = encoder.encode(tiny.view(0, extra=2, patch="p"))
    assert prompt.gen_ids.count(processor.video_token_id) == 1
    assert prompt.gen_ids.count(processor.image_token_id) == 2
    assert prompt.mm_types.count(2) == 12 and prompt.mm_types.count(1) == 8


def test_times_of_the_clip_reach_the_features(encoder: Encoder) -> None:
    slow = encoder.encode(tiny.view(0)).features["second_per_grid_ts"]
    assert slow.tolist() == pytest.approx([1.0])  # 6 frames in 3 s, 2 frames a step


def test_rows_of_one_clip_share_the_tensors(encoder: Encoder) -> None:
    plain, patched = tiny.view(0), tiny.view(0, patch="look")
    first, second = encoder.encode(plain), encoder.encode(patched)
    assert first.media[0] is second.media[0]
    assert encoder.encode(plain) is first
    assert second.train_ids != first.train_ids


def test_cache_is_bounded(processor) -> None:
    encoder = Encoder(processor, cache_bytes=1)
    first = encoder.encode(tiny.view(0))
    encoder.encode(tiny.view(1))
    assert len(encoder._media) == 1
    again = Encoder(processor).encode(tiny.view(0))
    assert torch.equal(first.features["pixel_values_videos"], again.features["pixel_values_videos"])


def test_text_alone_has_no_features(encoder: Encoder) -> None:
    prompt = encoder.encode(tiny.view(0, num_frames=0))
    assert prompt.features == {} and prompt.train_ids == prompt.gen_ids and set(prompt.mm_types) == {0}


def test_too_long_prompt_names_the_sample(processor) -> None:
    encoder = Encoder(processor, max_prompt_tokens=30)
    with pytest.raises(EncodeError, match=r"'t/7'.*max_prompt_tokens is 30.*num_frames"):
        encoder.encode(tiny.view(7))


def test_frames_that_do_not_fit_are_refused(encoder: Encoder) -> None:
    with pytest.raises(EncodeError, match=r"50x50 px.*observe.size_factor_px = 28"):
        encoder.encode(tiny.view(0, side=50))


def test_frames_without_pixels_are_refused(encoder: Encoder) -> None:
    from dataclasses import replace

    obs = tiny.view(0)
    blank = replace(obs, frames=tuple(replace(f, pixels=None) for f in obs.frames), view_id="other")
    with pytest.raises(EncodeError, match="without pixels"):
        encoder.encode(blank)


def test_control_tokens_in_a_question_stay_text(encoder: Encoder, processor) -> None:
    prompt = encoder.encode(tiny.view(0, prompt="is <|video_pad|><|im_end|> here ?"))
    assert prompt.gen_ids.count(processor.video_token_id) == 1
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prompt.gen_ids.count(end) == 1
    assert "< |video_pad|>" in processor.tokenizer.decode(prompt.gen_ids)


def test_parity_is_checked(encoder: Encoder) -> None:
    obs = tiny.view(0)
    good = encoder.encode(obs)
    bad = EncodedPrompt("v", "t/0", good.train_ids[:10], good.gen_ids, good.mm_types[:10], good.media)
    with pytest.raises(EncodeError, match="video tokens for 12 video features"):
        encoder._check(obs, bad)
