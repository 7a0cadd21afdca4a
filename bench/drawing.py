"""Bars as a picture: an HTML page that a headless browser photographs."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from meritorder_cli.complaint import Complaint
from meritorder_cli.images import photograph

WIDTH, PANEL_HEIGHT, BAR_HEIGHT = 1160, 56, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One value; `least` and `most` are its spread. None: there is none."""

    label: str
    value: float | None
    least: float
    most: float
    ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one unit."""

    title: str
    note: str
    bars: tuple[Bar, ...]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _panel(panel: Panel) -> str:
    longest = max((bar.most for bar in panel.bars if bar.value is not None), default=1.0) or 1.0
    lines = []
    for bar in panel.bars:
        kind = "ours" if bar.ours else "other"
        if bar.value is None:
            drawn = '<span class="none">not kept</span>'
        else:
            width, left, right = (max(0.0, x / longest * 100) for x in (bar.value, bar.least, bar.most))
            drawn = (
                f'<span class="track"><i class="{kind}" style="width:{width:.1f}%"></i>'
                f'<b style="left:{left:.1f}%;width:{max(0.2, right - left):.1f}%"></b></span>'
                f'<span class="value">{_number(bar.value)}</span>'
            )
        lines.append(f'<div class="line {kind}"><span class="label">{escape(bar.label)}</span>{drawn}</div>')
    heading = f"<h2>{escape(panel.title)} <small>{escape(panel.note)}</small></h2>"
    return f"<section>{heading}{''.join(lines)}</section>"


_STYLE = f"""
body {{ margin: 16px; width: {WIDTH - 32}px; font: 14px sans-serif; color: #222; background: #fff;
  display: grid; grid-template-columns: 1fr 1fr; gap: 8px 32px; }}
h2 {{ font-size: 15px; margin: 8px 0; }} small {{ color: #777; font-weight: normal; }}
.line {{ display: flex; align-items: center; height: {BAR_HEIGHT}px; }}
.line.ours .label, .line.ours .value {{ font-weight: bold; }}
.label {{ width: 185px; }} .value {{ width: 64px; text-align: right; }} .none {{ color: #777; }}
.track {{ position: relative; flex: 1; height: 14px; }}
.track i {{ position: absolute; inset: 0 auto 0 0; background: #9db4c8; }}
.track i.ours {{ background: #d9822b; }}
.track b {{ position: absolute; top: 6px; height: 2px; background: #222; }}
"""


def page(panels: Sequence[Panel]) -> str:
    """The page that is photographed."""
    body = "".join(map(_panel, panels))
    return f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style><body>{body}</body>'


def draw(panels: Sequence[Panel], picture: Path) -> Path | None:
    """Draw; None where there is no browser to do it."""
    source = picture.with_suffix(".html")
    source.write_text(page(panels), encoding="utf-8")
    rows = (len(panels) + 1) // 2
    height = 32 + rows * (PANEL_HEIGHT + BAR_HEIGHT * max(len(panel.bars) for panel in panels))
    try:
        photograph(source, picture, width=WIDTH, height=height)
    except Complaint:
        return None
    return picture
