import itertools
import math

import pytest
import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.inferers import OverlapTileInferer
from medunet.networks import UNet

VARIANTS = {
    "plain": {},
    "batch": {"norm": "batch"},
    "instance, leaky": {"norm": "instance", "act": ["leakyrelu", {"negative_slope": 0.1}]},
    "group": {"norm": ["group", {"num_groups": 2}]},
    "strided": {"downsample": "conv"},
    "linear": {"upsample": "linear"},
    "linear, keep": {"upsample": "linear", "up_channels": "keep"},
    "linear, before": {"upsample": "linear", "up_channels": "before"},
    "keep, widened": {"up_channels": "keep", "widen_before_pool": True},
    "residual": {"block": "residual", "norm": "batch"},
    "residual, equal channels": {"block": "residual", "channels": [4, 4, 4]},
    "three convolutions": {"convs_per_level": 3},
    "anisotropic": {"strides": [[1, 2], [3, 2]], "kernel_sizes": [[1, 3], [3, 3], [3, 5]]},
    "dropout": {"dropout": 0.5},
    "head, norm after up": {"head_kernel_size": 3, "norm_after_up": True, "act_after_up": True, "norm": "batch"},
    "supervised": {"deep_supervision": 1},
    "softmax": {"out_activation": "softmax"},
    "prelu": {"act": "prelu"},
}
VALID_TOO = [name for name in VARIANTS if name != "supervised"]


def network(**options):
    torch.manual_seed(0)
    return UNet(2, 1, 2, **{"channels": [4, 8, 16], **options})


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(33, 34), (35, 12)])
def test_padded_networks_preserve_odd_sizes(name, size):
    net = network(**VARIANTS[name]).eval()
    assert net(torch.zeros(2, 1, *size)).shape == (2, 2, *size)


@pytest.mark.parametrize("name", VALID_TOO)
def test_valid_networks_have_the_predicted_output_size(name):
    net = network(**VARIANTS[name], padding="valid").eval()
    for wanted in (1, 7, 10):
        size = net.shapes.input_for_output((wanted, wanted + 1))
        out = net(torch.zeros(1, 1, *size)).shape[2:]
        assert tuple(out) == net.shapes.output_size(size)
        assert all(o >= w for o, w in zip(out, (wanted, wanted + 1), strict=True))
        with pytest.raises(ConfigError, match="does not accept this image size"):
            net(torch.zeros(1, 1, size[0] + 1, size[1]))


def test_anisotropic_networks_preserve_odd_sizes():
    net = UNet(
        3, 2, 3, [4, 8, 16], norm="instance", strides=[[1, 2, 2], 2], kernel_sizes=[[1, 3, 3], 3, 3], upsample="linear"
    ).eval()
    assert net(torch.zeros(1, 2, 5, 9, 10)).shape == (1, 3, 5, 9, 10)


def measured_radius(net):
    """Farthest input pixel with a gradient, per axis, over all positions of the output pixel within a coarse pixel."""
    net = net.eval().double()
    for name, child in list(net.named_modules()):
        if isinstance(child, nn.MaxPool2d):  # the gradient of a maximum sees one pixel of the window, a mean's sees all
            net.get_submodule(name.rpartition(".")[0]).down = nn.AvgPool2d(child.kernel_size)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.fill_(1 / module.weight[0].numel())  # positive, so that nothing cancels
    shapes = net.shapes
    wanted = [2 * halo + 2 * stride for halo, stride in zip(shapes.halo, shapes.total_stride, strict=True)]
    image = torch.ones(1, 1, *shapes.input_for_output(wanted), dtype=torch.float64, requires_grad=True)
    output = net(image)
    radius = [0, 0]
    for shift in itertools.product(*(range(stride) for stride in shapes.total_stride)):
        # In input coordinates; both networks see the same grid there.
        pixel = [halo + stride + by for halo, stride, by in zip(shapes.halo, shapes.total_stride, shift, strict=True)]
        at = [p - margin for p, margin in zip(pixel, shapes.margin, strict=True)]
        gradient = torch.autograd.grad(output[0, 0, at[0], at[1]], image, retain_graph=True)[0][0, 0]
        for axis, seen in enumerate(gradient.nonzero().T):
            far = max(pixel[axis] - int(seen.min()), int(seen.max()) - pixel[axis])
            radius[axis] = max(radius[axis], far)
    return tuple(radius)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("upsample", ["transposed", "linear"])
