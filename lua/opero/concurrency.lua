--- Concurrency (a bulkhead): no more than so many executions at once. The others wait, first come
-- first served, unless they have priorities.

local adaptive = require "opero.adaptive"
local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local outcome = require "opero.outcome"

---@class opero.ConcurrencyConfig
---@field limit integer|"adaptive" how many executions may run at once; required. "adaptive": as
---  many as the other side can take, which is found out
---@field max_queue integer? how many may wait; one more fails with a QueueFullError; default: no
---  limit
---@field queue_timeout number? seconds; who waits longer fails with a TimeoutError; default: no
---  limit
---@field priority (fun(...): number)? of the arguments of a call that has to wait: the one with the
---  greatest goes first; default: all are equal
---@field min integer? adaptive: the least limit, with which it begins; default 1
---@field max integer? adaptive: the greatest; default 1000
---@field algorithm "aimd"|"gradient"? adaptive: "gradient" (default) goes by how long calls take,
---  "aimd" by failures

local concurrency = {}

---@type opero.check.Spec
concurrency.options = {
  fields = {
    limit = {
      check = function(value, path)
        local integer = math.type(value) and math.tointeger(value)
        if value ~= "adaptive" and (not integer or integer < 1) then
          check.fail(path, value, 'an integer >= 1, or "adaptive"')
        end
        return integer or value
      end,
      required = true,
    },
    max_queue = { type = "integer", min = 0 },
    queue_timeout = { type = "number", above = 0 },
    priority = { check = check.callable },
    min = { type = "integer", min = 1 },
    max = { type = "integer", min = 1 },
    algorithm = { type = "enum", values = adaptive.algorithms },
  },
  verify = function(options, path)
    if options.limit == "adaptive" then
      options.min, options.max = options.min or 1, options.max or 1000
      options.algorithm = options.algorithm or "gradient"
      if options.max < options.min then
        check.fail(check.join(path, "max"), options.max,
          ("an integer >= min, which is %d"):format(options.min))
      end
    else
      for _, name in ipairs { "min", "max", "algorithm" } do
        if options[name] ~= nil then
          check.fail(check.join(path, name), options[name], 'nothing without limit = "adaptive"')
        end
      end
    end
    if options.max_queue == 0 then
      for _, name in ipairs { "queue_timeout", "priority" } do
        if options[name] ~= nil then
          check.fail(check.join(path, name), options[name],
            "nothing with max_queue = 0, where nobody waits")
        end
      end
    end
  end,
}

--- Checks a table of options. Raises ConfigError.
---@type fun(given: opero.ConcurrencyConfig): opero.ConcurrencyConfig
concurrency.config = check.constructor("ConcurrencyConfig", concurrency.options)

-- ---- the line -----------------------------------------------------------------------------------

-- Who waits, in a heap: the greatest priority first, of equal ones who came first.
local function goes_before(a, b)
  if a.priority ~= b.priority then
    return a.priority > b.priority
  end
  return a.number < b.number
end

local function set(heap, i, waiter)
  heap[i] = waiter
  waiter.at = i
end

