"""Networks have their published sizes, groups hold the whole state once, and flat storage changes no output."""

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import Extra, FlatModel
from fedbsd_dist.models.split import SplitModel, build_model
from fedbsd_dist.models.zoo import NETWORKS

CPU = torch.device("cpu")
SHAPE = (1, 16, 16)


def with_norm(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Normalisation on both sides of the split, and convolutions of uneven shapes."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Sequential(nn.Conv2d(shape[0], 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            squeeze=nn.Sequential(nn.Conv2d(6, 5, (2, 1), bias=False), nn.Flatten()),
            norm=nn.BatchNorm1d(10),
            classifier=nn.Linear(10, num_classes),
        )
    )


def tied(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    pixels = shape[0] * shape[1] * shape[2]
    first, second = nn.Linear(num_classes, num_classes), nn.Linear(num_classes, num_classes)
    second.weight = first.weight
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, num_classes), first, second)


def doubles(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 4), nn.Linear(4, num_classes), Cast(), nn.BatchNorm1d(10).double()
    )


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def no_module(shape: tuple[int, int, int], num_classes: int) -> int:
    return num_classes


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def two_outputs(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes), Pair())


class Fork(nn.Module):
    """In training, what `make` makes of the logits."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, logits: Tensor) -> object:
        return self.make(logits) if self.training else logits


def in_training(make: Callable[[Tensor], object], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes), Fork(make))


def auxiliary_logits(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return in_training(lambda logits: (logits, logits), num_classes)


def fewer_in_training(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return in_training(lambda logits: logits[:, 1:], num_classes)


def fails_in_training(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return in_training(lambda logits: logits.nothing, num_classes)


def leaves(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    sys.exit("no licence")


def with_state(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), body=nn.Linear(256, 4), mine=layer, top=nn.Linear(4, 10)))


def cumulative(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(nn.BatchNorm1d(4, momentum=None))


def of_the_batch(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(nn.BatchNorm1d(4, track_running_stats=False))


class Counts(nn.Module):
    """How often it was used in training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("times", torch.tensor(0))

    def forward(self, features: Tensor) -> Tensor:
        self.times += self.training
        return features


def counting(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Counts())


