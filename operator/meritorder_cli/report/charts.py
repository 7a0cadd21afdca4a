"""Charts as inline SVG: stacked areas and lines over the time of a run, with axes, direct labels and event
marks.

Colours and type come from the page's style sheet by class (`p0` is the first pool's colour), so that one
drawing serves light, dark and paper. Each chart is drawn twice, for a wide and for a narrow screen, because
text in a scaled SVG would be unreadable on a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE = 980
NARROW = 360
_LABEL_HEIGHT = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series; None is a gap."""

    label: str
    css: str
    values: Sequence[float | None]
    stepped: bool = False
    area: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An event: a thin line over the whole height, with its number on top."""

    at: float
    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Triangle:
    """A decision: a small triangle on the time axis."""

    at: float
    css: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What is drawn; `times` in seconds and in order, every series as long."""

    key: str
    """By this the page's script finds what to say under the pointer."""
    summary: str
    """For those who do not see the drawing."""
    unit: str
    times: Sequence[float]
    lines: Sequence[Line]
    stacked: bool = False
    target: tuple[float, str] | None = None
    top: float | None = None
    height: int = 230
    marks: Sequence[Mark] = ()
    triangles: Sequence[Triangle] = ()
    warmup: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    width: float
    height: float
    left: float
    right: float
    above: float
    below: float
    x_from: float
    x_to: float
    y_to: float

    def x(self, at: float) -> float:
        span = max(self.x_to - self.x_from, 1e-9)
        return self.left + (at - self.x_from) / span * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        return (
            self.height
            - self.below
            - min(value, self.y_to) / self.y_to * (self.height - self.above - self.below)
        )


def draw(chart: Chart) -> str:
    """Both drawings of a chart; the style sheet shows the one that fits."""
    return _draw(chart, WIDE, "wide") + _draw(chart, NARROW, "narrow")


def nice_steps(top: float, count: int = 4) -> list[float]:
    """Round axis values from 0 to at least `top`, about `count` of them."""
    if top <= 0:
        return [0.0, 1.0]
    raw = top / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    return [step * index for index in range(math.ceil(top / step - 1e-9) + 1)]


def clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _draw(chart: Chart, width: int, variant: str) -> str:
    times = chart.times
    steps = nice_steps(chart.top if chart.top is not None else _highest(chart))
    frame = _Frame(
        width=width,
        height=chart.height,
        left=44,
        right=88 if variant == "wide" else 72,
        above=22,
        below=34,
        x_from=times[0] if times else 0.0,
        x_to=times[-1] if len(times) > 1 else (times[0] + 1 if times else 1.0),
        y_to=steps[-1],
    )
    parts = [
        f'<svg class="chart {variant}" viewBox="0 0 {width} {chart.height}" role="img" '
        f'data-chart="{escape(chart.key)}" '
        f'data-left="{frame.left:g}" data-right="{frame.right:g}" data-from="{frame.x_from:g}" '
        f'data-to="{frame.x_to:g}">',
        f"<title>{escape(chart.summary)}</title>",
        *_axes(frame, steps, chart.unit, 5 if variant == "wide" else 3),
    ]
    if chart.warmup > frame.x_from:
        parts.append(
            f'<rect class="warmup" x="{frame.left:.1f}" y="{frame.above:.1f}" '
            f'width="{frame.x(min(chart.warmup, frame.x_to)) - frame.left:.1f}" '
            f'height="{chart.height - frame.above - frame.below:.1f}"/>'
        )
    if chart.target is not None:
        y = frame.y(chart.target[0])
        parts.append(
            f'<rect class="beyond" x="{frame.left:.1f}" y="{frame.above:.1f}" '
            f'width="{width - frame.left - frame.right:.1f}" height="{max(y - frame.above, 0):.1f}"/>'
        )
    labels: list[tuple[float, str, str]] = []
    parts += _stack(frame, chart, labels) if chart.stacked else _lines(frame, chart, labels)
    if chart.target is not None:
        y = frame.y(chart.target[0])
        parts.append(
            f'<line class="target" x1="{frame.left:.1f}" x2="{width - frame.right:.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>'
        )
        labels.append((y, chart.target[1], "targettext"))
    parts += _marks(frame, chart)
    parts += _labels(frame, labels)
    parts.append(
        f'<line class="cursor" y1="{frame.above:.1f}" y2="{chart.height - frame.below:.1f}" '
        'visibility="hidden"/></svg>'
    )
    return "".join(parts)


def _highest(chart: Chart) -> float:
    if chart.stacked:
        top = max(
            (sum(line.values[i] or 0.0 for line in chart.lines) for i in range(len(chart.times))), default=0.0
        )
    else:
        top = max((value for line in chart.lines for value in line.values if value is not None), default=0.0)
    return max(top, chart.target[0] * 1.25 if chart.target else 0.0)


