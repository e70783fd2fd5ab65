--- Retry: calls again what has failed, after a wait that grows.

local backoff = require "opero.backoff"
local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local matcher = require "opero.matcher"
local outcome = require "opero.outcome"
local report = require "opero.report"

---@class opero.RetryConfig
---@field max_attempts integer? how often it is called at most, the first call included; default 3
---@field wait_min number? seconds, the shortest wait; default 1
---@field wait_max number? seconds, the longest wait; default 60
---@field wait_multiplier number? seconds, the wait before the second attempt, doubled for each
---  further one; default 1
---@field jitter "none"|"full"|"equal"|"decorrelated"? default "none"
---@field retry_on opero.Matcher? which errors are worth another attempt; default: all. Cancellation
---  never is.
---@field reraise boolean? true (default): when all attempts have failed the last error is raised
---  unchanged; false: a RetryError (attempts, cause) is

local retry = {}

---@type opero.check.Spec
retry.options = {
  fields = {
    max_attempts = { type = "integer", min = 1, default = 3 },
    wait_min = { type = "number", min = 0, default = 1 },
    wait_max = { type = "number", min = 0, default = 60 },
    wait_multiplier = { type = "number", min = 0, default = 1 },
    jitter = { type = "enum", values = backoff.modes, default = "none" },
    retry_on = { check = matcher.compile, default = matcher.any },
    reraise = { type = "boolean", default = true },
  },
  verify = function(options, path)
    if options.wait_max < options.wait_min then
      check.fail(check.join(path, "wait_max"), options.wait_max,
        ("a number >= wait_min, which is %s"):format(options.wait_min))
    end
  end,
}

--- The option `retry_config`.
---@type opero.check.Field
retry.field = { type = "options", options = retry.options }

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.RetryConfig?): opero.RetryConfig
retry.config = check.constructor("RetryConfig", retry.options)

local function index(object, key)
  return object[key]
end

-- The seconds an error asks to be waited for, if it does. It may be any value, also one whose
-- fields cannot be read.
local function asked_wait(err)
  if type(err) ~= "table" and type(err) ~= "userdata" then
    return nil
  end
  local ok, seconds = pcall(index, err, "retry_after")
  if ok and type(seconds) == "number" and seconds >= 0 and seconds < math.huge then
    return seconds
  end
  return nil
end

local function exhausted(attempts, err)
  return errors.RetryError(
    ("%d %s failed: %s"):format(attempts, attempts == 1 and "attempt" or "attempts",
      errors.summary(err)),
    { attempts = attempts, cause = err, traceback = core.traceback(err) })
end

--- Wraps a layer. The success of the first attempt costs one C call.
---@param config opero.RetryConfig completed
---@param next_layer opero.Layer
---@param told opero.Report? default: the logger "opero" is told
---@return opero.Layer
function retry.layer(config, next_layer, told)
  told = told or report.default
  local max_attempts, wait_max, reraise = config.max_attempts, config.wait_max, config.reraise
  local matches, next_wait = config.retry_on, backoff.exponential(config)

  return core.guard(next_layer, function(err, fn, ...)
    local attempt, wait = 1, nil
    while not outcome.is_final(err) and matches(err) do
      if attempt >= max_attempts then
        if told.enabled("info") then
          told.tell("info", "all attempts failed", { attempts = attempt, error = err })
        end
        if not reraise then
          err = exhausted(attempt, err)
        end
        break
      end
      local asked = asked_wait(err)
      wait = asked and math.min(asked, wait_max) or next_wait(attempt, wait, core.random)
      if told.enabled("info") then
        told.tell("info", "attempt failed, will retry",
          { attempt = attempt, max_attempts = max_attempts, wait = wait, error = err })
      end
      core.sleep(wait)
      attempt = attempt + 1
      local results
      results, err = outcome.keep(next_layer(fn, ...))
      if results then
        return outcome.of(results)
      end
    end
    return false, err
  end)
end

return retry
