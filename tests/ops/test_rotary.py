"""Rotary embedding against complex numbers turned one by one."""

import pytest
import torch

from spt_d2.ops.rotary import apply_rotary, rotary_angles
from tests import reference


@pytest.mark.parametrize("head_dim", [4, 12])
def test_rotation_equals_that_of_complex_numbers(head_dim):
    height, width = 5, 9
    coordinates = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    x = torch.randn(height * width, 2, head_dim, dtype=torch.float64)
    actual = apply_rotary(x, rotary_angles(coordinates, head_dim))
    # Angles are float32: that is what they may differ by.
    reference.close(actual, reference.rotate(x, height, width), atol=1e-5, rtol=1e-5)


def test_logits_depend_on_offsets_alone():
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind(0)

    def logit(query, key):
        turned = [apply_rotary(x, rotary_angles(torch.tensor([place]), 8)) for x, place in ((q, query), (k, key))]
        return (turned[0] * turned[1]).sum()

    reference.close(logit((3, 5), (1, 9)), logit((13, 25), (11, 29)), atol=1e-5, rtol=1e-5)
    assert abs(logit((3, 5), (1, 9)) - logit((3, 5), (2, 9))) > 1e-4
    assert abs(logit((3, 5), (1, 9)) - logit((3, 5), (1, 8))) > 1e-4


def test_origin_is_not_turned_and_lengths_stay():
    x = torch.randn(3, 2, 8)
    angles = rotary_angles(torch.tensor([[0, 0], [4, 7], [90, 1]]), 8)
    turned = apply_rotary(x, angles)
    assert torch.equal(turned[0], x[0])
    reference.close(turned.norm(dim=-1), x.norm(dim=-1))


def test_dtype_of_the_input_stays():
    x = torch.randn(1, 1, 4, dtype=torch.bfloat16)
    assert apply_rotary(x, rotary_angles(torch.tensor([[1, 2]]), 4)).dtype == torch.bfloat16


def test_no_token_is_no_error():
    assert apply_rotary(torch.zeros(0, 2, 4), rotary_angles(torch.zeros(0, 2, dtype=torch.long), 4)).shape == (0, 2, 4)


def test_gradcheck():
    x = torch.randn(3, 1, 4, dtype=torch.float64, requires_grad=True)
    angles = rotary_angles(torch.tensor([[0, 1], [2, 3], [5, 5]]), 4).double()
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, angles), x)


def test_head_dim_that_is_no_multiple_of_four_is_an_error():
    with pytest.raises(ValueError, match=r"rotary_angles\(head_dim=\) expects a multiple of 4. Got 6"):
        rotary_angles(torch.zeros(1, 2, dtype=torch.long), 6)
