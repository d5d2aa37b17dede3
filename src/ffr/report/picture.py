"""One repaired rollout as a picture: the frames, where the teacher pointed, and what it changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from ffr.report.rows import FrameRow, PatchRow, SlotRow, TraceRow
from ffr.report.trace import frame_path
from ffr.report.view import ledger

WIDTH, MARGIN, GAP = 1760, 48, 6
INK, MUTED, LINE, PAPER, CARD = "#1f2328", "#6a6f76", "#d9d7cf", "#fbfaf7", "#ffffff"
GOOD, BAD, PATCH, TAX = "#1f8a55", "#c0392f", "#e07b00", "#a8670a"
MAX_LINES = 7
"""Lines of one card; longer texts end with three dots."""


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib ships these, so the picture is the same on every machine.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@dataclass(slots=True)
class _Canvas:
    """A tall sheet that is cut to what was drawn."""

    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (WIDTH, 3000), PAPER))

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.image)

    def text(
        self, xy: tuple[float, float], text: str, size: int, colour: str = INK, *, bold: bool = False
    ) -> float:
        """Where the text ends on the right, px."""
        self.draw.text(xy, text, font=_font(size, bold), fill=colour)
        return xy[0] + _font(size, bold).getlength(text)

    def paragraph(
        self, xy: tuple[float, float], text: str, width: float, size: int, colour: str = INK
    ) -> float:
        """Where the paragraph ends at the bottom, px."""
        x, y = xy
        for line in wrapped(text, _font(size), width):
            self.draw.text((x, y), line, font=_font(size), fill=colour)
            y += size * 1.4
        return y


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, max_lines: int = MAX_LINES) -> list[str]:
    """The text in lines of at most `width` px; words that are too long are broken, the rest is cut."""
    lines: list[str] = []
    for paragraph in text.strip().splitlines():
        line = ""
        for piece in (piece for word in paragraph.split() for piece in _pieces(word, font, width)):
            joined = f"{line} {piece}".strip()
            if line and font.getlength(joined) > width:
                lines.append(line)
                joined = piece
            line = joined
        lines += [line] if line else []
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while font.getlength(f"{last} ...") > width and last:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], f"{last.rstrip(' .')} ..."]
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    pieces: list[str] = []
    while word and font.getlength(word) > width:
        fit = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width), 1)
        pieces.append(word[:fit])
        word = word[fit:]
    return [*pieces, word] if word else pieces


def render_trace_picture(
    row: TraceRow, run_dir: Path | str, out_png: Path | str, *, slot: int | None = None
) -> Path:
    """The path of a PNG of one repaired rollout: filmstrip, wrong answer, hint, right answer, reward.

    Args:
        row: The group.
        run_dir: The run that holds its frames.
        out_png: Where the picture goes.
        slot: 0-based slot; the first repaired one when unset.

    Raises:
        ValueError: The group has no rollout that was asked again (or the named slot was not).
    """
    asked = [i for i, s in enumerate(row.slots) if s.repair and s.repair.rollout and s.patch]
    asked.sort(key=lambda i: (row.slots[i].status != "repaired", i))
    if slot is None and asked:
        slot = asked[0]
    if slot is None or slot not in asked:
        remedy = f"choose one of {asked}" if asked else "choose another group"
        raise ValueError(f"{row.sample.uid} at step {row.step}: no such repaired rollout; {remedy}")
    canvas, chosen = _Canvas(), row.slots[slot]
    y = _question(canvas, row)
    if row.observation and chosen.patch:
        y = _film(canvas, y, row.observation.frames, chosen.patch, Path(run_dir))
    y = _cards(canvas, y, row, chosen)
    y = _ledger(canvas, y, row, chosen)
    path = Path(out_png)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.image.crop((0, 0, WIDTH, int(y + MARGIN))).save(path, optimize=True)
    return path


def _question(canvas: _Canvas, row: TraceRow) -> float:
    y = float(MARGIN)
    for line in wrapped(row.sample.question, _font(34, True), WIDTH - 2 * MARGIN, 2):
        canvas.text((MARGIN, y), line, 34, bold=True)
        y += 46
    x = float(MARGIN)
    for option in row.sample.options:
        gold = option.label == row.sample.answer
        words = f"{option.label}  {option.text[:40]}"
        if x + _font(24).getlength(words) > WIDTH - MARGIN:
            x, y = float(MARGIN), y + 36
        x = canvas.text((x, y + 4), words, 24, GOOD if gold else MUTED, bold=gold) + 44
    return y + (56 if row.sample.options else 14)


def _film(canvas: _Canvas, y: float, frames: Sequence[FrameRow], patch: PatchRow, run_dir: Path) -> float:
    if not frames:
        return y
    columns = len(frames) if len(frames) <= 16 else 16
    cell = (WIDTH - 2 * MARGIN + GAP) / columns
    for start in range(0, len(frames), columns):
        y = _film_row(canvas, y, frames[start : start + columns], cell, patch, run_dir)
    return y + 6


def _film_row(
    canvas: _Canvas, y: float, frames: Sequence[FrameRow], cell: float, patch: PatchRow, run_dir: Path
) -> float:
    draw, width = canvas.draw, int(cell - GAP)
    height = max(round(width * f.height_px / max(f.width_px, 1)) for f in frames)
    for i, frame in enumerate(frames):
        x = MARGIN + i * cell
        path = frame_path(run_dir, frame.sha256)
        if path.is_file():
            with Image.open(path) as image:
                canvas.image.paste(
                    image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (int(x), int(y))
                )
        else:
            draw.rectangle((x, y, x + width, y + height), fill=LINE)
        for region in patch.spatial_regions:
            if region.frames[0] <= frame.number <= region.frames[1]:
                x0, y0, x1, y1 = region.box
                corners = (int(x) + x0 * width, y + y0 * height, int(x) + x1 * width - 1, y + y1 * height - 1)
                draw.rectangle(corners, outline="#000000", width=5)
                draw.rectangle(corners, outline=PATCH, width=3)
        canvas.text((x + 2, y + height + 26), str(frame.number), 18, MUTED)
    for first, last in patch.key_frames:
        inside = [i for i, frame in enumerate(frames) if first <= frame.number <= last]
        if inside:
            x0, x1 = MARGIN + inside[0] * cell + 2, MARGIN + inside[-1] * cell + width - 2
            base = y + height + 20
            draw.line(
                [(x0, base - 12), (x0, base), (x1, base), (x1, base - 12)], fill=PATCH, width=5, joint="curve"
            )
    return y + height + 60


def _cards(canvas: _Canvas, y: float, row: TraceRow, slot: SlotRow) -> float:
    repair, patch = slot.repair, slot.patch
    if repair is None or patch is None or repair.rollout is None or repair.verdict is None:
        return y
    where = ", ".join(f"{a}-{b}" for a, b in patch.key_frames)
    pointing = (f"Frames {where}. " if where else "") + " ".join((*patch.temporal_markers, patch.guidance))
    right = repair.verdict.correct
    cards = (
        ("find", f"answers {slot.first_verdict.extracted or 'nothing'}, wrong", slot.first.text, BAD),
        ("fix", "the teacher points: " + ", ".join(patch.error_types), pointing, PATCH),
        (
            "reason",
            f"answers {repair.verdict.extracted}, {'right' if right else 'wrong'}",
            repair.rollout.text,
            GOOD if right else BAD,
        ),
    )
    arrow = 44
    width = (WIDTH - 2 * MARGIN - 2 * arrow) / 3
    size, top = 22, y + 4
    bottoms = [
        top + 66 + len(wrapped(text, _font(size), width - 44)) * size * 1.4 + 20 for _, _, text, _ in cards
    ]
    bottom = max(bottoms)
    for i, (name, words, text, colour) in enumerate(cards):
        x = MARGIN + i * (width + arrow)
        canvas.draw.rounded_rectangle(
            (x, top, x + width, bottom), radius=14, fill=CARD, outline=LINE, width=2
        )
        canvas.draw.rounded_rectangle((x, top, x + 8, bottom), radius=4, fill=colour)
        after = canvas.text((x + 26, top + 18), name, 26, bold=True)
        first_line = wrapped(words, _font(22), width - (after - x) - 30, 1)
        canvas.text((after + 14, top + 22), first_line[0] if first_line else "", 22, colour)
        canvas.paragraph((x + 26, top + 64), text, width - 44, size)
        if i < 2:
            middle, tip = (top + bottom) / 2, x + width + arrow - 10
            canvas.draw.polygon([(tip, middle), (tip - 18, middle - 11), (tip - 18, middle + 11)], fill=MUTED)
    return bottom + 26


def _ledger(canvas: _Canvas, y: float, row: TraceRow, slot: SlotRow) -> float:
    terms = ledger(row, slot)
    x = canvas.text((MARGIN, y), "reward  ", 26, bold=True)
    x = canvas.text((x, y), f"outcome {terms['outcome']:g} + format {terms['format']:g}", 26, MUTED)
    if terms["tax"]:
        x = canvas.text((x, y), f" - patch tax {terms['tax']:.2g}", 26, TAX)
    if terms["other"]:
        x = canvas.text((x, y), f" + other {terms['other']:.2g}", 26, MUTED)
    x = canvas.text((x, y), f" = {terms['reward']:.3g}", 26, bold=True)
    canvas.text(
        (x, y), f"     advantage in its group {slot.advantage:+.2f}", 26, GOOD if slot.advantage >= 0 else BAD
    )
    return y + 34
