"""`hpc-recolor COMMAND`: the same as `python -m hpc_recolor.COMMAND`."""

import sys

from hpc_recolor import cli


def main() -> int:
    """Run the program. Returns its exit code."""
    return cli.run(cli.program())


if __name__ == "__main__":
    sys.exit(main())
