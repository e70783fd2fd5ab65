--- Events: what the policies do, told to listeners and to a logger, and counted.
--
-- What the caller learns anyway, by an error or by a result, is of level info or less: by default
-- the logger is quiet.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local outcome = require "opero.outcome"

local events = {}

---@alias opero.EventName string one of those that docs/events.md lists

---@class opero.EventKind
---@field level opero.Level of the record
---@field message string of the record

--- All events there are.
---@type table<opero.EventName, opero.EventKind>
events.kinds = {
  success = { level = "debug", message = "execution succeeded" },
  failure = { level = "debug", message = "execution failed" },
  retry = { level = "info", message = "attempt failed, will retry" },
  retries_exhausted = { level = "info", message = "all attempts failed" },
  retry_refused = { level = "info", message = "attempt failed, no time or budget to retry" },
  fallback = { level = "info", message = "function failed, will fall back" },
  fallbacks_exhausted = { level = "info", message = "all fallbacks failed" },
  timeout = { level = "info", message = "timed out" },
  rate_limited = { level = "debug", message = "rate limit reached, will wait" },
  rate_rejected = { level = "info", message = "rate limit reached, rejected" },
  queued = { level = "debug", message = "concurrency limit reached, will wait" },
  queue_full = { level = "info", message = "queue full, rejected" },
  limit_changed = { level = "debug", message = "concurrency limit changed" },
  breaker_open = { level = "warning", message = "circuit breaker opened" },
  breaker_half_open = { level = "info", message = "circuit breaker half-open" },
  breaker_close = { level = "info", message = "circuit breaker closed" },
  breaker_rejected = { level = "debug", message = "circuit breaker open, rejected" },
  hedge = { level = "debug", message = "slow, will hedge" },
  cache_hit = { level = "debug", message = "result from the cache" },
  cache_miss = { level = "debug", message = "result not in the cache" },
  cache_shared = { level = "debug", message = "result of a concurrent call" },
  cache_stale = { level = "info", message = "failed, an old result from the cache" },
  chaos = { level = "debug", message = "fault injected" },
}

local LEVELS <const> = { "debug", "info", "warning", "error" }
local NUMBERS <const> = { debug = 1, info = 2, warning = 3, error = 4 } -- as the core has them

--- Whatever has these methods; each is given a message and a table of fields.
---@class opero.LoggerLike
---@field debug fun(self, message: string, fields: table)
---@field info fun(self, message: string, fields: table)
---@field warning fun(self, message: string, fields: table)
---@field error fun(self, message: string, fields: table)
---@field enabled (fun(self, level: string): boolean)? says that a record would come to nothing

local function index(object, key)
  return object[key]
end

local function method_of(object, name)
  local ok, method = pcall(index, object, name)
  return ok and check.is_callable(method) and method or nil
end

--- The option `logger`.
---@type opero.check.Field
events.logger_field = {
  check = function(value, path)
    for _, level in ipairs(LEVELS) do
      if not method_of(value, level) then
        check.fail(path, value, "an object with the methods debug, info, warning and error")
      end
    end
    return value
  end,
}

local function check_name(name, path)
  if events.kinds[name] == nil then
    check.fail(path, name,
      "the name of an event: " .. table.concat(check.sorted_names(events.kinds), ", "))
  end
  return name
end

--- The option `on`: listeners by the names of events.
---@type opero.check.Field
events.listeners_field = {
  check = function(value, path)
    if type(value) ~= "table" then
      check.fail(path, value, "a table of listeners by the names of events")
    end
    local listeners = {}
    for name, listener in next, value do
      check_name(name, path)
      listeners[name] = check.callable(listener, check.join(path, name))
    end
    return listeners
  end,
}

-- Who listens must not make a call fail; nor may it swallow the cancellation of one, or Ctrl-C.
local function carefully(what, fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then
    return result
  elseif outcome.is_final(result) then
    core.reraise(result)
  end
  warn("opero: ", what, " failed: ", errors.summary(result))
  return false
end

local own_logger = core.logger("opero")

---@class opero.Events
---@field counts table<opero.EventName, integer>
local methods = {}
local mt = { __index = methods, __name = "opero.Events" }

local function count(self, name)
  local counts = self.counts
  counts[name] = (counts[name] or 0) + 1
end

-- They are given a table of their own: a logger may keep what it was given.
local function tell_listeners(self, name, fields)
  local list = self.listeners[name]
  if list then
    local told = { event = name }
    for key, value in next, fields do
      told[key] = value
    end
    for _, listener in ipairs(list) do
      carefully("a listener", listener, told)
    end
  end
end

--- Counts an event. True: somebody wants to be told of it, with its fields.
---@param name opero.EventName
---@return boolean
function methods:note(name)
  count(self, name)
  return self.listeners[name] ~= nil or self.is_logged(events.kinds[name].level)
end

--- Tells of an event that was noted. Suspends if a listener does; raises a cancellation alone.
---@param name opero.EventName
---@param fields table given to listeners with `event`, the name, in it
function methods:tell(name, fields)
  local kind = events.kinds[name]
  if self.is_logged(kind.level) then
    carefully("the logger", self.log[kind.level], kind.message, fields)
  end
  tell_listeners(self, name, fields)
end

--- Has fn called with the fields of each such event. Raises ConfigError.
---@param name opero.EventName
---@param fn fun(fields: table)
function methods:on(name, fn)
  check_name(name, "on.name")
  check.callable(fn, "on.listener")
  local list = {}
  for i, listener in ipairs(self.listeners[name] or {}) do
    list[i] = listener -- a new one: whoever is being told goes on with the old
  end
  list[#list + 1] = fn
  self.listeners[name] = list
end

--- Makes what policies tell of their events.
---@param logger opero.LoggerLike? default: the logger "opero"
---@param listeners table<opero.EventName, function>?
---@return opero.Events
function events.new(logger, listeners)
  logger = logger or own_logger
  local enabled, log = method_of(logger, "enabled"), {}
  for _, level in ipairs(LEVELS) do
    log[level] = function(message, fields)
      logger[level](logger, message, fields)
    end
  end
  local self = setmetatable({
    counts = {},
    listeners = {},
    log = log,
    is_logged = function(level)
      return not enabled or carefully("the logger", enabled, logger, level)
    end,
  }, mt)
  if logger == own_logger then
    function self.is_logged(level) -- which is quicker than to ask the logger
      return core.is_noted(NUMBERS[level])
    end
  end
  for name, listener in next, listeners or {} do
    self.listeners[name] = { listener }
  end
  return self
end

---@class opero.events.Nested: opero.Events
---@field inner opero.Events
---@field outer opero.Events
local nested = {}
local nested_mt = { __index = nested, __name = "opero.events.Nested" }

function nested:note(name)
  count(self.inner, name)
  return self.outer:note(name) or self.inner.listeners[name] ~= nil
end

function nested:tell(name, fields)
  self.outer:tell(name, fields)
  tell_listeners(self.inner, name, fields)
end

--- For a pipeline in another: the listeners of both are told, the logger of the outer one alone.
---@param inner opero.Events
---@param outer opero.Events
---@return opero.Events
function events.nested(inner, outer)
  return setmetatable({ inner = inner, outer = outer }, nested_mt)
end

--- For policies that stand alone: the logger "opero" is told.
events.default = events.new()

return events
