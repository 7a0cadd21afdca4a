"""What is not known is said, with its reason, and is never 0; and it comes back by itself."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meritorder_api import metric_names as m
from meritorder_core.inputs import Counts, Missing, Sample
from meritorder_operator.prometheus.client import Server
from meritorder_operator.prometheus.source import PrometheusSource
from prometheus.exporter import Exporter
from prometheus.far_end import FarEnd
from prometheus.routers import RouterSeries, Watcher, a_request, a_spec, sampled, scraping
from servers.pki import Authority
from servers.prometheus import Prometheus

SECRET = "what nobody else may read"


async def test_no_requests_is_idle_and_not_missing(
    router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))

    seen = await watcher.sees("l40s", sampled, "a sample")

    assert isinstance(seen, Sample)
    assert (seen.window.total, seen.recent.total, seen.in_flight) == (0, 0, 0)
    assert watcher.inputs is not None
    assert isinstance(watcher.inputs.client, Counts)


async def test_an_agent_without_a_table_is_idle(
    exporter: Exporter, server: Server, source: PrometheusSource
) -> None:
    exporter.set(m.APPLIED_SEQUENCE, -1, policy="chat")
    watcher = Watcher(source, a_request(server))

    seen = await watcher.sees("l40s", sampled, "a sample")

    assert isinstance(seen, Sample)
    assert seen.window.total == 0


async def test_agents_scraped_without_their_envoys_are_no_idle_ones(
    exporter: Exporter, server: Server, source: PrometheusSource
) -> None:
    exporter.set(m.APPLIED_SEQUENCE, 3, policy="chat")
    watcher = Watcher(source, a_request(server))

    missing = await watcher.sees(
        "l40s", lambda o: isinstance(o, Missing) and "`/metrics/agent`" in o.message, "it is told"
    )

    assert isinstance(missing, Missing)
    assert missing.reason == "NoSeries"
    assert "`/metrics`" in missing.message


async def test_no_router_is_no_series(exporter: Exporter, server: Server, source: PrometheusSource) -> None:
    exporter.set("something", 1)
    watcher = Watcher(source, a_request(server))

    missing = await watcher.misses("l40s", "NoSeries")

    assert 'policy="chat"' in missing.message
    assert isinstance(watcher.inputs and watcher.inputs.client, Missing)


async def test_nan_is_not_a_number_and_passes(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    router.completed("l40s", 1000)
    await watcher.sees("l40s", sampled, "a sample")

    exporter.set(m.SAMPLES, float("nan"), policy="chat", pool="l40s")
    await watcher.misses("l40s", "NotANumber")
    assert watcher.inputs is not None
    assert isinstance(watcher.inputs.pools["h100"].observation, Sample)

    exporter.set(m.SAMPLES, 1010, policy="chat", pool="l40s")
    seen = await watcher.sees("l40s", sampled, "a sample again")
    assert isinstance(seen, Sample)
    assert seen.recent.total <= 10


async def test_targets_that_are_gone_are_stale_and_come_back(
    exporter: Exporter, router: RouterSeries, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server, a_spec(staleness=3)))
    first = await watcher.sees("l40s", sampled, "a sample")

    exporter.stop()
    missing = await watcher.misses("l40s", "MetricsStale")
    assert "3 s" in missing.message
    # Until it was stale, the last sample stood.
    assert isinstance(first, Sample)

    exporter.start()
    await watcher.sees("l40s", sampled, "a sample again")


async def test_a_stopped_prometheus_is_unreachable_and_what_it_missed_is_asked_for(
    exporter: Exporter,
    router: RouterSeries,
    metrics: Prometheus,
    server: Server,
    source: PrometheusSource,
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "a sample")

    metrics.stop()
    missing = await watcher.misses("l40s", "PrometheusUnreachable")
    assert missing.message == f"{server.url} refused the connection"

    router.completed("l40s", 30, slow=3)
    metrics.start()
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.window.total > 0, "a sample again")
    assert sum(sample.recent.total for sample in watcher.samples["l40s"]) == 30


async def test_a_frozen_prometheus_does_not_answer(
    router: RouterSeries, metrics: Prometheus, server: Server
) -> None:
    source = PrometheusSource(timeout_seconds=1)
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "a sample")

    metrics.pause()
    missing = await watcher.misses("l40s", "PrometheusUnreachable")
    assert missing.message == f"{server.url} did not answer within 1 s"

    metrics.resume()
    await watcher.sees("l40s", sampled, "a sample again")
    await source.close()


async def test_an_emptied_prometheus_counts_nothing_twice(
    exporter: Exporter, router: RouterSeries, metrics: Prometheus, server: Server, source: PrometheusSource
) -> None:
    watcher = Watcher(source, a_request(server))
    await watcher.sees("l40s", sampled, "a sample")
    router.completed("l40s", 1000, slow=1000)
    await watcher.sees("l40s", lambda o: isinstance(o, Sample) and o.recent.total > 0, "they are counted")

    metrics.wipe()
    seen = len(watcher.samples["l40s"])
    await watcher.until(lambda _: len(watcher.samples["l40s"]) >= seen + 3, "samples go on")

    assert sum(sample.recent.total for sample in watcher.samples["l40s"]) == 1000


async def test_scraping_too_seldom_is_told_with_numbers(
    exporter: Exporter, router: RouterSeries, prometheus: Callable[..., Prometheus], source: PrometheusSource
) -> None:
    server = Server(url=scraping(prometheus, [exporter.address], "5s").url)
    watcher = Watcher(source, a_request(server, a_spec(window=15)))

    missing = await watcher.misses("l40s", "ScrapeTooSlow")

    assert missing.message.startswith("scraped every 5 s, 3.0 times in 15 s")


async def test_no_server_at_all_is_said(source: PrometheusSource) -> None:
    watcher = Watcher(source, a_request(None))

    missing = await watcher.misses("l40s", "PrometheusUnreachable")

    assert "--prometheus-url" in missing.message


@pytest.fixture
def far_end() -> Iterator[FarEnd]:
    far_end = FarEnd()
    yield far_end
    far_end.close()


@pytest.mark.parametrize(
    ("status", "body", "reason", "says"),
    [
        (401, SECRET, "PrometheusUnauthorized", "refused the credentials (401); check `authSecretRef`"),
        (403, SECRET, "PrometheusUnauthorized", "refused the credentials (403); check `authSecretRef`"),
        (302, SECRET, "QueryRefused", "answered with a redirect (302), which is not followed"),
        (500, SECRET, "PrometheusUnreachable", "answered 500"),
        (404, SECRET, "QueryRefused", "refused the query (404)"),
        (422, json.dumps({"status": "error", "errorType": "execution", "error": SECRET}), "QueryRefused",
         "refused the query (422, execution)"),
        (400, json.dumps({"status": "error", "errorType": SECRET, "error": SECRET}), "QueryRefused",
         "refused the query (400)"),
        (200, f"<html>{SECRET}</html>", "QueryRefused", "did not answer as Prometheus does; check the URL"),
        (200, json.dumps({"status": "success", "data": {"result": [SECRET]}}), "QueryRefused",
         "did not answer as Prometheus does; check the URL"),
        (200, json.dumps([SECRET]), "QueryRefused", "did not answer as Prometheus does; check the URL"),
        (200, SECRET * 100_000, "QueryRefused", "answered with more than 1024 KiB; the rest is not read"),
    ],
)  # fmt: skip
async def test_a_bad_answer_has_its_reason_and_is_not_quoted(
    far_end: FarEnd, status: int, body: str, reason: str, says: str
) -> None:
    source = PrometheusSource(timeout_seconds=3, reply_limit=1024 * 1024)
    far_end.status, far_end.body = status, body.encode()
    far_end.headers = {"Location": f"http://127.0.0.1:{far_end.port}/elsewhere"} if status == 302 else {}
    server = Server(url=f"http://127.0.0.1:{far_end.port}/prometheus/")

    missing = await Watcher(source, a_request(server)).misses("l40s", reason)

    assert missing.message == f"http://127.0.0.1:{far_end.port} {says}"
    assert {path for path, _ in far_end.seen} == {"/prometheus/api/v1/query_range"}
    await source.close()


@pytest.mark.parametrize("kind", ["token", "file", "basic"])
async def test_credentials_are_sent_as_they_are_meant(
    far_end: FarEnd, source: PrometheusSource, tmp_path: Path, kind: str
) -> None:
    url = f"http://127.0.0.1:{far_end.port}"
    (tmp_path / "token").write_text("t0k3n\n")
    basic = base64.b64encode(b"me:pass").decode()
    server, expected = {
        "token": (Server(url=url, token="t0k3n"), "Bearer t0k3n"),
        "file": (Server(url=url, token_file=tmp_path / "token"), "Bearer t0k3n"),
        "basic": (Server(url=url, username="me", password="pass"), f"Basic {basic}"),
    }[kind]

    await Watcher(source, a_request(server)).look()

    assert {authorization for _, authorization in far_end.seen} == {expected}
    assert "t0k3n" not in repr(server)
    assert "pass'" not in repr(server)


async def test_a_certificate_of_another_authority_is_not_trusted(
    source: PrometheusSource, tmp_path: Path
) -> None:
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    pair = theirs.issue("prometheus", "prometheus", names=["127.0.0.1"])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pair.certificate, pair.key)
    far_end = FarEnd(tls)
    url = f"https://127.0.0.1:{far_end.port}"

    missing = await Watcher(source, a_request(Server(url=url, ca=ours.certificate.read_text()))).misses(
        "l40s", "PrometheusUnreachable"
    )
    assert missing.message.startswith(f"{url} is not trusted: ")

    trusting = Watcher(source, a_request(Server(url=url, ca=theirs.certificate.read_text()), name="other"))
    assert (await trusting.misses("l40s", "QueryRefused")).message.startswith(f"{url} did not answer")

    broken = Watcher(source, a_request(Server(url=url, ca="no certificate"), name="third"))
    assert "not a PEM certificate" in (await broken.misses("l40s", "PrometheusUnreachable")).message
    far_end.close()
