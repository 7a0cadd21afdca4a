"""How the report and the summary say numbers: durations, money, shares, and the sentences on top."""

from collections.abc import Mapping
from typing import Any

from meritorder_api.policy import SLAMetric
from meritorder_cli.document import Contender, Document
from meritorder_core.shares import whole_percents

_KEPT = {
    "EndToEndLatency": "requests finished within",
    "TimeToFirstToken": "streams had their first token within",
    "TimePerOutputToken": "streams took per token at most",
}
DASH = "–"  # noqa: RUF001  an en dash, for "not known"


def seconds(value: float | None) -> str:
    """Seconds for people: `1.62 s`, `480 ms`."""
    if value is None:
        return DASH
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def age(value: float) -> str:
    """How long ago in seconds something was, as kubectl says it: `48s`, `12m`, `3h12m`, `5d4h`."""
    whole = max(0, int(value))
    for size, unit, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 0, "")):
        if whole >= size:
            rest = whole % size // below if below and whole < 10 * size else 0
            return f"{whole // size}{unit}" + (f"{rest}{small}" if rest else "")
    return f"{whole}s"


def milliseconds(value: float | None) -> str:
    """Milliseconds for people."""
    return seconds(None if value is None else value / 1000)


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return DASH if value is None else f"{value * 100:.{digits}f} %"


def whole_percent(value: int | None) -> str:
    """A share that is already in whole percent."""
    return DASH if value is None else f"{value} %"


def dollars(value: float | str | None, digits: int = 2) -> str:
    """An amount of US dollars; small ones with as many decimals as they need."""
    if value is None:
        return DASH
    amount = float(value)
    if 0 < abs(amount) < 0.1:
        digits = max(digits, 4)
    return f"-${-amount:,.{digits}f}" if amount < 0 else f"${amount:,.{digits}f}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return DASH if value is None else f"{value:,.0f}"


def limit(value: float | None) -> str:
    """A limit per replica."""
    return "unlimited" if value is None else f"{value:g}"


def judged(document: Document) -> str:
    """What the figures of the SLA count: every request, or only those that were streams."""
    return "requests" if document.sla["metric"] == SLAMetric.END_TO_END else "streams judged"


def contender(document: Document) -> Contender:
    """The one contender of a run."""
    return document.contenders[0]


def target_seconds(document: Document) -> float:
    """The SLA's target."""
    return float(document.sla["targetMilliseconds"]) / 1000


def promise(sla: Mapping[str, Any]) -> str:
    """An SLA, as JSON has it, in words: `95 % of requests within 2.00 s`."""
    what = {
        "EndToEndLatency": "of requests",
        "TimeToFirstToken": "of first tokens",
        "TimePerOutputToken": "of token gaps",
    }
    return f"{sla['percentile']} % {what[sla['metric']]} within {seconds(sla['targetMilliseconds'] / 1000)}"


def kept(document: Document) -> bool | None:
    """Whether the run as a whole met its SLA; None when there were too few requests to say."""
    requests = contender(document).requests
    if requests.total < 20:
        return None
    return requests.slow / requests.total <= 1 - float(document.sla["percentile"]) / 100 + 1e-12


def token_saving(document: Document) -> float | None:
    """Share saved on the tokens against all on the fallback pool; None without reference prices."""
    figures = contender(document)
    if figures.reference_cost is None or not float(figures.reference_cost_on_fallback or 0):
        return None
    return 1 - float(figures.reference_cost) / float(figures.reference_cost_on_fallback or 0)


def shares(document: Document) -> dict[str, int | None]:
    """Each pool's share of the requests in whole percent, in merit order; None where there was no request."""
    pools = contender(document).pools
    total = sum(pool.requests for pool in pools)
    percents = whole_percents([pool.requests / total if total else None for pool in pools])
    return {pool.name: part for pool, part in zip(pools, percents, strict=True)}


def cheapest_share(document: Document) -> tuple[str, int] | None:
    """The first pool in merit order, and its share of the requests in whole percent."""
    name, part = next(iter(shares(document).items()))
    return None if part is None else (name, part)


def in_windows(document: Document) -> str:
    """In how many of the windows the SLA was met, in words: `12 of 14 windows of 6 s`."""
    judged = contender(document).windows
    return f"{judged.met} of {judged.total} windows of {document.sla['windowSeconds']} s"


def windows(document: Document) -> str:
    """In how many windows the SLA was met; a short run has none to judge."""
    if contender(document).windows.total == 0:
        return f"no whole window of {document.sla['windowSeconds']} s with enough requests to judge"
    return f"met in {in_windows(document)}"


def _outcome(document: Document) -> str:
    """Whether the SLA was met: over the run and window by window, for a run that met it may hold windows that
    did not."""
    as_a_whole, judged = kept(document), contender(document).windows
    if as_a_whole is None:
        return "Too few requests to judge the SLA"
    if judged.total == 0:
        word = "met" if as_a_whole else "missed"
        return f"The SLA was {word} over the whole run, with too few requests to judge a window"
    if judged.met == judged.total and as_a_whole:
        return f"The SLA was met in {in_windows(document)}"
    if as_a_whole:
        return f"The SLA was met over the whole run, but only in {in_windows(document)}"
    return f"The SLA was missed over the whole run, and met in {in_windows(document)}"


def verdict(document: Document) -> str:
    """The run in two or three sentences."""
    figures = contender(document)
    requests = figures.requests
    if requests.total == 0:
        return "No request completed after the warm-up, so there is nothing to judge."
    fast = 1 - requests.slow / requests.total
    said = (
        f"{_outcome(document)}: {percent(fast, 1)} of {count(requests.total)} "
        f"{_KEPT[document.sla['metric']]} {seconds(target_seconds(document))} "
        f"({document.sla['percentile']} % are promised); "
        f"{count(requests.failed) if requests.failed else 'none'} failed."
    )
    share = cheapest_share(document)
    if share is not None and len(figures.pools) > 1:
        said += f" {whole_percent(share[1])} went to {share[0]}, the cheapest pool."
    saving = token_saving(document)
    if saving is not None:
        word = "less" if saving >= 0 else "more"
        said += f" The tokens cost {percent(abs(saving))} {word} than on {document.fallback_pool} alone."
    return said
