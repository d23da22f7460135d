#!/usr/bin/env python3
"""lsa against llama.cpp on a model of DeepSeek-V4-Flash's shape with random weights: prefill, and decode behind it, one run.

    pip install llama-cpp-python gguf numpy         # or xllamacpp, a wheel, where nothing is to be compiled; lsa needs none of it
    python3 experiments/peers/llama_cpp_cpu.py [--tokens 512] [--steps 16] [--rounds 3] [--threads N] [--weights released | bf16]
                                           [--layers 4] [--experts 16] [--file PATH] [--library libllama.so] [--avx2]

Both have V4-Flash's architecture: hyper-connections, CSA and HCA layers, routed experts; hidden 4096, 64 heads of 512, so many
layers and experts. Weights here are fp8 and the experts' fp4, as DeepSeek stores them, there Q8_0 and MXFP4; or bf16 in both, which
takes more memory. They are random, so that no answer is compared: a shape's time hardly depends on them. Nothing is downloaded: the
script writes the GGUF, to a temporary folder where no --file is given, and lsa makes its model in memory. llama-cpp-python is built for
this processor; wheels have no AVX-512, and with --avx2 lsa uses none, either. The two take turns; medians and their ratios are printed.
"""
import argparse, ctypes, glob, importlib.util, json, os, random, statistics, subprocess, tempfile, time

import gguf
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

LUA = r"""
local cjson, lsa = require "cjson", require "lsa"
local C = require("lsa.ffi").C
local function seconds() return tonumber(C.lsa_clock_ns()) / 1e9 end
local model
for line in io.lines() do
  local input = cjson.decode(line)
  if input.threads then
    C.lsa_threads_set(input.threads)
    if input.avx2 then C.lsa_cpu_limit(C.LSA_CPU_AVX2) end
    model = lsa.model{config = "flash", random = 1, layers = input.layers, experts = input.experts, vocab = input.vocab, weights = input.weights,
      compute = input.compute}
    local config = {}
    for _, name in ipairs {"vocab", "hidden", "layers", "heads", "head_dim", "rope_dim", "q_rank", "window", "index_heads", "index_dim",
      "index_topk", "o_groups", "o_rank", "hc_mult", "hc_iters", "experts", "experts_per_token", "shared_experts", "moe_hidden"} do
      config[name] = tonumber(model.config[name])
    end
    print(cjson.encode(config))
  else
    local s, steps = model:session{select = "full"}, {}
    local start = seconds()
    local logits = s:prefill(input.tokens)
    local prefill = seconds() - start
    for i = 1, input.steps do
      local token = logits:argmax()
      start = seconds()
      logits = s:decode(token)
      steps[i] = seconds() - start
    end
    s:close()
    print(cjson.encode {prefill = prefill, steps = steps})
  end
  io.stdout:flush()
end
"""


