"""From settings and a model to a run on disk: questions, directory, protocol; what the command calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ffr.data.microworld import write_microworld
from ffr.eval.base import EvalDataError, Item, Loaded
from ffr.eval.benchmarks import benchmark_root, get_benchmark
from ffr.eval.clips import frame_rule
from ffr.eval.models.base import ModelIdentity
from ffr.eval.protocol import base_versions, card_fields, make_cards
from ffr.eval.rows import BenchmarkInfo, EvalRow, RunInfo
from ffr.eval.runner import Respond, Runner, item_row
from ffr.eval.settings import EvalConfig, config_hash, output_settings, tasks_of
from ffr.eval.store import RunStore
from ffr.observe import FrameRule

MICROWORLD = "microworld"
MICROWORLD_QUESTIONS = 600


@dataclass(frozen=True)
class Questions:
    """All questions of a run.

    Example:
        >>> Questions(items=(), info={}).num_missing
        0
    """

    items: tuple[Item, ...]
    info: Mapping[str, BenchmarkInfo]
    """By benchmark."""

    @property
    def num_missing(self) -> int:
        """Questions without media on this machine."""
        return sum(info.num_missing for info in self.info.values())


def write_test_world(
    root: Path, *, num: int = MICROWORLD_QUESTIONS, on_clip: Callable[[], None] | None = None
) -> Path | None:
    """Writes the first questions of MicroWorld's test split under `root/microworld`.

    A test split that somebody else wrote is left as it is; one of ours is made longer where it is too short.

    Args:
        root: Of the benchmarks.
        num: Questions, one clip each.
        on_clip: Called after each clip.

    Returns:
        The folder that was written, or None if there was nothing to do.
    """
    folder = benchmark_root(root, MICROWORLD)
    stamp = folder / "written_by_ffr_eval.txt"
    if (folder / "test.json").is_file() and not (stamp.is_file() and int(stamp.read_text()) < num):
        return None
    folder = root / MICROWORLD
    write_microworld(folder, num_train=0, num_test=num, on_clip=on_clip)
    (folder / stamp.name).write_text(str(num))
    return folder


def load_questions(cfg: EvalConfig) -> Questions:
    """Reads the benchmarks' files.

    Raises:
        EvalDataError: A benchmark or task is unknown, or a file is missing or malformed.
    """
    items: list[Item] = []
    info: dict[str, BenchmarkInfo] = {}
    _check_tasks(cfg)
    for name in cfg.benchmarks:
        benchmark = get_benchmark(name)
        tasks = tasks_of(name, benchmark.tasks, cfg.tasks, benchmark.default_tasks)
        root = benchmark_root(cfg.root, name)
        loaded = benchmark.load(root, tasks=tasks)
        if not loaded.items:
            raise EvalDataError(f"{name}: no question in {root} for the tasks {', '.join(tasks) or 'all'}")
        chosen = limited(loaded.items, cfg.limit)
        items += chosen
        info[name] = _info(loaded, chosen, tasks, cfg.limit, root)
    return Questions(tuple(items), info)


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, the first of each task in turn, in file order."""
    if limit is None or limit >= len(items):
        return list(items)
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int]] = []
    for place, item in enumerate(items):
        turns.append((seen[item.task], place))
        seen[item.task] += 1
    return [items[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def run_info(
    cfg: EvalConfig, questions: Questions, identity: ModelIdentity, *, name: str, engine: str
) -> RunInfo:
    """What `eval.json` says before the first answer."""
    settings = output_settings(cfg, identity, engine=engine)
    missing = questions.num_missing
    return RunInfo(
        name=name,
        model=identity.model,
        engine=engine,
        config_hash=config_hash(settings),
        config=settings,
        frames=cfg.frames,
        seeds=cfg.asked_seeds,
        modes=(cfg.mode,),
        benchmarks=dict(questions.info),
        versions={**base_versions(), **identity.versions},
        notes=(f"{missing} questions have no media on this machine; they count as wrong",) if missing else (),
    )


def frame_rules(cfg: EvalConfig) -> dict[str, FrameRule]:
    """The frame rule of each benchmark, where it is not the uniform one."""
    if cfg.frame_rule == "uniform":
        return {}
    return {name: frame_rule(get_benchmark(name)) for name in cfg.benchmarks}


def open_run(output_dir: Path, info: RunInfo, questions: Questions, *, resume: bool) -> RunStore:
    """The run's directory, ready for rows; see `RunStore`."""
    return RunStore(output_dir, info, [item_row(item) for item in questions.items], resume=resume)


def make_runner(
    cfg: EvalConfig,
    questions: Questions,
    store: RunStore,
    respond: Respond,
    *,
    on_row: Callable[[EvalRow], None] | None = None,
) -> Runner:
    """A runner over the questions of an open run."""
    return Runner(cfg, questions.items, store, respond, rules=frame_rules(cfg), on_row=on_row)


def finish(store: RunStore) -> RunInfo:
    """Writes the protocol cards of the rows that are there."""
    info = store.info
    cards = make_cards(info.config, info.engine, store.items, store.rows.values(), info.versions)
    done = info.model_copy(update={"cards": card_fields(cards)})
    store.write_info(done)
    return done


def _check_tasks(cfg: EvalConfig) -> None:
    """A word of `--tasks` that no benchmark knows is a mistake, not an empty choice."""
    known = {name: get_benchmark(name).tasks for name in cfg.benchmarks}
    for word in cfg.tasks:
        name, colon, task = word.rpartition(":")
        if colon and name not in known:
            raise EvalDataError(f"--tasks {word}: {name!r} is none of the benchmarks {', '.join(known)}")
        pools = [known[name]] if colon else list(known.values())
        if task != "all" and not any(task in pool for pool in pools):
            lists = "; ".join(f"{key}: {', '.join(pool)}" for key, pool in known.items())
            raise EvalDataError(f"--tasks {word}: no benchmark has it; {lists}")


def _info(
    loaded: Loaded, chosen: Sequence[Item], tasks: tuple[str, ...], limit: int | None, root: Path
) -> BenchmarkInfo:
    uids = {item.uid for item in chosen}
    base = root if root.is_dir() else root.parent
    return BenchmarkInfo(
        num_items=len(chosen),
        num_missing=sum(one.uid in uids for one in loaded.missing),
        num_total=loaded.num_items,
        tasks=tasks,
        limit=limit,
        files=tuple(
            (path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name, sha)
            for path, sha in loaded.files
        ),
        notes=loaded.notes,
    )
