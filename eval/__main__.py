"""`python -m eval`."""

import sys
import time

from eval.command import main
from eval.process_clock import seconds_since_process_start

if __name__ == "__main__":
    sys.exit(main(started=time.monotonic() - seconds_since_process_start()))
