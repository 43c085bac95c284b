"""Single scores far enough from the others to decide a mean."""

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.evaluation.metrics.statistics import Array

FAR = 10.0
MAD_TO_SD = 1.4826


def outliers(scores: Array) -> NDArray[np.bool_]:
    """Mark each score that lies over ten robust standard deviations from the median.

    The robust standard deviation is 1.4826 times the median absolute deviation. Where over half of
    the scores are equal, it is the root mean square deviation of all but the farthest.
    """
    distance = np.abs(scores - np.median(scores))
    spread = MAD_TO_SD * float(np.median(distance))
    if spread == 0:
        spread = float(np.sqrt(np.mean(np.square(np.sort(distance.ravel())[:-1]))))
    return np.asarray(distance > FAR * spread) & (distance > 0)
