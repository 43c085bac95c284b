from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from rlhf_recipes.preferences.figure import distribution_figure
from rlhf_recipes.preferences.shapes import Lengths, Pair
from rlhf_recipes.preferences.statistics import pair_statistics


def statistics(train: int, dropped: int, limit: int | None) -> dict[str, Any]:
    pairs = [
        Pair(f"q {i}", "yes", "no", 1 + i % 12, "chat", "", Lengths(5 + i % 90, 1 + i % 7, 4))
        for i in range(train + 1)
    ]
    sizes = {"rows": train + 1 + dropped, "usable": train, "written": train}
    return {
        "dataset_name": "somewhere/pairs",
        "length_unit": "words",
        "max_length": limit,
        "sizes": {"train": sizes, "validation": sizes},
        "dropped": {"too_long": {"count": {"train": dropped, "validation": 0}}},
        "splits": pair_statistics({"train": pairs[:-1], "validation": pairs[-1:]}),
    }


@pytest.mark.parametrize(("train", "dropped", "limit"), [(1, 0, None), (300, 20, 100)])
def test_any_size_of_dataset_is_drawn(
    tmp_path: Path, train: int, dropped: int, limit: int | None
) -> None:
    distribution_figure(statistics(train, dropped, limit), tmp_path / "figure.png")
    image = imread(tmp_path / "figure.png")
    assert image.shape[:2] == (1140, 1650)
    quarters = [image[:570, :825], image[:570, 825:], image[570:, :825], image[570:, 825:]]
    assert all(quarter[..., :3].std() > 0.01 for quarter in quarters)  # none is left blank
