"""The report's page: headline, charts, pools, decisions, and how every number is computed."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from meritorder_api.reasons import Action
from meritorder_cli.document import DecisionRecord, Document
from meritorder_cli.report import charts, words
from meritorder_cli.report.figures import colour, figures

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def build(run: Mapping[str, Any]) -> str:
    """Make the page from a run's JSON. It asks nobody for anything: its own policy forbids every request."""
    document = Document.model_validate(run)
    style = (files(__package__) / "style.css").read_text(encoding="utf-8")
    script = (files(__package__) / "script.js").read_text(encoding="utf-8")
    # No text inside the JSON may end the script element.
    data = json.dumps(run, separators=(",", ":")).replace("<", "\\u003c")
    title = f"Meritorder: {document.policy}"
    body = "".join(
        (
            _header(document),
            _cards(document),
            _events(document),
            "<h2>What happened</h2>",
            figures(document),
            _pools(document),
            _decisions(document),
            _how(document),
            _footer(document),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main>"
        f'<script type="application/json" id="run">{data}</script><script>{script}</script></body></html>\n'
    )


def _header(document: Document) -> str:
    window = document.sla["windowSeconds"]
    note = f" ({escape(document.note)})" if document.note else ""
    simulated = "simulated pools, real Envoy" if document.simulated else "standalone run"
    return (
        f'<header><p class="kind">Meritorder · {simulated} · {escape(document.started_at)} · '
        f"{charts.clock(document.seconds)} min</p>"
        f"<h1>{escape(document.policy)}: {escape(words.promise(document.sla))}</h1>"
        f'<p class="lead">{escape(words.verdict(document))}</p>'
        f'<p class="soft">Judged over windows of {window} s{note}.</p></header>'
    )


def _cards(document: Document) -> str:
    figures = words.contender(document)
    requests = figures.requests
    met = words.kept(document)
    cards = [
        (
            words.seconds(figures.attained_seconds),
            f"p{document.sla['percentile']}, target {words.seconds(words.target_seconds(document))}; "
            f"{words.windows(document)}",
            "bad" if met is False else "good" if met and figures.windows.met == figures.windows.total else "",
        ),
        (
            words.count(requests.total),
            f"requests; {words.count(requests.slow)} slow, {words.count(requests.failed)} failed",
            "bad" if requests.failed else "",
        ),
    ]
    share = words.cheapest_share(document)
    if share is not None:
        cards.append((words.whole_percent(share[1]), f"of them on {share[0]}, the cheapest pool", ""))
    saving = words.token_saving(document)
    if saving is not None:
        cards.append(
            (
                words.percent(saving),
                f"saved on the tokens against all on {document.fallback_pool} "
                f"({words.dollars(figures.reference_cost)} for "
                f"{words.dollars(figures.reference_cost_on_fallback)})",
                "good" if saving > 0 else "bad",
            )
        )
    elif document.series:
        last = document.series[-1]
        if last.cost_per_hour is not None:
            needed = (
                f"; {words.dollars(last.needed_per_hour)} needed" if last.needed_per_hour is not None else ""
            )
            cards.append((words.dollars(last.cost_per_hour), f"per hour for what is ready{needed}", ""))
    return (
        '<section class="cards">'
        + "".join(
            f'<div class="card"><b class="{css}">{escape(big)}</b><span>{escape(small)}</span></div>'
            for big, small, css in cards
        )
        + "</section>"
    )


def _events(document: Document) -> str:
    if not document.events:
        return ""
    items = "".join(
        f"<li><i>{number}</i>{charts.clock(event.at)} {escape(event.message)}</li>"
        for number, event in enumerate(document.events, start=1)
    )
    return f'<ol class="events">{items}</ol>'


def _pools(document: Document) -> str:
    facts = {pool.name: pool for pool in document.pools}
    figures = words.contender(document).pools
    shares = words.shares(document)
    heads = (
        "Pool",
        "Runs on",
        "Price",
        "Replicas",
        "Requests",
        "Share",
        f"p{document.sla['percentile']}",
        "Limit per replica",
        "Tokens out",
    )
    rows = []
    for pool in figures:
        fact = facts.get(pool.name)
        price = (
            f"{words.dollars(fact.price_per_replica_hour)}/h"
            if fact and fact.price_per_replica_hour is not None
            else words.DASH
        )
        enforced = ", not enforced" if pool.name == document.fallback_pool else ""
        values = (
            f'<span><span class="swatch {colour(document, pool.name)}"></span>{escape(pool.name)}</span>',
            escape((fact.accelerator if fact else None) or words.DASH),
            price,
            words.count(fact.replicas if fact else None),
            words.count(pool.requests),
            words.whole_percent(shares[pool.name]),
            words.seconds(pool.attained_seconds),
            f"{words.limit(pool.final_limit_per_replica)}{enforced}"
            if pool.final_limit_per_replica is not None
            else words.DASH,
            words.count(pool.completion_tokens),
        )
        cells = "".join(
            f'<td class="{"w" if index < 2 else "n"}" data-name="{escape(head)}">{value}</td>'
            for index, (head, value) in enumerate(zip(heads, values, strict=True))
        )
        rows.append(f"<tr>{cells}</tr>")
    head = "".join(
        f'<th class="{"w" if index < 2 else "n"}">{escape(text)}</th>' for index, text in enumerate(heads)
    )
    return (
        "<h2>Pools, in merit order</h2>"
        f'<table class="pools"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _decisions(document: Document) -> str:
    turns = [record for record in document.decisions if record.action != Action.HOLD]
    holds = [record for record in document.decisions if record.action == Action.HOLD]
    text = (
        "Each that changed something. Limits are requests in flight per ready replica after the decision; "
        "the fallback pool has none."
    )
    parts = [
        "<h2>Decisions</h2>",
        f'<p class="soft">{text}</p>{_table(turns)}' if turns else "<p>None changed anything.</p>",
    ]
    if holds:
        head = f"{len(holds)} times it held (the first of each run of holds for one reason)"
        parts.append(f"<details><summary>{head}</summary>{_table(holds)}</details>")
    return "".join(parts)


def _table(records: Sequence[DecisionRecord]) -> str:
    rows = []
    for record in records:
        limits = ", ".join(
            f"{name} {words.limit(value)}" for name, value in record.limits.items() if value is not None
        )
        rows.append(
            f'<tr><td class="t">{charts.clock(record.at)}</td>'
            f'<td class="w"><b>{escape(record.action)}</b></td>'
            f'<td class="w soft">{escape(record.reason)}</td><td class="m">{escape(record.message)}</td>'
            f'<td class="soft limits">{escape(limits)}</td></tr>'
        )
    heads = "".join(f"<th>{head}</th>" for head in ("Time", "Action", "Reason", "Why", "Limits"))
    return f'<table class="decisions"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _how(document: Document) -> str:
    percentile, window = document.sla["percentile"], document.sla["windowSeconds"]
    fallback = document.fallback_pool
    figures = words.contender(document)
    warmup = figures.warmup
    entries = [
        (
            "Requests",
            "From the router's own counters, each request once however many pools were tried. The first "
            f"{document.warmup_seconds:g} s "
            f"are warm-up and left out of every figure ({words.count(warmup.requests)} requests, "
            f"{words.count(warmup.slow)} slow); the charts show them shaded.",
        ),
        (
            "Slow",
            f"Took longer than {words.seconds(words.target_seconds(document))}, or failed. Counted request "
            "by request, not read off a histogram.",
        ),
        (
            f"p{percentile}",
            "Read off Envoy's latency histogram by linear interpolation between its bounds, so it is exact "
            "only to the width of a bucket. "
            "Whether the SLA is met never rests on it but on the count of slow requests.",
        ),
        (
            "Windows",
            f"{window} s each, one after the other from the start of the run, by time of completion; those "
            "with fewer than 20 requests do not count. "
            f"Met: at most {100 - percentile} % slow.",
        ),
        (
            "Limit",
            "Requests in flight per ready replica that a pool is let take, learned from the slow share at "
            "each load. The fallback pool's is learned too but not enforced.",
        ),
    ]
    references = [pool for pool in document.pools if pool.reference_cost_per_million_tokens is not None]
    if references:
        prices = ", ".join(
            f"{pool.name} {words.dollars(pool.reference_cost_per_million_tokens)}" for pool in references
        )
        entries.append(
            (
                "Cost of the tokens",
                f"Completion tokens of each pool x its reference price per million ({prices}), and the same "
                f"tokens x that of {fallback}. "
                "Reference prices are those of a well-filled pool; they are an input of the run, not "
                "measured by it.",
            )
        )
    bill = (
        f" In this run: {words.dollars(figures.bill)} for what was ready, "
        f"{words.dollars(figures.bill_needed)} for what was needed, over "
        f"{charts.clock(max(document.seconds - document.warmup_seconds, 0))} min."
        if figures.bill is not None and figures.bill_needed is not None
        else ""
    )
    entries.append(
        (
            "Bill",
            "Ready replicas x price per replica-hour, used or not. Needed: the replicas that the recent "
            "peak needs at the learned limits, with a tenth to spare. "
            f"All on {fallback}: the replicas of {fallback} that would complete the peak's requests per "
            "second at its limit, as far as it was measured; a pool never "
            "driven to its limit counts with the most it was seen to carry well, so that fewer replicas of "
            f"it may do.{bill}",
        )
    )
    if document.client is not None:
        client = document.client
        entries.append(
            (
                "Cross-check",
                f"The load generator counted for itself: {words.count(client.requests)} requests, "
                f"{words.count(client.slow)} slow, "
                f"{words.count(client.failed)} failed, p{percentile} "
                f"{words.seconds(client.attained_seconds)}.",
            )
        )
    entries.append(
        (
            "Data",
            "Everything above is computed from the JSON inside this page (what <code>--json</code> writes).",
        )
    )
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{text if name == 'Data' else escape(text)}</dd>"
        for name, text in entries
    )
    return f'<h2>How the numbers are computed</h2><dl class="how">{items}</dl>'


def _footer(document: Document) -> str:
    return (
        f"<footer>Written by meritorder from one run of {charts.clock(document.seconds)} min, a decision "
        f"every {document.interval_seconds:g} s. "
        "This file loads nothing from anywhere.</footer>"
    )
