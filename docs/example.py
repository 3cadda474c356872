"""From a norm to a program for IPUs, to be read from top to bottom.

    python docs/example.py

needs no IPU: where the Poplar SDK is not installed, the simulator takes PopTorch's place.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from ipu_proxynorm.backend import poptorch  # the SDK's module, or the simulator
from ipu_proxynorm.ipu import Classification, place
from ipu_proxynorm.memory import predict
from ipu_proxynorm.norm import create_norm_act, parameter_groups

torch.manual_seed(0)
torch.set_num_threads(1)  # the tensors are too small to be worth sharing out

# 1. The norm. Group Norm of 4 groups, scale and shift, ReLU, and Proxy Norm: one module.
layer = create_norm_act("gn4+pn", 16, "relu")
with torch.no_grad():
    layer.weight.normal_(1.0, 0.2)  # γ
    layer.bias.normal_(0.0, 0.5)  # β
x = torch.randn(8, 16, 8, 8)  # (image, channel, height, width)
z = layer(x)

# The same by hand. Proxy Norm subtracts the mean that a Gaussian *proxy* would have behind scale,
# shift and ReLU, and divides by its standard deviation. Here 100,000 quantiles stand for it; the
# layer has a formula. Neither looks at the images, so the size of the batch does not matter.
gamma, beta = layer.weight.detach(), layer.bias.detach()
quantiles = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
proxy = torch.relu(gamma * quantiles.unsqueeze(1) + beta)  # (quantile, channel)
y = nn.functional.group_norm(x, 4, eps=layer.eps)
y = torch.relu(gamma.view(-1, 1, 1) * y + beta.view(-1, 1, 1))
by_hand = (y - proxy.mean(0).view(-1, 1, 1)) / (proxy.var(0) + 0.03).sqrt().view(-1, 1, 1)
print(f"by hand: differs by at most {(z - by_hand).abs().max():.0e}")


# 2. A network. Any module will do; convolutions need no bias before a norm.
def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return a convolution, and norm and activation behind it."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, create_norm_act("gn4+pn", outputs, "relu"))


network = nn.Sequential()
network.add_module("first", block(1, 16, 1))
network.add_module("second", block(16, 32, 2))
network.add_module("third", block(32, 64, 2))
network.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)))

# 3. Two pipeline stages: the IPU of a replica changes where the layer "third" begins.
place(network, ["third"])

# 4. What runs on the IPUs for one micro-batch: pixels to unit scale, the network, the loss.
program = Classification(network, mean=(0.3,), std=(0.38,))

# 5. The layout. Two replicas of two IPUs; each computes 4 images at once (the micro-batch), 4 times
# (gradient accumulation; two stages need 3 or more to be filled) for one update of the weights.
options = poptorch.Options()
options.replicationFactor(2)
options.Training.gradientAccumulation(4)
per_update = 4 * 2 * 4  # images: micro-batch, replicas, gradient accumulation

# 6. The optimiser. Of the norms' parameters only the proxy's (β̃, γ̃) are under weight decay.
optimizer = poptorch.optim.SGD(
    parameter_groups(network, 5e-4), lr=0.1, momentum=0.9, use_combined_accum=False
)

# 7. Does it fit? Predicted from a trace; nothing is compiled for that.
micro_batch = [torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)]
prediction = predict(program, options, micro_batch, optimizer=optimizer, training=True)
for ipu in prediction.ipus:
    print(f"IPU {ipu.ipu}: {ipu.used / 2**20:.0f} MiB, {ipu.utilisation:.0%} of its SRAM")

# 8. The images: 1,797 handwritten digits of 8x8 pixels, every fifth kept for the end.
digits = load_digits()
pixels = torch.tensor(digits.images * 255 / 16).to(torch.uint8).unsqueeze(1)
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
training_pixels, training_labels = pixels[~held_out], labels[~held_out]

# 9. Training. The first call compiles the program; from then on it runs on the (simulated) IPUs.
training = poptorch.trainingModel(program, options, optimizer)
for epoch in range(3):
    losses = []
    for indices in torch.randperm(len(training_labels)).split(per_update)[:-1]:  # full ones only
        loss, right = training(training_pixels[indices], training_labels[indices])
        losses.append(loss.mean())  # of one value a replica
    print(f"epoch {epoch}: loss {torch.stack(losses).mean():.3f}")

# 10. The weights come back to the host's network, which is ordinary PyTorch.
training.copyWeightsToHost()
network.eval()
with torch.no_grad():
    logits = network((pixels[held_out] / 255 - 0.3) / 0.38)
print(f"accuracy: {(logits.argmax(1) == labels[held_out]).float().mean():.1%} of digits not seen")
