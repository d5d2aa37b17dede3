"""What a run leaves on disk: adapters that resume exactly, and a student that anything can load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import train
from ffr.engines.trl.checkpoint import CheckpointError

repair_module = import_module("ffr.fix.repair")  # the package exports a function of this name
LORA = {"lora": {"rank": 2, "dropout": 0.1}, "freeze_vision": True}
LOAD = """
import json, sys
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
folder, inputs, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
processor = AutoProcessor.from_pretrained(folder)
frames = torch.load(inputs)
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what is it ?"}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
batch = processor(text=[text], videos=[frames], videos_kwargs={"do_resize": False, "do_sample_frames": False},
                  return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
torch.save({"logits": logits, "ids": batch["input_ids"], "dtype": str(model.dtype)}, out)
"""


@pytest.fixture(autouse=True)
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(repair_module, "verify", tiny.coin)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    return tiny.samples(tmp_path_factory.mktemp("clips"), 4)


def load_elsewhere(folder: Path, tmp_path: Path) -> dict:
    """Logits of a fresh process that knows transformers only."""
    frames = torch.randint(
        0, 256, (4, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.save(frames, tmp_path / "frames.pt")
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "frames.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / "out.pt")


@pytest.mark.timeout(600)
def test_adapters_resume_bit_for_bit_and_are_merged_on_export(checkpoint, clips, tmp_path, caplog) -> None:
    run = {"algorithm": "ffr", "max_steps": 3, "num_epochs": 3, "save_every": 1, "keep_checkpoints": 3}
    cfg = tiny.config(checkpoint, tmp_path / "run", model=LORA, train=run)
    whole = train(cfg, clips, teacher=tiny.FakeTeacher())
    merged = load_file(whole.student_dir / "model.safetensors")
    start = load_file(checkpoint / "model.safetensors")
    assert merged.keys() == start.keys()
    moved = {name for name, value in merged.items() if not torch.equal(value, start[name])}
    assert moved and not any("visual" in name or "embed" in name for name in moved)
    folder = cfg.report.output_dir / "checkpoints"
    adapters = load_file(folder / "checkpoint-3" / "adapter_model.safetensors")
    shutil.rmtree(folder / "checkpoint-3")
    again = train(cfg, clips, teacher=tiny.FakeTeacher(), resume=True)
    assert again.resumed_from is not None and again.resumed_from.name == "checkpoint-2"
    # Dropout draws from torch's generator, so this also needs its state back.
    resumed = load_file(folder / "checkpoint-3" / "adapter_model.safetensors")
    assert adapters.keys() == resumed.keys() and any(float(v.abs().max()) > 0 for v in adapters.values())
    for name, value in adapters.items():
        assert torch.equal(resumed[name], value), name
    for name, value in load_file(again.student_dir / "model.safetensors").items():
        assert torch.equal(merged[name], value), name
    check_checkpoint_names_everything(folder / "checkpoint-2")
    check_other_data_is_refused(cfg, clips)


def check_checkpoint_names_everything(path: Path) -> None:
    """Weights, optimiser, schedule, random states, data and teacher's position are in the manifest."""
    manifest = json.loads((path / "ffr_manifest.json").read_text())
    files = set(manifest["files"])
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= files
    position = manifest["position"]
    assert (position["step"], position["num_processes"], position["num_questions"]) == (2, 1, 4)
    assert position["teacher_outcomes"] > 0


def check_other_data_is_refused(cfg, clips) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint-3: it was made after 6 other questions"):
        train(cfg, list(reversed(clips)), teacher=tiny.FakeTeacher(), resume=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_student_loads_unchanged_in_a_fresh_process(checkpoint, clips, tmp_path, monkeypatch, dtype) -> None:
    from ffr.engines.trl import run as run_module

    kept: list[torch.nn.Module] = []
    export = run_module.export_student

    def keeping(trainer, student) -> None:
        export(trainer, student)
        # Without the autocast that accelerate puts around the forward pass of a bfloat16 run.
        kept.append(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))

    monkeypatch.setattr(run_module, "export_student", keeping)
    cfg = tiny.config(
        checkpoint, tmp_path / "run", model={"dtype": dtype}, train={"algorithm": "grpo", "max_steps": 1}
    )
    student = train(cfg, clips, teacher=None).student_dir
    names = set(os.listdir(student))
    assert names >= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "processor_config.json", "preprocessor_config.json",
        "video_preprocessor_config.json",
    }  # fmt: skip
    config = json.loads((student / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"] and config["dtype"] == dtype
    ours = load_elsewhere(student, tmp_path)
    assert ours["dtype"] == f"torch.{dtype}" and torch.isfinite(ours["logits"]).all()
    check_same_logits(kept[0], student, ours, tmp_path)
    # The template and the processors are those of the model that training began with.
    assert torch.equal(load_elsewhere(checkpoint, tmp_path)["ids"], ours["ids"])


def check_same_logits(model, student: Path, ours: dict, tmp_path: Path) -> None:
    """The model in this process, on the inputs that the other process made for itself."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(student)
    batch = processor(
        text=[processor.tokenizer.decode(ours["ids"][0]).replace("<|video_pad|>" * 8, "<|video_pad|>")],
        videos=[torch.load(tmp_path / "frames.pt")],
        videos_kwargs={"do_resize": False, "do_sample_frames": False},
        return_tensors="pt",
    )
    assert torch.equal(batch["input_ids"], ours["ids"])
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, ours["logits"])


def test_processor_is_written_whole_and_in_parts(processor, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoVideoProcessor

    from ffr.engines.trl.export import save_processor

    save_processor(processor, tmp_path)
    (tmp_path / "processor_config.json").unlink()  # as for a reader that does not know it
    images, videos = (
        AutoImageProcessor.from_pretrained(tmp_path),
        AutoVideoProcessor.from_pretrained(tmp_path),
    )
    assert images.merge_size == processor.image_processor.merge_size
    assert videos.size == processor.video_processor.size
