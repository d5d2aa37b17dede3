"""Figures and the README picture: they draw the data that they are given."""

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from ffr.report.figures import curve, error_type_counts, render_figures
from ffr.report.picture import _font, render_trace_picture, wrapped
from ffr.report.trace import TraceWarning, read_traces, trace_row
from ffr.types import ErrorType, EvidencePatch
from tests.report import fake_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", num_steps=8)


def test_a_curve_is_the_mean_with_its_interval_over_common_steps():
    _, ax = plt.subplots()
    curve(ax, [{0: 0.2, 1: 0.4, 2: 0.9}, {0: 0.4, 1: 0.6}], "ffr", "red")
    (line,) = ax.get_lines()
    assert line.get_xdata().tolist() == [0, 1] and line.get_ydata() == pytest.approx([0.3, 0.5], abs=1e-9)
    assert line.get_label() == "ffr (2 seeds)"
    # Two seeds 0.2 apart: t(0.975, 1) = 12.706205, std 0.141421, half width 12.706205 * 0.1 = 1.270620.
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(0.5 + 1.270620, abs=1e-6)
    plt.close()


def test_a_curve_of_one_seed_has_no_band_and_skips_nan():
    _, ax = plt.subplots()
    curve(ax, [{0: 0.2, 1: math.nan, 2: 0.4}], "grpo", "red")
    curve(ax, [{}], "none", "blue")
    assert (
        ax.get_lines()[0].get_xdata().tolist() == [0, 2] and not ax.collections and len(ax.get_lines()) == 1
    )
    plt.close()


def test_error_types_are_counted_per_patch():
    trace = fake_run.trace(0, 3, ["repaired", "still_wrong", "right", "leaked"])
    repairs = list(trace.group.repairs_G)
    for i, kinds in ((0, ("counting", "logic")), (1, ("counting",)), (3, ("logic",))):
        patch = EvidencePatch(tuple(ErrorType(kind) for kind in kinds))
        repairs[i] = replace(repairs[i], diagnosis=replace(repairs[i].diagnosis, patch=patch))
    row = trace_row(replace(trace, group=replace(trace.group, repairs_G=tuple(repairs))))
    assert error_type_counts([row]) == {"counting": (1, 2), "logic": (1, 2)}


def test_the_figures_of_a_run_are_written(run_dir, tmp_path):
    made = render_figures({"ffr": [run_dir, run_dir]}, tmp_path)
    assert [path.name for path in made] == ["training.png", "error_types.png"]
    for path in made:
        with Image.open(path) as image:
            assert image.width > 1000 and np.asarray(image.convert("L")).std() > 5
    fake_run.RunWriter(tmp_path / "bare").metrics(0, {"ffr/first_pass_accuracy": 0.5})
    with pytest.warns(TraceWarning, match="no traced patch"):
        assert len(render_figures({"bare": [tmp_path / "bare"]}, tmp_path / "out")) == 1


def test_the_picture_shows_the_frames_the_bracket_and_the_boxes(run_dir, tmp_path):
    row = next(row for row in read_traces(run_dir) if row.num_repaired)
    path = render_trace_picture(row, run_dir, tmp_path / "deep" / "trace.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1760 and 400 < pixels.shape[0] < 1200
    orange = (np.abs(pixels - (0xE0, 0x7B, 0x00)).sum(axis=-1) < 12).sum()
    ball = (np.abs(pixels - fake_run.COLOURS[int(row.sample.uid.split("/")[1]) % 4]).sum(axis=-1) < 40).sum()
    assert orange > 2000 and ball > 3000


def test_a_group_without_a_repair_is_refused_with_a_remedy(run_dir, tmp_path):
    row = trace_row(fake_run.trace(0, 3, ["right", "leaked"]))
    with pytest.raises(
        ValueError, match=r"micro/3 at step 0: no such repaired rollout; choose another group"
    ):
        render_trace_picture(row, run_dir, tmp_path / "x.png")
    row = trace_row(fake_run.trace(0, 3, ["right", "repaired"]))
    with pytest.raises(ValueError, match=r"choose one of \[1\]"):
        render_trace_picture(row, run_dir, tmp_path / "x.png", slot=0)


def test_wrapped_lines_fit_and_lose_nothing_but_the_cut():
    font = _font(20)
    text = "a short line\n" + "x" * 200 + " end"
    lines = wrapped(text, font, 300, 50)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    cut = wrapped(text, font, 300, 2)
    assert len(cut) == 2 and cut[-1].endswith(" ...") and wrapped("", font, 300) == []
