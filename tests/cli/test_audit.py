"""`ffr audit leaks`: rates, intervals, bad rows, exit codes, the blind test against a loopback server."""

import json
import random
import re
import subprocess
import sys

import pytest

from ffr.fix.audit import rate_of, read_patches
from ffr.fix.blind import mcnemar, shuffled
from tests.fix.fake_server import FakeServer, Reply, say

QUESTION = {
    "question": "What colour is the ball when it glows?",
    "options": ["A. red", "B. blue", "C. green", "D. yellow"],
    "gold": "B",
    "problem_type": "multiple choice",
}
LEAKING = {"error_types": ["attribute"], "key_frames": [[5, 8]], "guidance": "The ball is blue."}
CLEAN = {"error_types": ["temporal", "attribute"], "key_frames": [[5, 8]], "guidance": "Watch the ball."}


@pytest.fixture
def write(tmp_path):
    def rows(*items):
        path = tmp_path / "patches.jsonl"
        path.write_text("".join(json.dumps({**QUESTION, **item}) + "\n" for item in items))
        return path

    return rows


def test_clopper_pearson_against_the_closed_forms():
    # k = 0: 1 - (alpha/2)^(1/n); k = n: (alpha/2)^(1/n); k = 5 of 10: R's binom.test
    assert rate_of(0, 10).high == pytest.approx(1 - 0.025**0.1, abs=1e-9)
    assert rate_of(10, 10).low == pytest.approx(0.025**0.1, abs=1e-9)
    assert (rate_of(5, 10).low, rate_of(5, 10).high) == pytest.approx((0.187086, 0.812914), abs=1e-6)
    assert (rate_of(0, 0).low, rate_of(0, 0).high) == (0.0, 1.0)
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5) and mcnemar(0, 0) == 1.0


def test_flat_nested_and_empty_patches_are_counted_by_group(ffr, write, tmp_path):
    path = write(
        {**LEAKING, "prompt_config": "none", "label": "direct"},
        {"patch": CLEAN, "prompt_config": "both", "label": "clean"},
        {"patch": None},
        {"error_types": [], "guidance": ""},
    )
    out = tmp_path / "report.json"
    code, text, _ = ffr("audit", "leaks", path, "--json", out, "--threshold", "0.5")
    assert code == 0
    assert "2 patches, 1 leak: 50.0 % [1.3, 98.7]" in text
    report = json.loads(out.read_text())
    tables = report["tables"]
    assert report["num_without_patch"] == 2
    assert tables["prompt configuration"]["none"]["rate"] == 1.0
    assert tables["prompt configuration"]["both"]["rate"] == 0.0
    assert tables["error type"]["attribute"]["rows"] == 2 and tables["error type"]["temporal"]["rows"] == 1
    assert tables["label"]["direct"]["leaks"] == 1 and tables["label"]["clean"]["leaks"] == 0
    assert tables["layer"]["option"]["leaks"] == 1
    assert report["alarms"][0]["row"] == 1
    assert "guidance" in {finding["field"] for finding in report["alarms"][0]["findings"]}


def test_a_rate_above_the_threshold_fails(ffr, write):
    code, text, _ = ffr("audit", "leaks", write(LEAKING, CLEAN), "--threshold", "0.49")
    assert code == 1 and "above the threshold" in text


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({**CLEAN, "gold": "Z"}, "gold"),
        ({**CLEAN, "problem_type": "riddle"}, "problem_type"),
        ({**CLEAN, "label": "bad"}, "label"),
        ({**CLEAN, "error_types": ["smell"]}, "error_types"),
        ({**CLEAN, "key_frames": [[1, 2, 3]]}, "key_frames"),
        ({**CLEAN, "key_frames": 5}, "key_frames"),
        ({**CLEAN, "temporal_markers": [3]}, "temporal_markers"),
        ({**CLEAN, "spatial_regions": [{"frames": [1, 2], "box": [0, 0, 1]}]}, "spatial_regions.box"),
        ({**CLEAN, "guidance": ["look"]}, "guidance"),
        ({"patch": "look"}, "patch"),
        ({}, "guidance"),
    ],
)
def test_a_bad_row_names_file_row_and_field(ffr, write, row, field):
    path = write(CLEAN, row)
    code, _, error = ffr("audit", "leaks", path)
    assert code == 2
    assert f"{path}: row 2: field '{field}'" in error


def test_unusable_files_and_options_are_told(ffr, write, tmp_path):
    assert ffr("audit", "leaks", tmp_path / "no.jsonl")[0] == 2
    code, _, error = ffr("audit", "leaks", write({"patch": None}))
    assert code == 1 and "holds no patch" in error
    code, _, error = ffr("audit", "leaks", write(CLEAN), "--threshold", "7", "--blind-model", "m")
    assert code == 2 and "--threshold 7" in error and "--blind-base-url" in error


def test_shuffling_moves_the_gold_letter_with_its_text(write):
    sample = read_patches(write(CLEAN)).rows[0].sample
    orders = [shuffled(sample, seed) for seed in range(8)]
    assert shuffled(sample, 0, keep=True) is sample
    assert {order.answer_text for order in orders} == {"blue"}
    assert len({tuple(option.text for option in order.options) for order in orders}) > 1


def believer(request, number):
    """Answers what the text states, else by the seed."""
    prompt = request["messages"][0]["content"]
    options = {text: letter for letter, text in re.findall(r"\b([A-D])[.)] ?(\w+)", prompt)}
    stated = re.search(r"The ball is (\w+)\.", prompt)
    letter = options[stated[1]] if stated else "ABCD"[random.Random(request["seed"]).randrange(4)]
    return say(f"<answer>{letter}</answer>")


def test_the_blind_test_tells_a_leak_from_a_pointer(ffr, write, tmp_path):
    out = tmp_path / "report.json"
    with FakeServer(believer) as server:
        words = ("--blind-model", "m", "--blind-base-url", server.base_url, "--json", out)
        assert ffr("audit", "leaks", write(*[LEAKING] * 6), *words)[0] == 0
        leaking = json.loads(out.read_text())["blind"]
        assert len(server.requests) == 36
        assert ffr("audit", "leaks", write(*[CLEAN] * 6), *words)[0] == 0
        clean = json.loads(out.read_text())["blind"]
    assert leaking["patched"] == 1.0 and leaking["lift"] > 0.3
    assert (leaking["wins"], leaking["losses"]) == (6, 0) and leaking["p_value"] == pytest.approx(0.03125)
    assert clean["lift"] == 0.0 and clean["p_value"] == 1.0
    seeds = [request["seed"] for request in server.requests]
    assert all(seeds.count(seed) == len(seeds) / 3 for seed in set(seeds))
    assert all("image" not in json.dumps(request) for request in server.requests)


def test_a_blind_server_that_refuses_is_a_failure_with_its_reason(ffr, write):
    with FakeServer(lambda request, number: Reply(b"no", 401)) as server:
        code, _, error = ffr(
            "audit", "leaks", write(CLEAN), "--blind-model", "m", "--blind-base-url", server.base_url
        )
    assert code == 1 and "answered none of 3 pairs" in error


def test_the_audit_needs_no_torch(write):
    script = (
        "import sys\nfrom ffr.cli.main import main\n"
        f"code = main(['audit', 'leaks', {str(write(CLEAN))!r}])\n"
        "import ffr.fix.blind\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules), 'torch was loaded'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
