"""Everything that one pass of the decision hands to the next, and how it is kept in `status.learned`.

`Learned` is a value: a pass returns a new one. In status it is "v1:" and compressed JSON in base64, at most
32 KiB: where it would be more (16 pools with 8 size classes each), the curves are written with coarser
buckets. What cannot be read is begun anew with a note, never an error: a controller that forgot finds the
limits again, one that crashes does not.

Times are Unix seconds; waits are in windows of the SLA.
"""

import base64
import binascii
import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

PREFIX = "v1:"
MAXIMUM_BYTES = 32 * 1024
_MAXIMUM_PLAIN = 4 * 1024 * 1024
"""Nothing that we wrote unpacks to more: a bound on what a forged status can make us allocate."""


class Cell(NamedTuple):
    """Decayed evidence at one load: completed requests, slow ones, the sum of their seconds, their output
    tokens."""

    total: float
    slow: float
    seconds: float
    tokens: float


class Look(NamedTuple):
    """One interval's evidence, newer than one window: not yet folded into the curve."""

    at: float
    """End of the interval."""
    span: float
    """Seconds that it covers."""
    load: float
    """Mean in-flight per ready replica."""
    total: float
    slow: float
    seconds: float
    tokens: float


Curve = Mapping[int, Cell]
"""Evidence by bucket of load, see `curve`."""


class Block(NamedTuple):
    """The highest value within one stretch of time, for "the peak of the last 60 windows"."""

    number: int
    highest: float


Peak = tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMemory:
    """One learned limit: of a pool, or of one size class within a pool."""

    limit: float
    """Requests in flight per ready replica; 0: drained."""
    changed_at: float = 0.0
    learn_after: float = 0.0
    """What finishes earlier was admitted under another limit: not learned from."""
    fresh_from: float = 0.0
    """What finishes later was admitted under the present limit."""
    fresh: float = 0.0
    """Samples since then."""
    fresh_slow: float = 0.0
    former: float = 0.0
    """Limit before the last slow-down; 0: none. Growth is quick up to about here."""
    probe_wait: float = 4.0
    probed_at: float = 0.0
    """0: no probe under way."""
    retry_wait: float = 1.0
    retry_at: float = 0.0
    """When a drained pool is tried again; 0: neither drained nor on trial."""
    look_slow: float = 0.0
    """Slow requests that the last look at a drained pool cost."""
    met_load: float = 0.0
    """Largest in-flight per replica at which it was seen to meet the SLA; 0: never."""
    met_seconds: float = 0.0
    """Mean seconds of a request there."""
    edge_seen: bool = False
    """Slow requests, or the maximum, stopped the growth: the limit is a measured one."""
    curve: Curve = field(default_factory=dict)
    curve_at: float = 0.0
    """Until when the curve's counts are decayed."""
    looks: tuple[Look, ...] = ()


class Edge(NamedTuple):
    """What was measured at a pool's limit, kept when the evidence for it has faded."""

    load: float
    """The limit: requests in flight per ready replica."""
    seconds: float
    """Mean seconds of a request there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMemory:
    """What is remembered of a pool."""

    main: LimitMemory
    classes: Mapping[int, LimitMemory] = field(default_factory=dict)
    sampled_at: float = 0.0
    """Time of the newest sample that was learned from."""
    ready: int | None = None
    price: float | None = None
    """Last known price of a replica-hour, in dollars."""
    peak: Peak = ()
    """Mean in-flight of the whole pool over one window."""
    edge: Edge | None = None
    """None: never measured, or no longer true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The memory of one policy."""

    generation: int = 0
    """Generation of the spec that `fallback` was fixed for; 0: nothing was decided yet."""
    promise: str = ""
    """Metric, percentile and target that the evidence speaks of."""
    promised_at: float = 0.0
    """When that promise was first seen: older samples are of another one."""
    fallback: str = ""
    order: tuple[str, ...] = ()
    ordered_at: float = 0.0
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)
    peak_rate: Peak = ()
    """Requests per second of the whole policy, mean over one window."""
    prompt_tokens: float = 0.0
    """Of this policy's mean request; 0: not known."""
    completion_tokens: float = 0.0
    note: str = ""
    """Why memory was begun anew; not kept."""

    @classmethod
    def initial(cls) -> "Learned":
        """Nothing known."""
        return cls()

    def encode(self) -> str:
        """Write for `status.learned`: at most 32 KiB, coarser where it must be."""
        text = ""
        for pool_step, class_step in ((1, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (0, 0)):
            plain = json.dumps(_write(self, pool_step, class_step), separators=(",", ":"))
            text = PREFIX + base64.b64encode(zlib.compress(plain.encode())).decode()
            if len(text) <= MAXIMUM_BYTES:
                break
        return text

    @classmethod
    def decode(cls, text: str | None) -> "Learned":
        """Read what `encode` wrote; anything else is `initial` with a note."""
        if not text:
            return cls.initial()
        if not text.startswith(PREFIX):
            return cls(note=f"learned state is of an unknown version ({text[:8]!r}): begun anew")
        try:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(base64.b64decode(text[len(PREFIX) :], validate=True), _MAXIMUM_PLAIN)
            return _read(json.loads(plain))
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
            zlib.error,
            binascii.Error,
        ) as error:
            return cls(note=f"learned state cannot be read ({type(error).__name__}): begun anew")


