import numpy as np
import pytest
import torch

from rlhf_recipes.prefix_sharing.packing import Packer, Segment, attention_blocks

IDS = torch.tensor(
    [
        [1, 2, 3, 4, 5, 0],  # shares 1 2 3 with the third row
        [0, 0, 9, 8, 0, 0],  # no common prefix, padded on both sides
        [0, 1, 2, 3, 6, 0],
        [7, 0, 0, 0, 0, 0],  # no common prefix, one token
    ]
)
MASK = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]
)


def rows_of(*sequences):
    return [np.array(sequence) for sequence in sequences]


def test_a_common_prefix_is_packed_once():
    packing = Packer()(IDS, MASK)
    assert packing.pack(IDS).tolist() == [[1, 2, 3, 4, 5, 6, 7, 9, 8]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 0, 1]]


def test_unpacking_restores_every_token():
    packing = Packer()(IDS, MASK)
    assert torch.equal(packing.unpack(packing.pack(IDS))[MASK.bool()], IDS[MASK.bool()])


def test_a_suffix_attends_to_its_prefix_and_causally_to_itself():
    packing = Packer()(IDS, MASK)
    assert packing.segment_lengths == [3, 2, 1, 1, 2]
    prefix, suffixes, *others = packing.blocks
    assert [tuple(block) for block in (prefix, *others)] == [
        (3, [0], None),
        (1, [3], None),
        (2, [4], None),
    ]
    assert (suffixes.num_tokens, suffixes.segments) == (3, [0, 1, 2])
    # The prefix 1 2 3, then the suffix 4 5 causally, then the suffix 6.
    assert suffixes.attention_mask[0, 0].int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]


def test_a_block_has_at_most_as_many_suffix_tokens_as_the_prefix():
    """Suffixes of 0, 1, 2, 2 and 5 tokens after a prefix of 4."""
    prefix = [1, 2, 3, 4]
    suffixes: list[list[int]] = [[], [5], [6, 0], [7, 0], [8, 0, 0, 0, 0]]
    assert attention_blocks(rows_of(*(prefix + suffix for suffix in suffixes))) == [
        [Segment([0, 1, 2, 3, 4], 0, 4)],
        [Segment([1], 4, 5), Segment([2], 4, 6)],
        [Segment([3], 4, 6)],
        [Segment([4], 4, 9)],
    ]


def test_a_prefix_that_all_prompts_share_is_packed_once():
    """Two completions for each of two prompts that begin with the same two tokens."""
    ids = torch.tensor([[1, 2, 5, 8], [1, 2, 5, 9], [1, 2, 6, 8], [1, 2, 6, 9]])
    packing = Packer()(ids, torch.ones_like(ids))
    assert packing.pack(ids).tolist() == [[1, 2, 5, 8, 9, 6, 8, 9]]
    assert packing.unpack(packing.pack(ids)).tolist() == ids.tolist()
    assert attention_blocks(list(ids.numpy())) == [
        [Segment([0, 1, 2, 3], 0, 2)],
        [Segment([0, 1], 2, 3)],
        [Segment([0], 3, 4), Segment([1], 3, 4)],
        [Segment([2, 3], 2, 3)],
        [Segment([2], 3, 4), Segment([3], 3, 4)],
    ]
    assert [block.segments for block in packing.blocks] == [
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 4],
        [0, 4, 5, 6],
    ]


@pytest.mark.parametrize(
    ("sequences", "blocks"),
    [
        (rows_of([1, 2], [1, 2]), [[Segment([0, 1], 0, 2)]]),
        (rows_of([1, 2], [1, 2, 3]), [[Segment([0, 1], 0, 2)], [Segment([1], 2, 3)]]),
        (rows_of([5], [6]), [[Segment([0], 0, 1)], [Segment([1], 0, 1)]]),
        # Saving one token of 9 is too little, one of 8 is enough.
        (rows_of([1, 2], [1] + [9] * 6), [[Segment([0], 0, 2)], [Segment([1], 0, 7)]]),
        (
            rows_of([1, 2], [1] + [9] * 5),
            [[Segment([0, 1], 0, 1)], [Segment([0], 1, 2)], [Segment([1], 1, 6)]],
        ),
        # The prefix of all three saves too little, the prefix of two of them enough.
        (
            rows_of([1, 2, 3, 4, 5], [1] + [7] * 9, [1, 2, 3, 4, 6]),
            [
                [Segment([0, 2], 0, 4)],
                [Segment([0], 4, 5), Segment([2], 4, 5)],
                [Segment([1], 0, 10)],
            ],
        ),
    ],
)
def test_a_prefix_is_shared_if_that_saves_an_eighth_of_the_tokens(sequences, blocks):
    assert attention_blocks(sequences) == blocks


def test_equal_rows_are_packed_once():
    ids = torch.tensor([[1, 2], [1, 2]])
    packing = Packer()(ids, torch.ones_like(ids))
    assert packing.segment_lengths == [2]
    assert packing.pack(ids).tolist() == [[1, 2]]
    assert packing.unpack(packing.pack(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize("mask", [[1, 0, 1], [0, 0, 0]], ids=["a gap", "nothing"])
def test_rows_with_gaps_or_without_tokens_are_not_packed(mask):
    assert Packer()(torch.tensor([[1, 2, 3]]), torch.tensor([mask])) is None


def test_a_batch_of_the_same_tokens_has_the_same_packing():
    packer = Packer()
    packing = packer(IDS, MASK)
    assert packer(IDS.clone(), MASK.bool()) is packing
    shorter = MASK.clone()
    shorter[0, 4] = 0
    assert packer(IDS, shorter).position_ids.shape == (1, 8)
    changed = IDS.clone()
    packer(changed, MASK)
    changed[0, 4] = 9  # in place: the last batch is compared by its values
    assert packer(changed, MASK).pack(changed).tolist() == [[1, 2, 3, 4, 9, 6, 7, 9, 8]]
