import itertools

import numpy as np
import pytest

from model.errors import InputError
from trainer.loaders.orders import CoprimeStrideOrder, PackedOrder, SequentialOrder, ShuffledOrder

SHARDS = [1000, 900, 50, 1200, 640, 1000, 1000, 777, 1000, 1000, 5]
EDGES = np.cumsum([0, *SHARDS])
LENGTH = 16


def shard_of(position: int) -> int:
    """The shard that a whole sample at this position lies in."""
    shard = int(np.searchsorted(EDGES, position, side="right")) - 1
    assert position + LENGTH + 1 <= EDGES[shard + 1], "a sample straddles two shards"
    return shard


def test_sequential_goes_around():
    order = SequentialOrder([100, 61], LENGTH, 4)
    assert order.num_samples == 10
    assert order.positions(0).tolist() == [0, 16, 32, 48]
    assert order.positions(2).tolist() == [128, 144, 0, 16]


@pytest.mark.parametrize("kind", [ShuffledOrder, CoprimeStrideOrder])
def test_any_step_is_a_function_of_the_seed(kind):
    one, other = (kind(SHARDS, LENGTH, 24, 7) for _ in range(2))
    run = [one.positions(step).tolist() for step in range(40)]
    assert other.positions(33).tolist() == run[33]
    assert other.positions(2).tolist() == run[2]
    assert [one.positions(step).tolist() for step in (39, 0, 17)] == [run[39], run[0], run[17]]
    assert kind(SHARDS, LENGTH, 24, 8).positions(0).tolist() != run[0]
    assert all(len(positions) == 24 for positions in run)


def owner_shards(owner: int) -> set[int]:
    with_windows = [shard for shard, length in enumerate(SHARDS) if length >= 2 * LENGTH]
    return set(with_windows[owner::8])


def test_shuffled_owners_visit_every_window_of_their_shards_once_an_epoch():
    order = ShuffledOrder(SHARDS, LENGTH, 8, 7)
    counts = [max(length - LENGTH, 0) // LENGTH for length in SHARDS]
    assert order.num_samples == sum(counts)
    for owner in range(8):
        shards = owner_shards(owner)
        epoch = sum(counts[shard] for shard in shards)
        for first in (0, epoch):  # two epochs
            positions = [int(order.positions(step)[owner]) for step in range(first, first + epoch)]
            assert len(set(positions)) == epoch
            found = [shard_of(position) for position in positions]
            assert {shard: found.count(shard) for shard in shards} == {shard: counts[shard] for shard in shards}
            for shard in shards:  # one phase per shard and epoch
                phases = {(p - EDGES[shard]) % LENGTH for p, s in zip(positions, found, strict=True) if s == shard}
                assert len(phases) == 1
            assert positions != sorted(positions) or epoch < 10


def test_shuffled_epochs_have_other_phases():
    order = ShuffledOrder([1000], LENGTH, 61, 3)
    phases = {int(order.positions(step)[0]) % LENGTH for step in range(30)}
    assert len(phases) > 8


def test_coprime_visits_every_block_of_a_shard_once_before_it_starts_again():
    order = CoprimeStrideOrder(SHARDS, LENGTH, 24, 7)
    counts = {shard: (length - LENGTH) // LENGTH for shard, length in enumerate(SHARDS) if length >= 2 * LENGTH}
    visits: dict[int, list[int]] = {shard: [] for shard in counts}
    for step in range(120):
        for position in order.positions(step).tolist():
            visits[shard_of(position)].append(position)
    assert sum(map(len, visits.values())) == 120 * 24
    for shard, positions in visits.items():
        count = counts[shard]
        for first in range(0, len(positions) - count + 1, count):
            epoch = positions[first : first + count]
            assert len(set(epoch)) == count
            strides = {(b - a) // LENGTH % count for a, b in itertools.pairwise(epoch)}
            assert len(strides) <= 1, "one stride an epoch"


def test_coprime_mixes_more_shards_as_training_goes_on():
    order = CoprimeStrideOrder([4000] * 100, LENGTH, 256, 1)

    def num_shards(step: int) -> int:
        return len({int(position) // 4000 for position in order.positions(step)})

    assert num_shards(0) == 8
    assert num_shards(900) == 36
    assert num_shards(1800) == num_shards(1900) == 64
    first = order.positions(0) // 4000
    assert len(set(first[:8].tolist())) == 8, "shards take turns"


def test_coprime_prefers_shards_with_more_left():
    order = CoprimeStrideOrder([160, 16000], LENGTH, 4, 1)
    drawn = np.concatenate([order.positions(step) for step in range(200)])
    share = float((drawn < 160).mean())
    assert 0.2 < share < 0.5  # one window of each is in every batch; the rest nearly all from the long one


def published_rows(shards: list[np.ndarray], row_tokens: int, num_calls: int, num_ranks: int = 8) -> list[int]:
    """The published loader (methods.md 7.4), call by call: positions in the stream of each rank's row."""
    edges = np.cumsum([0, *map(len, shards)])
    index, rows = 0, []

    def first_bos(shard):
        found = np.flatnonzero(shard == 1)
        return int(found[0]) if len(found) else 0

    cursor = first_bos(shards[0])
    for _ in range(num_calls):
        while cursor + num_ranks * row_tokens > len(shards[index]):
            index = (index + 1) % len(shards)
            cursor = first_bos(shards[index])
        rows += [int(edges[index]) + cursor + rank * row_tokens for rank in range(num_ranks)]
        cursor += num_ranks * row_tokens
    return rows


def test_packed_rows_are_those_of_the_published_loader():
    random = np.random.default_rng(0)
    shards = []
    for length in (900, 10, 700, 277, 1500):
        shard = random.integers(5, 50, length)
        shard[random.integers(3, length, 4)] = 1
        shards.append(shard)
    first_bos = [int(np.flatnonzero(shard == 1)[0]) for shard in shards]
    for num_sequences in (8, 16):
        order = PackedOrder([len(shard) for shard in shards], first_bos, LENGTH, num_sequences)
        found = np.concatenate([order.positions(step) for step in range(64 // num_sequences * 5)])
        assert found.tolist() == published_rows(shards, LENGTH + 1, 40)


def test_data_too_short_for_an_order_are_refused():
    with pytest.raises(InputError, match="no shard holds the 16 tokens"):
        SequentialOrder([16], LENGTH, 1)
    for kind in (ShuffledOrder, CoprimeStrideOrder):
        with pytest.raises(InputError, match="no shard holds the 32 tokens"):
            kind([31, 31], LENGTH, 1, 0)
    with pytest.raises(InputError, match="no shard holds the 136 tokens"):
        PackedOrder([135], [0], LENGTH, 8)
