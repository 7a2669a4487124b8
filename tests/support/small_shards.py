"""`python -m hpc_recolor.prepare` with small shards, so that a few small images fill several."""

import sys

from hpc_recolor import cli, prepare
from hpc_recolor.data import pack

SMALL_SHARD_BYTES = 16 * 2**20

if __name__ == "__main__":
    pack.SHARD_BYTES = SMALL_SHARD_BYTES
    sys.exit(cli.run(prepare.app))
