"""Sending the student's weights to vLLM after an optimiser step.

To a server they go by NCCL, through TRL's client, from the main process; an engine in this process loads
them directly. Both need CUDA and vLLM on this machine, so they stand behind one small protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class WeightsError(RuntimeError):
    """The sampler could not be given the student's weights; the message says what to change."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor of the student, under the name that vLLM maps.

    Example:
        >>> Weight("lm_head.weight", (8, 4), lambda: torch.zeros(8, 4)).shape
        (8, 4)
    """

    name: str
    shape: tuple[int, ...]
    value: Callable[[], Tensor]
    """Makes the tensor, adapters added: all of them at once would be a second copy of the student."""


class WeightSink(Protocol):
    """Where the student's weights go.

    Example:
        >>> class Kept:
        ...     def push(self, weights):
        ...         self.weights = {weight.name: weight.value() for weight in weights}
    """

    def push(self, weights: Sequence[Weight]) -> None:
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
        except (ImportError, ConnectionError, RuntimeError) as error:
            raise WeightsError(f"weights cannot be sent to {', '.join(base_urls)}: {error}") from error
        self._clients = clients
        self._dtype = dtype

    def push(self, weights: Sequence[Weight]) -> None:
        """Announces the tensors, broadcasts them in order, and empties the servers' prefix caches."""
        word = str(self._dtype).removeprefix("torch.")
        metadata = [(weight.name, word, list(weight.shape)) for weight in weights]
        for client in self._clients:
            tensors = ((weight.name, weight.value().to(self._dtype).contiguous()) for weight in weights)
            client.update_named_params(metadata, tensors)
            client.reset_prefix_cache()


class EngineWeights:
    """`WeightSink` of a vLLM engine in this process.

    Args:
        llm: a `vllm.LLM`.

    Example:
        >>> EngineWeights(sampler.llm).push(served_weights(model))  # doctest: +SKIP
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def push(self, weights: Sequence[Weight]) -> None:
        """Loads the tensors into the engine's model, and empties its prefix cache."""
        runner = self._llm.llm_engine.model_executor.driver_worker.model_runner
        runner.model.load_weights((weight.name, weight.value()) for weight in weights)
        self._llm.reset_prefix_cache()


def root_of(base_url: str) -> str:
    """A server's address without /v1: where its development endpoints are."""
    return base_url.rstrip("/").removesuffix("/v1")


def served_weights(model: nn.Module) -> list[Weight]:
    """The weights of a whole student as vLLM takes them: adapters added, a tied weight once.

    The student itself is not touched: merging adapters into bfloat16 weights and taking them out again
    would move the weights a little each time.

    Args:
        model: the student, gathered if it is sharded; data-parallel wrappers are looked through.
    """
    inner: Any = model
    while hasattr(inner, "module") and isinstance(inner.module, nn.Module):
        inner = inner.module
    if not hasattr(inner, "get_base_model"):
        return [Weight(n, tuple(p.shape), partial(_plain, p)) for n, p in inner.named_parameters()]
    out: list[Weight] = []
    for name, parameter in inner.named_parameters():
        if inner.prefix in name or "original_module" in name:
            continue
        clean = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        value: Callable[[], Tensor] = partial(_plain, parameter)
        if clean.endswith(".base_layer.weight"):
            layer = inner.get_submodule(name.removesuffix(".base_layer.weight"))
            value = partial(_merged, layer, parameter)
        out.append(Weight(clean.replace(".base_layer", ""), tuple(parameter.shape), value))
    return out


def _plain(parameter: Tensor) -> Tensor:
    return parameter.detach()


@torch.no_grad()
def _merged(layer: Any, parameter: Tensor) -> Tensor:
    merged = parameter.detach().float()
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            merged = merged + layer.get_delta_weight(adapter).float()
    return merged.to(parameter.dtype)
