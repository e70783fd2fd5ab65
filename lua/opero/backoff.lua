--- How long to wait before the next attempt, apart from the loop that waits.
--
-- The base grows exponentially: before attempt n + 1 it is `wait_multiplier * 2^(n - 1)`, clamped
-- to `[wait_min, wait_max]`. The jitter modes spread clients that failed together, as described in
-- Marc Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015); here each of them
-- stays within `[wait_min, base]`:
--
--   none           base
--   full           uniform in [wait_min, base]
--   equal          uniform in [max(wait_min, base / 2), base]
--   decorrelated   uniform in [wait_min, min(base, max(wait_min, 3 * previous wait))]

---@class opero.backoff.Options
---@field wait_min number seconds
---@field wait_max number seconds
---@field wait_multiplier number seconds
---@field jitter "none"|"full"|"equal"|"decorrelated"

--- Takes the number of the attempt that failed, the wait before it (nil before the second attempt)
--- and a source of numbers in [0, 1); returns seconds.
---@alias opero.backoff.Generator fun(attempt: integer, previous: number?, random: function): number

local backoff = {}

--- The names of the jitter modes, in the order in which messages list them.
backoff.modes = { "none", "full", "equal", "decorrelated" }

--- The wait before jitter.
---@param options opero.backoff.Options
---@param attempt integer the attempt that failed, from 1
---@return number seconds
function backoff.base(options, attempt)
  -- The power becomes infinity for a great attempt, which the clamp takes; but zero times that is
  -- no number.
  local wait = options.wait_multiplier
  if wait > 0 then
    wait = wait * 2.0 ^ (attempt - 1)
  end
  return math.max(options.wait_min, math.min(options.wait_max, wait))
end

local function uniform(low, high, random)
  -- The sum may round to a number above high.
  return math.min(high, low + (high - low) * random())
end

local spread = {}

function spread.none(base)
  return base
end

function spread.full(base, low, _, random)
  return uniform(low, base, random)
end

function spread.equal(base, low, _, random)
  return uniform(math.max(low, base / 2), base, random)
end

function spread.decorrelated(base, low, previous, random)
  return uniform(low, math.min(base, math.max(low, 3 * previous)), random)
end

--- Makes the generator for a completed table of options.
---@param options opero.backoff.Options
---@return opero.backoff.Generator
function backoff.exponential(options)
  local jitter = spread[options.jitter]
  local low, first = options.wait_min, backoff.base(options, 1)
  return function(attempt, previous, random)
    return jitter(backoff.base(options, attempt), low, previous or first, random)
  end
end

return backoff
