"""The authors' EfficientNet, run by their own TensorFlow code, beside ours with the published keys.

    python benchmarks/authors_network.py EXAMPLES --tensorflow PYTHON

EXAMPLES is a checkout of github.com/graphcore/examples at v2.3.0, whose code this is; PYTHON is an
interpreter of an environment with tensorflow-cpu 2.15 and SciPy. Of Graphcore's TensorFlow only
its Group Norm is called, which stands here in plain operators. Weights and images travel in files.

It prints the largest difference from ours in float64 of logits, of gradients, and of the proxies'
moments, over the largest value: of theirs, and of ours in float32, both of which round across
ReLU's kink. Figures of a run: docs/published_results.md.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np

CODE = "applications/tensorflow/cnns/training"
#: Name of the network, their size, norm spec, their groups, channels of a group, expansion.
CASES = (
    ("efficientnet_b0", "B0", "ln+pn", 1, 16, 4, "silu"),
    ("efficientnet_b0", "B0", "gn4+pn", 4, 1, 6, "silu"),
    ("efficientnet_b2", "B2", "ln+pn", 1, 16, 4, "silu"),
    ("efficientnet_b2", "B2", "ln+pn", 1, 16, 4, "relu"),
)
PROXY_ROWS = 6  # of their variable: beta, gamma, mean, 1 / deviation, and the proxy's two
SIZE = 65  # odd, so that SAME's padding is not symmetric
Arrays = Dict[str, np.ndarray]


def ours(case: Tuple[Any, ...], folder: Path) -> Tuple[Arrays, Arrays]:
    """Write weights and images for them; return what we find, in float64 and in float32."""
    import torch

    from ipu_proxynorm.models import create_model

    name, _, spec, _, group_dim, expansion, act = case
    torch.manual_seed(0)
    options = {"padding": "same", "proxy_method": "sampled", "proxy_scale": "published"}
    model = create_model(
        name, spec, 1000, 3, act, group_dim=group_dim, expansion=expansion, drop_path=0.0, **options
    ).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    images, probe = torch.randn(2, 3, SIZE, SIZE), torch.randn(2, 1000)
    given = {f"weight{i}": rows[0] for i, rows in enumerate(variables(model))}
    images_last = images.permute(0, 2, 3, 1).numpy()
    np.savez(folder / "given.npz", images=images_last, probe=probe.numpy(), **given)
    found = []
    for dtype in (torch.float64, torch.float32):
        model.to(dtype).zero_grad()
        logits = model(images.to(dtype))
        (logits * probe).sum().backward()
        values = {"logits": logits.detach().numpy()}
        for number, (value, gradient) in enumerate(variables(model)):
            values[f"gradient{number}"] = gradient
            if value.ndim == 4 and len(value) == PROXY_ROWS and value.shape[1:3] == (1, 1):
                values[f"moments{number}"] = value[2:4].reshape(2, -1)
        found.append(values)
    return found[0], found[1]


def variables(model: Any) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """Yield each of their variables, from our parameters, and its gradient, zero without one."""
    import torch

    from ipu_proxynorm.norm import GroupNormAct, ProxyNormAct

    for layer in model.modules():
        if isinstance(layer, ProxyNormAct):
            parts = [layer.bias, layer.weight, layer.proxy_bias, layer.proxy_weight]
            mean, variance = layer.moments()
            rows = [*parts[:2], mean, torch.rsqrt(variance + layer.proxy_eps), *parts[2:]]
            gradient = torch.stack([_gradient(part) for part in parts])
            yield torch.stack(rows).detach().numpy()[:, None, None, :], gradient.numpy()
        elif isinstance(layer, (GroupNormAct, torch.nn.Conv2d, torch.nn.Linear)):
            order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[layer.weight.dim()]
            weights = (layer.weight.detach(), _gradient(layer.weight))
            yield tuple(w.permute(order).contiguous().numpy() for w in weights)  # type: ignore[misc]
            if layer.bias is not None:
                yield layer.bias.detach().numpy(), _gradient(layer.bias).numpy()


def _gradient(parameter: Any) -> Any:
    return parameter.detach() * 0 if parameter.grad is None else parameter.grad


def theirs(examples: Path, case: Tuple[Any, ...], folder: Path) -> None:
    """Run their code on what `ours` wrote, and write what it finds; within TensorFlow's Python."""
    import tensorflow

    tf = tensorflow.compat.v1
    tf.disable_v2_behavior()

    def group_norm(x: Any, groups: int, center: bool, scale: bool, epsilon: float) -> Any:
        """Group Norm over (N, H, W, C) in contiguous groups."""
        n, h, w, c = (int(size) for size in x.shape)
        split = tf.reshape(x, (n, h, w, groups, c // groups))
        mean, variance = tf.nn.moments(split, [1, 2, 4], keepdims=True)
        x = tf.reshape((split - mean) * tf.rsqrt(variance + epsilon), (n, h, w, c))
        if scale:
            x *= tf.get_variable("gamma", (c,), x.dtype, tf.ones_initializer())
        return x

    vendor = types.ModuleType("tensorflow.python.ipu")
    vendor.normalization_ops = types.SimpleNamespace(group_norm=group_norm)  # type: ignore[attr-defined]
    vendor.nn_ops = types.SimpleNamespace()  # type: ignore[attr-defined]
    sys.modules["tensorflow.python.ipu"] = vendor
    sys.modules["tensorflow"] = tf
    sys.path.insert(0, str(examples / CODE))
    network = importlib.import_module("Models.efficientnet")
    proxies = importlib.import_module("Models.proxy_norm")
    tf.layers = tensorflow.compat.v1.layers

    _, size, _, groups, group_dim, expansion, act = case
    given = np.load(folder / "given.npz")
    options = {
        "model_size": size,
        "precision": "32.32",
        "dataset": "imagenet",
        "width_coefficient": None,
        "depth_coefficient": None,
        "dropout_rate": 0.0,
        "block_survival_prob": 1.0,
        "expand_ratio": expansion,
        "no_se": False,
        "depth_divisor": 8,
        "top_width": 1280,
        "use_relu": act == "relu",
        "group_dim": group_dim,
        "norm_type": "group",
        "groups": groups,
        "norm_epsilon": 1e-3,
        "proxy_norm": True,
        "proxy_epsilon": 0.03,
        "proxy_recompute": True,
    }
    images = tf.constant(given["images"])
    built = network.EfficientNet(options, True)
    logits = built(images)
    own = tf.trainable_variables()
    shapes = [tuple(given[f"weight{i}"].shape) for i in range(len(own))]
    if shapes != [tuple(v.shape) for v in own] or f"weight{len(own)}" in given:
        raise SystemExit(f"their weights are others than ours: {[tuple(v.shape) for v in own]}")
    loss = tf.reduce_sum(logits * tf.constant(given["probe"]))
    gradients = tf.gradients(loss, own)
    activation = built.activation.keywords["activation"]
    made = proxies.make_pn_optimiser(
        tf.train.GradientDescentOptimizer,
        None,
        activation,
        0.03,
        dtype=tf.float32,
        weight_decay=0.0,
    )(0.0)
    wanted = {"logits": logits}
    for number, (variable, gradient) in enumerate(zip(own, gradients)):
        if "proxy" in variable.name:
            rand = made._rand
            forward = made.proxy_fw(variable, rand)
            wanted[f"moments{number}"] = tf.reshape(forward[2:4], (2, -1))
            backward = made.proxy_bw(tf.identity(variable), gradient, rand)
            gradient = tf.reshape(tf.gather(backward, [0, 1, 4, 5]), (4, -1))
        wanted[f"gradient{number}"] = gradient
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        for number, variable in enumerate(own):
            variable.load(given[f"weight{number}"], session)
        np.savez(folder / "found.npz", **session.run(wanted))


def worst(found: Any, expected: Arrays) -> List[str]:
    """Return the largest differences of logits, gradients and moments, over the largest value."""
    if set(found) != set(expected):
        raise SystemExit(f"{sorted(set(found) ^ set(expected))} are not both's")
    errors: Dict[str, float] = {}
    for key in found:
        kind = key.rstrip("0123456789")
        error = np.abs(found[key] - expected[key]).max() / np.abs(expected[key]).max()
        errors[kind] = max(errors.get(kind, 0.0), float(error))
    return [f"{errors[kind]:.1e}" for kind in ("logits", "gradient", "moments")]


def compare(examples: Path, python: str) -> None:
    """Run all cases and print how far theirs, and ours in float32, are from ours in float64."""
    print("| network | norm | activation | which | logits | gradients | moments |")
    print("|---|---|---|---|---:|---:|---:|")
    for number, case in enumerate(CASES):
        with tempfile.TemporaryDirectory() as name:
            expected, single = ours(case, Path(name))
            command = [python, __file__, str(examples), "--case", str(number), "--folder", name]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = dict(np.load(Path(name) / "found.npz"))
        title = f"| {case[0]}, groups of {case[4]} | {case[2]} | {case[6]} |"
        for which, values in (("theirs", found), ("ours in float32", single)):
            print(title, which, "|", " | ".join(worst(values, expected)), "|", flush=True)


def main() -> None:
    """Read the command line; run theirs where it says which case, else both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("examples", type=Path, help="checkout of graphcore/examples at v2.3.0")
    parser.add_argument("--tensorflow", default=sys.executable, help="Python that has TensorFlow")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is None:
        compare(arguments.examples, arguments.tensorflow)
    else:
        theirs(arguments.examples, CASES[arguments.case], arguments.folder)


if __name__ == "__main__":
    main()
