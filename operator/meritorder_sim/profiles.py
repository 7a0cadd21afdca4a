"""Latency profiles: how fast one replica is, given how many requests it runs and how long their inputs are.

Two quantities in milliseconds: `tpot_ms`, the time per output token, and `prefill_ms`, the time from
admission to the first token. A profile comes from one of three places: a built-in name
(`llama-3.1-8b/l40s`; numbers and source in `profile_data/`), six coefficients, or a CSV of measured points
with the header `running,input_tokens,ttft_ms,tpot_ms` (one row per measured pair; `ttft_ms` without
queueing). Between points the CSV is interpolated linearly, past the largest `running` the last slope goes
on, and a value never falls as `running` grows.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

MEASURED_COLUMNS = ("running", "input_tokens", "ttft_ms", "tpot_ms")
DEFAULT_KV_CACHE_TOKENS = 400_000
_BUILT_IN_MODELS = ("llama-3.1-8b",)


class ProfileError(ValueError):
    """A profile that does not exist or cannot be used; the text is one sentence for the user."""


class LatencyProfile(Protocol):
    """What the engine needs to know about a card and a model."""

    @property
    def name(self) -> str: ...

    @property
    def kv_cache_tokens(self) -> int: ...

    def tpot_ms(self, running: float, input_tokens: float) -> float: ...

    def prefill_ms(self, running: float, input_tokens: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProfile:
    """Six coefficients: tpot = a0 + a1*b + a2*b*ISL/1000, prefill = c0 + c1*ISL + c2*ISL*log2(b), in ms."""

    name: str
    tpot: tuple[float, float, float]
    ttft: tuple[float, float, float]
    kv_cache_tokens: int = DEFAULT_KV_CACHE_TOKENS

    def tpot_ms(self, running: float, input_tokens: float) -> float:
        a0, a1, a2 = self.tpot
        return a0 + running * (a1 + a2 * input_tokens / 1000.0)

    def prefill_ms(self, running: float, input_tokens: float) -> float:
        c0, c1, c2 = self.ttft
        return c0 + input_tokens * (c1 + c2 * math.log2(max(running, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """Values over `running` at one input length; both strictly ordered, values never falling."""

    input_tokens: float
    running: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredProfile:
    """Measured points, interpolated first over `running`, then over input length (flat outside its range)."""

    name: str
    curves: tuple[_Curve, ...]
    kv_cache_tokens: int = DEFAULT_KV_CACHE_TOKENS

    def tpot_ms(self, running: float, input_tokens: float) -> float:
        return self._between([_on_line(c.running, c.tpot_ms, running) for c in self.curves], input_tokens)

    def prefill_ms(self, running: float, input_tokens: float) -> float:
        return self._between([_on_line(c.running, c.ttft_ms, running) for c in self.curves], input_tokens)

    def _between(self, values: Sequence[float], input_tokens: float) -> float:
        lengths = [curve.input_tokens for curve in self.curves]
        if len(lengths) == 1 or input_tokens <= lengths[0]:
            return values[0]
        if input_tokens >= lengths[-1]:
            return values[-1]
        return _on_line(lengths, values, input_tokens)


def _on_line(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Interpolate; flat before the first point, on the last slope after the last."""
    if len(xs) == 1 or x <= xs[0]:
        return ys[0]
    right = min(bisect_right(xs, x), len(xs) - 1)
    left = right - 1
    return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])


def built_in_names() -> tuple[str, ...]:
    """List the profiles that come with the package."""
    return tuple(sorted(profile.name for model in _BUILT_IN_MODELS for profile in _read_built_in(model)))


def built_in(name: str) -> LinearProfile:
    """Return a built-in profile by its name, `MODEL/ACCELERATOR`."""
    for model in _BUILT_IN_MODELS:
        for profile in _read_built_in(model):
            if profile.name == name:
                return profile
    raise ProfileError(f"profile '{name}' is not built in; must be one of {', '.join(built_in_names())}")


def measured(path: Path) -> MeasuredProfile:
    """Read a CSV of measured points."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ProfileError(f"profile '{path}' cannot be read: {reason}") from error
    reader = csv.DictReader(_without_comments(text))
    if tuple(reader.fieldnames or ()) != MEASURED_COLUMNS:
        seen = ",".join(reader.fieldnames or ()) or "nothing"
        raise ProfileError(f"profile '{path}' must have the header {','.join(MEASURED_COLUMNS)}, has {seen}")
    points: dict[float, list[tuple[float, float, float]]] = {}
    for number, row in enumerate(reader, start=1):
        running, input_tokens, ttft, tpot = _row(path, number, row)
        points.setdefault(input_tokens, []).append((running, ttft, tpot))
    if not points:
        raise ProfileError(f"profile '{path}' has no points")
    curves = tuple(_curve(path, length, rows) for length, rows in sorted(points.items()))
    return MeasuredProfile(name=path.stem, curves=curves)


def resolve(profile: str, *, base: Path | None = None) -> LatencyProfile:
    """Turn what stands in a pools file into a profile: a name in .csv is a path, relative to `base`."""
    if profile.endswith(".csv"):
        return measured((base or Path()) / profile)
    return built_in(profile)


def _read_built_in(model: str) -> list[LinearProfile]:
    text = (files(__package__) / "profile_data" / f"{model}.csv").read_text(encoding="utf-8")
    return [
        LinearProfile(
            name=f"{model}/{row['accelerator']}",
            tpot=(float(row["a0"]), float(row["a1"]), float(row["a2"])),
            ttft=(float(row["c0"]), float(row["c1"]), float(row["c2"])),
            kv_cache_tokens=int(row["kv_cache_tokens"]),
        )
        for row in csv.DictReader(_without_comments(text))
    ]


def _without_comments(text: str) -> Iterable[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _row(path: Path, number: int, row: dict[str, str]) -> tuple[float, float, float, float]:
    values = []
    for column in MEASURED_COLUMNS:
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value) or value <= 0:
            raise ProfileError(
                f"profile '{path}', point {number}: `{column}` must be a number above 0, is {row[column]!r}"
            )
        values.append(value)
    return values[0], values[1], values[2], values[3]


def _curve(path: Path, input_tokens: float, rows: list[tuple[float, float, float]]) -> _Curve:
    rows = sorted(rows)
    running = tuple(row[0] for row in rows)
    if len(set(running)) != len(running):
        raise ProfileError(
            f"profile '{path}' has two points for the same `running` at {input_tokens:g} input tokens"
        )
    return _Curve(
        input_tokens=input_tokens,
        running=running,
        ttft_ms=_never_falling(row[1] for row in rows),
        tpot_ms=_never_falling(row[2] for row in rows),
    )


def _never_falling(values: Iterable[float]) -> tuple[float, ...]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1]) if result else value)
    return tuple(result)
