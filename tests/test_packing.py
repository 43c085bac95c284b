import numpy as np
import pytest
import torch

from rlhf_recipes.packing import Group, Piece, blocks_of, groups_of, packing_of

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
    assert packing.blocks == [3, 3, 1, 2]
    prefix, rests, *alone = packing.visible
    assert prefix is None
    assert alone == [None, None]
    # The prefix 1 2 3; of the rest 4 5 what is not later; the rest 6 alone.
    assert rests[0, 0].int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_rests_stand_in_one_block_up_to_the_length_of_their_prefix():
    lengths = np.array([5, 6, 4, 6, 9])  # rests of 1, 2, 0, 2 and 5 tokens
    assert list(blocks_of(Group(4, [0, 1, 2, 3, 4]), lengths)) == [
        [Piece([0, 1, 2, 3, 4], 0, 4)],
        [Piece([0], 4, 5), Piece([1], 4, 6)],
        [Piece([3], 4, 6)],
        [Piece([4], 4, 9)],
    ]


def test_equal_rows_are_one():
    ids = torch.tensor([[1, 2], [1, 2]])
    packing = packing_of(ids, torch.ones_like(ids))
    assert packing.blocks == [2]
    assert packing.pack(ids).tolist() == [[1, 2]]
    assert packing.unpack(packing.pack(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("sequences", "groups"),
    [
        # k rows with a prefix of p that take in another and keep p' save k p' - (k - 1) p tokens.
        (rows_of([1, 2, 3, 4], [1, 2, 3, 5]), [Group(3, [0, 1])]),
        (rows_of([1, 2], [1, 2]), [Group(2, [0, 1])]),
        (rows_of([1, 2], [1, 9, 9, 9]), [Group(2, [0]), Group(4, [1])]),  # 1 of 4 is not enough
        (rows_of([1, 2, 3], [1, 2, 3, 4]), [Group(3, [0, 1])]),
        (rows_of([5], [6]), [Group(1, [0]), Group(1, [1])]),
        # The third would take 3 tokens off the prefix of two, and give 1 back.
        (
            rows_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 7, 8, 9, 9]),
            [Group(4, [0, 1]), Group(5, [2])],
        ),
        (
            rows_of([4, 4, 4, 1], [3, 3, 1], [4, 4, 4, 2], [3, 3, 2], [4, 4, 4, 3]),
            [Group(2, [1, 3]), Group(3, [0, 2, 4])],
        ),
    ],
)
def test_rows_are_grouped_where_that_saves_tokens(sequences, groups):
    assert groups_of(sequences) == groups


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 0, 0]], ids=["a gap", "nothing"])
def test_rows_with_gaps_or_without_tokens_are_not_packed(mask):
    assert packing_of(torch.tensor([[1, 2, 3]]), torch.tensor([mask])) is None