class Ours:
    def __init__(self, options):
        self.process = subprocess.Popen([os.path.join(ROOT, "lsa"), "-e", LUA], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.config = self.ask(threads=options.threads, layers=options.layers, experts=options.experts, vocab=options.vocab,
                               weights=options.weights, avx2=options.avx2, compute="bf16" if options.weights == "bf16" else "f32")

    def ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("lsa has ended")
        return json.loads(line)

    def run(self, tokens, steps):
        got = self.ask(tokens=tokens, steps=steps)
        return got["prefill"], statistics.median(got["steps"])


def blocks(kind, shape, rng):
    """Random weights of rows of 32 n in one of ggml's formats, of a size that keeps a row's product near its input's."""
    *rows, cols = shape
    scale = cols ** -0.5
    if kind == "bf16":
        values = (rng.standard_normal(shape, dtype=np.float32) * scale).view(np.uint32)
        return (values >> 16).astype(np.uint16).view(np.uint8), gguf.GGMLQuantizationType.BF16
    n = cols // 32
    if kind == "q8_0":
        out = np.empty((*rows, n, 34), np.uint8)
        out[..., :2] = np.full(1, scale / 74, np.float16).view(np.uint8)
        out[..., 2:] = rng.integers(0, 256, (*rows, n, 32), np.uint8)
        return out.reshape(*rows, -1), gguf.GGMLQuantizationType.Q8_0
    out = rng.integers(0, 256, (*rows, n, 17), np.uint8)
    out[..., 0] = 127 + round(np.log2(scale / 3))
    return out.reshape(*rows, -1), gguf.GGMLQuantizationType.MXFP4


def write_gguf(path, c, weights):
    rng, writer = np.random.default_rng(1), gguf.GGUFWriter(path, "deepseek4")
    ratios = [0 if i < 2 else 4 if i % 2 == 0 else 128 for i in range(c["layers"])]
    hash_layers = min(3, c["layers"])
    dense, experts = ("bf16", "bf16") if weights == "bf16" else ("q8_0", "mxfp4")
    key = lambda name: "deepseek4." + name
    for name, value in {
            "vocab_size": c["vocab"], "context_length": 65536, "embedding_length": c["hidden"], "block_count": c["layers"],
            "attention.head_count": c["heads"], "attention.head_count_kv": 1, "attention.key_length": c["head_dim"],
            "attention.value_length": c["head_dim"], "attention.q_lora_rank": c["q_rank"], "attention.sliding_window": c["window"],
            "attention.indexer.head_count": c["index_heads"], "attention.indexer.key_length": c["index_dim"],
            "attention.indexer.top_k": c["index_topk"], "attention.output_group_count": c["o_groups"],
            "attention.output_lora_rank": c["o_rank"], "rope.dimension_count": c["rope_dim"], "hyper_connection.count": c["hc_mult"],
            "hyper_connection.sinkhorn_iterations": c["hc_iters"], "hash_layer_count": hash_layers, "expert_count": c["experts"],
            "expert_used_count": c["experts_per_token"], "expert_shared_count": c["shared_experts"],
            "expert_feed_forward_length": c["moe_hidden"], "expert_gating_func": 4, "rope.scaling.original_context_length": 65536}.items():
        writer.add_uint32(key(name), int(value))
    for name, value in {"attention.layer_norm_rms_epsilon": 1e-6, "attention.compress_rope_freq_base": 160000.0, "hyper_connection.epsilon": 1e-6,
                        "rope.freq_base": 10000.0, "rope.scaling.factor": 16.0, "expert_weights_scale": 1.5}.items():
        writer.add_float32(key(name), value)
    writer.add_string(key("rope.scaling.type"), "yarn")
    writer.add_bool(key("expert_weights_norm"), True)
    writer.add_array(key("attention.compress_ratios"), ratios)
    writer.add_array(key("swiglu_clamp_exp"), [10.0] * c["layers"])
    writer.add_string("tokenizer.ggml.model", "no_vocab")

    def add(name, shape, kind):
        data, dtype = blocks(kind, shape, rng)
        writer.add_tensor(name, data, raw_dtype=dtype)

    def plain(name, shape, value):
        writer.add_tensor(name, np.full(shape, value, np.float32))

    hidden, dim, heads, mix = c["hidden"], c["head_dim"], c["heads"], (2 + c["hc_mult"]) * c["hc_mult"]
    streams = c["hc_mult"] * hidden
    add("token_embd.weight", (c["vocab"], hidden), "bf16")
    add("output.weight", (c["vocab"], hidden), "bf16")
    plain("output_norm.weight", hidden, 1)
    plain("output_hc_fn.weight", (c["hc_mult"], streams), 1e-3)
    plain("output_hc_base.weight", c["hc_mult"], 0)
    plain("output_hc_scale.weight", 1, 1)
    for i, ratio in enumerate(ratios):
        at = f"blk.{i}."
        for name, shape in {"attn_q_a": (c["q_rank"], hidden), "attn_q_b": (heads * dim, c["q_rank"]), "attn_kv": (dim, hidden),
                            "attn_output_a": (c["o_groups"] * c["o_rank"], heads * dim // c["o_groups"]),
                            "attn_output_b": (hidden, c["o_groups"] * c["o_rank"]),
                            "ffn_gate_shexp": (c["shared_experts"] * c["moe_hidden"], hidden),
                            "ffn_up_shexp": (c["shared_experts"] * c["moe_hidden"], hidden),
                            "ffn_down_shexp": (hidden, c["shared_experts"] * c["moe_hidden"])}.items():
            add(at + name + ".weight", shape, dense)
        for name, shape in {"ffn_gate_exps": (c["moe_hidden"], hidden), "ffn_up_exps": (c["moe_hidden"], hidden),
                            "ffn_down_exps": (hidden, c["moe_hidden"])}.items():
            add(at + name + ".weight", (c["experts"], *shape), experts)
        for name, n in {"attn_norm": hidden, "attn_q_a_norm": c["q_rank"], "attn_kv_a_norm": dim, "ffn_norm": hidden}.items():
            plain(at + name + ".weight", n, 1)
        plain(at + "attn_sinks.weight", heads, 0)
        for part in "attn", "ffn":
            plain(at + f"hc_{part}_fn.weight", (mix, streams), 1e-3)
            plain(at + f"hc_{part}_base.weight", mix, 0)
            plain(at + f"hc_{part}_scale.weight", 3, 1)
        writer.add_tensor(at + "ffn_gate_inp.weight", rng.standard_normal((c["experts"], hidden), dtype=np.float32) * hidden ** -0.5)
        if i < hash_layers:
            ids = np.array([random.Random(t).sample(range(c["experts"]), c["experts_per_token"]) for t in range(c["vocab"])], np.int32)
            writer.add_tensor(at + "ffn_gate_tid2eid.weight", ids)
        else:
            plain(at + "exp_probs_b.bias", c["experts"], 0)
        if not ratio:
            continue
        wide = 2 if ratio == 4 else 1
        for part, n in {"attn": dim, "indexer": c["index_dim"]}.items() if ratio == 4 else {"attn": dim}.items():
            add(at + f"{part}_compressor_kv.weight", (wide * n, hidden), "bf16")
            add(at + f"{part}_compressor_gate.weight", (wide * n, hidden), "bf16")
            plain(at + f"{part}_compressor_ape.weight", (ratio, wide * n), 0)
            plain(at + f"{part}_compressor_norm.weight", n, 1)
        if ratio == 4:
            add(at + "indexer.proj.weight", (c["index_heads"], hidden), "bf16")
            add(at + "indexer.attn_q_b.weight", (c["index_heads"] * c["index_dim"], c["q_rank"]), dense)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def find_library():
    """llama.cpp's functions in what pip installed."""
    for package, pattern in ("llama_cpp", "lib*/libllama.so"), ("xllamacpp", "xllamacpp*.so"):
        found = importlib.util.find_spec(package)
        for folder in found.submodule_search_locations if found else []:
            for path in glob.glob(os.path.join(folder, pattern)):
                return path
    raise SystemExit("no llama.cpp: pip install llama-cpp-python or xllamacpp, or give --library")


class Blob(ctypes.Structure):
    """A structure that is passed by value, larger than llama.cpp's own, of which this looks at the first fields only."""
    _fields_ = [("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32), ("n_ubatch", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 500)]


class Theirs:
    def __init__(self, path, options, room):
        self.path, self.vocab, self.said = options.library or find_library(), options.vocab, []
        self.lib = ctypes.CDLL(self.path)
        for name, result, *arguments in (
                ("llama_model_default_params", Blob), ("llama_context_default_params", Blob),
                ("llama_model_load_from_file", ctypes.c_void_p, ctypes.c_char_p, Blob),
                ("llama_init_from_model", ctypes.c_void_p, ctypes.c_void_p, Blob),
                ("llama_set_n_threads", None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32),
                ("llama_batch_get_one", Blob, ctypes.c_void_p, ctypes.c_int32), ("llama_decode", ctypes.c_int32, ctypes.c_void_p, Blob),
                ("llama_synchronize", None, ctypes.c_void_p), ("llama_get_memory", ctypes.c_void_p, ctypes.c_void_p),
                ("llama_memory_clear", None, ctypes.c_void_p, ctypes.c_bool),
                ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int32)):
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = kind(lambda level, text, _: self.said.append(text.decode(errors="replace")))
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        if not self.model:
            self.fail("does not load the model")
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, options.piece, options.piece
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            self.fail("makes no context")
        self.lib.llama_set_n_threads(self.context, options.threads, options.threads)

    def fail(self, what):
        raise SystemExit(f"{self.path} {what}:\n" + "".join(self.said[-8:]))

    def decode(self, tokens):
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))):
            self.fail("decodes nothing")
        self.lib.llama_synchronize(self.context)

    def best(self):
        return int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, -1), (self.vocab,)).argmax())

    def run(self, tokens, steps, piece):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        start = time.perf_counter()
        for i in range(0, len(tokens), piece):
            self.decode(tokens[i:i + piece])
        prefill, times = time.perf_counter() - start, []
        for _ in range(steps):
            token = self.best()
            start = time.perf_counter()
            self.decode([token])
            times.append(time.perf_counter() - start)
        return prefill, statistics.median(times)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--tokens", type=int, default=512)
    a.add_argument("--steps", type=int, default=16)
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a.add_argument("--weights", choices=["released", "bf16"], default="released")
    a.add_argument("--layers", type=int, default=4)
    a.add_argument("--experts", type=int, default=16)
    a.add_argument("--vocab", type=int, default=4096)
    a.add_argument("--file", help="the GGUF, which is written where it is missing; else a temporary one")
    a.add_argument("--avx2", action="store_true", help="lsa uses AVX2 at most")
    a.add_argument("--library", help="llama.cpp's libllama.so; else what pip installed")
    options = a.parse_args()
    options.piece = 512
    ours = Ours(options)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or os.path.join(folder, "model.gguf")
        if not os.path.exists(path):
            write_gguf(path, ours.config, options.weights)
        theirs = Theirs(path, options, options.tokens + options.steps + 64)
        generator = random.Random(1)
        tokens = [generator.randrange(options.vocab) for _ in range(options.tokens)]
        results = {"lsa": [], "llama.cpp": []}
        for turn in range(options.rounds + 1):                # the first one warms up
            for name, run in ("lsa", lambda: ours.run(tokens, options.steps)), ("llama.cpp", lambda: theirs.run(tokens, options.steps, options.piece)):
                result = run()
                if turn:
                    results[name].append(result)
    c = ours.config
    print(f"V4-Flash's shape: {c['layers']} layers, hidden {c['hidden']}, {c['heads']} heads of {c['head_dim']}, {c['experts_per_token']} of {c['experts']} "
          f"experts, {options.weights} weights; {options.threads} threads, {options.tokens} tokens; {os.path.basename(theirs.path)}")
    prefill = {name: statistics.median(r[0] for r in runs) for name, runs in results.items()}
    decode = {name: statistics.median(r[1] for r in runs) for name, runs in results.items()}
    for name in results:
        print(f"{name:10} prefill {options.tokens / prefill[name]:8.1f} tokens/s   decode {1e3 * decode[name]:8.2f} ms a token")
    print(f"lsa is {prefill['llama.cpp'] / prefill['lsa']:.2f} x as fast in prefill, {decode['llama.cpp'] / decode['lsa']:.2f} x in decode")


if __name__ == "__main__":
    main()
