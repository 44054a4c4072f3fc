"""Peers compute what our dense Swin computes; one that is not installed is named."""

import importlib.util

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling import build_backbone

from spt_d2.benchmark.models import OWN, build_own, dense_geometry, dense_weights, variant_config
from spt_d2.benchmark.peers import MAPS, PEERS, PeerBackbone, available_peers, build_peer
from tests import reference
from tests.benchmark.nano import NANO


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_with_our_weights_gives_our_maps(name):
    pytest.importorskip(PEERS[name][0], reason=f"{PEERS[name][0]} is not installed")
    ours = reference.randomise_(build_backbone(variant_config("swin_t", NANO))).double().eval()
    # Whole windows in every stage: timm rolls before it pads, others pad first.
    size = (128, 192)
    peer = build_peer(name, dense_geometry(NANO), size, ours.state_dict()).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = ours(x)
    maps, selections = peer.forward_with_selections(x, [size, size])
    assert tuple(maps) == MAPS and selections == []
    for key, value in expected.items():
        assert maps[key].is_contiguous()
        torch.testing.assert_close(maps[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_has_our_parameters_and_none_besides_in_what_it_runs(name):
    pytest.importorskip(PEERS[name][0], reason=f"{PEERS[name][0]} is not installed")
    ours = build_own("swin_t", NANO, dense_weights(NANO))
    peer = build_peer(name, dense_geometry(NANO), (64, 64), ours.state_dict())
    sum(value.sum() for value in peer(torch.randn(1, 3, 64, 64)).values()).backward()
    used = sum(parameter.numel() for parameter in peer.parameters() if parameter.grad is not None)
    assert used == sum(parameter.numel() for parameter in ours.parameters())


def test_a_weight_without_a_place_is_an_error():
    weights = {**dense_weights(NANO), "layers.0.blocks.5.norm1.weight": torch.ones(8)}
    with pytest.raises(ValueError, match=r"found no place for layers.0.blocks.5.norm1.weight"):
        build_peer("detectron2_swin_t", dense_geometry(NANO), (64, 64), weights)


def test_a_peer_that_is_not_installed_is_left_out_and_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    found, missing = available_peers(list(PEERS))
    assert found == ["detectron2_swin_t", "torchvision_swin_t"]
    assert missing == {"timm_swin_t": "timm"}
    with pytest.raises(ValueError, match="A peer expects one of detectron2_swin_t.* Got swin"):
        available_peers(["swin"])


@pytest.mark.parametrize("name", OWN)
def test_ours_share_the_dense_weights(name):
    weights = dense_weights(NANO)
    state = build_own(name, NANO, weights).state_dict()
    shared = "layers.2.blocks.0.attn.qkv.weight"
    assert torch.equal(state[shared], weights[shared])
    assert any("gate" in key for key in state) == OWN[name].selects
    assert any(".light." in key for key in state) == (name == "spt_t_light")


def test_names_stand_for_the_sizes_of_the_paper_and_peers_for_swin_t():
    depths = {
        name: tuple(
            (variant_config(name, {}).MODEL.SPT if OWN[name].selects else variant_config(name, {}).MODEL.SWIN).DEPTHS
        )
        for name in OWN
    }
    assert depths == {
        "swin_t": (2, 2, 6, 2), "swin_t16": (2, 2, 10, 2), "spt_t12": (2, 2, 6, 2), "spt_t": (2, 2, 10, 2),
        "spt_t_light": (2, 2, 10, 2), "spt_t_selected": (2, 2, 10, 2),
    }  # fmt: skip
    assert {name: variant_config(name, {}).MODEL.SPT.FFN_TOKENS for name in OWN if OWN[name].selects} == {
        "spt_t12": "all", "spt_t": "all", "spt_t_light": "light", "spt_t_selected": "selected"
    }  # fmt: skip
    geometry = dense_geometry({})
    assert (geometry.embed_dim, geometry.depths, geometry.window_size) == (96, (2, 2, 6, 2), 7)
    with pytest.raises(ValueError, match="expects one of swin_t, .* Got 'swin_x'"):
        variant_config("swin_x", {})


def test_a_network_whose_parameters_have_other_names_is_told():
    class Renamed(PeerBackbone):
        pass

    with pytest.raises(ValueError, match=r"known layouts of parameters. Got torch.nn.modules.linear, whose first are"):
        Renamed(torch.nn.Linear(2, 2)).load_native({})
