"""The teacher's prompts: versioned Markdown templates, and the question as data inside a fence.

Templates are filled in one pass, and filled-in text is never looked at again, so braces, percent signs and
anything else in a question, an option or a reply arrive as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from ffr.config import FixConfig
from ffr.fix.boxes import box_example, box_unit
from ffr.fix.patch import MAX_GUIDANCE_CHARS
from ffr.fix.profiles import Profile
from ffr.fix.teacher import TeacherRequest, short_hash
from ffr.observe.prompt import render_patch, render_prompt
from ffr.types import EvidencePatch, Observation, Sample

PROMPT_DIR: Final = Path(__file__).parent / "prompts"
MAX_QUESTION_CHARS: Final = 4_000
MAX_REPLY_CHARS: Final = 6_000
MAX_OPTION_CHARS: Final = 500
_TOKEN: Final = re.compile(r"\{\{(\w+)\}\}")


@cache
def template(name: str) -> str:
    """Text of one template; raises FileNotFoundError for an unknown name."""
    return (PROMPT_DIR / f"{name}.md").read_text(encoding="utf-8").strip()


@cache
def prompt_version(folder: str = "") -> str:
    """Hash of a folder's templates: the teacher's are part of its name, hence of every journal key.

    Args:
        folder: Empty for the teacher's, `blind` for those of the blind test.
    """
    names = sorted(f"{folder}/{path.stem}".lstrip("/") for path in (PROMPT_DIR / folder).glob("*.md"))
    return short_hash(*(part for name in names for part in (name, template(name))))


def fill(text: str, values: Mapping[str, object]) -> str:
    """Replace every `{{name}}` of a template, in one pass.

    Raises:
        KeyError: The template names a value that is not given.
    """
    return _TOKEN.sub(lambda match: str(values[match.group(1)]), text)


def system_prompt(
    fix: FixConfig, profile: Profile, *, num_frames: int, has_reference: bool, tools: str
) -> str:
    """Who the teacher is, what it may do and what it must not say.

    Args:
        fix: `prompt_config` selects the leak-prevention parts (paper table 5); `teacher.max_tool_calls`.
        profile: Box convention.
        num_frames: Frames of the student's observation.
        has_reference: Whether the reference answer is in the data.
        tools: `native`, `prompted` or `none`.
    """
    names = ["role", "reference" if has_reference else "no_reference"]
    names.append({"native": "tools_native", "prompted": "tools_prompted", "none": "no_tools"}[tools])
    if fix.prompt_config in ("format", "both"):
        names.append("format")
    if fix.prompt_config in ("negative", "both"):
        names.append("negative")
    values = _values(profile, num_frames) | {"max_tool_calls": fix.teacher.max_tool_calls}
    return "\n\n".join(fill(template(name), values) for name in names)


def data_block(request: TeacherRequest) -> str:
    """Question, options, the failed reply and, if allowed, the reference answer: one fenced JSON object.

    JSON escapes line breaks, so nothing inside can look like the fence, which is a hash of the contents.
    """
    sample = request.sample
    payload: dict[str, object] = {
        "question": shorten(sample.question, MAX_QUESTION_CHARS),
        "options": [f"{o.label}. {shorten(o.text, MAX_OPTION_CHARS)}" for o in sample.options],
        "student_reply": shorten(request.rollout.text, MAX_REPLY_CHARS),
    }
    if request.reference_answer is not None:
        payload["reference_answer"] = shorten(request.reference_answer, MAX_OPTION_CHARS)
    text = json.dumps(payload, ensure_ascii=False, indent=1)
    # Lone surrogates cannot be sent; json would keep them.
    text = text.encode("utf-8", "replace").decode("utf-8")
    block = fill(template("data"), {"fence": f"DATA-{short_hash(text)}", "payload": text})
    if request.reask:
        block += "\n\n" + fill(template("reask"), {"layers": request.reask})
    return block


def blind_prompts(sample: Sample, patch: EvidencePatch, *, visual: str = "pointers") -> tuple[str, str]:
    """The question for a model that sees no video: alone, and with the patch as the student reads it.

    Args:
        sample: The question; its options in the order in which they are to be shown.
        patch: What is tested.
        visual: `fix.visual`: what of the patch the student gets.
    """
    question = render_prompt(sample, (), style="brief", state_frames=False)
    view = Observation(sample.uid, (), question, view_id="")
    alone = fill(template("blind/alone"), {"question": question})
    hint = render_patch(patch, view, visual=visual)
    patched = fill(template("blind/patched"), {"alone": alone, "patch": hint})
    # Lone surrogates cannot be sent.
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in (alone, patched)]
    return clean[0], clean[1]


def patch_prompt(profile: Profile, num_frames: int) -> str:
    """The last request: the JSON contract."""
    return fill(template("patch"), _values(profile, num_frames))


def mend_prompt(problem: str) -> str:
    """The one re-ask after an invalid patch, with the validation error."""
    return fill(template("mend"), {"problem": problem[:600]})


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters: the middle is cut out, since an answer stands at the end."""
    if len(text) <= limit:
        return text
    mark = f" [... {len(text) - limit} characters cut ...] "
    head = max(0, (limit - len(mark)) // 2)
    return text[:head] + mark + text[len(text) - (limit - len(mark) - head) :]


def _values(profile: Profile, num_frames: int) -> dict[str, object]:
    return {
        "num_frames": num_frames,
        "box_unit": box_unit(profile.boxes),
        "box_example": box_example(profile.boxes),
        "range_example": f"[1, {min(2, num_frames)}]",
        "max_guidance_chars": MAX_GUIDANCE_CHARS,
    }
