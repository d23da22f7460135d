/* Owns config.json: every spelling of DeepSeek-V4's fields, what they default to, and which values make sense. */
#include "core/model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/json.h"
#include "kernels/moe.h"

enum { CONFIG_LIMIT = 16 << 20, MOST_STREAMS = 16 };

/* An object of the file; `where` is "" or the path to it with a dot at the end. */
typedef struct source {
    const char *path;
    const char *where;
    const json_t *object;
} source;

static int wrong(const source *s, const char *field, const char *expected)
{
    char text[160];
    const json_t *value = json_object_get(s->object, field);
    return lsa_fail(LSA_EFORMAT, "%s: %s%s is %s, %s", s->path, s->where, field,
                    lsa_json_show(text, sizeof text, value), expected);
}

/* null counts as absent. */
static const json_t *find(const source *s, const char *field)
{
    const json_t *value = json_object_get(s->object, field);
    return json_is_null(value) ? NULL : value;
}

/* Absent fields leave *out alone, in these three. Python writes 1e6 for some whole numbers. */
static int read_int(int64_t *out, const source *s, const char *field, int64_t least, int64_t most)
{
    const json_t *value = find(s, field);
    if (!value) return LSA_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || number != floor(number) || !(number >= (double)least) ||
        !(number <= (double)most)) {
        char expected[80];
        snprintf(expected, sizeof expected, "a whole number from %lld to %lld is expected",
                 (long long)least, (long long)most);
        return wrong(s, field, expected);
    }
    *out = (int64_t)number;
    return LSA_OK;
}

static int read_positive(double *out, const source *s, const char *field)
{
    const json_t *value = find(s, field);
    if (!value) return LSA_OK;
    double number = json_number_value(value);
    if (!json_is_number(value) || !(number > 0) || !isfinite((float)number))
        return wrong(s, field, "a positive number is expected");
    *out = number;
    return LSA_OK;
}

static int read_float(float *out, const source *s, const char *field)
{
    double number = *out;
    int rc = read_positive(&number, s, field);
    *out = (float)number;
    return rc;
}

static int read_bool(int32_t *out, const source *s, const char *field)
{
    const json_t *value = find(s, field);
    if (!value) return LSA_OK;
    if (!json_is_boolean(value)) return wrong(s, field, "true or false is expected");
    *out = json_is_true(value);
    return LSA_OK;
}

/* Absent, or one string. */
static int expect_string(const source *s, const char *field, const char *only)
{
    const json_t *value = find(s, field);
    char expected[80];
    if (!value || (json_is_string(value) && strcmp(json_string_value(value), only) == 0))
        return LSA_OK;
    snprintf(expected, sizeof expected, "only \"%s\" is supported", only);
    return wrong(s, field, expected);
}

static int expect_bool(const source *s, const char *field, int32_t only)
{
    int32_t value = only;
    int rc = read_bool(&value, s, field);
    if (rc || value == only) return rc;
    return wrong(s, field, only ? "only true is supported" : "only false is supported");
}

static int expect_one(const source *s, const char *field)
{
    int64_t value = 1;
    int rc = read_int(&value, s, field, 0, INT32_MAX);
    if (rc || value == 1) return rc;
    return wrong(s, field, "only 1 is supported");
}

/* The file must say that it is this architecture: absent fields are taken from it. */
static int check_architecture(const source *s)
{
    const json_t *type = find(s, "model_type");
    if (type) return expect_string(s, "model_type", "deepseek_v4");
    const json_t *first = json_array_get(find(s, "architectures"), 0);
    if (json_is_string(first) && strcmp(json_string_value(first), "DeepseekV4ForCausalLM") == 0)
        return LSA_OK;
    return wrong(s, "model_type", "\"deepseek_v4\" is expected");
}

/* What would change the mathematics and is not built. Fields unknown here say nothing about them. */
static int check_unsupported(const source *s)
{
    int rc = expect_string(s, "hidden_act", "silu");
    if (!rc) rc = expect_bool(s, "attention_bias", 0);
    if (!rc) rc = expect_bool(s, "mlp_bias", 0);
    if (!rc) rc = expect_bool(s, "norm_topk_prob", 1);
    if (!rc) rc = expect_string(s, "topk_method", "noaux_tc");
    if (!rc) rc = expect_one(s, "num_key_value_heads");
    if (!rc) rc = expect_one(s, "n_group");
    if (!rc) rc = expect_one(s, "topk_group");
    return rc;
}

