"""The prompt against the real Qwen2.5-VL tokenizer, chat template and the transformers processor."""

import pytest

from ffr.config import ObserveConfig
from ffr.observe import apply_patch, fit_size, observe, user_text
from tests.assets import require_asset
from tests.observe.clips import make_sample, write_clip
from tests.observe.test_prompt import make_patch

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def processor():
    torch.set_num_threads(1)
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = AutoTokenizer.from_pretrained(require_asset("qwen2.5-vl"))
    assert tokenizer.chat_template, "the package's tokenizer_config.json holds the VL template"
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(do_sample_frames=False, do_resize=False),
        chat_template=tokenizer.chat_template,
    )


@pytest.fixture(scope="module")
def obs(tmp_path_factory):
    path = write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 60, size=(640, 360))
    return observe(make_sample(path), ObserveConfig())


def rendered(processor, obs) -> str:
    content = [{"type": "video"}, {"type": "text", "text": user_text(obs)}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_chat_template_keeps_the_prompt_as_it_is(processor, obs):
    text = rendered(processor, obs)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>" + obs.prompt + "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "16 frames numbered 1-16" in text and "Which {colour} is {{it}}?" in text


def test_token_counts(processor, obs):
    """16 frames of 420x224: grid 8 x 16 x 30 patches, merged 2x2, hence 8 * 8 * 15 = 960 video tokens."""
    tokenizer = processor.tokenizer
    frames = torch.stack([torch.tensor(f.pixels).permute(2, 0, 1) for f in obs.frames])
    assert frames.shape == (16, 3, 224, 420)
    out = processor(text=[rendered(processor, obs)], videos=[frames], return_tensors="pt")
    assert out["video_grid_thw"].tolist() == [[8, 16, 30]]
    pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert pad == 151656
    assert int((out["input_ids"] == pad).sum()) == 960
    text_tokens = len(tokenizer(rendered(processor, obs))["input_ids"]) - 1
    assert out["input_ids"].shape[1] == text_tokens + 960
    # The instruction is short against the video, and all of it fits the paper's 16,384 prompt tokens.
    assert text_tokens < 260
    assert out["input_ids"].shape[1] < 16_384


def test_patch_comes_after_the_shared_prefix(processor, obs):
    tokenizer = processor.tokenizer
    plain = tokenizer(rendered(processor, obs))["input_ids"]
    patched_obs = apply_patch(obs, make_patch())
    patched = tokenizer(rendered(processor, patched_obs))["input_ids"]
    shared = next(i for i, (a, b) in enumerate(zip(plain, patched, strict=False)) if a != b)
    # All but the prompt's last full stop (it joins the newline) and the end of the turn is shared.
    end_of_prompt = len(tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert len(plain) - end_of_prompt - 1 <= shared <= len(plain) - end_of_prompt
    assert tokenizer.decode(patched).count(patched_obs.patch_text) == 1


def test_think_and_answer_tags_survive_a_round_trip(processor, obs):
    text = "<think> a </think>\n<answer>B</answer>"
    ids = processor.tokenizer(text)["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "size", [(640, 360), (1920, 1080), (84, 56), (333, 777), (28, 28), (1000, 30), (50, 51)]
)
def test_sizes_are_those_of_smart_resize(size):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    width, height = size
    limits = {"max_px": 128 * 28 * 28, "min_px": 16 * 28 * 28}
    h, w = smart_resize(height, width, factor=28, min_pixels=limits["min_px"], max_pixels=limits["max_px"])
    assert fit_size(width, height, **limits, factor=28) == (w, h)
