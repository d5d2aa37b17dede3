"""The cold start of the micro student: our own supervised recipe, from nothing to a checkpoint.

Three phases, all on endless streams of fresh timelines (`stream.py`):

1. *Name what a visual token shows.* The vision tower alone learns to write each tile's time, place,
   shape, colour, drift and glow as a sum of the words' own embeddings: logits are inner products with
   the (tied) token embeddings. A question's word then matches a visual token by content.
2. *Describe a moment.* The language part, tower frozen, describes three random moments per clip.
3. *Answer.* Prompt as in training, one look, one answer; a share of the prompts shows a truthful patch.
   First with a perfect demonstrator, at the end with one that looks at the right place only in part
   of the cases: the student becomes one that knows how to look but often looks elsewhere.

Run `python -m ffr.engines.micro.recipe --help` for the command.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from ffr.algorithms import nll_loss
from ffr.engines.micro.rows import Row, RowMaker, collate
from ffr.engines.micro.stream import Demonstration, demonstrate, visual_batch
from ffr.engines.micro.student import StudentSize, build_model, build_processor, build_tokenizer

PHASES = ("name_tiles", "describe", "answer", "habit")
_STREAM_PER_PHASE = 10_000_000
_GRID = (8, 4, 6)
_SECONDS_PER_STEP = 0.5


@dataclass(frozen=True)
class Recipe:
    """Length and mixture of the phases; the defaults make the shipped checkpoint.

    Example:
        >>> Recipe(seed=1).batch_size
        32
    """

    vision_steps: int = 250
    describe_steps: int = 500
    answer_steps: int = 500
    habit_steps: int = 250
    """Last steps, with a demonstrator of `skill`."""
    batch_size: int = 32
    skill: float = 0.35
    """How often the last phase's demonstrator looks at the right place without a patch."""
    patched_share: float = 0.35
    matrix_rate: float = 0.01
    """Muon's learning rate for the language part's matrices."""
    other_rate: float = 2e-3
    """AdamW's learning rate for embeddings and norms."""
    seed: int = 0


