"""The screen of a run: the live view on a terminal, or lines."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from meritorder_cli.document import Tick
from meritorder_cli.lines import decision_line, event_lines
from meritorder_cli.report.words import promise
from meritorder_cli.session import Session
from meritorder_cli.view import View, render
from meritorder_core.outcome import Decision

_REMEMBERED = 40


class Screen:
    """Shows a session as it goes on."""

    def __init__(
        self, console: Console, session: Session, *, live: bool, url: str, lasts: float | None, note: str
    ) -> None:
        self._console = console
        self._session = session
        self._url = url
        self._lasts = lasts
        self._note = note
        self._attained: list[float | None] = []
        self._shown_decision: Decision | None = None
        self._shown_events = 0
        self._live = Live(console=console, screen=True, auto_refresh=False, transient=True) if live else None

    def __enter__(self) -> Self:
        sla = self._session.policy.spec.sla
        if self._live is not None:
            self._live.__enter__()
            self._draw(None)
        else:
            note = f" ({self._note})" if self._note else ""
            self._say(
                f"{self._session.policy.metadata.name}: {promise(sla.dump())}, over windows of "
                f"{sla.window_seconds} s{note}; listening on {self._url}"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, tick: Tick, decision: Decision | None) -> None:
        """Take the next moment."""
        self._attained.append(tick.attained_milliseconds)
        del self._attained[:-_REMEMBERED]
        if self._live is not None:
            self._draw(tick)
            return
        events = self._session.ledger.events
        for line in event_lines(events[self._shown_events :]):
            self._say(line)
        self._shown_events = len(events)
        if decision is not None and decision is not self._shown_decision:
            self._shown_decision = decision
            self._say(decision_line(decision, tick, self._session.policy.spec.sla.percentile))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def _draw(self, tick: Tick | None) -> None:
        assert self._live is not None
        spec = self._session.policy.spec
        view = View(
            policy=self._session.policy.metadata.name,
            promise=promise(self._session.policy.spec.sla.dump()),
            percentile=spec.sla.percentile,
            target_milliseconds=float(spec.sla.target_milliseconds),
            window_seconds=spec.sla.window_seconds,
            fallback_pool=self._session.decision.fallback_pool if self._session.decision is not None else "",
            listen=self._url,
            elapsed=self._session.elapsed,
            lasts=self._lasts,
            accelerators={
                pool.name: pool.accelerator.type for pool in spec.pools if pool.accelerator is not None
            },
            tick=tick,
            attained=self._attained,
            decisions=self._session.ledger.decisions,
            events=self._session.ledger.events,
            note="recommending only" if self._session.recommends else self._note,
        )
        size = self._console.size
        self._live.update(render(view, width=size.width, height=size.height), refresh=True)
