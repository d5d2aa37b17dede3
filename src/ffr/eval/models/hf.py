"""A Hugging Face checkpoint in this process: the one module of evaluation that loads torch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

from ffr.config import FindConfig
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.hf import HFSampler
from ffr.eval.models.base import Generation, ModelIdentity, Reply
from ffr.eval.models.checkpoint import Checkpoint, default_name
from ffr.types import Observation

log = logging.getLogger(__name__)

_MAX_SAMPLERS = 16
_SMALL = 50_000_000
"""Parameters below which a second CPU thread waits more than it helps; the other core decodes."""


class HFAnswerer:
    """Answers with a checkpoint; the weights are loaded at the first question.

    A question that the model can't take, or on which it fails, fails alone: its call is repeated in
    halves without it.

    Args:
        checkpoint: Directory and what is known of it.
        name: In tables; the directory's name when empty.
        dtype: `auto` is bfloat16 on an accelerator and float32 on a CPU.
        attention: `sdpa`, `flash_attention_2` or `eager`.
        device: `auto` takes an accelerator where there is one.
        encoder: Makes the encoder from the checkpoint's processor.

    Example:
        >>> HFAnswerer(find_checkpoint("micro-student")).engine  # doctest: +SKIP
        'hf'
    """

    engine = "hf"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str = "",
        dtype: str = "auto",
        attention: str = "sdpa",
        device: str = "auto",
        encoder: Callable[[Any], Encoder] = Encoder,
    ) -> None:
        self.checkpoint = checkpoint
        self._make_encoder = encoder
        self.name = name or default_name(checkpoint.path)
        self._device = torch.device(_best_device() if device == "auto" else device)
        if dtype == "auto":
            dtype = "float32" if self._device.type == "cpu" else "bfloat16"
        self._dtype, self._attention = dtype, attention
        self._encoder: Encoder | None = None
        self._model: Any = None
        self._samplers: dict[tuple[float, float, int], HFSampler] = {}

    def identity(self, model: str) -> ModelIdentity:
        """Which model this is; `model` is its name as the user gave it."""
        cuda = {"cuda": torch.version.cuda or ""} if self._device.type == "cuda" else {}
        device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return ModelIdentity(
            model=model,
            weights_sha256=self.checkpoint.weights_sha256,
            template_sha256=self.checkpoint.template_sha256,
            settings={"dtype": self._dtype, "attention": self._attention, "device": self._device.type},
            versions={
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "device": device,
                **cuda,
            },
        )

    async def answer(self, observations: Sequence[Observation], generation: Generation) -> list[Reply]:
        """One reply per observation; equal calls give equal replies, whatever was asked before."""
        return await asyncio.to_thread(self._answer, list(observations), generation)

    def _answer(self, observations: list[Observation], generation: Generation) -> list[Reply]:
        encoder = self._load()
        replies: dict[int, Reply] = {}
        prompts: dict[int, EncodedPrompt] = {}
        for place, obs in enumerate(observations):
            try:
                prompts[place] = encoder.encode(obs)
            except Exception as error:
                replies[place] = Reply.failed("encode", error)
        good = list(prompts)
        replies |= self._sampled({k: observations[k] for k in good}, prompts, generation)
        encoder.forget()
        return [replies[place] for place in range(len(observations))]

    def _sampled(
        self, views: dict[int, Observation], prompts: dict[int, EncodedPrompt], generation: Generation
    ) -> dict[int, Reply]:
        if not views:
            return {}
        sampler = self._sampler(generation)
        sampler.reseed(generation.seed)
        try:
            groups = asyncio.run(sampler.sample(list(views.values()), num=1))
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            places = list(views)
            if len(places) == 1:
                return {places[0]: Reply.failed("model", f"{type(error).__name__}: {error}")}
            log.warning(
                "%d questions in one call failed (%s: %s); asking halves of them",
                len(places), type(error).__name__, str(error)[:200],
            )  # fmt: skip
            parts = places[: len(places) // 2], places[len(places) // 2 :]
            halves = [self._sampled({k: views[k] for k in part}, prompts, generation) for part in parts]
            return halves[0] | halves[1]
        return {
            place: Reply(
                text=group[0].text,
                finish=group[0].finish,
                num_tokens=group[0].num_tokens,
                num_prompt_tokens=prompts[place].num_tokens,
            )
            for place, group in zip(views, groups, strict=True)
        }

    def _sampler(self, generation: Generation) -> HFSampler:
        key = (generation.temperature, generation.top_p, generation.max_tokens)
        if key not in self._samplers:
            while len(self._samplers) >= _MAX_SAMPLERS:  # a server's clients choose these numbers
                self._samplers.pop(next(iter(self._samplers)))
            find = FindConfig(
                temperature=generation.temperature or 1.0,
                top_p=generation.top_p,
                max_completion_tokens=generation.max_tokens,
            )
            self._samplers[key] = HFSampler(
                self._model, self._load(), find=find, greedy=generation.greedy, max_rows=4096
            )
        return self._samplers[key]

    def _load(self) -> Encoder:
        if self._encoder is None:
            path = self.checkpoint.path
            transformers.utils.logging.disable_progress_bar()  # it would tear ours
            model: Any = AutoModelForImageTextToText.from_pretrained(
                path, dtype=getattr(torch, self._dtype), attn_implementation=self._attention
            )
            if self._device.type == "cpu" and model.num_parameters() < _SMALL:
                torch.set_num_threads(1)
            self._model = model.to(self._device).eval()
            self._encoder = self._make_encoder(AutoProcessor.from_pretrained(path))
        return self._encoder


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "cpu"
