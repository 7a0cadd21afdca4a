"""`python -m meritorder_sim` serves simulated pools; see `command`."""

from meritorder_sim.command import serve

__all__ = ["serve"]

if __name__ == "__main__":
    serve()
