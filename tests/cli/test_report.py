"""The HTML report, built from the JSON of a run and opened in a real browser."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cli.browser import Look, look
from cli.scenario import document
from meritorder_cli.document import Windows
from meritorder_cli.report import build, words

_ASK = """
<script>
addEventListener("load", () => {
  const said = { width: document.documentElement.scrollWidth, room: innerWidth, tips: {} };
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    const at = { clientX: box.left + box.width / 2, clientY: box.top + 40, bubbles: true };
    svg.dispatchEvent(new PointerEvent("pointermove", at));
    const tip = svg.closest("figure").querySelector(".tip");
    said.tips[svg.dataset.chart] = tip ? tip.innerText : null;
    svg.dispatchEvent(new PointerEvent("pointerleave", at));
  }
  said.left = document.querySelectorAll(".tip").length;
  document.body.dataset.said = JSON.stringify(said);
});
</script>
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(build(document().to_json()))
    return path


def said(seen: Look) -> dict[str, Any]:
    found = re.search(r'data-said="([^"]*)"', seen.dom)
    assert found is not None, "the page's load event never came"
    answer: dict[str, Any] = json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))
    return answer


@pytest.mark.parametrize("dark", [False, True])
def test_asks_nobody_and_complains_of_nothing(page: Path, tmp_path: Path, dark: bool) -> None:
    seen = look(page, tmp_path, dark=dark)
    assert seen.requests == []
    assert seen.complaints == []


def test_draws_every_chart_and_says_what_is_under_the_pointer(page: Path, tmp_path: Path) -> None:
    page.write_text(page.read_text().replace("</body>", f"{_ASK}</body>"))
    seen = look(page, tmp_path)
    assert seen.complaints == []
    answer = said(seen)
    assert list(answer["tips"]) == [
        "load",
        "share",
        "latency",
        "flight:l40s",
        "flight:a100",
        "flight:h100",
        "tokens",
        "cost",
    ]
    at, *shares = answer["tips"]["share"].split("\n")
    tick = document().series[int(at.removeprefix("0:")) - 1]
    assert shares == [f"{pool.name} {(pool.share or 0) * 100:.0f} %" for pool in tick.pools]
    assert "limit" in answer["tips"]["flight:a100"]
    assert answer["left"] == 0


def test_fits_a_phone(page: Path, tmp_path: Path) -> None:
    report = page.read_text().replace("</body>", f"{_ASK}</body>")
    tell = 'addEventListener("load", () => parent.postMessage(document.body.dataset.said, "*"));'
    page.write_text(report.replace("</body>", f"<script>{tell}</script></body>"))
    frame = tmp_path / "phone.html"
    frame.write_text(
        '<!doctype html><body><iframe src="report.html" style="width:390px;height:840px;border:0"></iframe>'
        "<script>"
        'addEventListener("message", (event) => { document.body.dataset.said = event.data; });'
        "</script>"
    )
    answer = said(look(frame, tmp_path))
    assert answer["room"] == 390
    assert answer["width"] <= 390
    assert len(answer["tips"]) == 8


def test_carries_the_json_that_it_is_made_of() -> None:
    run = document().to_json()
    run["policy"] = 'chat</script><script>alert("x")'
    page = build(run)
    inside = re.search(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    assert json.loads(inside[1]) == run
    assert 'alert("x")' not in page.replace(inside[0], "")


def test_says_whether_the_promise_was_kept() -> None:
    run = document().to_json()
    assert "The SLA was met: 97.2 % of 2,210 requests" in build(run)
    run["contenders"][0]["requests"]["slow"] = 200
    assert "The SLA was missed: 91.0 % of 2,210 requests" in build(run)
    run["contenders"][0]["requests"] = {"total": 7, "slow": 0, "failed": 0}
    assert "Too few requests to judge the SLA" in build(run)


def test_says_in_how_many_windows_it_was_kept() -> None:
    run = document()
    assert words.windows(run) == "met in 7 of 8 windows of 10 s"
    none = run.contenders[0].model_copy(update={"windows": Windows(total=0, met=0)})
    short = run.model_copy(update={"contenders": [none]})
    assert words.windows(short) == "no whole window of 10 s with enough requests to judge"


def test_says_that_only_streams_are_judged_by_their_first_token() -> None:
    run = document()
    assert words.judged(run) == "requests"
    first_token = {**run.sla, "metric": "TimeToFirstToken"}
    assert words.judged(run.model_copy(update={"sla": first_token})) == "streams judged"


def test_survives_a_run_without_a_request() -> None:
    run = document(1).to_json()
    contender = run["contenders"][0]
    contender["requests"] = {"total": 0, "slow": 0, "failed": 0}
    contender["pools"] = [{**pool, "requests": 0, "attainedSeconds": None} for pool in contender["pools"]]
    page = build(run)
    assert "No request completed after the warm-up" in page
    assert "too short for charts" in page
