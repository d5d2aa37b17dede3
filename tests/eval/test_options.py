"""Test-time options: votes, more frames, a teacher's help; whose rows are never taken for plain answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
import torch

from ffr.cli.main import main
from ffr.config import FixConfig
from ffr.eval.base import Item, Target
from ffr.eval.models import Generation, Reply
from ffr.eval.models.checkpoint import find_checkpoint
from ffr.eval.models.hf import HFAnswerer
from ffr.eval.options import BudgetedRepair, majority_vote, sparse_to_dense
from ffr.eval.options.vote import Ballot, Vote, vote_generation
from ffr.eval.results import load_run
from ffr.eval.rows import read_rows, read_run
from ffr.eval.runner import MAX_FAILURES_IN_A_ROW, Asked, ModelGoneError, plain
from ffr.eval.settings import OptionConfig, config_hash, output_settings
from ffr.eval.store import RunMixError
from ffr.eval.table import build_table
from ffr.eval.table_text import to_markdown
from ffr.fix import Journal, OracleTeacher
from ffr.types import Diagnosis, Observation, Option, ProblemType, Sample
from tests.eval.fakes import IDENTITY, FakeModel, by_view, config, evaluate, world
from tests.fix.common import GOOD_PATCH, LEAKING_PATCH, ScriptedTeacher

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return world(tmp_path_factory.mktemp("data"), 12)


def option_config(root, mode, **changes):
    option = {name: changes.pop(name) for name in list(changes) if name in OptionConfig.model_fields}
    return config(root, temperature=0.8, option={"mode": mode, "votes": 3, **option}, **changes)


def run_option(
    root, run, mode, say, *, teacher=None, journal=None, fix=None, resume=False, stop_after=None, **changes
):
    """A whole run of an option with a fake model: runner, model, and the repair if it is one."""
    cfg = option_config(root, mode, **changes)
    model = say if isinstance(say, FakeModel) else FakeModel(say)
    make = {"vote": majority_vote, "sparse_to_dense": sparse_to_dense}.get(mode)
    respond = (
        make(model, cfg.option)
        if make
        else BudgetedRepair(model, cfg.option, teacher, fix or FixConfig(), journal)
    )
    runner = evaluate(cfg, run, model, respond=respond, resume=resume, stop_after=stop_after)
    return runner, model, respond


def votes_of(row):
    return [vote["answer"] for vote in row.extra["votes"]]


# --- counting --------------------------------------------------------------------------------------------


def ballot(*answers):
    return Ballot(tuple(Vote(Reply(f"says {a}", "stop", 1), k, a) for k, a in enumerate(answers)))


@pytest.mark.parametrize(
    ("answers", "winner", "agreement"),
    [
        ("AAB", 0, 2 / 3),
        ("ABB", 1, 2 / 3),
        ("ABC", 0, 1 / 3),  # a tie: the first one
        ("BAAB", 0, 1 / 2),
        ("CABBA", 1, 2 / 5),
        (["", "B", ""], 1, 1 / 3),  # a vote without an answer does not count, and is no agreement either
        (["", ""], 0, 0.0),
        (["Dolly Zoom", "the dolly zoom.", "pan"], 0, 2 / 3),
        (["3", "3", "3"], 0, 1.0),
    ],
)
def test_the_most_votes_win_and_ties_go_to_the_first(answers, winner, agreement):
    counted = ballot(*answers)
    assert counted.winner == counted.votes[winner]
    assert counted.agreement == pytest.approx(agreement)
    assert counted.unanimous == (agreement == 1.0)


def test_the_first_vote_is_the_plain_answer_and_each_other_has_a_seed_of_its_own():
    base = Generation(temperature=0.8, top_p=0.7, seed=42)
    drawn = [vote_generation(base, k, rising=False) for k in range(16)]
    assert drawn[0] == base and len({g.seed for g in drawn}) == 16
    neighbour = {vote_generation(Generation(seed=43), k, rising=False).seed for k in range(16)}
    assert not neighbour & {g.seed for g in drawn}  # runs with seeds 42 and 43 share no vote
    rising = [vote_generation(base, k, rising=True) for k in range(7)]
    # Video-RTS: T = 0.8 + 0.15 i, top-p = min(0.95, 0.7 + 0.05 i).
    assert [round(g.temperature, 2) for g in rising] == [0.8, 0.95, 1.1, 1.25, 1.4, 1.55, 1.7]
    assert [round(g.top_p, 2) for g in rising] == [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.95]
    wide = vote_generation(Generation(temperature=1.0, top_p=1.0), 3, rising=True)
    assert wide.top_p == 1.0  # a wider nucleus than 0.95 is not made narrower


# --- vote ------------------------------------------------------------------------------------------------


def test_a_vote_is_answered_by_its_winner_and_costs_all_its_calls(root, tmp_path):
    runner, model, _ = run_option(root, tmp_path / "run", "vote", by_view)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 12 and {row.mode for row in rows} == {"vote"} and runner.counters["errors"] == 0
    assert len(model.calls) == 3 * 3  # three chunks, three votes each
    for row in rows:
        counts = Counter(votes_of(row))
        answer = row.scores["robust"].extracted
        assert counts[answer] == max(counts.values()) and row.extra["num_calls"] == 3
        assert row.extra["agreement"] == pytest.approx(counts[answer] / 3, abs=1e-4)
        assert row.num_tokens == sum(vote["num_tokens"] for vote in row.extra["votes"])
        assert row.raw == next(v["text"] for v in row.extra["votes"] if v["answer"] == answer)
    assert any(len(set(votes_of(row))) > 1 for row in rows)


def test_the_first_votes_are_the_plain_run(root, tmp_path):
    run_option(root, tmp_path / "vote", "vote", by_view)
    evaluate(config(root, temperature=0.8), tmp_path / "plain", by_view)
    first = {row.uid: row.extra["votes"][0]["text"] for row in read_rows(tmp_path / "vote")}
    assert first == {row.uid: row.raw for row in read_rows(tmp_path / "plain")}


def test_a_missing_vote_is_an_error_that_a_resume_mends(root, tmp_path):
    def flaky(obs, generation):
        if generation.seed != 42 and obs.sample_uid.endswith("3"):
            return Reply.failed("timeout", "no reply")
        return by_view(obs, generation)

    runner, _, _ = run_option(root, tmp_path / "run", "vote", flaky)
    failed = [row for row in read_rows(tmp_path / "run") if row.error]
    assert len(failed) == runner.counters["error/timeout"] >= 1 and not any(row.scores for row in failed)
    run_option(root, tmp_path / "run", "vote", by_view, resume=True)
    run_option(root, tmp_path / "whole", "vote", by_view)
    assert {r.uid: r for r in read_rows(tmp_path / "run")} == {
        r.uid: r for r in read_rows(tmp_path / "whole")
    }


@pytest.mark.parametrize("mode", ["vote", "sparse_to_dense", "repair"])
def test_every_option_goes_on_where_it_was_stopped(root, tmp_path, mode):
    def extra(folder):
        journal = Journal(tmp_path / f"{folder}.sqlite")
        return {"teacher": OracleTeacher(), "journal": journal} if mode == "repair" else {}

    part, _, _ = run_option(root, tmp_path / "run", mode, by_view, stop_after=4, **extra("run"))
    assert part.stopped and part.counters["rows"] < 12
    lines = (tmp_path / "run" / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "rows.jsonl").write_bytes(b"".join(lines[1:]))  # a row of a whole call is lost
    run_option(root, tmp_path / "run", mode, by_view, resume=True, **extra("run"))
    run_option(root, tmp_path / "whole", mode, by_view, **extra("whole"))
    whole = {row.key: row for row in read_rows(tmp_path / "whole")}
    assert {row.key: row for row in read_rows(tmp_path / "run")} == whole and len(whole) == 12


# --- never mixed -----------------------------------------------------------------------------------------


def test_options_and_plain_answers_are_never_mixed(root, tmp_path):
    evaluate(config(root, temperature=0.8), tmp_path / "run", by_view)
    for mode, changes in (("vote", {}), ("sparse_to_dense", {})):
        with pytest.raises(RunMixError, match=f"option_mode unset, now {mode}"):
            run_option(root, tmp_path / "run", mode, by_view, resume=True, **changes)
    run_option(root, tmp_path / "vote", "vote", by_view)
    with pytest.raises(RunMixError, match="option_votes 3, now 5"):
        run_option(root, tmp_path / "vote", "vote", by_view, votes=5, resume=True)
    run = load_run(tmp_path / "vote")
    table = build_table(run)
    assert not table.lines and [line.cell.mode for line in table.option_lines] == ["vote"]
    assert run.info.modes == ("vote",) and run.info.config["option_votes"] == 3
    assert "vote" in to_markdown(table)
    card = read_run(tmp_path / "vote").cards["microworld@4"]
    assert len(card["indices_sha256"]) == 64 and card["num_frames"] == 4


def test_a_plain_configuration_keeps_its_hash(root):
    cfg = config(root)
    settings = output_settings(cfg, IDENTITY, engine="fake")
    assert not [name for name in settings if name.startswith("option")]
    hashes = {config_hash(settings)}
    for option in (
        {"mode": "vote"}, {"mode": "vote", "votes": 7}, {"mode": "vote", "rising": True},
        {"mode": "sparse_to_dense"}, {"mode": "sparse_to_dense", "start_frames": 2},
        {"mode": "repair"}, {"mode": "repair", "teacher": "x"}, {"mode": "repair", "max_teacher_calls": 3},
    ):  # fmt: skip
        hashes.add(
            config_hash(
                output_settings(config(root, temperature=0.8, option=option), IDENTITY, engine="fake")
            )
        )
    assert len(hashes) == 9
    same = config(root, temperature=0.8, option={"mode": "vote", "start_frames": 9})
    assert config_hash(output_settings(same, IDENTITY, engine="fake")) in hashes  # a vote has no such setting
    with pytest.raises(ValueError, match="temperature above 0"):
        config(root, option={"mode": "vote"})


# --- sparse to dense -------------------------------------------------------------------------------------


def test_the_ladder_doubles_up_to_the_rows_frames():
    option = OptionConfig(mode="sparse_to_dense", start_frames=4)
    assert [option.ladder(n) for n in (2, 4, 5, 16, 20)] == [(2,), (4,), (4, 5), (4, 8, 16), (4, 8, 16, 20)]
    assert OptionConfig(mode="vote").ladder(16) == (16,)


def test_more_frames_are_shown_while_the_votes_disagree(root, tmp_path):
    def unsure(obs, generation):
        """Sure from 8 frames on, the even questions at once; in two minds before, the fifth always."""
        odd = int(obs.sample_uid[-1]) % 2
        sure = (len(obs.frames) >= 8 or not odd) and not obs.sample_uid.endswith("5")
        return f"<answer>{'B' if sure else 'AB'[generation.seed % 2]}</answer>"

    _, model, _ = run_option(root, tmp_path / "run", "sparse_to_dense", unsure, frames=(16,), votes=4)
    for row in read_rows(tmp_path / "run"):
        rungs = row.extra["rungs"]
        asked = [rung["frames"] for rung in rungs]
        number = int(row.uid[-1])
        if number == 5:
            assert asked == [4, 8, 16] and rungs[-1]["agreement"] < 1.0
        elif number % 2 == 0:
            assert asked == [4] and row.scores["robust"].extracted == "B"
        elif rungs[0]["agreement"] < 1.0:
            assert asked == [4, 8]
        assert len(row.frame_indices) == row.extra["frames"] == asked[-1] and row.num_frames == 16
        assert row.extra["num_calls"] == 4 * len(asked) and row.mode == "sparse_to_dense"
        assert row.num_tokens == sum(v["num_tokens"] for rung in rungs for v in rung["votes"])
    assert {frames for frames, _, _ in model.calls} == {4, 8, 16}


def test_a_short_clip_is_not_shown_twice(root):
    sample = Sample(
        "s/1", "Which?", "B", ProblemType.MULTIPLE_CHOICE, root, (Option("A", "a"), Option("B", "b"))
    )
    item = Item("microworld", "s/1", {}, sample, Target("choice", "B", sample.options), "g", 0)
    views = {rung: Observation("s/1", (), "Which?", view) for rung, view in ((4, "x"), (8, "x"), (16, "y"))}
    model = FakeModel(lambda obs, generation: f"<answer>{'AB'[generation.seed % 2]}</answer>")
    model.answer = counting(model)
    respond = sparse_to_dense(model, OptionConfig(mode="sparse_to_dense", votes=6))
    (answer,) = asyncio.run(respond([Asked(item, views[16], "", views)], Generation(temperature=1.0)))
    assert [view for view, _ in model.seen] == ["x"] * 6 + ["y"] * 6
    assert len(answer.extra["rungs"]) == 2


def counting(model):
    model.seen = []

    async def answer(observations, generation):
        model.seen += [(obs.view_id, generation.seed) for obs in observations]
        return [Reply(model.say(obs, generation), "stop", 1) for obs in observations]

    return answer


# --- repair ----------------------------------------------------------------------------------------------


def split_then_sure(obs, generation):
    """In two minds without a patch, of one with it; the even questions are sure at once."""
    if obs.patched:
        return "<answer>C</answer>"
    return "<answer>A</answer>" if int(obs.sample_uid[-1]) % 2 == 0 else by_view(obs, generation)


def test_a_patch_is_asked_for_where_the_votes_disagree(root, tmp_path):
    teacher = ScriptedTeacher(Diagnosis(GOOD_PATCH))
    _, _, repair = run_option(root, tmp_path / "run", "repair", split_then_sure, teacher=teacher, frames=(8,))
    rows = read_rows(tmp_path / "run")
    patched = [row for row in rows if row.extra["repair"]["status"] == "patched"]
    agreed = [row for row in rows if row.extra["repair"]["status"] == "agreed"]
    assert len(patched) + len(agreed) == 12 and patched and agreed
    for row in agreed:
        assert row.extra["agreement"] == 1.0 and row.extra["num_calls"] == 3
    for row in patched:
        assert row.extra["agreement"] < 1.0 and row.extra["num_calls"] == 6
        assert row.scores["robust"].extracted == "C" and row.extra["first_answer"] in "ABCD"
        found = row.extra["repair"]
        assert found["patch"]["key_frames"] == [[3, 4]] and "frames 3-4" in found["patch_text"]
        assert [vote["answer"] for vote in found["votes"]] == ["C"] * 3
    assert len(teacher.requests) == len(patched) == repair.statuses["patched"]
    # Nobody knows the answer at test time: the teacher is not told, whatever its settings say.
    assert all(request.reference_answer is None for request in teacher.requests)
    assert all(not request.rollout.observation.patched for request in teacher.requests)


def test_the_gate_stays_on_and_a_leaking_patch_is_not_shown(root, tmp_path):
    fix = FixConfig.model_validate({"leak": {"enabled": False}, "reference_answer": True})
    teacher = ScriptedTeacher(Diagnosis(LEAKING_PATCH))
    run_option(root, tmp_path / "run", "repair", split_then_sure, teacher=teacher, fix=fix, frames=(8,))
    statuses = Counter(row.extra["repair"]["status"] for row in read_rows(tmp_path / "run"))
    assert statuses["leaked"] > 0 and statuses["patched"] == 0
    for row in read_rows(tmp_path / "run"):
        assert LEAKING_PATCH.guidance not in json.dumps(row.extra) and row.extra["num_calls"] == 3
        assert row.scores["robust"].extracted == row.extra["first_answer"]
    assert all(request.reference_answer is None for request in teacher.requests)


def test_the_budget_holds_over_a_restart_and_failures_keep_the_vote(root, tmp_path):
    def go(folder, teacher, **changes):
        journal = Journal(tmp_path / f"{folder}.sqlite")
        return run_option(
            root,
            tmp_path / folder,
            "repair",
            split_then_sure,
            teacher=teacher,
            journal=journal,
            frames=(8,),
            **changes,
        )

    teacher = ScriptedTeacher(Diagnosis(GOOD_PATCH))
    go("run", teacher, max_teacher_calls=2, stop_after=4)
    go("run", teacher, max_teacher_calls=2, resume=True)
    statuses = Counter(row.extra["repair"]["status"] for row in read_rows(tmp_path / "run"))
    assert statuses["patched"] == len(teacher.requests) == 2 and statuses["over_budget"] > 0
    failing = ScriptedTeacher(Diagnosis(None, failure="timeout"))
    go("failing", failing)
    rows = read_rows(tmp_path / "failing")
    failed = [row for row in rows if row.extra["repair"]["status"] == "teacher_failed"]
    assert failed and not any(row.error for row in rows)
    assert all(row.extra["repair"]["detail"] == "timeout" for row in failed)


def test_a_teacher_that_never_works_stops_the_run(root, tmp_path):
    fix = FixConfig(no_teacher_after=2)
    teacher = ScriptedTeacher(Diagnosis(None, failure="connection"))
    with pytest.raises(ModelGoneError, match="gave no patch in its first"):
        run_option(root, tmp_path / "run", "repair", split_then_sure, teacher=teacher, fix=fix, frames=(8,))
    assert len(read_rows(tmp_path / "run")) < 12 < MAX_FAILURES_IN_A_ROW


def test_a_student_that_fails_asks_nobody(root, tmp_path):
    teacher = ScriptedTeacher(Diagnosis(GOOD_PATCH))
    run_option(root, tmp_path / "run", "repair", lambda o, g: Reply.failed("timeout", "x"), teacher=teacher)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 12 and all(row.error == "timeout: x" for row in rows) and not teacher.requests
    assert {row.extra["repair"]["status"] for row in rows} == {"not_asked"}


# --- the shipped student ---------------------------------------------------------------------------------


def test_vote_and_repair_of_the_shipped_student(tmp_path):
    """The oracle knows where to look: with its patches the student must do better than by voting alone."""
    root = world(tmp_path / "data", 24)
    student = HFAnswerer(find_checkpoint("micro-student"))
    dummy = FakeModel(by_view)
    changes = {"frames": (16,), "votes": 3, "batch_size": 24, "max_frame_px": 84 * 56}
    right = {}
    for mode in ("plain", "vote", "repair"):
        if mode == "plain":
            cfg, respond = config(root, temperature=1.0, frames=(16,), batch_size=24), plain(student)
        else:
            cfg = option_config(root, mode, **changes).model_copy(update={"temperature": 1.0})
            respond = majority_vote(student, cfg.option)
        if mode == "repair":
            respond = BudgetedRepair(student, cfg.option, OracleTeacher(), FixConfig())
        evaluate(cfg, tmp_path / mode, dummy, respond=respond)
        rows = read_rows(tmp_path / mode)
        assert len(rows) == 24 and not any(row.error for row in rows)
        right[mode] = sum(row.scores["robust"].value for row in rows)
        if mode == "repair":
            votes = {row.uid: votes_of(row) for row in read_rows(tmp_path / "vote")}
            assert {row.uid: votes_of(row) for row in rows} == votes  # the same first votes
            helped = [row for row in rows if row.extra["repair"]["status"] == "patched"]
            assert len(helped) >= 4 and respond.counters["teacher_calls"] >= len(helped)
    assert right["repair"] > right["vote"] and right["repair"] > right["plain"]


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vote", "5"], "--vote: vote needs answers that differ: give a temperature above 0"),
        (["--vote", "1", "--temperature", "1"], "greater than or equal to 2"),
        (["--repair", "--sparse-start", "4", "--temperature", "1"], "give one of them"),
        (["--repair", "--temperature", "1"], "--teacher.base-url"),
        (["--rising"], "--rising goes with"),
        (["--teacher-calls", "3"], "go with --repair"),
    ],
)
def test_mistakes_are_said_before_the_model_is_reached(root, capsys, words, said):
    base = ["eval", "--model", "http://127.0.0.1:9/v1", "--benchmarks", "microworld", "--root", str(root)]
    assert main([*base, *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_the_command_reports_a_repair_apart(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = [
        "eval", "--model", "micro-student", "--benchmarks", "microworld", "--root", str(root), "--limit", "6",
        "--temperature", "1.0", "--repair", "--vote", "2", "--teacher.type", "oracle", "--teacher-calls", "2",
        "--output-dir", str(tmp_path / "run"), "--display", "plain",
    ]  # fmt: skip
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "repair: 2 answers per question and view, teacher oracle" in out and "at most 2 calls" in out
    assert "teacher calls" in out and "MicroWorld, repair" in out
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 6 and {row.mode for row in rows} == {"repair"}
    asked = sum(row.extra["repair"]["status"] in ("patched", "leaked") for row in rows)
    assert asked <= 2 and (tmp_path / "run" / "teacher.sqlite").is_file()
    assert main([*command, "--resume"]) == 0
    assert "6 of 6 answers are there already" in capsys.readouterr().out
