"""Rollouts from a vLLM engine on the training GPUs, one engine per process.

TRL's `VLLMGeneration` builds the engine; it is asked here directly, with un-expanded token ids and native
media (TRL would pass ids that its processor has expanded already, which vLLM expands again).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ffr.config import FindConfig
from ffr.engines.batch import Batcher, unwrap
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.hf import banned_tokens, stop_ids
from ffr.engines.vllm_server import stream_seed
from ffr.engines.vllm_wire import (
    BAN,
    check_prompt,
    checked,
    multi_modal_data,
    processor_switches,
    sampling_fields,
)
from ffr.find import SamplerError
from ffr.types import Observation, Rollout


class VllmColocateSampler:
    """`Sampler` over a `vllm.LLM` in this process.

    Args:
        llm: the engine; computes log-probabilities of what it samples from (`processed_logprobs`).
        sampling_params: `vllm.SamplingParams`, or what takes its fields.
        model: the student in this process: its vocabulary and end tokens; never sampled from.
        encoder: turns observations into prompts.
        find: temperature, top-p, completion limit.
        seed: start of the random streams until `reseed`.

    Example:
        >>> sampler = VllmColocateSampler(llm, SamplingParams, model, encoder, find=find)  # doctest: +SKIP
    """

    remote = True
    """The weights are elsewhere: whoever updates them must send them."""

    def __init__(
        self,
        llm: Any,
        sampling_params: Callable[..., Any],
        model: Any,
        encoder: Encoder,
        *,
        find: FindConfig,
        seed: int = 0,
    ) -> None:
        self.llm = llm
        self.model = model
        self.encoder = encoder
        self.find = find
        self.batcher = Batcher(model, encoder.pad_id)
        self.stop_ids = stop_ids(unwrap(model), encoder)
        self.banned = (
            frozenset(banned_tokens(unwrap(model), encoder).nonzero()[:, 0].tolist()) - self.stop_ids
        )
        self._params = sampling_params
        self.reseed(seed)

    def reseed(self, *parts: int) -> None:
        """Starts new random streams, named by `parts` (seed, step, rank): a resumed run repeats them."""
        self._stream = parts
        self._drawn: Counter[tuple[str, str]] = Counter()

    def forget(self) -> None:
        """Nothing is kept between calls on this side."""

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """Samples `num` rollouts of each observation in one call of the engine.

        Raises:
            SamplerError: another prompt there than here, or a completion that is no rollout.
            EncodeError: an observation cannot be shown to this model.
        """
        prompts = [self.encoder.encode(obs) for obs in observations]
        asked = [self._prompt(obs, prompt) for obs, prompt in zip(observations, prompts, strict=True)]
        requests = [request for request in asked for _ in range(num)]
        params = [self._settings(obs, source) for obs in observations for _ in range(num)]
        outputs = self.llm.generate(requests, params, use_tqdm=False) if requests else []
        if len(outputs) != len(requests):
            raise SamplerError(
                f"the vLLM engine gave {len(outputs)} completions for {len(requests)} requests"
            )
        rollouts = [
            self._rollout(observations[k // num], prompts[k // num], output, source)
            for k, output in enumerate(outputs)
        ]
        return [rollouts[at : at + num] for at in range(0, len(rollouts), num)]

    def _prompt(self, obs: Observation, prompt: EncodedPrompt) -> dict[str, Any]:
        request: dict[str, Any] = {"prompt_token_ids": list(prompt.gen_ids)}
        if media := multi_modal_data(obs):
            request |= {"multi_modal_data": media, "mm_processor_kwargs": processor_switches(obs)}
        return request

    def _settings(self, obs: Observation, source: str) -> Any:
        name = (obs.view_id, source)
        stream, self._drawn[name] = self._drawn[name], self._drawn[name] + 1
        return self._params(
            **sampling_fields(self.find, sorted(self.stop_ids)),
            n=1,
            max_tokens=self.find.max_completion_tokens,
            logit_bias=dict.fromkeys(sorted(self.banned), BAN),
            logprobs=0,
            seed=stream_seed(self._stream, obs.view_id, source, stream),
        )

    def _rollout(self, obs: Observation, prompt: EncodedPrompt, output: Any, source: str) -> Rollout:
        check_prompt(prompt, output.prompt_token_ids, self.encoder)
        done = output.outputs[0]
        tokens = list(done.token_ids)
        logprobs = [step[token].logprob for token, step in zip(tokens, done.logprobs or (), strict=False)]
        who = f"sample {obs.sample_uid!r}"
        if not tokens:
            raise SamplerError(f"{who}: the vLLM engine gave a completion without tokens")
        reply = checked(who, tokens, logprobs, done.finish_reason, banned=self.banned, stop_ids=self.stop_ids)
        text = self.encoder.decode(reply.token_ids, self.stop_ids)
        return Rollout(obs, text, reply.token_ids, reply.logprobs, reply.finish, source)
