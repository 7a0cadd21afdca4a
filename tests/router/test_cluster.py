"""What a server has seen of the cluster: the last good policy stays, and only what changed is told."""

from typing import Any

from meritorder_router.server.cluster import Cluster, Key, endpoint_slice_of
from meritorder_router.server.peers import service_urls


def cluster() -> tuple[Cluster, list[Key], list[Key]]:
    policies: list[Key] = []
    services: list[Key] = []
    return Cluster(on_policy=policies.append, on_service=services.append), policies, services


def policy(target: int = 2000, uid: str = "u", name: str = "chat", namespace: str = "ml") -> dict[str, Any]:
    return {
        "apiVersion": "meritorder.dev/v1alpha1",
        "kind": "InferencePolicy",
        "metadata": {"name": name, "namespace": namespace, "uid": uid},
        "spec": {
            "sla": {"metric": "EndToEndLatency", "targetMilliseconds": target},
            "pools": [
                {
                    "name": "l40s",
                    "backend": {"service": {"name": "l40s", "port": 8000}},
                    "cost": {"perReplicaHour": "1.86"},
                }
            ],
        },
    }


def endpoints(
    *addresses: str, name: str = "s-1", service: str = "l40s", namespace: str = "ml", **conditions: bool
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": conditions} for address in addresses],
    }


def test_a_spec_that_cannot_be_read_leaves_the_last_good_one() -> None:
    seen, _, _ = cluster()
    seen.replace_policies([policy(2000)])
    seen.change_policy("MODIFIED", policy(-1))
    found = seen.policy(("ml", "chat"))
    assert found is not None
    assert found.spec.sla.target_milliseconds == 2000
    assert "targetMilliseconds" in (seen.unreadable(("ml", "chat")) or "")
    seen.change_policy("MODIFIED", policy(3000))
    found = seen.policy(("ml", "chat"))
    assert found is not None
    assert found.spec.sla.target_milliseconds == 3000
    assert seen.unreadable(("ml", "chat")) is None


def test_a_spec_of_a_new_policy_that_cannot_be_read_does_not_revive_the_deleted_one() -> None:
    seen, _, _ = cluster()
    seen.replace_policies([policy(2000)])
    seen.change_policy("MODIFIED", policy(-1, uid="another"))
    assert seen.policy(("ml", "chat")) is None


def test_a_new_list_forgets_what_is_gone_in_its_own_namespace_only() -> None:
    seen, changes, _ = cluster()
    seen.replace_policies([policy(), policy(namespace="other")])
    changes.clear()
    seen.replace_policies([], "ml")
    assert changes == [("ml", "chat")]
    assert seen.policy(("other", "chat")) is not None


def test_an_endpoint_slice_that_moves_to_another_service_leaves_the_first() -> None:
    seen, _, changes = cluster()
    seen.replace_slices([endpoints("10.0.0.1")])
    changes.clear()
    seen.change_slice("MODIFIED", endpoints("10.0.0.1", service="h100"))
    assert sorted(changes) == [("ml", "h100"), ("ml", "l40s")]
    assert seen.slices("ml", "l40s") == []
    assert [part.name for part in seen.slices("ml", "h100")] == ["s-1"]
    seen.change_slice("DELETED", endpoints("10.0.0.1", service="h100"))
    assert seen.slices("ml", "h100") == []


def test_an_unchanged_list_is_no_change() -> None:
    seen, _, changes = cluster()
    seen.replace_slices([endpoints("10.0.0.1")])
    changes.clear()
    seen.replace_slices([endpoints("10.0.0.1")])
    assert changes == []


def test_readiness_that_is_not_said_is_readiness() -> None:
    assert [one.ready for one in endpoint_slice_of(endpoints("10.0.0.1")).endpoints] == [True]
    assert [one.ready for one in endpoint_slice_of(endpoints("10.0.0.1", ready=False)).endpoints] == [False]
    assert endpoint_slice_of({"metadata": {"name": "x"}}).endpoints == ()


def test_other_servers_are_found_by_their_headless_service() -> None:
    seen, _, _ = cluster()
    seen.replace_slices(
        [endpoints("10.0.0.1", "10.0.0.2", service="router", namespace="system", ready=False)]
    )
    urls = service_urls(seen, namespace="system", service="router", own_address="10.0.0.2", scheme="https")
    assert urls == ["https://10.0.0.1:8000"]
