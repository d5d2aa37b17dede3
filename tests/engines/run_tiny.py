"""One tiny training run in a process of its own: `run_tiny.py CHECKPOINT CLIPS OUT '{"resume": true}'`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch

torch.set_num_threads(1)
RANK = os.environ.get("RANK", "0")


class Printed(tiny.Notes):
    """Says on standard output that a step is done, so that a test can kill the process there."""

    def metrics(self, step, values) -> None:
        super().metrics(step, values)
        print(f"step {step} loss {values['train/loss']!r}", flush=True)


def fsdp_on_cpu() -> None:
    """accelerate uses FSDP on accelerators only; torch itself shards over gloo as well."""
    from accelerate.state import AcceleratorState, DistributedType, PartialState

    start = AcceleratorState.__init__

    def init(self, *args, **kwargs) -> None:
        start(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and kwargs.get("fsdp_plugin") is not None:
            self.fsdp_plugin = kwargs["fsdp_plugin"]
            if self._mixed_precision != "no":
                self.fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = init


def zero3_on_cpu() -> None:
    """accelerate uses DeepSpeed on accelerators only; DeepSpeed itself runs over gloo as well."""
    import accelerate
    from accelerate.state import DistributedType, PartialState

    import ffr.engines.trl.setup as setup

    os.environ["DS_ACCELERATOR"] = "cpu"
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    arguments = setup._grpo_values
    setup._grpo_values = lambda *args: {**arguments(*args), "use_cpu": False, "dataloader_pin_memory": False}
    assert accelerate.utils.is_deepspeed_available()


def note_weights() -> list[str]:
    """Will hold the digest of this rank's weights at the end of training."""
    import ffr.engines.trl.run as run
    from ffr.engines.trl.shards import whole_tensor

    digests: list[str] = []
    export = run.export_student

    def noting(trainer, student) -> None:
        content = b"".join(whole_tensor(p).float().numpy().tobytes() for p in trainer.model.parameters())
        digests.append(hashlib.sha256(content).hexdigest())
        export(trainer, student)

    run.export_student = noting
    return digests


def note_gradients(out: Path) -> None:
    """Writes the whole gradients of every optimiser step."""
    from safetensors.torch import save_file
    from transformers import TrainerCallback

    import ffr.engines.trl.run as run
    from ffr.engines.trl.shards import whole_tensor

    build = run._build

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **_) -> None:
            grads = {
                name: whole_tensor(torch.nn.Parameter(p.grad))
                for name, p in model.named_parameters()
                if p.grad is not None
            }
            if RANK == "0":
                save_file(grads, out / f"grads_{state.global_step + 1}.safetensors")

    def noting(*args, **kwargs):
        trainer = build(*args, **kwargs)
        trainer.add_callback(Gradients())
        return trainer

    run._build = noting


def lose(uids: list[str]) -> None:
    """Clips that cannot be decoded any more once training has begun."""
    import ffr.engines.trl.flow as flow
    from ffr.observe import MediaError

    observe = flow.observe

    def losing(sample, cfg):
        if sample.uid in uids:
            raise MediaError("missing", sample.video, "lost")
        return observe(sample, cfg)

    flow.observe = losing


def stall_while_verifying() -> None:
    """This rank never comes back from its first verdict."""
    import ffr.engines.trl.flow as flow

    def forever(*_, **__):
        time.sleep(3600)

    flow.verify = forever


def watch_scoring(timeout_s: float) -> None:
    """The watchdog looks at one phase only: how long the others take says nothing on a busy machine."""
    from ffr.engines.trl.watch import Watch

    enter = Watch.enter

    def entering(self, phase, **kwargs) -> None:
        self._timeout_s = timeout_s if phase == "score" else 1e6
        enter(self, phase, **kwargs)

    Watch.enter = entering


def main() -> None:
    import ffr.engines.trl.flow as flow
    from ffr.engines.trl import setup, train

    checkpoint, clips, out, options = sys.argv[1:]
    wanted = json.loads(options)
    verifier = tiny.coin
    if wanted.get("rank_0_is_right") and RANK == "0":
        verifier = tiny.always_right
    flow.verify = import_module("ffr.fix.repair").verify = verifier  # type: ignore[attr-defined]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        zero3_on_cpu()
    else:
        fsdp_on_cpu()
    if wanted.get("sgd"):
        arguments = setup._grpo_values
        setup._grpo_values = lambda *args: {**arguments(*args), "optim": "sgd"}
    if wanted.get("gradients"):
        note_gradients(Path(out))
    lose(wanted.get("lost", []))
    if wanted.get("stall_rank") == int(RANK):
        stall_while_verifying()
    if "watch_scoring_s" in wanted:
        watch_scoring(wanted["watch_scoring_s"])
    cfg = tiny.config(Path(checkpoint), Path(out), **wanted.get("cfg", {}))
    digests = note_weights()
    teacher = tiny.FakeTeacher(dead_for=wanted.get("dead_for", ())) if cfg.train.algorithm == "ffr" else None
    sink = Printed()
    result = train(
        cfg, tiny.samples(Path(clips), 6), teacher=teacher, sinks=[sink], resume=wanted.get("resume", False)
    )
    weights = result.student_dir / "model.safetensors"
    report = {
        "steps": result.steps,
        "resumed_from": str(result.resumed_from),
        "teacher_calls": teacher.calls if teacher else 0,
        "rows": sink.rows,
        "weights": str(weights),
        "digest": digests[0],
    }
    Path(out, f"report_{RANK}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
