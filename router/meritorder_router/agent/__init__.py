"""The agent: fetches the routing table, checks it, renders Envoy's files, and reports what it applied and
saw.

Processes of a router container, the first started by `meritorder-router agent`:

    supervisor      `supervisor.py`   PID 1: two children, restarts, drain; no network, parses no table
    |- agent        `process.py`      source -> `validate` -> `Applier` -> report; its own metrics
    `- Envoy                          reads the files in the state directory

In standalone mode `embedded.EmbeddedRouter` is the two in one: Envoy as a child of whoever embeds it.
"""
