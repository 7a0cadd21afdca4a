"""The Prometheus that other tests trust, and the faults it is used for."""

from __future__ import annotations

import httpx
import pytest

from servers.prometheus import Prometheus, QueryFailed, StartPrometheus


def on_itself(start: StartPrometheus) -> Prometheus:
    server = start(targets={"self": []})
    server.set_targets("self", [f"127.0.0.1:{server.port}"], {"namespace": "ml"})
    return server


def test_scrapes_itself_and_answers(prometheus: StartPrometheus) -> None:
    server = on_itself(prometheus)
    server.wait_for_targets(1)
    (up,) = server.query("up")
    assert (up.labels["job"], up.labels["namespace"], up.value) == ("self", "ml", 1.0)
    assert server.value("vector(1) * 42") == 42.0
    assert server.value("scalar(vector(7))") == 7.0
    assert server.value("no_such_series") is None


def test_refused_query_says_why(prometheus: StartPrometheus) -> None:
    with pytest.raises(QueryFailed, match="bad_data: invalid parameter"):
        prometheus().query("sum(")


def test_targets_come_and_go_while_it_runs(prometheus: StartPrometheus) -> None:
    server = on_itself(prometheus)
    server.wait_for_targets(1)
    server.set_targets("second", [f"localhost:{server.port}"])
    server.wait_for_targets(2)
    server.set_targets("second", [])
    server.wait_for_targets(1)


def test_stopped_keeps_its_data_and_wiped_loses_them(prometheus: StartPrometheus) -> None:
    server = on_itself(prometheus)
    first = server.wait_for("timestamp(up)")[0].value
    server.stop()
    with pytest.raises(httpx.ConnectError):
        server.query("up")
    server.start()
    assert server.query("up", at=first)[0].at == first
    server.wipe()
    assert server.query("up", at=first) == []


def test_frozen_answers_nothing_until_it_goes_on(prometheus: StartPrometheus) -> None:
    server = on_itself(prometheus)
    server.pause()
    with pytest.raises(httpx.ReadTimeout):
        server.client.get("/-/ready", timeout=0.5)
    server.resume()
    server.wait_for_targets(1)


def test_refuses_a_configuration_that_is_none(prometheus: StartPrometheus) -> None:
    server = prometheus()
    with pytest.raises(ValueError, match="refused its configuration"):
        server.reload("scrape_configs: [{}]")


def test_evaluates_the_rules_it_is_given(prometheus: StartPrometheus) -> None:
    rules = "groups: [{name: g, rules: [{record: 'answer:test', expr: 'vector(42)'}]}]"
    server = prometheus(rules=rules)
    assert server.wait_for("answer:test")[0].value == 42.0
