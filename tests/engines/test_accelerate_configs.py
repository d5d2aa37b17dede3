"""The shipped launcher configurations, read by accelerate's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import launch
import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

FOLDER = launch.ROOT / "configs" / "accelerate"


def load(name: str) -> ClusterConfig:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    return config


def test_every_configuration_is_known_here() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {"ddp", "fsdp2", "zero3"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ddp", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("zero3", DistributedType.DEEPSPEED),
    ],
)
def test_accelerate_reads_it(name: str, kind: DistributedType) -> None:
    config = load(name)
    assert config.distributed_type == kind
    assert (config.num_processes, config.mixed_precision, config.use_cpu) == (8, "bf16", False)
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), "-m", "ffr", "train"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert (args.use_fsdp, args.use_deepspeed) == (name == "fsdp2", name == "zero3")


def test_fsdp2_becomes_the_plugin_that_the_engine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import StateDictType

    for name, value in launch.environment_of("fsdp2").items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert not plugin.activation_checkpointing and plugin.cpu_ram_efficient_loading


def test_zero3_becomes_deepspeeds_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    env = launch.environment_of("zero3")
    assert env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    assert (
        env["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == env["ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"] == "true"
    )
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    from ffr.cli import launcher

    monkeypatch.setattr(launcher, "find_spec", lambda name: Any)
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert launcher.describe_launch().startswith("8 processes, DeepSpeed ZeRO-3: weights, gradients")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_it_says_how_it_is_launched(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"accelerate launch --config_file configs/accelerate/{name}.yaml" in text
    assert Path("configs/ffr_qwen2_5vl_7b.toml").name not in text  # any configuration may follow
