--- Chaos: faults on purpose, for tests of what is to stand them.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local outcome = require "opero.outcome"

---@class opero.ChaosConfig
---@field error_rate number? the part of calls, 0 to 1, that fail instead of being made; default 0
---@field error any? their error, an error class, or a function that makes one; default: an
---  OperoError
---@field latency_rate number? the part of calls that are delayed; default 0
---@field latency number|(fun(): number)|nil seconds, infinity too, or a function that gives them;
---  default 1
---@field result_rate number? the part of calls that return something else instead of being made;
---  default 0
---@field result any? what they return, or a function that makes it; default nil
---@field seed integer? of its random numbers; default: those of the runtime, so of a simulation
---@field enabled (boolean|fun(): boolean)? default true

local chaos = {}

local function rate_field()
  return { type = "number", min = 0, max = 1, default = 0 }
end

local function anything(value)
  return value
end

local function is_duration(value)
  return type(value) == "number" and value >= 0 -- which NaN is not
end

---@type opero.check.Spec
chaos.options = {
  fields = {
    error_rate = rate_field(),
    error = { check = anything },
    latency_rate = rate_field(),
    latency = {
      check = function(value, path)
        if not is_duration(value) and not check.is_callable(value) then
          check.fail(path, value, "a number >= 0, or a function")
        end
        return value
      end,
      default = 1,
    },
    result_rate = rate_field(),
    result = { check = anything },
    seed = { type = "integer" },
    enabled = {
      check = function(value, path)
        if type(value) ~= "boolean" and not check.is_callable(value) then
          check.fail(path, value, "true, false or a function")
        end
        return value
      end,
      default = true,
    },
  },
  verify = function(options, path)
    if options.error_rate + options.result_rate > 1 then
      check.fail(check.join(path, "result_rate"), options.result_rate,
        ("a number <= %s: together with error_rate it cannot exceed 1")
          :format(1 - options.error_rate))
    end
  end,
}

---@class opero.Chaos
---@field config opero.ChaosConfig completed
local methods = {}
local mt = { __name = "opero.Chaos", __index = methods }

-- Random numbers from a seed: splitmix64, by Sebastiano Vigna.
local function generator(seed)
  return function()
    seed = seed + 0x9e3779b97f4a7c15
    local z = seed
    z = (z ~ (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z ~ (z >> 27)) * 0x94d049bb133111eb
    return ((z ~ (z >> 31)) >> 11) * 0x1p-53
  end
end

local function value_of(value)
  if check.is_callable(value) then
    return value()
  end
  return value
end

local MESSAGE <const> = "a fault was injected"

local function error_of(config)
  local err = config.error
  if err == nil then
    return errors.OperoError(MESSAGE)
  elseif errors.is_class(err) then
    return err(MESSAGE)
  end
  return value_of(err)
end

local function latency_of(config)
  local seconds = value_of(config.latency)
  if not is_duration(seconds) then
    check.fail("chaos_config.latency", seconds, "a function that returns seconds >= 0")
  end
  return seconds
end

-- The source of random numbers. One with a seed begins anew under another clock: a simulation is
-- the same in every run.
local function random_of(self)
  local seed = self.config.seed
  if seed and self.epoch ~= core.epoch() then
    self.epoch, self.random = core.epoch(), generator(seed)
  end
  return self.random
end

--- Wraps a layer.
---@param config opero.ChaosConfig|opero.Chaos completed, or what opero.Chaos has made
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function chaos.layer(config, next_layer, told)
  local self = getmetatable(config) == mt and config or chaos.from(config)
  told = told or events.default
  config = self.config

  local function tell(fault, fields)
    if told:note("chaos") then
      fields.fault = fault
      told:tell("chaos", fields)
    end
  end

  return outcome.protected(function(fn, ...)
    if not config.enabled or config.enabled ~= true and not config.enabled() then
      return next_layer(fn, ...)
    end
    local random = random_of(self)
    if config.latency_rate > 0 and random() < config.latency_rate then
      local seconds = latency_of(config)
      tell("latency", { latency = seconds })
      core.sleep(seconds)
    end
    local drawn = random()
    if drawn < config.error_rate then
      local err = error_of(config)
      tell("error", { error = err })
      return false, err
    elseif drawn < config.error_rate + config.result_rate then
      tell("result", {})
      return true, value_of(config.result)
    end
    return next_layer(fn, ...)
  end)
end

---@param config opero.ChaosConfig completed
---@return opero.Chaos
function chaos.from(config)
  return setmetatable({ config = config, random = core.random }, mt)
end

--- Makes a policy that injects faults, for a pipeline, or for `chaos_config` of an orchestrator.
--- Raises ConfigError.
---@param given opero.ChaosConfig?
---@return opero.Chaos
function chaos.new(given)
  return chaos.from(check.options(chaos.options, given == nil and {} or given, "Chaos"))
end

--- The option `chaos_config`: options, or what opero.Chaos has made.
---@type opero.check.Field
chaos.field = {
  check = function(value, path)
    return getmetatable(value) == mt and value or check.options(chaos.options, value, path)
  end,
}

return chaos
