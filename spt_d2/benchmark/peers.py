"""
Dense Swins of others, computing what ours computes: the same weights, the same four maps, each with its LayerNorm.

On maps that are no whole windows timm's border windows hold other tokens, and as many: it rolls before it pads.

Detectron2 gives such maps by itself. To timm's and torchvision's classifiers the four norms of a detection backbone are
added, and the two copies that lay maps out as (B, C, H, W), which a pyramid asks for. Their own final norm and head are
not run. All are what a user gets by default: eager, with the attention that the package chooses.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from spt_d2.benchmark.models import Geometry
from spt_d2.weights import detect_layout, to_native

MAPS = ("res2", "res3", "res4", "res5")


class PeerBackbone(nn.Module):
    """
    Someone else's Swin behind the interface of ours.

    Args:
        network: the other one.
        norms: of the maps, in order; empty where the network has them.
    """

    def __init__(self, network: Any, norms: Sequence[nn.Module] = ()):
        super().__init__()
        self.network: Any = network
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, height, width) images to ``res2`` to ``res5``, (B, C, H, W) each."""
        maps = self.maps(x)
        if self.norms:
            maps = [norm(value).permute(0, 3, 1, 2).contiguous() for norm, value in zip(self.norms, maps)]
        return dict(zip(MAPS, maps))

    def maps(self, x: Tensor) -> list[Tensor]:
        """What the network gives for each stage: (B, H, W, C) where norms follow, else as :meth:`forward`."""
        raise NotImplementedError

    def forward_with_selections(
        self, x: Tensor, image_sizes: object = None, labels: object = None
    ) -> tuple[dict[str, Tensor], list]:
        """:meth:`forward`, and no selections, for the detectors of this project."""
        return self(x), []

    def load_native(self, weights: Mapping[str, Tensor]) -> None:
        """
        Take the weights of ``swin_t``, as its state dict has them.

        Raises:
            ValueError: the installed package names its parameters in a way not known here; parameters that would not
                get a value.
        """
        own = self.network.state_dict()
        layout = detect_layout(own)
        if layout is None:
            raise ValueError(
                f"{type(self).__name__}.load_native(weights=) expects a network with one of Swin's known layouts of "
                f"parameters. Got {type(self.network).__module__}, whose first are {list(own)[:3]}.\n"
                "HINT: requirements/dev.txt has the tested version; --peers leaves a peer out."
            )
        # The values here are the network's own tensors: for these layouts only names differ.
        native, _ = to_native(own, layout)
        native.update(
            {f"norm{i}.{name}": value for i, norm in enumerate(self.norms) for name, value in norm.named_parameters()}
        )
        missing = [name for name in weights if name not in native]
        if missing:
            raise ValueError(f"{type(self).__name__}.load_native(weights=) found no place for {', '.join(missing)}.")
        for name, value in weights.items():
            native[name].detach().copy_(value)


class _Detectron2(PeerBackbone):
    def maps(self, x: Tensor) -> list[Tensor]:
        return list(self.network(x).values())


class _Timm(PeerBackbone):
    def maps(self, x: Tensor) -> list[Tensor]:
        x, found = self.network.patch_embed(x), []
        for stage in self.network.layers:
            x = stage(x)
            found.append(x)
        return found


class _Torchvision(PeerBackbone):
    def maps(self, x: Tensor) -> list[Tensor]:
        found = []
        # Patch embedding, then stages and mergings in turn.
        for i, part in enumerate(self.network.features):
            x = part(x)
            if i % 2:
                found.append(x)
        return found


def _norms(geometry: Geometry) -> list[nn.Module]:
    return [nn.LayerNorm(geometry.embed_dim * 2**i) for i in range(len(geometry.depths))]


def _sizes(geometry: Geometry) -> dict[str, Any]:
    return {
        "embed_dim": geometry.embed_dim,
        "depths": list(geometry.depths),
        "num_heads": list(geometry.num_heads),
        "mlp_ratio": geometry.mlp_ratio,
    }


def _detectron2(geometry: Geometry, image_size: tuple[int, int]) -> PeerBackbone:
    module = importlib.import_module("detectron2.modeling.backbone.swin")
    network = module.SwinTransformer(**_sizes(geometry), window_size=geometry.window_size, drop_path_rate=0.0)
    return _Detectron2(network)


def _timm(geometry: Geometry, image_size: tuple[int, int]) -> PeerBackbone:
    module = importlib.import_module("timm.models.swin_transformer")
    # Its masks belong to one size. It would shrink windows on small maps if it were not told to partition always.
    network = module.SwinTransformer(
        **_sizes(geometry),
        img_size=image_size,
        window_size=geometry.window_size,
        always_partition=True,
        drop_path_rate=0.0,
        num_classes=0,
    )
    return _Timm(network, _norms(geometry))


def _torchvision(geometry: Geometry, image_size: tuple[int, int]) -> PeerBackbone:
    module = importlib.import_module("torchvision.models.swin_transformer")
    network = module.SwinTransformer(
        **_sizes(geometry),
        patch_size=[4, 4],
        window_size=[geometry.window_size] * 2,
        stochastic_depth_prob=0.0,
        num_classes=1,
    )
    return _Torchvision(network, _norms(geometry))


# By row name: the package, and what builds it for images of one (height, width) in pixels.
PEERS: Mapping[str, tuple[str, Callable[[Geometry, tuple[int, int]], PeerBackbone]]] = {
    "detectron2_swin_t": ("detectron2", _detectron2),
    "timm_swin_t": ("timm", _timm),
    "torchvision_swin_t": ("torchvision", _torchvision),
}


def available_peers(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """
    Args:
        names: of peers that are wanted.

    Returns:
        those whose package is installed, and ``{name: package}`` of the others.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ValueError(f"A peer expects one of {', '.join(PEERS)}. Got {', '.join(unknown)}.")
    missing = {name: PEERS[name][0] for name in names if importlib.util.find_spec(PEERS[name][0]) is None}
    return [name for name in names if name not in missing], missing


def build_peer(
    name: str, geometry: Geometry, image_size: tuple[int, int], weights: Mapping[str, Tensor]
) -> PeerBackbone:
    """
    A peer on the CPU, with the weights of ``swin_t``.

    Args:
        name: one of :data:`PEERS`.
        geometry: that the weights belong to.
        image_size: (height, width) in pixels of its inputs, with padding.
        weights: a state dict of ``swin_t``.
    """
    peer = PEERS[name][1](geometry, image_size)
    peer.load_native(weights)
    return peer