@pytest.mark.parametrize("downsample", ["maxpool", "conv"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": [[1, 2], [3, 2]], "kernel_sizes": [[1, 3], [3, 3], [3, 5]], "convs_per_level": 1},
        {"head_kernel_size": 3, "block": "residual", "strides": [4, [1, 3]], "kernel_sizes": [3, 1, 3]},
    ],
    ids=["plain", "anisotropic", "residual"],
)
def test_receptive_radius_matches_gradients(padding, upsample, downsample, options):
    net = UNet(2, 1, 1, [1, 1, 1], padding=padding, upsample=upsample, downsample=downsample, **options)
    assert measured_radius(net) == net.shapes.receptive_radius


@pytest.mark.parametrize("block", ["plain", "residual_encoder"])
def test_tiles_of_a_network_with_strided_convolutions_reproduce_the_whole_image(block):
    options = {"downsample": "strided", "block": block, "convs_per_level": [2, 2, 4], "decoder_convs": [1, 2]}
    net = network(norm="batch", strides=[[1, 2], 2], **options).eval()
    image = torch.rand(1, 1, 64, 160)
    with torch.inference_mode():
        whole = net(image)
        tiled = OverlapTileInferer((48, 96))(image, net)
    assert torch.allclose(whole, tiled, atol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_residual_encoder_runs_in_bfloat16_on_a_cpu(spatial_dims):
    net = UNet(spatial_dims, 1, 2, [4, 8, 16], downsample="strided", block="residual_encoder").eval()
    image = torch.rand(1, 1, *[16] * spatial_dims)
    with torch.inference_mode():
        exact = net(image)
        half = net.bfloat16()(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), exact, atol=0.05)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"norm": "batch", "resize_output": True}, ""),
        ({"norm": "instance"}, "instance"),
        ({"norm": "group", "channels": [8, 16]}, "group"),
        ({"norm": ["batch", {"track_running_stats": False}]}, "running statistics"),
        ({"padding": "valid", "resize_output": True}, "resized"),
    ],
)
def test_untileable_networks_report_a_reason(options, reason):
    net = network(**options)
    assert net.tileable is not bool(reason)
    assert reason in net.tileable_reason
    assert bool(net.tileable_reason) is bool(reason)


def test_deep_supervision_lists_outputs_finest_first_in_training_only():
    net = network(channels=[4, 8, 16, 32], deep_supervision=2)
    outputs = net.train()(torch.zeros(1, 1, 33, 40))
    assert [tuple(out.shape) for out in outputs] == [(1, 2, 33, 40), (1, 2, 16, 20), (1, 2, 8, 10)]
    assert net.eval()(torch.zeros(1, 1, 33, 40)).shape == (1, 2, 33, 40)
    net.train()
    for i in (0, 1):
        net.zero_grad()
        net(torch.randn(1, 1, 16, 16))[1 + i].sum().backward()
        assert net.coarse_heads[i].weight.grad is not None
        assert net.coarse_heads[1 - i].weight.grad is None
        assert net.head.weight.grad is None


@pytest.mark.parametrize(
    ("name", "padding"), [*((name, "same") for name in VARIANTS), *((name, "valid") for name in ("plain", "linear"))]
)
def test_scripted_networks_give_the_same_output(name, padding, tmp_path):
    net = network(**VARIANTS[name], padding=padding, resize_output=name == "plain").eval()
    image = torch.randn(1, 1, *net.shapes.input_for_output((15, 16)))
    torch.jit.save(torch.jit.script(net), tmp_path / "net.ts")
    loaded = torch.jit.load(tmp_path / "net.ts")
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), net(image))
    assert loaded.tileable is net.tileable


def test_a_scripted_network_returns_the_finest_output_in_training():
    net = network(deep_supervision=1).train()
    image = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(torch.jit.script(net)(image), net(image)[0])


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"norm": "batch", "upsample": "linear"}, False),
        ({"block": "residual", "deep_supervision": 1}, True),
        ({"padding": "valid", "resize_output": True, "upsample": "linear"}, True),
    ],
)
def test_compiles_to_one_graph(options, training):
    torch.compiler.reset()  # torch refuses to compile the same code for ever more networks
    net = network(**options).train(training)
    image = torch.randn(2, 1, *net.shapes.input_for_output((33, 34)))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(image), net(image))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "softmax"])  # torch's softmax changes the format
def test_works_in_bf16_and_keeps_channels_last(name):
    net = network(**VARIANTS[name]).train().to(memory_format=torch.channels_last)
    image = torch.randn(2, 1, 33, 36).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(image)
    output = output[0] if isinstance(output, list) else output
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.float().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_weights_are_initialised_as_in_the_paper():
    torch.manual_seed(0)
    net = UNet(2, 1, 2, channels=[64, 128], downsample="conv", norm=None)
    expected = {
        "encoder.0.convs.1.conv": 9 * 64,
        "encoder.1.down.conv": 4 * 64,
        "encoder.1.convs.0.conv": 9 * 64,
        "decoder.0.up.conv": 128,
        "decoder.0.convs.0.conv": 9 * 128,
    }
    for name, incoming in expected.items():
        weight = net.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / incoming), rel=0.02)
        assert abs(weight.mean().item()) < 4 * math.sqrt(2 / incoming / weight.numel())
    assert all((p == 0).all() for name, p in net.named_parameters() if name.endswith("bias"))


