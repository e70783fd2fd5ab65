--- Pipelines: policies around each other, in any order.
--
-- The orchestrator is one of a fixed order, made from its options.

local cache = require "opero.cache"
local chaos = require "opero.chaos"
local check = require "opero.check"
local circuit_breaker = require "opero.circuit_breaker"
local concurrency = require "opero.concurrency"
local core = require "opero.core"
local events = require "opero.events"
local fallback = require "opero.fallback"
local hedge = require "opero.hedge"
local outcome = require "opero.outcome"
local rate_limit = require "opero.rate_limit"
local retry = require "opero.retry"
local retry_budget = require "opero.retry_budget"
local timeout = require "opero.timeout"

local pipeline = {}

-- ---- the policies and their options -------------------------------------------------------------

-- Those of fallbacks make one policy together.
local fallback_options = {
  fallbacks = fallback.field,
  fallback_on = fallback.matcher_field,
  arg_fallback = fallback.arg_field,
}

local function fallback_layer(config, next_layer, told, others)
  return fallback.layer({
    functions = config.fallbacks, matches = config.fallback_on, arguments = config.arg_fallback,
  }, next_layer, told, others)
end

local function layer_of(option, policy, name)
  local make = policy[name or "layer"]
  return function(config, next_layer, told)
    local value = config[option]
    if value == nil then
      return next_layer
    end
    return make(value, next_layer, told)
  end
end

-- The layers of an orchestrator around the fallbacks, and those that each function passes on its
-- own, outermost first: each makes one of all the options.
local around = {
  layer_of("cache_config", cache),
  layer_of("timeout_config", timeout, "total_layer"),
  layer_of("concurrency_config", concurrency),
}
local within = {
  layer_of("retry_config", retry),
  layer_of("hedge_config", hedge),
  layer_of("circuit_breaker_config", circuit_breaker),
  layer_of("rate_limit_config", rate_limit),
  layer_of("timeout_config", timeout, "attempt_layer"),
  layer_of("chaos_config", chaos),
}

--- The options of all policies.
---@type table<string, opero.check.Field>
pipeline.fields = {
  cache_config = cache.field,
  timeout_config = timeout.field,
  concurrency_config = concurrency.field,
  fallbacks = fallback_options.fallbacks,
  fallback_on = fallback_options.fallback_on,
  arg_fallback = fallback_options.arg_fallback,
  retry_config = retry.field,
  hedge_config = hedge.field,
  circuit_breaker_config = circuit_breaker.field,
  rate_limit_config = rate_limit.field,
  chaos_config = chaos.field,
}

--- What the options of several policies say of each other.
---@param config table completed
---@param path string
function pipeline.verify(config, path)
  if config.fallback_on and not config.fallbacks and not config.arg_fallback then
    check.fail(check.join(path, "fallback_on"), config.fallback_on,
      "nothing without fallbacks or arg_fallback, for which it says when")
  end
  local times = config.timeout_config
  local limit = config.retry_config and config.retry_config.max_elapsed
  if limit and times and times.total and limit > times.total then
    check.fail(path .. ".retry_config.max_elapsed", limit,
      ("a number <= timeout_config.total, which is %s and ends all"):format(times.total))
  end
  local hedging = config.hedge_config
  if hedging and times and times.attempt and type(hedging.delay) == "number"
    and hedging.delay >= times.attempt then
    check.fail(path .. ".hedge_config.delay", hedging.delay,
      ("a number < timeout_config.attempt, which is %s: before that delay every attempt has ended")
        :format(times.attempt))
  end
end

local function surround(layers, config, layer, told)
  for i = #layers, 1, -1 do
    layer = layers[i](config, layer, told)
  end
  return layer
end

local function copy(config)
  local copied = {}
  for key, value in pairs(config) do
    copied[key] = value
  end
  return copied
end

--- Puts the layers of a completed table of options together, around the innermost one. What has a
--- state has to be an object in it already: see with_objects.
---@param config table
---@param innermost opero.Layer
---@param told opero.Events
---@return opero.Layer
function pipeline.compose(config, innermost, told)
  local layer = surround(within, config, innermost, told)
  local others = layer
  if config.fallbacks and config.circuit_breaker_config then
    -- The breaker is the function's: when it is open the fallbacks have to run.
    local unbroken = copy(config)
    unbroken.circuit_breaker_config = nil
    others = surround(within, unbroken, innermost, told)
  end
  return surround(around, config, fallback_layer(config, layer, told, others), told)
end

-- ---- pipelines of users -------------------------------------------------------------------------

---@class opero.Pipeline
---@field private layer opero.Layer all of it in one
---@field private compose fun(innermost: opero.Layer, told: opero.Events): opero.Layer
---@field private told opero.Events
local methods = {}
local mt = { __name = "opero.Pipeline", __index = methods }

