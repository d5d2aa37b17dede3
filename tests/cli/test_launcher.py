"""What `ffr train` says of the way it was launched, and what it refuses before any model is loaded."""

import json
from importlib.machinery import ModuleSpec

import pytest

from ffr.cli import launcher
from ffr.cli.errors import CliError
from ffr.cli.launcher import describe_launch

FSDP = {
    "WORLD_SIZE": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip
ZERO = {"WORLD_SIZE": "8", "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


@pytest.fixture
def deepspeed(monkeypatch):
    def install(present):
        found = ModuleSpec("deepspeed", None) if present else None
        monkeypatch.setattr(launcher, "find_spec", lambda name: found)

    return install


def test_plain_and_data_parallel():
    assert describe_launch({}) == "1 process"
    assert describe_launch({"WORLD_SIZE": "2"}) == "2 processes, DDP: whole weights in each"


def test_fsdp2():
    words = describe_launch(FSDP)
    assert words.startswith("8 processes, FSDP2: weights, gradients, optimiser and reference sharded")
    assert words.endswith("each process loads the checkpoint")
    assert describe_launch({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}).endswith(
        "the main process loads the checkpoint"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, r"FSDP version 1; set fsdp_version: 2"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, r"no model.safetensors.*FULL_STATE_DICT"),
    ],
)
def test_fsdp_that_could_not_be_saved_is_refused(changes, message):
    with pytest.raises(CliError, match=message):
        describe_launch({**FSDP, **changes})


def test_zero3(deepspeed):
    deepspeed(True)
    assert describe_launch(ZERO) == "8 processes, DeepSpeed ZeRO-3: weights, gradients, optimiser sharded"
    away = describe_launch({**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"})
    assert away.endswith("; param offloaded to cpu")
    assert "ds.json" in describe_launch({**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"})


def test_deepspeed_that_is_not_installed_is_refused(deepspeed, ffr, monkeypatch):
    deepspeed(False)
    for name, value in ZERO.items():
        monkeypatch.setenv(name, value)
    code, _, err = ffr("train", "--dry-run")
    assert code == 1
    assert "pip install deepspeed" in err


def test_a_dry_run_says_how_it_was_launched_on_the_main_process_only(ffr, monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    code, out, err = ffr("train", "--dry-run", "--model.lora.rank", "64")
    assert code == 0
    assert json.loads(out)["model"]["lora"]["rank"] == 64
    assert "launched as: 8 processes, FSDP2" in err
    monkeypatch.setenv("RANK", "3")
    assert ffr("train", "--dry-run")[:2] == (0, "")
