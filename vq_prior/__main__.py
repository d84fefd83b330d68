"""`python -m vq_prior COMMAND` is `vq-prior COMMAND`."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command has begun, Ctrl-C ends it without a traceback

from vq_prior.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
