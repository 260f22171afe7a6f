"""Documents of a token stream.

A document runs from one BOS token to the next BOS token *inclusive* (methods.md 8.5): the next document's BOS is its
last target. So every target of the stream belongs to exactly one document, and the last document ends with the stream.
Target i of a stream of N tokens is token i + 1, predicted from tokens 0..i; there are N - 1 targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.errors import InputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Where documents lie in a token stream.

    starts: first token of each document, ascending, int64 [D]; starts[0] is 0.
    num_targets: targets of each document, int64 [D], at least 1. Document d owns targets
        starts[d] .. starts[d] + num_targets[d] - 1 and reads tokens starts[d] .. starts[d] + num_targets[d].
    """

    starts: IntArray
    num_targets: IntArray

    def __len__(self) -> int:
        return len(self.starts)


def find_documents(tokens: npt.NDArray[np.integer], bos_id: int) -> Documents:
    """Splits a stream at its BOS tokens. Tokens before the first BOS form a document of their own.

    A BOS that ends the stream starts no document, because nothing follows it: it is the previous one's last target.
    Raises InputError if the stream has fewer than 2 tokens or no BOS at all.
    """
    if len(tokens) < 2:
        raise InputError(f"the validation stream holds {len(tokens)} tokens; at least 2 are needed to score anything")
    bos_positions = np.flatnonzero(np.asarray(tokens) == bos_id).astype(np.int64)
    if len(bos_positions) == 0:
        raise InputError(f"the validation stream holds no document: token id {bos_id} (BOS) never occurs in it")
    starts = bos_positions if bos_positions[0] == 0 else np.concatenate([np.zeros(1, np.int64), bos_positions])
    starts = starts[starts < len(tokens) - 1]
    ends = np.append(starts[1:], len(tokens) - 1)
    return Documents(starts=starts, num_targets=ends - starts)
