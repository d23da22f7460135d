#!/usr/bin/env python3
"""Golden vectors: tiny DeepSeek-V4 models and what Hugging Face transformers computes for them.

    pip install torch transformers safetensors
    python3 make.py OUT [CASE...]        # writes OUT/CASE/{config.json,model.safetensors,golden.safetensors}

A case is a config, a seed and a length; `--config FILE.json --seed N --tokens N --name X` makes a new one,
so the engine can be compared with transformers on any shape. All numbers are fp32, eager, one thread.
"""
import argparse, json, os, sys
import torch
from safetensors.torch import save_file
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as M

SWA, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0}

BASE = dict(vocab_size=64, hidden_size=32, moe_intermediate_size=24, num_attention_heads=4, head_dim=32,
            q_lora_rank=24, num_experts_per_tok=2, n_routed_experts=4, max_position_embeddings=4096,
            hc_mult=4, hc_sinkhorn_iters=20, sliding_window=8, o_groups=2, o_lora_rank=12,
            index_n_heads=8, index_head_dim=16, index_topk=8, partial_rotary_factor=0.5,
            compress_rates={CSA: 4, HCA: 16}, bos_token_id=None, eos_token_id=None, num_nextn_predict_layers=0)


def case(tokens, prefill, seed, layers, mlp=None, **kw):
    c = dict(BASE); c.update(kw)
    c.update(num_hidden_layers=len(layers), layer_types=layers, mlp_layer_types=mlp or ["moe"] * len(layers))
    return dict(config=c, tokens=tokens, prefill=prefill, seed=seed)


