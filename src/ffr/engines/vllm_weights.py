"""Sending the student's weights to vLLM after an optimiser step.

To a server they go by NCCL, through TRL's client, from the main process; an engine in this process loads
them directly. Both need CUDA and vLLM on this machine, so they stand behind one small protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class WeightsError(RuntimeError):
    """The sampler could not be given the student's weights; the message says what to change."""


class WeightSink(Protocol):
    """Where the student's weights go.

    Example:
        >>> class Kept:
        ...     def push(self, named):
        ...         self.weights = dict(named)
    """

    def push(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Replaces the sampler's weights, and drops every state that it computed with the old ones."""
        ...


class ServerWeights:
    """`WeightSink` of `vllm serve`, by NCCL broadcast from this process to every server.

    Args:
        base_urls: the servers, /v1 included.
        group_port: port of the first server's group; the next ones' follow.
        device: CUDA device of this process.
        dtype: what the servers compute in.
        timeout_s: how long a server may take to be up.

    Raises:
        WeightsError: no CUDA here, no vLLM here, or a server without a weight-transfer engine.

    Example:
        >>> ServerWeights(urls, group_port=51216, device=torch.device("cuda", 0))  # doctest: +SKIP
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        *,
        group_port: int,
        device: torch.device,
        dtype: torch.dtype = torch.bfloat16,
        timeout_s: float = 240.0,
    ) -> None:
        if device.type != "cuda":
            raise WeightsError(
                f"train.rollouts = 'vllm_server' sends weights by NCCL, which needs a CUDA device, not "
                f"{device}; train with train.rollouts = 'hf' here"
            )
        try:
            from trl.generation.vllm_client import VLLMClient

            clients = [
                VLLMClient(base_url=root_of(url), group_port=group_port + k, connection_timeout=timeout_s)
                for k, url in enumerate(base_urls)
            ]
            for client in clients:
                client.init_communicator(device=device)
        except (ImportError, ConnectionError, RuntimeError, NotImplementedError) as error:
            raise WeightsError(f"weights cannot be sent to {', '.join(base_urls)}: {error}") from error
        self._clients = clients
        self._dtype = dtype

    def push(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Announces the tensors, broadcasts them in order, and empties the servers' prefix caches."""
        word = str(self._dtype).removeprefix("torch.")
        metadata = [(name, word, list(weight.shape)) for name, weight in named]
        for client in self._clients:
            # One after the other: a second copy of all weights would not fit.
            client.update_named_params(metadata, ((name, w.to(self._dtype)) for name, w in named))
            client.reset_prefix_cache()


class EngineWeights:
    """`WeightSink` of a vLLM engine in this process.

    Args:
        llm: a `vllm.LLM`.

    Example:
        >>> EngineWeights(sampler.llm).push(named)  # doctest: +SKIP
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def push(self, named: Sequence[tuple[str, Tensor]]) -> None:
        """Loads the tensors into the engine's model, and empties its prefix cache."""
        runner = self._llm.llm_engine.model_executor.driver_worker.model_runner
        runner.model.load_weights(iter(named))
        self._llm.reset_prefix_cache()


def root_of(base_url: str) -> str:
    """A server's address without /v1: where its development endpoints are."""
    return base_url.rstrip("/").removesuffix("/v1")


@contextmanager
def served_weights(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """The weights of a whole student under the names that vLLM maps, adapters merged meanwhile.

    Args:
        model: the student, gathered if it is sharded; data-parallel wrappers are looked through.

    Yields:
        (name, tensor) pairs, the tensors those of the student; a tied weight once.
    """
    inner: Any = model
    while hasattr(inner, "module") and isinstance(inner.module, nn.Module):
        inner = inner.module
    adapters = hasattr(inner, "merge_adapter")
    if adapters:
        inner.merge_adapter()
    try:
        yield [(name, weight.detach()) for name, weight in _named(inner, adapters)]
    finally:
        if adapters:
            inner.unmerge_adapter()


def _named(model: Any, adapters: bool) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        clean = name.removeprefix("base_model.model.").replace(".base_layer", "")
        clean = clean.replace("modules_to_save.default.", "")
        if not (adapters and (model.prefix in clean or "original_module" in clean)):
            yield clean, parameter
