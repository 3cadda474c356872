"""How long a prediction takes in a fresh process, imports apart, of networks as training has them.

python benchmarks/memory_speed.py
"""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time, torch
from ipu_proxynorm.models import create_model
from ipu_proxynorm import memory
from ipu_proxynorm.ipu.pipeline import place
torch.set_num_threads(2)
with torch.device("meta"):
    model = create_model({name!r}, norm={norm!r}, num_classes=1000)
place(model, [])
layout = memory.Layout(optimizer=memory.optimizer_memory("rmsprop"), gradient_accumulation=8)
images = torch.empty({micro_batch}, 3, {size}, {size}, device="meta")
wall, cpu = time.perf_counter(), time.process_time()
prediction = memory.predict(model, layout, [images])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(f"{name:18s}{norm:8s}micro-batch {micro_batch:3d}: {{wall:5.1f}} s, {{cpu:5.1f}} s of CPU; "
      f"{{len(prediction.capture.operators)}} operators, {{prediction.verdict.name}}")
"""


def main() -> None:
    """Measure each in a process of its own."""
    for name, norm, micro_batch, size in (
        ("resnet50", "bn", 16, 224),
        ("resnet50", "gn4+pn", 16, 224),
        ("efficientnet_b5", "gn4", 2, 456),
        ("efficientnet_b5", "ln+pn", 2, 456),
    ):
        program = PROGRAM.format(name=name, norm=norm, micro_batch=micro_batch, size=size)
        subprocess.run([sys.executable, "-c", program], check=True)


if __name__ == "__main__":
    main()
