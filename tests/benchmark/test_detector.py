"""Detectors differ in the backbone alone, and run at the planted share in both modes."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark import detector as detector_module
from spt_d2.benchmark.detector import build_detectors, detector_cases, inputs_of
from tests.benchmark.nano import NANO

SMALL = {
    **NANO,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
}


def test_detectors_share_what_is_not_the_backbone():
    detectors = build_detectors(["swin_t", "spt_t"], ["detectron2_swin_t"], (64, 96), SMALL)
    assert list(detectors) == ["detectron2_swin_t", "swin_t", "spt_t"]
    states = [
        {k: v for k, v in detector.state_dict().items() if not k.startswith("backbone.bottom_up.")}
        for detector in detectors.values()
    ]
    assert states[0].keys() == states[1].keys() == states[2].keys() and len(states[0]) > 20
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in state)
    # And the peer computes what swin_t does.
    x = torch.randn(1, 3, 64, 128)
    peer, ours = (detectors[name].eval().backbone for name in ("detectron2_swin_t", "swin_t"))
    with torch.no_grad():
        for a, b in zip(peer(x).values(), ours(x).values()):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_inputs_have_objects_within_the_image_and_their_labels():
    inputs = inputs_of(2, (64, 96))
    assert not torch.equal(inputs[0]["image"], inputs[1]["image"])
    for given in inputs:
        boxes = given["instances"].gt_boxes.tensor
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        inside = given["instances"].gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(inside, boxes, rtol=0, atol=0.5)
        assert given["selection_labels"][8].shape == (8, 12) and given["selection_labels"][8].any()


def test_every_detector_steps_in_both_modes_at_the_planted_share(monkeypatch):
    networks, real = [], detector_module.step

    def spy(network, *arguments, **options):
        networks.append(network)
        return real(network, *arguments, **options)

    monkeypatch.setattr(detector_module, "step", spy)
    cases = detector_cases(
        ["swin_t", "spt_t"],
        ["detectron2_swin_t"],
        keep_ratios=[0.25, 0.5],
        batches=[2],
        image_sizes=[(64, 96)],
        device=torch.device("cpu"),
        modes=("inference", "training"),
        overrides=SMALL,
    )
    assert [(case.name, case.mode, case.keep_ratio, case.is_peer) for case in cases] == [
        (name, mode, keep_ratio, name == "detectron2_swin_t")
        for mode in ("inference", "training")
        for name, keep_ratio in (("detectron2_swin_t", None), ("swin_t", None), ("spt_t", 0.25), ("spt_t", 0.5))
    ]
    for case, network in zip(cases, networks, strict=True):
        layouts = []
        if case.keep_ratio is not None:
            block = network.backbone.bottom_up.layers[2].blocks[1]
            handle = block.register_forward_hook(lambda module, given, out, into=layouts: into.append(out[2]))
        case.entry.prepare()
        case.entry.run()
        assert network.training == (case.mode == "training")
        if case.keep_ratio is not None:
            handle.remove()
            assert [layout.counts for layout in layouts] == [(int(24 * case.keep_ratio),) * 2]
        if case.mode == "training":
            grads = [p.grad for p in network.parameters()]
            assert all(grad is not None and grad.isfinite().all() for grad in grads)