class ColdStart:
    """Holds the student while the phases pass over it.

    Args:
        recipe: Lengths and mixture.
        log: Where progress rows go (JSONL), or None.
    """

    def __init__(self, recipe: Recipe, log: Path | None = None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.rng = np.random.default_rng()
        self.size = StudentSize()
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(RowMaker.corpus(recipe.seed))
        self.rows = RowMaker(self.tokenizer)
        self.model: Qwen2_5_VLForConditionalGeneration = build_model(self.tokenizer, self.size)
        with torch.no_grad():
            self.embeddings.normal_(0.0, 0.05)
        self._drawn = 0
        self._log = log
        self._started = time.monotonic()

    @property
    def embeddings(self) -> nn.Parameter:
        """Token embeddings, which are also the output layer."""
        return self.model.get_input_embeddings().weight  # type: ignore[return-value]

    def begin(self, phase: str) -> None:
        """Each phase has its own part of the stream: one can be run again alone, and exactly."""
        number = PHASES.index(phase)
        self.rng = np.random.default_rng([self.recipe.seed, 1, number])
        self._drawn = number * _STREAM_PER_PHASE

    def draw(self, num: int, *, skill: float = 1.0, patched_share: float = 0.0) -> list[Demonstration]:
        """The next `num` demonstrations of the stream."""
        demos = [
            demonstrate(
                self.rng,
                index=self._drawn + i,
                seed=self.recipe.seed,
                skill=skill,
                patched=bool(self.rng.random() < patched_share),
            )
            for i in range(num)
        ]
        self._drawn += num
        return demos

    def note(self, phase: str, step: int, **values: Any) -> None:
        """One progress row, printed and logged."""
        row = {"phase": phase, "step": step, "wall_s": round(time.monotonic() - self._started, 1), **values}
        print(json.dumps(row), flush=True)
        if self._log:
            with self._log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def look(self, pixels: Tensor, num: int) -> Tensor:
        """Visual tokens of `num` clips, (num * 48, hidden)."""
        grid = torch.tensor(_GRID).repeat(num, 1)
        return self.model.model.visual(pixels, grid_thw=grid).pooler_output

    def name_tiles(self) -> None:
        """Phase 1: visual tokens as sums of the embeddings of the words that describe them."""
        steps, words = self.recipe.vision_steps, self.rows.label_words()
        optimizer = torch.optim.AdamW(self.model.model.visual.parameters(), lr=2e-3, betas=(0.9, 0.98))
        for step in range(1, steps + 1):
            rate = 2e-3 * min(1.0, step / 20, (steps + 1 - step) / 80)
            demos = self.draw(self.recipe.batch_size // 2)
            pixels, labels = visual_batch(demos, self.rng)
            logits = 10.0 * self.look(pixels, len(demos)) @ self.embeddings.detach().T
            parts = [logits[:, group] for group in words]
            loss = torch.stack([F.cross_entropy(part, labels[:, j]) for j, part in enumerate(parts)]).sum()
            _update(loss, [(optimizer, rate)], self.model)
            if step % 50 == 0:
                hits = [(p.argmax(-1) == labels[:, j]).float().mean().item() for j, p in enumerate(parts)]
                names = ("time", "tile", "shape", "colour", "drift", "glow")
                accuracy = dict(zip(names, (round(hit, 3) for hit in hits), strict=True))
                self.note("name_tiles", step, loss=round(loss.item(), 4), accuracy=accuracy)

    def batches(self, phase: str, skill: float) -> Iterator[tuple[list[Row], Tensor]]:
        """Endless rows of a phase with their visual tokens (tower frozen)."""
        share = 0.0 if phase == "describe" else self.recipe.patched_share
        while True:
            demos = self.draw(self.recipe.batch_size, skill=skill, patched_share=share)
            pixels, _ = visual_batch(demos, self.rng)
            with torch.no_grad():
                visual = self.look(pixels, len(demos))
            if phase == "describe":
                yield [self.rows.describing(demo, self.rng) for demo in demos], visual
            else:
                yield [self.rows.answering(demo) for demo in demos], visual

    def teach(self, phase: str, steps: int, *, skill: float = 1.0, decay: bool = False) -> None:
        """Phases 2 and 3: next-token learning on the completion tokens."""
        text: nn.Module = self.model.model.language_model
        named = list(text.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        muon = torch.optim.Muon(matrices, lr=self.recipe.matrix_rate, weight_decay=0.01)
        adam = torch.optim.AdamW(others, lr=self.recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        rates = ((muon, self.recipe.matrix_rate), (adam, self.recipe.other_rate))
        for step, (rows, visual) in zip(range(1, steps + 1), self.batches(phase, skill), strict=False):
            scale = min(1.0, step / 50)
            if decay:
                scale *= max(0.05, 1.0 - step / steps)
            ids, targets, mask = collate(rows, self.tokenizer.pad_token_id)
            logits, wanted = self.predict(ids, targets, mask, visual)
            loss = self.loss(logits, wanted)
            _update(loss, [(optimizer, rate * scale) for optimizer, rate in rates], self.model)
            if step % 50 == 0 or step == steps:
                accuracy = self.rows.accuracy_by_field(wanted, logits.argmax(-1))
                self.note(phase, step, loss=round(loss.item(), 4), skill=skill, accuracy=accuracy)

    def predict(self, ids: Tensor, targets: Tensor, mask: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the supervised positions, (N, V), and the tokens wanted there, (N,)."""
        embedded = self.model.get_input_embeddings()(ids)
        is_video = ids == self.rows.video_id
        embedded = embedded.masked_scatter(is_video[..., None].expand_as(embedded), visual)
        positions, _ = self.model.model.get_rope_index(
            ids,
            is_video.int() * 2,
            video_grid_thw=torch.tensor(_GRID).repeat(len(ids), 1),
            second_per_grid_ts=torch.full((len(ids),), _SECONDS_PER_STEP),
            attention_mask=mask,
        )
        states = self.model.model.language_model(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, :-1]
        supervised = targets[:, 1:] != -100
        return states[supervised] @ self.embeddings.T, targets[:, 1:][supervised]

    def loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The `sft` algorithm's loss on the supervised tokens."""
        logprobs = torch.log_softmax(logits, dim=-1).gather(-1, wanted[:, None]).T
        return nll_loss(logprobs, torch.ones_like(logprobs))

    def save(self, folder: Path) -> None:
        """Writes the checkpoint: weights, tokenizer, template and processor."""
        self.model.save_pretrained(folder)
        build_processor(self.tokenizer, self.size).save_pretrained(folder)


def _update(loss: Tensor, rates: Sequence[tuple[torch.optim.Optimizer, float]], model: nn.Module) -> None:
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()


def run(recipe: Recipe, out: Path, log: Path | None = None, work: Path | None = None) -> None:
    """All phases; writes the checkpoint to `out`.

    Args:
        recipe: Lengths and mixture.
        out: Checkpoint folder.
        log: Progress rows (JSONL).
        work: Folder for the state after each phase; phases found there are not run again.
    """
    if work:
        work.mkdir(parents=True, exist_ok=True)
    start = ColdStart(recipe, log)
    start.note("recipe", 0, **asdict(recipe))
    for phase in PHASES:
        state = work / f"{phase}.pt" if work else None
        if state and state.exists():
            start.model.load_state_dict(torch.load(state, weights_only=True))
            continue
        start.begin(phase)
        if phase == "name_tiles":
            start.name_tiles()
        elif phase != "habit":
            start.teach(phase, getattr(recipe, f"{phase}_steps"))
        else:
            start.teach(phase, recipe.habit_steps, skill=recipe.skill, decay=True)
        if state:
            torch.save(start.model.state_dict(), state)
    start.save(out)


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description="Make the micro student's checkpoint (CPU, under an hour).")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--log", type=Path, help="progress rows (JSONL)")
    parser.add_argument("--work", type=Path, help="keeps the state after each phase, to go on from")
    defaults = Recipe()
    for name, value in asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    out, log, work = (args.pop(name) for name in ("out", "log", "work"))
    run(Recipe(**args), out, log, work)


if __name__ == "__main__":
    main()
