-- lsa.kernels.<op>(...): every kernel of kernels/*.h as a checked call on tensors. The header of an op is its contract;
-- print(lsa.kernels.rope) shows its arguments, print(lsa.kernels) all of them. How to read them: operator.lua.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local new = require("lsa.tensor.operator").new
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local M = {}

local function op(name, declaration, run, derive)
  M[name] = new(name, declaration, run, derive)
end

-- Memory on the call's device.
local function held(a, n, dtype)
  return tensor.zeros({n}, dtype):to(a.device)
end

local function doubles(t) return ffi.cast("double *", t.c.data) end

-- Calls with room for n f64, which a result gets, rounded to f32.
local function rounded(a, result, n, call)
  local out = held(a, n, "f64")
  local rc = call(doubles(out))
  if rc < 0 then return rc end
  local y = out:to "cpu":to "f32"
  if a.device == "cuda" then return C.lsa_device_copy(a[result], y:pointer(), y:bytes()) end
  ffi.copy(a[result], y:pointer(), y:bytes())
  return rc
end

-- ---- numbers ----

op("convert", "x any [..]; dtype dtype; > y @dtype [..]",
  function(f, a, given) return f(a.y, a.x, a.rows, a.dtype, given.x.c.dtype, nil) end)

op("copy", "x any [..]; > y @x [..]",
  function(f, a, given)
    local c = given.x.c
    return f(a.y, a.x, C.lsa_dtype_size(c.dtype), c.rank, c.shape, c.stride, c.stride, nil)
  end)

op("binary", "a f32 [..]; b f32 [..]; op = add|sub|mul|div|min|max; > y! f32 [..]",
  function(f, a) return f(a.y, a.a, a.b, a.rows, math.max(a.rows, 1), a.op, nil) end)

op("unary", "x f32 [..]; op = exp|log|sigmoid; > y! f32 [..]",
  function(f, a) return f(a.y, a.x, a.rows, a.op, nil) end)

op("scale", "x! f32 [..]; factor number",
  function(f, a) return f(a.x, a.factor, a.rows, nil) end)

op("reduce", "x f32 [.., n]; op = sum|mean|min|max; > y f32 [..]",
  function(f, a) return f(a.y, a.x, a.rows, a.n, 1, a.op, nil) end)

op("argmax", "x f32 [.., n]; > ids i32 [..]",
  function(f, a) return f(a.ids, a.x, a.rows, a.n, nil) end)

op("where", "x f32 [n]; s set [n]; y f32 [m]; > out! f32 [n]",
  function(f, a) return f(a.out, a.s, a.x, a.y, a.n, a.m == a.n and 1 or 0, nil) end,
  function(a)
    if a.m ~= a.n and a.m ~= 1 then raise("where: y has %d elements, x has %d: as many or one", a.m, a.n) end
  end)

op("uniform", "n integer; seed integer; > y f32 [n]",
  function(f, a) return f(a.y, a.n, a.seed, nil) end)

-- Numbers of these have their own arithmetic.
local NUMBER, WIDE = "f32|f64|i32|i64", "f32|f64|i64"

local function dtype_of(t) return t.c.dtype end

op("arith", "a " .. NUMBER .. " [..]; b @a [..]; op = add|sub|mul|div|min|max|pow; > y @a [..]",
  function(f, a, given)
    local n = math.max(a.rows, 1)
    return f(a.y, a.a, a.b, a.rows, n, n, a.op, dtype_of(given.a), nil)
  end)

op("map", "x " .. WIDE .. " [..]; op = abs|neg|round|floor|ceil|sqrt|tanh|exp|log|sigmoid; > y! @x [..]",
  function(f, a, given) return f(a.y, a.x, a.rows, a.op, dtype_of(given.x), nil) end)

op("compare", "a " .. NUMBER .. " [..]; b @a [..]; op = lt|le|eq|ne|gt|ge; > y u8 [..]",
  function(f, a, given)
    local n = math.max(a.rows, 1)
    return f(a.y, a.a, a.b, a.rows, n, n, a.op, dtype_of(given.a), nil)
  end)

op("sequence", "n integer; from number; step number; dtype dtype; > y @dtype [n]",
  function(f, a) return f(a.y, a.n, a.from, a.step, a.dtype, nil) end)

op("mark", "mask u8 [n]; > s set [n]", function(f, a) return f(a.s, a.mask, a.n, nil) end)

-- A sum, minimum or maximum of integers, a count or a place is an integer.
op("fold", "x " .. WIDE .. " [.., n]; op = sum|min|max|squares|deviations|nonzero|argmin|argmax; > y @kind [..]",
  function(f, a, given) return f(a.y, a.x, a.rows, a.n, 1, a.op, dtype_of(given.x), nil) end,
  function(a)
    local whole = a.op >= C.LSA_FOLD_NONZERO or a.given.x == "i64" and a.op <= C.LSA_FOLD_MAX
    a.given.kind = whole and "i64" or "f64"
  end)

op("cumsum", "x " .. WIDE .. " [.., n]; > y! @x [.., n]",
  function(f, a, given) return f(a.y, a.x, a.rows, a.n, 1, dtype_of(given.x), nil) end)

op("dot", "a f32 [n]; b f32 [n]; > y f64 [1]",
  function(f, a) return f(ffi.cast("double *", a.y), a.a, a.b, a.n, nil) end)

op("sort", "x " .. WIDE .. " [.., n]; descending = false; > ids i32 [.., n]; > values? @x [.., n]",
  function(f, a, given)
    local dtype = dtype_of(given.x)
    return f(a.values, a.ids, a.x, a.rows, a.n, dtype, a.descending, a:workspace("sort", a.rows, a.n, 1, dtype), nil)
  end)

op("take", "x any [n, m]; ids i32 [count]; > y @x [count, m]",
  function(f, a, given)
    return f(a.y, a.x, a.ids, 1, a.n, a.count, a.m * C.lsa_dtype_size(dtype_of(given.x)), 0, nil)
  end)

local function some_bins(name)
  return function(a)
    if a.bins < 0 then raise("%s: bins is %d", name, a.bins) end
  end
end

op("histogram", "x f64 [n]; low number; high number; bins integer; > counts i64 [bins]",
  function(f, a) return f(a.counts, a.x, a.n, a.low, a.high, a.bins, nil) end, some_bins "histogram")

op("bincount", "x i64 [n]; bins integer; > counts i64 [bins]",
  function(f, a) return f(a.counts, a.x, a.n, a.bins, nil) end, some_bins "bincount")

op("normal", "n integer; seed integer; > y f32 [n]", function(f, a) return f(a.y, a.n, a.seed, nil) end)

-- ---- selection ----

local function at_least_one(name)
  return function(a)
    if a.size < 1 then raise("%s: size is %d, at least 1 is wanted", name, a.size) end
    a.pages = math.ceil(a.n / a.size)
  end
end

op("pages", "x f32 [.., n]; size integer; op = sum|mean|min|max; > y f32 [.., pages]",
  function(f, a) return f(a.y, a.x, a.rows, a.n, a.size, a.op, nil) end, at_least_one "pages")

op("density", "s set [n]; size integer; > y f32 [pages]",
  function(f, a) return f(a.y, a.s, a.n, a.size, nil) end, at_least_one "density")

op("select_above", "scores f32 [n]; threshold number; strict = false; > s set [n]",
  function(f, a) return f(a.s, a.scores, a.n, a.threshold, a.strict, nil) end)

op("select_topk", "scores f32 [n]; k integer; > s set [n]",
  function(f, a) return f(a.s, a.scores, a.n, a.k, a:workspace("select", a.n), nil) end)

op("select_topp", "scores f32 [n]; mass number; > s set [n]",
  function(f, a) return f(a.s, a.scores, a.n, a.mass, a:workspace("select", a.n), nil) end)

op("topk", "scores f32 [.., n]; k integer; > ids i32 [.., k]; > counts i32 [..]; > values? f32 [.., k]",
  function(f, a)
    return f(a.ids, a.values, a.counts, a.scores, a.rows, a.n, a.n, a.k, a:workspace("topk", a.rows, a.k),
      nil)
  end,
  function(a)
    if a.k < 0 or a.k >= 2 ^ 31 then raise("topk: k is %d", a.k) end
  end)

-- Labels come in results with room for the most that there could be: pointers[steps] of them are there (lsa.labels narrows).
op("golden_labels", "ids i32 [steps, layers, k]; logits f32 [steps, layers, k]; n integer; top_p = 0.6; min_layers = 3; " ..
  "extra = false; > pointers i32 [ends]; > indices i32 [room]; > scores i32 [room]",
  function(f, a)
    return f(a.pointers, a.indices, a.scores, a.ids, a.logits, a.steps, a.layers, a.k, a.layers * a.k, a.k, a.n, a.top_p,
      a.extra, a.min_layers, a:workspace("golden_labels", a.layers, a.k, a.n), nil)
  end,
  function(a)
    if a.n < 0 or a.n >= 2 ^ 31 then raise("golden_labels: n is %d", a.n) end
    a.ends, a.room = a.steps + 1, tonumber(C.lsa_golden_labels_room(a.steps, a.layers, a.k, a.min_layers))
  end)

-- Kernels take ids as they are: those in host memory are looked at before.
local function check_ids(name, a, arg, count, limit, what)
  if a.device ~= "cpu" then return end
  local ids = ffi.cast("const int32_t *", a[arg])
  for i = 0, count - 1 do
    if ids[i] < 0 or ids[i] >= limit then raise("%s: %s has %d, " .. what, name, arg, ids[i], limit) end
  end
end

-- ---- layers ----

op("rmsnorm", "x f32 [.., n]; weight? f32 [n]; eps = 1e-6; > y! f32 [.., n]",
  function(f, a) return f(a.y, a.x, a.weight, a.rows, a.n, a.eps, nil) end)

op("hadamard", "x! f32 [.., dim]",
  function(f, a) return f(a.x, a.rows, a.dim, nil) end)

op("rope_table", "frequencies f32 [half]; positions i32 [n]; > table f32 [n, half, 2]",
  function(f, a) return f(a.table, a.frequencies, a.positions, a.n, a.half, nil) end)

op("rope", "x! f32 [rows, heads, dim]; table f32 [rows, half, 2]; inverse = false",
  function(f, a) return f(a.x, a.table, a.rows, a.heads, a.dim, 2 * a.half, a.inverse, nil) end,
  function(a)
    if 2 * a.half > a.dim then raise("rope: table rotates %d dimensions, x has %d", 2 * a.half, a.dim) end
  end)

op("linear", "x f32 [.., cols]; w f32|bf16|f16|f8_e4m3|u8 [rows_out, stored]; scale? f32|f8_e8m0 [scale_rows, scale_cols]; " ..
  "fp4 = false; block_rows = 128; block_cols = 128; compute = f32|bf16; > y f32 [.., rows_out]",
  function(f, a, given)
    local w = ffi.new "lsa_weight"
    w.data, w.scale, w.rows, w.cols = a.w, a.scale, a.rows_out, a.cols
    w.block_rows, w.block_cols = a.block_rows, a.block_cols
    w.dtype = a.fp4 == 1 and C.LSA_F4_E2M1 or given.w.c.dtype
    w.scale_dtype = given.scale and given.scale.c.dtype or C.LSA_F32
    local work = a:workspace("linear", w, a.rows, a.rows_out, a.compute)
    return f(a.y, a.x, w, a.rows, 0, a.rows_out, a.cols, a.rows_out, a.compute, work, nil)
  end,
  function(a)
    local cols = a.fp4 == 1 and 2 * a.stored or a.stored
    if cols ~= a.cols then raise("linear: w has %d columns, x has %d", cols, a.cols) end
    if not a.scale then return end
    local down, across = math.ceil(a.rows_out / a.block_rows), math.ceil(a.cols / a.block_cols)
    if a.scale_rows ~= down or a.scale_cols ~= across then
      raise("linear: scale has shape [%d, %d], blocks of %d x %d make [%d, %d]", a.scale_rows, a.scale_cols, a.block_rows,
        a.block_cols, down, across)
    end
  end)

op("swiglu", "gate f32 [..]; up f32 [..]; limit number; > y! f32 [..]",
  function(f, a) return f(a.y, a.gate, a.up, a.rows, a.limit, nil) end)

op("moe_route", "logits f32 [n, experts]; k integer; bias? f32 [experts]; token_experts? i32 [vocab, k]; tokens? i32 [n]; " ..
  "scoring = sqrtsoftplus|sigmoid; scaling = 1; > ids i32 [n, k]; > weights f32 [n, k]",
  function(f, a)
    return f(a.ids, a.weights, a.logits, a.bias, a.token_experts, a.tokens, a.n, a.experts, a.k, a.scoring, a.scaling, nil)
  end,
  function(a)
    if a.k < 0 or a.k > a.experts then raise("moe_route: k is %d, logits have %d experts", a.k, a.experts) end
    if (a.token_experts == nil) ~= (a.tokens == nil) then raise "moe_route: token_experts and tokens come together" end
    if not a.tokens then return end
    check_ids("moe_route", a, "tokens", a.n, a.vocab, "token_experts has %d tokens")
    check_ids("moe_route", a, "token_experts", a.vocab * a.k, a.experts, "logits have %d experts")
  end)

-- A weight of plain numbers, rows first.
local function plain_weight(w, data, dtype, rows, cols)
  w.data, w.rows, w.cols, w.block_rows, w.block_cols, w.dtype = data, rows, cols, 1, 1, dtype
end

-- One expert of three tensors, from an element on.
local function expert_weights(e, a, given, names, number, inner)
  local shapes = {{inner, a.hidden}, {inner, a.hidden}, {a.hidden, inner}}
  for i, part in ipairs {"gate", "up", "down"} do
    local dtype = given[names[i]].c.dtype
    local bytes = number * inner * a.hidden * C.lsa_dtype_size(dtype)
    plain_weight(e[part], ffi.cast("char *", a[names[i]]) + bytes, dtype, shapes[i][1], shapes[i][2])
  end
end

local DENSE = "f32|bf16|f16"

op("experts", "x f32 [tokens, hidden]; ids i32 [tokens, k]; weights f32 [tokens, k]; gate " .. DENSE ..
  " [count, inner, hidden]; up " .. DENSE .. " [count, inner, hidden]; down " .. DENSE .. " [count, hidden, inner]; " ..
  "shared_gate? " .. DENSE .. " [shared, hidden]; shared_up? " .. DENSE .. " [shared, hidden]; shared_down? " .. DENSE ..
  " [hidden, shared]; limit number; compute = f32|bf16; > y f32 [tokens, hidden]",
  function(f, a, given)
    local experts = ffi.new("lsa_expert_weights[?]", math.max(1, a.count))
    for e = 0, a.count - 1 do expert_weights(experts[e], a, given, {"gate", "up", "down"}, e, a.inner) end
    local shared = given.shared_gate and ffi.new "lsa_expert_weights"
    if shared then expert_weights(shared, a, given, {"shared_gate", "shared_up", "shared_down"}, 0, a.shared) end
    local work = a:workspace("experts", experts, shared, a.tokens, a.hidden, a.count, a.k, a.compute)
    return f(a.y, a.x, a.ids, a.weights, experts, shared, a.tokens, a.hidden, a.count, a.k, a.limit, a.compute, work, nil)
  end,
  function(a)
    if (a.shared_gate == nil) ~= (a.shared_up == nil) or (a.shared_gate == nil) ~= (a.shared_down == nil) then
      raise "experts: shared_gate, shared_up and shared_down come together"
    end
    check_ids("experts", a, "ids", a.tokens * a.k, a.count, "there are %d experts")
  end)

-- ---- tokens ----

op("embed", "tokens i32 [n]; table " .. DENSE .. " [vocab, hidden]; hc = 1; > streams f32 [n, hc, hidden]",
  function(f, a, given)
    local w = ffi.new "lsa_weight"
    plain_weight(w, a.table, given.table.c.dtype, a.vocab, a.hidden)
    return f(a.streams, a.tokens, w, a.n, a.hc, a.hidden, nil)
  end,
  function(a)
    if a.hc % 1 ~= 0 or a.hc < 0 then raise("embed: hc is %s, a whole number of at least 0 is wanted", tostring(a.hc)) end
    check_ids("embed", a, "tokens", a.n, a.vocab, "the table has %d rows")
  end)

op("sample", "logits f32 [n, vocab]; states! i64 [n]; temperature = 0; > tokens i32 [n]",
  function(f, a)
    local host = tensor.empty({a.n}, "f64")
    for i = 0, a.n - 1 do doubles(host)[i] = a.temperature end
    local temperatures = host:to(a.device)
    return f(a.tokens, a.logits, a.states, doubles(temperatures), a.n, a.vocab, nil)
  end,
  function(a)
    if not (a.temperature >= 0 and a.temperature < math.huge) then
      raise("sample: temperature is %s, a finite number of at least 0 is wanted", tostring(a.temperature))
    end
  end)

op("entropy", "logits f32 [.., vocab]; > y f32 [..]",
  function(f, a)
    return rounded(a, "y", a.rows, function(out) return f(out, a.logits, a.rows, a.vocab, nil) end)
  end)

-- ---- hyper-connections ----

local MOST_ITERATIONS = 10000

local function hc_widths(name, width)
  return function(a)
    if a.iters % 1 ~= 0 or a.iters < 0 or a.iters > MOST_ITERATIONS then
      raise("%s: iters is %s, a whole number from 0 to %d is wanted", name, tostring(a.iters), MOST_ITERATIONS)
    end
    local want = width(a.hc)
    if a.mix_width ~= want then raise("%s: mix has %d columns, %d streams make %d", name, a.mix_width, a.hc, want) end
  end
end

op("hc_open", "streams f32 [tokens, hc, dim]; mix f32 [tokens, mix_width]; base f32 [mix_width]; scale f32 [3]; " ..
  "iters = 20; norm_eps = 1e-6; hc_eps = 1e-6; > x f32 [tokens, dim]; > post f32 [tokens, hc]; > comb f32 [tokens, hc, hc]",
  function(f, a)
    return f(a.x, a.post, a.comb, a.streams, a.mix, a.base, a.scale, a.tokens, a.hc, a.dim, a.iters, a.norm_eps,
      a.hc_eps, nil)
  end, hc_widths("hc_open", function(hc) return (2 + hc) * hc end))

op("hc_close", "streams! f32 [tokens, hc, dim]; y f32 [tokens, dim]; post f32 [tokens, hc]; comb f32 [tokens, hc, hc]",
  function(f, a) return f(a.streams, a.y, a.post, a.comb, a.tokens, a.hc, a.dim, nil) end)

op("hc_head", "streams f32 [tokens, hc, dim]; mix f32 [tokens, hc]; base f32 [hc]; scale f32 [1]; " ..
  "norm_eps = 1e-6; hc_eps = 1e-6; > x f32 [tokens, dim]",
  function(f, a)
    return f(a.x, a.streams, a.mix, a.base, a.scale, a.tokens, a.hc, a.dim, a.norm_eps, a.hc_eps, nil)
  end)

-- ---- compressed entries ----

op("compress", "kv f32 [tokens, width]; gate f32 [tokens, width]; bias f32 [m, width]; prev_kv? f32 [m, width]; " ..
  "prev_gate? f32 [m, width]; overlap = false; > y f32 [n, dim]",
  function(f, a)
    return f(a.y, a.kv, a.gate, a.prev_kv, a.prev_gate, a.bias, a.n, a.m, a.dim, a.overlap, nil)
  end,
  function(a)
    if a.m == 0 or a.tokens % a.m ~= 0 then raise("compress: kv has %d tokens, windows have %d", a.tokens, a.m) end
    if a.overlap == 1 and a.width % 2 ~= 0 then raise("compress: kv has %d columns; overlap needs two series", a.width) end
    if (a.prev_kv == nil) ~= (a.prev_gate == nil) then raise "compress: prev_kv and prev_gate come together" end
    a.n, a.dim = a.tokens / a.m, a.overlap == 1 and a.width / 2 or a.width
  end)

op("ensemble", "logits f32 [layers, n]; how = max|mean; > y f32 [n]",
  function(f, a) return f(a.y, a.logits, a.layers, a.n, a.how, nil) end)

op("softmax_sum", "x f32 [rows, n]; > y f32 [n]", function(f, a) return f(a.y, a.x, a.rows, a.n, nil) end)

op("spread", "x f32 [n]; radius integer; > y f32 [n]", function(f, a) return f(a.y, a.x, a.n, a.radius, nil) end)

op("bound_query", "q f32 [rows, heads, dim]; w f32 [rows, heads]; > both f32 [rows, heads2, dim2]; > weights f32 [rows, heads2]",
  function(f, a) return f(a.both, a.weights, a.q, a.w, a.rows, a.heads, a.dim, nil) end,
  function(a) a.heads2, a.dim2 = 2 * a.heads, 2 * a.dim end)

-- Record formats, in the order of LSA_KV_*.
local FORMATS = "f32|bf16|fp8"

local function record_bytes(name, a, bytes)
  bytes = tonumber(bytes)
  if a.bytes and a.bytes < bytes then raise("%s: records have %d bytes, %d dimensions take %d", name, a.bytes, a.dim, bytes) end
  a.bytes = a.bytes or bytes
end

local function kv_bytes(name)
  return function(a)
    if a.rope_dim < 0 or a.rope_dim > a.dim then raise("%s: rope_dim is %d, of %d dimensions", name, a.rope_dim, a.dim) end
    record_bytes(name, a, C.lsa_kv_record_bytes(a.format, a.dim, a.rope_dim))
  end
end

local function key_bytes(name)
  return function(a) record_bytes(name, a, C.lsa_index_key_bytes(a.format, a.dim)) end
end

op("kv_encode", "x f32 [n, dim]; rope_dim integer; format = " .. FORMATS .. "; > records u8 [n, bytes]",
  function(f, a) return f(a.records, a.x, a.n, a.dim, a.rope_dim, a.bytes, a.format, nil) end, kv_bytes "kv_encode")

op("kv_decode", "records u8 [n, bytes]; dim integer; rope_dim integer; format = " .. FORMATS .. "; > x f32 [n, dim]",
  function(f, a) return f(a.x, a.records, a.n, a.dim, a.rope_dim, a.bytes, a.format, nil) end, kv_bytes "kv_decode")

op("index_encode", "x f32 [n, dim]; format = " .. FORMATS .. "; > keys u8 [n, bytes]",
  function(f, a) return f(a.keys, a.x, a.n, a.dim, a.bytes, a.format, nil) end, key_bytes "index_encode")

op("index_decode", "keys u8 [n, bytes]; dim integer; format = " .. FORMATS .. "; > x f32 [n, dim]",
  function(f, a) return f(a.x, a.keys, a.n, a.dim, a.bytes, a.format, nil) end, key_bytes "index_decode")

op("index_score", "q f32 [tokens, heads, dim]; w f32 [tokens, heads]; keys u8 [n, bytes]; format = " .. FORMATS ..
  "; compute = f32|bf16; > scores f32 [tokens, n]",
  function(f, a)
    local work = a:workspace("index_score", a.tokens, a.n, a.heads, a.dim, a.format, a.compute)
    return f(a.scores, a.q, a.w, a.keys, a.tokens, a.n, a.heads, a.dim, a.bytes, a.n, a.format, a.compute, work, nil)
  end, key_bytes "index_score")

-- All records in one block: a shift that no id reaches.
local ONE_BLOCK = 31

-- Which records queries see has to be there: the kernel looks at nothing else.
local function check_records(a)
  local counts = ffi.cast("const int32_t *", a.counts)
  local ids = a.ids and ffi.cast("const int32_t *", a.ids)
  for t = 0, a.tokens - 1 do
    if counts[t] < 0 or counts[t] > a.most then
      raise("attention: counts has %d for query %d, there are %d %s", counts[t], t, a.most, ids and "ids" or "records")
    end
    for j = t * a.most, ids and t * a.most + counts[t] - 1 or -1 do
      if ids[j] < 0 or ids[j] >= a.n then raise("attention: ids has %d for query %d, there are %d records", ids[j], t, a.n) end
    end
  end
end

op("attention", "q f32 [tokens, heads, dim]; window f32 [rows_held, dim]; sinks f32 [heads]; records? u8 [n, bytes]; " ..
  "counts? i32 [tokens]; ids? i32 [tokens, most]; rope_dim integer; own integer; window_size integer; scale number; " ..
  "format = " .. FORMATS .. "; > out f32 [tokens, heads, dim]; > mass? f32 [tokens, most]",
  function(f, a, given)
    local records, blocks
    local most = a.most or 0
    if given.records then
      blocks = ffi.new("uint8_t *[1]", ffi.cast("uint8_t *", a.records))
      records = ffi.new("lsa_records", {blocks, a.bytes, 0, ONE_BLOCK, a.format})
    end
    local work = a:workspace("attention", a.tokens, a.heads, a.dim, a.window_size, most,
      a.mass ~= nil and most or 0)
    return f(a.out, a.mass, a.q, a.window, a.sinks, records, a.ids, a.counts, a.tokens, a.heads, a.dim, a.rope_dim,
      a.rows_held, a.own, a.window_size, most, a.scale, work, nil)
  end,
  function(a)
    if a.own < 0 or a.own + a.tokens > a.rows_held then
      raise("attention: window has %d rows, queries' own rows are %d..%d", a.rows_held, a.own, a.own + a.tokens - 1)
    end
    if a.heads == 0 or a.dim == 0 then raise("attention: q has %d heads of %d dimensions", a.heads, a.dim) end
    if not a.records then return end
    record_bytes("attention", a, C.lsa_kv_record_bytes(a.format, a.dim, a.rope_dim))
    if not a.counts then raise "attention: records come with counts" end
    a.most = a.most or a.n
    if a.device == "cpu" then check_records(a) end
  end)

-- ---- training ----

op("gemm", "a f32 [a_rows, a_cols]; b f32 [k, n]; transpose_a = false; > c f32 [m, n]",
  function(f, a) return f(a.c, a.a, a.b, a.m, a.n, a.k, a.n, a.a_cols, a.n, a.transpose_a, 0, nil) end,
  function(a)
    local k
    a.m, k = a.a_rows, a.a_cols
    if a.transpose_a == 1 then a.m, k = k, a.m end
    if k ~= a.k then raise("gemm: %d columns times %d rows", k, a.k) end
  end)

op("gemm_bf16", "a bf16 [m, k]; b bf16 [n, k]; > c f32 [m, n]",
  function(f, a)
    local work = a:workspace("gemm_bf16", a.m, a.n, a.k)
    return f(a.c, a.a, a.b, a.m, a.n, a.k, a.n, a.k, a.k, work, nil)
  end)

op("rmsnorm_gradient", "dy f32 [.., n]; x f32 [.., n]; weight f32 [n]; eps = 1e-6; > dx! f32 [.., n]; > dweight f32 [n]",
  function(f, a) return f(a.dx, a.dweight, a.dy, a.x, a.weight, a.rows, a.n, a.eps, nil) end)

local function chosen_keys(name)
  return function(a)
    key_bytes(name)(a)
    check_ids(name, a, "ids", a.chosen, a.n, "there are %d keys")
  end
end

local function gather(f, a, logits, work)
  return f(logits, a.q, a.w, a.keys, a.ids, a.chosen, a.heads, a.dim, a.bytes, a.format, work, nil)
end

local CHOSEN = "q f32 [heads, dim]; w f32 [heads]; keys u8 [n, bytes]; ids i32 [chosen]; "

op("index_gather", CHOSEN .. "format = " .. FORMATS .. "; > logits f32 [chosen]",
  function(f, a) return gather(f, a, a.logits, a:workspace("index_gradient", a.chosen, a.heads, a.dim)) end,
  chosen_keys "index_gather")

op("index_gradient", "slope f32 [chosen]; " .. CHOSEN .. "format = " .. FORMATS .. "; > dq f32 [heads, dim]; > dw f32 [heads]",
  function(f, a)
    local work = a:workspace("index_gradient", a.chosen, a.heads, a.dim)
    local logits = held(a, a.chosen, "f32")
    local rc = gather(a.kernels.index_gather, a, logits.c.data, work)
    return rc < 0 and rc or f(a.dq, a.dw, a.slope, a.w, a.chosen, a.heads, a.dim, work, nil)
  end, chosen_keys "index_gradient")

op("index_loss", "logits f32 [n]; weights f32 [n]; positives integer; pointwise = none|bce|focal; pairwise = none|hinge|bpr; " ..
  "factor = 1; margin = 1; > loss f32 [1]; > slope f32 [n]",
  function(f, a)
    local how = ffi.new("lsa_index_loss", {a.pointwise, a.pairwise, a.factor, a.margin})
    return rounded(a, "loss", 1, function(loss)
      return f(loss, a.slope, a.logits, a.weights, a.positives, a.n - a.positives, how, nil)
    end)
  end,
  function(a)
    if a.positives < 0 or a.positives > a.n then raise("index_loss: %d positives of %d logits", a.positives, a.n) end
  end)

op("adamw", "x! f32 [..]; m! f32 [..]; v! f32 [..]; gradient f32 [..]; step integer; rate = 1e-4; beta1 = 0.9; " ..
  "beta2 = 0.999; eps = 1e-8; decay = 0.01; gradient_scale = 1",
  function(f, a)
    local how = ffi.new("lsa_adamw", {a.rate, a.beta1, a.beta2, a.eps, a.decay, a.gradient_scale, a.step})
    return f(a.x, a.m, a.v, a.gradient, a.rows, how, nil)
  end)

op("square_sum", "x f32 [..]; > sum f32 [1]",
  function(f, a)
    local work = a:workspace("square_sum", a.rows)
    return rounded(a, "sum", 1, function(sum) return f(sum, a.x, a.rows, work, nil) end)
  end)

return setmetatable(M, {
  __tostring = function()
    local lines = {}
    for _, kernel in pairs(M) do lines[#lines + 1] = tostring(kernel) end
    table.sort(lines)
    return table.concat(lines, "\n")
  end,
})
