"""Measurements from Prometheus: few queries for many policies, and a value or a named reason for each signal.

`queries` holds all PromQL as data, `client` asks one server, `track` keeps running totals between the
answers, `feed` asks for a group of series, and `source` puts one policy's inputs together.
"""
