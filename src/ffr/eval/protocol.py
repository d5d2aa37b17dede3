"""Protocol cards: under which conditions the numbers of a run were made, computed from its rows."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from ffr.eval.base import ProtocolCard
from ffr.eval.rows import EvalRow, ItemRow

PACKAGES = ("find-fix-reason", "numpy", "av", "pillow", "pydantic", "openai")


def base_versions() -> dict[str, str]:
    """Versions of what every evaluation uses: this package, Python, the decoder, the resizer."""
    import av

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = metadata.version(name)
    found["libavcodec"] = ".".join(map(str, av.library_versions.get("libavcodec", ())))
    return found


def make_cards(
    config: Mapping[str, Any],
    engine: str,
    items: Mapping[str, ItemRow],
    rows: Iterable[EvalRow],
    versions: Mapping[str, str],
) -> dict[str, ProtocolCard]:
    """One card for each benchmark and number of frames that has rows, by `<benchmark>@<frames>`.

    Hashes run over the first good row of each question, in the order of the items: two runs that show
    the same frames and prompts have equal cards, whatever the order they worked in. A run of a
    test-time option has the cards of its own rows.
    """
    rows = list(rows)
    mode = next((row.mode for row in sorted(rows, key=lambda row: row.mode != "plain")), "plain")
    first: dict[tuple[str, int], dict[str, EvalRow]] = {}
    order = {uid: place for place, uid in enumerate(items)}
    for row in rows:
        if row.uid not in items or row.error or row.mode != mode:
            continue
        seen = first.setdefault((items[row.uid].benchmark, row.num_frames), {})
        seen.setdefault(row.uid, row)
    cards: dict[str, ProtocolCard] = {}
    for (benchmark, num), seen in sorted(first.items()):
        chosen = [seen[uid] for uid in sorted(seen, key=order.__getitem__)]
        cards[f"{benchmark}@{num}"] = ProtocolCard(
            num_frames=num,
            prompt_profile=str(config.get("prompt", "")),
            engine=engine,
            max_frame_px=int(config.get("max_frame_px", 0)),
            min_frame_px=int(config.get("min_frame_px", 0)),
            frame_rule=str(config.get("frame_rule", "uniform")),
            indices_sha256=_digest([[row.uid, row.frame_indices] for row in chosen]),
            prompt_sha256=_digest([[row.uid, row.prompt_sha256] for row in chosen]),
            template_sha256=str(config.get("template_sha256", "")),
            versions=dict(versions),
        )
    return cards


def card_fields(cards: Mapping[str, ProtocolCard]) -> dict[str, dict[str, Any]]:
    """The cards as `eval.json` holds them."""
    return {name: asdict(card) for name, card in cards.items()}


def card_lines(
    cards: Mapping[str, ProtocolCard], config: Mapping[str, Any], rows: Sequence[EvalRow]
) -> list[str]:
    """The cards for people: what is the same for all first, then a line for each."""
    if not cards:
        return []
    card = next(iter(cards.values()))
    drawn = "greedy" if not config.get("temperature") else f"temperature {config['temperature']:g}"
    if config.get("temperature") and config.get("top_p", 1.0) < 1.0:
        drawn += f", top-p {config['top_p']:g}"
    template = f", template {card.template_sha256[:8]}" if card.template_sha256 else ""
    lines = [
        f"engine {card.engine}, {drawn}, at most {config.get('max_tokens')} tokens, prompt "
        f"{card.prompt_profile}{template}",
        f"frames {card.frame_rule}, at most {card.max_frame_px} px each, sides multiples of "
        f"{config.get('size_factor_px')} px",
    ]
    sizes = sorted({(row.width_px, row.height_px) for row in rows if row.width_px})
    if sizes:
        shown = ", ".join(f"{w}x{h}" for w, h in sizes[:3]) + (
            f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
        )
        lines.append(f"as shown: {shown}")
    lines += [
        f"{name}: indices {c.indices_sha256[:8]}, prompts {c.prompt_sha256[:8]}" for name, c in cards.items()
    ]
    lines.append("versions: " + ", ".join(f"{name} {number}" for name, number in card.versions.items()))
    return lines


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
