"""Sampling with a Hugging Face model in the training process: prefill once, decode the group together.

The clip of a question goes through the vision tower once, its prompt through the language model once,
and the key-value cache is repeated for the G rollouts, which are decoded in one batch. A repair begins
with the same clip and question: it goes on from what the first pass kept (`prefix`). Randomness is a
stream per rollout, named by the view and the rollout's place in it: what is sampled depends neither on
the other rows of the batch nor on the device.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffr.config import FindConfig
from ffr.engines.batch import Batcher, unwrap
from ffr.engines.encode import EncodedPrompt, Encoder
from ffr.engines.prefix import PrefixCache, Start, go_on
from ffr.types import Observation, Rollout

_MEDIA_TOKEN = re.compile(r"image|video|vision|audio|frame_?pad", re.IGNORECASE)


def sample_tokens(
    logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float, banned_V: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the distribution function of the nucleus.

    Args:
        logits_BV: model outputs.
        uniform_B: one number in [0, 1) per row; the draw is a function of it.
        temperature: > 0; divides the logits.
        top_p: smallest set of tokens with at least this mass; the most likely token always stays.
        banned_V: True for tokens that must not be drawn.

    Returns:
        Tokens (B,) and their log-probability at the temperature, before the ban and before top-p (B,).
    """
    logprobs = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    allowed = logprobs.masked_fill(banned_V, -math.inf).softmax(dim=-1)
    mass, order = allowed.sort(dim=-1, descending=True, stable=True)
    above = mass.cumsum(dim=-1)
    kept = (above - mass) < top_p
    kept[:, 0] = True
    target = uniform_B.to(mass) * (mass * kept).sum(dim=-1)
    last = kept.sum(dim=-1) - 1
    place = torch.minimum((above <= target[:, None]).sum(dim=-1), last)
    tokens = order.gather(-1, place[:, None])
    return tokens[:, 0], logprobs.gather(-1, tokens)[:, 0]