local function rise(heap, i)
  local waiter = heap[i]
  while i > 1 and goes_before(waiter, heap[i // 2]) do
    set(heap, i, heap[i // 2])
    i = i // 2
  end
  set(heap, i, waiter)
end

local function sink(heap, i)
  local waiter, count = heap[i], #heap
  while 2 * i <= count do
    local child = 2 * i
    if child < count and goes_before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not goes_before(heap[child], waiter) then
      break
    end
    set(heap, i, heap[child])
    i = child
  end
  set(heap, i, waiter)
end

local function remove(heap, i)
  local waiter, last = heap[i], table.remove(heap)
  if last ~= waiter then
    set(heap, i, last)
    rise(heap, i)
    sink(heap, last.at)
  end
  waiter.at = nil
  return waiter
end

---@class opero.Bulkhead
---@field config opero.ConcurrencyConfig completed
---@field private state opero.concurrency.State?
local methods = {}
local mt = { __name = "opero.Bulkhead", __index = methods }

---@class opero.concurrency.State of a bulkhead under one clock
---@field epoch integer
---@field fixed integer? the limit, if it does not adapt
---@field adaptive opero.adaptive.Limit?
---@field in_flight integer
---@field heap table[] who waits
---@field number integer how many have ever waited
---@field permit table to be closed once for each permit

local function limit_of(state)
  return state.fixed or math.floor(state.adaptive.limit)
end

-- Permits go to those who wait, as far as there are any.
local function hand_out(state)
  local heap = state.heap
  while heap[1] and state.in_flight < limit_of(state) do
    local waiter = remove(heap, 1)
    state.in_flight = state.in_flight + 1
    waiter.has_permit = true
    waiter.turn:set()
  end
end

local function give_back(state)
  state.in_flight = state.in_flight - 1
  if state.heap[1] then
    hand_out(state)
  end
end

local function new_state(config)
  local state = {
    epoch = core.epoch(), in_flight = 0, heap = {}, number = 0,
    fixed = config.limit ~= "adaptive" and config.limit or nil,
    adaptive = config.limit == "adaptive"
      and adaptive.new(config.algorithm, config.min, config.max) or nil,
  }
  -- Closing this gives a permit back however the execution ends, also when the coroutine it is
  -- suspended in is closed.
  state.permit = setmetatable({}, {
    __close = function()
      give_back(state)
    end,
  })
  return state
end

-- Under another clock, a simulation's, all starts afresh: who waited is not there any more.
local function state_of(self)
  local state = self.state
  if not state or state.epoch ~= core.epoch() then
    state = new_state(self.config)
    self.state = state
  end
  return state
end

-- Gives up what there is of a wait whose permit will not be used: the place in line, or the permit.
local function leave(waiter)
  if waiter.at then
    remove(waiter.state.heap, waiter.at)
  elseif waiter.has_permit then
    waiter.has_permit = false
    give_back(waiter.state)
  end
end

local waiter_mt = { __close = leave }

-- Waits for a permit, which the caller has to give back; or returns the error.
local function queue(state, config, priority, told)
  local heap, limit, max_queue = state.heap, limit_of(state), config.max_queue
  if max_queue and #heap >= max_queue then
    local err = errors.QueueFullError(
      ("%d executions are under way and %d wait: no more are taken"):format(
        state.in_flight, #heap),
      { limit = limit, max_queue = max_queue })
    if told:note("queue_full") then
      told:tell("queue_full", { limit = limit, max_queue = max_queue })
    end
    return err
  end
  local waiter <close> = setmetatable(
    { state = state, priority = priority, number = state.number, turn = core.event() }, waiter_mt)
  state.number = state.number + 1
  heap[#heap + 1] = waiter
  rise(heap, #heap)
  hand_out(state) -- the user's function that says the priority may have taken its time
  if not waiter.has_permit and told:note("queued") then
    told:tell("queued", { limit = limit, waiting = #heap })
  end
  local ok, err = pcall(waiter.turn.wait, waiter.turn, config.queue_timeout)
  if ok then
    waiter.has_permit = false -- it is the caller's
    return nil
  elseif not errors.is(err, errors.TimeoutError) then
    return err
  end
  leave(waiter)
  if told:note("timeout") then
    told:tell("timeout", { kind = "queue", timeout = config.queue_timeout })
  end
  return errors.TimeoutError(
    ("timed out after %s s in the queue of %d executions at once"):format(
      config.queue_timeout, limit),
    { timeout = config.queue_timeout })
end

---@class opero.BulkheadStats
---@field limit integer in force
---@field in_flight integer executions under way
---@field waiting integer

---@return opero.BulkheadStats
function methods:stats()
  local state = state_of(self)
  return { limit = limit_of(state), in_flight = state.in_flight, waiting = #state.heap }
end

--- Makes a bulkhead of completed options.
---@param config opero.ConcurrencyConfig
---@return opero.Bulkhead
function concurrency.from(config)
  return setmetatable({ config = config }, mt)
end

--- Makes a bulkhead; it may be given to several orchestrators in place of options. Raises
--- ConfigError.
---@param given opero.ConcurrencyConfig
---@return opero.Bulkhead
function concurrency.new(given)
  return concurrency.from(check.options(concurrency.options, given, "Bulkhead"))
end

--- The option `concurrency_config`: options, or a bulkhead.
---@type opero.check.Field
concurrency.field = {
  check = function(value, path)
    return getmetatable(value) == mt and value or check.options(concurrency.options, value, path)
  end,
}

--- The limit of a completed option; none when it adapts.
---@param value opero.ConcurrencyConfig|opero.Bulkhead
---@return integer?
function concurrency.fixed_limit(value)
  local limit = (getmetatable(value) == mt and value.config or value).limit
  return limit ~= "adaptive" and limit or nil
end

--- Wraps a layer.
---@param config opero.ConcurrencyConfig|opero.Bulkhead completed, or a bulkhead
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function concurrency.layer(config, next_layer, told)
  local self = getmetatable(config) == mt and config or concurrency.from(config)
  told = told or events.default
  config = self.config
  local priority_of = config.priority

  local function priority(...)
    local value = priority_of(...)
    if type(value) ~= "number" or value ~= value then
      check.fail("concurrency_config.priority", value, "a function that returns a number")
    end
    return value
  end

  local told_change = outcome.protected(function(limit, before, ...)
    told:tell("limit_changed", { limit = limit, before = before })
    return ...
  end)

  local call = {} -- the one that has just ended; it is not kept by who looks at it

  local function sampled(state, began, limit, phase, ok, ...)
    if ok or not outcome.is_final(...) then
      local before = limit_of(state)
      call.seconds, call.failed, call.in_flight = core.now() - began, not ok, state.in_flight
      call.limit, call.phase = limit, phase
      state.adaptive:sample(call)
      local now = limit_of(state)
      if now ~= before and told:note("limit_changed") then
        return told_change(now, before, ok, ...)
      end
    end
    return ok, ...
  end

  return function(fn, ...)
    local state = state_of(self)
    if not state.heap[1] and state.in_flight < limit_of(state) then
      state.in_flight = state.in_flight + 1
    else
      local ok, err = true, 0
      if priority_of then
        ok, err = pcall(priority, ...)
      end
      if ok then
        ok, err = pcall(queue, state, config, err, told)
      end
      if not ok or err then
        return false, err
      end
    end
    local _ <close> = state.permit
    if state.adaptive then
      local limit = state.adaptive
      return sampled(state, core.now(), limit.limit, limit.phase, next_layer(fn, ...))
    end
    return next_layer(fn, ...)
  end
end

return concurrency
