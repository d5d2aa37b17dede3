"""`ffr doctor train`: what fits, what is there, what would happen, and what to change."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ffr.cli import doctor_train
from ffr.cli.doctor import write_ramp
from tests.fix.fake_server import FakeServer, Reply, reply_json, say


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a clip, its row and a configuration; the micro student, greedy settings."""
    monkeypatch.setenv("COLUMNS", "250")
    videos = tmp_path / "videos"
    videos.mkdir()
    write_ramp(videos / "1.mp4")

    def configuration(extra: str = "", *, teacher: str = "type = 'oracle'", rows: int = 1) -> Path:
        listed = [
            {
                "problem_id": number, "problem": "Which way?", "data_type": "video",
                "problem_type": "multiple choice", "options": ["A. left", "B. right"],
                "solution": "<answer>B</answer>", "path": f"./{number}.mp4",
            }
            for number in range(1, rows + 1)
        ]  # fmt: skip
        questions = tmp_path / "questions.json"
        questions.write_text(json.dumps(listed))
        file = tmp_path / "run.toml"
        file.write_text(
            f"[data]\nnum_samples = {rows}\n"
            f"[[data.sources]]\npath = '{questions}'\nroot = '{videos}'\n"
            f"[report]\noutput_dir = '{tmp_path / 'out'}'\n"
            "[model]\npath = 'micro-student'\n"
            "[observe]\nnum_frames = 4\nmax_frame_px = 3136\nmin_frame_px = 784\n"
            f"[fix.teacher]\n{teacher}\n{extra}"
        )
        return file

    return configuration


def states(file: Path) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(file.read_text())["checks"]}


def test_a_run_that_can_start_is_told_so(ffr, write, tmp_path: Path) -> None:
    out_file = tmp_path / "doctor.json"
    code, out, err = ffr("doctor", "train", "-c", write(), "--gpu-memory-gib", "8", "--json", out_file)
    assert (code, err) == (0, "")
    found = states(out_file)
    assert {name: found[name]["state"] for name in ("configuration", "first row", "encoded", "memory", "disk",
                                                    "teacher", "output", "resume")} == dict.fromkeys(
        ("configuration", "first row", "encoded", "memory", "disk", "teacher", "output", "resume"), "ok"
    )  # fmt: skip
    assert "4 frames of 56x56 px" in found["first row"]["detail"]
    # 4 frames are 2 pairs of 2 x 2 visual tokens.
    assert ", 8 of them visual (find.max_prompt_tokens = 16384)" in found["encoded"]["detail"]
    memory = json.loads(out_file.read_text())["memory"]
    parts = {part["name"]: part for part in memory["parts"]}
    weights = 4 * memory["num_parameters"] / 2**30
    assert parts["weights"]["gib"] == parts["reference"]["gib"] == pytest.approx(weights)
    assert memory["needed_gib"] == max(memory["sampling_gib"], memory["update_gib"]) < 8
    # The tokens are those of the row that was encoded, not the largest that the settings allow.
    tokens = int(found["encoded"]["detail"].split()[0])
    assert parts["activations"]["note"].startswith(f"{tokens + 8 * (160 + 1024)} tokens")
    assert "memory of each of 1 process(es), ddp: an estimate, GiB" in out
    assert not (tmp_path / "out").exists()  # only looked at


