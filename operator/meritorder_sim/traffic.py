"""Recorded traffic as planned requests: `read_traffic(parse_traffic_option("t.csv,format=azure,speed=4"))`.

Formats (files ending in .gz are unpacked):
- csv: `arrival_seconds,prompt_tokens,completion_tokens` and optionally `max_tokens,priority,session`;
- azure: `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure/AzurePublicDataset);
- mooncake: JSON lines with `timestamp` in ms, `input_length`, `output_length` (kvcache-ai/Mooncake);
- burstgpt: `Timestamp` in seconds, `Request tokens`, `Response tokens` (HPMLL/BurstGPT); those without a
  response are left out.

Times count from the first request, except in csv, which says them itself. Every request is a stream.
"""

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

from meritorder_sim.arrivals import Planned

Format = Literal["csv", "azure", "mooncake", "burstgpt"]
Row = Mapping[str, Any]

_CSV_REQUIRED = ("arrival_seconds", "prompt_tokens", "completion_tokens")
_CSV_OPTIONAL = ("max_tokens", "priority", "session")


class TrafficError(ValueError):
    """A traffic file that cannot be used; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficOption:
    """A traffic file, its format, and how many times faster than recorded it is replayed."""

    path: Path
    format: Format = "csv"
    speed: float = 1.0


def parse_traffic_option(text: str) -> TrafficOption:
    """Read `FILE[,format=azure|mooncake|burstgpt|csv][,speed=X]`; raises TrafficError."""
    name, *settings = text.split(",")
    option = TrafficOption(path=Path(name))
    for setting in settings:
        key, _, value = setting.partition("=")
        match key, value:
            case "format", "csv" | "azure" | "mooncake" | "burstgpt":
                option = replace(option, format=value)
            case "format", _:
                raise TrafficError(f"traffic `format` must be azure, mooncake, burstgpt or csv, is '{value}'")
            case "speed", _:
                option = replace(option, speed=_speed(value))
            case _:
                raise TrafficError(f"traffic option '{setting}' is unknown; must be format=... or speed=...")
    return option


def read_traffic(option: TrafficOption) -> list[Planned]:
    """Read a whole file, in order of arrival; raises TrafficError naming file and line."""
    path = option.path
    try:
        with _opened(path) as file:
            requests = list(_requests(option, file))
    except OSError as error:
        raise TrafficError(f"traffic file '{path}' cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise TrafficError(f"traffic file '{path}' cannot be read: it is damaged") from error
    if not requests:
        raise TrafficError(f"traffic file '{path}' has no requests")
    requests.sort(key=lambda planned: planned.at)
    start = 0.0 if option.format == "csv" else requests[0].at
    return [replace(planned, at=(planned.at - start) / option.speed) for planned in requests]


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not math.isfinite(speed) or speed <= 0:
        raise TrafficError(f"traffic `speed` must be a number above 0, is '{text}'")
    return speed


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _requests(option: TrafficOption, file: TextIO) -> Iterator[Planned]:
    read, columns = _READERS[option.format]
    for number, row in _rows(option, file, columns):
        try:
            planned = read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise TrafficError(f"traffic file '{option.path}', line {number}: {_why(error)}") from error
        if planned is not None:
            yield planned


def _rows(option: TrafficOption, file: TextIO, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    if option.format == "mooncake":
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line, f"traffic file '{option.path}', line {number}")
        return
    reader = csv.DictReader(file)
    header = reader.fieldnames or []
    missing = [column for column in columns if column not in header]
    unknown = [name for name in header if name not in (*_CSV_REQUIRED, *_CSV_OPTIONAL)]
    if missing:
        raise TrafficError(
            f"traffic file '{option.path}' has no column `{missing[0]}`; its format is {option.format}"
        )
    if option.format == "csv" and unknown:
        raise TrafficError(f"traffic file '{option.path}' has an unknown column `{unknown[0]}`")
    for row in reader:
        yield reader.line_num, row


def _object(line: str, where: str) -> Row:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TrafficError(f"{where}: must be JSON") from error
    if not isinstance(value, dict):
        raise TrafficError(f"{where}: must be a JSON object")
    return value


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no `{error.args[0]}`"
    return str(error)


def _number(row: Row, name: str) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` must be a number of at least 0, is {row[name]!r}")
    return value


def _tokens(row: Row, name: str) -> int:
    """Read a number of tokens; at least 1, since a request without a prompt or an answer is none."""
    value = _number(row, name)
    if value != int(value):
        raise ValueError(f"`{name}` must be a whole number, is {row[name]!r}")
    return max(int(value), 1)


def _optional(row: Row, name: str) -> int | None:
    return _tokens(row, name) if row.get(name) else None


def _from_csv(row: Row) -> Planned:
    priority = row.get("priority")
    return Planned(
        at=_number(row, "arrival_seconds"),
        prompt_tokens=_tokens(row, "prompt_tokens"),
        output_tokens=_tokens(row, "completion_tokens"),
        stream=True,
        max_tokens=_optional(row, "max_tokens"),
        priority=int(priority) if priority else None,
        session=row.get("session") or None,
    )


def _from_azure(row: Row) -> Planned:
    moment = datetime.fromisoformat(str(row["TIMESTAMP"]).strip())
    return Planned(
        at=(moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds(),  # noqa: DTZ001  (only differences count)
        prompt_tokens=_tokens(row, "ContextTokens"),
        output_tokens=_tokens(row, "GeneratedTokens"),
        stream=True,
    )


def _from_mooncake(row: Row) -> Planned:
    return Planned(
        at=_number(row, "timestamp") / 1000.0,
        prompt_tokens=_tokens(row, "input_length"),
        output_tokens=_tokens(row, "output_length"),
        stream=True,
    )


def _from_burstgpt(row: Row) -> Planned | None:
    if _number(row, "Response tokens") == 0:
        return None
    return Planned(
        at=_number(row, "Timestamp"),
        prompt_tokens=_tokens(row, "Request tokens"),
        output_tokens=_tokens(row, "Response tokens"),
        stream=True,
    )


_READERS: dict[Format, tuple[Callable[[Row], Planned | None], tuple[str, ...]]] = {
    "csv": (_from_csv, _CSV_REQUIRED),
    "azure": (_from_azure, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")),
    "mooncake": (_from_mooncake, ()),
    "burstgpt": (_from_burstgpt, ("Timestamp", "Request tokens", "Response tokens")),
}
