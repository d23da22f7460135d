#!/usr/bin/env python3
"""Index scoring and top-k in PyTorch and here: the same numbers and as many threads, one run.

    pip install torch numpy                        # for the peer alone; lsa needs none of it
    python3 experiments/peers/torch_ops.py [--threads N] [--rounds 15]

Scores are sum over heads of w ReLU(q . k), of DeepSeek-V4-Flash's 64 heads of 128 and of a small model's 4 of 32; keys are bf16 in
both, and products f32 there and of bf16 here where the processor has them ("bf16"), or f32 in both. Top-k are the k largest of a row, in
any order. The two take turns by case; the least time of `rounds` is taken, because other processes only ever add to it. Prints
milliseconds and how many times as fast lsa is; fails where the two differ.
"""
import argparse, os, subprocess, tempfile, time

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# name, tokens, heads, dim, keys, products
SCORES = [("1 x 64 heads x 128, 262144 keys", 1, 64, 128, 262144, "f32"), ("1 x 64 heads x 128, 262144 keys", 1, 64, 128, 262144, "bf16"),
          ("64 x 64 heads x 128, 16384 keys", 64, 64, 128, 16384, "f32"), ("64 x 64 heads x 128, 16384 keys", 64, 64, 128, 16384, "bf16"),
          ("512 x 4 heads x 32, 4096 keys", 512, 4, 32, 4096, "f32")]
# rows, n, k
TOPK = [(1, 262144, 512), (1, 262144, 35389), (64, 16384, 512), (512, 2048, 64)]

# Reads "score FOLDER PRODUCTS ROUNDS" or "topk FOLDER K ROUNDS" by lines; answers with the least time in ms, its result in FOLDER/out.npy.
LUA = r"""
local lsa = require "lsa"
local C = require("lsa.ffi").C
C.lsa_threads_set(tonumber(arg[1]))
for line in io.lines() do
  local what, folder, how, rounds = line:match "(%S+) (%S+) (%S+) (%S+)"
  local run
  if what == "score" then
    local q, w = lsa.load(folder .. "/q.npy"), lsa.load(folder .. "/w.npy")
    local keys = lsa.kernels.index_encode{x = lsa.load(folder .. "/k.npy"), format = "bf16"}
    run = function() return lsa.kernels.index_score{q = q, w = w, keys = keys, format = "bf16", compute = how} end
  else
    local x = lsa.load(folder .. "/x.npy")
    run = function() return (lsa.kernels.topk{scores = x, k = tonumber(how)}) end
  end
  local least, out = math.huge
  for _ = 1, tonumber(rounds) do
    local start = C.lsa_clock_ns()
    out = run()
    least = math.min(least, tonumber(C.lsa_clock_ns() - start))
  end
  lsa.save(folder .. "/out.npy", out)
  print(least / 1e6)
  io.stdout:flush()
end
"""


def least(run, rounds):
    best, out = float("inf"), None
    for _ in range(rounds):
        start = time.perf_counter()
        out = run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3, out


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a.add_argument("--rounds", type=int, default=15)
    options = a.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "ours.lua")
        with open(script, "w") as file:
            file.write(LUA)
        ours = subprocess.Popen([os.path.join(ROOT, "lsa"), script, str(options.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def ask(what, how):
            ours.stdin.write(f"{what} {folder} {how} {options.rounds}\n")
            ours.stdin.flush()
            line = ours.stdout.readline()
            if not line:
                raise SystemExit("lsa has ended")
            return float(line), np.load(os.path.join(folder, "out.npy"))

        def save(**arrays):
            for name, value in arrays.items():
                np.save(os.path.join(folder, name + ".npy"), value)

        print(f"PyTorch {torch.__version__}, {options.threads} threads; least of {options.rounds}, ms")
        print(f"{'':58}{'PyTorch':>10}{'lsa':>10}{'times':>8}")
        rng = np.random.default_rng(1)
        for name, tokens, heads, dim, n, products in SCORES:
            q, w = rng.standard_normal((tokens, heads, dim), np.float32), rng.random((tokens, heads), np.float32)
            k = torch.from_numpy(rng.standard_normal((n, dim), np.float32)).bfloat16()
            save(q=q, w=w, k=k.float().numpy())
            kind = torch.bfloat16 if products == "bf16" else torch.float32
            keys, queries, weights = k.to(kind), torch.from_numpy(q).to(kind), torch.from_numpy(w)
            step = max(1, 2 ** 26 // (heads * n))                    # tokens whose products fit 256 MB

            def score():
                parts = [torch.einsum("thn,th->tn", torch.relu(queries[i:i + step] @ keys.T).float(), weights[i:i + step]) for i in range(0, tokens, step)]
                return torch.cat(parts)

            theirs, want = least(score, options.rounds)
            mine, got = ask("score", products)
            far = np.abs(got - want.numpy()).max() / np.abs(want.numpy()).max()
            if not far <= (0.02 if products == "bf16" else 1e-5):
                raise SystemExit(f"{name}, {products}: scores differ by {far:.1e} of the largest")
            print(f"{'index scoring ' + name + ', ' + products:58}{theirs:10.3f}{mine:10.3f}{theirs / mine:8.2f}")
        for rows, n, k in TOPK:
            x = rng.standard_normal((rows, n), np.float32)
            save(x=x)
            theirs, (_, want) = least(lambda: torch.topk(torch.from_numpy(x), k, sorted=False), options.rounds)
            mine, got = ask("topk", k)
            if not np.array_equal(np.sort(want.numpy(), 1), np.sort(got.reshape(rows, k), 1)):
                raise SystemExit(f"top {k} of {n}: other ids")
            print(f"{f'top {k} of {n}, {rows} rows':58}{theirs:10.3f}{mine:10.3f}{theirs / mine:8.2f}")
        ours.stdin.close()


if __name__ == "__main__":
    main()
