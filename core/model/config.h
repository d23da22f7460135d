/* config.json of a DeepSeek-V4 model, in current and legacy spelling. */
#ifndef LSA_CONFIG_H
#define LSA_CONFIG_H
#include <stdint.h>

enum { LSA_LAYER_SLIDING = 0, LSA_LAYER_CSA = 1, LSA_LAYER_HCA = 2 };
enum { LSA_MAX_LAYERS = 512 };

typedef struct lsa_rope_config {
    double theta;
    int32_t yarn; /* 0: plain; 1: YaRN with the fields below */
    double factor, original_positions, beta_fast, beta_slow;
} lsa_rope_config;

typedef struct lsa_config {
    int64_t vocab, hidden, layers, heads, head_dim, rope_dim, q_rank, window, csa_rate, hca_rate;
    int64_t index_heads, index_dim, index_topk, o_groups, o_rank, hc_mult, hc_iters;
    int64_t experts, experts_per_token, shared_experts, moe_hidden, max_positions;
    float norm_eps, hc_eps, routed_scaling, swiglu_limit;
    int32_t scoring; /* LSA_SCORING_*, kernels/moe.h */
    int32_t tied_embeddings;
    lsa_rope_config main_rope, compress_rope;
    int32_t layer_type[512];        /* LSA_LAYER_* */
    int32_t hash_moe[512];          /* 1 where the router is the token's hash */
    int64_t csa_layers, hca_layers; /* how many of each */
} lsa_config;

/* Reads and checks `path` (a config.json). Errors name the file, the field and the value. */
int lsa_config_load(lsa_config *out, const char *path);

/* The same of its text; `name` is for messages. */
int lsa_config_parse(lsa_config *out, const char *text, const char *name);

/* inv_freq [rope_dim / 2], YaRN applied (DeepSeek-V4 report; transformers' yarn without mscale). */
void lsa_rope_frequencies(float *inv_freq, const lsa_rope_config *rope, int64_t rope_dim);

#endif
