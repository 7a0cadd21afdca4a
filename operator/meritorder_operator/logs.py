"""Logs: one JSON object per line in a pod, plain lines on a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, TextIO

QUIET: Final = ("kopf", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp", "asyncio")
"""Libraries whose everyday chatter is of no use to who runs this."""


class JsonFormatter(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """`time`, `level`, `logger` and `message`, then the terms of a decision."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        terms = getattr(record, "terms", None)
        if isinstance(terms, dict):
            line |= {key: value for key, value in terms.items() if key not in line}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class LineFormatter(logging.Formatter):
    """A record as a line for people, terms behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """The time of day, the level, the message, the terms."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        line = f"{moment} {record.levelname.lower():7} {record.getMessage()}"
        terms = getattr(record, "terms", None)
        if isinstance(terms, dict) and record.levelno <= logging.DEBUG:
            line += " " + " ".join(f"{key}={value}" for key, value in terms.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(log_format: str, level: str, stream: TextIO = sys.stderr) -> None:
    """Send logs to a stream; `auto` is pretty on a terminal, else JSON."""
    pretty = log_format == "pretty" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter() if pretty else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
