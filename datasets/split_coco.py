"""
Split a COCO-format json in two, one to train on and one to evaluate on.

    python datasets/split_coco.py my_data/all.json my_data/train.json my_data/val.json
    python datasets/split_coco.py all.json train.json val.json --share 0.1 --seed 3 --group "(.*)_frame"

Images are drawn at random, the same for the same seed. Images that show nearly the same, such as frames of one video,
belong on one side, or the evaluation says too much: --group takes those together whose file names agree in what the
pattern's first group matches. Ids stay as they are, categories are in both, the image folder is the same.
"""

import argparse
import random
import re
import sys
from collections.abc import Mapping
from typing import Any

from spt_d2.data.coco_json import annotations_by_image, read_coco, write_json


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT.json")
    parser.add_argument("train", metavar="TRAIN.json")
    parser.add_argument("val", metavar="VAL.json")
    parser.add_argument("--share", type=float, default=0.2, metavar="R", help="of the images, to evaluate on (0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (0)")
    parser.add_argument(
        "--group", metavar="PATTERN", help="regular expression; what its first group matches is kept whole"
    )
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        parser.error(f"--share expects a number between 0 and 1. Got {args.share}.")
    try:
        args.group = re.compile(args.group) if args.group else None
    except re.error as error:
        parser.error(f"--group expects a regular expression. {error}.")
    if args.group is not None and args.group.groups == 0:
        parser.error(f"--group expects a pattern with a group in parentheses. Got {args.group.pattern!r}.")
    return args


def split_images(
    content: Mapping[str, Any], share: float, seed: int, group: re.Pattern[str] | None
) -> tuple[list[dict], list[dict]]:
    """
    Draw the images to evaluate on.

    Args:
        content: a COCO json.
        share: of the images, to evaluate on; whole groups are drawn until it is reached.
        seed: of the draw.
        group: see the program; None draws images one by one.

    Returns:
        images to train on and to evaluate on, each in the order of the json.

    Raises:
        ValueError: fewer than two images or groups.
    """
    groups: dict[str, list[int]] = {}
    for i, image in enumerate(content["images"]):
        match = group.search(str(image.get("file_name", ""))) if group else None
        # An image that the pattern or its group does not fit is on its own.
        together = match is not None and match[1] is not None
        groups.setdefault(f"group {match[1]}" if match and together else f"image {i}", []).append(i)
    if len(groups) < 2:
        raise ValueError(f"A split expects at least two {'groups' if group else 'images'}. Got {len(groups)}.")
    drawn = sorted(groups)
    random.Random(seed).shuffle(drawn)
    held: set[int] = set()
    # One group at least on either side.
    for name in drawn[:-1]:
        if held and len(held) + len(groups[name]) / 2 > share * len(content["images"]):
            break
        held.update(groups[name])
    images = list(enumerate(content["images"]))
    return [image for i, image in images if i not in held], [image for i, image in images if i in held]


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    args = parse_arguments(argv)
    try:
        content = read_coco(args.input)
        parts = split_images(content, args.share, args.seed, args.group)
        for i, (path, images) in enumerate(zip((args.train, args.val), parts)):
            part = {**content, "images": images}
            own = [annotation for of_image in annotations_by_image(part) for annotation in of_image]
            # The second is not to replace the first, either.
            write_json(path, {**part, "annotations": own}, sources=(args.input, args.train)[: i + 1])
            print(f"{path}: {len(images)} images, {len(own)} annotations")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
