#!/usr/bin/env python3
"""lsa's tensors against numpy: every op on a million elements, one run.

    pip install numpy                              # for the peer alone; lsa needs none of it
    python3 experiments/peers/numpy_ops.py [--n 1000000] [--rounds 15]

Both compute the same of equal numbers, in one process each, which take turns by op; the least time of `rounds` is taken, because
other processes only ever add to it. Prints milliseconds and lsa / numpy; exits with 1 where one is above 2.
"""
import argparse, os, subprocess, sys, time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# name, numpy's, lsa's. x, y: f32 [n]; m: f32 [n / 1000, 1000]; i, j: i64 [n]; k: i32 [n]; s: 1000 of x
OPS = [
    ("x + y", "x + y", "x + y"),
    ("x * 2.5", "x * np.float32(2.5)", "x * 2.5"),
    ("x / y", "x / y", "x / y"),
    ("x ^ 2", "x ** 2", "x ^ 2"),
    ("x ^ y", "np.abs(x) ** y", "x:abs() ^ y"),
    ("maximum", "np.maximum(x, y)", "x:maximum(y)"),
    ("clamp", "np.clip(x, np.float32(-1), np.float32(1))", "x:clamp(-1, 1)"),
    ("row broadcast", "m + m[0]", "m + m[0]"),
    ("column broadcast", "m + m[:, :1]", "m + m:narrow(1, 0, 1)"),
    ("i64 +", "i + j", "i + j"),
    ("i64 *", "i * j", "i * j"),
    ("i32 +", "k + k", "k + k"),
    ("abs", "np.abs(x)", "x:abs()"),
    ("sqrt", "np.sqrt(np.abs(x))", "x:abs():sqrt()"),
    ("round", "np.round(x)", "x:round()"),
    ("exp", "np.exp(x)", "x:exp()"),
    ("log", "np.log(np.abs(x))", "x:abs():log()"),
    ("tanh", "np.tanh(x)", "x:tanh()"),
    ("x < y", "x < y", "x:lt(y)"),
    ("x < 0.5 (ids)", "np.flatnonzero(x < 0.5)", "x:lt(0.5):ids()"),
    ("isnan", "np.isnan(x)", "x:isnan{mask = true}"),
    ("sum", "x.sum(dtype=np.float64)", "x:sum()"),
    ("sum rows", "m.sum(1)", "m:sum(1)"),
    ("sum columns", "m.sum(0)", "m:sum(0)"),
    ("i64 sum", "i.sum()", "i:sum()"),
    ("max", "x.max()", "x:max()"),
    ("argmax", "x.argmax()", "x:argmax()"),
    ("argmin rows", "m.argmin(1)", "m:argmin(1)"),
    ("var", "x.var(dtype=np.float64)", "x:var()"),
    ("std columns", "m.std(0)", "m:std(0)"),
    ("norm", "np.linalg.norm(x)", "x:norm()"),
    ("count_nonzero", "np.count_nonzero(x)", "x:count_nonzero()"),
    ("softmax", "(lambda e: e / e.sum(1, keepdims=True))(np.exp(m - m.max(1, keepdims=True)))", "m:softmax()"),
    ("logsumexp", "(lambda t: np.log(np.exp(m - t).sum(1, keepdims=True)) + t)(m.max(1, keepdims=True))", "m:logsumexp(1)"),
    ("sort", "np.sort(x)", "x:sort()"),
    ("argsort", "np.argsort(x, kind='stable')", "x:argsort()"),
    ("sort rows", "np.sort(m, 1)", "m:sort(1)"),
    ("i64 sort", "np.sort(i)", "i:sort()"),
    ("median", "np.median(x)", "x:median()"),
    ("quantile", "np.quantile(x, 0.3)", "x:quantile(0.3)"),
    ("unique", "np.unique(i, return_counts=True)", "i:unique()"),
    ("cumsum", "np.cumsum(x)", "x:cumsum()"),
    ("cumsum columns", "np.cumsum(m, 0)", "m:cumsum(0)"),
    ("diff", "np.diff(x)", "x:diff()"),
    ("index", "x[k]", "x:index(k)"),
    ("gather rows", "np.take_along_axis(m, o, 1)", "m:gather(1, o)"),
    ("step 2", "x[::2].copy()", "x:index({step = 2}):copy()"),
    ("flip", "x[::-1].copy()", "x:flip()"),
    ("transpose", "m.T.copy()", "m:transpose():contiguous()"),
    ("cat", "np.concatenate([x, y])", "lsa.cat {x, y}"),
    ("stack", "np.stack([x, y], 1)", "lsa.stack({x, y}, 1)"),
    ("histogram", "np.histogram(x, 50)", "x:histogram(50)"),
    ("bincount", "np.bincount(k)", "k:bincount()"),
    ("dot", "x.dot(y)", "x:dot(y)"),
    ("matmul", "m @ w", "m:matmul(w)"),
    ("rand", "r.random(n, dtype=np.float32)", "lsa.rand(n, 1)"),
    ("randn", "r.standard_normal(n, dtype=np.float32)", "lsa.randn(n, 1)"),
    ("arange", "np.arange(n, dtype=np.int32)", "lsa.arange(n)"),
    ("linspace", "np.linspace(0, 1, n, dtype=np.float32)", "lsa.linspace(0, 1, n)"),
]

