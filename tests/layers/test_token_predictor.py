"""The predictor against a loop over tokens, and what padding and mixed precision may not do to it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.layers.token_predictor import TokenPredictor
from tests import reference

DIM = 12


def make_predictor(dtype: torch.dtype = torch.float64) -> TokenPredictor:
    return reference.randomise_(TokenPredictor(DIM)).to(dtype)


def some_input(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    valid = torch.ones(2, 4, 5, dtype=torch.bool)
    valid[1, 3:] = valid[1, :, 2:] = False
    return torch.randn(2, 4, 5, DIM, dtype=dtype, requires_grad=True), valid


def slow_scores(predictor: TokenPredictor, x: Tensor, valid: Tensor) -> Tensor:
    """Token by token: its own half, the mean of the others' half, three layers, the difference of two log-shares."""
    weights = dict(predictor.named_parameters())

    def layer(name: str, token: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ token + weights[f"{name}.bias"]

    scores = torch.zeros(valid.shape, dtype=x.dtype)
    for b in range(x.shape[0]):
        places = [(i, j) for i in range(x.shape[1]) for j in range(x.shape[2])]
        inner = {}
        for i, j in places:
            token = x[b, i, j] - x[b, i, j].mean()
            token = token / (token.square().mean() + 1e-5).sqrt()
            token = token * weights["in_conv.0.weight"] + weights["in_conv.0.bias"]
            inner[i, j] = F.gelu(layer("in_conv.1", token))
        counted = [inner[place][DIM // 2 :] for place in places if valid[(b, *place)]]
        mean = sum(counted) / len(counted)
        for i, j in places:
            hidden = F.gelu(layer("out_conv.0", torch.cat((inner[i, j][: DIM // 2], mean))))
            hidden = layer("out_conv.4", F.gelu(layer("out_conv.2", hidden)))
            shares = torch.log_softmax(hidden, dim=0)
            scores[b, i, j] = shares[0] - shares[1]
    return scores


def test_equals_a_loop_over_tokens_forward_and_backward():
    predictor = make_predictor()
    x, valid = some_input()
    actual, expected = predictor(x, valid), slow_scores(predictor, x, valid)
    reference.close(actual, expected)
    inputs = {"x": x, **{name.replace(".", "_"): p for name, p in predictor.named_parameters()}}
    truth = reference.gradients(expected, **inputs)
    for name, gradient in reference.gradients(actual, **inputs).items():
        reference.close(gradient, truth[name])


def test_padding_is_not_seen():
    predictor = make_predictor()
    x, valid = some_input()
    changed = torch.where(valid[..., None], x, 100.0 * torch.randn_like(x))
    reference.close(predictor(changed, valid)[valid], predictor(x, valid)[valid])
    alone = predictor(x[1:, :3, :2], valid[1:, :3, :2])
    reference.close(predictor(x, valid)[1:, :3, :2], alone)


def test_an_image_of_padding_alone_is_finite():
    x, valid = some_input()
    valid[0] = False
    assert torch.isfinite(make_predictor()(x, valid)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_float32_under_autocast_and_in_narrow_types(dtype):
    """bfloat16 has so few values that tokens would tie by the hundred."""
    predictor = make_predictor(torch.float32)
    x, valid = some_input(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        score = predictor(x, valid)
    assert score.dtype == torch.float32
    reference.close(score, predictor(x.float(), valid), atol=0.2, rtol=0.1)


def test_a_width_that_does_not_halve_twice_is_refused():
    with pytest.raises(ValueError, match=r"TokenPredictor\(dim=\) expects a multiple of 4 channels\. Got 6\."):
        TokenPredictor(6)


def test_a_last_layer_of_another_kind_is_an_error():
    predictor = TokenPredictor(8)
    predictor.out_conv[-1] = torch.nn.Identity()
    with pytest.raises(TypeError, match="expects a linear layer last.*Got Identity"):
        predictor(torch.randn(1, 2, 2, 8), torch.ones(1, 2, 2, dtype=torch.bool))