def test_what_does_not_fit_fails_with_settings_and_values(
    ffr, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")._replace(free=10**12)
    monkeypatch.setattr(doctor_train.shutil, "disk_usage", lambda _: usage)
    words = ["--model.path", "Qwen/Qwen2.5-VL-7B-Instruct", "--gpu-memory-gib", "80"]
    code, out, _ = ffr("doctor", "train", "-c", write(), *words)
    flat = " ".join(out.split())
    assert code == 1
    assert "fail memory does not fit: about" in flat and "the GPU has 80.0; most while update:" in flat
    assert "fail memory: change model.lora.rank = 64 (then" in flat
    assert "8 GPUs with configs/accelerate/zero3.yaml (then" in flat
    assert "sizes from the table of released sizes" in flat
    assert "warn encoded no processor of Qwen/Qwen2.5-VL-7B-Instruct on this machine" in flat
    code, out, _ = ffr("doctor", "train", "-c", write(), *words, "--model.lora.rank", "64")
    assert code == 0 and re.search(r"ok memory about 2\d\.\d GiB", " ".join(out.split()))
    code, out, _ = ffr("doctor", "train", "-c", write(), *words, "--strategy", "zero3", "--world-size", "8")
    assert code == 0 and "gathered weights" in out and "memory of each of 8 process(es), zero3" in out


def test_without_a_gpu_the_need_is_stated(ffr, write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_train, "gpu_memory_gib", lambda: None)
    code, out, _ = ffr("doctor", "train", "-c", write())
    assert code == 0
    assert "GiB a process; no GPU to compare with, give --gpu-memory-gib" in " ".join(out.split())


def test_a_model_of_another_kind_is_not_guessed_at(ffr, write, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    _, out, _ = ffr("doctor", "train", "-c", write(), "--model.path", tmp_path)
    assert "warn memory not estimated: model_type 'llava'" in " ".join(out.split())


def test_a_prompt_that_is_too_long_fails_with_the_settings_to_change(ffr, write) -> None:
    code, out, _ = ffr("doctor", "train", "-c", write(), "--find.max-prompt-tokens", "20")
    flat = " ".join(out.split())
    assert code == 1
    assert "fail encoded" in flat and "find.max_prompt_tokens is 20" in flat and "observe.num_frames" in flat


def test_a_clip_that_cannot_be_decoded_fails_with_its_name(ffr, write, tmp_path: Path) -> None:
    (tmp_path / "videos" / "1.mp4").write_bytes(b"no clip")
    code, out, _ = ffr("doctor", "train", "-c", write())
    assert code == 1 and "fail first row" in " ".join(out.split()) and "1.mp4" in out


@pytest.mark.parametrize(
    ("extra", "words", "phrase"),
    [
        ("", ["--data.sources.0.path", "nowhere.json"], "nowhere.json: no such file"),
        ("", ["--find.group-size", "0"], "--find.group-size: must be a whole number >= 1"),
        (
            "",
            ["--fix.teacher.type", "none"],
            "fail teacher fix.teacher.type = 'none': this would be plain GRPO",
        ),
        ("", ["--fix.teacher.type", "openai"], "fail teacher fix.teacher.base_url is empty"),
        ("", ["--train.algorithm", "grpo"], "ok teacher none needed by train.algorithm = 'grpo'"),
        ("", ["--fix.teacher.type", "none", "--fix.allow-no-teacher"], "warn teacher"),
    ],
)
def test_what_is_missing_is_named(ffr, write, extra: str, words: list[str], phrase: str) -> None:
    code, out, _ = ffr("doctor", "train", "-c", write(extra), *words)
    assert phrase in " ".join(out.split())
    assert code == (1 if "ok " not in phrase and "warn " not in phrase else 0)


def good(request: dict[str, Any], number: int) -> Reply:
    return say("yes") if request else reply_json({"object": "list", "data": [{"id": "vl"}]})


def refused(request: dict[str, Any], number: int) -> Reply:
    return reply_json({"error": {"message": "bad key"}}, 401)


@pytest.mark.parametrize(
    ("script", "code", "phrases"),
    [
        (good, 0, ("ok teacher: models vl is one of 1", "ok teacher: reply 'yes'")),
        (refused, 1, ("fail teacher: reply auth: HTTP 401",)),
    ],
)
def test_the_teacher_is_asked(ffr, write, script: Any, code: int, phrases: tuple[str, ...]) -> None:
    with FakeServer(script) as server:
        teacher = f"type = 'openai'\nbase_url = '{server.base_url}'\nmodel = 'vl'"
        found, out, _ = ffr("doctor", "train", "-c", write(teacher=teacher))
    assert found == code
    for phrase in phrases:
        assert phrase in " ".join(out.split())


def test_a_full_disk_fails_with_how_many_checkpoints_fit(ffr, write, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    # The micro student: 8 bytes of states and 4 of weights for each of its parameters.
    one, student = 12 * 2_054_208, 4 * 2_054_208
    monkeypatch.setattr(
        doctor_train.shutil, "disk_usage", lambda _: usage._replace(free=int(2.5 * one) + student)
    )
    code, out, _ = ffr("doctor", "train", "-c", write(), "--train.keep-checkpoints", "9")
    flat = " ".join(out.split())
    assert code == 1
    assert "fail disk 10 checkpoints of" in flat and "train.keep_checkpoints = 1 fits" in flat


def test_what_a_resume_would_find_is_told(ffr, write, tmp_path: Path) -> None:
    from ffr.engines.trl.checkpoint import Position, write_manifest

    file, out_dir = write(), tmp_path / "out"
    (out_dir / "checkpoints").mkdir(parents=True)
    (out_dir / "metrics.jsonl").write_text("")
    _, out, _ = ffr("doctor", "train", "-c", file)
    assert "warn resume" in " ".join(out.split()) and "without a whole checkpoint" in out
    for step in (3, 6):
        (path := out_dir / "checkpoints" / f"checkpoint-{step}").mkdir()
        (path / "model.safetensors").write_bytes(b"weights")
        write_manifest(path, Position(step=step, num_processes=1, questions="", num_questions=step))
    (out_dir / "checkpoints" / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    code, out, _ = ffr("doctor", "train", "-c", file)
    flat = " ".join(out.split())
    assert code == 0
    assert "`ffr train --resume` goes on from checkpoint-3" in flat
    assert "warn resume checkpoint-6 would not be used" in flat


def test_an_output_directory_that_cannot_be_written_fails(
    ffr, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError("Permission denied")

    monkeypatch.setattr(doctor_train.tempfile, "NamedTemporaryFile", refuse)
    code, out, _ = ffr("doctor", "train", "-c", write())
    assert code == 1 and "Permission denied; choose another one" in " ".join(out.split())


def test_training_packages_are_needed_here(ffr, write, monkeypatch: pytest.MonkeyPatch) -> None:
    from ffr.cli import doctor

    def version(name: str) -> str:
        if name in ("trl", "peft"):
            raise doctor.metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, out, _ = ffr("doctor", "train", "-c", write())
    flat = " ".join(out.split())
    assert code == 1 and "fail trl not installed" in flat and "warn peft not installed" in flat
    _, out, _ = ffr("doctor", "train", "-c", write(), "--model.lora.rank", "8")
    assert "fail peft not installed" in " ".join(out.split())
