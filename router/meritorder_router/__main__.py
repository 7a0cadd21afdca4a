"""`meritorder-router`, also as `python -m meritorder_router`."""

from meritorder_router.cli import main

if __name__ == "__main__":
    main()
