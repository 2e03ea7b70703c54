"""Networks by name: torchvision's are taken for what they are, and a name that is none's is told with the nearest."""

import pytest
import torch
from torch import nn

from fedbsd_dist.config import Model
from fedbsd_dist.errors import UserError
from fedbsd_dist.models.flat import FlatModel
from fedbsd_dist.models.split import build_model
from fedbsd_dist.models.zoo import NETWORKS, find_network


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "head"),
    [
        # published with 1000 classes; here with 10
        ("mobilenet_v2", (3, 32, 32), 3_504_872 - 1281 * 990, 1280 * 10 + 10),
        ("densenet121", (3, 32, 32), 7_978_856 - 1025 * 990, 1024 * 10 + 10),
        ("inception_v3", (3, 75, 75), 27_161_264 - 3_326_696 - 2049 * 990, 2048 * 10 + 10),
    ],
)
def test_a_classification_model_of_torchvisions_is_split_at_its_last_linear(name, shape, parameters, head):
    model = build_model(Model(name=name), shape, 10, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert isinstance(model.head, nn.Linear)
    assert sum(parameter.numel() for parameter in model.head.parameters()) == head
    images = torch.randn(3, *shape)
    for training in (True, False):  # in training, no logits of an auxiliary classifier besides
        assert model.train(training)(images).shape == (3, 10)


def test_first_parameters_of_torchvisions_follow_from_the_seed():
    one, same, other = (
        build_model(Model(name="shufflenet_v2_x0_5"), (3, 32, 32), 2, seed).head.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_running_statistics_and_weights_of_torchvisions_are_in_the_flat_groups():
    model = build_model(Model(name="shufflenet_v2_x0_5"), (3, 32, 32), 10, 0)
    images = torch.randn(3, 3, 32, 32)
    outputs = model.eval()(images)
    flat = FlatModel(model, torch.device("cpu"))
    assert torch.allclose(flat.module.eval()(images), outputs, rtol=1e-4, atol=1e-6)
    assert {group: buffer.numel() for group, buffer in flat.buffers.items()} == {
        "backbone": 1_366_792 - 1024 * 1000 - 1000,  # published with 1000 classes
        "head": 10250,
        "statistics": sum(2 * norm.num_features for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)),
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet", "resnet18"),
        ("mobilenet", "mobilenet_v2"),
        ("ResNet50", "resnet50"),
        ("cnn_fedrep", "fedrep_cnn"),
        ("densenet", "densenet121"),
        ("alexnet-bn", "alexnet_bn"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(UserError) as refusal:
        find_network(name)
    asked = str(refusal.value).partition("Did you mean")[2].partition("?")[0]
    assert nearest in asked.replace(",", "").split()


# of segmentation, detection, video and quantization, with a place in torchvision but not among its classifiers
@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18", "quantized_resnet18", "", "zzzz"]
)
def test_what_is_no_classification_model_is_refused_with_ours(name):
    with pytest.raises(UserError, match=f"^model.name={name}: no such network") as refusal:
        find_network(name)
    assert all(ours in str(refusal.value) for ours in NETWORKS)


def test_torchvisions_models_take_colour_images_only():
    with pytest.raises(UserError, match=r"model\.name=vgg11: .* 3 channels, and these have 1\. Set data\.channels=3"):
        build_model(Model(name="vgg11"), (1, 32, 32), 10, 0)


def test_images_that_a_model_of_torchvisions_refuses():
    with pytest.raises(UserError, match="model vit_b_32 does not take images of 3x32x32"):
        build_model(Model(name="vit_b_32"), (3, 32, 32), 10, 0)


def test_a_model_without_a_linear_layer_needs_its_head_named():
    with pytest.raises(UserError, match=r"squeezenet1_1: has no nn\.Linear .* model\.head_from"):
        build_model(Model(name="squeezenet1_1"), (3, 32, 32), 10, 0)
