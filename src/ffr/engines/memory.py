"""How much GPU memory a run will take, estimated from the student's sizes and the settings. Torch-free.

It is an estimate: weights, gradients and optimiser states are exact for the Trainer's AdamW; activations
follow from what autograd keeps of each layer (tests compare both with torch on a small model); the CUDA
context and what the allocator loses are a flat reserve. All figures are bytes of one process.

Two moments are looked at. *Sampling*: the states, the key-value cache, the logits of a token, and whole
weights where the strategy cuts them. *Update*: the states, gradients, activations of one micro-batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ffr.config import Config
from ffr.engines.shapes import Shape, TextShape, VisionShape

Strategy = Literal["ddp", "fsdp2", "zero3"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp2", "zero3")
GIB = 2**30
CONTEXT_BYTES = 1.0 * GIB
"""CUDA context, cuBLAS and Triton workspaces of one process."""
LOST_SHARE = 0.06
"""Of everything else: what the caching allocator cannot use."""
TEXT_TOKENS = 350
"""Tokens of the template, the question and its options, where no row was encoded."""
PATCH_TOKENS = 160
"""Tokens of a rendered evidence patch (guidance of 300 characters, ranges, boxes)."""
SHOWN_AGAIN = 4
"""Frames that a patch shows again with `fix.visual = "frames"`."""
DECODED_TOGETHER = 64
"""Rollouts that the sampler decodes in one batch at most."""
KEPT_PREFIXES = 2 * GIB
"""Limit of kept prompts in a round with repairs."""
ZERO_LIVE = 1_000_000_000
"""Parameters that DeepSpeed keeps gathered at most (stage3_max_live_parameters)."""
TILE = 4096 * 32_768
"""Logits that the fused head holds at a time."""


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens of one micro-batch and of one round of sampling.

    Example:
        >>> Load(prompt=1374, patches=4096, branch=160, completion=1024, rows=8, questions=1).packed
        10846
    """

    prompt: int
    """Tokens of an un-patched prompt, visual ones included."""
    patches: int
    """Pixel patches that pass the vision tower for one question."""
    branch: int
    """Tokens that a patch adds to a prompt."""
    completion: int
    rows: int
    """Rollouts of one forward pass of the loss."""
    questions: int
    """Questions among them; as many as rows where nothing is shared."""
    decoded: int = 8
    """Rollouts decoded together."""
    round_questions: int = 1
    """Questions of one round of sampling."""

    @property
    def packed(self) -> int:
        """Tokens of one forward pass of the loss: each shared prompt once, then the branches."""
        return self.questions * self.prompt + self.rows * (self.branch + self.completion)


