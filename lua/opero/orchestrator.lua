--- The orchestrator composes the policies; no policy knows another.

local batch = require "opero.batch"
local check = require "opero.check"
local concurrency = require "opero.concurrency"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local metrics = require "opero.metrics"
local outcome = require "opero.outcome"
local pipeline = require "opero.pipeline"
local pool = require "opero.pool"

---@class opero.OrchestratorConfig
---@field name string? under which opero.metrics tells of it; default: it does not
---@field cache_config opero.CacheConfig? default: results are not kept
---@field timeout_config opero.TimeoutConfig? default: no limit of time
---@field concurrency_config opero.ConcurrencyConfig|opero.Bulkhead|nil default: no limit
---@field fallbacks function|function[]? called in turn, with the arguments of the call, when the
---  function has failed; default: none
---@field fallback_on opero.Matcher? which errors they are for; default: all but cancellation
---@field arg_fallback opero.ArgFallback? the function is called again with other values of one
---  argument, before the fallbacks; default: it is not
---@field retry_config opero.RetryConfig? default: no retries
---@field hedge_config opero.HedgeConfig? default: no hedging
---@field circuit_breaker_config opero.CircuitBreakerConfig|opero.CircuitBreaker|nil default: none
---@field rate_limit_config opero.RateLimitConfig|opero.RateLimiter|nil default: no limit
---@field chaos_config opero.ChaosConfig|opero.Chaos|nil faults on purpose; default: none
---@field multiprocess_config opero.PoolConfig|opero.Pool? each attempt is a task of a pool: one of
---  its own, that is closed with it, or a given one; default: attempts run in the caller's task
---@field logger opero.LoggerLike? told of events; default: the logger "opero"
---@field on table<opero.EventName, fun(fields: table)>? listeners

local orchestrator = {}

local function all_options()
  local fields = {
    name = {
      check = function(value, path)
        if type(value) ~= "string" or value == "" then
          check.fail(path, value, "a string that is not empty")
        end
        return value
      end,
    },
    logger = events.logger_field,
    multiprocess_config = pool.field,
    on = events.listeners_field,
  }
  for name, field in pairs(pipeline.fields) do
    fields[name] = field
  end
  return { fields = fields, verify = pipeline.verify }
end

---@type opero.check.Spec
orchestrator.options = all_options()

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.OrchestratorConfig?): opero.OrchestratorConfig
orchestrator.config = check.constructor("OrchestratorConfig", orchestrator.options)

-- The options may stand in `config` or be given as they are.
local function unwrap(given)
  if given == nil then
    return {}
  elseif type(given) ~= "table" or given.config == nil then
    return given
  end
  for key, value in next, given do
    if key ~= "config" then
      check.fail(errors.summary(key), value, "nothing beside config, which holds all options")
    end
  end
  return given.config
end

---@class opero.Orchestrator
---@field config opero.OrchestratorConfig completed; not to be changed
---@field pipeline opero.Layer all layers in one
---@field private call function the same, with results or an error as a call has them
---@field meter userdata counts executions, and how long they take
---@field private pool opero.Pool? in which its attempts run
---@field private told opero.Events
local methods = {}

--- Calls fn through the policies, here and now: no task is spawned.
--- Returns its results, or those of a fallback. Raises the error that no policy could mend: the
--- last one of fn, unchanged; RetryError (`reraise = false`); AllFailedError (with fallbacks).
---@param fn function
---@param ... any its arguments
---@return any ...
function methods:execute(fn, ...)
  if type(fn) ~= "function" then
    check.callable(fn, "execute.fn")
  end
  return self.call(fn, ...)
end

local function results_or_error(ok, ...)
  if ok then
    return ...
  end
  local err = ...
  if core.is_cancelled(err) then
    core.yield() -- raises the caller's own cancellation again; another's is a failure like any
  elseif outcome.is_final(err) then
    core.reraise(err)
  end
  return nil, outcome.shown(err)
end

--- Like execute, but returns nil and the error where that raises. Only the cancellation of the
--- caller is raised all the same. An error that is nil comes as an OperoError which says so.
---@param fn function
---@param ... any
---@return any ... the results, or nil and the error
function methods:try(fn, ...)
  if type(fn) ~= "function" then
    check.callable(fn, "try.fn")
  end
  return results_or_error(self.pipeline(fn, ...))
end

local function limit_of(self)
  local config = self.config.concurrency_config
  return config and concurrency.fixed_limit(config)
end

--- Calls every function with every item, all at once as far as `concurrency_config` permits.
--- Raises an ItemError for the first failure, when it has cancelled the rest: index (the place in
--- the list of results), item, function_index, item_index, cause.
---@param functions function|table a function or a list of them. The list may bear the options
---  `on_error` and `max_in_flight` of map as well.
---@param ... any the items
---@return table results the first result of each call, with n: those of the first function for all
---  items in their order, then those of the second, and so on
---@return table? errors with `on_error = "collect"`: the errors at the same places, with n
function methods:process(functions, ...)
  return batch.process(self.pipeline, limit_of(self), functions, ...)
end

---@class opero.MapOptions
---@field on_error "raise"|"collect"? "raise" (default): the first failure cancels the rest and is
---  raised as an ItemError; "collect": every item is tried
---@field max_in_flight integer? how many items at most are started and not yet finished (imap: not
---  yet consumed); default: the concurrency limit if there is one, else without bound; for imap
---  64, or twice the limit if that is more

--- Calls fn with every item.
--- Raises an ItemError (index, item, cause) for the first failure, when it has cancelled the rest;
--- an error of the iterator as it is.
---@param fn function is given one item; its first result is kept
---@param items table|function a list (with holes if it has an n), or an iterator: called, by one
---  task at a time, until it returns nil
---@param options opero.MapOptions?
---@return table results in the order of the items, with n
---@return table? errors with `on_error = "collect"`: the errors, each at its item's place, with n
function methods:map(fn, items, options)
  return batch.map(self.pipeline, limit_of(self), fn, items, options)
