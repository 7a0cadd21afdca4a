"""The router: a server that hands out routing tables, and the agent that renders them for Envoy and keeps it
serving.
"""
