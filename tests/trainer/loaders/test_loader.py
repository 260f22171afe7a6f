import threading

import numpy as np
import pytest
import torch

from model.errors import InputError
from model.text.shards import TokenStream, write_shard
from trainer.loaders.loader import LENGTHS_BUCKET, ORDERS, SampleLoader, make_order
from trainer.loaders.packing import cumulative_lengths
from trainer.ranks import Ranks

LENGTH, SEQUENCES = 16, 8


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> TokenStream:
    """Tokens that count up, so that a sample shows where it was taken; a BOS every 50."""
    folder = tmp_path_factory.mktemp("shards")
    paths = []
    tokens = np.arange(10, 5010)
    tokens[3::50] = 1
    for number, part in enumerate(np.split(tokens, [900, 1700, 3000])):
        paths.append(folder / f"x_train_{number:06d}.bin")
        write_shard(paths[-1], part)
    return TokenStream(paths)


def loader(
    stream: TokenStream, name: str = "shuffled", rank: int = 0, size: int = 1, **options: object
) -> SampleLoader:
    order = make_order(name, stream, LENGTH, SEQUENCES, seed=5)
    settings = {"sequence_tokens": LENGTH, "num_sequences": SEQUENCES, "micro_batch_sequences": 2, **options}
    return SampleLoader(stream, order, Ranks(rank, size, torch.device("cpu")), **settings)


@pytest.mark.parametrize("name", ORDERS)
def test_samples_are_spans_of_the_stream_and_their_targets_the_next_tokens(name, stream):
    one = loader(stream, name)
    positions = one.sample_positions(3)
    found = [one.micro_batch(3, index) for index in range(4)]
    one.close()
    ids, targets = (torch.cat([batch[part] for batch in found]) for part in range(2))
    assert ids.dtype == targets.dtype == torch.int64
    for row, position in enumerate(positions.tolist()):
        span = stream.read(position, LENGTH + 1).astype(np.int64)
        assert ids[row].tolist() == span[:-1].tolist()
        assert targets[row].tolist() == span[1:].tolist()


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("size", [2, 4])
def test_a_steps_samples_are_the_same_for_any_number_of_ranks(name, size, stream):
    alone = loader(stream, name, prefetch=0)
    everyone = [loader(stream, name, rank, size, prefetch=0) for rank in range(size)]
    for step in (0, 1, 40):
        whole = torch.cat([alone.micro_batch(step, index)[0] for index in range(alone.num_micro_batches)])
        shared = torch.cat(
            [one.micro_batch(step, index)[0] for index in range(everyone[0].num_micro_batches) for one in everyone]
        )
        assert torch.equal(whole, shared)


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_what_is_prepared_ahead_is_what_was_asked_for(prefetch, stream):
    plain, ahead = loader(stream, "coprime", prefetch=0), loader(stream, "coprime", prefetch=prefetch)
    steps = [0, 1, 2, 7, 8, 3, 3, 4]  # a resumed run jumps
    for step in steps:
        for index in range(4):
            assert torch.equal(ahead.micro_batch(step, index)[1], plain.micro_batch(step, index)[1])
    assert len(ahead._ahead) == prefetch
    ahead.close()


def test_the_next_micro_batches_are_prepared_on_a_thread(stream):
    one = loader(stream)
    threads = []
    prepare = one._prepare
    one._prepare = lambda *key: (threads.append(threading.current_thread().name), prepare(*key))[1]
    for index in range(4):
        one.micro_batch(0, index)
    one.close()
    assert threads.count("MainThread") == 1
    assert any(name.startswith("loader") for name in threads)


def test_an_error_on_the_thread_reaches_the_caller(stream):
    one = loader(stream)
    one.micro_batch(0, 0)

    def fail(*key: int) -> None:
        raise OSError("the disk is gone")

    one._prepare = fail
    one.micro_batch(0, 1)
    one.micro_batch(0, 2)
    with pytest.raises(OSError, match="the disk is gone"):
        one.micro_batch(0, 3)
    one.close()


def test_packed_rows_come_with_their_documents(stream):
    one = loader(stream, "packed", micro_batch_sequences=1, longest_segment=8)
    ids, targets, lengths = one.micro_batch(2, 1)
    one.close()
    assert ids.shape == targets.shape == (1, LENGTH)
    assert lengths.dtype == torch.int32
    assert lengths.tolist() == cumulative_lengths(ids[0].numpy(), 8, LENGTHS_BUCKET).tolist()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_for_a_gpu_are_made_in_pinned_memory(device, stream, monkeypatch):
    """Which memory is asked for: without a GPU none can be pinned."""
    asked, empty = [], torch.empty

    def recorded(*shape: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*shape, **options)

    one = loader(stream, "packed", micro_batch_sequences=1, longest_segment=8, prefetch=0)
    expected = one.micro_batch(2, 1)
    one._ranks = Ranks(0, 1, torch.device(device))
    monkeypatch.setattr(torch, "empty", recorded)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (asked.append(True), tensor)[1])
    found = one._prepare(2, 1)
    assert asked == ([True] * 3 if device == "cuda" else [False] * 2)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ORDERS)
def test_batches_on_a_gpu_are_those_of_the_cpu(name, stream):
    packed = {"micro_batch_sequences": 1, "longest_segment": 8} if name == "packed" else {}
    plain, ahead = (loader(stream, name, **packed, prefetch=prefetch) for prefetch in (0, 2))
    ahead._ranks = Ranks(0, 1, torch.device("cuda"))
    assert all(tensor.is_pinned() for tensor in ahead._prepare(0, 0))
    for step in range(50):
        for index in range(plain.num_micro_batches):
            found = ahead.micro_batch(step, index)
            assert all(tensor.is_cuda for tensor in found)
            for tensor, wanted in zip(found, plain.micro_batch(step, index), strict=True):
                assert torch.equal(tensor.cpu(), wanted)
    ahead.close()


def test_wrong_shapes_are_refused(stream):
    with pytest.raises(InputError, match="8 sequences can't be shared out as micro-batches of 3 over 1 processes"):
        loader(stream, micro_batch_sequences=3)
    with pytest.raises(InputError, match="one row a micro-batch, not 2"):
        loader(stream, longest_segment=8)
    with pytest.raises(ValueError, match="data order 'random': accepted are sequential"):
        make_order("random", stream, LENGTH, SEQUENCES, 0)


def test_first_bos_of_each_shard(stream, tmp_path):
    assert stream.first_bos() == [3, 3, 3, 3]
    far = np.full(70_000, 9)
    far[66_000] = 1
    write_shard(tmp_path / "far.bin", far)
    write_shard(tmp_path / "none.bin", np.full(5, 9))
    assert TokenStream([tmp_path / "far.bin", tmp_path / "none.bin"]).first_bos() == [66_000, 0]
