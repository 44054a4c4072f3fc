"""The figures of docs/peers.md are what is counted."""

import re

import pytest

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.analysis import dynamic_swin_macs, nominal_macs, svit_gated_swin_macs
from spt_d2.analysis.model_report import bottom_up, parameter_counts
from spt_d2.engine.model_config import open_config
from spt_d2.peer_config import PEERS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "peers.md").read_text()
ROWS = re.findall(r"^\| (mask_rcnn_\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
SIZE = (800, 1280)
# Backbones whose training runs what inference skips.
TRAINING = {"dynamic_swin": dynamic_swin_macs.training_macs, "svit_gated_swin": svit_gated_swin_macs.training_macs}


@pytest.mark.parametrize("name, parameters, inference, training, dense", ROWS)
def test_a_row_says_what_is_counted(name, parameters, inference, training, dense):
    model = open_config(str(ROOT / f"configs/COCO-InstanceSegmentation/{name}.yaml"), []).build_model("meta")
    network = bottom_up(model)
    macs = nominal_macs(network, SIZE, {3: 0.23, 4: 0.25} if "_spt_" in name else None)
    kind = name.removeprefix("mask_rcnn_")[: -len("_t_fpn_3x")]
    trained = TRAINING[kind](network, SIZE) if kind in TRAINING else macs
    found = (parameter_counts(model)["backbone"] / 1e6, macs.executed / 1e9, trained.executed / 1e9, macs.dense / 1e9)
    expected = tuple(float(text) for text in (parameters, inference, training, dense))
    assert (round(found[0], 2), *(round(value, 1) for value in found[1:])) == expected


def test_every_peer_has_rows_and_a_section():
    names = {row[0] for row in ROWS}
    for peer in PEERS:
        kind = peer.NODE.lower()
        assert {f"mask_rcnn_{kind}_{size}_fpn_3x" for size in "ts"} <= names
        assert f"| `{kind}` | `MODEL.{peer.NODE}` |" in PAGE
