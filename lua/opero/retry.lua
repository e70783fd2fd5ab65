--- Retry: calls again what has failed, after a wait that grows.

local backoff = require "opero.backoff"
local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local matcher = require "opero.matcher"
local outcome = require "opero.outcome"
local retry_budget = require "opero.retry_budget"

---@class opero.RetryConfig
---@field max_attempts integer? how often it is called at most, the first call included; default 3
---@field max_elapsed number? seconds; no attempt begins whose wait would end later after the first
---  one began; default: no limit
---@field wait_min number? seconds, the shortest wait; default 1
---@field wait_max number? seconds, the longest wait, also one that an error asks for; default 60
---@field wait_multiplier number? seconds, the wait before the second attempt, doubled for each
---  further one; default 1
---@field jitter "none"|"full"|"equal"|"decorrelated"? default "none"
---@field backoff (fun(attempt: integer, err: any, previous: number?): number)? the wait in seconds
---  after that attempt, in place of wait_min, wait_multiplier and jitter, and not limited by
---  wait_max: of opero.backoff, or a function of one's own
---@field retry_on opero.Matcher? which errors are worth another attempt; default: all but
---  CircuitOpenError. Cancellation never is.
---@field retry_if_result (fun(...): any)? of the results: whether they are worth another attempt;
---  when there is none left they are returned as they are
---@field on_retry (fun(attempt: integer, err: any, wait: number))? called before each wait; of a
---  result that is retried, err is nil
---@field budget opero.RetryBudgetConfig|opero.RetryBudget|nil default: no limit
---@field reraise boolean? true (default): when all attempts have failed the last error is raised
---  unchanged; false: a RetryError (attempts, cause) is

local retry = {}

-- All but what says that there is no use in trying.
local function default_matcher(err)
  return type(err) ~= "table" or not errors.is(err, errors.CircuitOpenError)
end

local ROUNDING <const> = 0.5e-9 -- half of what the clock can tell apart

