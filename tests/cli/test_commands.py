"""The commands from the outside: exit codes, messages, imports, and what `ffr train` hands to the engine."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ffr.cli.train import planned_steps
from ffr.config import Config, FixConfig, TeacherConfig
from ffr.fix import NoTeacherError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    """A question file with one clip that exists and one that does not."""
    root = tmp_path / "videos"
    root.mkdir()
    (root / "1.mp4").write_bytes(b"not looked at by the reader")
    rows = [
        {
            "problem_id": number, "problem": "Which way?", "data_type": "video",
            "problem_type": "multiple choice", "options": ["A. left", "B. right"],
            "solution": "<answer>B</answer>", "path": f"./{number}.mp4",
        }
        for number in (1, 2)
    ]  # fmt: skip
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(rows))
    config = tmp_path / "run.toml"
    config.write_text(
        f"[data]\nnum_samples = 2\n[[data.sources]]\npath = '{questions}'\nroot = '{root}'\n"
        f"[report]\noutput_dir = '{tmp_path / 'out'}'\ndisplay = 'plain'\n"
        "[fix.teacher]\ntype = 'oracle'\n"
    )
    return config


@pytest.fixture
def engine(monkeypatch):
    """Stands in for the TRL engine: records its call, then does what `calls.act` says."""

    class Calls(list):
        act = staticmethod(feed_one_step)

    calls = Calls()

    def train(cfg, samples, *, teacher, sinks=(), resume=False):
        calls.append(types.SimpleNamespace(cfg=cfg, samples=samples, teacher=teacher, resume=resume))
        calls.act(sinks)

    package = types.ModuleType("ffr.engines.trl")
    package.train, package.EngineConfigError = train, EngineConfigError
    checkpoint = types.ModuleType("ffr.engines.trl.checkpoint")
    checkpoint.CheckpointError = CheckpointError
    ranks = types.ModuleType("ffr.engines.trl.ranks")
    ranks.PeerError = PeerError
    for module in (package, checkpoint, ranks):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


class EngineConfigError(ValueError):
    """The engine's own, without its imports."""


class CheckpointError(RuntimeError):
    """The engine's own, without its imports."""


class PeerError(RuntimeError):
    """The engine's own, without its imports."""


def feed_one_step(sinks):
    for sink in sinks:
        sink.metrics(1, {"find/first_pass_accuracy": 0.5, "train/loss": 1.0})
        sink.finish({"steps": 1.0})


def failing_with(error):
    def act(sinks):
        raise error

    return act


def test_help_lists_the_commands_and_loads_no_torch():
    code = (
        "import sys\nfrom ffr.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'transformers', 'trl', 'av'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "trace", "report", "doctor"):
        assert command in done.stdout


def test_a_dry_run_loads_no_torch_and_no_model():
    code = (
        "import sys\nfrom ffr.cli.main import main\n"
        "assert main(['train', '-c', 'configs/ffr_qwen2_5vl_7b.toml', '--dry-run']) == 0\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["path"] == "Qwen/Qwen2.5-VL-7B-Instruct"


def test_version(ffr):
    code, out, _ = ffr("--version")
    assert code == 0
    assert out.startswith("ffr 0.")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_a_dry_run_prints_the_resolved_configuration(ffr, path):
    code, out, _ = ffr("train", "-c", path, "--dry-run", "--find.group-size", "4")
    assert code == 0
    resolved = Config.model_validate(json.loads(out))
    assert resolved.find.group_size == 4
    assert resolved.report.output_dir.name == path.stem or path.stem == "demo"


def test_several_files_may_follow_one_flag(ffr, tmp_path):
    (tmp_path / "a.toml").write_text("[find]\ngroup_size = 3\n")
    (tmp_path / "b.toml").write_text("[reason]\npatch_tax = 0.0\n")
    code, out, _ = ffr("train", "-c", tmp_path / "a.toml", tmp_path / "b.toml", "--dry-run")
    assert code == 0
    assert json.loads(out)["find"]["group_size"] == 3
    assert json.loads(out)["reason"]["patch_tax"] == 0.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--find.groupsize", "4"], "did you mean --find.group-size?"),
        (["train", "-c", "nowhere.toml"], "nowhere.toml: no such file"),
        (["train", "-c"], "--config: value missing"),
        (["train", "extra"], "'extra': unexpected"),
        (["trian"], "trian"),
        (["report"], "RUN"),
        (["trace", "open", "--brwoser", "x"], "brwoser"),
    ],
)
def test_a_wrong_command_exits_with_2_and_says_why(ffr, words, expected):
    code, out, err = ffr(*words)
    assert code == 2
    assert expected.lower() in err.lower()
    assert out == ""


def test_help_of_train_lists_every_setting_with_its_documentation(ffr):
    code, out, _ = ffr("train", "--help")
    flat = " ".join(out.split())
    assert code == 0
    for words in ("--dry-run", "--reason.patch-tax a number >= 0 kappa, eq. 8 (paper: 0.3). (default 0.3)"):
        assert words in flat
    assert "ffr train -c configs/ffr_qwen2_5vl_7b.toml --dry-run" in flat
    assert "[[data.sources]]" in flat


