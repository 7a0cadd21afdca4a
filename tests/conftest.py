"""Real servers as fixtures, started when the first test asks and ended with the last."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from assets.find import MissingBinary
from servers.control_plane import ControlPlane
from servers.kubectl import Kubectl
from servers.prometheus import Prometheus, StartPrometheus
from support.addresses import NoAddress, non_loopback_address
from support.processes import started_children
from support.required import cannot_run

ROOT = Path(__file__).parents[1]
CRDS = ROOT / "crds"
LOG_LINES_SHOWN = 15

pytest_plugins = ["stress.plugin"]


# A deadline per example would measure what else this machine does.
hypothesis.settings.register_profile("meritorder", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("meritorder")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A Kubernetes control plane with our CRDs, shared by the session; a test makes its own namespace."""
    try:
        control_plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    except (MissingBinary, NoAddress) as reason:
        cannot_run(reason)
    with control_plane:
        if any(CRDS.glob("*.yaml")):
            control_plane.apply_crds(CRDS)
        yield control_plane


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Kubectl:
    """The real kubectl as administrator: `kubectl("get", "pods", "-n", namespace)`."""
    return control_plane.kubectl


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace of the test's own."""
    name = control_plane.create_namespace(f"t-{secrets.token_hex(4)}")
    yield name
    if control_plane.api_server.running:
        control_plane.delete_namespace(name)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[StartPrometheus]:
    """Start a Prometheus by `prometheus(targets={"job": ["127.0.0.1:8000"]}, ...)`; ended after the test."""
    started: list[Prometheus] = []
    numbers = itertools.count(1)

    def start(**options: object) -> Prometheus:
        try:
            server = Prometheus(tmp_path / f"prometheus-{next(numbers)}", **options)  # type: ignore[arg-type]
        except MissingBinary as reason:
            cannot_run(reason)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def machine_address() -> str:
    """An address of this machine that EndpointSlices may name."""
    try:
        return non_loopback_address()
    except NoAddress as reason:
        cannot_run(reason)


_log_sizes = pytest.StashKey[dict[Path, int]]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_log_sizes] = {child.log: len(child.log_text()) for child in started_children()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show under a failure what the real servers said during the test."""
    report = yield
    if report.failed:
        before = item.stash.get(_log_sizes, {})
        for child in started_children():
            if said := child.log_text()[before.get(child.log, 0) :]:
                tail = said.splitlines()[-LOG_LINES_SHOWN:]
                report.sections.append((f"{child!r} said last, in {child.log}", "\n".join(tail)))
    return report
