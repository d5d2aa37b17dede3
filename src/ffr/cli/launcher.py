"""How this process was started (accelerate, torchrun, plainly), read off its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

from ffr.cli.errors import CliError

_TRUE = frozenset({"1", "true", "yes", "y", "on"})


def describe_launch(env: Mapping[str, str] | None = None) -> str:
    """One line: how many processes, and how the weights are spread over them.

    Args:
        env: the environment; the process's own when None.

    Raises:
        CliError: the launcher asks for something that this engine cannot do.

    Example:
        >>> describe_launch({"WORLD_SIZE": "8"})
        '8 processes, DDP: whole weights in each'
    """
    env = os.environ if env is None else env
    number = int(env.get("WORLD_SIZE", "1"))
    processes = "1 process" if number == 1 else f"{number} processes"
    if _is_on(env, "ACCELERATE_USE_DEEPSPEED"):
        return f"{processes}, {_deepspeed(env)}"
    if _is_on(env, "ACCELERATE_USE_FSDP"):
        return f"{processes}, {_fsdp(env)}"
    return processes if number == 1 else f"{processes}, DDP: whole weights in each"


def _is_on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").lower() in _TRUE


def _fsdp(env: Mapping[str, str]) -> str:
    version = env.get("FSDP_VERSION", "1")
    saved = env.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT").upper()
    remedy = "see configs/accelerate/fsdp2.yaml"
    if version != "2":
        raise CliError(f"the launcher asks for FSDP version {version}; set fsdp_version: 2, {remedy}")
    if saved != "FULL_STATE_DICT":
        raise CliError(
            f"the launcher asks for fsdp_state_dict_type: {saved}, which writes no model.safetensors; set "
            f"FULL_STATE_DICT, {remedy}"
        )
    loads = (
        "the main process loads" if _is_on(env, "FSDP_CPU_RAM_EFFICIENT_LOADING") else "each process loads"
    )
    return f"FSDP2: weights, gradients, optimiser and reference sharded; {loads} the checkpoint"


def _deepspeed(env: Mapping[str, str]) -> str:
    if find_spec("deepspeed") is None:
        raise CliError("the launcher asks for DeepSpeed, which is not installed: pip install deepspeed")
    if path := env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        return f"DeepSpeed, settings in {path}"
    stage = env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    where = {
        name: env.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{name.upper()}_DEVICE", "none")
        for name in ("optimizer", "param")
    }
    away = ", ".join(f"{name} offloaded to {device}" for name, device in where.items() if device != "none")
    what = {"1": "optimiser", "2": "gradients, optimiser", "3": "weights, gradients, optimiser"}
    return f"DeepSpeed ZeRO-{stage}: {what.get(stage, 'nothing')} sharded{'; ' + away if away else ''}"
