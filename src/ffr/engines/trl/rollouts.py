"""Who samples in a run, how the student's weights get there, and the correction for what it reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ffr.config import Config, VllmConfig
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler
from ffr.engines.trl import ranks
from ffr.engines.trl.rows import TrainRow
from ffr.engines.trl.setup import EngineConfigError, resolve_model_path
from ffr.engines.vllm_colocate import VllmColocateSampler
from ffr.engines.vllm_server import VllmServerSampler
from ffr.engines.vllm_weights import EngineWeights, ServerWeights, WeightsError, WeightSink, served_weights
from ffr.reason import sampler_correction

AnySampler = HFSampler | VllmServerSampler | VllmColocateSampler


class WeightKeeper:
    """Gives a sampler outside of the training model its weights, once per optimiser step.

    Args:
        open_sink: makes the way there, before the first time; given the device of this process.
        everywhere: every process has a sampler of its own; else the main process sends for all.

    Example:
        >>> keeper = WeightKeeper(lambda device: EngineWeights(llm), everywhere=True)  # doctest: +SKIP
        >>> keeper.send(accelerator, model, step=0)  # doctest: +SKIP
    """

    def __init__(self, open_sink: Callable[[torch.device], WeightSink], *, everywhere: bool) -> None:
        self._open = open_sink
        self._everywhere = everywhere
        self._sink: WeightSink | None = None
        self._sent: int | None = None

    def send(self, accelerator: Any, model: Any, step: int) -> None:
        """Sends the weights of `step` unless they are there; all ranks must call it, and wait for it.

        Args:
            accelerator: of the run.
            model: the student, whole on this rank.
            step: optimiser steps done.

        Raises:
            EngineConfigError: there is no way to send them.
        """
        if self._sent == step:
            return
        if not self._everywhere:
            ranks.main_does(accelerator, lambda: self._push(accelerator.device, model))
        else:
            error: BaseException | None = None
            try:
                self._push(accelerator.device, model)
            except Exception as caught:
                error = caught
            ranks.raise_together(accelerator, error)
        self._sent = step

    def _push(self, device: torch.device, model: Any) -> None:
        try:
            self._sink = self._sink or self._open(device)
        except WeightsError as error:
            raise EngineConfigError(str(error)) from error
        self._sink.push(served_weights(model))


def make_sampler(
    cfg: Config, model: Any, encoder: Encoder, *, prefix_bytes: int
) -> tuple[AnySampler, WeightKeeper | None]:
    """The sampler that `train.rollouts` names, and who keeps its weights current (None: it shares them).

    Args:
        cfg: the run.
        model: the student.
        encoder: of the run.
        prefix_bytes: memory for prompts that are gone on from, in this process.

    Raises:
        EngineConfigError: vLLM is asked for and not there.
    """
    vllm, find, seed = cfg.train.vllm, cfg.find, cfg.train.seed
    if cfg.train.rollouts == "hf":
        return HFSampler(model, encoder, find=find, seed=seed, prefix_bytes=prefix_bytes), None
    if cfg.train.rollouts == "vllm_server":
        sampler = VllmServerSampler(model, encoder, find=find, vllm=vllm, seed=seed)
        return sampler, WeightKeeper(lambda device: server_sink(cfg, device), everywhere=False)
    llm, params = colocated_engine(cfg)
    engine = VllmColocateSampler(llm, params, model, encoder, find=find, seed=seed)
    return engine, WeightKeeper(lambda _: EngineWeights(llm), everywhere=True)


def server_sink(cfg: Config, device: torch.device) -> WeightSink:
    """The way to the servers of `train.vllm.base_urls`."""
    vllm = cfg.train.vllm
    dtype = getattr(torch, cfg.model.dtype)
    return ServerWeights(vllm.base_urls, group_port=vllm.group_port, device=device, dtype=dtype)


def colocated_engine(cfg: Config) -> tuple[Any, Callable[..., Any]]:
    """A vLLM engine on this process's GPU, and its sampling settings' class.

    Raises:
        EngineConfigError: vLLM is not installed.
    """
    try:
        from trl.trainer.utils import ensure_master_addr_port
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    except ImportError as error:
        raise EngineConfigError(
            f"train.rollouts = 'vllm_colocate' needs vLLM beside this PyTorch ({error}): install "
            "trl[vllm], or use train.rollouts = 'vllm_server' with a server in an environment of its own"
        ) from error
    ensure_master_addr_port()
    engine = LLM(
        model=resolve_model_path(cfg.model.path),
        dtype=cfg.model.dtype,
        tensor_parallel_size=1,
        # One engine per process of the launcher; vLLM starts none of its own.
        distributed_executor_backend="external_launcher",
        gpu_memory_utilization=cfg.train.vllm.memory_share,
        max_model_len=cfg.find.max_prompt_tokens + cfg.find.max_completion_tokens,
        logprobs_mode="processed_logprobs",
        seed=cfg.train.seed,
    )
    return engine, SamplingParams


def correction(
    rows: Sequence[TrainRow], old_BT: Tensor, mask_BT: Tensor, vllm: VllmConfig
) -> tuple[Tensor, float]:
    """Token weights of the loss where another program sampled, and how many of them were cut.

    Args:
        rows: B rows; those without the sampler's log-probabilities (trained in another view) weigh 1.
        old_BT: log pi_old of the trainer.
        mask_BT: 1 on the tokens that count.
        vllm: the cap.
    """
    sampled = torch.full(old_BT.shape, float("nan"))
    for at, row in enumerate(rows):
        if row.sampled_logprobs is not None:
            sampled[at, : len(row.sampled_logprobs)] = torch.tensor(row.sampled_logprobs)
    weights = sampler_correction(old_BT, sampled.to(old_BT.device), mask_BT, vllm.importance_cap)
    return weights, float((weights >= vllm.importance_cap).sum())