# --- the wire form: lists in the order of the fields, numbers rounded ---

_PLAIN = [f.name for f in fields(LimitMemory) if f.name not in ("curve", "looks")]
_TIMES = frozenset({"changed_at", "learn_after", "fresh_from", "probed_at", "retry_at", "curve_at"})
_FLAGS = frozenset({"edge_seen"})


def _write(learned: Learned, pool_step: int, class_step: int) -> dict[str, Any]:
    return {
        "g": learned.generation,
        "s": learned.promise,
        "t": round(learned.promised_at, 1),
        "f": learned.fallback,
        "o": list(learned.order),
        "ot": round(learned.ordered_at, 1),
        "r": _write_peak(learned.peak_rate),
        "k": [_short(learned.prompt_tokens), _short(learned.completion_tokens)],
        "p": {
            name: [
                round(pool.sampled_at, 3),
                pool.ready,
                pool.price,
                _write_peak(pool.peak),
                _write_limit(pool.main, pool_step),
                {str(size): _write_limit(pool.classes[size], class_step) for size in sorted(pool.classes)},
                None if pool.edge is None else [_short(value) for value in pool.edge],
            ]
            for name, pool in sorted(learned.pools.items())
        },
    }


def _write_peak(peak: Peak) -> list[list[float]]:
    return [[block.number, _short(block.highest)] for block in peak]


def _write_limit(memory: LimitMemory, step: int) -> list[Any]:
    """Plain fields, curve in buckets `step` times as wide (0: none), looks (only at full width)."""
    row: list[Any] = []
    for name in _PLAIN:
        value = getattr(memory, name)
        row.append(int(value) if name in _FLAGS else round(value, 1 if name in _TIMES else 4))
    cells: dict[int, list[float]] = {}
    if step:
        for bucket, cell in memory.curve.items():
            wide = bucket // step * step + step // 2
            into = cells.setdefault(wide, [0.0, 0.0, 0.0, 0.0])
            for i, value in enumerate(cell):
                into[i] += value
    row.append([[bucket, *map(_short, cells[bucket])] for bucket in sorted(cells)])
    looks = memory.looks if step == 1 else ()
    row.append([[round(look.at, 1), round(look.span, 1), *map(_short, look[2:])] for look in looks])
    return row


def _short(value: float) -> float:
    """Round to four significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _read(data: dict[str, Any]) -> Learned:
    return Learned(
        generation=int(data["g"]),
        promise=_text(data["s"]),
        promised_at=_number(data["t"]),
        fallback=_text(data["f"]),
        order=tuple(_text(name) for name in data["o"]),
        ordered_at=_number(data["ot"]),
        peak_rate=_read_peak(data["r"]),
        prompt_tokens=_amount(data["k"][0]),
        completion_tokens=_amount(data["k"][1]),
        pools={_text(name): _read_pool(row) for name, row in data["p"].items()},
    )


def _read_pool(row: list[Any]) -> PoolMemory:
    return PoolMemory(
        sampled_at=_number(row[0]),
        ready=None if row[1] is None else int(_amount(row[1])),
        price=None if row[2] is None else _amount(row[2]),
        peak=_read_peak(row[3]),
        main=_read_limit(row[4]),
        classes={int(size): _read_limit(limit) for size, limit in row[5].items()},
        # What an earlier version wrote ends before it.
        edge=_read_edge(row[6]) if len(row) > 6 else None,
    )


def _read_edge(row: list[Any] | None) -> Edge | None:
    return None if row is None else Edge(_amount(row[0]), _amount(row[1]))


def _read_peak(rows: list[list[Any]]) -> Peak:
    return tuple(Block(int(number), _amount(highest)) for number, highest in rows)


def _read_limit(row: list[Any]) -> LimitMemory:
    if len(row) != len(_PLAIN) + 2:
        raise ValueError("another shape")
    values: dict[str, Any] = {}
    for name, value in zip(_PLAIN, row, strict=False):
        reader: Callable[[Any], float] = _number if name in _TIMES else _amount
        values[name] = bool(value) if name in _FLAGS else reader(value)
    return LimitMemory(
        **values,
        curve={int(cell[0]): Cell(*map(_amount, cell[1:])) for cell in row[-2]},
        looks=tuple(Look(_number(look[0]), *map(_amount, look[1:])) for look in row[-1]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def _amount(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError("a negative amount")
    return number


def forget(memory: LimitMemory) -> LimitMemory:
    """Begin the evidence anew and keep the limit as where to start from."""
    return replace(LimitMemory(limit=memory.limit), changed_at=memory.changed_at)
