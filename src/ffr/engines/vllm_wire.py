"""One observation as vLLM reads it, and one reply checked against what we asked.

The prompt travels un-expanded, one placeholder per medium: as a conversation to a server, as token ids to
an engine in this process. vLLM expands it itself, so a prompt that is expanded twice cannot happen.

Frames travel as they were decoded. A clip is one `video_url` of type video/jpeg, which vLLM takes apart at
its commas and hands to PIL part by part; PIL goes by the bytes and not by the name, so the parts are PNG
and nothing is lost. `media_io_kwargs` says when each frame is shown (the millisecond clock of `Encoder`),
and `do_resize` is off: our frames already have sizes that fit the patches. Servers take both from requests
with `--trust-request-mm-kwargs` only.

What comes back is compared id by id with the prompt that the loss will see. That settles text, layout and
the number of visual tokens; frame times reach Qwen2.5-VL's positions alone and not its ids, hence the
lowest version that is accepted (`MIN_VERSION`).
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ffr.config import FindConfig
from ffr.engines.encode import EncodedPrompt, Encoder, clip_times, is_image
from ffr.find import SamplerError
from ffr.types import Frame, Observation

MIN_VERSION: Final = (0, 22)
"""First vLLM whose `media_io_kwargs` carry frame times, and the first that TRL 1.16 supports."""
BAN: Final = -100.0
"""Added to a logit: the lowest that the API takes, a probability of e^-100."""


class ParityError(SamplerError):
    """vLLM read another prompt than the one that would be trained on."""


@dataclass(frozen=True, eq=False)
class Request:
    """One view, ready to be sent any number of times.

    Example:
        >>> Request(prompt=prompt, head=b'{"n":1').body(seed=7)  # doctest: +SKIP
        b'{"n":1,"seed":7}'
    """

    prompt: EncodedPrompt
    """What the loss will see; the reply is held against it."""
    head: bytes
    """The JSON object without its closing brace: its pictures are encoded once."""

    def body(self, seed: int) -> bytes:
        """The request's bytes for one rollout."""
        return self.head + b',"seed":%d}' % seed


@dataclass(frozen=True)
class Reply:
    """One sampled completion.

    Example:
        >>> Reply(token_ids=(5, 9), logprobs=(-0.1, -0.2), finish="stop").finish
        'stop'
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str


def build_request(
    encoder: Encoder,
    obs: Observation,
    *,
    model: str,
    find: FindConfig,
    banned: Sequence[int],
    stop_ids: Sequence[int],
) -> Request:
    """The chat request of one view.

    Args:
        encoder: of the run; gives the prompt that the reply is held against.
        obs: any view, patched or not.
        model: name under which the server lists the student.
        find: temperature, top-p, completion limit.
        banned: tokens that must not be sampled.
        stop_ids: tokens that end a completion.

    Raises:
        EncodeError: the observation cannot be shown to this student.
    """
    prompt = encoder.encode(obs)
    messages, switches = encoder.conversation(obs)
    body = {
        "model": model,
        "messages": _with_media(messages, obs),
        "chat_template_kwargs": switches,
        "add_generation_prompt": True,
        "add_special_tokens": False,
        **sampling_fields(find, stop_ids),
        "n": 1,
        "max_completion_tokens": find.max_completion_tokens,
        "logit_bias": {str(token): BAN for token in banned},
        "logprobs": True,
        "top_logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **_media_fields(obs),
    }
    return Request(prompt, json.dumps(body, separators=(",", ":")).encode()[:-1])


def sampling_fields(find: FindConfig, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Sampling settings that a server and an engine both take.

    All are given: a model's `generation_config.json` would fill in what is not (Qwen2.5-VL's has top-k 1 and
    a repetition penalty).
    """
    return {
        "temperature": find.temperature,
        "top_p": find.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "min_tokens": 0,
        "ignore_eos": False,
        "stop_token_ids": list(stop_ids),
        "skip_special_tokens": False,
    }


def multi_modal_data(obs: Observation) -> dict[str, Any]:
    """The media of one view for an engine in this process: arrays and pictures, frame times beside them."""
    images = [*(obs.frames if is_image(obs) else ()), *obs.extra_frames]
    data: dict[str, Any] = {"image": [Image.fromarray(_pixels(f)) for f in images]} if images else {}
    if len(obs.frames) > 1:
        metadata = {**_times(obs), "video_backend": "jpeg_sequence", "do_sample_frames": False}
        data["video"] = [(np.stack([_pixels(f) for f in obs.frames]), metadata)]
    return data


def processor_switches(obs: Observation) -> dict[str, Any]:
    """What vLLM's copy of the processor must leave alone; empty for a prompt without media."""
    if not obs.frames and not obs.extra_frames:
        return {}
    return {"do_resize": False, **({"do_sample_frames": False} if len(obs.frames) > 1 else {})}


