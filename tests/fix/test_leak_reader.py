"""The reader's arithmetic, its parts, and the words that give an answer away in other words."""

from __future__ import annotations

import math

import pytest

from ffr.fix.leak import check_leak, inspect, parts_of
from ffr.fix.leak_kin import kin_of, kin_signs, thesaurus
from ffr.fix.leak_reader import MAX_PARTS, Reader, Signs, signs_of, split_sentences
from ffr.fix.leak_target import target_of
from ffr.types import EvidencePatch, Sample

from .test_leak import make_patch, make_sample

BASIN = make_sample("What does the girl wash?", ("A sink", "A bicycle", "A dog"), "A")
COUNT = make_sample("How many times does she dip the brush?", (), "5", "numerical")


def signs(patch: EvidencePatch, sample: Sample) -> Signs:
    seen, target = inspect(patch, sample), target_of(sample)
    return signs_of(seen.passages, parts_of(patch, target), target, seen.reasons, frozenset())


def test_score_is_the_whole_and_the_smooth_maximum_of_the_parts() -> None:
    # -1 + 0.5 + log(exp(2 + 1) + exp(0)): a quiet second sentence hardly moves it, a second loud one does.
    model = Reader(-1.0, 0.0, {"w": 0.5}, {"a": 2.0, "b": 1.0}, frozenset())
    quiet = Signs(frozenset({"w"}), (frozenset({"a", "b"}), frozenset()))
    assert model.score(quiet) == pytest.approx(-0.5 + math.log(math.exp(3) + 1))
    assert model.loudest(quiet) == 0
    assert model.score(Signs(frozenset(), ())) == -1.0
    both = Signs(frozenset(), (frozenset({"a"}), frozenset({"a"})))
    assert model.score(both) == pytest.approx(-1 + 2 + math.log(2))


def test_good_advice_around_a_leaking_sentence_takes_nothing_from_it() -> None:
    model = Reader(0.0, 0.0, {}, {"leak": 4.0, "advice": -3.0}, frozenset())
    alone = model.score(Signs(frozenset(), (frozenset({"leak"}),)))
    among = model.score(Signs(frozenset(), (frozenset({"leak"}), *[frozenset({"advice"})] * 5)))
    assert among >= alone


def test_large_weights_do_not_overflow() -> None:
    model = Reader(0.0, 0.0, {}, {"a": 5000.0}, frozenset())
    assert model.score(Signs(frozenset(), (frozenset({"a"}), frozenset()))) == 5000.0


def test_sentences_and_markers_are_parts_with_hits_of_their_own() -> None:
    patch = make_patch("Watch frames 3-6 again. She dips it three times, so look at the jar.", "the jar")
    parts = parts_of(patch, target_of(COUNT))
    assert [part.passage.raw for part in parts] == [
        "Watch frames 3-6 again.",
        "She dips it three times,",
        "so look at the jar.",
        "the jar",
    ]
    assert [part.passage.field for part in parts] == ["guidance"] * 3 + ["temporal_markers[0]"]
    assert ["number" in dict(part.hits) for part in parts] == [False, True, False, False]


def test_no_text_is_cut_into_more_parts_than_the_limit_and_none_is_lost() -> None:
    found = split_sentences("a. " * 500)
    assert len(found) == MAX_PARTS and "".join(found).count("a.") == 500


def test_the_reason_quotes_the_sentence_that_gave_it_away() -> None:
    sample = make_sample("What colour is the ball when it glows?", ("red", "blue", "green"), "B")
    report = check_leak(make_patch("Look again at frames 5-8. The ball is blue when it glows."), sample)
    finding = report.findings[-1]
    assert (finding.layer, finding.leaked, finding.field) == ("reader", True, "guidance")
    assert "'The ball is blue when it glows.'" in finding.reason


@pytest.mark.parametrize(
    ("words", "sign"),
    [
        ("two before the cut and three after it", "sum:all"),
        ("one on the left, two in the middle and three more", "sum:pair"),
        ("seven in all, and two of them are repeats", "sum:difference"),
        ("one row of five", "sum:product"),
    ],
)
def test_amounts_that_make_the_gold_amount_are_seen(words: str, sign: str) -> None:
    assert sign in signs(make_patch(words), COUNT).whole


def test_amounts_that_make_another_number_say_nothing() -> None:
    assert not [s for s in signs(make_patch("two and then two"), COUNT).whole if s.startswith("sum:")]


def test_thesaurus_goes_both_ways_round() -> None:
    known = thesaurus()
    assert len(known) > 3000
    assert known["sink"]["basin"] == known["basin"]["sink"] == "same"


def test_synonyms_and_telltales_of_the_gold_answer_are_its_kin() -> None:
    kin = kin_of(target_of(BASIN))
    assert kin.gold["basin"] == "same" and kin.gold["tap"] == "tell"
    assert kin.other["bark"] == "tell"
    assert not set(kin.gold) & set(kin.other)
    assert kin_signs(["the", "basin", "with", "the", "tap"], target_of(BASIN)) == {
        *("gold:same", "gold:tell", "gold:same alone", "gold:tell alone", "gold:several")
    }
    assert kin_signs(["the", "leash"], target_of(BASIN)) == {"other:tell"}


def test_words_of_the_question_and_of_several_options_are_nobodys_kin() -> None:
    asked = kin_of(target_of(make_sample("Which basin has a tap?", ("A sink", "A bicycle"), "A")))
    assert "tap" not in asked.gold and "basin" not in asked.gold
    shared = kin_of(target_of(make_sample("What is it?", ("A cup", "A mug"), "A")))
    assert "handl" not in shared.gold and "handl" not in shared.other


def test_numbers_have_no_kin() -> None:
    assert kin_of(target_of(COUNT)).gold == {}
