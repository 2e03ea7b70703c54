"""The head is what the network ends with, however it is named; anything else is refused."""

import pytest
import torch
from torch import Tensor, nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.split import SplitModel, build_model
from fedbsd_dist.randomness import named_seed

SHAPE = (1, 4, 4)


class Net(nn.Module):
    """Body, two linear layers in a container, and what `ending` says after them."""

    def __init__(self, num_classes: int, ending: str) -> None:
        super().__init__()
        self.ending = ending
        self.body = nn.Sequential(nn.Flatten(1), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.top = nn.ModuleDict({"hidden": nn.Linear(8, 8), "out": nn.Linear(8, num_classes)})
        self.act = nn.ReLU()
        self.aside = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.top["out"](self.act(self.top["hidden"](self.body(images))))
        return logits.relu() if self.ending == "relu" else logits * 2 if self.ending == "scaled" else logits


class Tail(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(16, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.fc(features).tanh()
        return outputs


class Whole(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.flat, self.tail, self.last = nn.Flatten(), Tail(num_classes), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.tail(self.flat(images)))
        return outputs


class Positions(nn.Module):
    """A head at every position, then the mean over positions: linear, so the order does not matter."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.squeeze(1)).mean(1)


class Residual(nn.Sequential):
    """An nn.Sequential by its class alone."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 1


class Own(nn.Sequential):
    """An nn.Sequential with an __init__ of its own, as users write it."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(num_inputs, 8), nn.ReLU(), nn.Linear(8, num_classes))


class Flat(nn.Linear):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


def net(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    module = Net(num_classes, "")
    del module.aside
    return module


def with_aside(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Net(num_classes, "")


def ends_in_relu(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Net(num_classes, "relu")


def ends_scaled(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Net(num_classes, "scaled")


def ends_scaled_and_tiny(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    module = Net(num_classes, "scaled")
    for parameter in module.top["out"].parameters():
        parameter.data *= 1e-12
    return module


def whole(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Whole(num_classes)


def positions(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Positions(num_classes)


def residual(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Residual(nn.Flatten(), nn.Linear(16, num_classes))


def own(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Own(16, num_classes)


def bare(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes), nn.Dropout())


def flat_linear(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    return Flat(16, num_classes)


def split(factory: str, **options: object) -> SplitModel:
    return build_model(Model(factory=f"{__name__}:{factory}", **options), SHAPE, 3, 0)


@pytest.mark.parametrize(
    ("factory", "options", "head"),
    [
        ("net", {}, ["head.weight", "head.bias"]),
        ("net", {"head_from": "top.out"}, ["head.weight", "head.bias"]),
        ("with_aside", {"head_from": "top.out"}, ["head.weight", "head.bias"]),
        ("whole", {"head_from": "tail"}, ["head.fc.weight", "head.fc.bias"]),
        ("positions", {}, ["head.weight", "head.bias"]),
        ("own", {}, ["head.3.weight", "head.3.bias"]),
        ("own", {"head_from": "1"}, ["head.1.weight", "head.1.bias", "head.3.weight", "head.3.bias"]),
        ("bare", {"head_from": "1"}, ["head.1.weight", "head.1.bias"]),
        ("bare", {"head_layers": 2}, ["head.1.weight", "head.1.bias"]),
    ],
)
def test_backbone_and_head_are_the_whole_network(factory, options, head):
    model = split(factory, **options)
    assert [name for name, _ in model.named_parameters() if not name.startswith("backbone.")] == head
    with torch.random.fork_rng():
        torch.manual_seed(named_seed(0, "init"))
        unsplit = globals()[factory](SHAPE, 3)
        images = torch.randn(5, *SHAPE)
    outputs = unsplit.eval()(images)
    torch.testing.assert_close(model.eval()(images), outputs)
    torch.testing.assert_close(model.head(model.backbone(images)), outputs)


@pytest.mark.parametrize(
    ("name", "head_from", "head"),
    [
        ("cnn", "fc1", ["fc1", "classifier"]),
        ("mlp", "classifier", ["classifier"]),
        ("mlp", "fc2", ["fc2", "fc3", "classifier"]),
    ],
)
def test_a_named_layer_begins_the_head_of_a_sequence(name, head_from, head):
    by_name = build_model(Model(name=name, head_from=head_from), (1, 16, 16), 10, 0)
    by_number = build_model(Model(name=name, head_layers=len(head)), (1, 16, 16), 10, 0)
    assert [inner for inner, _ in by_name.head.named_children()] == head
    assert by_name.state_dict().keys() == by_number.state_dict().keys()
    assert all(torch.equal(value, by_number.state_dict()[key]) for key, value in by_name.state_dict().items())


def test_a_submodule_of_torchvisions_may_be_the_head():
    model = build_model(Model(name="mobilenet_v2", head_from="classifier"), (3, 32, 32), 10, 0)
    assert isinstance(model.head, nn.Sequential)  # with its dropout
    assert isinstance(model.backbone.classifier, nn.Identity)
    assert model.backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 1280)


NOT_THE_END = "is not what {factory} ends with"


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("with_aside", {}, "aside, its last nn.Linear: " + NOT_THE_END),
        ("ends_in_relu", {"head_from": "top.out"}, "model.head_from=top.out: " + NOT_THE_END),
        ("ends_scaled", {"head_from": "top.out"}, NOT_THE_END),
        ("ends_scaled_and_tiny", {"head_from": "top.out"}, NOT_THE_END),
        ("net", {"head_from": "top.hidden"}, NOT_THE_END),
        ("net", {"head_from": "body"}, NOT_THE_END),
        ("net", {"head_from": "top"}, NOT_THE_END),
        ("whole", {}, "tail.fc, its last nn.Linear: " + NOT_THE_END),
        ("residual", {}, "model.head_layers=1: " + NOT_THE_END),
        ("net", {"head_from": "act"}, "this head has no parameters"),
        ("bare", {"head_layers": 1}, "model.head_layers=1: this head has no parameters"),
        ("bare", {"head_from": "2"}, "model.head_from=2: this head has no parameters"),
        ("net", {"head_from": "top.outt"}, "has no such submodule. Did you mean top.out"),
        ("net", {"head_from": "."}, "Its outermost are body, top, act."),
        ("net", {"head_layers": 2}, "model.head_layers=2: {factory} is no nn.Sequential"),
        ("bare", {"head_from": "0"}, "model.head_from=0: this is the first layer of {factory}"),
        ("bare", {"head_from": "fc"}, "has no such layer. Its layers are 0, 1, 2."),
        ("bare", {"head_from": "1", "head_layers": 2}, "both say where the head begins"),
        ("net", {"head_from": "top.out", "head_layers": 2}, "both say where the head begins"),
    ],
)
def test_what_cannot_be_the_head_is_refused(factory, options, message):
    with pytest.raises(UserError) as refusal:
        split(factory, **options)
    assert message.format(factory=f"{__name__}:{factory}") in str(refusal.value)


def test_a_layer_has_to_be_within_the_model():
    with pytest.raises(UserError, match=r"has no nn\.Linear inside it"):
        build_model(Model(factory=f"{__name__}:flat_linear"), SHAPE, 3, 0)


def test_the_nearest_layer_is_named():
    with pytest.raises(
        UserError, match=r"model\.head_from=clasifier: cnn has no such layer\. Did you mean classifier\?"
    ):
        build_model(Model(head_from="clasifier"), (1, 16, 16), 10, 0)
