"""Records of our own, in the official shape and as lmms-eval's `doc`; standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """A record in the official file's shape, the same as lmms-eval's `doc`, and what answers it."""

    benchmark: str
    task: str
    """Key of the table of lmms-eval's tasks in `lmms_parity.py`."""
    record: dict[str, Any]
    doc: dict[str, Any]
    gold: str
    """What a good model says: a letter, a number, words."""
    gold_text: str
    wrong: str
    wrong_text: str
    texts: tuple[str, ...]
    """Options, for outputs that quote them."""


def questions() -> dict[str, list[Question]]:
    """Records of our own by benchmark."""
    return {
        "mmvu": [*_mmvu()],
        "vsi_bench": [*_vsi_bench()],
        "video_mmmu": [*_video_mmmu()],
        "video_holmes": [*_video_holmes()],
        "longvideobench": [*_longvideobench()],
        "lvbench": [*_lvbench()],
        "mvbench": [*_mvbench()],
        "tempcompass": [*_tempcompass()],
    }


_SETS = (
    (
        "Which tool is picked up second?",
        ("a wooden spoon", "an apple", "the red cup", "a blue box", "the door"),
    ),
    (
        "How does the solution change?",
        ("it turns blue", "a precipitate forms", "it boils", "no change", "it freezes"),
    ),
    ("What is the value?", ("10", "12.5 m/s", "0.37", "1,200 kg", "7")),
    (
        "Why does she leave?",
        ("Deceived by A person", "E. coli outbreak", "Not sure", "The plan B failed", "Yes, she must"),
    ),
)


def _choice(index: int, num: int) -> tuple[str, tuple[str, ...], str, str]:
    """Question, options, gold letter and another letter; golds go round."""
    question, texts = _SETS[index % len(_SETS)]
    texts = tuple((texts * 3)[i] + (f" ({i})" if i >= 5 else "") for i in range(num))
    return question, texts, LETTERS[index % num], LETTERS[(index + 2) % num]


def _lettered(
    benchmark: str, task: str, index: int, num: int, record: dict[str, Any], doc: dict[str, Any]
) -> Question:
    _, texts, gold, wrong = _choice(index, num)
    at = LETTERS.index
    return Question(benchmark, task, record, doc, gold, texts[at(gold)], wrong, texts[at(wrong)], texts)


def _mmvu() -> Iterator[Question]:
    for i, subject in enumerate(("Chemistry", "Art", "Computer_Science", "Unknown_Subject", "Law")):
        question, texts, gold, _ = _choice(i, 5)
        record = {
            "id": f"validation_{i}",
            "video": f"https://example.org/videos/{subject}/{i}.mp4",
            "question_type": "multiple-choice",
            "metadata": {"subject": subject},
            "question": question,
            "choices": dict(zip(LETTERS, texts, strict=False)),
            "answer": gold,
        }
        yield _lettered("mmvu", "mmvu", i, 5, record, {**record, "video_path": f"videos/{subject}/{i}.mp4"})
    golds = (
        "Dolly Zoom",
        "3 m/s",
        "O(n\u00b2)",
        "Depth-First Search (DFS)",
        "the go to it",
        "12.97",
        "is a",
        "(DFS)",
        "O(n log n) time",
    )
    wrongs = ("pan shot", "7 m/s", "O(n)", "BFS", "somewhere", "13", "was", "BFS", "O(n) time")
    for i, (gold, wrong) in enumerate(zip(golds, wrongs, strict=True)):
        record = {
            "id": f"validation_{10 + i}",
            "video": f"https://example.org/videos/Art/{i}.mp4",
            "question_type": "open-ended",
            "metadata": {"subject": "Art"},
            "question": "Name it.",
            "choices": dict.fromkeys("ABCDE", ""),
            "answer": gold,
        }
        doc = {**record, "video_path": f"videos/Art/{i}.mp4"}
        yield Question("mmvu", "mmvu", record, doc, gold, gold, wrong, wrong, (gold, wrong))


def _vsi_bench() -> Iterator[Question]:
    kinds = ("object_rel_distance", "object_rel_direction_hard", "route_planning", "obj_appearance_order")
    for i, kind in enumerate(kinds):
        question, texts, gold, _ = _choice(i, (4, 3, 2, 4)[i])
        options = [f"{LETTERS[k]}. {t}" for k, t in enumerate(texts)]
        record = _vsi_row(i, kind, question, gold, options)
        yield _lettered("vsi_bench", "vsi_bench", i, len(texts), record, record)
    numbers = ("4", "2.5", "21", "180", "10", "35.75")
    kinds = (
        "object_counting",
        "object_abs_distance",
        "object_counting",
        "object_size_estimation",
        "room_size_estimation",
    )
    for i, gold in enumerate(numbers):
        record = _vsi_row(10 + i, kinds[i % 5], "How many?", gold, None)
        wrong = f"{float(gold) * (1.1, 0.8, 1.5, 2, 1.2, 0.55)[i]:g}"
        yield Question(
            "vsi_bench", "vsi_bench", record, record, gold, f"{gold} things", wrong, f"{wrong} m", ()
        )


def _vsi_row(index: int, kind: str, question: str, gold: str, options: list[str] | None) -> dict[str, Any]:
    return {
        "id": index,
        "dataset": "scannet",
        "scene_name": f"scene{index:04d}_00",
        "question_type": kind,
        "question": question,
        "ground_truth": gold,
        "options": options,
    }