def test_state_dict_names_are_stable():
    net = UNet(2, 1, 2, channels=[4, 8, 16], norm="batch", downsample="conv", block="residual", deep_supervision=1)
    prefixes = {key.rpartition(".")[0] for key in net.state_dict()}
    unit = ("conv", "norm")
    assert prefixes == {
        *(f"encoder.{i}.convs.units.{j}.{part}" for i in range(3) for j in range(2) for part in unit),
        *(f"encoder.{i}.convs.shortcut.{part}" for i in range(3) for part in unit),
        *(f"encoder.{i}.down.{part}" for i in (1, 2) for part in unit),
        *(f"decoder.{i}.convs.units.{j}.{part}" for i in range(2) for j in range(2) for part in unit),
        *(f"decoder.{i}.convs.shortcut.{part}" for i in range(2) for part in unit),
        *(f"decoder.{i}.up.conv" for i in range(2)),
        "coarse_heads.0",
        "head",
    }
    plain = network(norm="batch").state_dict()
    assert "encoder.0.convs.0.conv.weight" in plain
    assert "encoder.0.convs.0.conv.bias" not in plain


def test_dropout_acts_on_the_two_coarsest_encoder_levels_in_training_only():
    net = network(dropout=0.5)
    assert [isinstance(level.dropout, nn.Dropout) for level in net.encoder] == [False, True, True]
    image = torch.randn(1, 1, 16, 16)
    assert not torch.equal(net.train()(image), net(image))
    assert torch.equal(net.eval()(image), net(image))


def test_out_activation_gives_probabilities():
    image = torch.randn(1, 1, 16, 16)
    soft = network(out_activation="softmax")(image)
    torch.testing.assert_close(soft.sum(1), torch.ones(1, 16, 16))
    torch.testing.assert_close(soft, network()(image).softmax(1))
    torch.testing.assert_close(network(out_activation="sigmoid")(image), network()(image).sigmoid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 2.0}, "spatial_dims"),
        ({"widen_before_pool": "yes"}, "widen_before_pool"),
        ({"in_channels": 0}, "in_channels"),
        ({"out_channels": "2"}, "out_channels"),
        ({"channels": [64]}, "channels"),
        ({"channels": 64}, "channels"),
        ({"channels": [64, 0]}, "channels[1]"),
        ({"channels": [3, 6], "widen_before_pool": True}, "widen_before_pool"),
        ({"norm": "layer"}, "norm"),
        ({"norm": ["group"]}, "norm"),
        ({"norm": 3}, "norm"),
        ({"norm": ["group", {"num_groups": 3}]}, "norm cannot be built for 4 channels"),
        ({"norm": ["batch", {"speed": 3}]}, "norm cannot be built"),
        ({"act": "softmax"}, "act"),
        ({"act": ["relu", {"slope": 1}]}, "act cannot be built"),
        ({"up_channels": "double"}, "up_channels"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": "0.1"}, "dropout"),
        ({"deep_supervision": 2}, "0 to 1"),
        ({"deep_supervision": True}, "deep_supervision"),
        ({"deep_supervision": 1, "padding": "valid"}, "deep_supervision needs padding"),
        ({"out_activation": "tanh"}, "out_activation"),
    ],
)
def test_invalid_arguments_are_named_with_their_value(options, message):
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16], **options}
    with pytest.raises(ConfigError) as error:
        UNet(**arguments)
    assert message in str(error.value)
    assert error.value.received is not None


@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 2, 16, 16), (1, 1, 16, 16, 16), (1, 1, 16, 3)])
def test_images_that_do_not_fit_are_rejected(shape):
    with pytest.raises(ConfigError, match="does not"):
        network()(torch.zeros(*shape))


def test_a_single_coarsest_pixel_is_rejected_if_it_cannot_be_normalised():
    one = torch.zeros(1, 1, 7, 7)
    with pytest.raises(ConfigError, match="single pixel, which instance"):
        network(norm="instance").eval()(one)
    with pytest.raises(ConfigError, match="single pixel, which batch"):
        network(norm="batch").train()(one)
    assert network(norm="batch").eval()(one).shape == (1, 2, 7, 7)
    assert network(norm="batch").train()(torch.zeros(2, 1, 7, 7)).shape == (2, 2, 7, 7)
