from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

torch.set_num_threads(1)

_HERE = Path(__file__).parent
for _name in ("tiny", "launch", "fake_vllm"):
    # The suite runs in importlib mode, where neighbouring helper files are not importable by name.
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, _HERE / f"{_name}.py")
        assert _spec is not None and _spec.loader is not None
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """accelerate keeps precision and device process-wide: a bf16 test must not set the next one's."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "student")


@pytest.fixture(scope="session")
def processor(checkpoint: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(checkpoint)


@pytest.fixture
def model(checkpoint: Path):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def encoder(processor):
    from ffr.engines.encode import Encoder

    return Encoder(processor, max_prompt_tokens=2048)