LUA = r"""
local lsa = require "lsa"
local C = require("lsa.ffi").C
local n = %d
local x, y = lsa.load "%s/x.npy", lsa.load "%s/y.npy"
local i, j, k = lsa.load "%s/i.npy", lsa.load "%s/j.npy", lsa.load "%s/k.npy"
local m, o = x:reshape {-1, 1000}, lsa.load "%s/o.npy"
local w = y:narrow(0, 0, 1000 * 1000):reshape {1000, 1000}
local environment = {lsa = lsa, x = x, y = y, i = i, j = j, k = k, m = m, o = o, w = w, n = n}
io.stdout:setvbuf "no"
for line in io.lines() do
  local f = setfenv(assert(load("return " .. line)), environment)
  local t0 = C.lsa_clock_ns()
  local result = f()
  print(tonumber(C.lsa_clock_ns() - t0))
  result = nil
end
"""


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=1000000)
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--op", help="only the ops whose name has this")
    a = p.parse_args()
    if a.n < 1000000 or a.n % 1000:
        p.error("n is a multiple of 1000, at least 1000000")
    return a


def main():
    a = arguments()
    import tempfile
    with tempfile.TemporaryDirectory() as place:
        r = np.random.default_rng(1)
        n = a.n
        x, y = r.standard_normal(n, dtype=np.float32), r.standard_normal(n, dtype=np.float32)
        i, j = r.integers(-50000, 50000, n), r.integers(-50000, 50000, n)
        k, o = r.integers(0, n, n, dtype=np.int32), r.integers(0, 1000, (n // 1000, 1000), dtype=np.int32)
        m, w = x.reshape(-1, 1000), y[:1000000].reshape(1000, 1000)
        for name in "xyijko":
            np.save(f"{place}/{name}.npy", locals()[name])
        names = dict(np=np, r=r, n=n, x=x, y=y, i=i, j=j, k=k, m=m, o=o.astype(np.int64), w=w)
        peer = subprocess.Popen([os.path.join(ROOT, "lsa"), "-e", LUA % ((n,) + (place,) * 6)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
        above = 0
        print(f"{'op':18} {'numpy ms':>9} {'lsa ms':>9} {'ratio':>6}")
        for name, ours, theirs in OPS:
            if a.op and a.op not in name:
                continue
            code, best = compile(ours, name, "eval"), [float("inf")] * 2
            for _ in range(a.rounds):
                t0 = time.perf_counter_ns()
                result = eval(code, names)
                best[0] = min(best[0], time.perf_counter_ns() - t0)
                del result
                peer.stdin.write(theirs + "\n")
                peer.stdin.flush()
                best[1] = min(best[1], float(peer.stdout.readline()))
            above += best[1] > 2 * best[0]
            print(f"{name:18} {best[0] / 1e6:9.3f} {best[1] / 1e6:9.3f} {best[1] / best[0]:6.2f}", flush=True)
        peer.stdin.close()
        peer.wait()
    print(f"{above} ops above 2")
    sys.exit(above > 0)


if __name__ == "__main__":
    main()
