"""What is not well: which object, seen and allowed, and what to do about it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "Error"
    """Something does not work."""
    WARNING = "Warning"
    """It works, and not as well as its owner believes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not well."""

    check: str
    """One CamelCase word; scripts rely on it."""
    object: str
    """Kind and name of what is to be mended, or looked at first."""
    message: str
    """Seen and allowed."""
    fix: str
    """What to do: a command or a field."""
    severity: Severity = Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found, and what nobody could look at."""

    findings: Sequence[Finding]
    unchecked: Sequence[str]
    policies: int

    @property
    def well(self) -> bool:
        return not self.findings

    def dump(self) -> dict[str, object]:
        """As JSON has it."""
        return {
            "well": self.well,
            "policies": self.policies,
            "findings": [
                {
                    "severity": str(one.severity),
                    "check": one.check,
                    "object": one.object,
                    "message": one.message,
                    "fix": one.fix,
                }
                for one in self.findings
            ],
            "unchecked": list(self.unchecked),
        }


_STYLE: Final = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow"}


def ordered(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Errors first; else as they were found, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda one: list(Severity).index(one.severity)))


def show(report: Report) -> RenderableType:
    """The report for a terminal."""
    parts: list[RenderableType] = []
    for one in report.findings:
        parts += [
            Text.assemble(
                (str(one.severity), _STYLE[one.severity]), "  ", (one.check, "bold"), "  ", one.object
            ),
            Padding(Text(one.message), (0, 0, 0, 2)),
            Padding(Text.assemble(("→ ", "green"), one.fix), (0, 0, 1, 2)),
        ]
    for sentence in report.unchecked:
        parts.append(Text(f"not checked: {sentence}", style="dim"))
    looked = f"{report.policies} {'policy' if report.policies == 1 else 'policies'} looked at"
    if report.well:
        parts.append(Text(f"all is well; {looked}", style="green"))
    else:
        errors = sum(one.severity is Severity.ERROR for one in report.findings)
        counted = _counted(errors, "error"), _counted(len(report.findings) - errors, "warning")
        parts.append(Text(f"{', '.join(counted)}; {looked}"))
    return Group(*parts)


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
