"""`python -m vq_prior COMMAND` is `vq-prior COMMAND`."""

import sys

from vq_prior.cli import main

if __name__ == "__main__":
    sys.exit(main())
