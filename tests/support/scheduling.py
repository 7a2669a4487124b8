"""How the processes of pytest-xdist share the tests: a file at a time, the files that use the SLURM cluster as one.

pytest-xdist's own groups (`--dist loadgroup`) have no effect with pytest 9: they are set through an attribute that
its test items no longer have.
"""

import re
from functools import cache

from xdist.scheduler import LoadFileScheduling

from tests.conftest import ROOT

CLUSTER = "cluster"


class OneCluster(LoadFileScheduling):  # type: ignore[misc]
    """Only the process that gets the files of CLUSTER starts a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return CLUSTER if uses_cluster(file) else file


@cache
def uses_cluster(file: str) -> bool:
    """Whether a test of the file, below the repository's root, requests the fixture `cluster` or `hosts`."""
    return bool(re.search(rf"\b{CLUSTER}: Path|\bhosts: Hosts|usefixtures\(.*\b{CLUSTER}\b", (ROOT / file).read_text()))
