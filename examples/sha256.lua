-- SHA-256 in plain Lua, after FIPS 180-4: work that burns CPU and waits for nothing.

local K, FIRST = {}, {}

-- The first 32 bits of the fraction of the n-th root of a prime. A float has bits enough for that.
local function fraction_of_root(prime, n)
  return math.floor(prime ^ (1 / n) % 1 * 2 ^ 32)
end

-- The constants: of the cube roots of the first 64 primes (section 4.2.2), and of the square roots
-- of the first 8 (section 5.3.3).
do
  local count, n = 0, 2
  while count < 64 do
    local is_prime = true
    for d = 2, math.floor(n ^ 0.5) do
      is_prime = is_prime and n % d ~= 0
    end
    if is_prime then
      count = count + 1
      K[count] = fraction_of_root(n, 3)
      FIRST[count] = count <= 8 and fraction_of_root(n, 2) or nil
    end
    n = n + 1
  end
end

local function rotate(x, n)
  return (x >> n) | (x << (32 - n)) & 0xffffffff
end

-- Works one block of 64 bytes into the state (section 6.2.2).
local function add_block(state, words, text, at)
  for i = 1, 16 do
    words[i] = string.unpack(">I4", text, at + 4 * i - 4)
  end
  for i = 17, 64 do
    local x, y = words[i - 15], words[i - 2]
    local s0 = rotate(x, 7) ~ rotate(x, 18) ~ x >> 3
    local s1 = rotate(y, 17) ~ rotate(y, 19) ~ y >> 10
    words[i] = words[i - 16] + s0 + words[i - 7] + s1 & 0xffffffff
  end
  local a, b, c, d, e, f, g, h = table.unpack(state)
  for i = 1, 64 do
    local s1 = rotate(e, 6) ~ rotate(e, 11) ~ rotate(e, 25)
    local t1 = h + s1 + (e & f ~ ~e & g) + K[i] + words[i]
    local s0 = rotate(a, 2) ~ rotate(a, 13) ~ rotate(a, 22)
    local t2 = s0 + (a & b ~ a & c ~ b & c)
    h, g, f, e, d, c, b, a = g, f, e, d + t1 & 0xffffffff, c, b, a, t1 + t2 & 0xffffffff
  end
  for i, x in ipairs { a, b, c, d, e, f, g, h } do
    state[i] = state[i] + x & 0xffffffff
  end
end

---@param text string
---@return string # the digest, 64 hexadecimal digits
return function(text)
  local padded = text .. "\128" .. ("\0"):rep((55 - #text) % 64) .. (">I8"):pack(#text * 8)
  local state, words = table.move(FIRST, 1, 8, 1, {}), {}
  for at = 1, #padded, 64 do
    add_block(state, words, padded, at)
  end
  return (("%08x"):rep(8):format(table.unpack(state)))
end
