"""The peers on a GPU: a training step in every precision, and the function of the CPU."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from tests import reference
from tests.modeling.nano import FEATURES, images, nano_dat, nano_dynamic_swin, nano_sparse_vit, nano_svit_gated_swin

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PEERS = pytest.mark.parametrize("make", (nano_dat, nano_dynamic_swin, nano_sparse_vit, nano_svit_gated_swin))


@PEERS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_training_step(make, dtype):
    model = make(torch.float32).cuda().train()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        features = model(images(dtype=torch.float32).cuda())
        loss = sum(features[name].float().square().mean() for name in FEATURES)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@PEERS
def test_the_gpu_gives_what_the_cpu_gives(make):
    # In double precision: a choice between two tokens would else hang on the last bits.
    model, x = make().eval(), images()
    with torch.no_grad():
        expected = model(x)
        actual = model.cuda()(x.cuda())
    for name in FEATURES:
        reference.close(actual[name].cpu(), expected[name], atol=1e-8, rtol=1e-8)
