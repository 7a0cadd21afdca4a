"""In a container the operator runs as a user without a name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMELESS = """
import asyncio, os

from lightkube.config.kubeconfig import KubeConfig

from meritorder_operator import handlers

for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
os.setgid(65532)
os.setuid(65532)


async def main():
    begun = asyncio.Event()
    config = KubeConfig.from_server("http://127.0.0.1:9").get()
    watching = asyncio.create_task(
        handlers.watch(config, (), lambda *_: None, asyncio.Event(), begun.set)
    )
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
    if not begun.is_set():
        await watching
    print("watches", flush=True)
    os._exit(0)


asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_watches_policies() -> None:
    done = subprocess.run([sys.executable, "-c", NAMELESS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "watches\n", done.stderr[-2000:]
