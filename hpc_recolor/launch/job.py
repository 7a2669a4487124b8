"""`python -m hpc_recolor.launch.job FOLDER`: the process of a rank, started by srun or submitit's local controller.

Signal handlers are installed before the slow imports, because schedulers do not wait.
"""

import sys
from pathlib import Path

from hpc_recolor.runtime.signals import StopRequest


def main() -> int:
    """Train the run of a job folder on this rank. Returns the exit code."""
    with StopRequest(until_exit=True) as request:
        from hpc_recolor.launch import rank  # slow to import

        return rank.run(Path(sys.argv[1]), request)


if __name__ == "__main__":
    sys.exit(main())