class HFSampler:
    """`Sampler` over a Hugging Face VLM.

    Args:
        model: the policy; data-parallel wrappers are looked through, adapters stay active.
        encoder: turns observations into prompts.
        find: temperature, top-p, completion limit.
        seed: start of the random streams until `reseed`.
        greedy: take the most likely token instead of drawing (evaluation).
        max_rows: rollouts decoded together at most.
        prefix_bytes: memory for the key-value states of prompts until `reseed`, `forget` or other weights,
            so that prompts that begin alike (repairs) read what is new only; 0 keeps nothing.

    Example:
        >>> rollouts = await HFSampler(model, encoder, find=cfg.find).sample([obs], num=8)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        *,
        find: FindConfig,
        seed: int = 0,
        greedy: bool = False,
        max_rows: int = 64,
        prefix_bytes: int = 0,
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.find = find
        self.greedy = greedy
        self.max_rows = max_rows
        self.batcher = Batcher(model, encoder.pad_id)
        self.prefixes = PrefixCache(prefix_bytes)
        self.stop_ids = stop_ids(unwrap(model), encoder)
        self._banned = banned_tokens(unwrap(model), encoder) & ~_one_hot(unwrap(model), self.stop_ids)
        self.reseed(seed)

    def reseed(self, *parts: int) -> None:
        """Starts new random streams, named by `parts` (seed, step, rank): a resumed run repeats them."""
        self.forget()
        self._stream = parts
        self._drawn: Counter[tuple[str, str]] = Counter()

    def forget(self) -> None:
        """Frees the key-value states of the round's prompts."""
        self.prefixes.clear()

    async def sample(
        self, observations: Sequence[Observation], *, num: int, source: str = "policy"
    ) -> list[list[Rollout]]:
        """Samples `num` rollouts of each observation.

        Args:
            observations: any mixture of views.
            num: rollouts per observation.
            source: `policy` or `repaired`, kept on the rollouts.

        Returns:
            One list of `num` rollouts per observation, with log-probabilities at the temperature
            before top-p; `finish` is `stop` or `length`.

        Raises:
            EncodeError: an observation cannot be shown to this model.
        """
        prompts = [self.encoder.encode(obs) for obs in observations]
        uniforms = [self._uniforms(prompt, num, source) for prompt in prompts]
        out: list[list[Rollout]] = [[] for _ in prompts]
        training = self.model.training
        self.model.eval()
        try:
            self.prefixes.enter(self.model)
            for part, starts in self._batches(prompts, max(1, self.max_rows // num)):
                uniform = torch.cat([uniforms[at] for at in part])
                decoded = self._decode([prompts[at] for at in part], num, uniform, starts)
                for k, at in enumerate(part):
                    rows = decoded[k * num : (k + 1) * num]
                    out[at] = [self._rollout(observations[at], ids, lps, source) for ids, lps in rows]
        finally:
            self.model.train(training)
        return out

    def _batches(
        self, prompts: Sequence[EncodedPrompt], size: int
    ) -> Iterator[tuple[list[int], list[Start] | None]]:
        """Positions of prompts to decode together; with what is kept of them, or None to read them whole."""
        # All are looked up first: what the first batch keeps must not decide how the second one is read.
        starts = [self.prefixes.find(prompt, self.batcher) for prompt in prompts]
        for kept in (True, False):
            places = [at for at, start in enumerate(starts) if (start is not None) == kept]
            for first in range(0, len(places), size):
                part = places[first : first + size]
                found = [start for start in (starts[at] for at in part) if start is not None]
                yield part, found or None

    def _rollout(self, obs: Observation, ids: list[int], logprobs: list[float], source: str) -> Rollout:
        return Rollout(
            observation=obs,
            text=self.encoder.decode(ids, self.stop_ids),
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            finish="stop" if ids[-1] in self.stop_ids else "length",
            source=source,
        )

    def _uniforms(self, prompt: EncodedPrompt, num: int, source: str) -> Tensor:
        rows: list[Tensor] = []
        for _ in range(num):
            name = (prompt.view_id, source)
            words = "/".join(map(str, (*self._stream, *name, self._drawn[name])))
            self._drawn[name] += 1
            seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(self.find.max_completion_tokens, generator=generator))
        return torch.stack(rows)

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[EncodedPrompt], num: int, uniform_RT: Tensor, starts: Sequence[Start] | None
    ) -> list[tuple[list[int], list[float]]]:
        model = unwrap(self.model)
        device = next(model.parameters()).device
        logits, state = self._prefill(model, prompts, num, starts)
        uniform_RT, banned = uniform_RT.to(device), self._banned.to(device)
        stop = torch.tensor(sorted(self.stop_ids), device=device)
        live = torch.arange(len(prompts) * num, device=device)
        tokens = torch.full(uniform_RT.shape, -1, dtype=torch.long, device=device)
        logprobs = torch.zeros(uniform_RT.shape, device=device)
        done = torch.zeros(len(live), dtype=torch.bool, device=device)
        for t in range(uniform_RT.shape[1]):
            picked, picked_lp = self._pick(logits, uniform_RT[live, t], banned)
            tokens[live, t] = torch.where(done, -1, picked)
            logprobs[live, t] = picked_lp
            done = done | torch.isin(picked, stop)
            left = int((~done).sum())
            if not left or t + 1 == uniform_RT.shape[1]:
                break
            if left <= len(live) // 2:
                # The cache of finished rows is dropped once it is half of the work.
                keep = (~done).nonzero()[:, 0]
                state.select(keep)
                live, picked, done = live[keep], picked[keep], done[keep]
            logits = state.step(model, self.batcher, picked)
        lengths = (tokens >= 0).sum(dim=1).tolist()
        rows = zip(tokens.tolist(), logprobs.tolist(), lengths, strict=True)
        return [(ids[:n], lps[:n]) for ids, lps, n in rows]

    def _pick(self, logits: Tensor, uniform: Tensor, banned: Tensor) -> tuple[Tensor, Tensor]:
        find = self.find
        if not self.greedy:
            return sample_tokens(
                logits, uniform, temperature=find.temperature, top_p=find.top_p, banned_V=banned
            )
        best = logits.masked_fill(banned, -math.inf).argmax(dim=-1, keepdim=True)
        logprobs = torch.log_softmax(logits.float() / find.temperature, dim=-1)
        return best[:, 0], logprobs.gather(-1, best)[:, 0]

    def _prefill(
        self, model: nn.Module, prompts: Sequence[EncodedPrompt], num: int, starts: Sequence[Start] | None
    ) -> tuple[Tensor, _DecodeState]:
        device = next(model.parameters()).device
        if starts is None:
            rows = self.batcher.rows(prompts, [()] * len(prompts), device)
            vision, cache = self.batcher.vision(model, prompts), None
        else:
            new = go_on(prompts, starts, self.batcher, model)
            rows, vision, cache = new.rows, new.vision, new.cache
        out = model(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **vision,
        )
        cache = out.past_key_values
        if starts is None:
            self.prefixes.put(prompts, cache)
        if num > 1:
            cache.batch_repeat_interleave(num)
        width, room = rows.attention_mask.shape[1], self.find.max_completion_tokens
        mask = torch.nn.functional.pad(rows.attention_mask.repeat_interleave(num, dim=0), (0, room), value=1)
        positions = self.batcher.next_positions(prompts, device).repeat_interleave(num)
        return out.logits[:, -1].repeat_interleave(num, dim=0), _DecodeState(cache, mask, positions, width)


