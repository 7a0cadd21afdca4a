"""What goes wrong for a person at the command line: one sentence on stderr and an exit code.

Complaint           the thing asked about is not well, or a run failed: exit code 1
  WrongUse          wrong use: a bad option, file or policy: exit code 2
"""

DONE = 0
NOT_WELL = 1
WRONG_USE = 2


class Complaint(Exception):
    """Something failed; the text is one sentence."""

    exit_code = NOT_WELL


class WrongUse(Complaint):
    """What was asked cannot be done as it was asked."""

    exit_code = WRONG_USE
