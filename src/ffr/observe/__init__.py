"""What the student sees: exact frames with times, the prompt, and the patch after it. No torch."""

from ffr.observe.clip import (
    decode_clip,
    decode_clips,
    decode_image,
    load_clip,
    load_clips,
    read_frames_at,
    read_image,
)
from ffr.observe.errors import MEDIA_STATUSES, MediaError
from ffr.observe.frames import UNIFORM, FrameRule, fit_size, make_frame, pixel_hash, resize, uniform_indices
from ffr.observe.observation import check_clips, observe
from ffr.observe.prompt import render_patch, render_prompt, state_line, template_version, user_text
from ffr.observe.transforms import (
    apply_patch,
    crop_frame,
    drop_video,
    mask_frames,
    reverse_frames,
    shuffle_frames,
    view_id,
)
from ffr.observe.video import ClipIndex, DecodeLimits, decode_frames, index_video

__all__ = [
    "MEDIA_STATUSES",
    "UNIFORM",
    "ClipIndex",
    "DecodeLimits",
    "FrameRule",
    "MediaError",
    "apply_patch",
    "check_clips",
    "crop_frame",
    "decode_clip",
    "decode_clips",
    "decode_frames",
    "decode_image",
    "drop_video",
    "fit_size",
    "index_video",
    "load_clip",
    "load_clips",
    "make_frame",
    "mask_frames",
    "observe",
    "pixel_hash",
    "read_frames_at",
    "read_image",
    "render_patch",
    "render_prompt",
    "resize",
    "reverse_frames",
    "shuffle_frames",
    "state_line",
    "template_version",
    "uniform_indices",
    "user_text",
    "view_id",
]
