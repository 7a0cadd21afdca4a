"""A real Prometheus whose targets a test can change, and which it can stop, empty and freeze.

Targets are given by files (file_sd), so they change without a reload. Web assets are not part of the build:
the API answers, the pages do not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from assets.find import find
from support.ports import free_port
from support.processes import Child
from support.waiting import wait_until

READY_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float
    at: float


class QueryFailed(Exception):
    """Prometheus refused a query; carries its words."""


class Prometheus:
    """One server in one folder, on a free port of 127.0.0.1.

    Each target set is one scrape job: `{"pools": ["127.0.0.1:8001"]}`. `config` replaces the whole
    configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        targets: Mapping[str, Sequence[str]] | None = None,
        scrape_interval: str = "1s",
        metrics_path: str = "/metrics",
        config: str | None = None,
        rules: str | None = None,
        flags: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._scrape_interval = scrape_interval
        self._metrics_path = metrics_path
        self._config = config
        self._rules = rules
        self._targets: dict[str, tuple[list[str], dict[str, str]]] = {
            job: (list(addresses), {}) for job, addresses in (targets or {}).items()
        }
        command: list[str | Path] = [
            find("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            "--storage.tsdb.retention.time=1d",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle",
            "--web.enable-admin-api",
            "--scrape.discovery-reload-interval=200ms",  # else changed targets are seen after 5 s
            "--log.level=warn",
            *flags,
        ]
        self.child = Child(command, log=folder / "prometheus.log", name="prometheus")
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Its configuration.

    def _write(self) -> None:
        (self.folder / "targets").mkdir(parents=True, exist_ok=True)
        for job in self._targets:
            self._write_targets(job)
        if self._rules is not None:
            (self.folder / "rules.yml").write_text(self._rules)
        (self.folder / "prometheus.yml").write_text(self._config or self._own_config())

    def _own_config(self) -> str:
        times = {"scrape_interval": self._scrape_interval, "scrape_timeout": self._scrape_interval}
        jobs = [
            {
                "job_name": job,
                "metrics_path": self._metrics_path,
                "file_sd_configs": [
                    {"files": [str(self.folder / "targets" / f"{job}.json")], "refresh_interval": "1s"}
                ],
            }
            for job in self._targets
        ]
        config: dict[str, Any] = {
            "global": {**times, "evaluation_interval": self._scrape_interval},
            "scrape_configs": jobs,
        }
        if self._rules is not None:
            config["rule_files"] = [str(self.folder / "rules.yml")]
        return yaml.safe_dump(config, sort_keys=False)

    def _write_targets(self, job: str) -> None:
        addresses, labels = self._targets[job]
        path = self.folder / "targets" / f"{job}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps([{"targets": addresses, "labels": labels}]))
        fresh.rename(path)  # Prometheus must never read half a file

    def set_targets(
        self, job: str, addresses: Sequence[str], labels: Mapping[str, str] | None = None
    ) -> None:
        """Make these the targets of a job; a new job is added by a reload. Labels go on every series of
        it."""
        is_new = job not in self._targets
        self._targets[job] = (list(addresses), dict(labels or {}))
        if not self.child.running:
            return
        self._write_targets(job)
        if is_new:
            self.reload(self._config)

    def reload(self, config: str | None = None, rules: str | None = None) -> None:
        """Read the configuration again, after replacing what is given."""
        self._config = config if config is not None else self._config
        self._rules = rules if rules is not None else self._rules
        self._write()
        answer = self.client.post("/-/reload")
        if answer.is_error:
            raise ValueError(f"Prometheus refused its configuration: {answer.text.strip()}")

    # Its life.

    def start(self) -> Self:
        """Start it, with the data that are there, and wait until it answers."""
        self._write()
        self.child.start()
        try:
            self.child.wait_for(
                lambda: self.client.get("/-/ready").status_code == 200,
                READY_SECONDS,
                "Prometheus is ready",
                retry_on=(httpx.TransportError,),
            )
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; its port refuses connections, its data stay."""
        self.child.stop()
        if self._client is not None:
            self._client.close()
            self._client = None

    def wipe(self) -> None:
        """Start it again without any data."""
        self.stop()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open, nothing answers and nothing is scraped."""
        self.child.pause()

    def resume(self) -> None:
        self.child.resume()

    # What one asks it.

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, timeout=10, trust_env=False)
        return self._client

    def _ask(self, path: str, **parameters: str | float) -> Any:
        answer = self.client.get(path, params=parameters).json()
        if answer["status"] != "success":
            raise QueryFailed(f"{answer.get('errorType')}: {answer.get('error')}")
        return answer["data"]

    def query(self, promql: str, *, at: float | None = None) -> list[Series]:
        """Answer an instant query; a scalar is one series without labels."""
        data = self._ask("/api/v1/query", query=promql, **({} if at is None else {"time": at}))
        rows = data["result"]
        if data["resultType"] in ("scalar", "string"):
            rows = [{"metric": {}, "value": rows}]
        return [
            Series(labels=row["metric"], at=float(row["value"][0]), value=float(row["value"][1]))
            for row in rows
        ]

    def value(self, promql: str) -> float | None:
        """Answer a query for one number; None when there is no series."""
        series = self.query(promql)
        if len(series) > 1:
            raise QueryFailed(f"{promql}: one series expected, seen {len(series)}")
        return series[0].value if series else None

    def query_range(self, promql: str, *, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Answer a range query as Prometheus gives it: `metric` and `values` of each series."""
        result: list[dict[str, Any]] = self._ask(
            "/api/v1/query_range", query=promql, start=start, end=end, step=step
        )["result"]
        return result

    def wait_for(self, promql: str, deadline_seconds: float = 30) -> list[Series]:
        """Wait until a query answers with something."""
        return wait_until(lambda: self.query(promql), deadline_seconds, f"{promql!r} has an answer")

    def wait_for_targets(self, count: int, deadline_seconds: float = 30) -> None:
        """Wait until this many targets are scraped with success."""
        wait_until(
            lambda: self.value("sum(up)") == count,
            deadline_seconds,
            f"Prometheus scrapes {count} targets",
        )


StartPrometheus = Callable[..., Prometheus]
"""The fixture `prometheus`: takes the options of `Prometheus` but the folder, and returns it started."""
