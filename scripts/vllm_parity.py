r"""A real vLLM server against the model in process: the same tokens, positions and log-probabilities.

python scripts/vllm_parity.py build FOLDER                      writes a random Qwen2.5-VL
vllm serve FOLDER --served-model-name tiny --dtype float32 --max-model-len 8192 --enforce-eager \
    --logprobs-mode processed_logprobs --max-logprobs -1 --trust-request-mm-kwargs
python scripts/vllm_parity.py measure FOLDER --base-url http://127.0.0.1:8000/v1

vLLM's CPU build will do, in an environment of its own; its packages do not fit the trainer's. Every rollout's
log-probabilities as the server reports them are set against one forward pass of the same weights here, over
clips, images, patched views and text; docs/results/vllm_parity.json and .md hold what was found. Exit code 1
if they differ by more than `TOLERANCE`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import urllib.request
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ffr.config import FindConfig, VllmConfig  # noqa: E402
from ffr.engines.encode import EncodedPrompt, Encoder  # noqa: E402
from ffr.engines.vllm_server import VllmServerSampler  # noqa: E402
from ffr.types import Observation  # noqa: E402
from tests.engines import tiny  # noqa: E402

OUT = ROOT / "docs" / "results" / "vllm_parity.json"
TOLERANCE = 1e-4
GROUP, TOKENS = 4, 24
BANNED_BIAS = -100.0
"""What the sampler asks the server to add to the logits of tokens that stand for pictures."""


def build(folder: Path) -> None:
    """A random student whose heads are as wide as vLLM's kernels ask for."""
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]}
    text = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "max_position_embeddings": 8192,
        "rope_scaling": rope,
    }
    tiny.build(folder, text=text, vision={"hidden_size": 64, "num_heads": 2, "out_hidden_size": 128})


def views() -> dict[str, Observation]:
    """What is shown, by name."""
    slow = tiny.view(3)
    frames = tuple(replace(frame, timestamp_s=0.9 * k) for k, frame in enumerate(slow.frames))
    return {
        "clip, 0.5 s a frame": tiny.view(3),
        "clip, 0.9 s a frame": replace(slow, frames=frames, duration_s=5.4, view_id="slow"),
        "clip, 16 frames": tiny.view(3, num_frames=16),
        "clip of 5 frames": tiny.view(3, num_frames=5),
        "clip and patch": tiny.view(3, patch="Look at frames 1-3."),
        "clip, patch, frames again": tiny.view(3, patch="Look.", extra=2),
        "one image": tiny.view(3, num_frames=1),
        "no picture": tiny.view(3, num_frames=0),
    }


def reported(
    model: torch.nn.Module, prompt: EncodedPrompt, ids: list[int], banned: list[int]
) -> torch.Tensor:
    """Log-probabilities of a completion in process, with the server's bias on the banned tokens."""
    tokens = torch.tensor([[*prompt.train_ids, *ids]])
    kinds = torch.tensor([[*prompt.mm_types, *(0 for _ in ids)]])
    with torch.no_grad():
        out = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=kinds,
            **prompt.features,
        )
    logits = out.logits[0, :-1].float()
    logits[:, banned] += BANNED_BIAS
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[-len(ids) :, 0]


def measure(folder: Path, base_url: str) -> dict[str, Any]:
    """One row a view."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    encoder = Encoder(AutoProcessor.from_pretrained(folder), max_prompt_tokens=4000)
    find = FindConfig(group_size=GROUP, max_completion_tokens=TOKENS, top_p=1.0)
    sampler = VllmServerSampler(model, encoder, find=find, vllm=VllmConfig(base_urls=(base_url,)), seed=1)
    rows: list[dict[str, Any]] = []
    for name, view in views().items():
        sampler.reseed(1)
        [group] = asyncio.run(sampler.sample([view], num=GROUP))
        sampler.reseed(1)
        [again] = asyncio.run(sampler.sample([view], num=GROUP))
        prompt = encoder.encode(view)
        worst = max(
            float(
                (
                    reported(model, prompt, list(r.token_ids), sorted(sampler.banned))
                    - torch.tensor(r.logprobs)
                )
                .abs()
                .max()
            )
            for r in group
        )
        rows.append(
            {
                "view": name,
                "prompt_tokens": prompt.num_tokens,
                "rollouts": len(group),
                "tokens": sum(len(r.token_ids) for r in group),
                "distinct": len({r.token_ids for r in group}),
                "max_logprob_difference": worst,
                "same_seeds_same_tokens": [r.token_ids for r in group] == [r.token_ids for r in again],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/version") as reply:
        server = json.load(reply)["version"]
    here = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"vllm": server, "here": here, "tolerance": TOLERANCE, "rows": rows}


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ["view", "prompt tokens", "rollouts", "tokens", "largest difference of a log-prob", "same seeds"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * 4 + " --- |"]
    for row in report["rows"]:
        same = "same tokens" if row["same_seeds_same_tokens"] else "other tokens"
        cells = [row["view"], row["prompt_tokens"], row["rollouts"], row["tokens"]]
        cells += [f"{row['max_logprob_difference']:.1e}", same]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    versions = ", ".join(f"{name} {version}" for name, version in report["here"].items())
    return (
        "# A real vLLM server\n\nGenerated by `scripts/vllm_parity.py` from `vllm_parity.json`.\n\n"
        f"A random Qwen2.5-VL in float32 behind vLLM {report['vllm']}, asked by the trainer's own sampler;\n"
        "the log-probabilities of each rollout as the server reports them against one forward pass of the\n"
        f"same weights here ({versions}). Both see the same prompt tokens, pixels and\n"
        "rotary positions, or the differences would be of the order of 0.1 (`ffr.engines.positions` says\n"
        "which positions and why).\n\n" + "\n".join(lines) + "\n"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    args = parser.parse_args()
    if args.what == "build":
        build(args.folder)
        return 0
    report = measure(args.folder, args.base_url)
    OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    OUT.with_suffix(".md").write_text(page(report), encoding="utf-8")
    held = all(row["max_logprob_difference"] <= TOLERANCE for row in report["rows"])
    return 0 if held and all(row["same_seeds_same_tokens"] for row in report["rows"]) else 1


if __name__ == "__main__":
    sys.exit(main())
