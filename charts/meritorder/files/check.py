"""What `helm test` asks: an operator decides, servers hand out tables, and their certificate is trusted.

Environment: METRICS_OPERATOR, METRICS_ROUTER (URLs), SERVER (HOST:PORT), SERVER_NAME, CA (a file). Ends with
one sentence and exit code 1 where something is not well within 60 s.
"""

import os
import socket
import ssl
import sys
import time
import urllib.request


def series(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.partition(" ") for line in lines if line[:1] != "#")
    }


def operator():
    found = series(os.environ["METRICS_OPERATOR"])
    # Either of two processes answers: being told by a standby is as good.
    return None if "meritorder_leader" in found else "the operator's metrics lack `meritorder_leader`"


def router():
    found = series(os.environ["METRICS_ROUTER"])
    return (
        None if found.get("meritorder_server_tables_on") == 1 else "the router server hands out no tables yet"
    )


def certificate():
    host, _, port = os.environ["SERVER"].rpartition(":")
    context = ssl.create_default_context(cafile=os.environ["CA"])
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=os.environ["SERVER_NAME"]) as secured,
    ):
        return None if secured.version() else "no TLS"


def check(what):
    until = time.monotonic() + float(os.environ.get("SECONDS_EACH", "60"))
    while True:
        try:
            problem = what()
        except (OSError, ValueError) as error:
            problem = f"{error}"
        if problem is None:
            print(f"{what.__name__}: well")
            return True
        if time.monotonic() >= until:
            print(f"{what.__name__}: {problem}", file=sys.stderr)
            return False
        time.sleep(1)


sys.exit(0 if all([check(what) for what in (operator, router, certificate)]) else 1)
