"""What a person sees while a benchmark runs: what it does, for how long still, and tables at its end."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.results import Result


class Screen:
    """A console with steps and bars; plain lines where it is not a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def say(self, sentence: str) -> None:
        """Say one thing."""
        self.console.print(f"  {escape(sentence)}")

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Tell what is being done and how long it took."""
        began = time.monotonic()
        self.console.print(f"• {escape(what)} …")
        yield
        self.console.print(f"  {time.monotonic() - began:.1f} s")

    @contextmanager
    def bar(self, what: str, total: float) -> Iterator[Callable[[float], None]]:
        """Show progress; what is given is called with how much is done."""
        columns = (TextColumn("• {task.description}"), BarColumn(), TimeRemainingColumn())
        terminal = self.console.is_terminal
        if not terminal:
            self.console.print(f"• {escape(what)} …")
        with Progress(*columns, console=self.console, transient=True, disable=not terminal) as progress:
            task = progress.add_task(escape(what), total=total)
            yield lambda done: progress.update(task, completed=done)
        if terminal:
            self.console.print(f"• {escape(what)}: done")

    def wait(self, what: str, seconds: float, look: Callable[[], object] = lambda: None) -> None:
        """Let time pass in sight; `look` is called about once a second and may raise."""
        began = time.monotonic()
        with self.bar(what, seconds) as show:
            while (past := time.monotonic() - began) < seconds:
                show(past)
                look()
                time.sleep(min(1.0, max(0.0, seconds - past)))

    def show(self, result: Result) -> None:
        """Show a result's tables."""
        table = Table("", *result.columns, title=result.name, title_justify="left")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in result.rows:
            table.add_row(escape(row.what), *map(escape, row.cells))
        self.console.print(table)
        for check in result.checks:
            word = "[green]met[/]" if check.passed else "[red bold]MISSED[/]"
            self.console.print(
                f"  {word}  {escape(check.name)}: {check.value:g} {check.unit} "
                f"({check.relation.replace('==', '=')} {check.target:g})"
            )
