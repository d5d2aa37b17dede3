"""Starts a tiny run in one or several processes, as a launcher would."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("run_tiny.py")


TIMEOUT_S = 800.0


@dataclass(frozen=True)
class Ended:
    codes: list[int]
    outputs: list[str]
    out: Path

    def report(self, rank: int = 0) -> dict[str, Any]:
        return json.loads((self.out / f"report_{rank}.json").read_text(encoding="utf-8"))


def environment_of(config: str) -> dict[str, str]:
    """What `accelerate launch --config_file configs/accelerate/CONFIG.yaml` hands to the processes."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    path = ROOT / "configs" / "accelerate" / f"{config}.yaml"
    words = ["--config_file", str(path), "--num_processes", "2", "-m", "ffr"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = list(load_config_from_file(str(path)).deepspeed_config)
        values = prepare_deepspeed_cmd_env(args)[1]
    else:
        values = prepare_multi_gpu_env(args)
    return {
        k: v for k, v in values.items() if k.startswith(("FSDP_", "ACCELERATE_USE_", "ACCELERATE_DEEPSPEED_"))
    }


def start(
    checkpoint: Path, clips: Path, out: Path, options: dict[str, Any], *, ranks: int, config: str = "ddp"
) -> list[subprocess.Popen[str]]:
    """The processes of one run; `config` names a file of configs/accelerate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(checkpoint), str(clips), str(out), json.dumps(options)]
    shared = {"OMP_NUM_THREADS": "1"} | ({} if config == "zero3" else {"ACCELERATE_USE_CPU": "true"})
    if ranks > 1:
        shared |= environment_of(config)
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    out.mkdir(parents=True, exist_ok=True)
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, **({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for r in range(ranks)
    ]  # fmt: skip


def wait(processes: list[subprocess.Popen[str]], out: Path, *, first_only: bool = False) -> Ended:
    """Waits for all of them, or ends the others after the first; none outlives the test."""
    outputs: list[str] = []
    try:
        for process in processes:
            if first_only and outputs:
                process.kill()
            outputs.append(process.communicate(timeout=TIMEOUT_S)[0])
    finally:
        for process in processes:
            process.kill()
    return Ended([process.returncode for process in processes], outputs, out)


def finish(processes: list[subprocess.Popen[str]], out: Path) -> Ended:
    """Waits, and fails with what was printed unless all of them ended well."""
    ended = wait(processes, out)
    assert ended.codes == [0] * len(processes), "\n".join(ended.outputs)[-6000:]
    return ended
