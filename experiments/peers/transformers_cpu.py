#!/usr/bin/env python3
"""lsa against Hugging Face transformers on this CPU: prefill of 4,096 tokens and decode behind them, one run.

    pip install torch transformers safetensors        # for the peer alone; lsa needs none of it
    python3 experiments/peers/transformers_cpu.py [--model DIR] [--tokens 4096] [--steps 16] [--rounds 3]

Both take the same tokens and greedy-decode from their own logits, with as many threads as there are cores. lsa runs with
its defaults (kv fp8, compute f32, select full). The two take turns, `rounds` times; medians and their ratios are printed.
"""
import argparse, json, os, random, statistics, subprocess, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

LUA = r"""
local lsa, cjson = require "lsa", require "cjson"
local ffi = require "ffi"
local C = require("lsa.ffi").C
local input = cjson.decode(io.read "*a")
local model = lsa.model(input.model)
local function seconds() return tonumber(C.lsa_clock_ns()) / 1e9 end
local s = model:session{select = "full"}
s:prefill(input.tokens)                       -- warms up
s = model:session{select = "full"}
local t0 = seconds()
local logits = s:prefill(input.tokens)
local prefill = seconds() - t0
local steps = {}
for i = 1, input.steps do
  local token = logits:argmax()
  local t = seconds()
  logits = s:decode(token)
  steps[i] = seconds() - t
end
print(cjson.encode {prefill = prefill, steps = steps})
"""


def run_lsa(model, tokens, steps):
    out = subprocess.run([os.path.join(ROOT, "lsa"), "-e", LUA], input=json.dumps(dict(model=model, tokens=tokens, steps=steps)),
                         capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(out.stderr)
    got = json.loads(out.stdout.strip().splitlines()[-1])
    return got["prefill"], statistics.median(got["steps"])


def open_peer(directory):
    import torch
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
    from safetensors.torch import load_file
    config = DeepseekV4Config.from_pretrained(directory)
    config._attn_implementation = "eager"
    model = DeepseekV4ForCausalLM(config).eval().float()
    missing, unexpected = model.load_state_dict({k: v.float() if v.is_floating_point() else v
                                                 for k, v in load_file(os.path.join(directory, "model.safetensors")).items()}, strict=False)
    if unexpected or [m for m in missing if "inv_freq" not in m]:
        raise SystemExit(f"{directory}: transformers misses {missing} and does not know {unexpected}")
    return torch, model


def run_peer(torch, model, tokens, steps):
    with torch.no_grad():
        ids = torch.tensor([tokens])
        start = time.perf_counter()
        out = model(ids, use_cache=True)
        prefill = time.perf_counter() - start
        times = []
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            start = time.perf_counter()
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            times.append(time.perf_counter() - start)
    return prefill, statistics.median(times)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--model", default=os.path.join(ROOT, "experiments", "models", "needle"))
    a.add_argument("--tokens", type=int, default=4096)
    a.add_argument("--steps", type=int, default=16)
    a.add_argument("--rounds", type=int, default=3)
    o = a.parse_args()
    torch, model = open_peer(o.model)
    rng = random.Random(1)
    tokens = [rng.randrange(32, 127) for _ in range(o.tokens)]
    rows = []
    for _ in range(o.rounds):
        peer, ours = run_peer(torch, model, tokens, o.steps), run_lsa(o.model, tokens, o.steps)
        rows.append((peer[0], ours[0], peer[1], ours[1]))
    pp, lp, pd, ld = (statistics.median(column) for column in zip(*rows))
    import transformers
    print(f"{o.tokens} tokens, {torch.get_num_threads()} threads, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'':10s} {'transformers':>14s} {'lsa':>12s} {'ratio':>8s}")
    print(f"{'prefill':10s} {pp * 1e3:11.1f} ms {lp * 1e3:9.1f} ms {statistics.median(r[0] / r[1] for r in rows):7.1f}x")
    print(f"{'decode':10s} {pd * 1e3:11.2f} ms {ld * 1e3:9.3f} ms {statistics.median(r[2] / r[3] for r in rows):7.1f}x")


main()