class _DecodeState:
    """What changes from token to token: cache, mask, positions."""

    def __init__(self, cache: Any, mask: Tensor, positions: Tensor, width: int) -> None:
        self.cache = cache
        self.mask = mask
        self.positions = positions
        self.width = width

    def select(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]
        self.positions = self.positions[rows]

    def step(self, model: nn.Module, batcher: Batcher, tokens: Tensor) -> Tensor:
        """Logits of the next token of each row, shape (rows, vocabulary), after one token each."""
        self.width += 1
        out = model(
            input_ids=tokens[:, None],
            attention_mask=self.mask[:, : self.width],
            position_ids=batcher.decode_positions(self.positions),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.positions = self.positions + 1
        return out.logits[:, -1]


def stop_ids(model: nn.Module, encoder: Encoder) -> frozenset[int]:
    """Tokens that end a completion: what the model declares, and the tokenizer's end token."""
    config: Any = getattr(model, "generation_config", None)
    declared = getattr(config, "eos_token_id", None)
    ids = [declared] if isinstance(declared, int) else list(declared or ())
    if encoder.tokenizer.eos_token_id is not None:
        ids.append(encoder.tokenizer.eos_token_id)
    if not ids:
        raise ValueError(
            "the model and its tokenizer name no end token; set eos_token_id in generation_config"
        )
    return frozenset(ids)


def banned_tokens(model: nn.Module, encoder: Encoder) -> Tensor:
    """True for tokens that a policy must never write: visual tokens, padding, rows without a token.

    A sampled visual token has no features behind it, and the next forward pass over the completion
    would fail or, worse, shift the features of the clip.
    """
    config: Any = model.config
    num_rows = _vocab_rows(model)
    banned = torch.zeros(num_rows, dtype=torch.bool)
    banned[len(encoder.tokenizer) :] = True
    special = {int(i): t for t, i in encoder.tokenizer.get_added_vocab().items()}
    ids = {i for i, token in special.items() if _MEDIA_TOKEN.search(token)}
    for owner in (config, encoder.processor):
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                ids.add(value)
    ids.add(encoder.pad_id)
    banned[[i for i in ids if i < num_rows]] = True
    return banned


def _one_hot(model: nn.Module, ids: frozenset[int]) -> Tensor:
    out = torch.zeros(_vocab_rows(model), dtype=torch.bool)
    out[[i for i in ids if i < len(out)]] = True
    return out


def _vocab_rows(model: nn.Module) -> int:
    # From the config: a sharded embedding (ZeRO-3) shows no rows.
    config: Any = model.config
    return int(config.get_text_config().vocab_size)
