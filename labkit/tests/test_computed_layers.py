"""Convolutions: equal to the paper's layers in value and gradient, however they are computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit import layers
from labkit.layers import DenseLayer, FirstConv3d, HalvingConv3d, LastConv3d, UpsamplingConv3d


def random(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.double, requires_grad=True)


def paper_upsampling(x, weight):
    return F.conv3d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)


@pytest.mark.parametrize("outputs", [1, 8])  # few output channels take another path
@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_sub_pixel_form_equals_upsampling_and_convolving(outputs, side):
    layer = UpsamplingConv3d(3, outputs).double()
    x = random(2, 3, side, side, side)
    ours, paper = layer(x), paper_upsampling(x, layer.weight)
    torch.testing.assert_close(ours, paper, rtol=0, atol=1e-13)
    g = random(*paper.shape, seed=1).detach()
    for a, b in zip(
        torch.autograd.grad(ours, (x, layer.weight), g), torch.autograd.grad(paper, (x, layer.weight), g), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 8])
def test_halving_equals_a_convolution_of_stride_two(channels):
    layer = HalvingConv3d(channels, 3).double()
    x = random(2, channels, 6, 6, 6)
    paper = F.conv3d(x, layer.weight, layer.bias, stride=2, padding=1)
    ours = layer(x)
    torch.testing.assert_close(ours, paper, rtol=0, atol=1e-13)
    inputs, g = (x, layer.weight, layer.bias), random(*paper.shape, seed=1).detach()
    for a, b in zip(torch.autograd.grad(ours, inputs, g), torch.autograd.grad(paper, inputs, g), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 8])
def test_doubling_is_the_transpose_of_halving(channels):
    x, weight = random(2, channels, 6, 6, 6), random(3, channels, 4, 4, 4, seed=1)
    g = random(2, 3, 3, 3, 3, seed=2)
    (paper,) = torch.autograd.grad(F.conv3d(x, weight, stride=2, padding=1), x, g)
    torch.testing.assert_close(layers.double(g, weight), paper, rtol=0, atol=1e-13)


@pytest.mark.parametrize("function", [layers.halve, layers.double])
@pytest.mark.parametrize("channels", [1, 8])
def test_both_can_be_differentiated_twice(function, channels):
    inputs = channels if function is layers.halve else 2
    x, weight = random(1, inputs, 2, 2, 2), random(2, channels, 4, 4, 4, seed=1)
    assert torch.autograd.gradgradcheck(function, (x, weight), fast_mode=True)


def test_the_upsampling_layer_can_be_differentiated_twice():
    layer = UpsamplingConv3d(2, 8).double()
    x = random(1, 2, 2, 2, 2)

    def upsample(x, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert torch.autograd.gradgradcheck(upsample, (x, layer.weight), fast_mode=True)


def test_the_first_layer_equals_a_transposed_convolution():
    layer = FirstConv3d(5, 3).double()
    z = random(2, 5)
    paper = F.conv_transpose3d(z[:, :, None, None, None], layer.weight)
    torch.testing.assert_close(layer(z), paper, rtol=0, atol=1e-13)


def test_the_last_layer_equals_a_convolution_over_everything():
    layer = LastConv3d(3, 5).double()
    x = random(2, 3, 4, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    paper = F.conv3d(x, layer.weight, layer.bias).flatten(1)
    torch.testing.assert_close(layer(x), paper, rtol=0, atol=1e-13)


def test_a_dense_layers_transpose_is_its_gradient():
    layer = DenseLayer(4, 3).double()
    z, g = random(2, 4), random(2, 3, seed=1)
    (paper,) = torch.autograd.grad(layer(z), z, g)
    torch.testing.assert_close(layer.transpose(g, layer.weight), paper)


@pytest.mark.parametrize(
    ("ours", "framework"),
    [
        (lambda: HalvingConv3d(3, 5), lambda: nn.Conv3d(3, 5, 4, stride=2, padding=1)),
        (lambda: UpsamplingConv3d(3, 5), lambda: nn.Conv3d(3, 5, 3, padding=1, bias=False)),
        (lambda: FirstConv3d(3, 5), lambda: nn.ConvTranspose3d(3, 5, 4, bias=False)),
        (lambda: LastConv3d(3, 5), lambda: nn.Conv3d(3, 5, 4)),
        (lambda: DenseLayer(3, 5), lambda: nn.Linear(3, 5)),
    ],
)
def test_weights_start_as_the_frameworks_do(ours, framework):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = framework().state_dict()
        torch.manual_seed(0)
        found = ours().state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (HalvingConv3d(8, 9), (2, 8, 4, 4, 4)),
        (HalvingConv3d(1, 9), (2, 1, 4, 4, 4)),
        (UpsamplingConv3d(8, 9), (2, 8, 2, 2, 2)),
    ],
)
def test_hidden_volumes_lie_channels_last(layer, shape):
    assert layer(torch.zeros(shape)).is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_rounds_only_what_goes_through_convolutions():
    with torch.autocast("cpu", torch.bfloat16):
        assert HalvingConv3d(1, 4)(torch.zeros(1, 1, 4, 4, 4)).dtype == torch.bfloat16
        assert UpsamplingConv3d(4, 4)(torch.zeros(1, 4, 2, 2, 2)).dtype == torch.bfloat16
        assert LastConv3d(4, 2)(torch.zeros(1, 4, 4, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32
        assert DenseLayer(4, 2)(torch.zeros(1, 4)).dtype == torch.float32
