"""Normalization, activation and dropout in one kernel, where a GPU trains."""

from typing import Any

import torch
from torch import Tensor, nn

from recolor_kernels import Tracked, norm_act


class FusedSequential(nn.Sequential):
    """A Sequential, in which a norm, the (leaky) ReLU after it and a dropout after that are one kernel where `fuses`
    says so. Elsewhere, as on CPUs, its layers run one after the other."""

    def forward(self, input: Tensor) -> Tensor:
        """As of nn.Sequential."""
        layers: list[Any] = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and isinstance(layers[0], nn.ReLU | nn.LeakyReLU) and fuses(layer, input):
                slope = getattr(layers.pop(0), "negative_slope", 0.0)
                dropout = layers.pop(0).p if layers and isinstance(layers[0], nn.Dropout) else 0.0
                input = fused(layer, input, slope, dropout)
            else:
                input = layer(input)
        return input


def fuses(norm: nn.Module, features: Tensor) -> bool:
    """Whether `fused` takes the place of a norm of features, and of what follows: in training, on GPUs, channels_last.

    Not if compiled: Inductor fuses norms with what is around them, too, as it could not with an op of ours. Not with
    statistics of all ranks, nor if the norm has hooks: those of ZeRO 3 gather its weights.
    """
    return (
        not torch.compiler.is_compiling()
        and is_on_gpu(features)
        and type(norm) in (nn.BatchNorm2d, nn.InstanceNorm2d)
        and norm.training
        and not norm._forward_pre_hooks
        and features.is_contiguous(memory_format=torch.channels_last)
    )


def is_on_gpu(features: Tensor) -> bool:
    """Whether features are on a GPU. Replaced where a GPU's work is counted without one."""
    return features.is_cuda


def fused(
    norm: nn.Module, features: Tensor, slope: float, dropout: float = 0.0, skipped: Tensor | None = None
) -> Tensor:
    """Normalized features (N,C,H,W) through leaky ReLU and dropout, behind the ReLU of skipped ones (N,S,H,W), if any:
    (N,S+C,H,W), channels_last. norm: of which `fuses` is true. The seed of dropout is drawn from torch's generator."""
    assert isinstance(norm, nn.BatchNorm2d | nn.InstanceNorm2d)
    tracked = None
    if norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None:
        assert norm.momentum is not None
        tracked = Tracked(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum)
    return norm_act(
        features,
        norm.weight,
        norm.bias,
        slope,
        eps=norm.eps,
        instance=isinstance(norm, nn.InstanceNorm2d),
        tracked=tracked,
        dropout=dropout,
        seed=torch.empty((), dtype=torch.int64, device=features.device).random_() if dropout else None,
        skipped_NSHW=skipped,
    )
