local ffi = require "ffi"
local binding = require "lsa.ffi"
local C = binding.C

ffi.cdef [[
void vector_math_exp(float *, const float *, int64_t);
void vector_math_sigmoid(float *, const float *, int64_t);
void vector_math_log1p_unit(float *, const float *, int64_t);
void vector_math_softplus(float *, const float *, int64_t);
double lsa_reference_log1p(double) __asm__("log1p");
double lsa_reference_frexp(double, int *) __asm__("frexp");
]]
local log1p = ffi.C.lsa_reference_log1p

local library = os.tmpname()
local root = binding.root
local compile = ("cc -std=c11 -O2 -Wall -Wno-psabi -fno-math-errno -fno-trapping-math -fPIC -shared -I%s -o %s %s/tests/vector_math.c %s")
  :format(root, library, root, root .. "/" .. binding.build .. "/liblsa.so")
assert(os.execute(compile) == 0, "the vector functions do not compile")
local V = ffi.load(library)
os.remove(library)

local exponent = ffi.new "int[1]"

-- Distance in units in the last place of an f32 of the reference's size.
local function ulps(got, want)
  if want ~= want then return got ~= got and 0 or math.huge end
  if want > 3.40282356e38 then return got == math.huge and 0 or math.huge end
  ffi.C.lsa_reference_frexp(want, exponent)
  return math.abs(got - want) / 2 ^ math.max(exponent[0] - 24, -149)
end

local function levels()
  local level = -1
  return function()
    level = level + 1
    if level <= C.lsa_cpu_best() then C.lsa_cpu_limit(level) return level end
    C.lsa_cpu_limit(C.lsa_cpu_best())
  end
end

-- Every `step`-th float of low..high by its bits, both signs where the range has them.
local function inputs(low, high, step)
  local bits, list = ffi.new "union { float f; uint32_t u; }", {}
  for sign = 0, 1 do
    local u = sign * 2 ^ 31
    repeat
      bits.u = u
      if bits.f >= low and bits.f <= high then list[#list + 1] = bits.f end
      u = u + step
    until math.abs(bits.f) > math.max(math.abs(low), math.abs(high))
  end
  list[#list + 1], list[#list + 2] = low, high
  while #list % 16 ~= 0 do list[#list + 1] = high end
  return ffi.new("float[?]", #list, list), #list
end

-- The most ulps between op and the reference on the plain path, once every path gave the same bits.
local function measured(op, reference, low, high)
  local x, n = inputs(low, high, 4001)
  local first, y = ffi.new("float[?]", n), ffi.new("float[?]", n)
  for level in levels() do
    V[op](y, x, n)
    if level == 0 then ffi.copy(first, y, 4 * n) end
    assert.is_true(ffi.string(first, 4 * n) == ffi.string(y, 4 * n), op .. " differs at level " .. level)
  end
  local worst = 0
  for i = 0, n - 1 do
    local e = ulps(first[i], reference(x[i]))
    if not (e <= worst) then worst = e end
  end
  return worst
end

local function values(op, list)
  local x, y = ffi.new("float[16]", list), ffi.new "float[16]"
  V[op](y, x, 16)
  local out = {}
  for i = 1, #list do out[i] = y[i - 1] end
  return out
end

local inf, nan = math.huge, 0 / 0

describe("vector math", function()
  after_each(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

  it("gives exp within 1 ulp, the same bits on every path", function()
    local worst = measured("vector_math_exp", math.exp, -104, 89)
    assert.is_true(worst <= 1, "ulps: " .. worst)
  end)

  it("gives sigmoid within 3 ulp down to denormal results", function()
    local worst = measured("vector_math_sigmoid", function(x) return 1 / (1 + math.exp(-x)) end, -104, 104)
    assert.is_true(worst <= 3, "ulps: " .. worst)
  end)

  it("gives log(1 + u) within 2 ulp", function()
    local worst = measured("vector_math_log1p_unit", log1p, 0, 1)
    assert.is_true(worst <= 2, "ulps: " .. worst)
  end)

  it("gives softplus within 3 ulp", function()
    local worst = measured("vector_math_softplus", function(x)
      return x > 40 and x or log1p(math.exp(x))
    end, -104, 1e4)
    assert.is_true(worst <= 3, "ulps: " .. worst)
  end)

  it("has the limits of exp at infinities, and keeps NaN", function()
    for _ in levels() do
      local y = values("vector_math_exp", {-inf, inf, nan, 0, -0.0, -200, 200, -3e38, 3e38})
      assert.are.same({0, inf, 1, 1, 0, inf, 0, inf}, {y[1], y[2], y[4], y[5], y[6], y[7], y[8], y[9]})
      assert.is_true(y[3] ~= y[3])
    end
  end)

  it("has the limits of sigmoid and softplus at infinities, and keeps NaN", function()
    for _ in levels() do
      local s = values("vector_math_sigmoid", {-inf, inf, 0, nan})
      assert.are.same({0, 1, 0.5}, {s[1], s[2], s[3]})
      assert.is_true(s[4] ~= s[4])
      local p = values("vector_math_softplus", {-inf, inf, nan})
      assert.are.same({0, inf}, {p[1], p[2]})
      assert.is_true(p[3] ~= p[3])
    end
  end)
end)
