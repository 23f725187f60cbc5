"""What the built-in network promises to training and sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sched_lab.trainers.networks.options import UNetSpec


def build(
    spec: UNetSpec | None = None, *, channels: int = 1, resolution: int = 8, classes: int = 0
) -> nn.Module:
    """The network with weights drawn from a fixed seed, without touching the default generator."""
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return (spec or UNetSpec()).build(channels=channels, resolution=resolution, classes=classes)


def awake(network: nn.Module) -> nn.Module:
    """The network with every weight off zero, as training leaves it."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return network


def images(batch: int = 2, channels: int = 1, resolution: int = 8) -> Tensor:
    return torch.randn(
        (batch, channels, resolution, resolution), generator=torch.Generator().manual_seed(2)
    )


@pytest.mark.parametrize(
    ("spec", "channels", "resolution"),
    [
        (UNetSpec(), 1, 8),
        (UNetSpec(), 1, 32),
        (UNetSpec(), 3, 16),
        (UNetSpec(multipliers=(1,)), 1, 5),
        (UNetSpec(multipliers=(1, 2, 3), blocks=2, attention=2), 3, 12),
        (UNetSpec(width=8, multipliers=(1, 2), attention=0), 1, 4),
        (UNetSpec(width=40, patch=2, attention=5), 3, 8),
    ],
)
def test_the_output_has_the_shape_of_the_input(
    spec: UNetSpec, channels: int, resolution: int
) -> None:
    x = images(channels=channels, resolution=resolution)
    network = awake(build(spec, channels=channels, resolution=resolution))
    assert network(x, torch.tensor([0.1, 0.9])).shape == x.shape


def test_a_fresh_network_predicts_zero() -> None:
    assert build()(images(), torch.tensor([0.1, 0.9])).abs().max() == 0


def test_the_output_depends_on_gamma_at_both_ends_of_its_range() -> None:
    network, x = awake(build()), images(batch=1)
    outputs = torch.cat(
        [network(x, torch.tensor([gamma])) for gamma in (1e-4, 1e-3, 0.5, 0.998, 0.999)]
    )
    assert (outputs.diff(dim=0).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_the_output_depends_on_the_label_and_a_missing_label_is_refused() -> None:
    network, x, gamma = awake(build(classes=10)), images(), torch.tensor([0.5, 0.5])
    outputs = network(x, gamma, torch.tensor([3, 4]))
    swapped = network(x, gamma, torch.tensor([4, 4]))
    assert not torch.allclose(outputs[0], swapped[0], atol=1e-3)
    assert torch.allclose(outputs[1], swapped[1], atol=1e-5)
    with pytest.raises(ValueError, match="needs a label for each example"):
        network(x, gamma)


def test_one_example_does_not_see_another() -> None:
    network, x, gamma = awake(build()), images(batch=4), torch.tensor([0.1, 0.3, 0.6, 0.9])
    assert torch.allclose(network(x, gamma)[2:3], network(x[2:3], gamma[2:3]), atol=1e-5)


def test_the_coarsest_level_lets_every_pixel_see_every_other() -> None:
    network, x = awake(build(resolution=16)), images(batch=1, resolution=16).requires_grad_()
    network(x, torch.tensor([0.5]))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_detail_reaches_the_output_past_the_coarser_levels() -> None:
    network, x = awake(build()), images(batch=1).requires_grad_()
    assert isinstance(network.shrink, nn.ModuleList)
    with torch.no_grad():
        for parameter in network.shrink.parameters():
            parameter.zero_()
    network(x, torch.tensor([0.5])).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()


def test_the_gradient_reaches_every_parameter() -> None:
    network = awake(
        build(UNetSpec(multipliers=(1, 2, 2), attention=2, blocks=2), resolution=8, classes=3)
    )
    network(images(), torch.tensor([0.1, 0.9]), torch.tensor([0, 2])).square().mean().backward()
    dead = [
        n
        for n, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("resolution", "channels", "patch"), [(8, 1, 1), (16, 1, 2), (32, 1, 4), (64, 1, 8), (64, 3, 4)]
)
def test_the_patch_is_the_largest_that_leaves_8_by_8_tokens_and_fits_the_width(
    resolution: int, channels: int, patch: int
) -> None:
    assert UNetSpec().patch_for(channels=channels, resolution=resolution) == patch


def test_a_width_that_cannot_pass_the_noise_through_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"at least channels·patch² = 3·4² = 48, got 40"):
        build(UNetSpec(width=40, patch=4), channels=3, resolution=32)


def test_a_resolution_that_the_levels_cannot_halve_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"resolution 9 must be a multiple of patch·2\^\(n−1\), .*: 1·2 = 2"
    ):
        build(resolution=9)


def test_the_default_network_is_small_at_every_resolution() -> None:
    for resolution in (8, 16, 32, 64):
        assert 200_000 < sum(p.numel() for p in build(resolution=resolution).parameters()) < 500_000


def test_weights_are_drawn_from_torchs_default_generator_alone() -> None:
    one, same = build().state_dict(), build().state_dict()
    with torch.random.fork_rng():
        torch.random.manual_seed(1)
        other = UNetSpec().build(channels=1, resolution=8, classes=0).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("resolution", [8, 16])
def test_activations_are_channels_last_from_the_first_layer_to_the_output(resolution: int) -> None:
    network = awake(build(channels=3, resolution=resolution)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strided: list[str] = []

    def check(module: nn.Module, inputs: object, output: Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strided.append(type(module).__name__)

    for module in network.modules():
        module.register_forward_hook(check)
    network(images(channels=3, resolution=resolution), torch.tensor([0.1, 0.9]))
    assert strided == []
