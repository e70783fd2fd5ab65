--- The orchestrator composes the policies; no policy knows another.

local batch = require "opero.batch"
local check = require "opero.check"
local concurrency = require "opero.concurrency"
local core = require "opero.core"
local errors = require "opero.errors"
local fallback = require "opero.fallback"
local outcome = require "opero.outcome"
local pool = require "opero.pool"
local rate_limit = require "opero.rate_limit"
local report = require "opero.report"
local retry = require "opero.retry"

---@class opero.OrchestratorConfig
---@field retry_config opero.RetryConfig? default: no retries
---@field fallbacks function|function[]? called in turn, with the arguments of the call, when the
---  function has failed; default: none
---@field rate_limit_config opero.RateLimitConfig? default: no limit
---@field concurrency_config opero.ConcurrencyConfig? default: no limit
---@field multiprocess_config opero.PoolConfig|opero.Pool? each attempt is a task of a pool: one of
---  its own, that is closed with it, or a given one; default: attempts run in the caller's task
---@field logger opero.LoggerLike? told of retries, fallbacks and waits; default: the logger "opero"

local orchestrator = {}

-- The order of the layers, outermost first. What stands below the fallbacks is passed by each
-- function on its own.
local layers = {
  { option = "concurrency_config", policy = concurrency },
  { option = "fallbacks", policy = fallback },
  { option = "retry_config", policy = retry },
  { option = "rate_limit_config", policy = rate_limit },
}

local function options_of(list)
  local fields = {
    logger = report.field,
    multiprocess_config = pool.field,
  }
  for _, layer in ipairs(list) do
    fields[layer.option] = layer.policy.field
  end
  return { fields = fields }
end

---@type opero.check.Spec
orchestrator.options = options_of(layers)

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
---@field private pool opero.Pool? in which its attempts run
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
  return outcome.raise(self.pipeline(fn, ...))
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
  return config and config.limit
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
  local told = config.logger and report.to(config.logger) or report.default
  local workers = config.multiprocess_config
  if workers and type(workers) == "table" then
    workers = pool.open(workers)
  end
  local pipeline = workers and pool.layer(workers) or core.invoke
  for i = #layers, 1, -1 do
    local layer = layers[i]
    if config[layer.option] ~= nil then
      pipeline = layer.policy.layer(config[layer.option], pipeline, told)
    end
  end
  pipeline = core.execution(pipeline) -- which has a correlation id
  return setmetatable({ config = config, pipeline = pipeline, pool = workers }, mt)
end

return orchestrator
