import numpy as np

from model.text.tokenizer import BOS_ID


def test_table_of_the_community_model(byte_table_vectors, community):
    assert byte_table_vectors["tokenizer_sha256"] == community.sha256
    table = community.byte_table()
    assert len(byte_table_vectors["pieces"]) == 60
    for piece in byte_table_vectors["pieces"]:
        piece_id = piece["id"]
        assert community.model.pieces[piece_id] == piece["piece"]
        found = (table.base_bytes[piece_id], table.has_leading_space[piece_id], table.is_boundary[piece_id])
        assert found == (piece["base_bytes"], piece["leading_space"], piece["boundary"]), piece
    sums = {
        "base_bytes": table.base_bytes.sum(),
        "leading_space": table.has_leading_space.sum(),
        "boundary": table.is_boundary.sum(),
    }
    assert sums == byte_table_vectors["table_sums"]


def test_token_bytes_of_texts(byte_table_vectors, community):
    table = community.byte_table()
    texts = [*byte_table_vectors["texts"], byte_table_vectors["made_up_text"]]
    assert len(texts) == 6
    for case in texts:
        ids = community.encode(case["text"])
        assert ids.tolist() == case["ids"]
        counted = table.token_bytes(np.concatenate(([BOS_ID], ids[:-1])), ids)
        assert counted.tolist() == case["token_bytes"]
        assert counted.sum() == case["total_bytes"]


def test_a_leading_space_counts_only_after_text(community):
    table = community.byte_table()
    help_id = community.model.pieces.index("▁help")
    previous = np.array([BOS_ID, 0, 2, 3, help_id, 300])
    assert table.token_bytes(previous, np.full(6, help_id)).tolist() == [4, 4, 4, 4, 5, 5]


def test_control_pieces_count_nothing(community):
    table = community.byte_table()
    assert table.token_bytes(np.array([300, 300, 300, 300]), np.arange(4)).tolist() == [0, 0, 0, 0]
