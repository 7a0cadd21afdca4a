"""Dashboards as Grafana takes them: its types, unique ids, no overlaps, one datasource, nothing drifted."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as grafana

from meritorder_dashboards.__main__ import ALL, FOLDER, RUNBOOKS, write
from meritorder_dashboards.grafana import COLUMNS, SCHEMA_VERSION, Json, model

ROOT = Path(__file__).parents[2]
MODELS = {dashboard.uid: model(dashboard, runbooks=RUNBOOKS) for dashboard in ALL}
KNOWN_NOWHERE_IN_THE_TYPES = {"titleFormat", "textFormat", "tagKeys", "useValueForTime", "step"}
"""Of annotations by Prometheus: Grafana's types have no place for what belongs to a datasource."""

dashboards = pytest.mark.parametrize("dashboard", MODELS.values(), ids=MODELS)


def panels(dashboard: Json) -> list[Json]:
    """All panels, also of folded rows, and the rows."""
    found = []
    for panel in dashboard["panels"]:
        found += [panel, *panel.get("panels", [])]
    return found


def real(dashboard: Json) -> list[Json]:
    return [panel for panel in panels(dashboard) if panel["type"] != "row"]


def lost(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """What we say and Grafana's types do not give back."""
    if isinstance(ours, dict):
        if not isinstance(theirs, dict):
            return [path]
        found = []
        for key, value in ours.items():
            if key in theirs:
                found += lost(value, theirs[key], f"{path}.{key}")
            elif value not in ([], {}, None):
                found.append(f"{path}.{key}")
        return found
    if isinstance(ours, list):
        if not isinstance(theirs, list) or len(ours) != len(theirs):
            return [path]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [one for index, (a, b) in pairs for one in lost(a, b, f"{path}[{index}]")]
    return [] if ours == theirs else [path]


@dashboards
def test_every_field_is_one_of_grafanas_own(dashboard: Json) -> None:
    register_default_plugins()
    parsed = grafana.Dashboard.from_json(dashboard)

    back = json.loads(JSONEncoder().encode(parsed))

    unknown = lost(dashboard, back)
    assert [path for path in unknown if path.rpartition(".")[2] not in KNOWN_NOWHERE_IN_THE_TYPES] == []


def test_a_field_that_grafana_does_not_know_is_seen() -> None:
    register_default_plugins()
    wrong = {"uid": "x", "panels": [{"type": "stat", "id": 1, "gridPos": {"x": 0, "wide": 3}}]}

    back = json.loads(JSONEncoder().encode(grafana.Dashboard.from_json(wrong)))

    assert lost(wrong, back) == [".panels[0].gridPos.wide"]


@dashboards
def test_words_that_grafana_knows(dashboard: Json) -> None:
    for variable in dashboard["templating"]["list"]:
        assert variable["type"] in {*grafana.VariableType}
    for link in dashboard["links"]:
        assert link["type"] in {*grafana.DashboardLinkType}
    for panel in panels(dashboard):
        assert panel["type"] in {"row", "stat", "timeseries", "table"}
    for panel in real(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["color"]["mode"] in {*grafana.FieldColorModeId}
        assert defaults["thresholds"]["mode"] in {*grafana.ThresholdsMode}
        units = {
            "none", "s", "ms", "bytes", "percentunit", "currencyUSD", "reqps", "cps", "wps",
        }  # fmt: skip
        assert defaults["unit"] in units


@dashboards
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: Json) -> None:
    ids = [panel["id"] for panel in panels(dashboard)]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    placed = [panel["gridPos"] for panel in dashboard["panels"]]
    groups = [placed, *([one["gridPos"] for one in panel.get("panels", [])] for panel in dashboard["panels"])]
    for group in groups:
        for place in group:
            assert 0 <= place["x"] <= place["x"] + place["w"] <= COLUMNS
        for a, b in itertools.combinations(group, 2):
            apart = (
                a["x"] + a["w"] <= b["x"]
                or b["x"] + b["w"] <= a["x"]
                or a["y"] + a["h"] <= b["y"]
                or b["y"] + b["h"] <= a["y"]
            )
            assert apart, (a, b)


@dashboards
def test_every_panel_says_what_it_shows_and_in_which_words(dashboard: Json) -> None:
    titles = [panel["title"] for panel in panels(dashboard)]
    assert sorted(set(titles)) == sorted(titles)
    for panel in real(dashboard):
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))


@dashboards
def test_only_the_datasource_of_the_variable_is_asked(dashboard: Json) -> None:
    def sources(node: Any) -> list[Any]:
        if isinstance(node, dict):
            own = [node["datasource"]] if "datasource" in node else []
            return own + [one for child in node.values() for one in sources(child)]
        if isinstance(node, list):
            return [one for child in node for one in sources(child)]
        return []

    wanted = {"type": "prometheus", "uid": "${datasource}"}
    found = sources(dashboard)
    assert len(found) > len(real(dashboard))
    assert [one for one in found if one != wanted] == []
    assert dashboard["templating"]["list"][0]["name"] == "datasource"


@dashboards
def test_queries_use_no_variable_that_is_not_there(dashboard: Json) -> None:
    there = {variable["name"] for variable in dashboard["templating"]["list"]}
    built_in = {"__rate_interval", "__interval", "__interval_ms", "__range"}
    for panel in real(dashboard):
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= there | built_in, panel["title"]


@dashboards
def test_links_lead_to_the_runbook_of_an_alert(dashboard: Json) -> None:
    links = [link for panel in real(dashboard) for link in panel["links"]]
    assert links
    runbooks = ROOT / "docs" / "runbooks.md"
    known = re.findall(r"^## (Meritorder\w+)$", runbooks.read_text(), re.M) if runbooks.exists() else None
    for link in links:
        alert = link["title"].removeprefix("Runbook: ")
        assert link["url"] == f"${{runbooks}}{alert.lower()}"
        assert known is None or alert in known


def test_the_dashboards_have_names_that_stay() -> None:
    assert list(MODELS) == ["meritorder-fleet", "meritorder-policy", "meritorder-router"]
    assert {dashboard["schemaVersion"] for dashboard in MODELS.values()} == {SCHEMA_VERSION}
    assert [dashboard.title for dashboard in ALL] == [
        "Meritorder / Fleet",
        "Meritorder / Policy",
        "Meritorder / Routers",
    ]


def test_the_policys_link_leads_to_its_dashboard() -> None:
    (table,) = (panel for panel in real(MODELS["meritorder-fleet"]) if panel["type"] == "table")
    text = json.dumps(table)
    assert "/d/meritorder-policy?" in text
    assert "var-policy=${__data.fields.Policy}" in text


def test_nothing_drifted(tmp_path: Path) -> None:
    write(tmp_path)

    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {file.name: file.read_text() for file in FOLDER.iterdir()} == made, "run: make dashboards"


def test_files_of_dashboards_that_are_no_more_go(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")

    write(tmp_path, "https://docs.example/runbooks#")

    assert not (tmp_path / "old.json").exists()
    assert "https://docs.example/runbooks#" in (tmp_path / "meritorder-fleet.json").read_text()
