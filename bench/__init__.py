"""Benchmarks on real parts: `make bench`, or `make bench ARGS="config-latency"`."""
