--- Values made up from a seed, for the specs of what must work with any: the same seed, the same
--- values, on every machine.

local values = {}

---@class spec.Generator
---@field int fun(low: integer, high: integer): integer
---@field value fun(depth: integer?): any

--- A generator of numbers and of nested values. `extra` is a list of functions that make further
--- values.
---@param seed integer
---@param extra (fun(generator: spec.Generator): any)[]?
---@return spec.Generator
function values.generator(seed, extra)
  local generator = {}
  local state = seed * 2 + 0x9e3779b97f4a7c15
  local made -- tables made for one value, to be used again in it

  local function bits()
    state = state * 6364136223846793005 + 1442695040888963407
    local z = state
    z = (z ~ (z >> 31)) * 0xbf58476d1ce4e5b
    return z ~ (z >> 29)
  end

  function generator.int(low, high)
    return low + (bits() >> 1) % (high - low + 1)
  end
  local int = generator.int

  local function any_string()
    local lengths = { 0, int(1, 8), int(9, 63), 64, int(65, 255), 256, int(257, 600) }
    local length = lengths[int(1, int(1, 3) == 1 and 7 or 3)]
    local bytes = {}
    for i = 1, length do
      bytes[i] = string.char(int(0, 255))
    end
    return table.concat(bytes)
  end

  local function any_integer()
    return bits() >> int(0, 63)
  end

  local specials = { 0.0, -0.0, 1 / 0, -1 / 0, 0 / 0, 5e-324, 1e308, 1.0, 2 ^ 53 }
  local function any_float()
    if int(1, 3) == 1 then
      return specials[int(1, #specials)]
    end
    return (string.unpack("n", string.pack("j", bits()))) -- NaNs of all kinds among them
  end

  local makers = {
    function() return nil end,
    function() return int(0, 1) == 1 end,
    any_integer,
    function() return -any_integer() end,
    any_float,
    any_string,
  }

  local value

  local function any_table(depth)
    local result = {}
    made[#made + 1] = result
    if int(1, 2) == 1 then
      for i = 1, int(0, 6) do
        result[i] = value(depth - 1)
      end
    end
    for _ = 1, int(0, int(1, 3) == 1 and 6 or 2) do
      local key = value(int(1, 8) == 1 and depth - 1 or 0)
      if key ~= nil and key == key then
        result[key] = value(depth - 1)
      end
    end
    return result
  end

  function value(depth)
    if depth > 0 and int(1, 3) > 1 then
      if int(1, 6) == 1 and #made > 0 then
        return made[int(1, #made)]
      end
      return any_table(depth)
    end
    local choice = int(1, #makers + (extra and #extra or 0))
    return (makers[choice] or extra[choice - #makers])(generator)
  end

  function generator.value(depth)
    made = {}
    return value(depth or 4)
  end

  return generator
end

--- Are they the same, but for which tables they are? Shared parts have to be shared in the same
--- places. Floats are compared bit by bit. Keys may be anything but tables that hold each other.
function values.alike(a, b)
  local twins, taken = {}, {}
  local same

  local function same_table(x, y)
    if twins[x] ~= nil or taken[y] then
      return twins[x] == y
    end
    twins[x], taken[y] = y, true
    if getmetatable(x) ~= getmetatable(y) then
      return false
    end
    local odd, count = {}, 0 -- the keys that are tables
    for key, item in next, x do
      count = count + 1
      if type(key) == "table" then
        odd[#odd + 1] = key
      elseif not same(item, rawget(y, key)) then
        return false
      end
    end
    for _ in next, y do
      count = count - 1
    end
    return count == 0, odd
  end

  -- Tables as keys: each must have a twin of its own, found by what it is and what it stands for.
  local function same_odd_keys(x, y, odd)
    local free = {}
    for key in next, y do
      if type(key) == "table" then
        free[key] = true
      end
    end
    for _, key in ipairs(odd) do
      local found
      for candidate in next, free do
        if twins[key] == candidate or
            (twins[key] == nil and not taken[candidate] and
              values.shape(key) == values.shape(candidate) and
              values.shape(x[key]) == values.shape(y[candidate])) then
          found = candidate
          break
        end
      end
      if not found then
        return false
      end
      free[found] = nil
      if twins[key] == nil then
        twins[key], taken[found] = found, true
      end
    end
    return next(free) == nil
  end

  function same(x, y)
    if math.type(x) ~= math.type(y) or type(x) ~= type(y) then
      return false
    elseif math.type(x) == "float" then
      return string.pack("n", x) == string.pack("n", y)
    elseif type(x) ~= "table" then
      return x == y
    end
    local ok, odd = same_table(x, y)
    return ok and (odd == nil or #odd == 0 or same_odd_keys(x, y, odd))
  end

  return same(a, b)
end

--- A text that is the same for tables alike, though not only for those.
function values.shape(value)
  local parts, seen = {}, {}
  local function add(item, depth)
    if math.type(item) == "float" then
      parts[#parts + 1] = string.pack("n", item)
    elseif type(item) ~= "table" then
      parts[#parts + 1] = type(item) .. tostring(item)
    elseif seen[item] or depth == 0 then
      parts[#parts + 1] = "table"
    else
      seen[item] = true
      local inner = {}
      for key, field in next, item do
        local outer = parts
        parts = {}
        add(key, depth - 1)
        add(field, depth - 1)
        inner[#inner + 1] = table.concat(parts)
        parts = outer
      end
      seen[item] = nil
      table.sort(inner)
      parts[#parts + 1] = "{" .. table.concat(inner, ",") .. "}"
    end
  end
  add(value, 3)
  return table.concat(parts)
end

return values
