"""The arithmetic of a run's batches: from one micro-batch to an epoch."""

from __future__ import annotations

import dataclasses

from ipu_proxynorm.config import IPUConfig
from ipu_proxynorm.errors import UserError


@dataclasses.dataclass(frozen=True)
class BatchArithmetic:
    """How many images stand behind a micro-batch, a weight update, a host call and an epoch."""

    micro_batch_size: int
    replication_factor: int
    gradient_accumulation: int
    device_iterations: int
    images: int

    @classmethod
    def of(cls, config: IPUConfig, images: int) -> BatchArithmetic:
        """Return the arithmetic of ``images`` training images.

        Raises:
            UserError: the images do not fill one combined batch.
        """
        arithmetic = cls(
            config.micro_batch_size,
            config.replication_factor,
            config.gradient_accumulation,
            config.device_iterations,
            images,
        )
        if arithmetic.host_calls == 0:
            raise UserError(
                f"data: {images} training images do not fill one combined batch of "
                f"{arithmetic.combined_batch} (ipu.micro_batch_size x replication_factor x "
                f"gradient_accumulation x device_iterations); lower one of these"
            )
        return arithmetic

    @property
    def global_batch(self) -> int:
        """Images behind one weight update."""
        return self.micro_batch_size * self.replication_factor * self.gradient_accumulation

    @property
    def combined_batch(self) -> int:
        """Images behind one host call."""
        return self.global_batch * self.device_iterations

    @property
    def micro_batches(self) -> int:
        """Micro-batches behind one host call, over all replicas."""
        return self.combined_batch // self.micro_batch_size

    @property
    def host_calls(self) -> int:
        """Host calls in an epoch."""
        return self.images // self.combined_batch

    @property
    def updates(self) -> int:
        """Weight updates in an epoch."""
        return self.host_calls * self.device_iterations

    @property
    def dropped(self) -> int:
        """Images left out of an epoch: the ragged end, another one each time."""
        return self.images % self.combined_batch
