"""Random Qwen2.5-VL students of known shapes, with a processor, for benches."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.engines import tiny  # noqa: E402


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL.

    Example:
        >>> SHAPES["20m"].layers
        6
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vision_hidden: int
    vision_intermediate: int
    vision_depth: int
    vision_heads: int
    vocabulary: int | None = None
    """Rows of the embedding; the tokenizer's own when None."""
    tied: bool = False


SHAPES = {
    # The 7B's proportions (intermediate 5.3 hidden, a vision tower of about a twelfth of the weights).
    "20m": Shape(384, 2048, 6, 6, 2, 160, 432, 4, 4),
    "quick": Shape(64, 128, 2, 4, 2, 32, 64, 2, 4),
    "3b": Shape(2048, 11008, 36, 16, 2, 1280, 3420, 32, 16, vocabulary=151936, tied=True),
    "7b": Shape(3584, 18944, 28, 28, 4, 1280, 3420, 32, 16, vocabulary=152064),
}


def build(path: Path, name: str, *, dtype: str = "float32", device: str = "cpu") -> dict[str, Any]:
    """Writes a random student as a Hugging Face directory.

    Args:
        path: the directory.
        name: key of `SHAPES`.
        dtype: of the written weights.
        device: where they are drawn (billions of weights are slow to draw on a CPU).

    Returns:
        The shape and the number of parameters, for the report.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = tiny._tokenizer()
    torch.manual_seed(0)
    config = _config(SHAPES[name], tokenizer)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=tiny.TEMPLATE,
    ).save_pretrained(path)
    count = {"parameters": sum(p.numel() for p in model.parameters())}
    count["vision_parameters"] = sum(p.numel() for p in model.model.visual.parameters())
    count["layer_parameters"] = sum(p.numel() for p in model.model.language_model.layers.parameters())
    return {"shape": name, **vars(SHAPES[name]), **count}


def _config(shape: Shape, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL}
    half = shape.hidden // shape.heads // 2
    sections = [half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8]
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": shape.vocabulary or len(tokenizer), "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": 32768,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": sections},
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": shape.tied,
        },
        vision_config={
            "depth": shape.vision_depth, "hidden_size": shape.vision_hidden,
            "intermediate_size": shape.vision_intermediate, "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "tokens_per_second": 2,
            "fullatt_block_indexes": [k for k in range(shape.vision_depth) if k % 8 == 7]
            or [shape.vision_depth - 1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
