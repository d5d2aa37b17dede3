"""TRL's GRPO trainer with our batches, our advantages and our loss.

TRL 1.16 trains blind on video (its loss forward gets no pixels of a clip) and has one observation per
group. What is kept of it is the outer loop: optimiser, accumulation, data-parallel and ZeRO wrapping,
reference model, adapters, checkpoints, logging. Private seams in use, pinned by a contract test:
`_prepare_inputs`, `_compute_loss`, `log`, `_save_checkpoint`, `_save_optimizer_and_scheduler`,
`_prepare_for_training`, `_load_from_checkpoint`, `_step`, `_buffered_inputs`, `ref_model`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from ffr.config import Config
from ffr.engines.batch import Batcher, unwrap
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.packed import completion_logprobs, warn_unshared, why_not_shared
from ffr.engines.trl import checkpoint as checkpoints
from ffr.engines.trl import ranks, setup, shards
from ffr.engines.trl.flow import FlowResult, GroupFlow, Question
from ffr.engines.trl.metrics import SUM_NAMES, flow_sums, named_metrics
from ffr.engines.trl.rollouts import AnySampler, WeightKeeper, correction
from ffr.engines.trl.rows import MicroBatch, TrainRow
from ffr.engines.trl.setup import Sink
from ffr.engines.trl.telemetry import PEAKS, Telemetry
from ffr.engines.trl.watch import Watch
from ffr.reason import ffr_loss
from ffr.types import Trace


class FFRTrainer(GRPOTrainer):
    """Find, fix and score when a batch is due; eq. 11 on every micro-batch.

    Args:
        cfg: the run.
        sampler: samples from `model`.
        flow: find, fix, score.
        sinks: told about each optimiser step on the main process.
        watch: told the phase of this rank.
        weights: keeps the weights of a sampler current that does not share `model`.
        position: where the run stands in its data after a step; written into checkpoints.
        **kwargs: of `GRPOTrainer`; the data set's rows carry `index`.
    """

    def __init__(
        self,
        *,
        cfg: Config,
        sampler: AnySampler,
        flow: GroupFlow,
        sinks: Sequence[Sink] = (),
        watch: Watch | None = None,
        weights: WeightKeeper | None = None,
        position: Callable[[int], checkpoints.Position] | None = None,
        **kwargs: Any,
    ) -> None:
        fsdp, kl_beta = shards.fsdp_is_wanted(), kwargs["args"].beta
        if fsdp:
            kwargs["args"].beta = 0.0  # no reference of TRL's: ours is cut like the policy
        super().__init__(reward_funcs=_unused_reward, **kwargs)
        self.cfg = cfg
        self.sampler = sampler
        self.flow = flow
        self.sinks = tuple(sinks)
        self.encoder: Encoder = sampler.encoder
        self.batcher: Batcher = sampler.batcher  # features of a frozen tower are kept for all passes
        self.position = position
        self.weights = weights
        self.watch = watch or Watch(cfg.report.output_dir / "ranks")
        self.telemetry = Telemetry(cfg, flow.clock, self.accelerator.device, self.model)
        self.whole = shards.WholeCopy(self.model) if fsdp or shards.is_zero3(self) else None
        if fsdp:
            self.beta = self.args.beta = kl_beta
            shards.cut(self, self.model)
            if self.beta and setup.lora_config(cfg) is None:
                self.ref_model = shards.sharded_reference(self)
        if self.ref_model is not None:
            self.ref_model.requires_grad_(False)
            self.telemetry.hook(self.ref_model)
        if cfg.model.shared_prefix and (reason := why_not_shared(self.model)):
            warn_unshared(type(unwrap(self.model)).__name__, reason)
        self.last_metrics: dict[str, float] = {}
        self._sums: Counter[str] = Counter()
        self._traces: list[Trace] = []

    # -- batches -------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> MicroBatch:  # type: ignore[override]
        if not self.model.training:
            return self._round(generation_batch, 1, training=False)[0]
        chunks = self.args.steps_per_generation
        if self._step % (chunks * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._round(generation_batch, chunks, training=True)
        self.watch.enter("update", step=self.state.global_step + 1)
        self.flow.clock.base("update")
        return self._buffered_inputs[self._step % chunks]

    def _round(self, batch: Sequence[dict[str, Any]], chunks: int, *, training: bool) -> list[MicroBatch]:
        group_size = self.cfg.find.group_size
        indices = [row["index"] for row in batch][::group_size]
        if len(indices) * group_size != len(batch):
            raise ValueError(f"a batch of {len(batch)} rows is not made of groups of {group_size}")
        step = self.state.global_step
        self.watch.enter("find", step=step + 1, samples=self.flow.uids(indices))
        self.sampler.reseed(self.cfg.train.seed, step, ranks.stream_of(self.accelerator, indices))
        result, rows, error = FlowResult(()), list[TrainRow](), None
        with self._sampling():
            try:
                result = self.flow.run(indices, training=training)
                rows = [row for question in result.questions for row in self._rows(question)]
            except Exception as caught:
                error = caught  # raised below, on all ranks
        self.watch.enter("score")
        size = len(batch) // chunks
        parts = [rows[at : at + size] for at in range(0, len(batch), size)]
        wanted = [self._needs(part) for part in parts]
        normalizer, needs = ranks.agree(self.accelerator, error, self._norm(rows), wanted)
        with self._scoring(), self.flow.clock.phase("score"):
            micro = [self._micro(part, need, normalizer) for part, need in zip(parts, needs, strict=True)]
        if training:
            self._sums.update(flow_sums(result))
            self._sums["prompt_tokens"] += sum(row.prompt.num_tokens for row in rows)
            self._keep_traces(result, step + 1)
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
            active, own = score.active_G[g], rollout.logprobs if treatment == "own" else None
            rows.append(TrainRow(prompt, rollout.token_ids, advantages[g], treatment, sampled, active, own))
        return rows

    def _norm(self, rows: Sequence[TrainRow]) -> float:
        active = [row for row in rows if row.active]
        by_token = self.cfg.reason.loss_norm == "token_mean"
        return float(sum(len(row.completion) for row in active) if by_token else len(active))

    def _needs(self, rows: Sequence[TrainRow]) -> ranks.Chunk:
        kinds = frozenset(medium.kind for row in rows for medium in row.prompt.media)
        return ranks.Chunk(kinds, self.num_iterations > 1 or any(row.has_own_view for row in rows))

    def _micro(self, rows: Sequence[TrainRow], need: ranks.Chunk, normalizer: float) -> MicroBatch:
        # Every rank makes the same passes, through the same parts of the model.
        if missing := need.kinds - self._needs(rows).kinds:
            prompt = ranks.filler(self.encoder, missing, self.cfg.observe.size_factor_px)
            rows = [*rows, TrainRow(prompt, (min(self.sampler.stop_ids),), 0.0, active=False)]
        old = scored = ref = None
        with torch.no_grad(), self.accelerator.autocast():
            if need.scored:
                own = [self.num_iterations > 1 or row.has_own_view for row in rows]
                scored = torch.tensor(own, device=self._device)
                old = self._logprobs(self.model, rows, sampled_view=True)[0]
            if self.beta != 0.0:
                with self._reference() as model:
                    ref = self._logprobs(model, rows)[0]
        return MicroBatch(rows, normalizer, old, scored, ref)

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
        token_weights, cut = None, 0.0
        if self.weights is not None and self.cfg.train.vllm.correction != "none":
            token_weights, cut = correction(rows, old, mask * active[:, None], self.cfg.train.vllm)
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
            token_weights_BT=token_weights,
        )
        if self.model.training:
            self.telemetry.loss(logprobs, old, mask * active[:, None], rows)
            weight = float(out.metrics["num_tokens"])
            for name in ("kl", "clip_fraction", "ratio_mean"):
                self._sums[name] += float(out.metrics[name]) * weight  # type: ignore[assignment]
            self._sums["update_tokens"] += weight  # type: ignore[assignment]
            self._sums["mismatch_cut"] += cut  # type: ignore[assignment]
        return out.loss

    def _logprobs(
        self, model: Any, rows: Sequence[TrainRow], *, sampled_view: bool = False
    ) -> tuple[Tensor, Tensor]:
        prompts = [row.sampled_in or row.prompt if sampled_view else row.prompt for row in rows]
        self.telemetry.head(sum(len(row.completion) for row in rows))
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
        # One collective for the whole of find and fix: FSDP2 and ZeRO-3 gather the weights once, and ranks
        # may then sample as often and as unevenly as their failures need. (DeepSpeed's own modules would
        # meet at the start of every pass, gathered or not.)
        training = self.model.training
        scope: Any = nullcontext(self.model)
        if self.whole is not None:
            dtype = getattr(torch, self.cfg.model.dtype)
            scope = self.whole.filled(self.model, device=self._device, dtype=dtype)
        if self.weights is not None:  # the sampler is elsewhere: gathered weights are held to be sent only
            with scope as model:
                self.weights.send(self.accelerator, model, self.state.global_step)
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
        with shards.adapters_off(self.model):
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
            metrics = self._step_metrics()
            for name in ("loss", "grad_norm", "learning_rate"):
                metrics[f"train/{name}"] = float(logs[name])
            logs.update(metrics)
            self.last_metrics = metrics
            self._tell_sinks(metrics)
        super().log(logs, start_time)

    def _step_metrics(self) -> dict[str, float]:
        self._sums.update(self.telemetry.take())
        self.flow.clock.base("other")
        self._sums["ranks"] = 1
        local = torch.tensor(
            [float(self._sums[name]) for name in SUM_NAMES], dtype=torch.float64, device=self._device
        )
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        self._sums = Counter()
        peaks = torch.tensor(self.telemetry.take_peaks(), dtype=torch.float64, device=self._device)
        most = self.accelerator.gather(peaks).view(-1, len(PEAKS)).amax(dim=0).tolist()
        return named_metrics(dict(zip(SUM_NAMES, total, strict=True)), dict(zip(PEAKS, most, strict=True)))

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

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_weights(resume_from_checkpoint)  # before they are cut
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.is_fsdp_enabled:
            self._load_weights(resume_from_checkpoint, model)

    def _load_weights(self, path: str, model: Any = None) -> None:
        # The Trainer would compare names in memory with names on disk, which differ for several video
        # models (they are renamed on saving), warn, and go on with the weights of the start.
        adapters = hasattr(self.accelerator.unwrap_model(self.model), "disable_adapter")
        if model is not None or adapters:
            super()._load_from_checkpoint(path, model)
            return
        saved = type(self.model).from_pretrained(path, dtype=self.model.dtype)
        self.model.load_state_dict(saved.state_dict(), strict=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # Without the Trainer's second copy of the weights, which is no safetensors file.
        shards.save_optimizer(self, output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        root = Path(self.args.output_dir)
        path = root / f"checkpoint-{self.state.global_step}"
        self.watch.enter("save")
        ranks.main_does(self.accelerator, lambda: checkpoints.open_for_writing(path))
        with self.flow.clock.phase("save"):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            ranks.main_does(self.accelerator, lambda: self._declare_whole(path))

    def _declare_whole(self, path: Path) -> None:
        checkpoints.write_manifest(path, self.position and self.position(self.state.global_step))
        checkpoints.keep_newest(path.parent, self.cfg.train.keep_checkpoints)


def _unused_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    # TRL demands a reward function; ours are computed with the groups, before TRL would ask.
    raise RuntimeError(
        f"TRL asked for rewards of {len(completions)} completions; FFRTrainer computes its own"
    )
