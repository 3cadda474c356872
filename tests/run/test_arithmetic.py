"""The batch arithmetic, with literals."""

import pytest

from ipu_proxynorm.config import IPUConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.arithmetic import BatchArithmetic


def test_an_epoch_of_host_calls():
    config = IPUConfig(
        micro_batch_size=4, replication_factor=2, gradient_accumulation=5, device_iterations=3
    )
    batch = BatchArithmetic.of(config, images=1000)
    assert batch.global_batch == 40
    assert batch.combined_batch == 120
    assert batch.micro_batches == 30
    assert batch.host_calls == 8
    assert batch.updates == 24
    assert batch.dropped == 40


def test_too_few_images():
    config = IPUConfig(micro_batch_size=4, replication_factor=2)
    assert BatchArithmetic.of(config, images=8).host_calls == 1
    with pytest.raises(UserError, match=r"7 training images .* combined batch of 8 .*lower"):
        BatchArithmetic.of(config, images=7)
