"""Weights that are sharded over ranks (FSDP2, ZeRO-3): how they are cut, and how to have them whole again.

Sampling is one token after another, with as many tokens as a rank's rollouts happen to have. On sharded
weights each of them would be a collective. So the weights are gathered once a round into an ordinary
copy of the model, which samples without talking to anybody.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ffr.engines.batch import unwrap
from ffr.engines.trl.setup import EngineConfigError


def fsdp_is_wanted() -> bool:
    """True if the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def cut(trainer: Any, model: nn.Module) -> None:
    """Checks accelerate's FSDP settings and says where to cut: one unit per layer of the language model.

    The vision tower stays in the root unit, which every forward pass gathers. In units of its own it would
    be gathered only on ranks whose rows show something, as often as they do.

    Raises:
        EngineConfigError: settings under which a run could not be sampled, saved or resumed.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        kind = trainer.accelerator.distributed_type
        raise EngineConfigError(
            f"the launcher asks for FSDP, which accelerate does not use with {kind.value}"
        )
    remedy = "see configs/accelerate/fsdp2.yaml"
    if plugin.fsdp_version != 2:
        raise EngineConfigError(f"fsdp_version: {plugin.fsdp_version} is not supported, use 2; {remedy}")
    if plugin.state_dict_type != StateDictType.FULL_STATE_DICT:
        raise EngineConfigError(
            f"fsdp_state_dict_type: {plugin.state_dict_type.name} writes no model.safetensors, use "
            f"FULL_STATE_DICT; {remedy}"
        )
    if plugin.activation_checkpointing:
        raise EngineConfigError(
            f"fsdp_activation_checkpointing: use model.gradient_checkpointing instead; {remedy}"
        )
    if trainer.args.bf16:
        # accelerate's own policy would also round the log-probabilities to bfloat16 on their way out.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    inner: Any = unwrap(model)
    layers = {type(layer) for layer in inner.get_decoder().layers}
    plugin.transformer_cls_names_to_wrap = sorted(layer.__name__ for layer in layers)
    plugin.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)


def is_zero3(trainer: Any) -> bool:
    """True if DeepSpeed shards the weights too."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return trainer.is_deepspeed_enabled and is_deepspeed_zero3_enabled()


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before it got adapters.

    PEFT's own `disable_adapter` also takes the gradient away from the adapters for that time; FSDP2 decides
    by it, at its first pass, in which type it reduces gradients.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def save_optimizer(trainer: Any, folder: str) -> None:
    """Writes the whole optimiser state and the schedule of an FSDP run; all ranks must call it."""
    from accelerate.utils.fsdp_utils import save_fsdp_optimizer

    accelerator = trainer.accelerator
    plugin = accelerator.state.fsdp_plugin
    save_fsdp_optimizer(plugin, accelerator, trainer.optimizer, trainer.model, folder)
    if trainer.args.should_save:
        torch.save(trainer.lr_scheduler.state_dict(), Path(folder) / "scheduler.pt")


def sharded_reference(trainer: Any) -> nn.Module:
    """The frozen model of the start, cut like the policy; TRL would gather the whole of it at once."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from transformers import AutoModelForImageTextToText
    from trl.trainer.utils import disable_dropout_in_model

    model = AutoModelForImageTextToText.from_pretrained(
        trainer.model.config._name_or_path,
        dtype=trainer.model.dtype,
        attn_implementation=trainer.cfg.model.attention,
    )
    disable_dropout_in_model(model)
    model.requires_grad_(False)
    cut(trainer, model)
    return fsdp2_prepare_model(trainer.accelerator, model).eval()


class WholeCopy:
    """An ordinary model beside a sharded one; it holds weights only inside `filled`.

    Args:
        model: the policy, before its weights are cut.

    Example:
        >>> with whole.filled(trainer.model, device="cuda") as model:  # doctest: +SKIP
        ...     model.generate(**inputs)
    """

    def __init__(self, model: nn.Module) -> None:
        empty = {
            id(p): nn.Parameter(torch.empty(0, dtype=p.dtype, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        # The weights themselves are not copied: deepcopy takes the empty ones instead.
        self._model = copy.deepcopy(model, dict(empty)).eval()
        for module in self._model.modules():
            # TRL's fused head is a closure over the model that it was put on: the sharded one.
            module.__dict__.pop("forward", None)
        self._empty = dict(self._model.named_parameters())
        self._owners: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self._model.modules():
            for leaf, p in module._parameters.items():
                if p is not None:
                    self._owners.setdefault(id(p), []).append((module, leaf))

    @contextmanager
    def filled(
        self,
        sharded: nn.Module,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        keep: bool = True,
    ) -> Iterator[nn.Module]:
        """The model with the current weights; all ranks must enter together.

        Args:
            sharded: the policy.
            device: where the copy goes.
            dtype: of its floating-point weights; as they are if None.
            keep: False on a rank that only takes part.
        """
        try:
            for name, p in sharded.named_parameters():
                full = whole_tensor(p, dtype)
                if keep:
                    self._put(self._empty[name], nn.Parameter(full.to(device), requires_grad=p.requires_grad))
            if keep:
                for module in self._model.modules():
                    for leaf, buffer in module._buffers.items():
                        if buffer is not None:
                            module._buffers[leaf] = buffer.to(device)
            yield self._model
        finally:
            for p in self._empty.values():
                self._put(p, p)

    def _put(self, empty: nn.Parameter, value: nn.Parameter) -> None:
        for module, leaf in self._owners[id(empty)]:
            module._parameters[leaf] = value


def whole_tensor(parameter: nn.Parameter, dtype: torch.dtype | None = None) -> Tensor:
    """A parameter's whole value, detached; all ranks must ask for it together."""
    value = parameter.detach()
    if dtype is not None and value.is_floating_point() and not hasattr(parameter, "ds_id"):
        value = value.to(dtype)  # before it travels
    if isinstance(value, DTensor):
        return value.full_tensor()
    with _gathered(parameter):
        whole = parameter.detach().clone() if hasattr(parameter, "ds_id") else value
        return whole if dtype is None or not whole.is_floating_point() else whole.to(dtype)


def _gathered(parameter: nn.Parameter) -> Any:
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])
