"""`python -m hpc_recolor.launch.job FOLDER`: what srun, or submitit's local controller, starts as each rank.

Listens for signals first: everything else takes time, and schedulers do not wait.
"""

import sys
from pathlib import Path

from hpc_recolor.runtime.signals import StopRequest


def main() -> int:
    """Train the run of a job folder on this rank. Returns the exit code."""
    with StopRequest(until_exit=True) as request:
        from hpc_recolor.launch import rank  # takes a while to import

        return rank.run(Path(sys.argv[1]), request)


if __name__ == "__main__":
    sys.exit(main())