def read_reply(
    content: bytes,
    prompt: EncodedPrompt,
    encoder: Encoder,
    *,
    banned: frozenset[int],
    stop_ids: frozenset[int],
) -> Reply:
    """Checks a chat completion of vLLM level by level.

    Raises:
        ParityError: the server read another prompt.
        SamplerError: the reply is no completion, lacks ids or log-probabilities, or holds a banned token.
    """
    who = f"sample {prompt.sample_uid!r}"
    try:
        data: Any = json.loads(content)
    except ValueError as error:
        raise SamplerError(f"{who}: the vLLM server's reply is not JSON ({error})") from error
    choices: Any = data.get("choices") if isinstance(data, dict) else None
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    shown = data.get("prompt_token_ids") if isinstance(data, dict) else None
    tokens = choice.get("token_ids") if isinstance(choice, dict) else None
    if not _are_ids(shown) or not _are_ids(tokens) or not tokens:
        raise SamplerError(
            f"{who}: the reply has no token ids (prompt_token_ids, choices[0].token_ids); rollouts need vLLM "
            f"{version_words(MIN_VERSION)} or later, not another OpenAI-compatible server"
        )
    check_prompt(prompt, cast("list[int]", shown), encoder)
    logprobs = _logprobs(choice.get("logprobs"), cast("list[int]", tokens), who)
    return checked(who, tokens, logprobs, choice.get("finish_reason"), banned=banned, stop_ids=stop_ids)


def checked(
    who: str,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    finish: Any,
    *,
    banned: frozenset[int],
    stop_ids: frozenset[int],
) -> Reply:
    """A completion whose tokens, log-probabilities and end go together.

    Raises:
        SamplerError: they do not.
    """
    if bad := sorted(banned & set(tokens)):
        raise SamplerError(
            f"{who}: vLLM sampled token {bad[0]}, which logit_bias forbids; it has no features"
        )
    if len(tokens) != len(logprobs) or not all(math.isfinite(value) for value in logprobs):
        raise SamplerError(f"{who}: {len(logprobs)} usable log-probabilities for {len(tokens)} tokens")
    ended = tokens[-1] in stop_ids
    if finish not in ("stop", "length") or (finish == "stop" and not ended):
        raise SamplerError(
            f"{who}: vLLM ended a completion with finish_reason {finish!r} and token {tokens[-1]}; "
            f"rollouts end with {sorted(stop_ids)} or at the limit: serve without stop strings and parsers"
        )
    return Reply(tuple(tokens), tuple(logprobs), "stop" if ended else "length")


def check_prompt(prompt: EncodedPrompt, shown: Sequence[int], encoder: Encoder) -> None:
    """Compares the ids that vLLM read with those that the loss will see.

    Raises:
        ParityError: naming the sample, the first position that differs, and what to look at.
    """
    ours = prompt.train_ids
    if tuple(shown) == ours:
        return
    both = enumerate(zip(ours, shown, strict=False))
    at = next((k for k, (a, b) in both if a != b), min(len(ours), len(shown)))
    raise ParityError(
        f"sample {prompt.sample_uid!r}: vLLM read another prompt than the one that is trained on: position "
        f"{at} is {_token(shown, at, encoder)} there and {_token(ours, at, encoder)} here ({len(shown)} and "
        f"{len(ours)} tokens). Serve model.path itself, with its own chat template and processor settings, "
        f"vLLM {version_words(MIN_VERSION)} or later, without --mm-processor-kwargs and --media-io-kwargs"
    )


def version_words(version: Sequence[int]) -> str:
    """`0.22`, as a version is written."""
    return ".".join(map(str, version))


def _token(ids: Sequence[int], at: int, encoder: Encoder) -> str:
    if at >= len(ids):
        return "the end"
    return f"{ids[at]} {encoder.tokenizer.convert_ids_to_tokens(ids[at])!r}"


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in cast("list[Any]", value))


def _logprobs(value: Any, tokens: Sequence[int], who: str) -> list[float]:
    rows: Any = value.get("content") if isinstance(value, dict) else None
    if not isinstance(rows, list) or len(cast("list[Any]", rows)) != len(tokens):
        raise SamplerError(f"{who}: the reply has no log-probability for each of its {len(tokens)} tokens")
    out: list[float] = []
    for token, row in zip(tokens, cast("list[Any]", rows), strict=True):
        name, number = (row.get("token"), row.get("logprob")) if isinstance(row, dict) else (None, None)
        if name != f"token_id:{token}" or not isinstance(number, (int, float)):
            raise SamplerError(
                f"{who}: the log-probability of token {token} is given for {name!r}: {number!r}"
            )
        out.append(float(number))
    return out


def _with_media(messages: list[dict[str, Any]], obs: Observation) -> list[dict[str, Any]]:
    """The encoder's messages, with frames where it writes placeholders."""
    images = [*(obs.frames if is_image(obs) else ()), *obs.extra_frames]
    out: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "video":
                url = "data:video/jpeg;base64," + ",".join(_png(frame) for frame in obs.frames)
                parts.append({"type": "video_url", "video_url": {"url": url}})
            elif part["type"] == "image":
                url = "data:image/png;base64," + _png(images.pop(0))
                parts.append({"type": "image_url", "image_url": {"url": url}})
            else:
                parts.append(part)
        out.append({**message, "content": parts})
    return out


def _media_fields(obs: Observation) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if switches := processor_switches(obs):
        fields["mm_processor_kwargs"] = switches
    if len(obs.frames) > 1:
        # num_frames -1: vLLM would keep the first 32 frames of a longer clip.
        fields["media_io_kwargs"] = {"video": {"num_frames": -1, "do_sample_frames": False, **_times(obs)}}
    return fields


def _times(obs: Observation) -> dict[str, Any]:
    return clip_times(obs.duration_s, [frame.timestamp_s for frame in obs.frames])


def _png(frame: Frame) -> str:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(frame)).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _pixels(frame: Frame) -> npt.NDArray[np.uint8]:
    if frame.pixels is None:
        raise SamplerError(f"frame {frame.number} has no pixels (read back from a trace?); observe again")
    return frame.pixels