@functools.cache
def kept(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(nn.Tanh())


class Gate(nn.Module):
    """A parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features


def gated(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Gate())


def frozen_body(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    network = with_state(nn.Tanh())
    network.body.requires_grad_(False)
    return network


class Masked(nn.Module):
    """A triangle of -inf, held in the way that `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        mask = torch.ones(4, 4).triu(1).bool()
        if how != "in forward":
            self.register_buffer("mask", mask if how == "bool" else torch.zeros(4, 4).masked_fill(mask, -torch.inf))

    def forward(self, features: Tensor) -> Tensor:
        if self.how == "float":
            scores = features[:, None] + self.mask
        else:
            mask = torch.ones(4, 4, device=features.device).triu(1).bool() if self.how == "in forward" else self.mask
            scores = features[:, None].expand(-1, 4, -1).masked_fill(mask, -torch.inf)
        return scores.softmax(-1).sum(1)


def float_mask(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Masked("float"))


def bool_mask(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Masked("bool"))


def mask_in_forward(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Masked("in forward"))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), torch.nan))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.scale.nan_to_num()


def not_a_number(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return with_state(Scale())


def two_many_logits(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, num_classes + 2))


def logits_of_pixels(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Identity(), nn.Conv2d(1, num_classes, 1))


not_a_function = 7


def ours(factory: str) -> Model:
    return Model(factory=factory and f"{__name__}:{factory}")


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "parameters", "head"),
    [
        ("cnn", (1, 28, 28), 10, 582_026, 5_130),
        ("fedrep_cnn", (3, 32, 32), 10, 307_842, 650),
        # FedRep's FEMNIST network: 784-512-256-64-10
        ("mlp", (1, 28, 28), 10, 784 * 512 + 512 + 512 * 256 + 256 + 256 * 64 + 64 + 650, 650),
        ("fedrep_cnn_cifar100", (3, 32, 32), 100, 1_075_044, 12_900),
        ("digits_cnn_bn", (3, 28, 28), 10, 14_219_210, 5_130),
        # AlexNet's published number, and a weight and a bias for each of its channels and hidden features
        ("alexnet_bn", (3, 256, 256), 1000, 61_100_840 + 2 * (64 + 192 + 384 + 256 + 256 + 4096 + 4096), 4_097_000),
        ("resnet18", (3, 224, 224), 1000, 11_689_512, 513_000),
        ("resnet18", (3, 32, 32), 10, 11_173_962, 5_130),
        ("resnet18_gn", (3, 32, 32), 10, 11_173_962, 5_130),
    ],
)
def test_parameters_are_the_published_number(name, shape, num_classes, parameters, head):
    model = FlatModel(build_model(Model(name=name), shape, num_classes, 0), CPU)
    sizes = {group: buffer.numel() for group, buffer in model.buffers.items()}
    assert (sizes["backbone"], sizes["head"]) == (parameters - head, head)
    assert model.module(torch.zeros(3, *shape)).shape == (3, num_classes)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"alexnet_bn"}))  # which takes no small images
def test_the_head_is_the_last_layers_wherever_the_split(name):
    shape = (3, 17, 20)
    torch.manual_seed(0)
    images = torch.randn(4, *shape)
    whole = build_model(Model(name=name), shape, 7, 0)
    outputs = whole(images)
    layers = len(whole.backbone) + len(whole.head)
    heads = []
    for head_layers in range(1, layers):
        model = build_model(Model(name=name, head_layers=head_layers), shape, 7, 0)
        assert (len(model.backbone), len(model.head)) == (layers - head_layers, head_layers)
        # where the split is changes neither the weights nor the outputs
        assert torch.equal(model(images), outputs)
        assert torch.equal(model.head(model.backbone(images)), outputs)
        assert count(model.backbone) + count(model.head) == count(whole)
        heads.append(count(model.head))
    assert heads == sorted(set(heads))


MODELS = [
    *(pytest.param(Model(name=name), id=name) for name in ("cnn", "fedrep_cnn", "mlp")),
    pytest.param(Model(name="cnn", head_layers=3), id="cnn, 3 head layers"),
    pytest.param(Model(factory=f"{__name__}:with_norm", head_layers=2), id="with_norm"),
]


@pytest.mark.parametrize("config", MODELS)
def test_groups_hold_every_float_of_the_state_exactly_once(config):
    model = FlatModel(build_model(config, SHAPE, 10, 0), CPU)
    floats = {name: tensor for name, tensor in model.module.state_dict().items() if tensor.is_floating_point()}
    assert sum(tensor.numel() for tensor in floats.values()) == sum(map(Tensor.numel, model.buffers.values()))
    assert len({buffer.untyped_storage().data_ptr() for buffer in model.buffers.values()}) == len(model.buffers)
    assert all(buffer.is_contiguous() and buffer.dim() == 1 for buffer in model.buffers.values())
    assert all(buffer.untyped_storage().nbytes() == 4 * buffer.numel() for buffer in model.buffers.values())

    # numbering the floats of the buffers: each number is found in one tensor, which is of the buffer's group
    for buffer in model.buffers.values():
        buffer.copy_(torch.arange(len(buffer)))
    seen: dict[str, list[Tensor]] = {group: [] for group in model.buffers}
    for name, tensor in floats.items():
        group = name.partition(".")[0]
        if "running" in name:
            group = {"backbone": "statistics", "head": "head_statistics"}[group]
        buffer = model.buffers[group]
        assert tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr(), name
        seen[group].append(tensor.flatten())
        # each tensor is one stretch of its buffer
        assert sorted(tensor.flatten().tolist()) == list(
            range(tensor.storage_offset(), tensor.storage_offset() + tensor.numel())
        )
    for group, buffer in model.buffers.items():
        assert torch.equal(torch.cat(seen[group]).sort().values, buffer)

    # convolutions are faster so
    kernels = [tensor for tensor in floats.values() if tensor.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    named = dict(model.module.named_parameters()) | dict(model.module.named_buffers())
    assert {name for _, name, _, _ in model.layout} == floats.keys()
    assert all(shape == tuple(named[name].shape) for _, name, shape, _ in model.layout)


def test_statistics_are_groups_of_their_own():
    model = FlatModel(build_model(Model(factory=f"{__name__}:with_norm", head_layers=2), SHAPE, 10, 0), CPU)
    # running mean and variance of 6 channels in the backbone and of 10 features in the head
    assert {group: buffer.numel() for group, buffer in model.buffers.items()} == {
        "backbone": 6 * 9 + 6 + 12 + 5 * 6 * 2,
        "head": 20 + 110,
        "statistics": 2 * 6,
        "head_statistics": 2 * 10,
    }
    assert sorted(model.buffers["statistics"].tolist()) == [0.0] * 6 + [1.0] * 6
    assert sorted(model.buffers["head_statistics"].tolist()) == [0.0] * 10 + [1.0] * 10
    before = {group: buffer.clone() for group, buffer in model.buffers.items()}
    model.module.train()(torch.randn(8, *SHAPE))
    changed = {group: not torch.equal(buffer, before[group]) for group, buffer in model.buffers.items()}
    assert changed == {"backbone": False, "head": False, "statistics": True, "head_statistics": True}
    model.module.eval()(torch.randn(8, *SHAPE))
    assert FlatModel(build_model(Model(), SHAPE, 10, 0), CPU).buffers.keys() == {"backbone", "head"}


@pytest.mark.parametrize("config", MODELS)
def test_flattening_changes_no_weight_output_or_gradient(config):
    model = build_model(config, SHAPE, 10, 0)
    plain = copy.deepcopy(model)
    flat = FlatModel(model, CPU).module
    for (name, one), (other_name, other) in zip(flat.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    torch.manual_seed(0)
    images = torch.randn(8, *SHAPE)
    for mode in (True, False):
        outputs = [module.train(mode)(images) for module in (flat, plain)]
        # the memory order of weights decides how a convolution is computed, and so how it rounds
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
        gradients = [
            torch.autograd.grad(module(images).square().mean(), list(module.parameters())) for module in (flat, plain)
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_buffer_is_the_models_state_and_not_a_copy():
    model = FlatModel(build_model(Model(), SHAPE, 10, 0), CPU)
    images = torch.randn(3, *SHAPE)
    before = model.module(images)
    features = model.module.backbone(images)
    head = model.buffers["head"].clone()
    model.buffers["head"].zero_()
    assert (model.module(images) == 0).all()
    assert torch.equal(model.module.backbone(images), features)
    model.buffers["head"].copy_(head)
    assert torch.equal(model.module(images), before)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.fill_(0.5)
    assert all((buffer == 0.5).all() for buffer in model.buffers.values())


def test_only_the_groups_that_train_have_gradients():
    model = FlatModel(build_model(Model(), SHAPE, 10, 0), CPU)
    model.module.eval()
    head = model.train_only(["head"])
    assert list(map(id, head)) == list(map(id, model.module.head.parameters()))
    assert model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.backbone.parameters())
    assert all(parameter.requires_grad for parameter in head)
    assert len(model.train_only(["backbone", "head"])) == len(list(model.module.parameters()))
    model.train_only(["backbone"])
    assert not any(parameter.requires_grad for parameter in head)


def test_a_number_that_would_run_on_from_client_to_client_is_refused():
    with pytest.raises(UserError, match=r"the buffer mine\.times \(torch\.int64\) changes in training.*float32"):
        build_model(ours("counting"), SHAPE, 10, 0)


def test_a_factory_that_returns_the_same_module_again_gives_it_as_it_was():
    first, second = (FlatModel(build_model(ours("kept"), SHAPE, 10, 0), CPU) for _ in range(2))
    first.buffers["backbone"].zero_()
    assert second.buffers["backbone"].any()
    third = FlatModel(build_model(ours("kept"), SHAPE, 10, 0), CPU)
    assert torch.equal(third.buffers["backbone"], second.buffers["backbone"])


def test_a_copy_is_whole_and_shares_nothing():
    model = FlatModel(build_model(ours("with_norm"), SHAPE, 10, 0), CPU)
    model.extend({"own": Extra(like="backbone")})
    twin, values = copy.deepcopy(model), model.clone()
    for buffer in twin.buffers.values():
        buffer.fill_(2.0)
    floats = [tensor for tensor in twin.module.state_dict().values() if tensor.is_floating_point()]
    assert all((tensor == 2).all() for tensor in floats)
    assert all(torch.equal(model.buffers[name], before) for name, before in values.items())


def test_a_parameter_may_be_one_number():
    model = FlatModel(build_model(ours("gated"), SHAPE, 10, 0), CPU)
    gate = model.module.backbone.mine.scale
    assert (gate.shape, gate.item()) == ((), 2)
    model.put({"backbone": torch.full_like(model.buffers["backbone"], 3.0)})
    assert gate.item() == 3
    assert [view.shape for view in model.views(model.clone())] == [of.shape for of in model.module.parameters()]


def test_first_parameters_follow_from_the_seed_and_draw_from_no_other_stream():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    digests = [FlatModel(build_model(Model(), SHAPE, 10, seed), CPU).digest for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    digests.append(FlatModel(build_model(Model(), SHAPE, 10, 0), CPU).digest)
    assert digests[0] == digests[1] == digests[3] != digests[2]
    assert len(digests[0]) == 32


def test_digest_names_values_and_layout():
    model = FlatModel(build_model(Model(), SHAPE, 10, 0), CPU)
    digest = model.digest
    model.buffers["head"][-1] += 1
    assert model.digest != digest
    model.buffers["head"][-1] -= 1
    # same values in the same order, split elsewhere
    zeros = [FlatModel(build_model(Model(name="mlp", head_layers=n), SHAPE, 10, 0), CPU) for n in (1, 2)]
    for other in zeros:
        for buffer in other.buffers.values():
            buffer.zero_()
    assert zeros[0].digest != zeros[1].digest


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (Model(head_layers=4), SHAPE, "model.head_layers=4: cnn has 4 layers, and its backbone needs one. Use 1 to 3."),
        (Model(name="fedrep_cnn", head_layers=9), SHAPE, "Use 1 to 4."),
        (Model(), (1, 11, 40), "model cnn does not take images of 1x11x40 (c x h x w)"),
        (ours("missing"), SHAPE, f"model.factory={__name__}:missing: cannot import it"),
        (Model(factory="no_such_package.here:f"), SHAPE, "model.factory=no_such_package.here:f: cannot import it"),
        (Model(factory="not a name"), SHAPE, "Write package.module:function."),
        (ours("not_a_function"), SHAPE, "not a function"),
        (ours("no_module"), SHAPE, "must return an nn.Module, such as an nn.Sequential of layers, not int"),
        (ours("two_outputs"), SHAPE, "returns tuple for images, not a tensor of logits"),
        (ours("two_many_logits"), SHAPE, "returns (12,) for an image, not logits (10,)"),
        (ours("auxiliary_logits"), SHAPE, "auxiliary_logits, in training mode, returns tuple for images, not a tensor"),
        (ours("fewer_in_training"), SHAPE, "fewer_in_training, in training mode, returns (9,) for an image"),
        (ours("fails_in_training"), SHAPE, "in training mode, does not take images of 1x16x16 (c x h x w): Attribute"),
        (ours("leaves"), SHAPE, "leaves does not take images of 1x16x16 (c x h x w): SystemExit: no licence"),
        (ours("logits_of_pixels"), SHAPE, "returns (10, 16, 16) for an image"),
        (ours("with_norm"), (1, 1, 1), "does not take images of 1x1x1"),
    ],
)
def test_a_model_that_cannot_be_is_refused(config, shape, message):
    with pytest.raises(UserError) as problem:
        build_model(config, shape, 10, 0)
    assert message in str(problem.value)


@pytest.mark.parametrize("side", [2, 4, 8, 12, 15, 16])
@pytest.mark.parametrize("name", ["cnn", "fedrep_cnn", "fedrep_cnn_cifar100", "mlp"])
def test_images_too_small_are_refused_and_others_taken(name, side):
    # two 5x5 convolutions and 2x2 poolings need 16 pixels
    if name == "mlp" or side == 16:
        assert build_model(Model(name=name), (1, side, side), 10, 0)(torch.zeros(1, 1, side, side)).shape == (1, 10)
    else:
        with pytest.raises(UserError, match=f"model {name} does not take images of 1x{side}x{side}"):
            build_model(Model(name=name), (1, side, side), 10, 0)


@pytest.mark.parametrize(("side", "taken"), [(62, False), (63, True)])
def test_alexnet_needs_images_that_leave_something_to_its_last_pooling(side, taken):
    if taken:
        assert build_model(Model(name="alexnet_bn"), (1, side, side), 2, 0)(torch.zeros(1, 1, side, side)).shape == (
            1,
            2,
        )
    else:
        with pytest.raises(UserError, match="alexnet_bn does not take images of 1x62x62"):
            build_model(Model(name="alexnet_bn"), (1, side, side), 2, 0)


@pytest.mark.parametrize(("side", "map_side", "stem"), [(64, 64, 3 * 3), (65, 17, 7 * 7)])
def test_a_resnet_halves_large_images_twice_before_its_blocks(side, map_side, stem):
    model = build_model(Model(name="resnet18_gn"), (2, side, side), 3, 0)
    assert model.backbone.stem(torch.zeros(1, 2, side, side)).shape == (1, 64, map_side, map_side)
    assert model.backbone.stem[0].weight[0].numel() == 2 * stem


@pytest.mark.parametrize(
    ("name", "norm", "count"), [("resnet18", nn.BatchNorm2d, 20), ("resnet18_gn", nn.GroupNorm, 20)]
)
def test_a_resnet_has_one_kind_of_normalisation(name, norm, count):
    model = build_model(Model(name=name), (3, 8, 8), 10, 0)
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))]
    assert len(norms) == count
    assert all(type(module) is norm for module in norms)
    assert all(module.num_groups == 32 for module in norms if isinstance(module, nn.GroupNorm))


@pytest.mark.parametrize("name", ["cnn", "fedrep_cnn_cifar100", "digits_cnn_bn", "resnet18", "resnet18_gn"])
def test_a_network_learns_with_every_parameter(name):
    shape = (1, 16, 16)
    model = build_model(Model(name=name), shape, 10, 0).train()
    torch.manual_seed(0)
    model(torch.randn(6, *shape)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tied", "two layers share a parameter"),
        ("doubles", "is torch.float64; every parameter must be torch.float32"),
        ("cumulative", r"model: backbone\.mine is batch norm with momentum=None.*Give it a momentum, such as 0\.1"),
        ("of_the_batch", r"model: backbone\.mine is batch norm with track_running_stats=False.*use GroupNorm"),
        ("float_mask", r"model: backbone\.mine\.mask is not finite at the start.*torch\.bool"),
        ("not_a_number", r"model: backbone\.mine\.scale is not finite at the start"),
    ],
)
def test_state_that_has_no_place_in_a_group_is_refused(factory, message):
    model = build_model(ours(factory), SHAPE, 10, 0)
    with pytest.raises(UserError, match=message):
        FlatModel(model, CPU)


@pytest.mark.parametrize("factory", ["bool_mask", "mask_in_forward"])
def test_a_mask_made_as_the_message_says_is_no_state(factory):
    model = FlatModel(build_model(ours(factory), SHAPE, 10, 0), CPU)
    assert model.buffers.keys() == {"backbone", "head"}
    assert model.module(torch.randn(3, *SHAPE)).isfinite().all()


def test_trying_a_model_in_training_leaves_no_trace():
    split = build_model(ours("with_norm"), SHAPE, 10, 0)
    before = torch.get_rng_state()
    again = build_model(ours("with_norm"), SHAPE, 10, 0)
    assert torch.equal(torch.get_rng_state(), before)
    norm = split.backbone.norm
    assert (norm.num_batches_tracked.item(), norm.running_mean.any().item()) == (0, False)
    assert all(torch.equal(value, split.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_split_through_the_sequence_keeps_layer_names():
    layers = nn.Sequential(OrderedDict(one=nn.Linear(2, 3), two=nn.Linear(3, 4), three=nn.ReLU()))
    model = SplitModel(layers[:1], layers[1:])
    assert [name for name, _ in model.named_parameters()] == [
        *("backbone.one.weight", "backbone.one.bias", "head.two.weight", "head.two.bias")
    ]
