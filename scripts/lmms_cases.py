"""Generated outputs on records of our own, to compare our `lmms_eval` profile with the real package.

Standard library only: it runs in the environment of lmms-eval too. The same seed gives the same cases.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lmms_questions import LETTERS, Question, questions

SEED = 20261121


@dataclass(frozen=True)
class Case:
    """One output on one question."""

    question: Question
    style: str
    output: str


def cases(seed: int = SEED, per_benchmark: int = 1000) -> list[Case]:
    """Outputs for every benchmark: written styles on each question, then random mixtures of fragments."""
    rng = random.Random(seed)
    out: list[Case] = []
    for group in questions().values():
        tricky = [Case(q, "tricky", text) for q in group for text in _tricky(q)]
        written = [
            Case(q, style, text)
            for q in group
            for style, text in (*_styles(q, group[0] is q), *_own_styles(q))
        ]
        rng.shuffle(tricky)
        rng.shuffle(written)
        found = [*tricky[: per_benchmark // 2], *written[: per_benchmark // 3]]
        while len(found) < per_benchmark:
            question = rng.choice(group)
            found.append(Case(question, "mixture", _mixture(question, rng)))
        out += found
    return out


def _styles(q: Question, first: bool) -> Iterator[tuple[str, str]]:
    for said, text in ((q.gold, q.gold_text), (q.wrong, q.wrong_text)):
        for form in _CLEAN:
            yield "clean", form.format(a=said, t=text, l=said.lower(), u=text.upper())
        for form in _TAGGED:
            yield "tagged", form.format(a=said, t=text, w=q.wrong, x=q.wrong_text)
        for form in _VERBOSE:
            yield "verbose", form.format(a=said, t=text, w=q.wrong, x=q.wrong_text, g=q.gold_text)
        for form in _TRUNCATED:
            yield "truncated", form.format(a=said, t=text, w=q.wrong, x=q.wrong_text)
    for text in _OTHER if first else _OTHER[::5]:
        yield "other", text
    yield "options", " ".join(q.texts)
    yield "options", "\n".join(f"{LETTERS[i % 10]}. {t}" for i, t in enumerate(q.texts))


_CLEAN = (
    *(
        "{a}",
        "{a}.",
        "({a})",
        "{a})",
        "[{a}]",
        "{a}:",
        "{l}",
        "({l})",
        "{l}.",
        " {a} ",
        "\n{a}\n",
        "**{a}**",
        "'{a}'",
    ),
    *(
        '"{a}"',
        "{a}. {t}",
        "{a}: {t}",
        "{a}) {t}",
        "({a}) {t}",
        "{a} {t}",
        "{a}.{t}",
        "{l}. {t}",
        "{t}",
        "{u}",
        "{t}.",
    ),
    *(
        "Answer: {a}",
        "answer: {l}",
        "The answer is {a}.",
        "The answer is ({a}).",
        "The best answer is {a}",
        "Option {a}",
    ),
    *(
        "The correct option is {a}",
        "Best option:({a}",
        "{a},",
        "{a};",
        "{a}!",
        "{a}?",
        "{a}\n\n{t}",
        "$\\boxed{{{a}}}$",
    ),
    *(
        "{a}.\n{t}",
        "{a}. {t}\nDone",
        "{a}\u3002",
        "\uff08{a}\uff09",
        "{a}\u00a0",
        "\u200b{a}",
        "answer = {a}",
        "{a} / {t}",
    ),
)
_TAGGED = (
    *("<answer>{a}</answer>", "<answer> {a}. {t} </answer>", "<think>It is {x}.</think><answer>{a}</answer>"),
    *(
        "<think>Not {w}, I think.</think>{a}",
        "<think>a b c</think>\n\nThe answer is {a}.",
        "It is {x}.</think>{a}",
    ),
    *(
        "<think></think>{a}",
        "<analysis>{w}?</analysis> {a}",
        "<THINK>{w}</THINK>{a}",
        "{w}</think>{w}</think>{a}",
    ),
    *(
        "<think>{w}<think>{w}</think>{a}</think>",
        "<think>{w}</think>{a}<think>{w}</think>",
        "</think>{a}<think>",
    ),
    *(
        "<analysis><think>{w}</analysis>{a}</think>",
        "<think>{w}</think>\n<answer>\n{a}\n</answer>",
        "<answer>{a}",
    ),
)
_VERBOSE = (
    "First, a man enters the room. Then {x} can be ruled out. Final Answer: {a}",
    "Let me think about a few options. A box is seen, so the answer is {a}. {t}",
    "The video shows {x} at first, but later {t}. Therefore, the answer is ({a}).",
    "Option {w} is wrong because it never happens. So, {a} is correct.",
    "I choose {a}, not {w}.",
    "Both {w} and {a} look plausible; I pick {a}",
    "Because the camera moves, I believe that {t} is what happens in the end",
    "{x}? No. {t}? Yes.",
    "Step 1: count. Step 2: compare.\nStep 3: the result is {t}\nThe final answer is {a}",
    "{w}. {x}\n{a}. {t}\n\nMy answer is {a}",
    "It could be {w} or {a} or {t}. Thus {t}",
    "A: {x}\nB: {t}\nanswer is {a}: {t}",
    "\u7b54\u6848\u662f{a}",
    "\uc815\ub2f5\uc740 {a}",
    "\u7b54\u3048\u306f {a} \u3067\u3059",
    "{g} " * 30 + "{a}",
)
_TRUNCATED = (
    *(
        "<think>First we see {x}, then a",
        "<think>The options are A, B and {w}. The",
        "<think>{a}",
        "<answer>{t}",
        "The ans",
    ),
    *("<think>{x}</thi", "{t:.3}", "Let's see: {x} is", "<analysis>the first option A"),
)
_OTHER = (
    *(
        ". : () ' error None null N/A nan inf - a A I yes no Yes. NO nope yesterday ABCD BAD E F Z 0 7 -3 "
        "3.5 10.0 1,000 2,500.5 65% twenty-one 1e3 hundred O(n^2) 1/2 1 2 A) A.B. <answer></answer> "
        "<think></think> </think> <think> </think></think> <think>a</think> <answer> x=3=4 "
    ).split(),
    *(
        "API Error|No, it does not.|Nothing happens.|Yes and no|Not sure|"
        "I'm sorry, but I can't help with that.|I cannot determine the answer from the video.|"
        "As an AI model, no.|A, B|A and C|A B C D|(A) (B)|A or B|a man|a b|d e f|2 or 3|"
        "three hundred and five|two thousand and six|There are 3 boxes.|One apple, room 2|about 4 m|"
        "4 or 5 isomers|1.5e-3 m|x = 4|approx. 12.97 g/mol|the total is 12.970 and has 3|n log n|Option 1|"
        "option 2|Option 2.|Sentence A|Caption B|it is it is it is|so so so|= 3|The answer is|The answer|"
        "has ."
    ).split("|"),
    *(
        "",
        " ",
        "\n\n",
        "\u0663",
        "o (n\xb2)",
        "\u0410",
        "\uff22",
        "\u2160",
        "\xdf",
        "\u0130",
        "\U0001f600 B",
        "\ufeffB",
        "B\x00",
        "\u202eB",
        "\u0d85",
        "B\r\n",
        "\tB",
        "1. ",
        "Option 1: ",
        "B) ",
        "is ",
        "answer ",
    ),
)


_TRICKY = (
    "Maybe {w}: {x}, or {a}. {t} or so",
    "Maybe ({w}), or {a}: or {w}. or so",
    "Say {w}) then ({a}) then {w} then",
    "I think {a}.",
    "I think {w}. No: {a}.{t}",
    "{x} {w}? rather {a} then",
    "{a}.{t}\nend",
    "{a}.\n\n{t}",
    "1,234 cups({a})now",
    "cups({a})now",
    "1,234 [{a}] ; x",
    ". " * 33 + "x.{l}.y",
    ". " * 31 + "x.{l}.y",
    "y={a}\nso what",
    "so what\ny={a}",
    "{a} is ?",
    "it is {a} is it",
    "it runs in o(n log n)",
    "it is dfs",
    "{a} and",
    "twenty and one chairs",
    "one hundred and eighty, two",
    "two or twenty-one",
    "-{a}",
    "{a}e1",
    "{a},{a}",
    "{l}",
    "2",
    "2.",
    "{w} {a}</think>",
    "Best answer: {a}",
    "The answer {w} is {a}",
    "{a} {w} {a} {w}",
    "the answer is not {w} but {a}, i pick {a}",
)
"""Strings on which two readings of a rule differ; all are on every question."""


def _tricky(q: Question) -> list[str]:
    return [
        text.format(a=q.gold, l=q.gold.lower(), t=q.gold_text, w=q.wrong, x=q.wrong_text) for text in _TRICKY
    ]


def _own_styles(q: Question) -> Iterator[tuple[str, str]]:
    """Outputs in the words of the question's own kind."""
    for text in q.texts:
        yield "option_text", text
        yield "option_text", text.lower().rstrip(".")
        yield "option_text", f"In the video, {text} "
        yield "option_text", f"A) {text}"
        yield "option_text", f"After some thought I would say that it is {text.upper()}, really"
    for said in (q.gold, q.wrong):
        yield "words", f"{said} m"
        yield "words", f"approximately {said}"
        yield "words", f"= {said}"
        yield "words", f"between 1 and {said}"
        yield "words", f"{said}, {q.gold}"


