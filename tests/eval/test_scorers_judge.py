"""The optional judge: what it is asked, what its replies mean; asked once, never guessed for."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ffr.eval import score
from ffr.eval.base import Score, Target
from ffr.eval.scorers.judge import Case, Judge, JudgeConfig, read_reply, request_body, wants_judge
from ffr.types import Option
from tests.fix.fake_server import FakeServer, Reply, say

OPEN = Target("open", "Dolly Zoom", accepted=("Vertigo effect",))
RECORD = {"question": "Which technique is used?"}
OPTIONS = (Option("A", "dunking"), Option("B", "passing"))
CAPTION = Target("caption", "A. dunking", OPTIONS)
CAPTION_RECORD = {"question": "Describe.", "mc_question": "What is he doing?\nA. dunking\nB. passing"}


def grade(server: FakeServer, cache: Path, cases: list[Case], **changes: Any) -> list[Score]:
    async def go() -> list[Score]:
        judge = Judge(JudgeConfig(server.base_url, "j", cache, max_retries=0, timeout_s=10.0, **changes))
        try:
            return await judge.grade(cases)
        finally:
            await judge.aclose()

    return asyncio.run(go())


def by_reply(request: dict[str, Any], number: int) -> Reply:
    reply = request["messages"][1]["content"].rpartition("Reply:\n")[2]
    return say(json.dumps({"answer": "dolly zoom", "correct": "dolly" in reply}))


def test_each_question_is_asked_once_and_kept(tmp_path: Path) -> None:
    cases = [
        Case(OPEN, RECORD, "<think>Hm.</think><answer>a dolly zoom shot, also called vertigo</answer>"),
        Case(OPEN, RECORD, "<answer>tracking shot</answer>"),
        Case(OPEN, RECORD, "<answer>tracking shot</answer>"),
        Case(OPEN, RECORD, ""),
        Case(OPEN, RECORD, "<think>The background gr"),
    ]
    with FakeServer(by_reply) as server:
        first = grade(server, tmp_path / "judge.sqlite", cases)
        assert [s.value for s in first] == [1.0, 0.0, 0.0, 0.0, 0.0]
        assert [s.rule for s in first] == ["judge.verdict"] * 3 + ["none"] * 2
        assert len(server.requests) == 2
        assert grade(server, tmp_path / "judge.sqlite", cases) == first
        assert len(server.requests) == 2  # all from the file
        grade(server, tmp_path / "other.sqlite", cases[:1])
        assert len(server.requests) == 3
        sent = server.requests[0]
    assert (sent["temperature"], sent["model"]) == (0.0, "j")
    asked = sent["messages"][1]["content"]
    assert "Which technique" in asked and "Dolly Zoom / Vertigo effect" in asked and "Hm." not in asked


def test_a_failing_judge_scores_nothing_and_is_asked_again(tmp_path: Path) -> None:
    with FakeServer(
        lambda request, number: Reply(b"no", 500) if number == 0 else by_reply(request, number)
    ) as server:
        case = Case(OPEN, RECORD, "dolly zoom, I think")
        (failed,) = grade(server, tmp_path / "judge.sqlite", [case])
        assert (failed.value, failed.rule, failed.note) == (0.0, "none", "judge_failed:server_error")
        (again,) = grade(server, tmp_path / "judge.sqlite", [case])
        assert again.value == 1.0


def test_captions_are_judged_by_their_question(tmp_path: Path) -> None:
    def answer(request: dict[str, Any], number: int) -> Reply:
        asked = request["messages"][1]["content"]
        assert "What is he doing?\nA. dunking\nB. passing" in asked
        assert "Reference" not in asked  # the answer is not given away
        return say('Thought about it.\n{"answer": "' + ("A" if "dunks" in asked else "NONE") + '"}')

    cases = [Case(CAPTION, CAPTION_RECORD, text) for text in ("He dunks the ball.", "A ball is seen.")]
    with FakeServer(answer) as server:
        first, second = grade(server, tmp_path / "judge.sqlite", cases)
    assert (first.value, first.extracted, first.rule) == (1.0, "A", "judge.caption")
    assert (second.value, second.extracted) == (0.0, "NONE")


@pytest.mark.parametrize(
    ("text", "value", "rule"),
    [
        ('{"answer": "x", "correct": true}', 1.0, "judge.verdict"),
        ('```json\n{"answer": "x", "correct": false}\n```', 0.0, "judge.verdict"),
        ('{"answer": "y", "correct": false} no: {"answer": "x", "correct": true}', 1.0, "judge.verdict"),
        ('{"answer": "x", "correct": "yes"}', 0.0, "none"),
        ("{correct: true}", 0.0, "none"),
        ("Correct", 0.0, "none"),
        ("", 0.0, "none"),
    ],
)
def test_replies(text: str, value: float, rule: str) -> None:
    got = read_reply(OPEN, text)
    assert (got.value, got.rule) == (value, rule)
    assert (got.note == "judge_unreadable") == (rule == "none")


def test_rules_say_when_they_want_one() -> None:
    record = {"question": "Which?", "question_type": "open-ended", "answer": "Dolly Zoom", "choices": {}}
    assert wants_judge(score("mmvu", record, "<answer>a zoom of the dolly kind</answer>"))
    assert not wants_judge(score("mmvu", record, "<answer>dolly zoom</answer>"))
    assert request_body(Case(OPEN, RECORD, "\x00")) is None


def test_no_server_no_judge(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Judge(JudgeConfig("", "j", tmp_path / "judge.sqlite"))


def test_scoring_loads_neither_torch_nor_the_judge() -> None:
    code = (
        "import sys; from ffr.eval import score\n"
        "score('lvbench', {'question': 'Q\\n(A) a\\n(B) b', 'answer': 'A'}, 'A')\n"
        "print({'torch', 'transformers', 'openai', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
