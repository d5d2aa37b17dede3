"""The runner: every question gets a row, whatever clips and models do, and a resume repeats nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ffr.eval import clips as clips_module
from ffr.eval.base import PROFILES, EvalDataError
from ffr.eval.benchmarks import BENCHMARKS, get_benchmark
from ffr.eval.benchmarks.samples import write_sample
from ffr.eval.models import Reply
from ffr.eval.results import load_run
from ffr.eval.rows import read_rows, read_run
from ffr.eval.run import limited, load_questions, write_test_world
from ffr.eval.runner import MAX_FAILURES_IN_A_ROW, MAX_RAW_CHARS, Answer, ModelGoneError
from ffr.eval.settings import config_hash, output_settings, tasks_of
from ffr.eval.store import RunMixError
from ffr.eval.table import build_table
from ffr.eval.table_text import to_json, to_markdown
from ffr.observe import uniform_indices
from tests.eval.fakes import IDENTITY, FakeModel, by_view, config, evaluate, world

GARBAGE = (
    "", " ", "<answer>", "</answer><answer></think>", "B" * 100_000, "word " * 20_000, "<think>" * 5_000,
    "ответ: Б", "答案是乙", "الجواب", "\x00\x01\x02", "\ud800\udfff \ud83d", "NaN", "-1e999", "{}[]()",
    "1" * 5_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("data"))


def table(run):
    return to_json(build_table(load_run(run)))


def by_key(run):
    return {row.key: row for row in read_rows(run)}


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_garbage_gets_a_table(name, tmp_path):
    write_sample(name, tmp_path / "data" / name)
    said = iter(GARBAGE * 100)
    cfg = config(tmp_path / "data", benchmarks=(name,), tasks=("all",), prompt="official")
    questions = load_questions(cfg)
    for number in range(-(-len(GARBAGE) // len(questions.items))):
        run = tmp_path / f"run{number}"
        evaluate(cfg, run, lambda obs, gen: next(said), questions=questions)
        rows = read_rows(run)
        assert len(rows) == len(questions.items) and not any(row.error for row in rows)
        assert all(set(row.scores) == set(PROFILES) for row in rows)
        assert not any("scorer_failed" in s.note for row in rows for s in row.scores.values())
        built = build_table(load_run(run))
        assert built.lines[0].num_scored == built.lines[0].num_total
        assert to_markdown(built) and json.loads(to_json(built))


def test_what_a_row_says(root, tmp_path):
    evaluate(config(root), tmp_path / "run", by_view)
    row = next(iter(by_key(tmp_path / "run").values()))
    info = read_run(tmp_path / "run")
    assert row.config_hash == info.config_hash and row.uid.startswith("microworld/")
    assert (row.width_px, row.height_px) == (84, 56) and row.num_frames == 4
    assert row.frame_indices == uniform_indices(48, 4)
    assert row.fps == pytest.approx(3 / (47 / 12), abs=1e-3)  # 48 frames at 12 a second
    assert len(row.video_sha256) == len(row.prompt_sha256) == 64
    assert row.raw.startswith("<think>") and row.finish == "stop"
    card = info.cards["microworld@4"]
    assert card["num_frames"] == 4 and card["max_frame_px"] == 84 * 56 and card["versions"]["numpy"]
    assert info.benchmarks["microworld"].num_items == 12


def test_each_clip_is_decoded_once_for_all_frames_and_seeds(root, tmp_path, monkeypatch):
    calls = []
    real = clips_module.load_clips

    def counted(sample, cfg, nums, *rest):
        calls.append((sample.video.name, nums))
        return real(sample, cfg, nums, *rest)

    monkeypatch.setattr(clips_module, "load_clips", counted)
    cfg = config(root, frames=(4, 8, 64), seeds=(1, 2), temperature=1.0)
    evaluate(cfg, tmp_path / "run", by_view)
    rows = by_key(tmp_path / "run")
    assert len(rows) == 12 * 3 * 2
    assert sorted(calls) == [(f"{k:05d}.mp4", (4, 8, 64)) for k in range(12)]
    long = rows["microworld/0", 64, 1, "plain"]
    assert long.frame_indices == tuple(range(48)) and long.notes == ("short_clip:48",)
    assert rows["microworld/0", 8, 2, "plain"].frame_indices == uniform_indices(48, 8)


def test_a_bad_clip_hurts_no_other_question(tmp_path):
    root = world(tmp_path / "data")
    evaluate(config(root), tmp_path / "good", by_view)
    folder = root / "microworld" / "clips" / "test"
    (folder / "00001.mp4").write_bytes(b"no video at all")
    (folder / "00002.mp4").unlink()
    runner = evaluate(config(root), tmp_path / "bad", by_view)
    good, bad = by_key(tmp_path / "good"), by_key(tmp_path / "bad")
    failed = {key[0]: row.error.partition(":")[0] for key, row in bad.items() if row.error}
    assert failed == {"microworld/1": "undecodable", "microworld/2": "missing"}
    assert {k: v for k, v in bad.items() if k[0] not in failed} == {
        k: v for k, v in good.items() if k[0] not in failed
    }
    assert runner.counters["errors"] == 2 and runner.counters["error/missing"] == 1
    line = build_table(load_run(tmp_path / "bad")).lines[0]
    assert (line.num_scored, line.num_total) == (10, 12)


def test_a_clip_that_comes_back_is_asked_on_resume_and_nothing_else_is_written(tmp_path):
    root = world(tmp_path / "data")
    path = root / "microworld" / "clips" / "test" / "00005.mp4"
    data = path.read_bytes()
    path.unlink()
    evaluate(config(root), tmp_path / "run", by_view)
    size = (tmp_path / "run" / "rows.jsonl").stat().st_size
    model = FakeModel(by_view)
    again = evaluate(config(root), tmp_path / "run", model, resume=True)
    assert again.counters["error/missing"] == 1 and model.calls == []
    assert (tmp_path / "run" / "rows.jsonl").stat().st_size == size
    path.write_bytes(data)
    evaluate(config(root), tmp_path / "run", model, resume=True)
    # The whole batch is asked as it would have been, one row is new.
    assert [uids for _, _, uids in model.calls] == [tuple(f"microworld/{k}" for k in (4, 5, 6, 7))]
    evaluate(config(root), tmp_path / "whole", by_view)
    assert by_key(tmp_path / "run") == by_key(tmp_path / "whole")


@pytest.mark.parametrize(
    "fault",
    [
        lambda model, obs: [Reply.failed("timeout", "no reply")] * len(obs),
        lambda model, obs: [],
        lambda model, obs: 1 / 0,
    ],
)
def test_a_failing_call_is_a_row_with_an_error_and_is_retried(root, tmp_path, fault):
    class Flaky(FakeModel):
        async def answer(self, observations, generation):
            if observations[0].sample_uid == "microworld/4" and not self.mended:
                return fault(self, observations)
            return await super().answer(observations, generation)

    model = Flaky(by_view)
    model.mended = False
    runner = evaluate(config(root), tmp_path / "run", model)
    rows = by_key(tmp_path / "run")
    assert sorted(k[0] for k, r in rows.items() if r.error) == [f"microworld/{k}" for k in (4, 5, 6, 7)]
    assert runner.counters["errors"] == 4 and len(rows) == 12
    assert not any(r.scores for r in rows.values() if r.error)
    model.mended = True
    evaluate(config(root), tmp_path / "run", model, resume=True)
    evaluate(config(root), tmp_path / "whole", by_view)
    assert by_key(tmp_path / "run") == by_key(tmp_path / "whole")
    assert table(tmp_path / "run") == table(tmp_path / "whole")


def test_a_dead_model_stops_the_run(tmp_path):
    root = world(tmp_path / "data", 28)
    with pytest.raises(ModelGoneError, match=r"connection: refused.*--resume"):
        evaluate(config(root), tmp_path / "run", lambda obs, gen: Reply.failed("connection", "refused"))
    assert MAX_FAILURES_IN_A_ROW <= len(read_rows(tmp_path / "run")) < 28
    evaluate(config(root), tmp_path / "run", by_view, resume=True)
    assert not any(row.error for row in read_rows(tmp_path / "run"))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("stop_after", [1, 9, 17])
def test_stop_and_resume_give_the_same_rows_and_table(root, tmp_path, temperature, stop_after):
    cfg = config(root, frames=(4, 8), seeds=(42, 7), temperature=temperature)
    evaluate(cfg, tmp_path / "whole", by_view)
    part = evaluate(cfg, tmp_path / "run", by_view, stop_after=stop_after)
    wanted = 12 * 2 * (2 if temperature else 1)
    assert part.stopped and 0 < len(read_rows(tmp_path / "run")) < wanted
    model = FakeModel(by_view)
    evaluate(cfg, tmp_path / "run", model, resume=True)
    assert by_key(tmp_path / "run") == by_key(tmp_path / "whole") and len(by_key(tmp_path / "run")) == wanted
    assert table(tmp_path / "run") == table(tmp_path / "whole")
    assert read_run(tmp_path / "run") == read_run(tmp_path / "whole")
    assert all(len(uids) == 4 for _, _, uids in model.calls)


def test_greedy_runs_one_seed(root, tmp_path):
    evaluate(config(root, seeds=(42, 123, 456)), tmp_path / "run", by_view)
    assert {row.seed for row in read_rows(tmp_path / "run")} == {42}
    assert read_run(tmp_path / "run").seeds == (42,)


def test_official_words_and_frames(tmp_path):
    write_sample("longvideobench", tmp_path / "data")
    cfg = config(
        tmp_path / "data",
        benchmarks=("longvideobench",),
        prompt="official",
        frame_rule="official",
        frames=(5,),
    )
    seen = {}
    evaluate(cfg, tmp_path / "run", lambda obs, gen: seen.setdefault(obs.sample_uid, obs.prompt))
    items = load_questions(cfg).items
    assert {item.uid: item.official_prompt for item in items} == seen
    rows = by_key(tmp_path / "run")
    item = items[0]
    assert item.sample.clip_s is None
    total = 24
    assert rows[item.uid, 5, 42, "plain"].frame_indices == get_benchmark("longvideobench").frame_indices(
        total, 5, fps=8.0
    )


def test_a_long_text_is_cut_and_said_so(root, tmp_path):
    evaluate(config(root), tmp_path / "run", lambda obs, gen: "x" * (MAX_RAW_CHARS + 5))
    row = read_rows(tmp_path / "run")[0]
    assert len(row.raw) == MAX_RAW_CHARS and row.notes == ("raw_cut",)


def test_an_option_has_its_own_mode_and_keeps_what_it_needs(root, tmp_path):
    async def twice(asked, generation):
        return [Answer(Reply("<answer>A</answer>", "stop", 2), {"votes": ["A", "A"]}) for _ in asked]

    cfg = config(root)
    evaluate(cfg, tmp_path / "run", by_view, respond=twice)
    assert all(row.extra == {"votes": ["A", "A"]} for row in read_rows(tmp_path / "run"))


def test_a_test_world_grows_but_is_never_replaced(tmp_path):
    assert write_test_world(tmp_path / "ours", num=2) == tmp_path / "ours" / "microworld"
    clip = tmp_path / "ours" / "microworld" / "clips" / "test" / "00001.mp4"
    before = clip.stat().st_mtime_ns
    assert write_test_world(tmp_path / "ours", num=2) is None
    assert write_test_world(tmp_path / "ours", num=4) == tmp_path / "ours" / "microworld"
    assert clip.stat().st_mtime_ns == before
    assert len(load_questions(config(tmp_path / "ours")).items) == 4
    assert write_test_world(world(tmp_path / "theirs", 3), num=9) is None
    assert len(load_questions(config(tmp_path / "theirs")).items) == 3


def test_limit_takes_the_tasks_in_turn(root):
    items = load_questions(config(root)).items
    few = limited(items, 7)
    assert [item.task for item in few[:6]] == list(get_benchmark("microworld").tasks)
    assert [item.uid for item in few] == [f"microworld/{k}" for k in range(7)]
    assert limited(items, None) == list(items) == limited(items, 99)
    shuffled = [replace(item) for item in reversed(items)]
    assert len({item.task for item in limited(shuffled, 6)}) == 6


def test_tasks_are_checked(root):
    assert tasks_of("mvbench", ["a", "b"], ["all"], ["a"]) == ()
    assert tasks_of("mvbench", ["a", "b"], [], ["a"]) == ("a",)
    assert tasks_of("mvbench", ["a", "b"], ["lvbench:x", "b"]) == ("b",)
    with pytest.raises(EvalDataError, match="no benchmark has it"):
        load_questions(config(root, tasks=("nonsense",)))
    with pytest.raises(EvalDataError, match="no benchmark has it; microworld: counting"):
        load_questions(config(root, tasks=("microworld:nonsense",)))
    with pytest.raises(EvalDataError, match="mvbench has the tasks a, b"):
        tasks_of("mvbench", ["a", "b"], ["mvbench:c"])
    with pytest.raises(EvalDataError, match="none of the benchmarks"):
        load_questions(config(root, tasks=("mvbench:action_count",)))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"prompt": "video_r1"}, False),
        ({"temperature": 0.5}, False),
        ({"max_frame_px": 50_000}, False),
        ({"batch_size": 5}, False),
        ({"frame_rule": "official"}, False),
        ({"frames": (8,)}, True),
        ({"seeds": (7,)}, True),
        ({"workers": 7}, True),
        ({"limit": 3}, True),
    ],
)
def test_the_hash_covers_what_decides_an_output(root, change, same):
    def name(cfg):
        return config_hash(output_settings(cfg, IDENTITY, engine="fake"))

    assert (name(config(root)) == name(config(root, **change))) is same


def test_a_run_is_not_mixed_with_another(root, tmp_path):
    evaluate(config(root), tmp_path / "run", by_view)
    with pytest.raises(RunMixError, match="--resume"):
        evaluate(config(root), tmp_path / "run", by_view)
    with pytest.raises(RunMixError, match="max_tokens 48, now 49"):
        evaluate(config(root, max_tokens=49), tmp_path / "run", by_view, resume=True)
    with pytest.raises(RunMixError, match=r"2 gone|6 gone"):
        evaluate(config(root, limit=6), tmp_path / "run", by_view, resume=True)
    with pytest.raises(RunMixError, match="--frames 4; 4 is missing"):
        evaluate(config(root, frames=(8,)), tmp_path / "run", by_view, resume=True)
    before = by_key(tmp_path / "run")
    evaluate(config(root, frames=(4, 8)), tmp_path / "run", by_view, resume=True)
    after = by_key(tmp_path / "run")
    assert len(after) == 24 and {k: after[k] for k in before} == before