def _axes(frame: _Frame, steps: Sequence[float], unit: str, most: int) -> list[str]:
    parts = []
    digits = 0 if all(abs(step - round(step)) < 1e-9 for step in steps) else (1 if steps[1] >= 0.1 else 2)
    for step in steps:
        y = frame.y(step)
        css = "base" if step == 0 else "grid"
        parts.append(
            f'<line class="{css}" x1="{frame.left:.1f}" x2="{frame.width - frame.right:.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="axis" x="{frame.left - 6:.1f}" y="{y + 4:.1f}" '
            f'text-anchor="end">{step:,.{digits}f}</text>'
        )
    parts.append(
        f'<text class="axis unit" x="{frame.left - 6:.1f}" y="12" text-anchor="end">{escape(unit)}</text>'
    )
    for at in _times(frame.x_from, frame.x_to, most):
        x = frame.x(at)
        if x < frame.left + 14:
            continue  # its place is the unit's
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.height - frame.below:.1f}" '
            f'y2="{frame.height - frame.below + 4:.1f}"/>'
        )
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{frame.height - frame.below + 17:.1f}" '
            f'text-anchor="middle">{clock(at)}</text>'
        )
    parts.append(
        f'<text class="axis unit" x="{frame.left - 6:.1f}" y="{frame.height - frame.below + 17:.1f}" '
        'text-anchor="end">min:s</text>'
    )
    return parts


def _times(first: float, last: float, most: int) -> list[float]:
    for step in (5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400):
        if (last - first) / step <= most * 1.3:
            break
    start = math.ceil(first / step - 1e-6) * step
    return [start + index * step for index in range(int((last - start) / step + 1e-6) + 1)]


def _stack(frame: _Frame, chart: Chart, labels: list[tuple[float, str, str]]) -> list[str]:
    parts = []
    base = [0.0] * len(chart.times)
    for line in chart.lines:
        upper = [low + (value or 0.0) for low, value in zip(base, line.values, strict=True)]
        forth = " ".join(
            f"{frame.x(at):.1f},{frame.y(value):.1f}" for at, value in zip(chart.times, upper, strict=True)
        )
        back = " ".join(
            f"{frame.x(at):.1f},{frame.y(value):.1f}"
            for at, value in reversed(list(zip(chart.times, base, strict=True)))
        )
        parts.append(f'<polygon class="area {line.css}" points="{forth} {back}"/>')
        if chart.times:
            labels.append(((frame.y(base[-1]) + frame.y(upper[-1])) / 2, line.label, line.css))
        base = upper
    return parts


def _lines(frame: _Frame, chart: Chart, labels: list[tuple[float, str, str]]) -> list[str]:
    parts = []
    for line in chart.lines:
        last: float | None = None
        for run in _runs(chart.times, line.values):
            points = _steps(run) if line.stepped else run
            path = " ".join(f"{frame.x(at):.1f},{frame.y(value):.1f}" for at, value in points)
            if line.area:
                floor = frame.y(0)
                parts.append(
                    f'<polygon class="area {line.css}" points="{frame.x(points[0][0]):.1f},{floor:.1f} '
                    f"{path} "
                    f'{frame.x(points[-1][0]):.1f},{floor:.1f}"/>'
                )
            elif len(points) == 1:
                parts.append(
                    f'<circle class="dot {line.css}" cx="{path.partition(",")[0]}" '
                    f'cy="{path.partition(",")[2]}" r="1.5"/>'
                )
            else:
                parts.append(f'<polyline class="line {line.css}" points="{path}"/>')
            last = points[-1][1]
        if last is not None and line.label:
            labels.append((frame.y(last), line.label, line.css))
    return parts


def _runs(times: Sequence[float], values: Sequence[float | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(times, values, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _steps(run: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    points = [run[0]]
    for at, value in run[1:]:
        if value != points[-1][1]:
            points.append((at, points[-1][1]))
        points.append((at, value))
    return points


def _marks(frame: _Frame, chart: Chart) -> list[str]:
    parts = []
    bottom = frame.height - frame.below
    for mark in chart.marks:
        x = frame.x(mark.at)
        parts.append(
            f'<g class="mark"><title>{clock(mark.at)} {escape(mark.text)}</title>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.above - 4:.1f}" y2="{bottom:.1f}"/>'
            f'<circle cx="{x:.1f}" cy="{frame.above - 11:.1f}" r="8"/>'
            f'<text x="{x:.1f}" y="{frame.above - 7:.1f}" text-anchor="middle">{mark.number}</text></g>'
        )
    for triangle in chart.triangles:
        x = frame.x(triangle.at)
        parts.append(
            f'<path class="decision {triangle.css}" d="M{x - 4:.1f},{bottom + 1:.1f} h8 l-4,7 z">'
            f"<title>{clock(triangle.at)} {escape(triangle.text)}</title></path>"
        )
    return parts


def _labels(frame: _Frame, labels: Sequence[tuple[float, str, str]]) -> list[str]:
    """Place the series' names right of their ends, pushed apart where they would lie on one another."""
    placed: list[tuple[float, str, str]] = []
    bottom = frame.height - frame.below
    for y, text, css in sorted(labels, key=lambda label: -label[0]):
        lowest = placed[-1][0] - _LABEL_HEIGHT if placed else bottom - 2
        placed.append((min(y + 4, lowest), text, css))
    return [
        f'<text class="label {css}" x="{frame.width - frame.right + 8:.1f}" y="{y:.1f}">{escape(text)}</text>'
        for y, text, css in placed
    ]
