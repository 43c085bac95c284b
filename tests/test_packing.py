import numpy as np
import pytest
import torch

from rlhf_recipes.packing import Group, groups_of, of_like_length, packing_of

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
    assert packing.pack(IDS).tolist() == [[1, 2, 3, 9, 4, 5, 8, 6, 7]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 0, 3, 4, 1, 3, 0]]


def test_every_token_comes_back_to_its_place():
    packing = packing_of(IDS, MASK)
    assert torch.equal(packing.unpack(packing.pack(IDS))[MASK.bool()], IDS[MASK.bool()])


def test_blocks_hold_each_token_once_and_give_it_back():
    packing = packing_of(IDS, MASK)
    packed = packing.pack(IDS)[:, None, :, None].double().requires_grad_()
    blocks = packing.blocks(packed)
    assert [tuple(block.shape) for block in blocks] == [(3, 1, 3, 1), (3, 1, 1, 1), (1, 1, 2, 1)]
    joined = packing.joined([block.transpose(1, 2) for block in blocks])
    assert torch.equal(joined[0, :, 0, 0], packed[0, 0, :, 0])
    weights = torch.arange(1.0, 10.0).double()
    (joined[0, :, 0, 0] * weights).sum().backward()
    assert torch.equal(packed.grad.flatten(), weights)


def test_a_rest_sees_its_prefix_and_what_came_before_in_itself():
    packing = packing_of(IDS, MASK)
    (two,) = (rests for rests in packing.rests if rests.shape == (1, 2))
    # The prefix 1 2 3, and of the rest 4 5 what is not later.
    assert two.visible[0, 0].tolist() == [[True] * 4 + [False], [True] * 5]
    ones = next(rests for rests in packing.rests if rests.shape == (3, 1))
    prefixes = ones.visible[:, 0, 0, :-1].sum(-1).tolist()
    assert sorted(prefixes) == [0, 1, 3]
    assert ones.visible[:, 0, 0, -1].all()


@pytest.mark.parametrize(
    ("sequences", "groups"),
    [
        # k rows with a prefix of p that take in another and keep p' save k p' - (k - 1) p tokens.
        (rows_of([1, 2, 3, 4], [1, 2, 3, 5]), [Group(3, [0, 1])]),
        (rows_of([1, 2], [1, 2]), [Group(1, [0, 1])]),  # each keeps a token of its own
        (rows_of([1, 2], [1, 2, 3, 4]), [Group(1, [0]), Group(3, [1])]),  # 1 of 4 is not enough
        (rows_of([1, 2, 3], [1, 2, 3, 4]), [Group(2, [0, 1])]),
        (rows_of([5], [6]), [Group(0, [0]), Group(0, [1])]),
        # The third would take 3 tokens off the prefix of two, and give 1 back.
        (
            rows_of([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 7, 8, 9, 9]),
            [Group(4, [0, 1]), Group(4, [2])],
        ),
        (
            rows_of([4, 4, 4, 1], [3, 3, 1], [4, 4, 4, 2], [3, 3, 2], [4, 4, 4, 3]),
            [Group(2, [1, 3]), Group(3, [0, 2, 4])],
        ),
    ],
)
def test_rows_are_grouped_where_that_saves_tokens(sequences, groups):
    assert groups_of(sequences) == groups


def test_rests_in_a_block_differ_by_less_than_a_factor_of_two():
    blocks = of_like_length(np.array([1, 9, 2, 3, 4, 16, 17]))
    assert [sorted(block.tolist()) for block in blocks] == [[0], [2], [3, 4], [1, 5], [6]]


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 0, 0]], ids=["a gap", "nothing"])
def test_rows_with_gaps_or_without_tokens_are_not_packed(mask):
    assert packing_of(torch.tensor([[1, 2, 3]]), torch.tensor([mask])) is None
