"""A wrong configuration is refused with the key, its origin, what is allowed and the nearest name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffr.cli.errors import ConfigError
from ffr.cli.schema import SECTIONS, SETTINGS, find_setting
from ffr.cli.settings import load_config, parse_overrides, suggest, to_json
from ffr.config import Config


@pytest.fixture
def toml(tmp_path):
    def write(text, name="run.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def problem_of(files=(), words=()):
    with pytest.raises(ConfigError) as caught:
        load_config(files, parse_overrides(words, flags=["--dry-run"]))
    return str(caught.value)


def test_nothing_given_is_the_papers_setting():
    assert load_config() == Config()


def test_later_files_win_and_flags_win_over_files(toml):
    first = toml("[reason]\npatch_tax = 0.1\nkl_beta = 0.0\n[find]\ngroup_size = 4\n", "a.toml")
    second = toml("[reason]\npatch_tax = 0.5\n", "b.toml")
    cfg = load_config([first, second], parse_overrides(["--find.group-size", "2"]))
    assert (cfg.reason.patch_tax, cfg.reason.kl_beta, cfg.find.group_size) == (0.5, 0.0, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[find]\ngroup_sise = 4\n", ["find.group_sise", "did you mean find.group_size?", "find knows:"]),
        ("[reasn]\npatch_tax = 0.3\n", ["reasn: no such setting", "did you mean reason?"]),
        ("patch_tax = 0.3\n", ["patch_tax: no such setting", "did you mean reason.patch_tax?"]),
        ("[fix.teacher]\nbase_ulr = 'x'\n", ["fix.teacher.base_ulr", "did you mean fix.teacher.base_url?"]),
        ("[[data.sources]]\npath='a'\nroot='b'\nwieght=1\n", ["data.sources.0.wieght", "weight"]),
        ("[[data.sources]]\npath='a'\n", ["data.sources.0.root", "required", "a path"]),
        ("[reason]\npatch_tax = -1\n", ["reason.patch_tax", "a number >= 0", "-1", "default 0.3", "eq. 8"]),
        ("[reason]\nscale = 'stdd'\n", ["reason.scale", "one of std, none", "'stdd'"]),
        ("[find]\ntop_p = 1.5\n", ["find.top_p", "> 0 and <= 1", "1.5"]),
        ("[find]\ngroup_size = 2.5\n", ["find.group_size", "a whole number >= 1", "2.5"]),
        ("[find]\ngroup_size = true\n", ["find.group_size", "true or false", "a whole number >= 1"]),
        ("[train]\nlearning_rate = inf\n", ["train.learning_rate", "a number > 0", "inf"]),
        ("[train]\nreport_to = ['wandb', 'tb']\n", ["train.report_to", "tensorboard, wandb, trackio"]),
        ("find = 3\n", ["find", "a section", "3"]),
        ("[model]\npath = 7\n", ["model.path", "a text", "7"]),
        ("[observe]\nmin_frame_px = 999999\n", ["observe.min_frame_px (999999)", "max_frame_px (100352)"]),
        ("[find\n", ["not valid TOML", "line 1"]),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(toml, text, words):
    path = toml(text)
    message = problem_of([path])
    assert str(path) in message
    assert [word for word in words if word not in message] == []


def test_all_problems_are_told_at_once(toml):
    path = toml("[find]\ngroup_size = 0\n[reason]\nscale = 'x'\n[nothing]\na = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config([path])
    assert len(caught.value.problems) == 3


def test_the_file_that_set_a_value_is_named_not_the_last_one(toml):
    bad = toml("[find]\ngroup_size = 0\n", "bad.toml")
    good = toml("[reason]\npatch_tax = 0.1\n", "good.toml")
    message = problem_of([bad, good])
    assert "bad.toml" in message
    assert "good.toml" not in message


def test_a_missing_file_lists_its_neighbours(toml):
    path = toml("", "there.toml")
    message = problem_of([path.with_name("ther.toml")])
    assert "ther.toml: no such file" in message
    assert "there.toml" in message


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"a = '\xff\xfe'")
    assert "not UTF-8" in problem_of([path])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--find.groupsize", "4"], ["--find.groupsize: no such setting", "did you mean --find.group-size?"]),
        (["--dry-rum"], ["--dry-rum", "did you mean --dry-run?"]),
        (["--reason.patch-tax"], ["--reason.patch-tax: value missing", "a number >= 0"]),
        (["--reason.patch-tax", "--train.cpu"], ["--reason.patch-tax: value missing"]),
        (["--reason.patch-tax", "-1"], ["--reason.patch-tax: must be a number >= 0, is '-1'"]),
        (["--reason.patch-tax=much"], ["--reason.patch-tax: must be a number >= 0, is 'much'"]),
        (["--find.group-size", "none"], ["--find.group-size", "a whole number >= 1"]),
        (["--train.report-to", "[wandb"], ["--train.report-to", "not a TOML list"]),
        (["--data.sources.0.root", "x"], ["--data.sources.0.root: there is no item 0"]),
        (["stray"], ["'stray': unexpected", "--section.key VALUE"]),
    ],
)
def test_a_wrong_flag_is_refused_by_its_own_name(words, expected):
    message = problem_of(words=words)
    assert [word for word in expected if word not in message] == []


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        (["--train.cpu"], "train", "cpu", True),
        (["--train.cpu", "false"], "train", "cpu", False),
        (["--train.cpu", "--find.group-size", "2"], "train", "cpu", True),
        (["--data.num-samples", "none"], "data", "num_samples", None),
        (["--data.num_samples=7"], "data", "num_samples", 7),
        (["--train.report-to", "wandb,trackio"], "train", "report_to", ("wandb", "trackio")),
        (["--train.report-to", "['wandb']"], "train", "report_to", ("wandb",)),
        (["--reason.scale", "none"], "reason", "scale", "none"),
        (["--train.learning-rate", "1e-6"], "train", "learning_rate", 1e-6),
        (["--model.path", "5"], "model", "path", "5"),
    ],
)
def test_flags_are_read_as_what_the_setting_takes(words, section, key, value):
    assert getattr(getattr(load_config([], parse_overrides(words)), section), key) == value


def test_one_item_of_a_list_is_set_by_its_index(toml):
    path = toml("[[data.sources]]\npath = 'a'\nroot = 'b'\n[[data.sources]]\npath = 'c'\nroot = 'd'\n")
    cfg = load_config([path], parse_overrides(["--data.sources.1.root", "elsewhere"]))
    assert [str(source.root) for source in cfg.data.sources] == ["b", "elsewhere"]
    assert "there is no item 2" in problem_of([path], ["--data.sources.2.root", "x"])


def test_the_table_of_settings_is_the_configuration():
    flat = {}
    for name, section in Config().model_dump(mode="json").items():
        for key, value in section.items():
            if f"{name}.{key}" in SECTIONS:
                flat |= {f"{name}.{key}.{leaf}": v for leaf, v in value.items()}
            else:
                flat[f"{name}.{key}"] = value
    assert set(flat) == set(SETTINGS)
    assert {key: setting.default for key, setting in SETTINGS.items() if setting.kind != "array"} == {
        key: value for key, value in flat.items() if SETTINGS[key].kind != "array"
    }


def test_the_resolved_configuration_reads_back(toml):
    cfg = load_config([toml("[[data.sources]]\npath='a'\nroot='b'\n[find]\ngroup_size=4\n")])
    assert Config.model_validate(json.loads(to_json(cfg))) == cfg


@given(st.sampled_from(sorted(SETTINGS)), st.data())
def test_one_lost_letter_finds_the_setting(key, data):
    leaf_at = key.rindex(".") + 1
    position = data.draw(st.integers(leaf_at, len(key) - 1))
    broken = key[:position] + key[position + 1 :]
    if find_setting(broken) is None and len(key) - leaf_at > 4:
        assert suggest(broken).startswith("; did you mean ")


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_are_read_or_refused_never_worse(words):
    try:
        cfg = load_config([], parse_overrides(words))
    except ConfigError as error:
        assert error.problems
    else:
        assert isinstance(cfg, Config)


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=12))
def test_any_value_is_taken_or_refused_by_name(key, text):
    try:
        cfg = load_config([], [(key, text)])
    except ConfigError as error:
        assert SETTINGS[key].flag in str(error) or key in str(error)
    else:
        assert isinstance(cfg, Config)
