"""`meritorder doctor`: what keeps an installation or a policy from working, and how it is mended.

`gather`, `ask` and `proxy` read the cluster and Prometheus and judge nothing; what they bring are `facts`.
`installation`, `backends`, `agents` and `metrics` judge facts and read nothing; what they say are `findings`.
"""
