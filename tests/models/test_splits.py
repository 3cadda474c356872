"""Split points: exactly one tensor crosses, proved on the traced graph, and published names."""

from pathlib import Path

import pytest
import torch.fx
from torch import nn

from ipu_proxynorm.ipu import resolve_splits
from ipu_proxynorm.models import MODELS, create_model
from ipu_proxynorm.models.layers import DropPath


class LayerTracer(torch.fx.Tracer):
    """Records a network as calls of its layers and of the functions between them."""

    def is_leaf_module(self, module, name):
        return isinstance(module, DropPath) or not any(module.children())


def crossing(graph, point):
    """Return the values that exist before the layer begins and are used from there on."""
    nodes = list(graph.nodes)
    begin = next(
        index
        for index, node in enumerate(nodes)
        if node.op == "call_module"
        and (node.target == point or f"{node.target}.".startswith(f"{point}."))
    )
    later = set(nodes[begin:])
    return [node for node in nodes[:begin] if later & set(node.users)], begin


def test_exactly_one_tensor_crosses(small, family):
    model = small(family, norm="bn")
    graph = LayerTracer().trace(model)
    begins = []
    for point in model.split_points():
        crossed, begin = crossing(graph, point)
        assert len(crossed) == 1, (point, crossed)
        begins.append(begin)
    assert begins == sorted(set(begins))  # in order, none twice


def test_the_check_sees_a_shortcut(small):
    graph = LayerTracer().trace(small("resnet basic", norm="bn"))
    assert len(crossing(graph, "layer2.1.conv2")[0]) == 2


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50", "efficientnet_b5", "random_50"])
def test_published_networks_list_layers_that_they_have(name):
    with torch.device("meta"):
        model = create_model(name, norm="ln", num_classes=10)
    points = model.split_points()
    modules = dict(model.named_modules())
    assert all(isinstance(modules[point], nn.Module) for point in points)
    assert set(model.split_aliases().values()) <= set(points)


# Splits of the configurations that Graphcore published for these networks, with the layers that
# begin the stages here. Sources: docs/models.md.
PUBLISHED = {
    ("efficientnet_b0", "block3b"): "blocks.2.1",
    ("efficientnet_b1", "block5d"): "blocks.4.3",
    ("efficientnet_b4", "block6c"): "blocks.5.2",
    ("efficientnet_b5", "block2e"): "blocks.1.4",
    ("efficientnet_b5", "block4f"): "blocks.3.5",
    ("efficientnet_b0", "block2a/b"): "blocks.1.0.conv_dw",
    ("efficientnet_b0", "block1a/c"): "blocks.0.0.conv_pw",
    ("efficientnet_b0", "Top"): "conv_head",
    ("efficientnet_b4", "blocks.1.1.conv_pw"): "blocks.1.1",
    ("efficientnet_b0", "_blocks.4"): "blocks.2.1",
    ("efficientnet_b0", "_blocks.8._project_conv"): "blocks.4.0.conv_pwl",
    ("efficientnet_b4", "_blocks.22"): "blocks.5.0",
    ("resnet50", "b2/3/relu"): "layer2.3.activation",
    ("resnet50", "stage3/unit4/relu"): "layer3.3.activation",
    ("resnet50", "stage3/unit4"): "layer3.3",
    ("resnet50", "conv4_block2_out"): "layer3.1.activation",
    ("resnet56", "conv2_block7_post_addition_relu"): "layer1.6.activation",
    ("resnetv2_50", "stage3/unit4/relu"): "layer3.4",
    ("resnetv2_50", "stage4/unit3/relu"): "norm",
    ("resnext101_32x4d", "stage3/unit4/relu"): "layer3.3.activation",
    ("resnet50", "reduce_mean"): "avgpool",
}


@pytest.mark.parametrize(("name", "published"), PUBLISHED)
def test_published_names(name, published):
    with torch.device("meta"):
        aliases = create_model(name, norm="ln").split_aliases()
    assert aliases[published] == PUBLISHED[name, published]


def test_every_network_has_split_points():
    for name in ("resnet20", "resnetv2_20", "efficientnet_b0", "random_50", "resnext50_32x4d"):
        assert name in MODELS
        with torch.device("meta"):
            assert len(create_model(name).split_points()) > 10


def documented():
    """Return the rows of the table of names in docs/models.md."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("| published | of |")[2].partition("\n\n")[0]
    rows = [line.replace("`", "").split("|")[1:4] for line in table.splitlines()[2:]]
    return [tuple(cell.strip() for cell in row) for row in rows]


def test_the_documented_table_of_names():
    rows = documented()
    assert len(rows) == 18
    with torch.device("meta"):
        models = {name: create_model(name, norm="none") for name in {row[1] for row in rows}}
    for published, name, ours in rows:
        assert resolve_splits(models[name], [published]) == [ours], published
