"""The HTML report, built from the JSON of a run and opened in a real browser."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.browser import Look, look
from cli.scenario import document
from meritorder_cli.document import Document, Windows
from meritorder_cli.report import build, words
from meritorder_cli.summary import summarize

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
    assert shares == [f"{pool.name} {pool.share_percent} %" for pool in tick.pools]
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


def test_shares_add_up_to_a_hundred() -> None:
    run = document().to_json()
    for pool in run["contenders"][0]["pools"]:
        pool["requests"] = 700
    page = build(run)
    assert re.findall(r'data-name="Share">(\d+ %)<', page) == ["34 %", "33 %", "33 %"]
    assert "34 % went to l40s, the cheapest pool" in page
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(summarize(Document.model_validate(run)))
    assert re.findall(r"700 +(\d+ %)", capture.get()) == ["34 %", "33 %", "33 %"]


def test_says_whether_the_promise_was_kept() -> None:
    run = document().to_json()
    judged = "97.2 % of 2,210 requests finished within 2.00 s (95 % are promised)"
    page = build(run)
    assert f"The SLA was met over the whole run, but only in 7 of 8 windows of 10 s: {judged}" in page
    assert "p95, target 2.00 s; met in 7 of 8 windows of 10 s" in page
    run["contenders"][0]["windows"]["met"] = 8
    assert f"The SLA was met in 8 of 8 windows of 10 s: {judged}" in build(run)
    run["contenders"][0]["windows"] = {"total": 0, "met": 0}
    assert f"met over the whole run, with too few requests to judge a window: {judged}" in build(run)
    run["contenders"][0]["windows"] = {"total": 8, "met": 3}
    run["contenders"][0]["requests"]["slow"] = 200
    said = (
        "The SLA was missed over the whole run, and met in 3 of 8 windows of 10 s: 91.0 % of 2,210 requests"
    )
    assert said in build(run)
    run["contenders"][0]["requests"] = {"total": 7, "slow": 0, "failed": 0}
    assert "Too few requests to judge the SLA" in build(run)


def test_says_in_how_many_windows_it_was_kept() -> None:
    run = document()
    assert words.windows(run) == "met in 7 of 8 windows of 10 s"
    none = run.contenders[0].model_copy(update={"windows": Windows(total=0, met=0)})
    short = run.model_copy(update={"contenders": [none]})
    assert words.windows(short) == "no whole window of 10 s with enough requests to judge"


def test_survives_a_run_without_a_request() -> None:
    run = document(1).to_json()
    contender = run["contenders"][0]
    contender["requests"] = {"total": 0, "slow": 0, "failed": 0}
    contender["pools"] = [{**pool, "requests": 0, "attainedSeconds": None} for pool in contender["pools"]]
    page = build(run)
    assert "No request completed after the warm-up" in page
    assert "too short for charts" in page
