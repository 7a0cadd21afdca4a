"""Simulated GPU pools and traffic: OpenAI servers with a latency model, and an open-loop load generator.

Where to look: `profiles` (how fast a card is), `engine` (continuous batching of one replica, without a
clock), `server` (one replica as an HTTP server), `pools` (all pools of a pools file), `processes` (each
pool as its own OS process), `arrivals` and `load` (traffic).
"""
