"""Frame formulas against the official ones, written here a second time from their sources."""

import numpy as np
import pytest

from ffr.eval.benchmarks import BENCHMARKS, get_benchmark
from ffr.eval.benchmarks.sampling import bound_frames
from ffr.observe import uniform_indices

TOTALS = (1, 2, 3, 15, 16, 17, 64, 99, 199, 200, 201, 333, 5400, 107_892)
NUMS = range(1, 201)


def official_linspace(total, num):
    """VSI-Bench's fork of lmms-eval and MMVU's `sample_frames_from_video`."""
    return np.linspace(0, total - 1, min(num, total), dtype=int).tolist()


def official_get_index(bound, fps, max_frame, first_idx, num_segments):
    """`get_index` of MVBench's notebook and of Video-Holmes' evaluate.py."""
    start, end = (bound[0], bound[1]) if bound else (-100000, 100000)
    start_idx = max(first_idx, round(start * fps))
    end_idx = min(round(end * fps), max_frame)
    seg_size = float(end_idx - start_idx) / num_segments
    return [int(start_idx + (seg_size / 2) + round(seg_size * idx)) for idx in range(num_segments)]


def official_longvideobench(total_valid_frames, duration, max_num_frames):
    num_frames = min(max_num_frames, int(duration))
    return [int(total_valid_frames / num_frames) * i for i in range(num_frames)]


def each_once(total):
    return tuple(range(total))


@pytest.mark.parametrize("name", ["vsi_bench", "mmvu", "lvbench", "tempcompass"])
def test_linspace_benchmarks(name):
    benchmark = get_benchmark(name)
    for total in TOTALS:
        for num in NUMS:
            assert benchmark.frame_indices(total, num) == tuple(official_linspace(total, num)), (total, num)


@pytest.mark.parametrize("name", ["mvbench", "video_holmes"])
def test_segment_midpoints(name):
    benchmark = get_benchmark(name)
    for total in TOTALS:
        for num in NUMS:
            expected = each_once(total)
            if num <= total:
                expected = tuple(official_get_index(None, 25.0, total - 1, 0, num))
            assert benchmark.frame_indices(total, num) == expected, (total, num)


def test_midpoints_by_hand():
    # 0..99 in 4 segments of 24.75 frames, offset 12.375: round(0, 24.75, 49.5, 74.25) = 0, 25, 50 (49.5 to
    # even), 74; int(12.375 + ...) = 12, 37, 62, 86.
    assert get_benchmark("mvbench").frame_indices(100, 4) == (12, 37, 62, 86)


def test_midpoints_keep_the_official_repeats():
    # 16 frames of 16: size 15 / 16; round(.9375 * 8) and round(.9375 * 9) are both 8 (7.5 to even).
    indices = get_benchmark("mvbench").frame_indices(16, 16)
    assert len(indices) == 16
    assert indices[8] == indices[9] == 8


@pytest.mark.parametrize("first", [0, 1])
def test_midpoints_inside_bounds(first):
    """Our indices in the bounds, moved to their start, are `get_index` with the bounds."""
    benchmark = get_benchmark("mvbench")
    for total, fps, bound in [(300, 25.0, (2.35, 7.43)), (300, 29.97, (0.0, 99.0)), (120, 3.0, (4.4, 21.0))]:
        start, end = bound_frames(total, bound, fps, first=first)
        for num in range(1, end - start + 2):
            ours = [start + i + first for i in benchmark.frame_indices(end - start + 1, num)]
            assert ours == official_get_index(bound, fps, total - 1 + first, first, num), (total, num)


def test_bounds_by_hand():
    # Videos: 2.35 s * 25 = 58.75, frame 59; 7.43 * 25 = 185.75, 186. Folders at 3 fps count files from 1:
    # round(1.0 * 3) = 3 is file 3, index 2; 99 s is past the end: the last of 60 files, index 59.
    assert bound_frames(300, (2.35, 7.43), 25.0) == (59, 186)
    assert bound_frames(60, (1.0, 99.0), 3.0, first=1) == (2, 59)
    with pytest.raises(ValueError, match="no frame between 9 s and 10 s"):
        bound_frames(60, (9.0, 10.0), 25.0)


def test_longvideobench_takes_at_most_one_frame_per_second():
    benchmark = get_benchmark("longvideobench")
    for fps in (1.0, 8.0, 10.0, 23.976, 25.0, 29.97, 30.0, 60.0):
        for seconds in (1, 2, 7, 15, 16, 60, 190.16, 3599.5):
            total = int(seconds * fps)
            if total < fps or int(total / fps) != int(seconds):
                continue  # `duration` itself decides there, which a count of frames doesn't know
            for num in NUMS:
                expected = tuple(official_longvideobench(total, seconds, num))
                assert benchmark.frame_indices(total, num, fps=fps) == expected, (fps, seconds, num)


def test_longvideobench_by_hand():
    # 190.16 s at 25 fps are 4754 frames; int(4754 / 16) = 297.
    assert get_benchmark("longvideobench").frame_indices(4754, 16, fps=25.0)[:3] == (0, 297, 594)
    assert get_benchmark("longvideobench").frame_indices(20, 16, fps=25.0) == (0,)
    with pytest.raises(ValueError, match="fps > 0"):
        get_benchmark("longvideobench").frame_indices(20, 16, fps=0.0)


def test_video_mmmu_always_shows_the_last_frame():
    benchmark = get_benchmark("video_mmmu")
    for total in TOTALS:
        for num in NUMS:
            indices = benchmark.frame_indices(total, num)
            assert indices[-1] == total - 1
            if num > 1:
                assert indices == tuple(official_linspace(total, num))


@pytest.mark.parametrize("name", ["video_r1", "microworld"])
def test_students_own_sampling(name):
    for total in TOTALS:
        for num in NUMS:
            assert get_benchmark(name).frame_indices(total, num) == uniform_indices(total, num)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_rule_stays_inside_and_rises(name):
    benchmark = get_benchmark(name)
    for total in TOTALS:
        for num in (1, 2, 16, 64, 200):
            indices = benchmark.frame_indices(total, num, fps=8.0)
            assert 1 <= len(indices) <= min(num, total)
            assert list(indices) == sorted(indices)
            assert indices[0] >= 0
            assert indices[-1] < total
    for total, num in [(0, 4), (4, 0)]:
        with pytest.raises(ValueError, match=f"total={total}, n"):
            benchmark.frame_indices(total, num)
