"""One tiny training run in a process of its own: `run_tiny.py CHECKPOINT CLIPS OUT '{"resume": true}'`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import tiny
import torch

torch.set_num_threads(1)


class Printed(tiny.Notes):
    """Says on standard output that a step is done, so that a test can kill the process there."""

    def metrics(self, step, values) -> None:
        super().metrics(step, values)
        print(f"step {step} loss {values['train/loss']!r}", flush=True)


def _note_weights() -> list[str]:
    """Will hold the digest of this rank's weights at the end of training."""
    import ffr.engines.trl.run as run

    digests: list[str] = []
    export = run._export

    def noting(trainer, student) -> None:
        content = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
        digests.append(hashlib.sha256(content).hexdigest())
        export(trainer, student)

    run._export = noting
    return digests


def main() -> None:
    import ffr.engines.trl.flow as flow
    from ffr.engines.trl import train

    checkpoint, clips, out, options = sys.argv[1:]
    wanted = json.loads(options)
    verifier = tiny.coin
    if wanted.get("rank_0_is_right") and os.environ.get("RANK") == "0":
        verifier = tiny.always_right
    flow.verify = import_module("ffr.fix.repair").verify = verifier  # type: ignore[attr-defined]
    cfg = tiny.config(Path(checkpoint), Path(out), **wanted.get("cfg", {}))
    digests = _note_weights()
    teacher = tiny.FakeTeacher() if cfg.train.algorithm == "ffr" else None
    sink = Printed()
    result = train(
        cfg, tiny.samples(Path(clips), 6), teacher=teacher, sinks=[sink], resume=wanted.get("resume", False)
    )
    rank = os.environ.get("RANK", "0")
    weights = result.student_dir / "model.safetensors"
    report = {
        "steps": result.steps,
        "resumed_from": str(result.resumed_from),
        "teacher_calls": teacher.calls if teacher else 0,
        "rows": sink.rows,
        "weights": str(weights),
        "digest": digests[0],
    }
    Path(out, f"report_{rank}.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
