"""An observation as a model sees it: token ids, visual features, and nothing truncated.

Two renderings of the same prompt leave this file. `gen_ids` is what a rollout server gets (the
tokenizer alone: one visual token per clip or image); `train_ids` is what the model is fed (the
processor's expansion: one visual token per merged patch). Their parity with the features is checked
for every prompt, because a mismatch means that the model is trained on the wrong pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffr.observe.prompt import user_text
from ffr.types import Frame, Observation

_GRIDS = {"video": "video_grid_thw", "image": "image_grid_thw"}
_TEXT_KEYS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "video_metadata"}
)
_CACHE_BYTES = 512 * 2**20


class EncodeError(ValueError):
    """A prompt that cannot be encoded; the message names the sample and the remedy."""


@dataclass(frozen=True, eq=False)
class Medium:
    """One clip or image of a prompt, shared (the same object) by all prompts that show it.

    Example:
        >>> Medium(kind="video", features={}, expansion=(6, 6), num_features=2).num_features
        2
    """

    kind: str
    """`video` or `image`."""
    features: Mapping[str, Tensor]
    """Processor outputs for this medium: pixels, grid, seconds per grid step."""
    expansion: tuple[int, ...]
    """Token ids that replace the medium's single visual token in `train_ids`."""
    num_features: int
    """Merged patches, which is the number of visual tokens in `expansion`."""


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """One observation ready for the model.

    Example:
        >>> EncodedPrompt(view_id="ab", sample_uid="micro/7", train_ids=(1, 2), gen_ids=(1, 2)).num_tokens
        2
    """

    view_id: str
    sample_uid: str
    train_ids: tuple[int, ...]
    """Prompt tokens with expanded media, generation prompt included."""
    gen_ids: tuple[int, ...]
    """Prompt tokens with one visual token per medium."""
    mm_types: tuple[int, ...] = ()
    """0 text, 1 image, 2 video, for each of `train_ids`."""
    media: tuple[Medium, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    """Model-dependent values computed once per prompt (rotary positions)."""

    @property
    def num_tokens(self) -> int:
        """Length of `train_ids`."""
        return len(self.train_ids)

    @property
    def features(self) -> dict[str, Tensor]:
        """Feature tensors of all media of this prompt, concatenated in prompt order."""
        names = dict.fromkeys(name for medium in self.media for name in medium.features)
        return {
            name: torch.cat([medium.features[name] for medium in self.media if name in medium.features])
            for name in names
        }


def is_image(obs: Observation) -> bool:
    """True if the observation is a still image: a single frame is never shown as a clip."""
    return len(obs.frames) == 1


class Encoder:
    """Turns observations into `EncodedPrompt`s with one Hugging Face VLM processor.

    Args:
        processor: any processor with a chat template, a video processor and an image processor.
        max_prompt_tokens: longer prompts are refused, never truncated; None for no limit.
        cache_bytes: how much feature memory is kept for clips that are shown again.

    Example:
        >>> encoder = Encoder(AutoProcessor.from_pretrained(path))  # doctest: +SKIP
    """

    def __init__(
        self, processor: Any, *, max_prompt_tokens: int | None = None, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self._cache_bytes = cache_bytes
        self._media: OrderedDict[tuple[Any, ...], Medium] = OrderedDict()
        self._prompts: OrderedDict[tuple[str, float], EncodedPrompt] = OrderedDict()
        self._special = tuple(t for t in self.tokenizer.get_added_vocab() if t.startswith("<|"))
        self._token = {"video": processor.video_token, "image": processor.image_token}
        self._token_id = {
            kind: self.tokenizer.convert_tokens_to_ids(token) for kind, token in self._token.items()
        }

    @property
    def pad_id(self) -> int:
        """Id that fills the batch where nothing is."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def encode(self, obs: Observation) -> EncodedPrompt:
        """Returns the prompt of one observation; equal views return the same object.

        Raises:
            EncodeError: pixels are missing, a frame's size does not fit the model's patches, the
                visual tokens and features differ in number, or the prompt is too long.
        """
        key = (obs.view_id, obs.duration_s)
        known = self._prompts.get(key)
        if known is not None:
            self._prompts.move_to_end(key)
            return known
        media = self._media_of(obs)
        text = self.processor.apply_chat_template(
            self._messages(obs), add_generation_prompt=True, tokenize=False, **self._template_switches(obs)
        )
        gen_ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        prompt = self._expand(obs, gen_ids, media)
        self._check(obs, prompt)
        self._prompts[key] = prompt
        while len(self._prompts) > 256:
            self._prompts.popitem(last=False)
        return prompt

    def conversation(self, obs: Observation) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The chat messages of an observation, a placeholder per medium, and the template's switches."""
        return self._messages(obs), self._template_switches(obs)

    def forget(self) -> None:
        """Drops what is kept for views that are shown again: an evaluation shows each one once."""
        self._media.clear()
        self._prompts.clear()

    def decode(self, token_ids: Sequence[int], stop_ids: frozenset[int]) -> str:
        """Returns the text of a completion without the end and padding tokens that close it."""
        end = len(token_ids)
        while end and (token_ids[end - 1] in stop_ids or token_ids[end - 1] == self.pad_id):
            end -= 1
        return self.tokenizer.decode(
            list(token_ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _template_switches(self, obs: Observation) -> dict[str, Any]:
        return {}

    def _messages(self, obs: Observation) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        if obs.frames:
            content.append({"type": "image" if is_image(obs) else "video"})
        content.append({"type": "text", "text": self._plain(user_text(obs))})
        content += [{"type": "image"} for _ in obs.extra_frames]
        system = [{"role": "system", "content": [{"type": "text", "text": self._plain(obs.system)}]}]
        return (system if obs.system else []) + [{"role": "user", "content": content}]

    def _plain(self, text: str | None) -> str:
        # A question that spells a control token must stay text: it could end the turn or add a clip.
        out = text or ""
        if "<|" in out:
            for token in self._special:
                out = out.replace(token, token[0] + " " + token[1:])
        return out

    def _media_of(self, obs: Observation) -> tuple[Medium, ...]:
        media: list[Medium] = []
        if is_image(obs):
            media.append(self._medium(obs, "image", obs.frames))
        elif obs.frames:
            media.append(self._medium(obs, "video", obs.frames))
        media += [self._medium(obs, "image", (frame,)) for frame in obs.extra_frames]
        return tuple(media)

    def _medium(self, obs: Observation, kind: str, frames: tuple[Frame, ...]) -> Medium:
        times = tuple(frame.timestamp_s for frame in frames) if kind == "video" else ()
        key = (kind, tuple(frame.sha256 for frame in frames), times, obs.duration_s if times else 0.0)
        medium = self._media.get(key)
        if medium is None:
            medium = self._process(obs, kind, _pixels(obs, frames), times)
            self._media[key] = medium
            held = sum(_nbytes(entry) for entry in self._media.values())
            while held > self._cache_bytes and len(self._media) > 1:
                held -= _nbytes(self._media.popitem(last=False)[1])
        else:
            self._media.move_to_end(key)
        return medium

    def _process(self, obs: Observation, kind: str, pixels: Tensor, times: tuple[float, ...]) -> Medium:
        # The lone visual token as the text: its expansion is then known for every prompt that shows
        # the medium, and the pixels are processed once however many patches follow.
        merge = self._merge(kind, obs, pixels)
        if kind == "video":
            kwargs = {
                "do_resize": False,
                "do_sample_frames": False,
                "video_metadata": [_metadata(obs, times)],
            }
            if hasattr(self.processor.video_processor, "cap_pixels_per_frame"):
                kwargs["cap_pixels_per_frame"] = False
            out = self.processor(text=[self._token[kind]], videos=[pixels], videos_kwargs=kwargs)
        else:
            out = self.processor(
                text=[self._token[kind]], images=[pixels[0]], images_kwargs={"do_resize": False}
            )
        features = {k: _tensor(v) for k, v in out.items() if k not in _TEXT_KEYS}
        expansion = tuple(int(i) for i in out["input_ids"][0])
        num = int(features[_GRIDS[kind]].prod(-1).sum()) // merge**2
        return Medium(kind=kind, features=features, expansion=expansion, num_features=num)

    def _merge(self, kind: str, obs: Observation, pixels: Tensor) -> int:
        part = self.processor.video_processor if kind == "video" else self.processor.image_processor
        factor = part.patch_size * part.merge_size
        height, width = pixels.shape[-2:]
        if height % factor or width % factor:
            raise EncodeError(
                f"sample {obs.sample_uid!r}: frames of {width}x{height} px do not fit the student's patches; "
                f"set observe.size_factor_px = {factor}"
            )
        return part.merge_size

    def _expand(self, obs: Observation, gen_ids: tuple[int, ...], media: tuple[Medium, ...]) -> EncodedPrompt:
        waiting = {kind: [m for m in media if m.kind == kind] for kind in _GRIDS}
        kinds = {self._token_id[kind]: kind for kind in _GRIDS if waiting[kind]}
        train: list[int] = []
        shown: list[Medium] = []
        for token in gen_ids:
            kind = kinds.get(token)
            if kind is None:
                train.append(token)
            elif waiting[kind]:
                shown.append(waiting[kind].pop(0))
                train += shown[-1].expansion
            else:
                raise EncodeError(f"sample {obs.sample_uid!r}: the chat template shows more media than given")
        if left := sum(map(len, waiting.values())):
            raise EncodeError(
                f"sample {obs.sample_uid!r}: the chat template left {left} of {len(media)} media out; "
                "this processor's template cannot show them"
            )
        types = {self._token_id["image"]: 1, self._token_id["video"]: 2}
        mm_types = tuple(types.get(token, 0) for token in train)
        return EncodedPrompt(obs.view_id, obs.sample_uid, tuple(train), gen_ids, mm_types, tuple(shown))

    def _check(self, obs: Observation, prompt: EncodedPrompt) -> None:
        for kind, value in (("image", 1), ("video", 2)):
            tokens = prompt.mm_types.count(value)
            features = sum(m.num_features for m in prompt.media if m.kind == kind)
            if tokens != features:
                raise EncodeError(
                    f"sample {obs.sample_uid!r}: {tokens} {kind} tokens for {features} {kind} features; "
                    "the processor and the chat template disagree"
                )
        if self.max_prompt_tokens is not None and prompt.num_tokens > self.max_prompt_tokens:
            raise EncodeError(
                f"sample {obs.sample_uid!r}: the prompt has {prompt.num_tokens} tokens, "
                f"find.max_prompt_tokens is {self.max_prompt_tokens}; show fewer or smaller frames "
                "(observe.num_frames, observe.max_frame_px) or raise the limit"
            )


def _pixels(obs: Observation, frames: tuple[Frame, ...]) -> Tensor:
    arrays = [frame.pixels for frame in frames if frame.pixels is not None]
    if len(arrays) != len(frames):
        raise EncodeError(
            f"sample {obs.sample_uid!r}: frames without pixels (read back from a trace?); observe again"
        )
    if len({array.shape for array in arrays}) != 1:
        raise EncodeError(f"sample {obs.sample_uid!r}: the frames of one clip differ in size")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def clip_times(duration_s: float, times: Sequence[float]) -> dict[str, Any]:
    """When a clip's frames are shown, as the fields of transformers' `VideoMetadata`.

    Processors compute a frame's time as index / fps; a clock of 1,000 ticks a second makes the index the
    millisecond, so that clips of variable rate keep their exact times.
    """
    span = times[-1] - times[0]
    duration = duration_s if duration_s > 0 else span * len(times) / max(1, len(times) - 1)
    total = max(1, round(duration * 1000))
    indices = [round(t * 1000) for t in times]
    return {"total_num_frames": total, "fps": 1000.0, "duration": total / 1000, "frames_indices": indices}


def _metadata(obs: Observation, times: tuple[float, ...]) -> Any:
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(**clip_times(obs.duration_s, times))


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))


def _nbytes(medium: Medium) -> int:
    return sum(t.nbytes for t in medium.features.values())
