"""`python -m meritorder_router.server`: the server alone."""

from meritorder_router.server.main import serve_command

serve_command()
