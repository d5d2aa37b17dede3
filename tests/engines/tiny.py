"""A tiny random video model in an ordinary Hugging Face directory, and observations to feed it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ffr.config import Config
from ffr.engines.batch import Batcher
from ffr.fix.teacher import TeacherRequest
from ffr.types import (
    Diagnosis,
    ErrorType,
    EvidencePatch,
    Frame,
    Observation,
    Option,
    ProblemType,
    Sample,
    Trace,
    Verdict,
)

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


def require_shared_media(model: torch.nn.Module) -> None:
    """Skips where this release of transformers cannot take visual features that are already encoded."""
    if not Batcher(model, pad_id=0).shares_media:
        pytest.skip("this transformers' forward takes pixels only: clips are not shared (a warning says so)")


def build(
    path: Path,
    *,
    seed: int = 0,
    text: dict[str, object] | None = None,
    vision: dict[str, object] | None = None,
) -> Path:
    """Writes a random Qwen2.5-VL of about 0.1 M parameters with its processor; `text`, `vision` overwrite."""
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
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], **(text or {}),
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [1], "tokens_per_second": 2, **(vision or {}),
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


def build_qwen3(path: Path) -> Path:
    """Writes a random Qwen3-VL of about 0.1 M parameters: timestamps as text, deep visual features."""
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    tokenizer = _tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True,
                "rope_theta": 1e4,
            },
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.save_pretrained(path)
    size = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 64}
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size),
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


def write_clip(path: Path, seed: int, *, num_frames: int = 8, side: int = 56) -> Path:
    """A real MP4 of coloured noise blocks, 4 frames a second."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            pixels = np.kron(blocks, np.ones((side // 4, side // 4, 1), dtype=np.uint8))
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def samples(folder: Path, num: int) -> list[Sample]:
    folder.mkdir(parents=True, exist_ok=True)
    clips = [folder / f"{k}.mp4" for k in range(num)]
    # Another process may be reading those that are there.
    return [sample(k, clip if clip.is_file() else write_clip(clip, seed=k)) for k, clip in enumerate(clips)]


def config(checkpoint: Path, output_dir: Path, **changes: dict) -> Config:
    """A run of a few seconds; `changes` are merged section by section."""
    sections: dict[str, dict] = {
        "model": {"path": str(checkpoint), "dtype": "float32", "gradient_checkpointing": False},
        "observe": {"num_frames": 4, "max_frame_px": 56 * 56, "min_frame_px": 28 * 28, "prompt": "brief"},
        "find": {"group_size": 4, "max_completion_tokens": 8},
        "fix": {"teacher": {"type": "none"}},
        "train": {
            "cpu": True, "questions_per_step": 2, "micro_batch_size": 8, "learning_rate": 1e-3,
            "save_every": 100,
        },
        "report": {"output_dir": str(output_dir), "display": "none"},
    }  # fmt: skip
    for name, values in changes.items():
        sections.setdefault(name, {}).update(values)
    return Config.model_validate(sections)


def coin(sample: Sample, text: str, **_: object) -> Verdict:
    """Stands in for the verifier: a random model never answers, so a hash of its words decides."""
    value = hashlib.sha256(f"{sample.uid}{text}".encode()).digest()[0]
    return Verdict(
        score=float(value % 2), correct=bool(value % 2), extracted="", rule="coin", format_score=value % 3 / 2
    )


class FakeTeacher:
    """Always points at frames 1-3; counts its calls; answers nothing for the uids in `dead_for`."""

    name = "fake"

    def __init__(self, *, dead: bool = False, dead_for: Sequence[str] = ()) -> None:
        self.dead = dead
        self.dead_for = dead_for
        self.calls = 0

    async def diagnose(self, request: TeacherRequest) -> Diagnosis:
        self.calls += 1
        if self.dead or request.sample.uid in self.dead_for:
            return Diagnosis(patch=None, failure="transport", detail="connection refused")
        patch = EvidencePatch(
            error_types=(ErrorType.TEMPORAL,), key_frames=((1, 3),), guidance="Watch again."
        )
        return Diagnosis(patch=patch)

    async def aclose(self) -> None:
        return None


class Notes:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []
        self.kept: list[Trace] = []
        self.summary: dict[str, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.steps.append(step)
        self.rows.append(dict(values))

    def traces(self, step: int, traces: Sequence[Trace]) -> None:
        self.kept += traces

    def finish(self, summary: Mapping[str, float]) -> None:
        self.summary = dict(summary)


def always_right(sample: Sample, text: str, **_: object) -> Verdict:
    """Every rollout is right; only the format differs."""
    value = hashlib.sha256(f"{sample.uid}{text}".encode()).digest()[0]
    return Verdict(score=1.0, correct=True, extracted="B", rule="right", format_score=value % 2)


def blank_view(sample: Sample, _cfg: object = None) -> Observation:
    """A question without frames: a text prompt."""
    return view(int(sample.uid.rsplit("/", 1)[1]), num_frames=0, prompt=sample.question, uid=sample.uid)


def plain_logprobs(model, prompt, completion: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    """One unpadded forward pass over prompt and completion, positions left to the model."""
    ids = torch.tensor([prompt.train_ids + tuple(completion)])
    types = torch.tensor([prompt.mm_types + (0,) * len(completion)])
    with torch.no_grad():
        out = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=types, **prompt.features
        )
    logprobs = torch.log_softmax(out.logits[0, :-1].float() / temperature, dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[-len(completion) :, 0]
