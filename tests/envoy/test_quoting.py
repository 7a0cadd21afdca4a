"""No string of a table can leave its quotes: checked by the Lua that Envoy runs."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

import httpx
from hypothesis import given
from hypothesis import strategies as st

from meritorder_router.agent.admin import Admin
from meritorder_router.agent.envoy import envoy_command, find_envoy
from meritorder_router.render.lua import quote
from meritorder_router.render.place import BOOTSTRAP, Address, Json, pipe, tcp, typed
from support.ports import free_port
from support.processes import Child

ECHO = """
local STRINGS = {%s}
function envoy_on_request(h)
  local out = {}
  for _, s in ipairs(STRINGS) do
    out[#out + 1] = s:gsub(".", function(c) return string.format("%%02x", c:byte()) end)
  end
  h:respond({[":status"] = "200"}, table.concat(out, "\\n"))
end
"""


def bootstrap(directory: Path, address: Address, script: str) -> Json:
    """An Envoy that answers every request with what a script says."""
    manager = typed(
        "hcm",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="x",
        http_filters=[
            typed(
                "lua",
                "extensions.filters.http.lua.v3.Lua",
                default_source_code={"inline_string": script},
            ),
            typed("router", "extensions.filters.http.router.v3.Router"),
        ],
        route_config={"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": []}]},
    )
    return {
        "admin": {"address": pipe(str(directory / "a.sock"))},
        "static_resources": {
            "listeners": [{"name": "l", "address": tcp(address), "filter_chains": [{"filters": [manager]}]}]
        },
    }


async def test_lua_reads_each_quoted_string_as_it_was(tmp_path: Path) -> None:
    chance = random.Random(20_240)
    alphabet = string.printable + "\0\x7f\x80\xff\u0085\u2028é漢😀\"'\\]]--[==["
    strings = ["".join(chance.choices(alphabet, k=chance.randrange(1, 40))) for _ in range(2000)]
    strings += [
        '"',
        "\\",
        '\\"',
        "]]",
        "\n",
        "\r\n",
        "\0",
        "\\0001",
        "a\\",
        '" .. os.exit() .. "',
        "%s",
        "${x}",
    ]
    address = Address("127.0.0.1", free_port())
    script = ECHO % ", ".join(quote(text) for text in strings)
    (tmp_path / BOOTSTRAP).write_text(json.dumps(bootstrap(tmp_path, address, script)))

    with Child(envoy_command(find_envoy(), tmp_path, concurrency=1), log=tmp_path / "envoy.log"):
        async with Admin(str(tmp_path / "a.sock")) as admin:
            assert await admin.wait_live(10)
        async with httpx.AsyncClient() as client:
            answer = (await client.get(f"http://{address}/")).text

    assert [bytes.fromhex(line).decode() for line in answer.split("\n")] == strings


@given(text=st.text())
def test_quotes_with_printable_ascii_only(text: str) -> None:
    quoted = quote(text)

    assert quoted[0] == quoted[-1] == '"'
    assert '"' not in quoted[1:-1]
    assert quoted.isascii()
    assert quoted.isprintable()