CASES = {
    # one layer each: to find which part is wrong
    "swa": case(40, 23, 1, [SWA]),
    "csa": case(101, 37, 2, [CSA]),
    "hca": case(101, 37, 3, [HCA]),
    "hash": case(40, 23, 4, [SWA], ["hash_moe"]),
    # every part together, Flash's layer order and YaRN
    "flash": case(203, 118, 5, [SWA, SWA, CSA, HCA, CSA, HCA, CSA], ["hash_moe"] * 3 + ["moe"] * 4, rope_parameters=YARN),
    # legacy field names and a different geometry
    "odd": case(150, 61, 6, [CSA, HCA, SWA, CSA], head_dim=40, partial_rotary_factor=0.2, num_attention_heads=6,
                o_groups=3, hc_mult=2, hc_sinkhorn_iters=3, n_routed_experts=5, num_experts_per_tok=3, scoring_func="sigmoid",
                index_n_heads=6, index_head_dim=8, index_topk=5, sliding_window=5, compress_rates={CSA: 4, HCA: 8}),
    # the released checkpoint: its config spelling, tensor names, fp8/fp4 weights with e8m0 scales, two shards
    "released": dict(tokens=300, prefill=131, seed=8, released=True, config=dict(
        architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4", vocab_size=64, hidden_size=128, moe_intermediate_size=128,
        num_hidden_layers=4, num_hash_layers=1, compress_ratios=[0, 4, 128, 4, 0], num_nextn_predict_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=128, qk_rope_head_dim=32, q_lora_rank=128, o_groups=2, o_lora_rank=128,
        n_routed_experts=3, n_shared_experts=1, num_experts_per_tok=2, topk_method="noaux_tc", norm_topk_prob=True, scoring_func="sqrtsoftplus",
        routed_scaling_factor=1.5, swiglu_limit=10.0, hidden_act="silu", index_n_heads=8, index_head_dim=32, index_topk=8,
        hc_mult=2, hc_sinkhorn_iters=20, hc_eps=1e-6, sliding_window=8, rms_norm_eps=1e-6, max_position_embeddings=4096,
        rope_theta=10000, compress_rope_theta=160000, bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16", expert_dtype="fp4",
        rope_scaling={"type": "yarn", "factor": 16, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1},
        quantization_config={"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]})),
    # fewer tokens than one window, than one chunk
    "short": case(3, 1, 7, [CSA, HCA]),
    # sizes at the edge: a window of the token and one more, chunks of 2, one output group, 3 streams, nothing a power of two
    "narrow": case(90, 41, 15, [CSA, SWA, CSA], vocab_size=17, hidden_size=20, moe_intermediate_size=12, num_attention_heads=3, head_dim=24,
                   partial_rotary_factor=8 / 24, q_lora_rank=10, o_groups=1, o_lora_rank=7, hc_mult=3, hc_sinkhorn_iters=1, sliding_window=2,
                   index_n_heads=9, index_head_dim=12, index_topk=3, n_routed_experts=3, num_experts_per_tok=1,
                   compress_rates={CSA: 2, HCA: 6}, rope_parameters=YARN),
    # HCA alone, an odd rate, one stream
    "hca_only": case(67, 29, 10, [HCA] * 3, hidden_size=24, head_dim=16, num_attention_heads=4, hc_mult=1, q_lora_rank=16, o_lora_rank=8,
                     moe_intermediate_size=16, compress_rates={CSA: 4, HCA: 5}, scoring_func="sigmoid", routed_scaling_factor=0.7),
    # many experts, hash and learnt routing, tied embeddings, activations that meet swiglu_limit
    "experts": case(48, 20, 11, [SWA, CSA], ["hash_moe", "moe"], hidden_size=24, n_routed_experts=13, num_experts_per_tok=4,
                    moe_intermediate_size=16, swiglu_limit=0.5, tie_word_embeddings=True, index_n_heads=7, hc_mult=2),
}


@torch.no_grad()
def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    for name, p in list(model.named_parameters()) + list(model.named_buffers()):
        r = lambda s=1.0: torch.randn(p.shape, generator=g) * s
        if "inv_freq" in name: continue
        if name.endswith("tid2eid"):
            k, e = p.shape[1], model.config.n_routed_experts
            p.copy_(torch.stack([torch.randperm(e, generator=g)[:k] for _ in range(p.shape[0])]))
        elif "norm" in name: p.copy_(1 + r(0.2))
        elif "embed" in name: p.copy_(r())
        elif name.endswith(("scale",)): p.copy_(0.5 + r(0.1))
        elif name.endswith(("base", "sinks", "position_bias", "e_score_correction_bias", "hc_base")): p.copy_(r(0.5))
        elif p.dim() >= 2: p.copy_(r(p.shape[-1] ** -0.5))
        else: raise SystemExit(f"unhandled parameter {name}")


def record(model, ids):
    """Forward hooks: what each part computes on the whole sequence at once, no cache."""
    out, hooks = {}, []
    keep = lambda k, v: out.__setitem__(k, v.detach().float().contiguous().clone() if v.is_floating_point() else v.contiguous().clone())
    for i, l in enumerate(model.model.layers):
        n = f"layer.{i}."
        hooks.append(l.register_forward_hook(lambda m, a, o, n=n: keep(n + "streams", o[0])))
        hooks.append(l.input_layernorm.register_forward_hook(lambda m, a, o, n=n: keep(n + "attn_input", o[0])))
        hooks.append(l.self_attn.register_forward_hook(lambda m, a, o, n=n: keep(n + "attn_output", o[0][0])))
        hooks.append(l.mlp.register_forward_hook(lambda m, a, o, n=n: keep(n + "moe_output", o[0])))
        c = l.self_attn.compressor
        if c is None: continue
        hooks.append(c.register_forward_hook(lambda m, a, o, n=n: keep(n + "entries", o[0][0, 0])))
        if hasattr(c, "indexer"):
            hooks.append(c.indexer.scorer.register_forward_hook(lambda m, a, o, n=n: [keep(n + "index_query", a[0][0]), keep(n + "index_keys", a[1][0]), keep(n + "index_scores", o[0])] and None))
            hooks.append(c.indexer.register_forward_hook(lambda m, a, o, n=n: keep(n + "index_topk", torch.sort(o[0], -1).values)))
    logits = model(ids, use_cache=False).logits[0]
    for h in hooks: h.remove()
    out["logits"] = logits
    return out


HUB = [("model.embed_tokens.", "embed."), ("lm_head.", "head."), ("model.norm.", "norm."), ("model.hc_head.", "hc_head_"),
       ("hc_head_hc_", "hc_head_"), ("model.layers.", "layers."), ("self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"),
       ("self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"), ("self_attn.compressor.indexer.", "attn.indexer.compressor."),
       ("self_attn.", "attn."), ("mlp.", "ffn."), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
       ("attn_hc.", "hc_attn_"), ("ffn_hc.", "hc_ffn_"), ("attn.sinks", "attn.attn_sink"), ("compressor.kv_norm", "compressor.norm"),
       ("position_bias", "ape"), ("q_a_proj", "wq_a"), ("q_b_proj", "wq_b"), ("q_a_norm", "q_norm"), ("kv_proj", "wkv"),
       ("o_a_proj", "wo_a"), ("o_b_proj", "wo_b"), ("ffn.gate.e_score_correction_bias", "ffn.gate.bias"),
       ("shared_experts.gate_proj", "shared_experts.w1"), ("shared_experts.up_proj", "shared_experts.w3"),
       ("shared_experts.down_proj", "shared_experts.w2")]


def hub_name(k):
    for a, b in HUB: k = k.replace(a, b)
    return k.replace("compressor.gate_proj", "compressor.wgate")


@torch.no_grad()
def released(model, d):
    """The released checkpoint's names and number formats: fp8 e4m3 in 128x128 blocks, fp4 e2m1 experts in 1x32 groups, e8m0 scales,
    two shards and an index. The model is changed in place to what the file says, so transformers' results are for the same weights."""
    lut = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6])
    def scale_of(amax, top): return torch.exp2(torch.ceil(torch.log2(amax.clamp(min=1e-12) / top)))
    def fp8(w):
        b = w.view(w.shape[0] // 128, 128, w.shape[1] // 128, 128)
        s = scale_of(b.abs().amax((1, 3)), 448.0)
        q = (b / s[:, None, :, None]).to(torch.float8_e4m3fn)
        return q.view(w.shape), s.to(torch.float8_e8m0fnu), (q.float() * s[:, None, :, None]).view(w.shape)
    def fp4(w):
        b = w.view(w.shape[0], -1, 32); s = scale_of(b.abs().amax(-1), 6.0); x = b / s[..., None]
        i = (x.abs()[..., None] - lut).abs().argmin(-1); n = i + 8 * (x < 0)
        n = n.view(w.shape); packed = (n[:, 0::2] | (n[:, 1::2] << 4)).to(torch.uint8).view(torch.int8)
        return packed, s.to(torch.float8_e8m0fnu), (torch.where(x < 0, -lut[i], lut[i]) * s[..., None]).view(w.shape)
    out = {}
    for k, v in model.state_dict().items():
        n = hub_name(k)
        if k.endswith("experts.gate_up_proj") or k.endswith("experts.down_proj"):
            for e in range(v.shape[0]):
                parts = {"w1": v[e, :v.shape[1] // 2], "w3": v[e, v.shape[1] // 2:]} if "gate_up" in k else {"w2": v[e]}
                for w, t in parts.items():
                    q, s, back = fp4(t.contiguous()); t.copy_(back)
                    base = n.rsplit(".", 1)[0] + f".{e}.{w}"
                    out[base + ".weight"], out[base + ".scale"] = q, s
        elif k.endswith(("q_a_proj.weight", "q_b_proj.weight", "self_attn.kv_proj.weight", "o_a_proj.weight", "o_b_proj.weight")) or "shared_experts" in k:
            q, s, back = fp8(v); v.copy_(back); out[n] = q; out[n.replace(".weight", ".scale")] = s
        elif v.is_floating_point() and v.dim() >= 2 and not any(x in k for x in ("_hc", "hc_", "position_bias")):
            v.copy_(v.bfloat16().float()); out[n] = v.bfloat16()
        else: out[n] = v.clone()
    names = sorted(out); half = len(names) // 2; index = {}
    for i, part in enumerate((names[:half], names[half:])):
        f = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({k: out[k].contiguous() for k in part}, f"{d}/{f}", metadata={"format": "pt"})
        index.update({k: f for k in part})
    json.dump({"metadata": {"total_size": sum(t.numel() * t.element_size() for t in out.values())}, "weight_map": index},
              open(f"{d}/model.safetensors.index.json", "w"), indent=1)


@torch.no_grad()
def make(name, spec, root):
    torch.set_num_threads(1)
    cfg = DeepseekV4Config(**{k: (dict(v) if isinstance(v, dict) else v) for k, v in spec["config"].items() if k != "quantization_config"})
    cfg._attn_implementation = "eager"
    model = DeepseekV4ForCausalLM(cfg).eval()
    randomise(model, spec["seed"])
    d = os.path.join(root, name); os.makedirs(d, exist_ok=True)
    if spec.get("released"): released(model, d)
    else:
        weights = {k: v.contiguous() for k, v in model.state_dict().items() if not (cfg.tie_word_embeddings and k == "lm_head.weight")}
        save_file(weights, f"{d}/model.safetensors", metadata={"format": "pt"})
    T, P = spec["tokens"], spec["prefill"]
    ids = torch.randint(0, cfg.vocab_size, (1, T), generator=torch.Generator().manual_seed(spec["seed"] + 1000))
    g = record(model, ids)
    out = model(ids[:, :P], use_cache=True); cache = out.past_key_values
    rows = [out.logits[0]]
    for t in range(P, T):
        rows.append(model(ids[:, t:t + 1], past_key_values=cache, use_cache=True).logits[0])
    g["logits_decode"] = torch.cat(rows)
    g["input_ids"] = ids[0]
    drift = (g["logits"] - g["logits_decode"]).abs().max().item()
    gap = 9.0
    for k, v in g.items():
        if k.endswith("index_scores"):
            for t in range(T):
                n = (t + 1) // cfg.compress_rates[CSA]
                if n > cfg.index_topk:
                    s = v[t, :n].sort(descending=True).values
                    gap = min(gap, (s[cfg.index_topk - 1] - s[cfg.index_topk]).item())
    meta = {"transformers": __import__("transformers").__version__, "tokens": str(T), "prefill": str(P), "seed": str(spec["seed"])}
    save_file({k: v.contiguous() for k, v in g.items()}, f"{d}/golden.safetensors", metadata=meta)
    if spec.get("released"): json.dump(spec["config"], open(f"{d}/config.json", "w"), indent=2)
    else: cfg.to_json_file(f"{d}/config.json", use_diff=False)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits in ±{g['logits'].abs().max():.2f}, "
          f"cache drift {drift:.1e}, smallest top-k gap {gap:.1e}")


if __name__ == "__main__":
    a = argparse.ArgumentParser()
    a.add_argument("out"); a.add_argument("case", nargs="*"); a.add_argument("--config"); a.add_argument("--name", default="case")
    a.add_argument("--seed", type=int, default=0); a.add_argument("--tokens", type=int, default=128); a.add_argument("--prefill", type=int, default=64)
    o = a.parse_args()
    if o.config:
        make(o.name, dict(config=json.load(open(o.config)), seed=o.seed, tokens=o.tokens, prefill=o.prefill), o.out)
    else:
        for n in o.case or CASES: make(n, CASES[n], o.out)
