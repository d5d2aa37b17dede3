"""A tiny random video model in an ordinary Hugging Face directory, and observations to feed it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ffr.types import Frame, Observation, Option, ProblemType, Sample

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(
        ["the answer is A B C D <think> </think> <answer> </answer> look frames"], trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        chat_template=TEMPLATE,
    )


def build(path: Path, *, seed: int = 0) -> Path:
    """Writes a random Qwen2.5-VL of about 0.1 M parameters with its processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]},
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                # Larger than the usual start, so that frames and patches visibly move the log-probs.
                parameter.mul_(4.0 if "visual" in name or "embed" in name else 2.5)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(path)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=TEMPLATE,
    ).save_pretrained(path)
    return path


def frame(number: int, rng: np.random.Generator, *, side: int = 56, t: float = 0.0) -> Frame:
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Frame(number, number - 1, t, digest, side, side, pixels)


def view(
    seed: int,
    *,
    num_frames: int = 6,
    prompt: str = "what is the answer ?",
    patch: str = "",
    extra: int = 0,
    side: int = 56,
    uid: str | None = None,
) -> Observation:
    rng = np.random.default_rng(seed)
    frames = tuple(frame(k + 1, rng, side=side, t=k * 0.5) for k in range(num_frames))
    again = tuple(frame(k + 1, rng, side=side, t=k * 0.5) for k in range(extra))
    words = repr(([f.sha256 for f in (*frames, *again)], prompt, patch))
    return Observation(
        sample_uid=uid or f"t/{seed}",
        frames=frames,
        prompt=prompt,
        view_id=hashlib.sha256(words.encode()).hexdigest(),
        patch_text=patch,
        extra_frames=again,
        duration_s=num_frames * 0.5,
    )


def sample(k: int, video: Path = Path("none.mp4"), answer: str = "B") -> Sample:
    return Sample(
        uid=f"t/{k}",
        question=f"what is the answer {k} ?",
        answer=answer,
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=video,
        options=(Option("A", "one"), Option("B", "two"), Option("C", "three")),
        source="t",
    )


def mean_abs(values: Sequence[float]) -> float:
    return float(np.mean(np.abs(np.asarray(values))))
