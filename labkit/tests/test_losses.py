"""Losses: values one can work out by hand, and gradients against finite differences."""

import pytest
import torch

from labkit import losses


def tensor(*values):
    return torch.tensor(values, dtype=torch.double)


def penalty_of(critic, a, b, mix):
    """One penalty of any critic, its gradient by automatic differentiation."""
    points = losses.points_between(a, b, mix).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return losses.unit_norm_penalty(gradient)


def test_equation_1_is_minus_both_means():
    assert losses.adversarial_loss(tensor(1, 3), tensor(10, 20)) == -2 - 15


def test_equations_2_5_and_6_add_codes_and_reconstruction():
    assert losses.generator_loss(tensor(1, 3), tensor(10, 20), tensor(4, 6), tensor(7).sum()) == -17 - 5 + 7


def test_equation_3_is_encoded_minus_random_plus_penalty():
    assert losses.code_critic_loss(tensor(4, 6), tensor(1, 2), tensor(0.5).sum(), lambda1=10) == 5 - 1.5 + 5


def test_equation_4_weighs_real_scans_twice():
    loss = losses.critic_loss(tensor(2, 4), tensor(1, 3), tensor(10, 20), tensor(0.5).sum(), lambda1=100)
    assert loss == 2 + 15 - 2 * 3 + 50


def test_a_critic_that_tells_nothing_apart_has_the_penalty_alone():
    d = tensor(5, 5)
    assert losses.critic_loss(d, d, d, tensor(0.25).sum(), lambda1=4) == 1


@pytest.mark.parametrize("shape", [(3, 7), (3, 1, 4, 4, 4)])
def test_penalty_of_a_linear_critic_is_its_distance_from_unit_slope(shape):
    g = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(shape, generator=g, dtype=torch.double) for _ in range(3))
    w = w[0]
    weight = losses.draw_mix(a, g)
    found = penalty_of(lambda x: (x * w).flatten(1).sum(1), a, b, weight)
    torch.testing.assert_close(found, (w.norm() - 1).square(), rtol=1e-12, atol=0)


def test_penalty_of_a_flat_critic_is_one_and_its_gradient_finite():
    slope = torch.zeros((), dtype=torch.double, requires_grad=True)
    a, b = torch.ones(2, 3, dtype=torch.double), torch.zeros(2, 3, dtype=torch.double)
    penalty = penalty_of(lambda x: slope * x.sum(1), a, b, tensor(0.5, 0.5)[:, None])
    penalty.backward()
    assert penalty.item() == pytest.approx(1, abs=1e-6)
    assert torch.isfinite(slope.grad)


def test_penalty_is_taken_where_the_weights_say():
    a, b = tensor(10, 10)[:, None], tensor(0, 0)[:, None]
    found = penalty_of(lambda x: 0.5 * x.square().sum(1), a, b, tensor(1, 0.2)[:, None])
    assert found.item() == pytest.approx((9**2 + 1**2) / 2)  # slopes 10 and 2


def test_penalty_trains_the_critic():
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(2, 3, generator=g, dtype=torch.double) for _ in range(2))
    weight = losses.draw_mix(a, g)
    w = torch.randn(3, generator=g, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: penalty_of(lambda x: (x * w).tanh().sum(1), a, b, weight), w)


def test_penalty_sums_in_float32_what_is_bfloat16():
    gradient = torch.full((1, 2**16), 1 / 256, dtype=torch.bfloat16)  # length 1; bfloat16 sums stop growing far below
    penalty = losses.unit_norm_penalty(gradient)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(0, abs=1e-6)


def test_weights_are_one_a_sample_and_the_generators():
    x = torch.zeros(5, 1, 2, 2, 2)
    first, again = (losses.draw_mix(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (5, 1, 1, 1, 1)
    assert torch.equal(first, again)
    assert len(first.unique()) == 5
    assert 0 <= first.min() < first.max() < 1


def volume(*values):
    return torch.tensor(values, dtype=torch.double).reshape(1, 1, 2, 2, 2)


def test_gradient_difference_of_a_small_volume_is_what_a_hand_finds():
    x = volume(0, 1, 0, 1, 0, 1, 0, 1)  # steps of 1 along the last axis, four pairs
    y = volume(0, 0, 0, 0, 3, 3, 3, 3)  # steps of 3 along the first
    assert losses.gradient_difference(x, y, "sum") == 4 * 3**2 + 4 * 1**2
    assert losses.gradient_difference(x, y, "mean") == 3**2 + 1**2


def test_gradient_difference_compares_sizes_of_steps_not_signs_nor_levels():
    x = volume(*range(8))
    assert losses.gradient_difference(x, 5 - x) == 0
    assert losses.gradient_difference(x, 2 * x) > 0


def test_the_mean_depends_on_neither_size_nor_batch():
    step = torch.arange(4, dtype=torch.double)
    small = (step[:2, None, None] + torch.zeros(2, 2, 2))[None, None]
    large = (step[:, None, None] + torch.zeros(4, 4, 4))[None, None].expand(3, 1, 4, 4, 4)
    means = [losses.gradient_difference(x, torch.zeros_like(x), "mean") for x in (small, large)]
    assert means[0] == means[1] == 1
    assert losses.gradient_difference(large, torch.zeros_like(large)) == 3 * 3 * 16  # batch, pairs, lines


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_difference_has_the_gradient_of_finite_differences(reduction):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 1, 3, 3, 3, generator=g, dtype=torch.double) for _ in range(2))
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: losses.gradient_difference(x, y, reduction), y)


def test_an_unknown_reduction_or_term_is_refused_with_the_allowed_ones():
    x = volume(*range(8))
    with pytest.raises(ValueError, match="'none', allowed are sum and mean"):
        losses.gradient_difference(x, x, "none")
    with pytest.raises(ValueError, match="'l2': allowed are l1, mse and gdl"):
        losses.reconstruction_terms(x, x, {"l2": 1})


def test_reconstruction_terms_are_weighted_means():
    x, y = volume(*range(8)), volume(*range(8)) + 2
    terms = losses.reconstruction_terms(x, y, {"l1": 10, "mse": 100, "gdl": 0.5})
    assert terms == {"l1": 20, "mse": 400, "gdl": 0}


def test_equal_volumes_cost_nothing():
    x = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert all(v == 0 for v in losses.reconstruction_terms(x, x, {"l1": 1, "mse": 1, "gdl": 1}).values())


def test_a_gradient_difference_without_gradient_is_a_number_only():
    x, y = volume(*range(8)), volume(0, 2, 4, 4, 0, 0, 1, 9).requires_grad_()
    weights = {"mse": 1.0, "gdl": 1.0}
    released = losses.reconstruction_terms(x, y, weights, gdl_gradient=False)
    ours = losses.reconstruction_terms(x, y, weights)
    assert released["gdl"] == ours["gdl"] > 0
    assert not released["gdl"].requires_grad
    (with_it,) = torch.autograd.grad(sum(ours.values()), y)
    (without,) = torch.autograd.grad(sum(released.values()), y)
    assert torch.equal(without, 2 * (y - x).detach() / 8)
    assert not torch.equal(with_it, without)
