"""An autoscaler that follows what is needed, late: how long a change takes is `delaySeconds`.

A new number of replicas is there once it has been asked for, in the same direction, for the delay (a GPU
node and a model take minutes to come, and an autoscaler waits before it removes them). Going up it takes
the least asked for meanwhile, going down the most. Pure: `now` comes in.
"""

from meritorder_sim.pools_file import Autoscale


class Autoscaler:
    """Holds the present number of replicas, and since when another was asked for."""

    def __init__(self, settings: Autoscale, *, replicas: int) -> None:
        self._settings = settings
        self._replicas = replicas
        self._asked: list[tuple[float, int]] = []

    def follow(self, needed: int, *, now: float) -> int:
        """Return how many replicas there are at `now`, given what is needed from now on."""
        wanted = max(self._settings.minimum, min(needed, self._settings.maximum))
        upwards = wanted > self._replicas
        if (self._asked and (self._asked[0][1] > self._replicas) != upwards) or wanted == self._replicas:
            self._asked.clear()
        if wanted != self._replicas:
            self._asked.append((now, wanted))
            if now - self._asked[0][0] >= self._settings.delay_seconds:
                asked = [number for _, number in self._asked]
                self._replicas = min(asked) if upwards else max(asked)
                self._asked = [(at, number) for at, number in self._asked if number != self._replicas]
        return self._replicas
