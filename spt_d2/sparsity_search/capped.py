"""A data set of fewer images, evenly spread over another, so that an evaluation takes seconds and not minutes."""

import hashlib
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from spt_d2.data.coco_json import read_coco, write_json
from spt_d2.data.datasets import register_custom_datasets


def register_capped(dataset: str, number: int, folder: str) -> str:
    """
    Register a part of a data set in COCO format; its json is written to a folder.

    Args:
        dataset: a registered name.
        number: of images, at least 1.
        folder: for the json.

    Returns:
        the name of the part; ``dataset`` itself where that has no more images.

    Raises:
        KeyError: no data set of that name.
        ValueError: one that is not evaluated from a COCO json.
    """
    if dataset not in DatasetCatalog:
        raise KeyError(f"register_capped(dataset=) expects a registered data set. Got {dataset!r}.")
    metadata = MetadataCatalog.get(dataset)
    source = metadata.get("json_file")
    if source is None or metadata.get("evaluator_type") != "coco":
        raise ValueError(
            "register_capped(dataset=) expects a data set that is evaluated from a COCO json. "
            f"Got {dataset!r}, of type {metadata.get('evaluator_type')!r}.\nHINT: no cap on its images."
        )
    content = read_coco(source)
    total = len(content["images"])
    if number >= total:
        return dataset
    images = [content["images"][i * total // number] for i in range(number)]
    ids = {image["id"] for image in images}
    path = os.path.abspath(os.path.join(folder, f"{dataset}_{number}.json"))
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    write_json(path, {**content, "images": images, "annotations": annotations}, sources=(source,))
    # Another folder may hold another part: names are for the whole process.
    name = f"{dataset}_{number}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    register_custom_datasets([[name, path, metadata.get("image_root")]])
    return name
