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

local check = require "opero.check"
local core = require "opero.core"

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

-- ---- for users ----------------------------------------------------------------------------------
--
-- Each makes a generator for the option `backoff`: a function of the attempt that failed, its error
-- and the wait before it, that returns seconds.

local function number_field(default)
  return { type = "number", min = 0, default = default, required = default == nil }
end

local function verify_max(options, path)
  local name = options.min and "min" or "first"
  if options.max < options[name] then
    check.fail(check.join(path, "max"), options.max,
      ("a number >= %s, which is %s"):format(name, options[name]))
  end
end

---@type table<string, opero.check.Spec>
local generator_options = {
  constant = { fields = { wait = number_field() } },
  linear = {
    fields = { first = number_field(1), step = number_field(1), max = number_field(60) },
    verify = verify_max,
  },
  exponential = {
    fields = {
      first = number_field(1), factor = { type = "number", min = 1, default = 2 },
      max = number_field(60), min = number_field(0),
      jitter = { type = "enum", values = { "none", "full", "equal" }, default = "none" },
    },
    verify = verify_max,
  },
  decorrelated = {
    fields = { min = number_field(1), max = number_field(60) },
    verify = verify_max,
  },
}

local function options_of(name, given)
  return check.options(generator_options[name], given == nil and {} or given, "backoff." .. name)
end

--- For users: constant, linear, exponential, decorrelated.
---@class opero.backoff.Generators
backoff.generators = {}

--- Always the same wait. Raises ConfigError.
---@param wait number seconds
---@return fun(): number
function backoff.generators.constant(wait)
  local options = options_of("constant", type(wait) == "table" and wait or { wait = wait })
  return function()
    return options.wait
  end
end

--- `first`, and `step` more each time, to `max`. Raises ConfigError.
---@param given { first: number?, step: number?, max: number? }? seconds; default 1, 1, 60
---@return fun(attempt: integer): number
function backoff.generators.linear(given)
  local options = options_of("linear", given)
  return function(attempt)
    return math.min(options.max, options.first + (attempt - 1) * options.step)
  end
end

--- `first`, and `factor` times as long each time, to `max`; jitter as in RetryConfig, within
--- `[min, that]`. Raises ConfigError.
---@param given { first: number?, factor: number?, max: number?, min: number?, jitter: string? }?
---  default 1, 2, 60, 0, "none"
---@return fun(attempt: integer): number
function backoff.generators.exponential(given)
  local options = options_of("exponential", given)
  return function(attempt)
    local wait = options.first
    if wait > 0 then
      wait = wait * options.factor ^ (attempt - 1)
    end
    wait = math.max(options.min, math.min(options.max, wait))
    return spread[options.jitter](wait, options.min, nil, core.random)
  end
end

--- Uniform between `min` and three times the wait before, to `max`. Raises ConfigError.
---@param given { min: number?, max: number? }? seconds; default 1, 60
---@return fun(attempt: integer, err: any, previous: number?): number
function backoff.generators.decorrelated(given)
  local options = options_of("decorrelated", given)
  return function(_, _, previous)
    local high = math.min(options.max, 3 * math.max(options.min, previous or options.min))
    return uniform(options.min, math.max(options.min, high), core.random)
  end
end

return backoff
