--- Timeout: ends an attempt, or a whole execution, that takes too long.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"

---@class opero.TimeoutConfig
---@field attempt number? seconds for each call of a function; one that is cut off is a failure like
---  any, a TimeoutError; default: no limit
---@field total number? seconds for an execution, waiting for limits and between attempts included;
---  default: no limit

local timeout = {}

---@type opero.check.Spec
timeout.options = {
  fields = {
    attempt = { type = "number", above = 0 },
    total = { type = "number", above = 0 },
  },
  verify = function(options, path)
    if options.attempt and options.total and options.attempt > options.total then
      check.fail(check.join(path, "attempt"), options.attempt,
        ("a number <= total, which is %s: an attempt cannot take longer than all of it")
          :format(options.total))
    end
  end,
}

--- The option `timeout_config`.
---@type opero.check.Field
timeout.field = { type = "options", options = timeout.options }

--- Checks a table of options. Raises ConfigError.
---@type fun(given: opero.TimeoutConfig?): opero.TimeoutConfig
timeout.config = check.constructor("TimeoutConfig", timeout.options)

-- TimeoutErrors that came from within a limit, so not by it. Weak: they may go.
local from_within = setmetatable({}, { __mode = "k" })

local function layer_of(kind, seconds, next_layer, told)
  if seconds == nil then
    return next_layer
  end

  -- Within core.timeout a failure has to be raised: only then is the cancellation with which it
  -- cuts off turned into its TimeoutError. Of a success the `true` stays before the results.
  local function call(ok, ...)
    if ok then
      return true, ...
    end
    local err = ...
    if type(err) == "table" and errors.is(err, errors.TimeoutError) then
      from_within[err] = true
    end
    return core.reraise(err)
  end
  local function limited(fn, ...)
    return call(next_layer(fn, ...))
  end

  local function tell()
    if told:note("timeout") then
      told:tell("timeout", { kind = kind, timeout = seconds })
    end
  end

  local function ended(ok, ...)
    if ok then
      return ... -- true and the results
    end
    local err = ...
    if type(err) == "table" and errors.is(err, errors.TimeoutError) and not from_within[err] then
      local told_all, cancellation = pcall(tell)
      if not told_all then
        return false, cancellation -- of the caller, while a listener was suspended
      end
    end
    return false, err
  end
  return function(fn, ...)
    return ended(core.invoke(core.timeout, seconds, limited, fn, ...))
  end
end

--- Wraps a layer: the limit for each attempt.
---@param config opero.TimeoutConfig completed
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function timeout.attempt_layer(config, next_layer, told)
  return layer_of("attempt", config.attempt, next_layer, told or events.default)
end

--- Wraps a layer: the limit for an execution.
---@param config opero.TimeoutConfig completed
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function timeout.total_layer(config, next_layer, told)
  return layer_of("total", config.total, next_layer, told or events.default)
end

--- Wraps a layer: whichever of the two limits there is.
---@param config opero.TimeoutConfig completed
---@param next_layer opero.Layer
---@param told opero.Events?
---@return opero.Layer
function timeout.layer(config, next_layer, told)
  return timeout.total_layer(config, timeout.attempt_layer(config, next_layer, told), told)
end

return timeout
