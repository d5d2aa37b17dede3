from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from ffr.engines.batch import Batcher
from ffr.engines.packed import completion_logprobs
from ffr.engines.sft import completion_ids, sft
from ffr.engines.trl import EngineConfigError

PAIRS = [(tiny.view(k), f"<answer>{'AB'[k % 2]}</answer>") for k in range(4)]


def _config(checkpoint: Path, out: Path, **train):
    return tiny.config(
        checkpoint, out, train={"algorithm": "sft", "questions_per_step": 4, "micro_batch_size": 2, **train}
    )


def test_loss_is_the_token_mean_and_falls(checkpoint: Path, tmp_path: Path, model, encoder) -> None:
    sink = tiny.Notes()
    cfg = _config(checkpoint, tmp_path, learning_rate=3e-3, schedule="constant")
    result = sft(cfg, PAIRS * 12, sinks=[sink])
    assert result.steps == 12 and sink.steps == list(range(1, 13))
    end = encoder.tokenizer.eos_token_id
    completions = [completion_ids(encoder, text, end) for _, text in PAIRS]
    assert all(ids[-1] == end for ids in completions)
    prompts = [encoder.encode(obs) for obs, _ in PAIRS]
    with torch.no_grad():
        logprobs, mask = completion_logprobs(model, Batcher(model, encoder.pad_id), prompts, completions)
    assert sink.rows[0]["train/loss"] == pytest.approx(float(-logprobs.sum() / mask.sum()), abs=1e-5)
    assert sink.rows[-1]["train/loss"] < 0.6 * sink.rows[0]["train/loss"]
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(result.student_dir)
    trained = AutoModelForImageTextToText.from_pretrained(result.student_dir, dtype=torch.float32)
    with torch.no_grad():
        after, _ = completion_logprobs(trained, Batcher(trained, encoder.pad_id), prompts, completions)
    assert float(after.sum()) > float(logprobs.sum())


def test_a_stream_needs_its_length(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineConfigError, match="max_steps"):
        sft(_config(checkpoint, tmp_path), iter(PAIRS))
    result = sft(_config(checkpoint, tmp_path, max_steps=2), iter(PAIRS * 5))
    assert result.steps == 2
    with pytest.raises(EngineConfigError, match="at least 4 pairs"):
        sft(_config(checkpoint, tmp_path), PAIRS[:3])


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_weights_are_refused(checkpoint: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(EngineConfigError, match=r"configs/accelerate/ddp\.yaml"):
        sft(_config(checkpoint, tmp_path), PAIRS * 12)