local OBJECTS <const> = {
  ["opero.CircuitBreaker"] = "circuit_breaker_config",
  ["opero.RateLimiter"] = "rate_limit_config",
  ["opero.Bulkhead"] = "concurrency_config",
  ["opero.Chaos"] = "chaos_config",
}

--- A copy of the options in which what has a state is an object, made once: a pipeline that stands
--- in several others has one limit, as an object would.
---@param config table completed; it stays as it is
---@return table
function pipeline.with_objects(config)
  local made = {
    circuit_breaker_config = circuit_breaker, rate_limit_config = rate_limit,
    concurrency_config = concurrency, chaos_config = chaos,
  }
  local objects = copy(config)
  for name, policy in pairs(made) do
    if config[name] and getmetatable(config[name]) == nil then
      objects[name] = policy.from(config[name])
    end
  end
  if config.retry_config and config.retry_config.budget then
    objects.retry_config = copy(config.retry_config)
    objects.retry_config.budget = retry_budget.of(config.retry_config.budget)
  end
  return objects
end

---@type opero.check.Spec
local element_options = { fields = pipeline.fields, verify = pipeline.verify }

-- A user's policy, `function(next) return function(...) end end`: what it returns for each function
-- it is to wrap is kept as long as that.
local function user_layer(policy, path)
  return function(next_layer)
    local wrapped = setmetatable({}, { __mode = "k" })
    local function wrap(fn)
      local wrapper = policy(function(...)
        return outcome.raise(next_layer(fn, ...))
      end)
      if not check.is_callable(wrapper) then
        check.fail(path, wrapper, "a policy that returns a function when it is given one")
      end
      wrapped[fn] = wrapper
      return wrapper
    end
    return outcome.protected(function(fn, ...)
      return core.invoke(wrapped[fn] or wrap(fn), ...)
    end)
  end
end

local function element_layer(element, path)
  local class = getmetatable(element)
  if class == mt then
    return function(next_layer, told)
      return element.compose(next_layer, events.nested(element.told, told))
    end
  elseif type(class) == "table" and OBJECTS[class.__name] then
    element = { [OBJECTS[class.__name]] = element }
  elseif check.is_callable(element) then
    return user_layer(element, path)
  elseif type(element) ~= "table" or next(element) == nil then
    check.fail(path, element, "a policy: options such as { retry_config = {...} }, an object such "
      .. "as CircuitBreaker, a pipeline, or a function")
  end
  local config = pipeline.with_objects(check.options(element_options, element, path))
  local first, second
  for name in pairs(config) do
    if not fallback_options[name] then
      first, second = first or name, first and name or second
    end
  end
  if second or first and (config.fallbacks or config.fallback_on or config.arg_fallback) then
    check.fail(path, element, "one policy: the order of several is that of the pipeline")
  end
  return function(next_layer, told)
    return pipeline.compose(config, next_layer, told)
  end
end

--- Calls fn through the policies, here and now. Returns its results, or raises the error that no
--- policy could mend.
---@param fn function
---@param ... any its arguments
---@return any ...
function methods:execute(fn, ...)
  check.callable(fn, "execute.fn")
  return outcome.raise(self.layer(fn, ...))
end

--- A function that calls fn through the policies.
---@param fn function
---@return fun(...: any): any ...
function methods:wrap(fn)
  check.callable(fn, "wrap.fn")
  local layer = self.layer
  return function(...)
    return outcome.raise(layer(fn, ...))
  end
end

local OF_EXECUTIONS <const> = { success = true, failure = true }

--- Has fn called with the fields of each such event of these policies, wherever the pipeline
--- stands: of all but success and failure, which are of orchestrators. Raises ConfigError.
---@param name opero.EventName
---@param fn fun(fields: table)
function methods:on(name, fn)
  if OF_EXECUTIONS[name] then
    check.fail("on.name", name, "an event of a policy: of executions an orchestrator tells")
  end
  self.told:on(name, fn)
end

--- Makes a pipeline of policies, outermost first. Each is a table with the options of one, as an
--- orchestrator takes them; a CircuitBreaker, RateLimiter, Bulkhead or Chaos; a pipeline; or a
--- function that is given the next one to call and returns what is called in its place.
--- Raises ConfigError.
---@param elements table a list
---@return opero.Pipeline
function pipeline.new(elements)
  if type(elements) ~= "table" then
    check.fail("pipeline", elements, "a list of policies")
  end
  local layers = {}
  for i = 1, check.last_index(elements, "pipeline") do
    layers[i] = element_layer(elements[i], check.join("pipeline", i))
  end
  local function compose(innermost, told)
    local layer = innermost
    for i = #layers, 1, -1 do
      layer = layers[i](layer, told)
    end
    return layer
  end
  local told = events.new()
  return setmetatable({ compose = compose, told = told, layer = compose(core.invoke, told) }, mt)
end

return pipeline
