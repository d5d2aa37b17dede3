"""Score outputs with the real lmms-eval 0.7.3; run with the interpreter of its environment.

    LMMS_PYTHON scripts/lmms_harness.py IN OUT
    # a line of IN:  {"task": "mvbench", "doc": {...}, "output": "B"}        tasks: see TASKS
    # a line of OUT: {"value": 1.0, "judge": false, "random": false, "dropped": false, "error": ""}

    python -m venv ENV
    ENV/bin/pip install numpy pyyaml loguru requests tqdm pytz packaging tenacity
    ENV/bin/pip install --no-deps lmms-eval==0.7.3

The harness's own code runs unmodified: its filter, its default `--reasoning_tags`, its evaluator's
`_process_document_results`, the task's `process_results` and aggregation as its YAML names them. Only
packages that scoring never calls (torch, datasets, decord, ...) are stand-ins, and three things are
watched: a request to a judge fails, a random draw and an item left out of the average are reported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

VERSION = "0.7.3"
STAND_INS = frozenset(
    "PIL transformers dotenv datasets jinja2 torch pandas aiohttp sacrebleu evaluate accelerate "
    "huggingface_hub dill decord wandb openai httpx cv2 av".split()
)
TASKS = {
    "mmvu": "mmvu/mmvu_val.yaml",
    "vsi_bench": "vsibench/vsibench.yaml",
    "video_mmmu_perception": "videommmu/perception.yaml",
    "video_mmmu_comprehension": "videommmu/comprehension.yaml",
    "video_mmmu_adaptation": "videommmu/adaptation.yaml",
    "video_holmes": "video_holmes/video_holmes.yaml",
    "longvideobench": "longvideobench/longvideobench_val_v.yaml",
    "lvbench": "lvbench/lvbench.yaml",
    "mvbench": "mvbench/mvbench_action_sequence.yaml",
    "tempcompass_multi_choice": "tempcompass/tempcompass_mc.yaml",
    "tempcompass_yes_no": "tempcompass/tempcompass_yes_no.yaml",
    "tempcompass_caption_matching": "tempcompass/tempcompass_caption_matching.yaml",
    "tempcompass_captioning": "tempcompass/tempcompass_captioning.yaml",
}


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules whose attributes are mocks, for packages that are not installed and never called."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        known = fullname.split(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: Any) -> types.ModuleType:
        from unittest.mock import MagicMock

        module = types.ModuleType(spec.name)
        module.__path__ = []

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return MagicMock(name=f"{spec.name}.{name}")

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class Harness:
    """lmms-eval's own scoring of one output at a time, with its judge, its dice and its gaps watched."""

    def __init__(self) -> None:
        """Import it.

        Raises:
            SystemExit: If another version is installed.
        """
        from importlib.metadata import version

        if version("lmms-eval") != VERSION:
            raise SystemExit(f"lmms-eval {version('lmms-eval')} is installed here, {VERSION} is needed")
        os.environ["HF_HOME"] = tempfile.gettempdir()
        os.environ["LOGURU_AUTOINIT"] = "0"
        sys.meta_path.append(_StandIns())
        with contextlib.redirect_stdout(io.StringIO()):
            self.main = importlib.import_module("lmms_eval.__main__")
            self.evaluator = importlib.import_module("lmms_eval.evaluator")
        self.seen = {"judge": False, "random": False}
        self._watch()
        self.tags = self._default_tags()
        self.tasks = {name: self._task(path) for name, path in TASKS.items()}

    def _watch(self) -> None:
        import random
        import time

        import requests

        def draw(_: Any) -> str:
            self.seen["random"] = True
            return "?"

        requests.post, time.sleep, random.choice = self._judge, lambda _: None, draw  # type: ignore[assignment]

    def _judge(self, *_: Any, **__: Any) -> Any:
        self.seen["judge"] = True
        raise ConnectionError("no judge here")

    def _default_tags(self) -> Any:
        from unittest.mock import patch

        with patch.object(sys, "argv", ["lmms_eval", "--model", "from_log", "--tasks", "mvbench"]):
            _, self.args = self.main.parse_eval_args()
        return self.args.reasoning_tags

    def _task(self, path: str) -> Any:
        """A task without its data: the class of the harness, its YAML, its default filter."""
        task_module = importlib.import_module("lmms_eval.api.task")
        filters = importlib.import_module("lmms_eval.filters")
        utils = importlib.import_module("lmms_eval.utils")
        root = Path(sys.modules["lmms_eval"].__file__ or "").parent / "tasks"
        config = utils.load_yaml_config(str(root / path), mode="full")
        task = object.__new__(task_module.ConfigurableTask)
        assert "filter_list" not in config and "auto_strip_thinking" not in config
        task.OUTPUT_TYPE = "generate_until"
        task._config = types.SimpleNamespace(
            process_results=config["process_results"], repeats=1, reasoning_tags=config.get("reasoning_tags")
        )
        task._filters = [filters.build_filter_ensemble("none", [["take_first", None]])]
        task.aggregation_of = {m["metric"]: m["aggregation"] for m in config["metric_list"]}
        scope = config["process_results"].__globals__
        if "_pipeline" in scope:  # MMVU's judge, made on first use
            scope["_pipeline"] = self._judge
        return task

    def score(self, name: str, doc: dict[str, Any], output: str) -> dict[str, Any]:
        """Value in [0, 1], and whether a judge, a random draw, a left-out item or an error was behind it."""
        task = self.tasks[name]
        self.seen.update(judge=False, random=False)
        instance_type = importlib.import_module("lmms_eval.api.instance").Instance
        parse = importlib.import_module("lmms_eval.api.reasoning").parse_reasoning_tags_config
        metadata = {"task": name, "doc_id": 0, "repeats": 1}
        request = instance_type(request_type="generate_until", arguments=("",), idx=0, metadata=metadata)
        request.resps = [output]
        value, dropped, error = 0.0, False, ""
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                for ensemble in task._filters:
                    ensemble.apply([request], [doc])
                metrics = self.evaluator._process_document_results(
                    (0, json.loads(json.dumps(doc)), [request]),
                    task=task,
                    filter_key="none",
                    reasoning_tags=parse(cli_value=self.tags, task_value=task._config.reasoning_tags),
                    log_samples=False,
                ).metrics
                value, dropped = self._value(name, task, metrics)
            except Exception as problem:  # the harness itself fails on this item: reported as such
                error = f"{type(problem).__name__}: {problem}"
        return {"value": value, **self.seen, "dropped": dropped, "error": error}

    def _value(self, name: str, task: Any, metrics: dict[str, Any]) -> tuple[float, bool]:
        first = next(iter(task.aggregation_of))
        item, aggregate = metrics[first], task.aggregation_of[first]
        if name == "vsi_bench":
            return float(item["accuracy"] if "accuracy" in item else item["MRA:.5:.95:.05"]), False
        if name == "lvbench":
            return float(item), False
        if name == "mmvu":
            pair = [item | {"category": "Art", "correct": right} for right in (1, 0)]
            return float(item["correct"]), _left_out(aggregate, item, pair)
        if name == "mvbench":
            pair = [item | {"pred_answer": "x", "score": right} for right in (1, 0)]
            return float(item["score"]), _left_out(aggregate, item, pair)
        if name.startswith("video_mmmu"):
            pair = [
                item | {"question_type": "multiple-choice", "parsed_pred": p} for p in (item["answer"], None)
            ]
            return float(aggregate([item])), _left_out(aggregate, item, pair)
        if name == "video_holmes":
            return float(item["score"]), False
        if name == "longvideobench":
            return float(aggregate([item])), False
        return float(item["rating"] == 1), False


def _left_out(aggregate: Any, item: Any, pair: list[Any]) -> bool:
    """Whether an average with one right and one wrong item stays as it is when this item joins."""
    return all(aggregate([item, other]) == aggregate([other]) for other in pair)


def theirs(source: Path, target: Path) -> None:
    """Score every line of a file with the harness."""
    harness = Harness()
    with source.open(encoding="ascii") as lines, target.open("w", encoding="ascii") as out:
        for line in lines:
            case = json.loads(line)
            out.write(json.dumps(harness.score(case["task"], case["doc"], case["output"])) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="JSONL of {task, doc, output}")
    parser.add_argument("target", type=Path, help="JSONL to write, one line per line")
    arguments = parser.parse_args()
    theirs(arguments.source, arguments.target)
