"""One variant of `bench/train_step.py` in a process of its own: a step whenever a line comes in."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from ffr.algorithms import make_algorithm  # noqa: E402
from ffr.config import Config  # noqa: E402
from ffr.engines.trl import run, setup  # noqa: E402
from ffr.observe import observe  # noqa: E402
from ffr.types import Option, ProblemType, Rollout, Sample  # noqa: E402

MARK = "@train_step "
VARIANTS: dict[str, dict[str, Any]] = {
    "shared": {"shared_prefix": True, "rows": None},
    "unshared": {"shared_prefix": False, "rows": "group"},
    "unshared_row_by_row": {"shared_prefix": False, "rows": 1},
    "stock_trl": {"shared_prefix": False, "rows": "group"},
}
"""What `model.shared_prefix` and `train.micro_batch_size` are in each; TRL gets the same arguments."""


def sample(clip: Path) -> Sample:
    return Sample(
        uid="bench/0",
        question="What happens first?",
        answer="B",
        problem_type=ProblemType.MULTIPLE_CHOICE,
        video=clip,
        options=(Option("A", "one"), Option("B", "two"), Option("C", "three")),
        source="bench",
    )


def settings(spec: dict[str, Any]) -> Config:
    group, on_cuda = spec["group_size"], spec["device"] == "cuda"
    words = VARIANTS[spec["variant"]]
    rows = group if words["rows"] == "group" else words["rows"]
    return Config.model_validate(
        {
            "model": {
                "path": spec["student"], "dtype": "bfloat16" if on_cuda else "float32",
                "gradient_checkpointing": on_cuda, "shared_prefix": words["shared_prefix"],
                "lora": {"rank": spec["lora_rank"]},
            },
            "observe": {
                "num_frames": spec["frames"], "max_frame_px": 1280 * 28 * 28, "min_frame_px": 28 * 28,
                "prompt": "brief",
            },
            "find": {"group_size": group, "max_completion_tokens": spec["completion"]},
            "fix": {"teacher": {"type": "none"}},
            "train": {
                "algorithm": "grpo", "cpu": not on_cuda, "micro_batch_size": rows, "updates_per_batch": 2,
                "learning_rate": 1e-6, "save_every": 100,
            },
            "report": {"output_dir": spec["output"], "display": "none"},
        }
    )  # fmt: skip


def completions(spec: dict[str, Any]) -> list[tuple[int, ...]]:
    rng = torch.Generator().manual_seed(spec["completion"])
    size = (spec["group_size"], spec["completion"])
    return [tuple(row) for row in torch.randint(7, 260, size, generator=rng).tolist()]


class Ours:
    """`FFRTrainer` with rollouts that are given instead of sampled."""

    def __init__(self, spec: dict[str, Any]) -> None:
        cfg = settings(spec)
        args = setup.grpo_arguments(cfg, 1)
        rows = [sample(Path(spec["clip"]))]
        self.trainer = run._build(cfg, rows, [0], args, make_algorithm(cfg), None, ())
        self.batch = [{"prompt": "ffr", "index": 0}] * cfg.find.group_size
        self.aside_s = 0.0
        self.forget = self.trainer.batcher.kept.clear
        given = completions(spec)
        words = ["<think>t</think><answer>B</answer>", "<think>t</think><answer>A</answer>"]

        async def fixed(observations: Any, *, num: int, source: str = "policy") -> list[list[Rollout]]:
            return [
                [
                    Rollout(obs, words[k % 2], given[k], (-1.0,) * len(given[k]), "length", source)
                    for k in range(num)
                ]
                for obs in observations
            ]

        self.trainer.sampler.sample = fixed
        self.trainer.flow.run = self._aside(self.trainer.flow.run)

    def _aside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.aside_s += time.perf_counter() - started

        return timed


class Stock(Ours):
    """TRL's own `GRPOTrainer`: frames as images (it has no video), completions given."""

    def forget(self) -> None:
        """TRL keeps no features."""

    def __init__(self, spec: dict[str, Any]) -> None:
        from datasets import Dataset
        from PIL import Image
        from trl import GRPOTrainer

        cfg, given = settings(spec), completions(spec)

        class Given(GRPOTrainer):
            def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
                return [list(given[k]) for k in range(len(prompt_ids))], None

        def rewards(prompts: Any, **_: Any) -> list[float]:
            return [float(k % 2) for k in range(len(prompts))]

        model, processor = setup.load_student(cfg, sharded=False)
        self.trainer = Given(
            model=model,
            reward_funcs=rewards,
            args=setup.grpo_arguments(cfg, 1),
            train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": "q"}]] * 8}),
            processing_class=processor,
            peft_config=setup.lora_config(cfg),
        )
        view = observe(sample(Path(spec["clip"])), cfg.observe)
        images = [Image.fromarray(frame.pixels) for frame in view.frames]
        content = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": view.prompt})
        self.batch = [{"prompt": [{"role": "user", "content": content}]}] * cfg.find.group_size
        self.aside_s = 0.0
        # Chat template and pixels: ours are made once per clip; what TRL spends on them is not counted.
        kind = type(processor)
        kind.__call__ = self._aside(kind.__call__)


def counted(model: Any, tokens: Counter[str]) -> None:
    """Counts positions of the language model and patches of the vision tower, padding included."""

    def language(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        batch, length = kwargs["inputs_embeds"].shape[:2]
        tokens["language_positions"] += batch * length

    model.model.language_model.register_forward_pre_hook(language, with_kwargs=True)
    model.model.visual.register_forward_pre_hook(
        lambda _module, args, kwargs: tokens.update(
            vision_patches=len(args[0] if args else kwargs["hidden_states"])
        ),
        with_kwargs=True,
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def one_step(variant: Ours, model: Any, optimizer: Any) -> None:
    """Score with the old policy and the reference, forward and backward, optimiser."""
    trainer = variant.trainer
    variant.forget()  # every step of a run shows another clip
    trainer._step, trainer._buffered_inputs = 0, None
    for _ in range(trainer.args.gradient_accumulation_steps):
        trainer.training_step(model, variant.batch, None)
    trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    spec = json.loads(sys.argv[1])
    on_cuda = spec["device"] == "cuda"
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    variant = (Stock if spec["variant"] == "stock_trl" else Ours)(spec)
    trainer = variant.trainer
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    trainer.model_wrapped, trainer.optimizer = model, optimizer
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    tokens: Counter[str] = Counter()
    for each in filter(None, (trainer.model, trainer.ref_model)):
        base = trainer.accelerator.unwrap_model(each)
        counted(base.get_base_model() if hasattr(base, "get_base_model") else base, tokens)
    model.train()
    before = torch.cuda.memory_allocated() if on_cuda else resident_bytes()
    print(MARK + json.dumps({"resident_bytes": before}), flush=True)
    for _line in sys.stdin:
        tokens.clear()
        variant.aside_s, started, used = 0.0, time.perf_counter(), time.process_time()
        one_step(variant, model, optimizer)
        if on_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        highest = torch.cuda.max_memory_allocated() if on_cuda else 0
        highest = highest or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report = {"step_s": seconds - variant.aside_s, "aside_s": variant.aside_s, **tokens}
        report["cpu_s"] = time.process_time() - used
        print(MARK + json.dumps({**report, "peak_memory_bytes": highest - before}), flush=True)


if __name__ == "__main__":
    main()
