"""An engine at ZeRO 1 to 3: DeepSpeed runs the step, and partitions moments, gradients and weights."""

from typing import Any

from torch import Tensor

from hpc_recolor.config import Config
from hpc_recolor.runtime.distributed import World
from hpc_recolor.training.engine.engine import Engine


class ZeroEngine(Engine):
    """A network in a DeepSpeed engine, whose step reads the device, and its Adam over flat partitions."""

    def __init__(self, deepspeed: Any, config: Config, world: World) -> None:
        self.deepspeed = deepspeed
        self.zero_stage = config.deepspeed.zero_stage
        super().__init__(deepspeed.module, deepspeed.optimizer.optimizer, config, world)

    def _start(self, world: World) -> None:
        pass

    def __call__(self, *inputs: Tensor, **options: bool) -> Tensor:
        """A forward pass that the network learns from. options: of its forward. Returns float32."""
        return self._forward(self.deepspeed, *inputs, **options)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a 0-dimensional loss; DeepSpeed averages them while it partitions them."""
        if self.precision == "fp16":
            self.deepspeed.optimizer.override_loss_scale(float(self.loss_scale))
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """Update the weights, at the last microbatch of a step; at the others, only count."""
        last = self.deepspeed.is_gradient_accumulation_boundary()
        self.deepspeed.step()
        if last:
            self.skipped.fill_(float(self.deepspeed.optimizer.overflow))

    def set_lr(self, lr: float, backbone_lr: float) -> None:
        """Set Adam's learning rate, and that of a pretrained backbone."""
        for group in self.adam.param_groups:
            group["lr"] = backbone_lr if group.get("is_backbone") else lr

    @property
    def gradient_norm(self) -> float:
        """Euclidean norm of the last step's gradient, over all ranks' partitions, before clipping."""
        return float(self.deepspeed.get_global_grad_norm() or 0.0)  # None before the first step

    def adam_parameters(self) -> list[Tensor]:
        """Flat float32 partitions that Adam updates on this rank."""
        if self.zero_stage == 3:
            return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return list(self.deepspeed.optimizer.single_partition_of_fp32_groups)

    def publish_weights(self) -> None:
        """Copy Adam's flat partitions of all ranks into the network's weights. All ranks call it together."""
        optimizer = self.deepspeed.optimizer
        if self.zero_stage < 3:
            optimizer.update_lp_params()
            return
        optimizer.checkpoint_event_prologue()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
