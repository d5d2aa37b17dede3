"""LongVideoBench (longvideobench/LongVideoBench): referred reasoning in videos of up to an hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ffr.eval.base import EvalDataError, Target
from ffr.eval.benchmarks import sampling
from ffr.eval.benchmarks.fields import LETTERS, Fields, bare_options
from ffr.eval.benchmarks.official import OfficialBenchmark, lettered_lines

_PADDING = "N/A"


class LongVideoBench(OfficialBenchmark):
    """Rows: `id, video_path, question, candidates` (or `option0..4`), `correct_choice, question_category`."""

    name, title = "longvideobench", "LongVideoBench"
    hub, licence = "longvideobench/LongVideoBench", "CC-BY-NC-SA-4.0"
    layout = "lvb_val.json and the tars unpacked: videos/, subtitles/"
    files = ("lvb_val.json", "validation*.parquet", "data/validation*.parquet", "LongVideoBench*.tsv")
    tasks = tuple("S2E S2O S2A E2O O2E T2E T2O T2A E3E O3O SSS SOS SAA T3E T3O TOS TAA".split())
    split = "validation"

    def target(self, record: Mapping[str, Any]) -> Target:
        """The letter of the 0-based `correct_choice`.

        Raises:
            EvalDataError: If a field is missing or malformed.
        """
        row = Fields(self.name, record)
        texts = row.texts("candidates")
        if not texts:
            padded = [row.text(f"option{i}", default=_PADDING) for i in range(5)]
            texts = [text for text in padded if text != _PADDING]
        if not texts:
            raise row.error("candidates", "is missing (the hub's parquet has option0 to option4 instead)")
        options = bare_options(texts)
        gold = row.number("correct_choice")
        if gold is None or gold != int(gold) or not 0 <= gold < len(options):
            raise row.error(
                "correct_choice",
                f"is {gold!r}; it must be the 0-based number of one of {len(options)} options (the test "
                "split has no answers and can't be scored here)",
            )
        return Target("choice", LETTERS[int(gold)], options, row.text("question_category", default=""))

    def media(self, row: Fields) -> tuple[str, ...]:
        written = row.text("video_path").removeprefix("./")
        return f"videos/{written}", written

    def prompt(self, row: Fields, target: Target) -> str:
        return (
            f"Question: {row.text('question')}\n{lettered_lines(target)}\n"
            "Answer with the option's letter from the given choices directly."
        )

    def frame_indices(self, total: int, num: int, *, fps: float = 25.0) -> tuple[int, ...]:
        return sampling.floor_steps(total, num, fps=fps)


def interleave_subtitles(
    subtitles: Sequence[Mapping[str, Any]],
    frame_times_s: Sequence[float],
    *,
    start_s: float,
    duration_s: float,
) -> tuple[int | str, ...]:
    """Frames and subtitles in the order that the official loader shows them (`insert_text`).

    A subtitle comes before the first frame after its middle; it is left out if no frame lies within it
    (widened to half a second around its middle where it is shorter than a second).

    Args:
        subtitles: Rows of a `subtitle_path` file: `timestamp: [s, e], text`, or `start, end, line` with
            `h:m:s` times.
        frame_times_s: Times of the frames, rising.
        start_s: The record's `starting_timestamp_for_subtitles`.
        duration_s: The record's `duration`: the end of a subtitle whose own end is not a number.

    Returns:
        Positions in `frame_times_s` and subtitle texts.

    Raises:
        EvalDataError: If a row has another form.
    """
    out: list[int | str] = []
    shown = 0
    for number, subtitle in enumerate(subtitles, start=1):
        begin, end, text = _subtitle(subtitle, number, duration_s)
        begin, end = begin - start_s, end - start_s
        middle = (begin + end) / 2
        while shown < len(frame_times_s) and frame_times_s[shown] <= middle:
            out.append(shown)
            shown += 1
        if end - begin < 1:
            begin, end = middle - 0.5, middle + 0.5
        if any(begin < t < end for t in frame_times_s):
            out.append(text)
    return (*out, *range(shown, len(frame_times_s)))


def _subtitle(row: Mapping[str, Any], number: int, duration_s: float) -> tuple[float, float, str]:
    try:
        if "timestamp" in row:
            begin, end = row["timestamp"]
            return float(begin), end if isinstance(end, float) else duration_s, str(row["text"])
        return _seconds(row["start"]), _seconds(row["end"]), str(row["line"])
    except (KeyError, TypeError, ValueError) as error:
        raise EvalDataError(
            f"longvideobench: subtitle {number}: needs 'timestamp' and 'text', or 'start', 'end' and 'line' "
            f"({type(error).__name__}: {error}); fetch the file again"
        ) from None


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