_FRAGMENTS = (
    *"A B C D E F G a b c d e I O 1 2 3 10 0 9.5 1,000 -4 1e3 .5 (A) (B) A. B. C: D) yes no No Yes".split(),
    *". , : ; ! ? ' \" ( ) [ ] { } < > / \\ _ - + = @ ` * $ ... O(n^2) one twenty hundred and so".split(),
    *"<think> </think> <answer> </answer> <analysis> </analysis> answer Answer: thousand is".split(),
    *"the answer is|Option 1|Option 2|Sentence A|not|a man|The best option is|I pick|i choose|has".split("|"),
    *(
        "The correct answer is",
        "A ",
        " B ",
        "\n",
        "\n\n",
        " ",
        "  ",
        "\t",
        "\u2003",
        "\x1c",
        "\x85",
        "\ud800",
    ),
    *("\u7b54\u6848\u662f", "\u00e9", "\u4e2d", "\u00b2", "\u0663", "\u0130", "\U0001f600"),
)


def _mixture(q: Question, rng: random.Random) -> str:
    pool = (*_FRAGMENTS, q.gold, q.wrong, q.gold_text, q.wrong_text, *q.texts)
    glue = rng.choice(("", " ", " ", "\n", ". "))
    return glue.join(rng.choice(pool) for _ in range(rng.randint(1, rng.choice((2, 4, 8, 40)))))
