"""Two processes over gloo: DDP and FSDP2 are the single process, whatever fails on which rank."""

from __future__ import annotations

import ast
from pathlib import Path

import launch
import pytest
import tiny
import torch
from safetensors.torch import load_file

from ffr.engines.trl import ranks, shards
from ffr.engines.trl.watch import EXIT_CODE

ENGINE = Path(ranks.__file__).parent
STEPS = 3
ADAPTERS = {"lora": {"rank": 2}, "dtype": "bfloat16", "freeze_vision": True}
OF_THE_ALGORITHM = ("find/", "fix/", "reason/", "train/", "tokens/")
TRAIN = {
    "algorithm": "ffr", "num_epochs": 1, "max_steps": STEPS, "save_every": STEPS, "micro_batch_size": 4,
    "max_grad_norm": 1e9, "learning_rate": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("clips")
    return folder, tiny.samples(folder, 6)


def options(clips, *, per_rank: int, **changes) -> dict:
    """Step 1: failures as they come. Step 2: no teacher for one rank's question. Step 3: its clip is lost."""
    from ffr.engines.trl.setup import schedule

    cfg = tiny.config(Path(), Path(), train={"questions_per_step": 2, "max_steps": STEPS})
    order = [clips[1][index].uid for index in schedule(6, cfg, 1)]
    train = {**TRAIN, "questions_per_step": per_rank}
    return {
        "cfg": {"train": train, "model": {"gradient_checkpointing": True}},
        "sgd": True, "gradients": True, "dead_for": [order[3]], "lost": [order[5]], **changes,
    }  # fmt: skip


@pytest.mark.timeout(900)
def test_two_ranks_are_one_process(checkpoint: Path, clips, tmp_path: Path) -> None:
    """Losses, gradients and metrics of DDP and FSDP2 against one process with both questions."""
    runs = {}
    for name, number in (("single", 1), ("ddp", 2), ("fsdp2", 2)):
        out = tmp_path / name
        wanted = options(clips, per_rank=2 // number)
        runs[name] = launch.finish(
            launch.start(checkpoint, clips[0], out, wanted, ranks=number, config=name), out
        )
    rows = {name: run.report()["rows"] for name, run in runs.items()}
    first, dead, lost = rows["single"]
    assert first["fix/teacher_failed"] == 0 < dead["fix/teacher_failed"]
    assert lost["find/skipped_groups"] == 1 and first["find/skipped_groups"] == 0
    for name in ("ddp", "fsdp2"):
        for step, (ours, single) in enumerate(zip(rows[name], rows["single"], strict=True), start=1):
            same = {k: v for k, v in single.items() if not k.startswith(("time/", "speed/", "memory/"))}
            assert {k: ours[k] for k in same} == pytest.approx(same, abs=1e-5), f"{name}, step {step}"
            expected = load_file(runs["single"].out / f"grads_{step}.safetensors")
            actual = load_file(runs[name].out / f"grads_{step}.safetensors")
            assert max(float(g.abs().max()) for g in expected.values()) > 1e-2
            assert set(actual) >= set(expected)
            for key, grad in actual.items():
                there = expected.get(key, torch.zeros_like(grad))
                assert grad == pytest.approx(there, abs=1e-5), f"{name}, step {step}, {key}"
        reports = [runs[name].report(rank) for rank in range(2)]
        assert reports[0]["digest"] == reports[1]["digest"]
        assert [report["teacher_calls"] > 0 for report in reports] == [True, True]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", ["fsdp2", "zero3"])
@pytest.mark.parametrize("model", [{}, ADAPTERS], ids=["all weights", "adapters"])
def test_sharded_weights_resume_and_are_exported_whole(
    checkpoint: Path, clips, tmp_path: Path, config: str, model: dict
) -> None:
    """One rank has no failures, one trains in another view; resumed, it is the uninterrupted run."""
    if config == "zero3":
        pytest.importorskip("deepspeed", reason="ZeRO-3 is executed where DeepSpeed is installed")
        model = {**model, "dtype": "float32"}  # transformers wants a GPU for bfloat16 under DeepSpeed
    train = {**TRAIN, "max_steps": 2, "save_every": 1, "questions_per_step": 1}
    cfg = {"train": train, "reason": {"train_view": "true_is"}, "model": model}
    wanted = {"cfg": cfg, "rank_0_is_right": True}
    whole = launch.finish(
        launch.start(checkpoint, clips[0], tmp_path, wanted, ranks=2, config=config), tmp_path
    )
    student = load_file(whole.report()["weights"])
    for folder in ("checkpoints/checkpoint-2", "student"):
        (tmp_path / folder).rename(tmp_path / f"{folder}.away")
    resumed = {**wanted, "resume": True}
    again = launch.finish(
        launch.start(checkpoint, clips[0], tmp_path, resumed, ranks=2, config=config), tmp_path
    )
    assert again.report()["resumed_from"].endswith("checkpoint-1") and len(again.report()["rows"]) == 1
    assert again.report()["digest"] == whole.report()["digest"]
    for name, value in load_file(again.report()["weights"]).items():
        assert torch.equal(value, student[name]), name
    from transformers import AutoModelForImageTextToText

    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    assert type(loaded).__name__ in loaded.config.architectures
    start = load_file(checkpoint / "model.safetensors")
    moved = max(float((student[name].float() - value).abs().max()) for name, value in start.items())
    assert student.keys() == start.keys() and moved > 1e-4


@pytest.mark.timeout(900)
def test_an_error_on_one_rank_ends_all(checkpoint: Path, clips, tmp_path: Path) -> None:
    """The teacher of rank 1's questions never succeeds: rank 0 does not wait for ever."""
    train = {**TRAIN, "questions_per_step": 1}
    wanted = {
        "cfg": {"train": train, "fix": {"no_teacher_after": 1}}, "rank_0_is_right": True,
        "dead_for": [sample.uid for sample in clips[1]],
    }  # fmt: skip
    ended = launch.wait(launch.start(checkpoint, clips[0], tmp_path, wanted, ranks=2), tmp_path)
    assert all(code not in (0, -9) for code in ended.codes)
    assert "PeerError: stopped because of another rank; rank 1: NoTeacherError" in ended.outputs[0]
    assert "NoTeacherError" in ended.outputs[1] and "PeerError" not in ended.outputs[1]


@pytest.mark.timeout(900)
def test_watchdog_names_the_rank_that_stalls(checkpoint: Path, clips, tmp_path: Path) -> None:
    train = {**TRAIN, "questions_per_step": 1, "watchdog_s": 1e6, "watchdog_abort": True}
    wanted = {"cfg": {"train": train}, "stall_rank": 1, "watch_scoring_s": 1.0}
    processes = launch.start(checkpoint, clips[0], tmp_path, wanted, ranks=2)
    ended = launch.wait(processes, tmp_path, first_only=True)
    told = ended.outputs[0]
    assert ended.codes[0] == EXIT_CODE, told[-6000:]
    assert "watchdog: rank 0: score for " in told and ": no progress for 1 s" in told
    assert "  rank 1: find for " in told and "step 1, samples t/" in told
    assert "the others wait for rank 1, in phase find" in told
    assert " in agree" in told  # the Python stacks: where rank 0 waits
    assert "rank 0 ends (train.watchdog_abort)" in told


@pytest.mark.timeout(900)
def test_zero3_is_one_process(checkpoint: Path, clips, tmp_path: Path) -> None:
    """As above, with DeepSpeed; its gradients are not to be had, so the weights after SGD stand for them."""
    pytest.importorskip("deepspeed", reason="ZeRO-3 is executed where DeepSpeed is installed")
    runs = {}
    for name, number in (("single", 1), ("zero3", 2)):
        out = tmp_path / name
        wanted = options(clips, per_rank=2 // number, gradients=False)
        runs[name] = launch.finish(
            launch.start(checkpoint, clips[0], out, wanted, ranks=number, config=name), out
        )
    for ours, single in zip(runs["zero3"].report()["rows"], runs["single"].report()["rows"], strict=True):
        same = {k: v for k, v in single.items() if k.startswith(OF_THE_ALGORITHM)}
        assert {k: ours[k] for k in same} == pytest.approx(same, abs=1e-5)
    expected = load_file(runs["single"].report()["weights"])
    actual = load_file(runs["zero3"].report()["weights"])
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-6), name


def test_whole_copy_holds_weights_only_while_it_is_used(model, encoder) -> None:
    whole = shards.WholeCopy(model)
    prompt = encoder.encode(tiny.view(1))
    assert all(p.device.type == "meta" for p in whole._model.parameters())
    with whole.filled(model, device="cpu") as copy:
        assert copy is not model
        expected = tiny.plain_logprobs(model, prompt, (20, 21))
        assert torch.equal(tiny.plain_logprobs(copy, prompt, (20, 21)), expected)
    assert all(p.device.type == "meta" for p in whole._model.parameters())
    with whole.filled(model, device="cpu", dtype=torch.bfloat16) as copy:
        assert {p.dtype for p in copy.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kinds", [{"video"}, {"image"}, {"video", "image"}])
def test_filler_shows_what_is_asked_for(encoder, kinds: set[str]) -> None:
    prompt = ranks.filler(encoder, frozenset(kinds), 28)
    assert {medium.kind for medium in prompt.media} == kinds
    assert sum(medium.num_features for medium in prompt.media) == len(kinds)


def test_needs_of_micro_batches_travel_as_numbers() -> None:
    chunks = [ranks.Chunk(frozenset({"image"}), True), ranks.Chunk(frozenset(), False)]
    assert [ranks.Chunk.from_numbers(chunk.numbers) for chunk in chunks] == chunks
    summed = [
        a + b for a, b in zip(chunks[0].numbers, ranks.Chunk(frozenset({"video"})).numbers, strict=True)
    ]
    assert ranks.Chunk.from_numbers(summed) == ranks.Chunk(frozenset({"video", "image"}), True)


COLLECTIVES = {
    "reduce", "gather", "gather_object", "gather_for_metrics", "broadcast", "broadcast_object_list",
    "wait_for_everyone", "barrier", "all_reduce", "all_gather", "full_tensor", "whole_tensor", "filled",
    "_gathered", "agree", "raise_together", "main_does", "from_main", "stream_of", "save_optimizer",
    "save_model", "export_student", "save_fsdp_optimizer", "_logprobs", "_reference", "_sampling", "_round",
    "_micro", "_step_metrics",
}  # fmt: skip
OF_A_RANK = {"is_main_process", "process_index", "is_local_main_process", "is_world_process_zero", "rank"}


def name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def rank_dependent_collectives(tree: ast.AST) -> list[str]:
    """Collectives inside a branch that asks for the rank, or behind an early return of such a branch."""
    found: list[str] = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.If | ast.IfExp | ast.While):
                continue
            words = {
                n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in ast.walk(node.test)
            }
            if not words & OF_A_RANK:
                continue
            branches = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [*node.body, *node.orelse]
            inside = [n for branch in branches for n in ast.walk(branch)]
            if any(isinstance(n, ast.Return) for n in inside):
                inside += [n for n in ast.walk(function) if getattr(n, "lineno", 0) > node.lineno]
            names = {name_of(n.func) for n in inside if isinstance(n, ast.Call)}
            found += [f"{function.name}: {name}" for name in sorted(names & COLLECTIVES)]
    return found


@pytest.mark.parametrize("path", sorted(ENGINE.glob("*.py")), ids=lambda path: path.stem)
def test_no_collective_depends_on_the_rank(path: Path) -> None:
    assert rank_dependent_collectives(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "body",
    [
        "if self.accelerator.is_main_process:\n        self.accelerator.wait_for_everyone()",
        "if not state.is_main_process:\n        return\n    gather_object(x)",
        "x = broadcast(y) if process_index == 0 else None",
    ],
)
def test_a_rank_dependent_collective_would_be_found(body: str) -> None:
    assert len(rank_dependent_collectives(ast.parse(f"def f(self):\n    {body}"))) == 1
