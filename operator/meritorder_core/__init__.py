"""The decision: pure functions from what was measured to where traffic goes, and why.

Nothing here does I/O, reads a clock or draws a random number; `now` is an argument. The same code decides in
the operator, in standalone mode and in the simulator.
"""
