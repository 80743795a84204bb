"""What a signal to stop becomes. Apart from the loop, so that the command line can name it without loading torch."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C arrived, and nothing is lost. The command exits with 75, which schedulers take as "requeue"."""

    exit_code = 75
