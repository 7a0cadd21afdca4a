"""The report's charts, each drawn from the series of a run's document."""

from collections.abc import Sequence
from html import escape

from meritorder_api.reasons import Action
from meritorder_cli.document import Document, PoolTick, Tick
from meritorder_cli.report import words
from meritorder_cli.report.charts import Chart, Line, Mark, Triangle, draw

MOST_POINTS = 480
"""More would not be seen."""
_TURNS = (Action.CUT, Action.DRAIN, Action.RETRY, Action.REORDER)


def colour(document: Document, name: str) -> str:
    """The style sheet's class for a pool: the same in every chart and table."""
    names = [pool.name for pool in document.pools]
    return f"p{names.index(name) % 8}" if name in names else "quiet"


def figures(document: Document) -> str:
    """All charts, one under the other on one axis of time."""
    if len(document.series) < 2:
        return '<p class="soft">The run was too short for charts.</p>'
    drawing = _Drawing(document)
    parts = [drawing.load(), drawing.share(), drawing.latency(), drawing.flights()]
    if any(tick.reference_per_hour is not None for tick in document.series):
        parts.append(drawing.tokens())
    if any(tick.cost_per_hour is not None for tick in document.series):
        parts.append(drawing.bill())
    return "".join(parts)


class _Drawing:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._series = document.series[:: -(-len(document.series) // MOST_POINTS)]
        self._times = [tick.at for tick in self._series]
        self._names = [pool.name for pool in document.pools]
        self._marks = [
            Mark(at=event.at, number=number, text=event.message)
            for number, event in enumerate(document.events, start=1)
        ]

    def load(self) -> str:
        lines = [self._line(name, "requests_per_second", empty=0.0) for name in self._names]
        return _figure(
            "Requests per second, by pool",
            "Completed requests, stacked in merit order from the bottom: the height is the whole load.",
            self._chart("load", "Requests per second by pool, stacked", "/s", lines, stacked=True),
        )

    def share(self) -> str:
        lines = [self._line(name, "share", 100.0, empty=0.0) for name in self._names]
        turns = [
            Triangle(at=record.at, css="quiet", text=record.message)
            for record in self._document.decisions
            if record.action in _TURNS
        ]
        return _figure(
            "Traffic share, by pool",
            "Percent of the completed requests, the cheapest pool at the bottom. Small triangles on the time "
            "axis are decisions that cut, drained or retried a pool.",
            self._chart(
                "share",
                "Share of requests by pool, stacked to 100 percent",
                "%",
                lines,
                stacked=True,
                top=100.0,
                triangles=turns,
            ),
        )

    def latency(self) -> str:
        percentile, window = self._document.sla["percentile"], self._document.sla["windowSeconds"]
        lines = [self._line(name, "attained_milliseconds", 0.001) for name in self._names]
        lines.append(Line(label="all", css="all strong", values=self._all("attained_milliseconds", 0.001)))
        return _figure(
            f"p{percentile} against the target",
            f"Seconds, over the last {window} s, of all requests (thick) and per pool. Above the dashed "
            "line, "
            "the target, the promise is broken.",
            self._chart(
                "latency",
                f"p{percentile} latency in seconds, all and by pool, against the target",
                "s",
                lines,
                target=(words.target_seconds(self._document), "target"),
            ),
        )

    def flights(self) -> str:
        panels = "".join(self._flight(name) for name in self._names)
        return _figure(
            "In flight and limit, pool by pool",
            "Requests in the pool (filled) and the most that may be in it (line), all ready replicas "
            "together. A pool with room takes the next request; the first in merit order is asked first.",
            f'<div class="panels">{panels}</div>',
        )

    def _flight(self, name: str) -> str:
        css = colour(self._document, name)
        limits = self._pool(name, "limit")
        lines = [Line(label="in flight", css=css, values=self._pool(name, "in_flight"), area=True)]
        note = ": no limit, it takes what the others cannot"
        if any(value is not None for value in limits):
            lines.append(Line(label="limit", css=f"{css} strong", values=limits, stepped=True))
            note = ""
        chart = self._chart(
            f"flight:{name}", f"Requests in flight on {name} and its limit", "", lines, height=165
        )
        head = f'<span class="soft"><span class="swatch {css}"></span>{escape(name)}{note}</span>'
        return f"<div>{head}{chart}</div>"

    def tokens(self) -> str:
        fallback = self._document.fallback_pool
        lines = [
            Line(label="as routed", css="saved strong", values=self._all("reference_per_hour")),
            Line(
                label=_all_on(fallback),
                css="quiet dashed",
                values=self._all("reference_on_fallback_per_hour"),
            ),
        ]
        return _figure(
            f"Cost of the tokens per hour, against all on {fallback}",
            "US dollars per hour: each pool's completion tokens at its reference price, and the same tokens "
            "at "
            f"{fallback}'s. The gap is what routing saves where a pool's spare capacity serves others.",
            self._chart("tokens", f"Cost of tokens per hour as routed and all on {fallback}", "$/h", lines),
        )

    def bill(self) -> str:
        fallback, last = self._document.fallback_pool, self._document.series[-1]
        needed = "needed ≤" if last.needed_is_bound else "needed"
        alone = f"{_all_on(fallback)}{' ≤' if last.baseline_is_bound else ''}"
        lines = [
            Line(label="ready", css="all", values=self._all("cost_per_hour"), stepped=True),
            Line(label=needed, css="saved strong", values=self._all("needed_per_hour"), stepped=True),
            Line(
                label=alone,
                css="quiet dashed",
                values=self._all("baseline_per_hour"),
                stepped=True,
            ),
        ]
        return _figure(
            f"Bill per hour, against all on {fallback}",
            "US dollars per hour: replicas that are ready (paid for, used or not), those that the peak "
            "needs, and "
            f"those of {fallback} that would carry the peak alone. Moving traffic saves nothing on this bill "
            "until "
            "idle replicas go away. ≤: a pool was never driven to its limit, so that fewer may do.",
            self._chart("cost", f"Bill per hour: ready, needed, and all on {fallback}", "$/h", lines),
        )

    def _chart(
        self,
        key: str,
        summary: str,
        unit: str,
        lines: Sequence[Line],
        *,
        stacked: bool = False,
        top: float | None = None,
        target: tuple[float, str] | None = None,
        height: int = 230,
        triangles: Sequence[Triangle] = (),
    ) -> str:
        return draw(
            Chart(
                key=key,
                summary=summary,
                unit=unit,
                times=self._times,
                lines=lines,
                stacked=stacked,
                top=top,
                target=target,
                height=height,
                marks=self._marks,
                triangles=triangles,
                warmup=self._document.warmup_seconds,
            )
        )

    def _line(self, name: str, read: str, scale: float = 1.0, *, empty: float | None = None) -> Line:
        css = colour(self._document, name)
        return Line(label=name[:10], css=css, values=self._pool(name, read, scale, empty=empty))

    def _pool(
        self, name: str, read: str, scale: float = 1.0, *, empty: float | None = None
    ) -> list[float | None]:
        values = [_scaled(_pool_at(tick, name), read, scale) for tick in self._series]
        return [empty if value is None else value for value in values]

    def _all(self, read: str, scale: float = 1.0) -> list[float | None]:
        return [_scaled(tick, read, scale) for tick in self._series]


def _figure(title: str, caption: str, content: str) -> str:
    head = f"<figcaption><b>{escape(title)}</b><span>{escape(caption)}</span></figcaption>"
    return f"<figure>{head}{content}</figure>"


def _all_on(fallback: str) -> str:
    return f"all {fallback}"[:11]


def _pool_at(tick: Tick, name: str) -> PoolTick | None:
    return next((pool for pool in tick.pools if pool.name == name), None)


def _scaled(source: Tick | PoolTick | None, read: str, scale: float) -> float | None:
    value: float | None = None if source is None else getattr(source, read)
    return None if value is None else value * scale
