"""Average precision of a ranking of images, as three communities define it."""

import numpy as np

FLAVOURS = ("voc10", "voc07", "step")


def average_precision(scores: np.ndarray, positive: np.ndarray, flavour: str = "voc10") -> float:
    """
    Area under the precision-recall curve of one class.

    Args:
        scores: (n,) the higher, the surer; any scale. Images that do not count are left out beforehand, which gives
            what VOC's devkit gives when it steps over them.
        positive: (n,) bool, whether the image shows the class.
        flavour: ``voc10`` (VOC's devkit since 2010): precision at a recall is the best at that recall or a higher one;
            ``voc07`` (the devkit before): the mean of that precision at recalls 0, 0.1, ... 1;
            ``step`` (``average_precision_score`` of scikit-learn): precision as it is, images of equal score taken
            together. Under the other two they keep their order, as in the devkit.

    Returns:
        in [0, 1]; NaN where no image shows the class.

    Raises:
        ValueError: an unknown flavour, arrays of different shapes, a score that is NaN.

    Example:
        >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
        0.8333333333333333
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"average_precision(flavour=) expects one of {FLAVOURS}. Got {flavour!r}.")
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise ValueError(
            "average_precision expects one score and one label per image.\n"
            f"  scores.shape  : {scores.shape}\n  positive.shape: {positive.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError("average_precision(scores=) expects numbers. Got NaN.")
    total = int(np.count_nonzero(positive))
    if total == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    ranks = np.arange(1, len(hits) + 1)
    if flavour == "step":
        ranked = scores[order]
        last_of_ties = np.append(ranked[1:] != ranked[:-1], True)
        hits, ranks = hits[last_of_ties], ranks[last_of_ties]
    precision = hits / ranks
    if flavour != "step":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    if flavour == "voc07":
        # In whole numbers, for 0.1 * 3 is not 0.3. The last recall is 1, so each of the 11 is reached.
        reached = [int(np.argmax(10 * hits >= tenth * total)) for tenth in range(11)]
        return float(precision[reached].mean())
    return float((np.diff(hits, prepend=0) * precision).sum() / total)
