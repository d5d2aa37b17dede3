"""The trace page fetches nothing, runs nothing that is not ours, and shows what it must."""

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from ffr.report import RunWriter
from ffr.report.charts import line_chart, smoothed
from ffr.report.page import THUMB_PX, FrameBook, choose_groups, render_page
from ffr.report.trace import read_traces, trace_row
from ffr.report.view import group_view, ledger, looked_at
from tests.report import fake_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FETCHING = {"src", "href", "action", "formaction", "poster", "data", "background", "srcset", "xlink:href"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page, as a browser would take them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def text(self, tag):
        return "".join(self.texts.get(tag, []))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", num_steps=12)


@pytest.fixture(scope="module")
def html(run_dir):
    path = render_page(run_dir)
    assert path == run_dir / "index.html"
    return path.read_text()


def test_the_page_asks_for_nothing(html):
    page = Page(html)
    assert not [
        (t, a) for t, a in page.tags if t in ("link", "img", "iframe", "object", "embed", "base", "video")
    ]
    assert not [(t, a) for t, a in page.tags if FETCHING & set(a)]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    css = page.text("style") + " ".join(a.get("style", "") for _, a in page.tags)
    assert "@import" not in css
    assert all(url.startswith('"data:image/webp;base64,') for url in re.findall(r"url\(([^)]*)\)", css))
    assert not re.search(r"https?://|fetch\(|XMLHttpRequest|import\(|eval\(|innerHTML", page.text("script"))


def test_the_only_script_is_ours_and_the_policy_names_it(html):
    page = Page(html)
    assert [t for t, _ in page.tags].count("script") == 1
    digest = base64.b64encode(hashlib.sha256(page.text("script").encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_hostile_text_is_shown_as_text(html):
    assert "<script>window.pwned" not in html and "onerror=alert(1)>" not in html.replace("&gt;", "")
    assert "&lt;/script&gt;&lt;script&gt;window.pwned=1" in html
    assert "{{ 7*7 }}" in html and "49 {%" not in html
    assert fake_run.HOSTILE in Page(html).text("h2")


def test_every_frame_is_in_the_page_once(html, run_dir):
    used = {
        f.sha256 for row in read_traces(run_dir) for view in row.observations.values() for f in view.frames
    }
    assert html.count("data:image/webp;base64,") == len(used)
    assert f'class="image f{min(used)[:20]}"' in html and "image gone" not in html


def test_the_ledger_adds_up_and_tells_the_tax():
    row = trace_row(fake_run.trace(0, 3, ["repaired", "right", "still_wrong", "right"]))
    repaired = ledger(row, row.slots[0])
    # eq. 8: 1 + 1 - 0.3 = 1.7; the group's rewards are 1.7, 2, 1, 2: mean 1.675, sample std 0.4717.
    assert [repaired[k] for k in ("outcome", "format", "tax", "other")] == pytest.approx(
        [1, 1, 0.3, 0], abs=1e-9
    )
    assert repaired["formula"] == "(1.70 - mean 1.68) / std 0.47"
    untaxed = ledger(row, row.slots[1])
    assert (untaxed["tax"], untaxed["other"], untaxed["reward"]) == (0.0, 0.0, 2.0)
    slot = row.slots[1].model_copy(update={"reward": 2.25})
    assert ledger(row, slot)["other"] == pytest.approx(0.25, abs=1e-9)


def test_the_patch_is_drawn_on_the_frames_it_names():
    trace = fake_run.trace(0, 3, ["right", "repaired", "leaked"])
    view = group_view(trace_row(trace), 1)
    strip = next(s for s in view["strips"] if 2 in s["slots"])
    patch = trace.group.repairs_G[1].diagnosis.patch
    inside = {n for a, b in patch.key_frames for n in range(a, b + 1)}
    assert {c["frame"].number for c in strip["cells"] if c["range"]} == inside
    region = patch.spatial_regions[0]
    assert {c["frame"].number for c in strip["cells"] if c["boxes"]} == set(
        range(region.frames[0], region.frames[1] + 1)
    )
    assert next(c for c in strip["cells"] if c["boxes"])["boxes"] == [
        {"left": "50.00%", "top": "30.00%", "width": "47.00%", "height": "50.00%"}
    ]
    assert strip["shown"] and not next(s for s in view["strips"] if 3 in s["slots"])["shown"]
    assert view["start"] == 1 and view["stories"][0] == "repaired"


def test_the_teachers_looks_are_marked_and_refused_calls_are_not():
    row = trace_row(fake_run.trace(0, 3, ["repaired"]))
    calls = row.slots[0].repair.diagnosis.tool_calls
    frames = row.observation.frames
    start, end = calls[0].arguments["start"], calls[0].arguments["end"]
    assert looked_at(frames, calls) == {*range(start, end + 1), 7}
    segment = calls[2].model_copy(update={"ok": True, "arguments": {"t0": 0.5, "t1": 1.0, "fps": 2}})
    assert looked_at(frames, [segment]) == {3, 4}


def test_the_choice_keeps_repairs_and_spreads_them():
    rows = [trace_row(fake_run.trace(s, s, ["repaired", "right"] if s % 2 else ["right"])) for s in range(40)]
    chosen = choose_groups(rows, 8)
    assert len(chosen) == 8 and all(row.num_repaired for row in chosen)
    assert chosen[0].step == 1 and chosen[-1].step == 39
    assert len(choose_groups(rows, 30)) == 30 and len(choose_groups(rows, 99)) == 40


def test_the_page_says_how_many_groups_it_left_out(run_dir, tmp_path):
    html = render_page(run_dir, tmp_path / "deep" / "small.html", max_groups=3).read_text()
    total = len(read_traces(run_dir))
    assert html.count('<article class="group"') == 3
    assert f"3 of {total} traced questions ({total - 3} left out" in html


def test_large_frames_are_shrunk_and_lost_ones_counted(tmp_path):
    trace = fake_run.trace(0, 1, ["right"])
    rng = np.random.default_rng(0)
    obs = trace.group.first_G[0].observation
    big = replace(obs.frames[0], pixels=rng.integers(0, 255, (360, 640, 3), dtype=np.uint8), sha256="big")
    frames = (big, replace(obs.frames[1], pixels=None, sha256="lost"))
    rollout = replace(trace.group.first_G[0], observation=replace(obs, frames=frames))
    RunWriter(tmp_path).traces(0, [replace(trace, group=replace(trace.group, first_G=(rollout,)))])
    book = FrameBook(tmp_path)
    book.add(read_traces(tmp_path)[0])
    assert book.missing == {"lost"} and book.name("lost") == "" and book.num_bytes < 40_000
    assert THUMB_PX == 208
    html = render_page(tmp_path).read_text()
    assert "1 frames were not stored" in html and 'class="image gone"' in html


def test_an_empty_run_and_odd_numbers_still_make_a_page(tmp_path):
    assert "no traces yet" in render_page(RunWriter(tmp_path / "empty").run_dir).read_text()
    trace = fake_run.trace(0, 1, ["repaired", "wrong", "skipped"])
    odd = replace(trace, rewards_G=(float("nan"),) * 3, advantages_G=(float("nan"), float("inf"), 0.0))
    RunWriter(tmp_path / "odd").traces(0, [odd])
    assert "curves come from the traced questions" in render_page(tmp_path / "odd").read_text()


def test_charts_leave_gaps_out_and_smooth():
    assert smoothed([0.0, 1.0, 2.0], 3) == [0.5, 1.0, 1.5]
    chart = line_chart("a<b", [0, 5, 10], [0.25, float("nan"), 0.75])
    assert (chart.first, chart.last) == ("25 %", "75 %")
    assert "a&lt;b: 25 % at step 0, 75 % at step 10" in chart.svg and "nan" not in chart.svg
    assert line_chart("x", [1], [float("nan")]).svg == ""
    assert "<circle" in line_chart("x", [1], [0.5]).svg


def in_browser(address, profile):
    """The page's DOM and console after its scripts ran."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", f"file://{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Page(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def shown(page):
    """(number of the question on screen, number of the pressed rollout in it)."""
    groups = [a for t, a in page.tags if t == "article"]
    on = [a for a in groups if "on" in a["class"].split()]
    return [(a["data-group"], a["data-current"]) for a in on]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page was not rendered")
def test_a_browser_shows_the_page_without_an_error(run_dir, html, tmp_path):
    page, console = in_browser(f"{run_dir / 'index.html'}#q2/r3", tmp_path)
    assert console == []
    assert shown(page) == [("2", "3")]
    assert [a["data-slot"] for _, a in page.tags if a.get("aria-pressed") == "true"] == ["3"]
    assert ("html", "js") in [(t, a.get("class")) for t, a in page.tags]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the keys were not tried")
def test_the_keys_move_and_a_foreign_script_is_stopped(html, tmp_path):
    keys = "".join(
        f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{k}'}}));" for k in "jjjk5ll?"
    )
    probe = html.replace("</body>", f"<script>{keys}</script></body>")
    path = tmp_path / "probe.html"
    path.write_text(probe)
    page, console = in_browser(path, tmp_path / "a")
    # The policy refuses every script but ours: the injected keys do nothing.
    assert shown(page)[0][0] == "1" and len(console) == 1 and "Content Security Policy" in console[0]
    path.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", probe))
    page, console = in_browser(path, tmp_path / "b")
    assert console == [] and shown(page) == [("3", "7")]
    assert "open" in next(a for t, a in page.tags if t == "dialog")
