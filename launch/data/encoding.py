"""Encoding documents on several cores, results in the order of the input."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator

import numpy as np

from launch.data.documents import RawBatch
from launch.data.split_writer import EncodedDocuments
from model.errors import InputError
from model.text.tokenizer import BOS_ID, Tokenizer


def encode_batches(
    batches: Iterator[tuple[str, RawBatch]], model: Tokenizer, num_workers: int
) -> Generator[tuple[str, RawBatch, EncodedDocuments], None, None]:
    """Results in the order of the batches. One worker means this process."""
    if num_workers == 1:
        for split, batch in batches:
            yield split, batch, encode_documents(model, batch)
        return
    # Fork is quick and needs no importable __main__; the workers only run numpy and SentencePiece.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _start_worker, (model,)) as pool:
        pending: collections.deque[tuple[str, RawBatch, concurrent.futures.Future[EncodedDocuments]]] = (
            collections.deque()
        )
        try:
            for split, batch in batches:
                pending.append((split, batch, pool.submit(_encode_in_worker, batch)))
                if len(pending) >= 2 * num_workers + 2:
                    split, batch, future = pending.popleft()
                    yield split, batch, future.result()
            while pending:
                split, batch, future = pending.popleft()
                yield split, batch, future.result()
        finally:
            for _, _, future in pending:
                future.cancel()


_worker_tokenizer: Tokenizer | None = None


def _start_worker(model: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends them in order
    # The pool's workers wait for work for ever when their parent is killed.
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(batch: RawBatch) -> EncodedDocuments:
    assert _worker_tokenizer is not None
    return encode_documents(_worker_tokenizer, batch)


def encode_documents(model: Tokenizer, batch: RawBatch) -> EncodedDocuments:
    """Parse and encode a batch; documents without text are counted and skipped."""
    texts = batch.texts()
    encoded = []
    ids: list[np.ndarray] = []
    token_bytes: list[np.ndarray] = []
    bos, no_bytes = np.array([BOS_ID], np.uint16), np.zeros(1, np.uint16)
    for index, text in enumerate(texts):
        if not text:
            continue
        try:
            document = model.encode_text(text)
        except InputError as error:
            raise InputError(f"{_document_name(batch, index)}: {error}") from None
        largest = int(document.token_bytes.max(initial=0))
        if largest > 0xFFFF:
            raise InputError(
                f"{_document_name(batch, index)}: one token stands for {largest} bytes; a side-car entry holds 65535"
            )
        encoded.append(document)
        ids += bos, document.ids
        token_bytes += no_bytes, document.token_bytes.astype(np.uint16)
    return EncodedDocuments(
        np.concatenate(ids or [bos[:0]]),
        np.concatenate(token_bytes or [no_bytes[:0]]),
        np.array([len(document.ids) + 1 for document in encoded], np.int64),
        np.array([document.text_bytes for document in encoded], np.int64),
        np.array([document.uncredited_bytes for document in encoded], np.int64),
        np.array([document.changed_bytes for document in encoded], np.int64),
        len(texts) - len(encoded),
    )


def _document_name(batch: RawBatch, index: int) -> str:
    if not batch.first_line:
        return str(batch.path)
    lines = [line for line, payload in enumerate(batch.payloads, batch.first_line) if payload.strip()]
    return f"{batch.path} line {lines[index]}"
