import numpy as np
import pytest
import torch

from rlhf_recipes.prefix_sharing.packing import Piece, blocks_of, packing_of

IDS = torch.tensor(
    [
        [1, 2, 3, 4, 5, 0],  # shares 1 2 3 with the third
        [0, 0, 9, 8, 0, 0],  # alone, padded on both sides
        [0, 1, 2, 3, 6, 0],
        [7, 0, 0, 0, 0, 0],  # alone, one token
    ]
)
MASK = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
)


def rows_of(*sequences):
    return [np.array(sequence) for sequence in sequences]


def test_what_rows_have_in_common_stands_there_once():
    packing = packing_of(IDS, MASK)
    assert packing.pack(IDS).tolist() == [[1, 2, 3, 4, 5, 6, 7, 9, 8]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 0, 1]]


def test_every_token_comes_back_to_its_place():
    packing = packing_of(IDS, MASK)
    assert torch.equal(packing.unpack(packing.pack(IDS))[MASK.bool()], IDS[MASK.bool()])


def test_a_rest_sees_its_prefix_and_what_came_before_in_itself():
    packing = packing_of(IDS, MASK)
    assert packing.pieces == [3, 2, 1, 1, 2]
    prefix, rests, *alone = packing.blocks
    assert [tuple(block) for block in (prefix, *alone)] == [
        (3, [0], None),
        (1, [3], None),
        (2, [4], None),
    ]
    assert (rests.tokens, rests.seen) == (3, [0, 1, 2])
    # The prefix 1 2 3; of the rest 4 5 what is not later; the rest 6 alone.
    assert rests.visible[0, 0].int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_rests_stand_in_one_block_up_to_the_length_of_their_prefix():
    """Rests of 0, 1, 2, 2 and 5 tokens after a prefix of 4."""
    prefix = [1, 2, 3, 4]
    rests: list[list[int]] = [[], [5], [6, 0], [7, 0], [8, 0, 0, 0, 0]]
    assert blocks_of(rows_of(*(prefix + rest for rest in rests))) == [
        [Piece([0, 1, 2, 3, 4], 0, 4)],
        [Piece([1], 4, 5), Piece([2], 4, 6)],
        [Piece([3], 4, 6)],
        [Piece([4], 4, 9)],
    ]


def test_what_prompts_have_in_common_stands_there_once_for_all_of_them():
    """Two answers to each of two prompts that begin with the same two tokens."""
    ids = torch.tensor([[1, 2, 5, 8], [1, 2, 5, 9], [1, 2, 6, 8], [1, 2, 6, 9]])
    packing = packing_of(ids, torch.ones_like(ids))
    assert packing.pack(ids).tolist() == [[1, 2, 5, 8, 9, 6, 8, 9]]
    assert packing.unpack(packing.pack(ids)).tolist() == ids.tolist()
    assert blocks_of(list(ids.numpy())) == [
        [Piece([0, 1, 2, 3], 0, 2)],
        [Piece([0, 1], 2, 3)],
        [Piece([0], 3, 4), Piece([1], 3, 4)],
        [Piece([2, 3], 2, 3)],
        [Piece([2], 3, 4), Piece([3], 3, 4)],
    ]
    assert [block.seen for block in packing.blocks] == [
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 4],
        [0, 4, 5, 6],
    ]


@pytest.mark.parametrize(
    ("sequences", "blocks"),
    [
        (rows_of([1, 2], [1, 2]), [[Piece([0, 1], 0, 2)]]),
        (rows_of([1, 2], [1, 2, 3]), [[Piece([0, 1], 0, 2)], [Piece([1], 2, 3)]]),
        (rows_of([5], [6]), [[Piece([0], 0, 1)], [Piece([1], 0, 1)]]),
        # One token of 9 is too little, one of 8 is enough.
        (rows_of([1, 2], [1] + [9] * 6), [[Piece([0], 0, 2)], [Piece([1], 0, 7)]]),
        (
            rows_of([1, 2], [1] + [9] * 5),
            [[Piece([0, 1], 0, 1)], [Piece([0], 1, 2)], [Piece([1], 1, 6)]],
        ),
        # What all three have in common is too little, and what two of them have is enough.
        (
            rows_of([1, 2, 3, 4, 5], [1] + [7] * 9, [1, 2, 3, 4, 6]),
            [
                [Piece([0, 2], 0, 4)],
                [Piece([0], 4, 5), Piece([2], 4, 5)],
                [Piece([1], 0, 10)],
            ],
        ),
    ],
)
def test_a_beginning_is_shared_where_that_saves_an_eighth_of_the_tokens(sequences, blocks):
    assert blocks_of(sequences) == blocks


def test_equal_rows_are_one():
    ids = torch.tensor([[1, 2], [1, 2]])
    packing = packing_of(ids, torch.ones_like(ids))
    assert packing.pieces == [2]
    assert packing.pack(ids).tolist() == [[1, 2]]
    assert packing.unpack(packing.pack(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 0, 0]], ids=["a gap", "nothing"])
def test_rows_with_gaps_or_without_tokens_are_not_packed(mask):
    assert packing_of(torch.tensor([[1, 2, 3]]), torch.tensor([mask])) is None
