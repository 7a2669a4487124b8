"""Which types networks really compute in."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ConvolutionTypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, counts the types that convolutions compute in, forward and backward, in `seen`.

    It must not be entered around compiled networks, which would then not be compiled.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a convolution, and run it."""
        if "convolution" in str(func):
            self.seen[args[0].dtype] += 1
        return func(*args, **(kwargs or {}))

    def describe(self) -> str:
        """The types seen, such as "bfloat16", the most frequent first."""
        return " and ".join(str(dtype).removeprefix("torch.") for dtype, _ in self.seen.most_common())
