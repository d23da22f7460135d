-- Set operations: on a million ids, which stay in the cache, and on a thousand million, which do not.
local lsa = require "lsa.ffi"
local ownership = require "lsa.ownership"
local C, check = lsa.C, require("lsa.raise").check

-- A set with a run of ids in each page of 64, or without any pattern.
local function random_set(bench, n)
  local s = ownership.take(C.lsa_set_free, "lsa_set", C.lsa_set_new, n)
  local seeds, words = bench:random("float", 4096, n % 1000 + 7), math.floor(n / 64)
  for w = 0, words - 1 do
    local v = (seeds[w % 4096] + 1) / 2
    s.bits[w] = v < 0.5 and 0 or bit.rshift(0x5a5a00ff33ULL, math.floor(v * 40))
  end
  return s
end

return function(bench)
  local function case(op, n, bytes, run, what)
    bench:case {
      op = op, shape = ("%d ids%s"):format(n, what or ""), bytes = bytes,
      limit = "read",
      setup = function()
        local s = {a = random_set(bench, n), b = random_set(bench, n), out = random_set(bench, n)}
        s.pages = setmetatable({}, {__index = function(pages, size)
          pages[size] = random_set(bench, math.ceil(n / size))
          return pages[size]
        end})
        if n <= 2 ^ 20 then s.ids, s.ids_owner = bench:alloc("int32_t", n) end
        s.members = s.ids and C.lsa_set_ids(s.a, s.ids)
        return s
      end,
      run = run,
    }
  end

  for _, n in ipairs {2 ^ 20, 2 ^ 30} do
    local bytes = n / 8
    case("set_union", n, 3 * bytes, function(s) check(C.lsa_set_union(s.out, s.a, s.b)) end)
    case("set_minus", n, 3 * bytes, function(s) check(C.lsa_set_minus(s.out, s.a, s.b)) end)
    case("set_count", n, bytes, function(s) return C.lsa_set_count(s.a) end)
    case("set_intersect_count", n, 2 * bytes, function(s) return C.lsa_set_intersect_count(s.a, s.b) end)
    for _, page in ipairs {4, 16, 48, 64, 100, 1024} do
      case("set_pages", n, bytes, function(s) check(C.lsa_set_pages(s.pages[page], s.a, page)) end, " in pages of " .. page)
      case("set_chunks", n, bytes, function(s) check(C.lsa_set_chunks(s.out, s.pages[page], page)) end, " of pages of " .. page)
    end
    for _, radius in ipairs {1, 8, 63, 200, 5000} do
      case("set_dilate", n, 2 * bytes, function(s) check(C.lsa_set_dilate(s.out, s.a, radius)) end, " by " .. radius)
    end
  end
  case("set_ids", 2 ^ 20, 2 ^ 17, function(s) return C.lsa_set_ids(s.a, s.ids) end)
  case("set_add_ids", 2 ^ 20, 2 ^ 17, function(s) check(C.lsa_set_add_ids(s.out, s.ids, s.members)) end)
end