---@type opero.check.Spec
retry.options = {
  fields = {
    max_attempts = { type = "integer", min = 1, default = 3 },
    max_elapsed = { type = "number", above = 0 },
    wait_min = { type = "number", min = 0, default = 1 },
    wait_max = { type = "number", min = 0, default = 60 },
    wait_multiplier = { type = "number", min = 0, default = 1 },
    jitter = { type = "enum", values = backoff.modes, default = "none" },
    backoff = { check = check.callable },
    retry_on = { check = matcher.compile, default = default_matcher },
    retry_if_result = { check = check.callable },
    on_retry = { check = check.callable },
    budget = retry_budget.field,
    reraise = { type = "boolean", default = true },
  },
  verify = function(options, path)
    if options.backoff then
      -- As ever is as good as left out: a completed table has all of them.
      for _, name in ipairs { "jitter", "wait_min", "wait_multiplier" } do
        if options[name] ~= retry.options.fields[name].default then
          check.fail(check.join(path, name), options[name],
            "nothing beside backoff, which says how long the waits are")
        end
      end
    elseif options.wait_max < options.wait_min then
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

-- What a result that is to be retried is passed along as, in the place of an error; and an error of
-- the function that judges results, for which nothing is retried.
local unwanted_mt = { __name = "opero.retry.Unwanted" }
local mishap_mt = { __name = "opero.retry.Mishap" }

-- Makes failures of results that are not what was wanted.
local function judging(next_layer, is_unwanted)
  local function judge(ok, ...)
    if not ok then
      return false, (...)
    end
    local is_judged, verdict = pcall(is_unwanted, ...)
    if not is_judged then
      return false, setmetatable({ err = verdict }, mishap_mt)
    elseif verdict then
      return false, setmetatable({ results = table.pack(...) }, unwanted_mt)
    end
    return true, ...
  end
  return function(fn, ...)
    return judge(next_layer(fn, ...))
  end
end

-- Results that were not wanted are results after all, when there is nothing better to be had.
local function settled(attempts, reraise, err)
  if getmetatable(err) ~= unwanted_mt then
    if not reraise then
      err = exhausted(attempts, err)
    end
    return false, err
  elseif reraise then
    return outcome.of(err.results)
  end
  return false, errors.RetryError(
    ("%d %s had a result that was not wanted"):format(attempts,
      attempts == 1 and "attempt" or "attempts"),
    { attempts = attempts, result = err.results[1] })
end

local function check_wait(wait)
  if type(wait) ~= "number" or not (wait >= 0 and wait < math.huge) then
    check.fail("retry_config.backoff", wait, "a function that returns finite seconds >= 0")
  end
  return wait
end

--- Wraps a layer. The success of the first attempt costs one C call, and what the options ask for.
---@param config opero.RetryConfig completed
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function retry.layer(config, next_layer, told)
  told = told or events.default
  local max_attempts, wait_max, reraise = config.max_attempts, config.wait_max, config.reraise
  local matches, max_elapsed = config.retry_on, config.max_elapsed
  local budget = config.budget and retry_budget.of(config.budget)
  local on_retry, custom = config.on_retry, config.backoff
  local next_wait = not custom and backoff.exponential(config)
  if config.retry_if_result then
    next_layer = judging(next_layer, config.retry_if_result)
  end

  local function error_of(err)
    if getmetatable(err) == unwanted_mt then
      return nil
    end
    return err
  end

  local function is_worth_another(err)
    local class = getmetatable(err)
    return class == unwanted_mt
      or class ~= mishap_mt and not outcome.is_final(err) and matches(err)
  end

  local function wait_after(attempt, err, previous)
    local asked = asked_wait(err)
    if asked then
      return math.min(asked, wait_max)
    elseif custom then
      return check_wait(custom(attempt, error_of(err), previous))
    end
    return next_wait(attempt, previous, core.random)
  end

  -- Whether there is neither time nor budget for another attempt.
  local function is_refused(wait, began)
    local left = core.time_left()
    if left and wait >= left then
      return "timeout"
    elseif max_elapsed and core.now() + wait - began > max_elapsed + ROUNDING then
      return "max_elapsed"
    elseif budget and not budget:try_retry() then
      return "budget"
    end
    return nil
  end

  local function retry_after(began, err, fn, ...)
    local attempt, wait = 1, nil
    while is_worth_another(err) do
      if attempt >= max_attempts then
        if told:note("retries_exhausted") then
          told:tell("retries_exhausted", { attempts = attempt, error = error_of(err) })
        end
        return settled(attempt, reraise, err)
      end
      wait = wait_after(attempt, err, wait)
      local why = is_refused(wait, began)
      if why then
        if told:note("retry_refused") then
          told:tell("retry_refused", {
            attempts = attempt, wait = wait, reason = why, error = error_of(err),
          })
        end
        return settled(attempt, reraise, err)
      end
      if told:note("retry") then
        told:tell("retry", {
          attempt = attempt, max_attempts = max_attempts, wait = wait, error = error_of(err),
        })
      end
      if on_retry then
        on_retry(attempt, error_of(err), wait)
      end
      core.sleep(wait)
      attempt = attempt + 1
      local results
      results, err = outcome.keep(next_layer(fn, ...))
      if results then
        return outcome.of(results)
      end
    end
    if getmetatable(err) == mishap_mt then
      err = err.err
    end
    return false, err
  end

  if not max_elapsed then
    local guarded = core.guard(next_layer, function(err, fn, ...)
      return retry_after(nil, err, fn, ...)
    end)
    if not budget then
      return guarded
    end
    return function(...)
      budget:note_call()
      return guarded(...)
    end
  end
  -- The time at which it began has to be known; the results are not touched.
  local function finish(began, packed, ok, ...)
    if ok then
      return true, ...
    end
    return retry_after(began, (...), table.unpack(packed, 1, packed.n))
  end
  return outcome.protected(function(fn, ...)
    if budget then
      budget:note_call()
    end
    return finish(core.now(), table.pack(fn, ...), next_layer(fn, ...))
  end)
end

return retry