def _video_mmmu() -> Iterator[Question]:
    tracks = (("perception", 10), ("comprehension", 4), ("adaptation", 7), ("adaptation", 10))
    for i, (track, num) in enumerate(tracks):
        question, texts, gold, _ = _choice(i + 1, num)
        options = [f"{LETTERS[k]}. {t}" if i % 2 else t for k, t in enumerate(texts)]
        record = _mmmu_row(i, question, options, gold, "multiple-choice")
        yield _lettered("video_mmmu", f"video_mmmu_{track}", i + 1, num, record, record)
    golds = ("12.97", "A", "0.5", "1,200", "Depth first", "['24/7', '3.429', '3.43]", "-4")
    for i, gold in enumerate(golds):
        record = _mmmu_row(10 + i, "Compute it. <image 1>", [], gold, None if i == 2 else "open")
        yield Question(
            "video_mmmu", "video_mmmu_adaptation", record, record, gold, gold, "13", "thirteen", (gold,)
        )


def _mmmu_row(index: int, question: str, options: list[str], gold: str, kind: str | None) -> dict[str, Any]:
    return {
        "id": f"validation_Chemistry_{index}",
        "question": question,
        "options": options,
        "answer": gold,
        "question_type": kind,
    }


def _video_holmes() -> Iterator[Question]:
    for i in range(6):
        question, texts, gold, _ = _choice(i, 6)
        record = {
            "video ID": f"film{i}",
            "Question ID": i,
            "Question Type": ("SR", "IMC", "TCI", "TA", "MHR", "PAR")[i],
            "Question": question,
            "Options": dict(zip(LETTERS, texts, strict=False)),
            "Answer": gold,
            "Explanation": "",
        }
        yield _lettered("video_holmes", "video_holmes", i, 6, record, record)


def _longvideobench() -> Iterator[Question]:
    for i in range(6):
        num = 5 - i % 2
        question, texts, gold, _ = _choice(i, num)
        shared = {
            "video_id": f"v{i}",
            "id": f"v{i}_0",
            "video_path": f"v{i}.mp4",
            "subtitle_path": f"v{i}_en.json",
            "question": question,
            "question_wo_referring_query": question,
            "correct_choice": LETTERS.index(gold),
            "question_category": "TOS",
            "topic_category": "NP-News-Programs",
            "level": "L2-Relation",
            "duration_group": 600,
            "duration": 190.5,
            "position": [10, 20],
            "starting_timestamp_for_subtitles": 0,
        }
        padded = (*texts, "N/A")[:5]
        doc = shared | {f"option{k}": text for k, text in enumerate(padded)}
        record = shared | {"candidates": list(texts)}
        yield _lettered("longvideobench", "longvideobench", i, num, record, doc)


def _lvbench() -> Iterator[Question]:
    for i in range(6):
        question, texts, gold, _ = _choice(i, 4)
        record = {
            "key": f"yt{i}",
            "video_path": f"yt{i}.mp4",
            "uid": str(5000 + i),
            "question": question + "\n" + "\n".join(f"({LETTERS[k]}) {t}" for k, t in enumerate(texts)),
            "answer": gold,
            "question_type": ["event understanding"],
            "time_reference": "04:19-04:25",
        }
        yield _lettered("lvbench", "lvbench", i, 4, record, record)


def _mvbench() -> Iterator[Question]:
    for i in range(6):
        num = (3, 4, 5, 2, 4, 3)[i]
        question, texts, gold, _ = _choice(i, num)
        record = {
            "video": f"{i}.mp4",
            "question": question,
            "candidates": list(texts),
            "answer": texts[LETTERS.index(gold)],
        }
        yield _lettered("mvbench", "mvbench", i, num, record, record)


def _tempcompass() -> Iterator[Question]:
    for i in range(4):
        question, texts, gold, _ = _choice(i, (4, 3, 4, 2)[i])
        lines = [f"{LETTERS[k]}. {t}" for k, t in enumerate(texts)]
        record = _compass_row("multi-choice", "\n".join((question, *lines)), lines[LETTERS.index(gold)])
        yield _lettered("tempcompass", "tempcompass_multi_choice", i, len(texts), record, record)
    for gold, wrong in (("yes", "no"), ("no", "yes")):
        record = _compass_row("yes_no", "Is the dog running?", gold)
        texts = (f"{gold.title()}, it is.", f"{wrong.upper()}!")
        yield Question(
            "tempcompass", "tempcompass_yes_no", record, record, gold, texts[0], wrong, texts[1], texts
        )
    for word, names in (("Option", "12"), ("Sentence", "AB"), ("Caption", "AB")):
        lines = [
            f"{word} {n}: {t}"
            for n, t in zip(names, ("The ball gets bigger.", "The ball shrinks."), strict=True)
        ]
        record = _compass_row("caption_matching", "\n".join(("Which fits?", *lines)), lines[1])
        texts = (*lines, *(line.split(": ")[1] for line in lines), *(line.split(":")[0] for line in lines))
        said = [line.split(":")[0] for line in lines]
        yield Question(
            "tempcompass",
            "tempcompass_caption_matching",
            record,
            record,
            said[1],
            lines[1],
            said[0],
            lines[0],
            texts,
        )
    record = _compass_row("captioning", "Describe the video.", "") | {
        "mc_question": "What is it?\nA. a dog\nB. a cat",
        "mc_answer": "A. a dog",
    }
    del record["answer"]
    yield Question(
        "tempcompass", "tempcompass_captioning", record, record, "A dog runs.", "a dog", "A cat.", "a cat", ()
    )


def _compass_row(task: str, question: str, answer: str) -> dict[str, Any]:
    return {"video_id": "v1", "question": question, "answer": answer, "dim": "action", "task": task}
