"""TRL's GRPO trainer with our batches, our advantages and our loss.

TRL 1.16 trains blind on video (its loss forward gets no pixels of a clip) and has one observation per
group. What is kept of it is the outer loop: optimiser, accumulation, data-parallel and ZeRO wrapping,
reference model, adapters, checkpoints, logging. Private seams in use, pinned by a contract test:
`_prepare_inputs`, `_compute_loss`, `log`, `_save_checkpoint`, `_load_from_checkpoint`, `_step`,
`_buffered_inputs`, `ref_model`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from ffr.config import Config
from ffr.engines.batch import Batcher, unwrap
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.hf import HFSampler
from ffr.engines.packed import completion_logprobs, warn_unshared, why_not_shared
from ffr.engines.trl import checkpoint as checkpoints
from ffr.engines.trl.flow import FlowResult, GroupFlow, Question
from ffr.engines.trl.metrics import SUM_NAMES, flow_sums, named_metrics
from ffr.engines.trl.setup import Sink
from ffr.reason import ffr_loss
from ffr.types import Trace


@dataclass(frozen=True, eq=False)
class TrainRow:
    """One rollout of the loss.

    Example:
        >>> TrainRow(prompt=prompt, completion=(5, 9), advantage=0.7)  # doctest: +SKIP
    """

    prompt: EncodedPrompt
    """The observation it is trained in."""
    completion: tuple[int, ...]
    advantage: float
    treatment: str = "own"
    sampled_in: EncodedPrompt | None = None
    """The observation it was sampled in, where that is another one."""
    active: bool = True
    """False: not in the mask and not in any count."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Rows of one forward and backward pass.

    Example:
        >>> MicroBatch(rows=rows, normalizer=80.0, old=None, scored=None, ref=None)  # doctest: +SKIP
    """

    rows: Sequence[TrainRow]
    normalizer: float
    """Tokens or rows of the whole step over all ranks, divided by the number of ranks."""
    old: Tensor | None
    """log pi_old, (B, T); None where every row takes its own current ones (ratio exactly 1)."""
    scored: Tensor | None
    """(B,), True for the rows that `old` holds."""
    ref: Tensor | None
    """log pi_ref under the observation of training, (B, T)."""


class FFRTrainer(GRPOTrainer):
    """Find, fix and score when a batch is due; eq. 11 on every micro-batch.

    Args:
        cfg: the run.
        sampler: samples from `model`.
        flow: find, fix, score.
        sinks: told about each optimiser step on the main process.
        **kwargs: of `GRPOTrainer`; the data set's rows carry `index`.
    """

    def __init__(
        self,
        *,
        cfg: Config,
        sampler: HFSampler,
        flow: GroupFlow,
        sinks: Sequence[Sink] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(reward_funcs=_unused_reward, **kwargs)
        self.cfg = cfg
        self.sampler = sampler
        self.flow = flow
        self.sinks = tuple(sinks)
        self.encoder: Encoder = sampler.encoder
        self.batcher: Batcher = sampler.batcher  # features of a frozen tower are kept for all passes
        if self.ref_model is not None:
            self.ref_model.requires_grad_(False)
        if cfg.model.shared_prefix and (reason := why_not_shared(self.model)):
            warn_unshared(type(unwrap(self.model)).__name__, reason)
        self.last_metrics: dict[str, float] = {}
        self._sums: Counter[str] = Counter()
        self._traces: list[Trace] = []
        self._mark = time.perf_counter()

    # -- batches -------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> MicroBatch:  # type: ignore[override]
        if not self.model.training:
            return self._round(generation_batch, 1, training=False)[0]
        chunks = self.args.steps_per_generation
        if self._step % (chunks * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._round(generation_batch, chunks, training=True)
        return self._buffered_inputs[self._step % chunks]

    def _round(self, batch: Sequence[dict[str, Any]], chunks: int, *, training: bool) -> list[MicroBatch]:
        group_size = self.cfg.find.group_size
        indices = [row["index"] for row in batch][::group_size]
        if len(indices) * group_size != len(batch):
            raise ValueError(f"a batch of {len(batch)} rows is not made of groups of {group_size}")
        step = self.state.global_step
        self.sampler.reseed(self.cfg.train.seed, step, self.accelerator.process_index)
        with self._sampling():
            result = self.flow.run(indices, training=training)
        rows = [row for question in result.questions for row in self._rows(question)]
        started = time.perf_counter()
        size = len(rows) // chunks
        normalizer = self._normalizer(rows)
        with self._scoring():
            micro = [self._micro(rows[at : at + size], normalizer) for at in range(0, len(rows), size)]
        if training:
            self._sums.update(flow_sums(result))
            self._sums["prompt_tokens"] += sum(row.prompt.num_tokens for row in rows)
            self._sums["seconds/score"] += time.perf_counter() - started  # type: ignore[assignment]
            self._keep_traces(result, step + 1)
        self._mark = time.perf_counter()
        return micro

    def _rows(self, question: Question) -> list[TrainRow]:
        group, score = question.group, question.score
        if group is None or score is None:
            blank = EncodedPrompt("", question.sample.uid, (self.encoder.pad_id,), (), (0,))
            end = (min(self.sampler.stop_ids),)
            return [TrainRow(blank, end, 0.0, active=False)] * self.cfg.find.group_size
        advantages = score.advantages_G.tolist()
        rows: list[TrainRow] = []
        for g, rollout in enumerate(score.trained_G):
            treatment = score.view_treatment_G[g]
            sampled = self.encoder.encode(group.chosen_G[g].observation) if treatment == "true_is" else None
            prompt = self.encoder.encode(rollout.observation)
            active = score.active_G[g]
            rows.append(TrainRow(prompt, rollout.token_ids, advantages[g], treatment, sampled, active))
        return rows

    def _normalizer(self, rows: Sequence[TrainRow]) -> float:
        active = [row for row in rows if row.active]
        by_token = self.cfg.reason.loss_norm == "token_mean"
        local = sum(len(row.completion) for row in active) if by_token else len(active)
        total = torch.tensor(float(local), dtype=torch.float64, device=self._device)
        return float(self.accelerator.reduce(total, reduction="sum")) / self.accelerator.num_processes

    def _micro(self, rows: Sequence[TrainRow], normalizer: float) -> MicroBatch:
        old = scored = ref = None
        scored = torch.tensor(
            [self.num_iterations > 1 or row.treatment == "true_is" for row in rows], device=self._device
        )
        with torch.no_grad(), self.accelerator.autocast():
            if bool(scored.any()):
                old = self._logprobs(self.model, rows, sampled_view=True)[0]
            if self.beta != 0.0:
                with self._reference() as model:
                    ref = self._logprobs(model, rows)[0]
        return MicroBatch(rows, normalizer, old, scored if old is not None else None, ref)

    # -- loss ----------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: MicroBatch) -> Tensor:
        reason = self.cfg.reason
        with self.accelerator.autocast():
            logprobs, mask = self._logprobs(model, inputs.rows)
        rows, device = inputs.rows, logprobs.device
        active = torch.tensor([row.active for row in rows], device=device)
        old = logprobs.detach()
        if inputs.old is not None and inputs.scored is not None:
            old = torch.where(inputs.scored[:, None], inputs.old, old)
        out = ffr_loss(
            logprobs,
            old,
            torch.tensor([row.advantage for row in rows], device=device),
            mask * active[:, None],
            ref_logprobs_BT=inputs.ref,
            clip_eps=reason.clip_eps,
            kl_beta=reason.kl_beta,
            norm=reason.loss_norm,
            normalizer=inputs.normalizer,
            max_completion_tokens=self.cfg.find.max_completion_tokens,
            view_treatment_B=[row.treatment for row in rows],
            shaping_gamma=reason.shaping_gamma,
            true_is_clamp=reason.true_is_clamp,
        )
        if self.model.training:
            weight = float(out.metrics["num_tokens"])
            for name in ("kl", "clip_fraction", "ratio_mean"):
                self._sums[name] += float(out.metrics[name]) * weight  # type: ignore[assignment]
            self._sums["update_tokens"] += weight  # type: ignore[assignment]
        return out.loss

    def _logprobs(
        self, model: Any, rows: Sequence[TrainRow], *, sampled_view: bool = False
    ) -> tuple[Tensor, Tensor]:
        prompts = [row.sampled_in or row.prompt if sampled_view else row.prompt for row in rows]
        return completion_logprobs(
            model,
            self.batcher,
            prompts,
            [row.completion for row in rows],
            temperature=self.cfg.find.temperature,
            fused=self._device.type == "cuda",
            shared=self.cfg.model.shared_prefix,
        )

    @property
    def _device(self) -> torch.device:
        return self.accelerator.device

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        # One collective for the whole of find and fix: ZeRO-3 gathers the weights once, and ranks may
        # then sample as often and as unevenly as their failures need.
        training = self.model.training
        if self.is_deepspeed_enabled:
            scope: Any = unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            )
        else:
            scope = nullcontext(self.model)
        with scope as model, self.accelerator.autocast():
            self.sampler.model = model
            try:
                yield
            finally:
                self.sampler.forget()
                self.sampler.model = self.model
                self.model.train(training)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        if self.ref_model is not None:
            yield self.ref_model
            return
        # Adapters: the reference is the policy without them.
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            yield self.model

    # -- reports -------------------------------------------------------------------------------

    def _keep_traces(self, result: FlowResult, step: int) -> None:
        report = self.cfg.report
        if not self.accelerator.is_main_process or step % report.trace_every:
            return
        for question in result.questions:
            if question.group is not None and question.score is not None:
                score = question.score
                trace = Trace(
                    step=step,
                    group=question.group,
                    rewards_G=tuple(score.rewards_G.tolist()),
                    advantages_G=tuple(score.advantages_G.tolist()),
                    taxed_G=score.taxed_G,
                    run=report.output_dir.name,
                )
                self._traces.append(trace)
            if len(self._traces) == report.trace_groups:
                return

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Joins the step's sums over ranks, tells the sinks, and logs through `report_to`."""
        if self.model.training and "loss" in logs:
            now = time.perf_counter()
            self._sums["seconds/update"] += now - self._mark  # type: ignore[assignment]
            self._mark = now
            metrics = self._step_metrics()
            for name in ("loss", "grad_norm", "learning_rate"):
                metrics[f"train/{name}"] = float(logs[name])
            logs.update(metrics)
            self.last_metrics = metrics
            self._tell_sinks(metrics)
        super().log(logs, start_time)

    def _step_metrics(self) -> dict[str, float]:
        self._sums["ranks"] = 1
        local = torch.tensor(
            [float(self._sums[name]) for name in SUM_NAMES], dtype=torch.float64, device=self._device
        )
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        self._sums = Counter()
        return named_metrics(dict(zip(SUM_NAMES, total, strict=True)))

    def _tell_sinks(self, metrics: dict[str, float]) -> None:
        traces, self._traces = self._traces, []
        if not self.accelerator.is_main_process:
            return
        for sink in self.sinks:
            sink.metrics(self.state.global_step, metrics)
            if traces:
                sink.traces(self.state.global_step, traces)

    # -- checkpoints ---------------------------------------------------------------------------

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: TRL's would describe another method."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The Trainer would compare names in memory with names on disk, which differ for several video
        # models (they are renamed on saving), warn, and go on with the weights of the start.
        adapters = hasattr(self.accelerator.unwrap_model(self.model), "disable_adapter")
        if model is not None or adapters:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict(), strict=True)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        root = Path(self.args.output_dir)
        path = root / f"checkpoint-{self.state.global_step}"
        if self.accelerator.is_main_process:
            checkpoints.open_for_writing(path)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            checkpoints.write_manifest(path)
            checkpoints.keep_newest(root, self.cfg.train.keep_checkpoints)


def _unused_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    # TRL demands a reward function; ours are computed with the groups, before TRL would ask.
    raise RuntimeError(
        f"TRL asked for rewards of {len(completions)} completions; FFRTrainer computes its own"
    )
