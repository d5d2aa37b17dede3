"""`ffr teach`: rows, statuses, resuming without paying twice, and no torch."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ffr.cli.main import main
from ffr.data import read_video_r1
from ffr.data.microworld import write_microworld
from ffr.fix import Journal, check_leak, parse_patch
from ffr.fix.file_lock import FileLock
from tests.fix.fake_server import FakeServer, Reply, reply_json, say
from tests.fix.test_faults import PATCH, always, dead_port

LEAK = PATCH.replace("Watch these frames again.", "The right one is option B.")
CHAT = ("--teacher.profile", "vllm", "--teacher.max-tool-calls", "0", "--observe.num-frames", "4")
IN_A_PROCESS = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in workers of pytest-xdist
    "from ffr.cli.main import main\n"
    "code = main(sys.argv[1:])\n"
    "heavy = {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
    "sys.exit(f'loads {heavy}' if heavy else code)\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six clips, and the first wrong letter and the right one for each."""
    root = tmp_path_factory.mktemp("world")
    questions = write_microworld(root, num_train=6, num_test=0).train
    samples = read_video_r1(questions, root).samples
    rows = []
    for sample in samples:
        wrong = next(option.label for option in sample.options if option.label != sample.answer)
        rows += [{"uid": sample.uid, "text": f"<answer>{said}</answer>"} for said in (wrong, sample.answer)]
    (root / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def teach(world, tmp_path, capsys):
    def call(*words, questions=world / "train.json", rollouts=world / "rollouts.jsonl"):
        paths = (questions, "--rollouts", rollouts, "--output", tmp_path / "patches.jsonl")
        code = main(["teach", *map(str, (*paths, *words))])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    call.output = tmp_path / "patches.jsonl"
    call.rows = lambda: [json.loads(line) for line in call.output.read_text().splitlines()]
    call.statuses = lambda: sorted(row["status"] for row in call.rows())
    return call


def journal_of(output):
    return Journal(output.with_name(output.name + ".journal.sqlite"))


def test_the_oracle_repairs_what_is_wrong_and_a_second_run_does_nothing(teach, world):
    code, said = teach("--teacher.type", "oracle")
    assert code == 0 and "12, 6 wrong, 6 right" in said and "6 calls" in said
    samples = {sample.uid: sample for sample in read_video_r1(world / "train.json", world).samples}
    fields = ("error_types", "key_frames", "temporal_markers", "spatial_regions", "guidance")
    for row in teach.rows():
        assert row["status"] == "patched" and row["said"] != row["gold"] and len(row["options"]) >= 2
        assert row["prompt_config"] == "both" and row["tool_calls"] and row["guidance"] in row["patch_text"]
        patch = parse_patch(json.dumps({name: row[name] for name in fields}), 16).to_patch()
        assert not check_leak(patch, samples[row["uid"]]).leaked
    assert len({row["uid"] for row in teach.rows()}) == 6
    before = teach.output.read_bytes()
    code, said = teach("--teacher.type", "oracle")
    assert code == 0 and "0 calls" in said
    assert teach.output.read_bytes() == before
    assert journal_of(teach.output).paid_calls == 6


def test_no_visual_leaves_the_pointers_out_of_the_students_text(teach):
    assert teach("--teacher.type", "oracle", "--no-visual")[0] == 0
    assert all(row["visual"] == "none" and row["key_frames"] for row in teach.rows())
    assert any(row["spatial_regions"] for row in teach.rows())
    assert not any("box" in row["patch_text"] or "Look again at" in row["patch_text"] for row in teach.rows())


def test_a_server_gives_patches_leaks_tokens_and_cost(teach):
    def script(request, number):
        return say(LEAK if "Which way" in json.dumps(request) else PATCH)

    prices = ("--teacher.price-prompt-per-mtok", "1000", "--teacher.price-completion-per-mtok=10000")
    with FakeServer(script) as server:
        code, said = teach("--teacher.base-url", server.base_url, *CHAT, *prices, "--no-reference-answer")
        requests = list(server.requests)
    assert code == 0
    assert set(teach.statuses()) == {"patched", "leaked"}
    leaked = [row for row in teach.rows() if row["status"] == "leaked"]
    assert all(row["leak_findings"] and row["num_leaks"] == 2 and not row["patch_text"] for row in leaked)
    assert len(requests) == 6 + len(leaked)
    assert f"{110 * len(requests)} tokens, ${0.2 * len(requests):.4f}" in said
    assert sum(row["cost"]["cost_usd"] for row in teach.rows()) == pytest.approx(
        0.2 * len(requests), rel=1e-9
    )
    assert not any(row["reference_answer"] for row in teach.rows())
    assert not any("reference_answer" in json.dumps(request) for request in requests)


def silent(text):
    """A reply without token counts."""
    return reply_json({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def test_a_server_that_counts_no_tokens_gets_estimates_that_say_so(teach):
    prices = ("--teacher.price-prompt-per-mtok", "1000")
    with FakeServer(always(silent(PATCH))) as server:
        code, said = teach("--teacher.base-url", server.base_url, *CHAT, *prices)
    assert code == 0
    costs = [row["cost"] for row in teach.rows()]
    assert all(c["estimated_tokens"] == c["prompt_tokens"] + c["completion_tokens"] > 100 for c in costs)
    total = sum(cost["estimated_tokens"] for cost in costs)
    assert f"{total} tokens ({total} estimated: the server reports none)" in " ".join(said.split())
    assert all(cost["cost_usd"] == pytest.approx(cost["prompt_tokens"] / 1000) for cost in costs)


def test_the_blind_test_refuses_in_rows_and_costs_and_is_paid_once(teach):
    """The judge is right whenever it reads the patch, never without it."""

    def judge(request, number):
        text = request["messages"][0]["content"]
        letters = {words: letter for letter, words in re.findall(r"^([A-D])\. (.+)$", text, re.MULTILINE)}
        right = next(
            letters[words] for words in golds[text.split("\n\n")[1].split("\n")[0]] if words in letters
        )
        wrong = next(letter for letter in letters.values() if letter != right)
        return say(f"<answer>{right if 'Watch these frames' in text else wrong}</answer>")

    golds = {}
    assert teach("--teacher.type", "oracle")[0] == 0
    for row in teach.rows():
        gold = next(option[3:] for option in row["options"] if option.startswith(row["gold"]))
        golds.setdefault(row["question"], []).append(gold)
    teach.output.unlink()
    journal_of(teach.output).close()
    journal_of(teach.output).path.unlink()
    with FakeServer(always(say(PATCH))) as server, FakeServer(judge) as other:
        words = ("--teacher.base-url", server.base_url, *CHAT, "--fix.leak.blind", "model")
        words += ("--fix.leak.blind-model", "text-7b", "--fix.leak.blind-base-url", other.base_url)
        words += ("--fix.leak.blind-price-prompt-per-mtok", "1000", "--fix.leak.max-reasks", "0")
        code, said = teach(*words)
        assert code == 0 and teach.statuses() == ["leaked"] * 6
        paid = len(other.requests)
        assert paid == 6 * 16
        teach.output.unlink()
        assert teach(*words)[0] == 0 and len(other.requests) == paid and len(server.requests) == 6
    said = " ".join(said.split())
    assert "6 blind tests" in said and "leak/blind 6" in said and f"${0.1 * paid:.4f}" in said
    for row in teach.rows():
        (finding,) = row["leak_findings"]
        assert finding["layer"] == "blind" and "text-7b is right 8 of 8" in finding["reason"]
        assert not row["patch_text"] and row["final"]


def test_a_second_writer_is_refused_with_the_process_that_holds_the_file(teach):
    with FileLock(teach.output):
        code, said = teach("--teacher.type", "oracle")
    said = " ".join(said.split())
    assert code == 1 and f"is being written by process {os.getpid()} on" in said
    assert teach("--teacher.type", "oracle")[0] == 0


def test_lost_rows_are_written_again_from_the_journal(teach):
    with FakeServer(always(say(PATCH))) as server:
        assert teach("--teacher.base-url", server.base_url, *CHAT)[0] == 0
        whole = teach.output.read_text()
        lines = whole.splitlines(keepends=True)
        teach.output.write_text("".join(lines[:3]) + lines[3][:50])  # killed while writing a row
        code, said = teach("--teacher.base-url", server.base_url, *CHAT)
        assert len(server.requests) == 6
        assert all("reference_answer" in json.dumps(request) for request in server.requests)
    assert code == 0 and "0 calls" in said and "3 replayed" in said
    keys = [(row["uid"], row["rollout_hash"]) for row in teach.rows()]
    assert sorted(keys) == sorted((json.loads(x)["uid"], json.loads(x)["rollout_hash"]) for x in lines)
    assert teach.output.read_text().startswith("".join(lines[:3]))


def test_the_budget_counts_over_runs_and_a_larger_one_goes_on(teach):
    with FakeServer(always(say(PATCH))) as server:
        assert teach("--teacher.base-url", server.base_url, *CHAT, "--budget", "2")[0] == 0
        assert teach.statuses() == ["over_budget"] * 4 + ["patched"] * 2
        assert teach("--teacher.base-url", server.base_url, *CHAT, "--budget", "2")[0] == 0
        assert len(server.requests) == 2
        assert teach("--teacher.base-url", server.base_url, *CHAT, "--budget", "6")[0] == 0
        assert len(server.requests) == 6
    assert teach.statuses() == ["patched"] * 6


def test_a_dead_server_stops_the_run_and_a_living_one_finishes_it(teach):
    impatient = ("--teacher.max-retries", "0", "--teacher.concurrency", "1", "--fix.no-teacher-after", "3")
    code, said = teach(
        "--teacher.base-url", f"http://127.0.0.1:{dead_port()}/v1", *CHAT, *impatient
    )  # fmt: skip
    assert code == 1 and "gave no patch for 3 rollouts" in said and "same command" in said
    assert set(teach.statuses()) == {"teacher_failed"}
    with FakeServer(always(say(PATCH))) as server:
        assert teach("--teacher.base-url", server.base_url, *CHAT)[0] == 0
    assert teach.statuses() == ["patched"] * 6


def test_a_broken_clip_is_a_row_and_is_tried_again(teach, world):
    clip = world / "clips" / "train" / "00002.mp4"
    good = clip.read_bytes()
    clip.write_bytes(b"no video")
    try:
        assert teach("--teacher.type", "oracle")[0] == 0
    finally:
        clip.write_bytes(good)
    assert teach.statuses() == ["media_error"] + ["patched"] * 5
    (row,) = [row for row in teach.rows() if row["status"] == "media_error"]
    assert row["failure"] == "undecodable" and row["uid"] == "train/2"
    assert teach("--teacher.type", "oracle")[0] == 0
    assert teach.statuses() == ["patched"] * 6


def test_rollouts_with_one_answer_may_share_a_patch(teach, world, tmp_path):
    first = json.loads((world / "rollouts.jsonl").read_text().splitlines()[0])
    more = [first, {**first, "text": "Hm. " + first["text"]}, first, {"uid": "train/99", "text": ""}]
    file = tmp_path / "more.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    code, said = teach("--teacher.type", "oracle", "--fix.one-patch-per-answer", rollouts=file)
    assert code == 0 and "1 calls" in said and "1 repeated" in said and "'train/99'" in said
    assert [row["cost"]["num_calls"] for row in teach.rows()] == [1, 0]
    assert teach.rows()[0]["guidance"] == teach.rows()[1]["guidance"]


def test_what_cannot_be_done_is_said_in_words(teach, world, tmp_path):
    oracle = ("--teacher.type", "oracle")
    assert teach(*oracle, "more.json")[0] == 2
    assert teach(*oracle, "--format", "csv")[0] == 2
    code, said = teach("--teacher.tipe", "oracle")
    assert code == 2 and "--fix.teacher.type" in said
    code, said = teach()
    assert code == 1 and "base_url" in said
    code, said = teach(*oracle, questions=tmp_path / "none.json")
    assert code == 1 and "none.json" in said
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"uid": "train/0"}\n')
    code, said = teach(*oracle, rollouts=bad)
    assert code == 1 and "row 1" in said and "'text'" in said
    bad.write_text('{"uid": "other/0", "text": ""}\n')
    code, said = teach(*oracle, rollouts=bad)
    assert code == 1 and "'other/0'" in said and "'train/0'" in said
    assert teach(*oracle)[0] == 0
    code, said = teach(*oracle, "--no-reference-answer")
    assert code == 1 and "choose another --output" in said
    teach.output.write_text('{"uid": "a"}\n')
    code, said = teach(*oracle)
    assert code == 1 and "row 1" in said and "rollout_hash" in said
    teach.output.write_bytes(b"\xff\n")
    code, said = teach(*oracle)
    assert code == 1 and "patches.jsonl: cannot be used" in said


def test_ctrl_c_leaves_a_state_that_goes_on_and_nothing_loads_torch(teach, world):
    def first_two(request, number):
        return Reply(**{**vars(say(PATCH)), "delay_s": 0.0 if number < 2 else 25.0})

    words = [world / "train.json", "--rollouts", world / "rollouts.jsonl", "--output", teach.output, *CHAT]
    with FakeServer(first_two) as server:
        command = [sys.executable, "-c", IN_A_PROCESS, "teach", *map(str, words)]
        process = subprocess.Popen(
            [*command, "--teacher.base-url", server.base_url], stdout=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and (not teach.output.exists() or len(teach.rows()) < 2):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on" in said and teach.statuses() == ["patched"] * 2
    with FakeServer(always(say(PATCH))) as server:
        code, _ = teach("--teacher.base-url", server.base_url, *CHAT)
        assert code == 0 and len(server.requests) == 4
    assert teach.statuses() == ["patched"] * 6
