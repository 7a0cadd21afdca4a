"""What a pools file's events mean, in words: `l40s turns 3x slower`."""

from meritorder_sim.pools_file import Event


def describe(pool: str, event: Event) -> str:
    """One event in a few words."""
    said = []
    if event.slowdown is not None:
        said.append("is as fast as before" if event.slowdown == 1 else f"turns {event.slowdown:g}x slower")
    if event.replicas is not None:
        said.append(f"has {event.replicas} replica{'' if event.replicas == 1 else 's'}")
    if event.error_percent is not None:
        said.append(
            f"fails {event.error_percent:g} % of its requests" if event.error_percent else "fails no longer"
        )
    if event.hang is not None:
        said.append("hangs" if event.hang != "none" else "hangs no longer")
    if event.reset_percent is not None:
        said.append(
            f"resets {event.reset_percent:g} % of its connections"
            if event.reset_percent
            else "resets no longer"
        )
    if event.metrics is not None:
        said.append(f"has {event.metrics} metrics")
    if event.usage is not None:
        said.append("reports token usage" if event.usage else "reports no token usage")
    return f"{pool} {' and '.join(said)}" if said else f"{pool}: an event without effect"