@dataclass(frozen=True, slots=True)
class Part:
    """One item of the estimate.

    Example:
        >>> Part("weights", 16.6e9, "always").moment
        'always'
    """

    name: str
    num_bytes: float
    moment: Literal["always", "sampling", "update"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory of one process.

    Example:
        >>> Estimate((Part("weights", 10.0, "always"), Part("KV cache", 5.0, "sampling"))).needed
        1073741839.9
    """

    parts: tuple[Part, ...]

    def total(self, moment: Literal["sampling", "update"]) -> float:
        """Bytes at that moment, the reserve included."""
        held = sum(part.num_bytes for part in self.parts if part.moment in ("always", moment))
        return CONTEXT_BYTES + (1 + LOST_SHARE) * held

    @property
    def needed(self) -> float:
        """Bytes at the fuller moment."""
        return max(self.total("sampling"), self.total("update"))

    @property
    def moment(self) -> Literal["sampling", "update"]:
        """Which one that is."""
        return "sampling" if self.total("sampling") > self.total("update") else "update"


def load_of(
    cfg: Config, shape: Shape, *, prompt_tokens: int | None = None, patches: int | None = None
) -> Load:
    """Tokens of a run with these settings: clips as large and completions as long as they may be.

    Args:
        cfg: The run.
        shape: Of the student.
        prompt_tokens: Of a row that was encoded; from the settings if None.
        patches: Pixel patches of that row.
    """
    vision, seen = shape.vision, cfg.observe
    pairs = math.ceil(seen.num_frames / vision.frames_per_patch)
    frame = max(1, seen.max_frame_px // vision.factor_px**2)
    visual = pairs * frame
    if prompt_tokens is None:
        # Qwen3-VL writes a timestamp before each pair of frames.
        prompt_tokens = min(
            visual + TEXT_TOKENS + (0 if vision.gated else 10 * pairs), cfg.find.max_prompt_tokens
        )
    if patches is None:
        patches = visual * vision.merge**2
    repairs = cfg.train.algorithm in ("ffr", "ffr_released")
    branch = PATCH_TOKENS * repairs + SHOWN_AGAIN * frame * (repairs and cfg.fix.visual == "frames")
    group = 1 if cfg.train.algorithm == "sft" else cfg.find.group_size
    rows = cfg.rows_per_pass
    per_question = min(rows, group) if cfg.model.shared_prefix else 1
    round_questions = cfg.train.questions_per_step
    return Load(
        prompt=prompt_tokens,
        patches=patches,
        branch=branch,
        completion=cfg.find.max_completion_tokens,
        rows=rows,
        questions=math.ceil(rows / per_question),
        decoded=min(max(DECODED_TOGETHER, group), round_questions * group),
        round_questions=round_questions,
    )


def estimate(
    cfg: Config,
    shape: Shape,
    load: Load,
    *,
    strategy: Strategy = "ddp",
    world_size: int = 1,
    cuda: bool = True,
) -> Estimate:
    """Memory of each process.

    Args:
        cfg: The run.
        shape: Of the student.
        load: Tokens, of `load_of`.
        strategy: How the ranks share weights and states; one process shares nothing.
        world_size: Number of processes.
        cuda: Count with the fused head, as on a GPU; else with whole logits.
    """
    parts = [*_states(cfg, shape, strategy, world_size), *_sampling(cfg, shape, load, strategy, world_size)]
    parts += _update(cfg, shape, load, strategy, world_size, cuda)
    return Estimate(tuple(part for part in parts if part.num_bytes > 0))


def trainable(cfg: Config, shape: Shape) -> int:
    """Parameters that the optimiser updates."""
    lora, frozen = cfg.model.lora, cfg.model.freeze_vision
    if lora.rank:
        return shape.adapter_parameters(lora.rank, lora.target_modules, frozen_vision=frozen)
    return shape.text.num_parameters + (0 if frozen else shape.vision.num_parameters)


def weight_bytes(cfg: Config, strategy: Strategy, world_size: int) -> tuple[int, int]:
    """Bytes of a stored weight and of a number that layers compute with (see `setup.load_student`)."""
    compute = 2 if cfg.model.dtype == "bfloat16" else 4
    cut = strategy != "ddp" and world_size > 1
    # Weights that an optimiser updates directly are float32, unless DeepSpeed keeps its own copy of them.
    stored = compute if cfg.model.lora.rank or (cut and strategy == "zero3") else 4
    return stored, compute


def _states(cfg: Config, shape: Shape, strategy: Strategy, world_size: int) -> list[Part]:
    cut = world_size if strategy != "ddp" else 1
    stored, compute = weight_bytes(cfg, strategy, world_size)
    total, learned, lora = shape.num_parameters, trainable(cfg, shape), bool(cfg.model.lora.rank)
    own_master = strategy == "zero3" and cut > 1 and compute < 4
    words = f"{total / 1e9:.2f} B parameters" + (f" over {cut} processes" if cut > 1 else "")
    parts = [Part("weights", total * stored / cut, "always", f"{words}, {8 * stored} bits")]
    if lora:
        parts.append(Part("adapters", 4 * learned / cut, "always", f"{learned / 1e6:.0f} M, 32 bits"))
    states = 12 if own_master else 8
    parts.append(Part("optimiser", states * learned / cut, "always", f"AdamW, {states} bytes a parameter"))
    if cfg.reason.kl_beta and not lora and cfg.train.algorithm != "sft":
        size = compute if strategy != "ddp" else stored
        parts.append(Part("reference", total * size / cut, "always", "reason.kl_beta > 0"))
    parts.append(Part("gradients", 4 * learned / cut, "update", f"{learned / 1e9:.2f} B trained"))
    if strategy == "ddp" and world_size > 1:
        parts.append(Part("gradient buckets", 4 * learned, "update", "DDP's copy"))
    if stored > compute and strategy == "ddp":
        parts.append(Part("rounded weights", compute * total, "update", "autocast keeps bfloat16 copies"))
    return parts


def _sampling(cfg: Config, shape: Shape, load: Load, strategy: Strategy, world_size: int) -> list[Part]:
    text, (stored, compute) = shape.text, weight_bytes(cfg, strategy, world_size)
    rollouts = cfg.train.rollouts
    parts: list[Part] = []
    if rollouts != "vllm_server" and strategy != "ddp" and world_size > 1:
        size = shape.num_parameters * compute
        parts.append(Part("gathered weights", size, "sampling", "whole on every process"))
    if rollouts != "hf":
        return parts
    length = load.prompt + load.branch + load.completion
    cache = load.decoded * length * text.cache_elements * compute
    parts.append(Part("KV cache", cache, "sampling", f"{load.decoded} rollouts of {length} tokens"))
    if cfg.train.algorithm in ("ffr", "ffr_released"):
        kept = load.round_questions * load.prompt * text.cache_elements * compute
        parts.append(Part("kept prompts", min(kept, KEPT_PREFIXES), "sampling", "for the second tries"))
    # Probabilities, their order and sums over the vocabulary while a token is drawn.
    parts.append(Part("drawing", 28 * load.decoded * text.vocab, "sampling", "probabilities of one token"))
    read = load.round_questions * load.prompt
    wide = read * (2 * text.intermediate + 4 * text.hidden) * max(stored, compute)
    parts.append(Part("reading prompts", wide, "sampling"))
    return parts


def _update(
    cfg: Config, shape: Shape, load: Load, strategy: Strategy, world_size: int, cuda: bool
) -> list[Part]:
    text, vision = shape.text, shape.vision
    stored, compute = weight_bytes(cfg, strategy, world_size)
    stream = compute if strategy != "ddp" and world_size > 1 else stored
    lora, tokens = bool(cfg.model.lora.rank), load.packed
    again = cfg.model.gradient_checkpointing
    layer = tokens * layer_bytes(text, compute=compute, stream=stream, lora=lora)
    held = layer + text.num_layers * tokens * text.hidden * stream if again else text.num_layers * layer
    held += tokens * ends_bytes(text, stream=stream, lora=lora)
    words = "one layer at a time" if again else "all layers (model.gradient_checkpointing is off)"
    parts = [Part("activations", held, "update", f"{tokens} tokens, {words}")]
    parts.append(Part("gradients in flight", 3 * tokens * text.intermediate * compute, "update"))
    if not cfg.model.freeze_vision:
        patches = load.questions * load.patches
        block = patches * block_bytes(vision, compute=compute, stream=stream, lora=lora)
        held = block + vision.num_layers * patches * vision.hidden * stream
        held = held if again else vision.num_layers * block
        held += patches * patch_bytes(vision, compute=compute, stream=stream, lora=lora)
        parts.append(Part("vision activations", held, "update", f"{patches} patches"))
    scored = load.rows * load.completion
    if cuda:
        head = 2 * TILE + scored * text.hidden * (stream + 4)
        head += 0 if lora else 4 * text.vocab * text.hidden
        parts.append(Part("head", head, "update", f"{scored} positions, in tiles"))
    else:
        parts.append(Part("logits", 3 * 4 * scored * text.vocab, "update", f"{scored} positions"))
    if strategy != "ddp" and world_size > 1:
        parts.append(Part("gathered layers", _gathered(shape, strategy, compute), "update"))
    return parts


def _gathered(shape: Shape, strategy: Strategy, compute: int) -> float:
    """Weights that are whole while layers compute with them."""
    if strategy == "zero3":
        return min(shape.num_parameters, ZERO_LIVE) * compute
    layers = sum(linear.num_weights for linear in shape.text.linears)
    root = shape.num_parameters - layers
    # The root unit (embedding, head, vision tower) with its gradient, and a layer with the next one.
    return root * (compute + 4) + 2 * layers / shape.text.num_layers * compute


def layer_bytes(text: TextShape, *, compute: int, stream: int, lora: bool) -> float:
    """Bytes per token that autograd keeps of one layer of the language model.

    Args:
        text: Sizes.
        compute: Bytes of a number in matrix products (2 under bfloat16).
        stream: Bytes of a number in the residual stream: those of a stored weight.
        lora: Base weights are frozen and adapters keep inputs of their own.
    """
    h, i = text.hidden, text.intermediate
    queries, keys = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    rounded = compute < 4
    norms = 2 * 4 * h + (0 if lora else 2 * stream * h)
    # A cast makes a copy for each of q, k, v, gate and up; without one they share the norm's output.
    inputs = (5 if rounded else 2) * compute * h
    attention = compute * (3 * queries + 2 * keys) + 4 * text.num_heads + 2 * compute * text.head_dim
    if text.qk_norm:
        attention += 4 * (queries + keys) + (0 if lora else compute * (queries + keys))
    return norms + inputs + attention + 4 * compute * i


def block_bytes(vision: VisionShape, *, compute: int, stream: int, lora: bool) -> float:
    """Bytes per patch that autograd keeps of one block of the vision tower; arguments as `layer_bytes`."""
    h, i = vision.hidden, vision.intermediate
    rounded = compute < 4
    if vision.gated:
        norms = 2 * 4 * h + (0 if lora else 2 * stream * h)
        inputs = (3 if rounded else 2) * compute * h
        mlp = 4 * compute * i
    else:
        norms, inputs, mlp = 2 * stream * h, 2 * compute * h, 2 * compute * i
    return norms + inputs + 5 * compute * h + 4 * vision.num_heads + mlp


def ends_bytes(text: TextShape, *, stream: int, lora: bool) -> float:
    """Bytes per token that are kept before the first layer and after the last: embeddings, last norm."""
    return text.hidden * (1 + 4 + stream * (1 if lora else 2))


def patch_bytes(vision: VisionShape, *, compute: int, stream: int, lora: bool) -> float:
    """Bytes per patch that are kept outside the blocks: pixels, where their layer learns, and mergers."""
    pixels = vision.channels * vision.frames_per_patch * vision.patch_px**2 * compute
    merger = (4 + stream + 3 * compute) * vision.hidden
    return (0 if lora else pixels) + vision.num_mergers * merger