static int read_dimensions(lsa_config *c, const source *s)
{
    const struct {
        int64_t *value;
        const char *field;
        int64_t by_default, most;
    } fields[] = {
        {&c->vocab, "vocab_size", 129280, INT32_MAX},
        {&c->hidden, "hidden_size", 4096, 1 << 20},
        {&c->layers, "num_hidden_layers", 43, LSA_MAX_LAYERS},
        {&c->heads, "num_attention_heads", 64, 1 << 16},
        {&c->head_dim, "head_dim", 512, 1 << 16},
        {&c->q_rank, "q_lora_rank", 1024, 1 << 20},
        {&c->window, "sliding_window", 128, INT32_MAX},
        {&c->index_heads, "index_n_heads", 64, 1 << 16},
        {&c->index_dim, "index_head_dim", 128, 1 << 16},
        {&c->index_topk, "index_topk", 512, INT32_MAX},
        {&c->o_groups, "o_groups", 8, 1 << 16},
        {&c->o_rank, "o_lora_rank", 1024, 1 << 20},
        {&c->hc_mult, "hc_mult", 4, MOST_STREAMS},
        {&c->hc_iters, "hc_sinkhorn_iters", 20, 1 << 16},
        {&c->experts, "n_routed_experts", 256, 1 << 16},
        {&c->experts_per_token, "num_experts_per_tok", 6, 1 << 16},
        {&c->shared_experts, "n_shared_experts", 1, 1 << 10},
        {&c->moe_hidden, "moe_intermediate_size", 2048, 1 << 20},
        {&c->max_positions, "max_position_embeddings", 1048576, INT32_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        *fields[i].value = fields[i].by_default;
        int rc = read_int(fields[i].value, s, fields[i].field, 1, fields[i].most);
        if (rc) return rc;
    }
    return LSA_OK;
}

static int read_numbers(lsa_config *c, const source *s)
{
    c->norm_eps = c->hc_eps = 1e-6f;
    c->routed_scaling = 1.5f;
    c->swiglu_limit = 10;
    int rc = read_float(&c->norm_eps, s, "rms_norm_eps");
    if (!rc) rc = read_float(&c->hc_eps, s, "hc_eps");
    if (!rc) rc = read_float(&c->routed_scaling, s, "routed_scaling_factor");
    if (!rc) rc = read_float(&c->swiglu_limit, s, "swiglu_limit");
    if (!rc) rc = read_bool(&c->tied_embeddings, s, "tie_word_embeddings");
    if (rc) return rc;

    const json_t *scoring = find(s, "scoring_func");
    const char *name = scoring ? json_string_value(scoring) : "sqrtsoftplus";
    if (name && strcmp(name, "sqrtsoftplus") == 0)
        c->scoring = LSA_SCORING_SQRTSOFTPLUS;
    else if (name && strcmp(name, "sigmoid") == 0)
        c->scoring = LSA_SCORING_SIGMOID;
    else
        return wrong(s, "scoring_func", "\"sqrtsoftplus\" or \"sigmoid\" is expected");
    return LSA_OK;
}

/* The array `field` when it has an entry for every layer; entries beyond them (multi-token prediction) are ignored. */
static int layer_array(const json_t **out, const lsa_config *c, const source *s, const char *field)
{
    char expected[80];
    const json_t *value = find(s, field);
    if (json_is_array(value) && (int64_t)json_array_size(value) >= c->layers) {
        *out = value;
        return LSA_OK;
    }
    snprintf(expected, sizeof expected, "an array for %lld layers is expected",
             (long long)c->layers);
    return wrong(s, field, expected);
}

static int wrong_entry(const source *s, const char *field, int64_t i, const json_t *value,
                       const char *expected)
{
    char text[160];
    return lsa_fail(LSA_EFORMAT, "%s: %s[%lld] is %s, %s", s->path, field, (long long)i,
                    lsa_json_show(text, sizeof text, value), expected);
}

static int32_t layer_type_of(const json_t *value)
{
    const char *name = json_string_value(value);
    if (!name) return -1;
    if (strcmp(name, "sliding_attention") == 0) return LSA_LAYER_SLIDING;
    if (strcmp(name, "compressed_sparse_attention") == 0) return LSA_LAYER_CSA;
    if (strcmp(name, "heavily_compressed_attention") == 0) return LSA_LAYER_HCA;
    return -1;
}

static int32_t layer_type_of_ratio(const json_t *value)
{
    if (!json_is_integer(value)) return -1;
    switch (json_integer_value(value)) {
    case 0:
        return LSA_LAYER_SLIDING;
    case 4:
        return LSA_LAYER_CSA;
    case 128:
        return LSA_LAYER_HCA;
    default:
        return -1;
    }
}

static int read_layer_types(lsa_config *c, const source *s)
{
    int legacy = !find(s, "layer_types") && find(s, "compress_ratios");
    const char *field = legacy ? "compress_ratios" : "layer_types";
    const json_t *types = NULL;
    int rc = layer_array(&types, c, s, field);
    if (rc) return rc;
    for (int64_t i = 0; i < c->layers; i++) {
        const json_t *value = json_array_get(types, (size_t)i);
        c->layer_type[i] = legacy ? layer_type_of_ratio(value) : layer_type_of(value);
        if (c->layer_type[i] < 0)
            return wrong_entry(s, field, i, value,
                               legacy ? "0, 4 or 128 is expected"
                                      : "sliding_attention, compressed_sparse_attention or "
                                        "heavily_compressed_attention is expected");
        c->csa_layers += c->layer_type[i] == LSA_LAYER_CSA;
        c->hca_layers += c->layer_type[i] == LSA_LAYER_HCA;
    }
    return LSA_OK;
}

static int read_mlp_types(lsa_config *c, const source *s)
{
    const json_t *types = NULL;
    if (!find(s, "mlp_layer_types") && find(s, "num_hash_layers")) {
        int64_t n = 0;
        int rc = read_int(&n, s, "num_hash_layers", 0, INT32_MAX);
        for (int64_t i = 0; i < c->layers; i++) c->hash_moe[i] = i < n;
        return rc;
    }
    int rc = layer_array(&types, c, s, "mlp_layer_types");
    for (int64_t i = 0; !rc && i < c->layers; i++) {
        const json_t *value = json_array_get(types, (size_t)i);
        const char *name = json_string_value(value);
        c->hash_moe[i] = name && strcmp(name, "hash_moe") == 0;
        if (!c->hash_moe[i] && (!name || strcmp(name, "moe") != 0))
            rc = wrong_entry(s, "mlp_layer_types", i, value, "moe or hash_moe is expected");
    }
    return rc;
}

/* compress_rates, with compress_rate_csa and compress_rate_hca over it. */
static int read_rates(lsa_config *c, const source *s)
{
    const json_t *rates = find(s, "compress_rates");
    c->csa_rate = 4;
    c->hca_rate = 128;
    if (rates && !json_is_object(rates)) return wrong(s, "compress_rates", "an object is expected");
    source inner = {s->path, "compress_rates.", rates};
    int rc = read_int(&c->csa_rate, &inner, "compressed_sparse_attention", 1, 1 << 20);
    if (!rc) rc = read_int(&c->hca_rate, &inner, "heavily_compressed_attention", 1, 1 << 20);
    if (!rc) rc = read_int(&c->csa_rate, s, "compress_rate_csa", 1, 1 << 20);
    if (!rc) rc = read_int(&c->hca_rate, s, "compress_rate_hca", 1, 1 << 20);
    return rc;
}

static int read_yarn(lsa_rope_config *rope, const lsa_config *c, const source *s)
{
    double attention_factor = 1;
    rope->yarn = 1;
    rope->beta_fast = 32;
    rope->beta_slow = 1;
    int rc = read_positive(&rope->original_positions, s, "original_max_position_embeddings");
    if (!rc && !(rope->original_positions > 0))
        rc = wrong(s, "original_max_position_embeddings", "YaRN needs it");
    if (rc) return rc;
    rope->factor = (double)c->max_positions / rope->original_positions;
    rc = read_positive(&rope->factor, s, "factor");
    if (!rc) rc = read_positive(&rope->beta_fast, s, "beta_fast");
    if (!rc) rc = read_positive(&rope->beta_slow, s, "beta_slow");
    if (!rc) rc = expect_bool(s, "truncate", 1);
    if (!rc) rc = read_positive(&attention_factor, s, "attention_factor");
    if (!rc && attention_factor != 1) rc = wrong(s, "attention_factor", "only 1 is supported");
    return rc;
}

/* The kind of a rope and, for YaRN, its numbers. The theta is there already. */
static int read_rope(lsa_rope_config *rope, const lsa_config *c, const source *s)
{
    const char *field = find(s, "rope_type") ? "rope_type" : "type";
    const json_t *type = find(s, field);
    const char *name = type ? json_string_value(type) : "default";
    if (name && strcmp(name, "default") == 0) return LSA_OK;
    if (name && strcmp(name, "yarn") == 0) return read_yarn(rope, c, s);
    return wrong(s, field, "\"default\" or \"yarn\" is expected");
}

/* partial_rotary_factor of head_dim, cut to a whole number as transformers does it; 0.33333333333333 is a third. */
static int read_rope_dim(int64_t *rope_dim, const lsa_config *c, const source *s)
{
    double factor = 0;
    int rc = read_positive(&factor, s, "partial_rotary_factor");
    if (rc) return rc;
    if (factor > 1) return wrong(s, "partial_rotary_factor", "at most 1 is expected");
    if (factor > 0) *rope_dim = (int64_t)((double)c->head_dim * factor + 1e-6);
    return LSA_OK;
}

static int read_nested_ropes(lsa_config *c, const source *s, const json_t *ropes)
{
    int64_t dims[2] = {c->rope_dim, c->rope_dim};
    const source parts[2] = {
        {s->path, "rope_parameters.main.", json_object_get(ropes, "main")},
        {s->path, "rope_parameters.compress.", json_object_get(ropes, "compress")}};
    lsa_rope_config *configs[2] = {&c->main_rope, &c->compress_rope};
    for (int i = 0; i < 2; i++) {
        if (!json_is_object(parts[i].object))
            return wrong(s, "rope_parameters", "main and compress are expected, or neither");
        int rc = read_positive(&configs[i]->theta, &parts[i], "rope_theta");
        if (!rc) rc = read_rope(configs[i], c, &parts[i]);
        if (!rc) rc = read_rope_dim(&dims[i], c, &parts[i]);
        if (rc) return rc;
    }
    if (dims[0] != dims[1])
        return lsa_fail(LSA_EFORMAT,
                        "%s: rope_parameters: main has %lld dimensions, compress has %lld", s->path,
                        (long long)dims[0], (long long)dims[1]);
    c->rope_dim = dims[0];
    return LSA_OK;
}

/* Nested rope_parameters win over the flat fields. Flat rope_parameters (or rope_scaling, their older name) are of
 * the compress rope only. */
static int read_ropes(lsa_config *c, const source *s)
{
    const char *field = find(s, "rope_parameters") ? "rope_parameters" : "rope_scaling";
    const json_t *ropes = find(s, field);
    c->rope_dim = c->head_dim * 64 / 512;
    c->main_rope.theta = 10000;
    c->compress_rope.theta = 160000;
    int rc = read_int(&c->rope_dim, s, "qk_rope_head_dim", 1, c->head_dim);
    if (!rc) rc = read_rope_dim(&c->rope_dim, c, s);
    if (!rc) rc = read_positive(&c->main_rope.theta, s, "rope_theta");
    if (!rc) rc = read_positive(&c->compress_rope.theta, s, "compress_rope_theta");
    if (rc || !ropes) return rc;
    if (!json_is_object(ropes)) return wrong(s, field, "an object is expected");
    if (find(s, "rope_parameters") &&
        (json_object_get(ropes, "main") || json_object_get(ropes, "compress")))
        return read_nested_ropes(c, s, ropes);
    char where[32];
    snprintf(where, sizeof where, "%s.", field);
    const source flat = {s->path, where, ropes};
    return read_rope(&c->compress_rope, c, &flat);
}

static int check_thetas(const lsa_config *c, const source *s)
{
    const lsa_rope_config *ropes[2] = {&c->main_rope, &c->compress_rope};
    for (int i = 0; i < 2; i++)
        if (!(ropes[i]->theta > 1))
            return lsa_fail(LSA_EFORMAT, "%s: the %s rope's theta is %g, more than 1 is expected",
                            s->path, i ? "compress" : "main", ropes[i]->theta);
    return LSA_OK;
}

/* Fields that make sense alone but not together. */
static int check_together(const lsa_config *c, const source *s)
{
    if (c->rope_dim < 2 || c->rope_dim % 2 || c->rope_dim > c->head_dim)
        return lsa_fail(
            LSA_EFORMAT,
            "%s: %lld rope dimensions of head_dim %lld, an even number from 2 is expected", s->path,
            (long long)c->rope_dim, (long long)c->head_dim);
    if (c->csa_layers && c->rope_dim > c->index_dim)
        return lsa_fail(LSA_EFORMAT,
                        "%s: index_head_dim is %lld, fewer than the %lld rope dimensions", s->path,
                        (long long)c->index_dim, (long long)c->rope_dim);
    if (c->heads % c->o_groups)
        return lsa_fail(LSA_EFORMAT,
                        "%s: o_groups is %lld, which does not divide num_attention_heads %lld",
                        s->path, (long long)c->o_groups, (long long)c->heads);
    if (c->experts_per_token > c->experts)
        return lsa_fail(LSA_EFORMAT, "%s: num_experts_per_tok is %lld, n_routed_experts only %lld",
                        s->path, (long long)c->experts_per_token, (long long)c->experts);
    return check_thetas(c, s);
}

static int read_config(lsa_config *c, const source *s)
{
    int rc = check_architecture(s);
    if (!rc) rc = check_unsupported(s);
    if (!rc) rc = read_dimensions(c, s);
    if (!rc) rc = read_numbers(c, s);
    if (!rc) rc = read_layer_types(c, s);
    if (!rc) rc = read_mlp_types(c, s);
    if (!rc) rc = read_rates(c, s);
    if (!rc) rc = read_ropes(c, s);
    if (!rc) rc = check_together(c, s);
    return rc;
}

/* Lets go of `root`. */
static int take_config(lsa_config *out, json_t *root, const char *path)
{
    lsa_config config;
    memset(&config, 0, sizeof config);
    int rc = read_config(&config, &(source){path, "", root});
    json_decref(root);
    if (!rc) *out = config;
    return rc;
}

int lsa_config_load(lsa_config *out, const char *path)
{
    json_t *root;
    int rc = lsa_json_read(&root, path, CONFIG_LIMIT);
    return rc ? rc : take_config(out, root, path);
}

int lsa_config_parse(lsa_config *out, const char *text, const char *name)
{
    json_t *root;
    int rc = lsa_json_parse(&root, text, (int64_t)strlen(text), name);
    return rc ? rc : take_config(out, root, name);
}

/* The dimension whose wave turns n times within the original positions. */
static double yarn_dimension(double n, const lsa_rope_config *rope, int64_t rope_dim)
{
    const double two_pi = 6.283185307179586;
    return (double)rope_dim * log(rope->original_positions / (n * two_pi)) / (2 * log(rope->theta));
}

/* In f32 steps, like transformers: far positions multiply a frequency's last bit. */
void lsa_rope_frequencies(float *inv_freq, const lsa_rope_config *rope, int64_t rope_dim)
{
    float low = 0, high = 1;
    if (rope->yarn) {
        double first = fmax(floor(yarn_dimension(rope->beta_fast, rope, rope_dim)), 0);
        double last =
            fmin(ceil(yarn_dimension(rope->beta_slow, rope, rope_dim)), (double)rope_dim - 1);
        if (first == last) last += 0.001;
        low = (float)first;
        high = (float)(last - first);
    }
    for (int64_t i = 0; i < rope_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)rope_dim;
        float period = (float)pow(rope->theta, exponent);
        inv_freq[i] = 1.0f / period;
        if (!rope->yarn) continue;
        float kept = 1.0f - fminf(fmaxf(((float)i - low) / high, 0), 1);
        float stretched = 1.0f / ((float)rope->factor * period);
        inv_freq[i] = stretched * (1.0f - kept) + inv_freq[i] * kept;
    }
}