def test_train_hands_samples_teacher_and_sinks_to_the_engine(ffr, engine, source, tmp_path):
    code, out, _ = ffr("train", "-c", source)
    (call,) = engine
    assert code == 0
    assert [sample.answer for sample in call.samples] == ["B"]
    assert call.teacher.name.startswith("oracle")
    assert call.resume is False
    assert "data: 1 of 2 rows can be used" in out
    assert "WARNING: 1 rows were skipped: 1 missing" in out
    assert "questions.json: path: missing" in out
    assert "2.mp4" in out
    assert "step 1/1  first 50%" in out
    (row,) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["train/loss"] == 1.0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["fix"]["teacher"]["type"] == "oracle"


def test_a_second_run_into_the_same_folder_needs_resume(ffr, engine, source):
    assert ffr("train", "-c", source)[0] == 0
    code, _, err = ffr("train", "-c", source)
    assert code == 1
    assert "holds a run already (metrics.jsonl)" in err
    assert len(engine) == 1
    with pytest.warns(UserWarning, match="goes on at 1"):  # the stand-in engine starts at step 1 again
        assert ffr("train", "-c", source, "--resume")[0] == 0
    assert [call.resume for call in engine] == [False, True]


def test_an_interrupt_ends_with_130_and_names_resume(ffr, engine, source):
    engine.act = failing_with(KeyboardInterrupt())
    code, _, err = ffr("train", "-c", source)
    assert code == 130
    assert "--resume" in err


def test_a_reader_that_leaves_early_is_no_traceback():
    command = f"{sys.executable} -m ffr train --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("ffr train")
    assert "Traceback" not in done.stderr


def test_grpo_gets_no_teacher(ffr, engine, source):
    assert ffr("train", "-c", source, "--train.algorithm", "grpo")[0] == 0
    assert engine[0].teacher is None


def test_ffr_without_a_teacher_is_refused_unless_insisted_on(ffr, engine, source):
    code, _, err = ffr("train", "-c", source, "--fix.teacher.type", "none")
    assert code == 1
    assert "plain GRPO" in err
    assert engine == []
    assert ffr("train", "-c", source, "--fix.teacher.type", "none", "--fix.allow-no-teacher")[0] == 0


@pytest.mark.parametrize(
    "error",
    [
        NoTeacherError("no success in 32 calls"),
        EngineConfigError("train.algorithm = 'sft' has its own loop"),
        CheckpointError("checkpoint-3: model.safetensors is missing"),
        PeerError("stopped because of another rank; rank 1: NoTeacherError: no success"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_engine_refuses_ends_the_run_with_1_and_its_words(ffr, engine, source, error):
    engine.act = failing_with(error)
    code, _, err = ffr("train", "-c", source)
    assert code == 1
    assert str(error) in err


def test_a_defect_keeps_its_traceback(ffr, engine, source):
    engine.act = failing_with(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        ffr("train", "-c", source)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "data.sources is empty"),
        ("[[data.sources]]\npath = 'nowhere.json'\nroot = '.'\n", "no such file: nowhere.json"),
    ],
)
def test_no_data_ends_the_run_with_1(ffr, engine, tmp_path, text, expected):
    (tmp_path / "a.toml").write_text(text)
    code, _, err = ffr("train", "-c", tmp_path / "a.toml")
    assert code == 1
    assert expected in err
    assert engine == []


def test_no_usable_row_ends_the_run_with_1(ffr, engine, source, tmp_path):
    (tmp_path / "videos" / "1.mp4").unlink()
    code, out, err = ffr("train", "-c", source)
    assert code == 1
    assert "2 rows were skipped: 2 missing" in out
    assert "no row can be used" in err


@pytest.mark.parametrize("command", [["report"], ["trace", "open"]])
def test_a_folder_that_is_no_run_is_refused(ffr, tmp_path, command):
    code, _, err = ffr(*command, tmp_path / "nowhere")
    assert (code, "no such run directory" in err) == (1, True)
    code, _, err = ffr(*command, tmp_path)
    assert (code, "no run directory" in err) == (1, True)


def test_report_prints_the_table(ffr, tmp_path):
    rows = [{"step": step, "ffr/first_pass_accuracy": 0.25 * step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = ffr("report", tmp_path, "--windows", "1")
    assert code == 0
    assert "38 %" in out
    assert "page: none" in out


def test_doctor_checks_the_machine_and_the_data(ffr, source):
    code, out, _ = ffr("doctor", "-c", source)
    flat = " ".join(out.split())
    assert code == 0
    assert "ok decode self-test" in flat
    assert "data: questions 1 of 2 rows can be used" in flat
    assert "1 missing" in flat


def test_doctor_fails_on_a_wrong_configuration(ffr):
    code, out, _ = ffr("doctor", "--find.group-size", "0")
    assert code == 1
    assert "--find.group-size: must be a whole number >= 1" in " ".join(out.split())


@pytest.mark.parametrize(
    ("changes", "samples", "processes", "steps"),
    [
        ({}, 4000, 8, 500),
        ({"questions_per_step": 3}, 10, 1, 4),
        ({"num_epochs": 2.0}, 10, 1, 20),
        ({"max_steps": 5}, 4000, 1, 5),
        ({"updates_per_batch": 2}, 10, 1, 20),
    ],
)
def test_planned_steps(changes, samples, processes, steps):
    base = Config()
    cfg = base.model_copy(update={"train": base.train.model_copy(update=changes)})
    assert planned_steps(cfg, samples, processes) == steps


def test_the_refusal_names_the_teacher_type():
    from ffr.cli.errors import CliError
    from ffr.cli.train import build_teacher

    cfg = Config(fix=FixConfig(teacher=TeacherConfig(type="none")))
    with pytest.raises(CliError, match=r"fix\.teacher\.type is 'none'"):
        build_teacher(cfg)