end

--- Calls fn with every item, a bounded number of them ahead of the loop:
---
---     for result, err, index in orch:imap(fn, items, options) do ... end
---
--- Results come in the order of the items; a result of nil comes as false. With
--- `on_error = "collect"` a failed item comes as false and its error; else an ItemError (index,
--- item, cause) is raised in the loop when the failed item's turn has come. So is an error of the
--- iterator, as it is, after the items before it. Input is read as the loop goes on. Leaving the
--- loop, by break or an error, cancels what is in flight.
---@param fn function
---@param items table|function as in map
---@param options opero.MapOptions?
---@return fun(): any, any, integer? next_result
---@return nil
---@return nil
---@return table closing ends it; for the generic `for`
function methods:imap(fn, items, options)
  return batch.imap(self.pipeline, limit_of(self), fn, items, options)
end

-- ---- what it tells of itself ------------------------------------------------------------------

local TELLS_OF_EXECUTIONS <const> = { success = true, failure = true }

-- The layer that tells of executions, for when somebody listens.
local function telling(next_layer, told)
  local function tell(began, ok, ...)
    local name = ok and "success" or "failure"
    if (ok or not outcome.is_final(...)) and told:note(name) then
      local fields = { seconds = core.now() - began }
      if not ok then
        fields.error = (...)
      end
      told:tell(name, fields)
    end
    return ok, ...
  end
  return outcome.protected(function(...)
    return tell(core.now(), next_layer(...))
  end)
end

local function put_together(self)
  local layer = self.policies
  local listeners = self.told.listeners
  if listeners.success or listeners.failure then
    layer = telling(layer, self.told)
  end
  -- An execution has a correlation id, and is counted.
  self.pipeline = core.execution(layer, self.meter)
  self.call = core.execution(layer, self.meter, true)
end

--- Has fn called with the fields of each such event (docs/events.md lists them), besides other
--- listeners. An error of it is reported, and breaks nothing. Raises ConfigError.
---@param name opero.EventName
---@param fn fun(fields: table)
function methods:on(name, fn)
  self.told:on(name, fn)
  if TELLS_OF_EXECUTIONS[name] then
    put_together(self)
  end
end

---@class opero.OrchestratorStats
---@field executions integer that have ended
---@field succeeded integer
---@field failed integer
---@field cancelled integer
---@field events table<opero.EventName, integer> how often each has happened
---@field latency opero.Latency of executions, but for those that were cancelled
---@field concurrency opero.BulkheadStats? with concurrency_config
---@field circuit_breaker opero.CircuitBreakerMetrics? with circuit_breaker_config; of those with
---  keys only the breaker itself knows more

---@class opero.Latency seconds; percentiles are off by less than 1 %
---@field count integer
---@field mean number?
---@field min number?
---@field max number?
---@field p50 number?
---@field p90 number?
---@field p99 number?
---@field p999 number?

--- Counts since it was made, and how long executions took.
---@return opero.OrchestratorStats
function methods:stats()
  local succeeded, failed, cancelled, latency = self.meter:read()
  for name, fraction in pairs { p50 = 0.5, p90 = 0.9, p99 = 0.99, p999 = 0.999 } do
    latency[name] = self.meter:percentile(fraction)
  end
  local counts = {}
  for name, count in pairs(self.told.counts) do
    counts[name] = count
  end
  local config = self.config
  return {
    executions = succeeded + failed + cancelled,
    succeeded = succeeded, failed = failed, cancelled = cancelled,
    events = counts,
    latency = latency,
    concurrency = config.concurrency_config and self.bulkhead:stats() or nil,
    circuit_breaker = config.circuit_breaker_config and self.breaker:metrics() or nil,
  }
end

--- The duration that so great a part of the executions did not exceed.
---@param fraction number from 0 to 1
---@return number? seconds nil when there was none
function methods:percentile(fraction)
  if type(fraction) ~= "number" or not (fraction >= 0 and fraction <= 1) then
    check.fail("percentile.fraction", fraction, "a number from 0 to 1")
  end
  return self.meter:percentile(fraction)
end

--- Closes the pool that `multiprocess_config` made, as Pool:close does; one that was given stays
--- open. Without either there is nothing to close. Also through a `<close>` variable.
---@param timeout number?
function methods:close(timeout)
  if self.pool and self.pool ~= self.config.multiprocess_config then
    self.pool:close(timeout)
  end
end

local mt = {
  __name = "opero.Orchestrator",
  __index = methods,
  __close = function(self, err)
    methods.close(self, err ~= nil and 0 or nil)
  end,
}

--- Makes an orchestrator. Raises ConfigError.
---@param given opero.OrchestratorConfig|{ config: opero.OrchestratorConfig }|nil
---@return opero.Orchestrator
function orchestrator.new(given)
  local config = check.options(orchestrator.options, unwrap(given), "config")
  local workers = config.multiprocess_config
  if workers and type(workers) == "table" then
    workers = pool.open(workers)
  end
  local told, objects = events.new(config.logger, config.on), pipeline.with_objects(config)
  local self = setmetatable({
    config = config,
    pool = workers,
    told = told,
    meter = core.meter(),
    bulkhead = objects.concurrency_config,
    breaker = objects.circuit_breaker_config,
    policies = pipeline.compose(objects, workers and pool.layer(workers) or core.invoke, told),
  }, mt)
  put_together(self)
  if config.name then
    metrics.register(config.name, self)
  end
  return self
end

return orchestrator
