// Owns the table of the GPU's kernels. What is not named here has no CUDA half.
#include <stdint.h>

extern "C" {
#include "kernels/table.h"

extern const lsa_kernels lsa_kernels_cuda;
}

static lsa_kernels all(void)
{
    lsa_kernels k = {};
    k.device = LSA_CUDA;
    k.bytes = sizeof k;

    k.convert = lsa_convert_cuda;
    k.copy = lsa_copy_cuda;
    k.binary = lsa_binary_cuda;
    k.unary = lsa_unary_cuda;
    k.scale = lsa_scale_cuda;
    k.reduce = lsa_reduce_cuda;
    k.argmax = lsa_argmax_cuda;
    k.where = lsa_where_cuda;
    k.uniform = lsa_uniform_cuda;

    k.pages = lsa_pages_cuda;
    k.density = lsa_density_cuda;
    k.spread = lsa_spread_cuda;
    k.select_above = lsa_select_above_cuda;
    k.select_topk = lsa_select_topk_cuda;
    k.select_topp = lsa_select_topp_cuda;
    k.select_workspace = lsa_select_workspace_cuda;
    k.topk = lsa_topk_cuda;
    k.topk_workspace = lsa_topk_workspace;
    k.ensemble = lsa_ensemble_cuda;
    k.lookahead = lsa_lookahead_cuda;
    k.lookahead_workspace = lsa_lookahead_workspace_cuda;
    k.softmax_sum = lsa_softmax_sum_cuda;
    k.bound_query = lsa_bound_query_cuda;

    k.gather = lsa_gather_cuda;
    k.reside = lsa_reside_cuda;

    k.embed = lsa_embed_cuda;
    k.linear = lsa_linear_cuda;
    k.linear_workspace = lsa_linear_workspace_cuda;
    k.linears = lsa_linears_cuda;
    k.gemm = lsa_gemm_cuda;
    k.rmsnorm = lsa_rmsnorm_cuda;
    k.hadamard = lsa_hadamard_cuda;
    k.rope_table = lsa_rope_table_cuda;
    k.rope = lsa_rope_cuda;
    k.hc_open = lsa_hc_open_cuda;
    k.hc_close = lsa_hc_close_cuda;
    k.hc_head = lsa_hc_head_cuda;
    k.hc_turn = lsa_hc_turn_cuda;
    k.moe_route = lsa_moe_route_cuda;
    k.swiglu = lsa_swiglu_cuda;
    k.experts = lsa_experts_cuda;
    k.experts_workspace = lsa_experts_workspace_cuda;

    k.compress = lsa_compress_cuda;
    k.kv_encode = lsa_kv_encode_cuda;
    k.kv_decode = lsa_kv_decode_cuda;
    k.index_encode = lsa_index_encode_cuda;
    k.index_decode = lsa_index_decode_cuda;
    k.index_score = lsa_index_score_cuda;
    k.index_score_workspace = lsa_index_score_workspace;
    k.attention = lsa_attention_cuda;
    k.attention_workspace = lsa_attention_workspace_cuda;

    k.pick = lsa_pick_cuda;
    k.pick_workspace = lsa_pick_workspace_cuda;
    k.locate = lsa_locate_cuda;
    k.demand = lsa_demand_cuda;
    k.attend = lsa_attend_cuda;
    k.keep_rows = lsa_keep_rows_cuda;
    k.extend = lsa_extend_cuda;
    k.extend_workspace = lsa_extend_workspace_cuda;
    k.settle = lsa_settle_cuda;
    k.chain = lsa_chain_cuda;
    k.remember = lsa_remember_cuda;
    k.observe = lsa_observe_cuda;

    k.sample = lsa_sample_cuda;
    k.advance = lsa_advance_cuda;
    k.entropy = lsa_entropy_cuda;

    k.rmsnorm_gradient = lsa_rmsnorm_gradient_cuda;
    k.index_learn = lsa_index_learn_cuda;
    k.index_learn_workspace = lsa_index_learn_workspace_cuda;
    k.adamw = lsa_adamw_cuda;
    k.square_sum = lsa_square_sum_cuda;
    k.square_sum_workspace = lsa_square_sum_workspace;
    return k;
}

const lsa_kernels lsa_kernels_cuda = all();
