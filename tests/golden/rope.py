#!/usr/bin/env python3
"""Inverse frequencies of DeepSeek-V4's two ropes as transformers computes them in fp32.

    pip install torch transformers
    python3 rope.py > rope.json
"""
import json
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4RotaryEmbedding


def yarn(factor, positions, fast, slow):
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": positions, "beta_fast": fast, "beta_slow": slow}


CASES = [
    (512, 64, 10000, 160000, None),
    (512, 64, 10000, 160000, yarn(16, 65536, 32, 1)),    # V4-Flash
    (24, 8, 10000, 160000, yarn(16, 64, 32, 1)),         # the ramp is one step wide
    (128, 64, 50000, 10000, yarn(40, 4096, 16, 2)),
    (64, 64, 10000, 100, yarn(2.5, 7, 32, 1)),           # both ends of the ramp are cut
]

out = []
for head_dim, rope_dim, theta, compress_theta, parameters in CASES:
    fields = dict(head_dim=head_dim, partial_rotary_factor=rope_dim / head_dim, rope_theta=theta, compress_rope_theta=compress_theta)
    if parameters: fields["rope_parameters"] = parameters
    config = DeepseekV4Config(num_hidden_layers=1, layer_types=["sliding_attention"], mlp_layer_types=["moe"],
                              **{k: dict(v) if isinstance(v, dict) else v for k, v in fields.items()})
    rope = DeepseekV4RotaryEmbedding(config)
    out.append(dict(fields, rope_dim=rope_dim, main=[float(f"{x:.9g}") for x in rope.main_inv_freq.tolist()],
                    compress=[float(f"{x:.9g}") for x in rope.compress_inv_freq.tolist()]))
print(json.dumps(out, indent=1))
