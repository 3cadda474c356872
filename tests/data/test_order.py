"""The order of images: one for each seed and epoch, whoever reads them."""

import numpy as np
import pytest

from ipu_proxynorm.data.order import EpochSampler, Share, epoch_order


def test_an_epoch_shows_different_images_once_each_in_its_own_order():
    share = Share(steps=2, rows=3)
    orders = [epoch_order(50, share, seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    for order in orders:
        assert len(order) == len(set(order)) == 48
        assert set(order) <= set(range(50))
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == epoch_order(50, share, 0, 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_read_what_one_with_all_replicas_reads(processes):
    replicas, micro_batch, steps, size = 4, 2, 6, 200
    one = np.array(epoch_order(size, Share(steps, replicas * micro_batch), 5, 3))
    rows = replicas // processes * micro_batch
    parts = [
        np.array(epoch_order(size, Share(steps, rows, processes, process), 5, 3))
        for process in range(processes)
    ]
    # [host call and step][replica, whichever process has it][row]
    together = np.concatenate([part.reshape(-1, rows) for part in parts], axis=1)
    assert np.array_equal(together, one.reshape(-1, replicas * micro_batch))


def test_what_follows_a_host_call_is_the_rest_of_the_epoch():
    share = Share(steps=2, rows=5)
    whole = epoch_order(64, share, 0, 2)
    assert epoch_order(64, share, 0, 2, first_call=4) == whole[40:]
    sampler = EpochSampler(64, share, 0, epoch=2, call=4)
    passes = [list(sampler) for _ in range(2)]
    assert passes[0] == [(2, index) for index in whole[40:]]
    assert passes[1] == [(3, index) for index in epoch_order(64, share, 0, 3)]
