"""The process group of a rank, from start to stop."""

import torch.distributed as dist

from hpc_recolor.runtime.distributed import before_stop, start, stop


def test_what_holds_communicators_is_released_once_before_they_are_destroyed() -> None:
    released: list[bool] = []
    start("cpu", threads=1)
    before_stop(lambda: released.append(dist.is_initialized()))
    stop()
    stop()
    assert released == [True]
    assert not dist.is_initialized()
