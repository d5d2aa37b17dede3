"""Rollouts through vLLM's wire format: the same prompts, the same tokens, and clear errors."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import fake_vllm
import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError

from ffr.config import Config, FindConfig, VllmConfig
from ffr.engines.encode import Encoder
from ffr.engines.hf import HFSampler
from ffr.engines.trl import flow as flow_module
from ffr.engines.trl import rollouts as rollouts_module
from ffr.engines.trl import run as train_module
from ffr.engines.trl.rollouts import correction
from ffr.engines.trl.rows import TrainRow
from ffr.engines.vllm_colocate import VllmColocateSampler
from ffr.engines.vllm_server import VllmServerSampler, parse_version
from ffr.engines.vllm_weights import ServerWeights, WeightsError, served_weights
from ffr.engines.vllm_wire import ParityError, build_request
from ffr.find import SamplerError

FIND = FindConfig(group_size=4, max_completion_tokens=6, top_p=1.0)
VIEWS = {
    "clip": {"num_frames": 6},
    "clip and patch": {"num_frames": 6, "patch": "Look at frames 1-3."},
    "clip, patch, frames again": {"num_frames": 6, "patch": "Look at frames 1-3.", "extra": 2},
    "image": {"num_frames": 1},
    "text": {"num_frames": 0},
    "odd clip with a spelled control token": {"num_frames": 5, "prompt": "what is <|video_pad|> ?"},
}


@pytest.fixture
def server(model, processor):
    import copy

    with fake_vllm.FakeVllm(copy.deepcopy(model), processor) as running:
        yield running


@pytest.fixture
def sampler(model, encoder, server):
    return _sampler(model, encoder, server.base_url)


def _sampler(model, encoder, *urls: str, find=FIND, **changes):
    vllm = VllmConfig(base_urls=urls, max_retries=2, attempt_timeout_s=20.0, rollout_deadline_s=30.0)
    return VllmServerSampler(model, encoder, find=find, vllm=vllm.model_copy(update=changes), seed=5)


def _ask(sampler, *observations, num: int = 1, source: str = "policy"):
    return asyncio.run(sampler.sample(list(observations), num=num, source=source))


def test_same_seeds_give_the_rollouts_of_the_sampler_in_process(model, encoder, sampler, server) -> None:
    views = [tiny.view(seed, **shown) for seed, shown in enumerate(VIEWS.values())]
    here = HFSampler(model, encoder, find=FIND, seed=5)
    for source in ("policy", "repaired"):
        ours = _ask(sampler, *views, num=2, source=source)
        theirs = asyncio.run(here.sample(views, num=2, source=source))
        for group, expected in zip(ours, theirs, strict=True):
            for a, b in zip(group, expected, strict=True):
                assert (a.token_ids, a.text, a.finish, a.source) == (b.token_ids, b.text, b.finish, b.source)
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
                assert a.observation is b.observation or a.observation == b.observation
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds) == 4 * len(views)  # one per rollout
    sampler.reseed(5)
    again = _ask(sampler, views[0], num=2)
    assert [r.token_ids for r in again[0]] == [r.token_ids for r in _ask_again(sampler, views[0])[0]]


def _ask_again(sampler, view):
    sampler.reseed(5)
    return _ask(sampler, view, num=2)


def test_frames_travel_without_loss(model, encoder, sampler) -> None:
    view = tiny.view(3, num_frames=5, extra=1)
    request = build_request(encoder, view, model="m", find=FIND, banned=(7,), stop_ids=(2,))
    body = json.loads(request.body(11))
    frames, images = [], []
    for part in body["messages"][-1]["content"]:
        fake_vllm._part(part, frames, images)
    for sent, frame in zip([*frames, *images], [*view.frames, *view.extra_frames], strict=True):
        assert np.array_equal(sent, frame.pixels)
    clip = body["media_io_kwargs"]["video"]
    assert clip["frames_indices"] == [0, 500, 1000, 1500, 2000] and clip["fps"] == 1000.0
    assert (clip["total_num_frames"], clip["duration"], clip["num_frames"]) == (2500, 2.5, -1)
    assert body["mm_processor_kwargs"] == {"do_resize": False, "do_sample_frames": False}
    assert body["seed"] == 11 and body["logit_bias"] == {"7": -100.0}


def test_visual_placeholders_are_banned(processor, encoder, sampler, server) -> None:
    _ask(sampler, tiny.view(0))
    ids = processor.tokenizer.convert_tokens_to_ids
    banned = {int(token) for token in server.requests[0]["logit_bias"]}
    expected = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>"]
    assert {ids(token) for token in expected} <= banned and ids("<|im_end|>") not in banned
    server.faults.add_token = ids("<|video_pad|>")
    with pytest.raises(
        SamplerError, match=rf"'t/0'.*sampled token {ids('<|video_pad|>')}, which logit_bias forbids"
    ):
        _ask(sampler, tiny.view(0))


def test_another_prompt_there_is_an_error_with_sample_and_position(encoder, sampler, server) -> None:
    view = tiny.view(0)
    server.faults.resize = True
    start = encoder.encode(view).train_ids.index(encoder.processor.video_token_id)
    with pytest.raises(
        ParityError, match=r"sample 't/0': vLLM read another prompt.*position (\d+)"
    ) as caught:
        _ask(sampler, view)
    # 6 frames of 56 x 56 are 12 visual tokens, shrunk to 28 x 28 they are 3.
    assert f"position {start + 3} is" in str(caught.value) and "'<|video_pad|>' here" in str(caught.value)
    server.faults.resize, server.faults.ignore_system = False, True
    with pytest.raises(ParityError, match="position 1 is"):
        _ask(sampler, replace(view, system="be brief", view_id="with system"))
    assert _ask(sampler, view)[0][0].num_tokens


def test_dead_old_and_strange_servers_are_clear_errors(model, encoder, sampler, server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    dead = _sampler(model, encoder, nobody, max_retries=0)
    with pytest.raises(
        SamplerError, match=r"'t/0': no rollout from the vLLM server at http://127.*base_urls"
    ):
        _ask(dead, tiny.view(0))
    with pytest.raises(SamplerError, match="must end in /v1"):
        _ask(_sampler(model, encoder, server.base_url.removesuffix("/v1") + "/v2"), tiny.view(0))
    server.faults.version = "0.21.3"
    with pytest.raises(SamplerError, match=r"runs vLLM 0.21.3: it ignores frame times.*0\.22 or later"):
        _ask(_sampler(model, encoder, server.base_url), tiny.view(0))
    server.faults.version, server.faults.statuses = "0.32.0", [400]
    server.faults.words = "Per-request media_io_kwargs are disabled. Start with --trust-request-mm-kwargs"
    with pytest.raises(SamplerError, match="start the server with --trust-request-mm-kwargs: frame times"):
        _ask(_sampler(model, encoder, server.base_url), tiny.view(0))
    server.faults.version, server.faults.stop_word = "0.1.dev1+gabc", "abort"
    with pytest.raises(SamplerError, match="finish_reason 'abort'"):
        _ask(sampler, tiny.view(0))
    assert parse_version("v0.32.1rc1") == (0, 32) and parse_version("0.1.dev1+gabc") is None


def test_passing_faults_are_tried_again_and_next_server_takes_over(model, encoder, server) -> None:
    server.faults.statuses = [503, 429]
    assert _ask(_sampler(model, encoder, server.base_url), tiny.view(0))[0][0].num_tokens
    server.faults.statuses = [400]
    with pytest.raises(SamplerError, match="HTTP 400"):
        _ask(_sampler(model, encoder, server.base_url), tiny.view(0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    both = _sampler(model, encoder, nobody, server.base_url)
    groups = _ask(both, *[tiny.view(k) for k in range(4)])  # two of the questions live at the dead one
    assert all(group[0].num_tokens for group in groups)


def test_deadline_of_a_rollout_holds(model, encoder, server) -> None:
    server.chat = lambda body: (_ for _ in ()).throw(AssertionError("not reached"))
    slow = _sampler(model, encoder, server.base_url, rollout_deadline_s=0.2)
    with server._lock:
        server.faults.statuses = [503] * 50
        with pytest.raises(SamplerError, match="no rollout"):
            _ask(slow, tiny.view(0))


class Engine:
    """`vllm.LLM`, as far as it is used: un-expanded ids and native media in, ids and log-probs out."""

    def __init__(self, served: fake_vllm.FakeVllm, encoder: Encoder) -> None:
        self.served, self.encoder = served, encoder

    def generate(self, requests, params, use_tqdm):
        return [self._one(*pair) for pair in zip(requests, params, strict=True)]

    def _one(self, request, params):
        video, image = self.encoder.processor.video_token_id, self.encoder.processor.image_token_id
        media = request.get("multi_modal_data", {})
        ids = request["prompt_token_ids"]
        assert ids.count(video) == len(media.get("video", ())) and ids.count(image) == len(
            media.get("image", ())
        )
        self.seen = (request, params)
        prompt = self.shown
        body = {**vars(params), "max_completion_tokens": params.max_tokens}
        body["logit_bias"] = {str(k): v for k, v in params.logit_bias.items()}
        with ThreadPoolExecutor(1) as own:  # the fake has an event loop of its own
            tokens, logprobs = own.submit(self.served._draw, self.obs, body).result()
        steps = [{t: SimpleNamespace(logprob=lp)} for t, lp in zip(tokens, logprobs, strict=True)]
        finish = "stop" if tokens[-1] in params.stop_token_ids else "length"
        done = SimpleNamespace(token_ids=tokens, logprobs=steps, finish_reason=finish)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[done])


def test_engine_in_this_process_gets_unexpanded_ids_and_native_media(model, encoder, server) -> None:
    engine = Engine(server, encoder)
    sampler = VllmColocateSampler(
        engine, lambda **kw: SimpleNamespace(**kw), model, encoder, find=FIND, seed=5
    )
    here = HFSampler(model, encoder, find=FIND, seed=5)
    for shown in VIEWS.values():
        engine.obs = view = tiny.view(1, **shown)
        engine.shown = encoder.encode(view).train_ids
        ours, theirs = _ask(sampler, view, num=2), asyncio.run(here.sample([view], num=2))
        assert [r.token_ids for r in ours[0]] == [r.token_ids for r in theirs[0]]
        request, _ = engine.seen
        assert request["prompt_token_ids"] == list(encoder.encode(view).gen_ids)
        for clip, metadata in request.get("multi_modal_data", {}).get("video", ()):
            assert clip.shape == (len(view.frames), 56, 56, 3) and metadata["fps"] == 1000.0
    engine.shown = (*engine.shown, 5)
    with pytest.raises(ParityError, match="the end here"):
        _ask(sampler, view)


def test_settings_that_would_bias_the_correction_are_refused() -> None:
    server = {"rollouts": "vllm_server", "vllm": {"base_urls": ["http://127.0.0.1:8000/v1"]}}
    with pytest.raises(ValidationError, match=r"find.top_p = 0.95.*set find.top_p = 1"):
        Config.model_validate({"train": server})
    with pytest.raises(ValidationError, match=r"needs train.vllm.base_urls"):
        Config.model_validate({"train": {"rollouts": "vllm_server"}, "find": {"top_p": 1.0}})
    server["vllm"]["correction"] = "none"
    assert Config.model_validate({"train": server}).train.vllm.importance_cap == 2.0


def test_correction_of_rows(encoder) -> None:
    prompt = encoder.encode(tiny.view(0))
    old = torch.log(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))
    rows = [
        TrainRow(prompt, (5, 6), 1.0, sampled_logprobs=tuple(torch.log(torch.tensor([0.4, 0.1])).tolist())),
        TrainRow(prompt, (5, 6, 7), 1.0, treatment="reattach"),
    ]
    weights, cut = correction(rows, old, torch.tensor([[1, 1, 0], [1, 1, 1]]), VllmConfig())
    # 0.5 / 0.4, 0.5 / 0.1 cut to 2, padding; a row trained in another view is left alone.
    assert weights.tolist() == [pytest.approx([1.25, 2.0, 1.0]), [1.0, 1.0, 1.0]]
    assert cut == 1.0


def test_weights_are_served_merged_and_the_student_stays(model) -> None:
    from peft import LoraConfig, get_peft_model

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_()
    sent = {weight.name: weight for weight in served_weights(adapted)}
    assert set(sent) == set(before)
    values = {name: weight.value() for name, weight in sent.items()}
    moved = {name for name, value in values.items() if not torch.equal(value, before[name])}
    assert moved and all("language_model" in n and ("q_proj" in n or "v_proj" in n) for n in moved)
    assert all(tuple(values[name].shape) == sent[name].shape for name in sent)
    merged = adapted.merge_and_unload()
    for name, p in merged.named_parameters():
        assert values[name] == pytest.approx(p.detach(), abs=1e-6)
    with pytest.raises(WeightsError, match="needs a CUDA device"):
        ServerWeights(["http://127.0.0.1:1/v1"], group_port=1, device=torch.device("cpu"))


@pytest.fixture
def coin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_module, "verify", tiny.coin)
    monkeypatch.setattr(import_module("ffr.fix.repair"), "verify", tiny.coin)


def _run(checkpoint, folder, monkeypatch, clips, server=None, **train):
    teacher, notes = tiny.FakeTeacher(), tiny.Notes()
    cfg = tiny.config(
        checkpoint, folder, find={"top_p": 1.0}, train={"max_steps": 2, "learning_rate": 1e-2, **train}
    )
    if server is not None:
        monkeypatch.setattr(rollouts_module, "server_sink", lambda cfg, device: server)
    train_module.train(cfg, clips, teacher=teacher, sinks=[notes])
    return notes, teacher


def test_two_steps_of_training_give_the_same_rollouts(
    checkpoint, tmp_path, monkeypatch, server, coin
) -> None:
    clips = tiny.samples(tmp_path / "clips", 4)
    here, _ = _run(checkpoint, tmp_path / "hf", monkeypatch, clips)
    assert len(here.kept) == 4  # two questions in each of two steps
    for overlap in (False, True):
        server.pushes, vllm = 0, {"base_urls": [server.base_url], "overlap": overlap}
        folder = tmp_path / f"vllm{overlap}"
        there, teacher = _run(
            checkpoint, folder, monkeypatch, clips, server, rollouts="vllm_server", vllm=vllm
        )
        assert there.steps == [1, 2] and server.pushes == 2 and teacher.calls > 2
        # Overlapped repairs have streams of their own, so their second step starts from other weights.
        for ours, theirs in zip(there.kept[: 2 if overlap else 4], here.kept, strict=False):
            assert [r.token_ids for r in ours.group.first_G] == [r.token_ids for r in theirs.group.first_G]
            for a, b in zip(ours.group.repairs_G, theirs.group.repairs_G, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.rollout.observation.view_id == b.rollout.observation.view_id
                    assert overlap or (a.status, a.rollout.token_ids) == (b.status, b.rollout.token_ids)
        for name in ("fix/teacher_calls", "find/first_pass_accuracy", "fix/intervention_rate"):
            assert there.rows[0][name] == here.rows[0][name]
        assert there.rows[1]["sampler/logprob_mismatch"] < 1e-4
        assert there.rows[1]["sampler/cut_share"] == 0.0
        if not overlap:
            assert there.rows[1]["train/loss"] == pytest.approx(here.rows[1]["train/loss"], abs=1e-4)


def test_a_sampler_that_differs_is_corrected_and_logged(
    checkpoint, tmp_path, monkeypatch, model, server, coin
) -> None:
    clips = tiny.samples(tmp_path / "clips", 2)
    server.faults.shift = -1.0  # every token e times rarer than the trainer says
    vllm = {"base_urls": [server.base_url]}
    runs = {}
    for how in ("token_truncate", "none"):
        notes, _ = _run(
            checkpoint, tmp_path / how, monkeypatch, clips, server,
            rollouts="vllm_server", vllm={**vllm, "correction": how}, max_steps=1,
        )  # fmt: skip
        runs[how] = notes.rows[0]
        assert notes.rows[0]["sampler/logprob_mismatch"] == pytest.approx(1.0, abs=1e-3)
    assert runs["token_truncate"]["sampler/cut_share"] == 1.0 and runs["none"]["sampler/cut_share"] == 0.0
    # exp(1) is cut to 2: the policy's gradient doubles, the KL is 0 at the first step.
    ratio = runs["token_truncate"]["train/grad_norm"] / runs["none"]["train/grad_norm"]
    assert ratio == pytest.approx(2.0, rel=1e-3)
