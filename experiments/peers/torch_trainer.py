"""One training step of the Memory Indexer in PyTorch and here: the same batch, maths and processor.

    python experiments/peers/torch_trainer.py [--threads N] [small] [released]

Compares loss and gradients, then times whole steps (forward, backward, clipping, AdamW) of both in turn. PyTorch runs
eagerly with its fused AdamW, on padded batches and keys decoded to f32 before the clock starts; we read the fp8 records.
Fails where loss or gradients differ by more than 1e-4 of the largest.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SIZES = {"small": dict(heads=4, dim=32, rope=16, rounds=7, steps=40),
         "released": dict(heads=128, dim=128, rope=64, rounds=5, steps=3)}
LAYERS = 3


def hadamard(n):
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / n ** 0.5


class Layer(torch.nn.Module):
    def __init__(self, data, layer, size):
        super().__init__()
        parameter = lambda name: torch.nn.Parameter(data[f"{name}.{layer}"].clone())
        self.a, self.norm, self.b, self.w = map(parameter, ("wq_a", "norm", "wq_b", "weights"))
        self.heads, self.dim, self.rope = size["heads"], size["dim"], size["rope"]
        self.hadamard = hadamard(self.dim)

    def forward(self, hidden, keys, ids, cos, sin):
        batch = hidden.shape[0]
        c = hidden @ self.a.T
        c = torch.nn.functional.rms_norm(c, (c.shape[-1],), self.norm[0], 1e-6)
        q = (c @ self.b.T).view(batch, self.heads, self.dim)
        plain, turned = q.split([self.dim - self.rope, self.rope], -1)
        even, odd = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
        q = torch.cat([plain, turned], -1) @ self.hadamard
        w = (hidden @ self.w.T) * (self.dim ** -0.5 * self.heads ** -0.5)
        products = torch.relu(torch.bmm(q, keys[ids].transpose(1, 2)))
        return torch.bmm(w[:, None], products)[:, 0]


def decode(records, dim):
    scale = records[:, dim:].contiguous().view(torch.float32)
    return records[:, :dim].contiguous().view(torch.float8_e4m3fn).to(torch.float32) * scale


class Batch:
    """Samples padded to the longest; share is weight / (its sample's chunks * samples * layers), 0 in the padding."""

    def __init__(self, data, size):
        counts = data["counts"].tolist()
        most = max(counts)
        self.ids = torch.zeros(len(counts), most, dtype=torch.int64)
        self.target, self.share = torch.zeros(len(counts), most), torch.zeros(len(counts), most)
        at = 0
        for i, n in enumerate(counts):
            self.ids[i, :n] = data["ids"][at:at + n]
            self.target[i, :n // 2] = 1
            self.share[i, :n] = data["item_weights"][at:at + n] / (n * len(counts) * LAYERS)
            at += n
        angle = data["positions"].float()[:, None] * data["frequencies"]
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]
        self.hidden = [data[f"hidden.{i}"].float() for i in range(LAYERS)]
        self.keys = [decode(data[f"keys.{i}"], size["dim"]) for i in range(LAYERS)]


def loss_of(layers, batch):
    loss = 0
    for layer, hidden, keys in zip(layers, batch.hidden, batch.keys):
        logits = layer(hidden, keys, batch.ids, batch.cos, batch.sin)
        loss = loss + torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.target, weight=batch.share,
                                                                           reduction="sum")
    return loss


def compare(layers, batch, data):
    loss = loss_of(layers, batch)
    loss.backward()
    worst = {"loss": abs(loss.item() / data["loss"].item() - 1)}
    for i, layer in enumerate(layers):
        for name, p in zip(("wq_a", "norm", "wq_b", "weights"), (layer.a, layer.norm, layer.b, layer.w)):
            ours = data[f"gradient.{name}.{i}"]
            error = ((p.grad - ours).abs().max() / p.grad.abs().max()).item()
            worst[name] = max(worst.get(name, 0), error)
    return worst


def run(name):
    size = SIZES[name]
    with tempfile.TemporaryDirectory() as directory:
        ours = subprocess.Popen([f"{ROOT}/lsa", f"{ROOT}/experiments/peers/torch_trainer.lua", directory, name,
                                 str(torch.get_num_threads())],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        print(f"{name}: {ours.stdout.readline().strip()}", flush=True)
        data = load_file(f"{directory}/batch.safetensors")
    batch = Batch(data, size)
    layers = torch.nn.ModuleList(Layer(data, i, size) for i in range(LAYERS))
    worst = compare(layers, batch, data)
    print("  largest difference of the largest value: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    del data
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss_of(layers, batch).backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
        optimizer.step()

    def time_torch(n):
        times = []
        for _ in range(n):
            began = time.perf_counter()
            step()
            times.append((time.perf_counter() - began) * 1e3)
        return statistics.median(times)

    def time_ours(n):
        ours.stdin.write(f"time {n}\n")
        ours.stdin.flush()
        return float(ours.stdout.readline())

    time_torch(2), time_ours(2)
    pairs = [(time_ours(size["steps"]), time_torch(size["steps"])) for _ in range(size["rounds"])]
    ours.stdin.close()
    ours.wait()
    ratio = statistics.median(t / o for o, t in pairs)
    print(f"  step: ours {statistics.median(o for o, _ in pairs):.2f} ms, PyTorch "
          f"{statistics.median(t for _, t in pairs):.2f} ms, ratio {ratio:.2f}", flush=True)
    print(f"  fastest: ours {min(o for o, _ in pairs):.2f} ms, PyTorch {min(t for _, t in pairs):.2f} ms")
    return all(v <= 1e-4 for v in worst.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int)
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    good = [run(name) for name in options.sizes]
    sys.exit(0 if all(good) else 1)
