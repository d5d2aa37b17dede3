"""What to change when a run does not fit: single settings first, then all of them together. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ffr.config import Config
from ffr.engines.memory import GIB, Estimate, Strategy, estimate, load_of
from ffr.engines.shapes import Shape

WORLD_SIZES = (2, 4, 8, 16, 32, 64)
MIN_COMPLETION = 256
MIN_FRAME_PX = 16 * 32 * 32


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration on so many processes.

    Example:
        >>> Plan(Config(), strategy="zero3", world_size=8).cfg.find.group_size
        8
    """

    cfg: Config
    strategy: Strategy = "ddp"
    world_size: int = 1
    prompt_tokens: int | None = None
    """Of an encoded row; from the settings if None."""
    patches: int | None = None

    def estimate(self, shape: Shape) -> Estimate:
        """Memory of each process."""
        load = load_of(self.cfg, shape, prompt_tokens=self.prompt_tokens, patches=self.patches)
        return estimate(self.cfg, shape, load, strategy=self.strategy, world_size=self.world_size)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to change.

    Example:
        >>> Change("model.freeze_vision = true", {"model": {"freeze_vision": True}}).words
        'model.freeze_vision = true'
    """

    words: str
    settings: Mapping[str, Any]
    strategy: Strategy | None = None
    world_size: int | None = None

    def applied(self, plan: Plan) -> Plan:
        """The plan with the change."""
        tree = plan.cfg.model_dump()
        _merge(tree, self.settings)
        # A smaller frame makes another row: what was measured does not hold for it.
        same_row = "observe" not in self.settings
        return Plan(
            Config.model_validate(tree),
            self.strategy or plan.strategy,
            self.world_size or plan.world_size,
            plan.prompt_tokens if same_row else None,
            plan.patches if same_row else None,
        )


def changes(plan: Plan) -> Iterator[Change]:
    """What could be changed, the least costly for the result first."""
    cfg = plan.cfg
    if not cfg.model.gradient_checkpointing:
        yield _setting("model", "gradient_checkpointing", True)
    if plan.world_size > 1 and plan.strategy == "ddp" and not cfg.model.lora.rank:
        words = "shard over the processes: --config_file configs/accelerate/zero3.yaml (--strategy zero3)"
        yield Change(words, {}, strategy="zero3")
    rows = cfg.rows_per_pass
    step = cfg.train.questions_per_step * cfg.find.group_size
    smaller = [size for size in range(rows // 2, 0, -1) if step % size == 0]
    for size in sorted({smaller[0], smaller[-1]}, reverse=True) if smaller else ():
        yield _setting("train", "micro_batch_size", size)
    if not cfg.model.freeze_vision:
        yield _setting("model", "freeze_vision", True)
    if not cfg.model.lora.rank:
        yield Change("model.lora.rank = 64", {"model": {"lora": {"rank": 64}}})
    if plan.world_size == 1 and not cfg.model.lora.rank:
        yield Change("8 GPUs with configs/accelerate/zero3.yaml", {}, strategy="zero3", world_size=8)
    if (half := cfg.find.max_completion_tokens // 2) >= MIN_COMPLETION:
        yield _setting("find", "max_completion_tokens", half)
    if (half := cfg.observe.max_frame_px // 2) >= max(MIN_FRAME_PX, cfg.observe.min_frame_px):
        yield _setting("observe", "max_frame_px", half)


def advice(plan: Plan, shape: Shape, limit_bytes: float) -> list[str]:
    """How to make a run fit that does not.

    Args:
        plan: What was asked for.
        shape: Of the student.
        limit_bytes: Memory of one GPU.

    Returns:
        Each single change that is enough, with the memory it leads to; if none is, the shortest beginning
        of all changes together that is; if that is none either, the number of GPUs. Empty if it fits.
    """
    if plan.estimate(shape).needed <= limit_bytes:
        return []
    enough: list[str] = []
    for change in changes(plan):
        needed = change.applied(plan).estimate(shape).needed
        if needed <= limit_bytes:
            enough.append(f"{change.words} (then {needed / GIB:.1f} GiB)")
    return enough or [_together(plan, shape, limit_bytes)]


def _together(plan: Plan, shape: Shape, limit_bytes: float) -> str:
    made: dict[str, str] = {}  # by setting: a second value of one replaces the first
    current = plan
    for change in changes(plan):
        if change.world_size:
            continue
        candidate = change.applied(current)
        if candidate.estimate(shape).needed < current.estimate(shape).needed:
            current = candidate
            made[change.words.partition(" = ")[0]] = change.words
        if (needed := current.estimate(shape).needed) <= limit_bytes:
            return f"together: {', '.join(made.values())} (then {needed / GIB:.1f} GiB)"
    for size in WORLD_SIZES:
        if size > plan.world_size:
            sharded = Plan(current.cfg, "zero3", size, current.prompt_tokens, current.patches)
            if (needed := sharded.estimate(shape).needed) <= limit_bytes:
                words = [*made.values(), f"{size} GPUs with configs/accelerate/zero3.yaml"]
                return f"together: {', '.join(words)} (then {needed / GIB:.1f} GiB)"
    return (
        f"no setting is enough: {current.estimate(shape).needed / GIB:.1f} GiB are left with all of them; "
        "choose a smaller student, or a sampler on other GPUs (train.rollouts = 'vllm_server')"
    )


def _setting(section: str, name: str, value: Any) -> Change:
    text = str(value).lower() if isinstance(value, bool) else value
    return Change(f"{section}.{name} = {text}", {section: {name: value}})


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _merge(tree[key], value)
        else:
            tree[key] = value
