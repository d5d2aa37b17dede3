"""Free-form and OCR answers: word error rate and ROUGE, exact and fast enough for hostile lengths.

Both are classical dynamic programmes; the bit-parallel forms used here give the same integers in
O(n) operations on big integers (Hyyro 2003 for edit distance, Crochemore et al. 2001 for LCS), so that a
100 kB completion costs milliseconds and not minutes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

MAX_TOKEN_CHARS = 200
"""Longer tokens are not words; the stemmer is not run on them."""
_SUPERSCRIPT = re.compile("[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_VULGAR = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")
_ASCII = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201b\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
        "\u2044": "/",
        "\u00d7": "x",
        "\u3002": ".",
        "\uff0c": ",",
    }
)


def plain_text(text: str) -> str:
    """NFKC with ASCII dashes, quotes and signs and no invisible characters.

    What NFKC alone would misread is kept apart: a superscript gets a caret (ten squared is "10^2", not
    "102"), a fraction after a digit a blank (three and a half is "3 1/2", not "31/2").

    Args:
        text: Any text.

    Returns:
        The plain form, for reading; the same text again when applied twice.
    """
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0], _VULGAR.sub(" ", text))
    return unicodedata.normalize("NFKC", text).translate(_ASCII)


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance between two token sequences.

    Args:
        reference: m tokens.
        hypothesis: n tokens.

    Returns:
        The least number of insertions, deletions and substitutions.
    """
    if not reference:
        return len(hypothesis)
    size = len(reference)
    mask, top = (1 << size) - 1, 1 << (size - 1)
    where = _positions(reference)
    plus, minus, distance = mask, 0, size
    for token in hypothesis:
        match = where.get(token, 0)
        across = ((((match & plus) + plus) ^ plus) | match | minus) & mask
        grow = minus | (~(across | plus) & mask)
        shrink = plus & across
        if grow & top:
            distance += 1
        elif shrink & top:
            distance -= 1
        grow = ((grow << 1) | 1) & mask
        shrink = (shrink << 1) & mask
        plus = shrink | (~(across | grow) & mask)
        minus = grow & across
    return distance


def common_length(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Length of the longest common subsequence of two token sequences.

    Args:
        reference: m tokens.
        hypothesis: n tokens.

    Returns:
        The length.
    """
    size = len(reference)
    mask = (1 << size) - 1
    where = _positions(reference)
    row = mask
    for token in hypothesis:
        hit = row & where.get(token, 0)
        row = ((row + hit) | (row - hit)) & mask
    return size - row.bit_count()


def _positions(tokens: Sequence[str]) -> dict[str, int]:
    where: dict[str, int] = {}
    for index, token in enumerate(tokens):
        where[token] = where.get(token, 0) | (1 << index)
    return where


def ocr_score(reference: str, hypothesis: str) -> float:
    """1 - word error rate, clipped to [0, 1]; case and punctuation count (Video-R1's OCR reward).

    Args:
        reference: Gold text.
        hypothesis: The student's text.

    Returns:
        The score.
    """
    words = reference.split()
    rate = edit_distance(words, hypothesis.split()) / max(1, len(words))
    return max(0.0, min(1.0, 1.0 - rate))


def fold_words(text: str) -> str:
    """Comparison form for OCR and exact match: NFKC, case folded, punctuation off the ends of words.

    Args:
        text: Any text.

    Returns:
        Words joined by single blanks.
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    stripped = [word.strip(".,;:!?\"'`*()[]{}<>\u201c\u201d\u2018\u2019") for word in words]
    return " ".join(word for word in stripped if word)


def rouge_tokens(text: str) -> list[str]:
    """Tokens of `rouge_score` with the Porter stemmer: lower-case ASCII letters and digits.

    Args:
        text: Any text.

    Returns:
        Stemmed tokens.
    """
    tokenize, stem = _rouge()
    return [stem(token) if 3 < len(token) <= MAX_TOKEN_CHARS else token for token in tokenize(text, None)]


@lru_cache(maxsize=1)
def _rouge() -> tuple[Any, Any]:
    # Imported on first use: nltk pulls scipy in, which takes seconds that MCQ data never needs.
    porter: Any = import_module("nltk.stem.porter")
    rouge: Any = import_module("rouge_score.tokenize")
    return rouge.tokenize, lru_cache(maxsize=65_536)(porter.PorterStemmer().stem)


def rouge_mean(reference: str, hypothesis: str, *, skip_empty_bigrams: bool = False) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L with stemming (Video-R1's free-form reward).

    Args:
        reference: Gold text.
        hypothesis: The student's text.
        skip_empty_bigrams: Leave ROUGE-2 out for a one-word reference, where it is 0 by construction.

    Returns:
        The mean in [0, 1].
    """
    gold, guess = rouge_tokens(reference), rouge_tokens(hypothesis)
    scores = [
        _ngram_f1(gold, guess, 1),
        _ngram_f1(gold, guess, 2),
        _f1(common_length(gold, guess), len(gold), len(guess)),
    ]
    if skip_empty_bigrams and len(gold) < 2:
        del scores[1]
    return max(0.0, min(1.0, sum(scores) / len(scores)))


def _ngram_f1(gold: Sequence[str], guess: Sequence[str], order: int) -> float:
    def ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
        return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))

    gold_counts, guess_counts = ngrams(gold), ngrams(guess)
    overlap = sum((gold_counts & guess_counts).values())
    return _f1(overlap, gold_counts.total(), guess_counts.total())


def _f1(overlap: int, gold: int, guess: int) -> float:
    precision, recall = overlap / max(guess, 1), overlap / max(gold, 1)
    return 2 * precision * recall / (precision + recall) if overlap else 0.0
