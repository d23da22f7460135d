/* Owns the table of the CPU's kernels, and finds those of others. */
#include "kernels/table.h"

#include <stddef.h>

#include "core/base/device.h"
#include "core/base/error.h"

const lsa_kernels lsa_kernels_cpu = {
    .device = LSA_CPU,
    .bytes = sizeof(lsa_kernels),

    .convert = lsa_convert_cpu,
    .copy = lsa_copy_cpu,
    .binary = lsa_binary_cpu,
    .unary = lsa_unary_cpu,
    .scale = lsa_scale_cpu,
    .reduce = lsa_reduce_cpu,
    .argmax = lsa_argmax_cpu,
    .where = lsa_where_cpu,
    .uniform = lsa_uniform_cpu,
    .arith = lsa_arith_cpu,
    .map = lsa_map_cpu,
    .compare = lsa_compare_cpu,
    .sequence = lsa_sequence_cpu,
    .mark = lsa_mark_cpu,
    .fold = lsa_fold_cpu,
    .cumsum = lsa_cumsum_cpu,
    .dot = lsa_dot_cpu,
    .sort = lsa_sort_cpu,
    .sort_workspace = lsa_sort_workspace,
    .take = lsa_take_cpu,
    .histogram = lsa_histogram_cpu,
    .bincount = lsa_bincount_cpu,
    .normal = lsa_normal_cpu,

    .pages = lsa_pages_cpu,
    .density = lsa_density_cpu,
    .spread = lsa_spread_cpu,
    .select_above = lsa_select_above_cpu,
    .select_topk = lsa_select_topk_cpu,
    .select_topp = lsa_select_topp_cpu,
    .select_workspace = lsa_select_workspace,
    .topk = lsa_topk_cpu,
    .topk_workspace = lsa_topk_workspace,
    .ensemble = lsa_ensemble_cpu,
    .lookahead = lsa_lookahead_cpu,
    .lookahead_workspace = lsa_lookahead_workspace,
    .softmax_sum = lsa_softmax_sum_cpu,
    .bound_query = lsa_bound_query_cpu,
    .golden_labels = lsa_golden_labels_cpu,
    .golden_labels_workspace = lsa_golden_labels_workspace,

    .embed = lsa_embed_cpu,
    .linear = lsa_linear_cpu,
    .linear_workspace = lsa_linear_workspace,
    .linears = lsa_linears_cpu,
    .gemm = lsa_gemm_cpu,
    .gemm_bf16 = lsa_gemm_bf16_cpu,
    .gemm_bf16_workspace = lsa_gemm_bf16_workspace,
    .rmsnorm = lsa_rmsnorm_cpu,
    .hadamard = lsa_hadamard_cpu,
    .rope_table = lsa_rope_table_cpu,
    .rope = lsa_rope_cpu,
    .hc_open = lsa_hc_open_cpu,
    .hc_close = lsa_hc_close_cpu,
    .hc_head = lsa_hc_head_cpu,
    .hc_turn = lsa_hc_turn_cpu,
    .moe_route = lsa_moe_route_cpu,
    .swiglu = lsa_swiglu_cpu,
    .experts = lsa_experts_cpu,
    .experts_workspace = lsa_experts_workspace,

    .compress = lsa_compress_cpu,
    .kv_encode = lsa_kv_encode_cpu,
    .kv_decode = lsa_kv_decode_cpu,
    .index_encode = lsa_index_encode_cpu,
    .index_decode = lsa_index_decode_cpu,
    .index_score = lsa_index_score_cpu,
    .index_score_workspace = lsa_index_score_workspace,
    .attention = lsa_attention_cpu,
    .attention_workspace = lsa_attention_workspace,

    .keep_rows = lsa_keep_rows_cpu,
    .extend = lsa_extend_cpu,
    .extend_workspace = lsa_extend_workspace,
    .settle = lsa_settle_cpu,
    .chain = lsa_chain_cpu,
    .pick = lsa_pick_cpu,
    .pick_workspace = lsa_pick_workspace,
    .locate = lsa_locate_cpu,
    .demand = lsa_demand_cpu,
    .attend = lsa_attend_cpu,
    .remember = lsa_remember_cpu,
    .observe = lsa_observe_cpu,
    .gather = lsa_gather_cpu,
    .reside = lsa_reside_cpu,

    .sample = lsa_sample_cpu,
    .advance = lsa_advance_cpu,
    .entropy = lsa_entropy_cpu,

    .rmsnorm_gradient = lsa_rmsnorm_gradient_cpu,
    .index_gather = lsa_index_gather_cpu,
    .index_gradient = lsa_index_gradient_cpu,
    .index_gradient_workspace = lsa_index_gradient_workspace,
    .index_loss = lsa_index_loss_cpu,
    .index_learn = lsa_index_learn_cpu,
    .index_learn_workspace = lsa_index_learn_workspace,
    .adamw = lsa_adamw_cpu,
    .square_sum = lsa_square_sum_cpu,
    .square_sum_workspace = lsa_square_sum_workspace,
};

const lsa_kernels *lsa_kernels_on(int32_t device)
{
    if (device == LSA_CPU) return &lsa_kernels_cpu;
    if (device != LSA_CUDA) {
        lsa_fail(LSA_EARG, "kernels: there is no device %d", device);
        return NULL;
    }
    const lsa_kernels *table = lsa_device_symbol("lsa_kernels_cuda");
    if (table && (table->device != device || table->bytes != (int32_t)sizeof *table)) {
        lsa_fail(LSA_EDEVICE,
                 "kernels: the CUDA library has a table of %d bytes, %zu are wanted: build again",
                 table->bytes, sizeof *table);
        return NULL;
    }
    return table;
}
