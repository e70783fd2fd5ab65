--- Worker processes for work that burns CPU or may kill its process.
--
-- The pool is written in C (csrc/pool.c); here its options are checked, and map and imap cut their
-- items into chunks.

local batch = require "opero.batch"
local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local outcome = require "opero.outcome"

---@class opero.PoolConfig
---@field max_workers integer? worker processes at most; they start when a task finds no idle one;
---  default: as many as there are processors online
---@field backend "fork"|"spawn"? "fork" (default): workers inherit all that is loaded; "spawn":
---  each is a fresh interpreter with this one's package paths, safe in programs with threads
---@field init function? called once in each worker, before its first task
---@field task_timeout number? seconds; a task that runs longer ends with a TimeoutError, and its
---  worker is killed and replaced; default: no limit
---@field max_tasks_per_worker integer? a worker that has begun so many is replaced; default: no
---  limit
---@field tasks_per_worker integer? so many tasks run in a worker at once, while all but one are
---  suspended; from 1 to 256; default 1
---@field memory_limit integer? bytes of address space that a worker may take beyond what it has
---  when it starts; default: no limit
---@field nice integer? the niceness of the workers, from -20 to 19; default: as this process
---@field idle_timeout number? seconds; a worker that was idle so long is let go; default: it stays
---@field cancel "kill"|"wait"? what becomes of a task that runs when it is cancelled. "kill"
---  (default): its worker is interrupted, so that its code can clean up, killed after 0.5 s at the
---  latest, and replaced; "wait": it is left to end, and its results are dropped
---@field accept_functions boolean? results and errors may hold functions: code that a worker sends
---  is loaded here; default false
---@field interpreter string? the program for `backend = "spawn"`; default: the one that runs this
---  script, else lua5.4

local pool = {}

---@type opero.check.Spec
pool.options = {
  fields = {
    max_workers = { type = "integer", min = 1 },
    backend = { type = "enum", values = { "fork", "spawn" }, default = "fork" },
    init = { check = check.callable },
    task_timeout = { type = "number", above = 0 },
    max_tasks_per_worker = { type = "integer", min = 1 },
    tasks_per_worker = { type = "integer", min = 1, max = 256, default = 1 },
    memory_limit = { type = "integer", min = 1 },
    nice = { type = "integer", min = -20, max = 19 },
    idle_timeout = { type = "number", min = 0 },
    cancel = { type = "enum", values = { "kill", "wait" }, default = "kill" },
    accept_functions = { type = "boolean", default = false },
    interpreter = {
      check = function(value, path)
        if type(value) ~= "string" or value == "" or value:find("\0", 1, true) then
          check.fail(path, value, "the name of a program")
        end
        return value
      end,
    },
  },
}

local function is_pool(value)
  local mt = type(value) == "userdata" and debug.getmetatable(value)
  return mt and mt.__name == "opero.Pool" or false
end

--- The option `multiprocess_config`: the options of a pool, or a pool.
---@type opero.check.Field
pool.field = {
  check = function(value, path)
    return is_pool(value) and value or check.options(pool.options, value, path)
  end,
}

--- Checks a table of options. Raises ConfigError.
---@type fun(given: opero.PoolConfig?): opero.PoolConfig
pool.config = check.constructor("MultiprocessConfig", pool.options)

-- The interpreter that runs this script; a host program has none to name.
local function this_interpreter()
  local words, first = rawget(_G, "arg"), 0
  while type(words) == "table" and words[first - 1] ~= nil do
    first = first - 1
  end
  return first < 0 and tostring(words[first]) or "lua5.4"
end

local BOOT <const> = "package.path, package.cpath = %q, %q; require 'opero'; "
  .. "require 'opero.core'.work(3, 4)"

--- Makes a pool of completed options.
---@param config opero.PoolConfig
---@return opero.Pool
function pool.open(config)
  local options = {}
  for name, value in next, config do
    options[name] = value
  end
  options.max_workers = options.max_workers or core.processors()
  options.interpreter = options.interpreter or this_interpreter()
  options.code = BOOT:format(package.path, package.cpath)
  return core.pool(options)
end

--- Makes a pool. Raises ConfigError; SerializationError when `init` cannot travel to workers that
--- are spawned.
---@param given opero.PoolConfig?
---@return opero.Pool
function pool.new(given)
  return pool.open(check.options(pool.options, given == nil and {} or given, "Pool"))
end

--- The policy of an orchestrator: each call of the function is a task of the pool.
---@param workers opero.Pool
---@return opero.Layer
function pool.layer(workers)
  local call, invoke = workers.call, core.invoke
  return function(fn, ...)
    return invoke(call, workers, fn, ...)
  end
end

-- ---- chunks: how many items go to a worker at once ---------------------------------------------

-- A worker should come back with its results after so many seconds: often enough for the work to be
-- spread evenly, seldom enough for the way there and back to cost little.
local TARGET <const> = 0.002
local LARGEST <const> = 16384
local GROWTH <const> = 8 -- at most, from one chunk to the next: the first ones tell little

---@class opero.pool.Sizer
---@field fixed integer? the option chunk_size
---@field size integer the size of the last chunk
---@field seconds number? what an item takes, about
---@field runners integer how many chunks are with the pool at once
---@field alone boolean each item is a task of its own

local function sizer_for(workers, fixed)
  local max_workers, slots = workers:_limits()
  return {
    fixed = slots > 1 and 1 or fixed, size = 0, seconds = nil,
    max_workers = max_workers,
    runners = slots > 1 and max_workers * (slots + 1) or 2 * max_workers,
  }
end

-- The size of the next chunk when so many items are left.
local function next_size(sizer, left)
  if sizer.fixed then
    return math.min(sizer.fixed, left)
  end
  local size = sizer.size * GROWTH
  if sizer.seconds then
    size = math.min(size, TARGET / sizer.seconds)
  end
  -- towards the end they get smaller, so that no worker is left with much more than the others
  size = math.min(size, LARGEST, left / (2 * sizer.max_workers))
  sizer.size = math.max(1, math.floor(size))
  return sizer.size
end

local function learn(sizer, seconds, count)
  if count > 0 then
    local each = seconds / count
    sizer.seconds = sizer.seconds and (sizer.seconds + each) / 2 or each
  end
end

-- Sends items[first] to items[last] through the pool, as often as it takes. What had not gone out
-- when the pool was closed has failed for that.
local function run_range(workers, sizer, fn, items, first, last, results, failures)
  while first <= last do
    local ok, next_index, seconds, count =
      pcall(workers._chunk, workers, fn, items, first, last, results, failures)
    if ok then
      learn(sizer, seconds, count)
    elseif errors.is(next_index, errors.ClosedError) then
      for i = first, last do
        failures[i] = { next_index }
      end
      return
    else
      core.reraise(next_index)
    end
    first = next_index
  end
end

local function item_error(index, item, failure)
  return batch.item_error(index, item, failure[1], { traceback = failure[2] })
end

-- ---- all at once -------------------------------------------------------------------------------

local map_options = {
  fields = {
    on_error = { type = "enum", values = { "raise", "collect" }, default = "raise" },
    chunk_size = { type = "integer", min = 1 },
  },
}

local imap_options = {
  fields = {
    on_error = { type = "enum", values = { "raise", "collect" }, default = "raise" },
    chunk_size = { type = "integer", min = 1 },
    ordered = { type = "boolean", default = true },
    max_in_flight = { type = "integer", min = 1 },
  },
}

-- The items as a list, and how many they are.
local function list_of(items, path)
  if check.is_callable(items) then
    local list, count = {}, 0
    for item in items do
      count = count + 1
      list[count] = item
    end
    return list, count
  elseif type(items) == "table" then
    return items, batch.length_of(items, path)
  end
  return check.fail(path, items, "a list or an iterator function")
end


---@class opero.Pool
local methods = {}

---@class opero.PoolMapOptions
---@field on_error "raise"|"collect"? "raise" (default): the first failure cancels the rest and is
---  raised as an ItemError (index, item, cause); "collect": every item is tried
---@field chunk_size integer? how many items go to a worker at once; default: by the time they take

--- Calls fn with every item, in the workers. A call fails when it raises or returns nil and an
--- error. Raises ItemError, ConfigError, ClosedError, SerializationError when fn cannot travel.
---@param fn function is given one item; its first result is kept
---@param items table|function a list (with holes if it has an n), or an iterator
---@param options opero.PoolMapOptions?
---@return table results in the order of the items, with n
---@return table? errors with `on_error = "collect"`: the errors, each at its item's place, with n
function methods:map(fn, items, options)
  check.callable(fn, "map.fn")
  options = check.options(map_options, options == nil and {} or options, "map")
  local list, total = list_of(items, "map.items")
  local results, failures = {}, {}
  local sizer, next_index = sizer_for(self, options.chunk_size), 1
  local raises = options.on_error == "raise"

  local function run()
    while next_index <= total do
      local first = next_index
      local last = first + next_size(sizer, total - first + 1) - 1
      next_index = last + 1
      run_range(self, sizer, fn, list, first, last, results, failures)
      if raises and next(failures) ~= nil then
        next_index = total + 1
        local index = math.huge
        for failed in next, failures do
          index = math.min(index, failed)
        end
        error(item_error(index, list[index], failures[index]))
      end
    end
  end

  core.scope(function(scope)
    for _ = 1, math.min(sizer.runners, total) do
      scope:spawn(run)
    end
  end)
  results.n = total
  if raises then
    return results
  end
  local collected = { n = total }
  for index, failure in next, failures do
    collected[index] = outcome.shown(failure[1])
  end
  return results, collected
end

-- ---- one by one --------------------------------------------------------------------------------

-- How many items are with the pool or waiting for the loop when nothing else says so: what its
-- runners can be given, and as much again that is done.
local IMAP_LARGEST <const> = 2048

local ENDED <const> = { done = true, failed = true, cancelled = true }

---@class opero.pool.Part a chunk on its way
---@field first integer index of its first item
---@field count integer
---@field items table
---@field results table
---@field failures table
---@field task opero.Task
---@field is_done boolean

-- Sends a part through the pool. What hinders it is what became of its items.
local function run_part(state, part)
  local ok, err = pcall(run_range, state.workers, state.sizer, state.fn, part.items, 1, part.count,
    part.results, part.failures)
  if not ok then
    if core.is_cancelled(err) then
      core.reraise(err)
    end
    for i = 1, part.count do
      if part.results[i] == nil and part.failures[i] == nil then
        part.failures[i] = { err }
      end
    end
  end
  part.is_done = true
  part.items = part.failures[next(part.failures)] and part.items -- for the error alone
  state.running = state.running - 1
  if not state.ordered then
    state.last = state.last + 1
    state.parts[state.last] = part
  end
  state.arrival:set()
end

-- Reads items and sends them off, as far as there is room.
local function fill(state)
  while not state.is_exhausted and state.running < state.sizer.runners
    and state.in_flight < state.max_in_flight do
    local size = math.min(next_size(state.sizer, state.left()), IMAP_LARGEST,
      state.max_in_flight - state.in_flight)
    local items, count = {}, 0
    while count < size do
      local ok, item, more = pcall(state.read)
      if not ok then
        if core.is_cancelled(item) then
          core.reraise(item)
        end
        state.source_error = { item }
      end
      if not ok or not more then
        state.is_exhausted = true
        break
      end
      count = count + 1
      items[count] = item
    end
    if count > 0 then
      local part = {
        first = state.started + 1, count = count, items = items, results = {}, failures = {},
        is_done = false,
      }
      state.started = state.started + count
      state.in_flight = state.in_flight + count
      state.running = state.running + 1
      part.task = core.spawn(run_part, state, part)
      state.tasks[part.task] = true
      if state.ordered then
        state.last = state.last + 1
        state.parts[state.last] = part
      end
    end
  end
end

local function take_part(state)
  local part = state.parts[state.next]
  if part and part.is_done then
    state.parts[state.next] = nil
    state.next = state.next + 1
    state.tasks[part.task] = nil
    return part
  end
end

-- Cancels what is in flight and waits until it has ended.
local function close(state)
  state.is_exhausted, state.is_closed = true, true
  state.current = nil
  local tasks = state.tasks
  state.tasks = {}
  for task in next, tasks do
    task:cancel()
  end
  for task in next, tasks do
    if not ENDED[task:status()] then
      core.shield(pcall, task.await, task)
    end
  end
end

-- The next part that has ended, nil at the end of the items.
local function next_part(state)
  while not state.is_closed do
    fill(state)
    local part = take_part(state)
    if part then
      return part
    elseif state.running == 0 then
      state.is_closed = true
      if state.source_error then
        core.reraise(state.source_error[1])
      end
      break
    end
    state.arrival:clear()
    state.arrival:wait()
    for task in next, state.tasks do
      if task:status() == "cancelled" or task:status() == "failed" then
        close(state)
        error(errors.CancelledError("imap: a task that worked on its items was cancelled"))
      end
    end
  end
end

local handle_mt = {
  __name = "opero.pool.imap",
  __close = function(handle)
    close(handle.state)
  end,
}

---@class opero.PoolImapOptions: opero.PoolMapOptions
---@field ordered boolean? true (default): results in the order of the items; false: as they come
---@field max_in_flight integer? how many items at most are read and not yet consumed; default: as
---  many as keep the workers busy

--- Calls fn with every item, in the workers, a bounded number of them ahead of the loop:
---
---     for result, err, index in pool:imap(fn, items, options) do ... end
---
--- A result of nil comes as false. With `on_error = "collect"` a failed item comes as false and its
--- error; else an ItemError is raised in the loop when its turn has come. Leaving the loop cancels
--- what is in flight.
---@param fn function
---@param items table|function as in map
---@param options opero.PoolImapOptions?
---@return fun(): any, any, integer? next_result
---@return nil
---@return nil
---@return table handle closing ends it; for the generic `for`
function methods:imap(fn, items, options)
  check.callable(fn, "imap.fn")
  options = check.options(imap_options, options == nil and {} or options, "imap")
  local state = {
    workers = self, fn = fn, sizer = sizer_for(self, options.chunk_size),
    ordered = options.ordered, max_in_flight = options.max_in_flight or math.huge,
    parts = {}, next = 1, last = 0, tasks = {}, arrival = core.event(),
    started = 0, in_flight = 0, running = 0, is_exhausted = false, is_closed = false,
  }
  if check.is_callable(items) then
    function state.read()
      local item = items()
      return item, item ~= nil
    end
    function state.left()
      return math.huge
    end
  elseif type(items) == "table" then
    local index, total = 0, batch.length_of(items, "imap.items")
    function state.read()
      index = index + 1
      return items[index], index <= total
    end
    function state.left()
      return math.max(1, total - index)
    end
  else
    check.fail("imap.items", items, "a list or an iterator function")
  end
  if not options.max_in_flight then
    state.max_in_flight = 2 * state.sizer.runners * math.max(IMAP_LARGEST, options.chunk_size or 1)
  end
  local part, at, raises = nil, 0, options.on_error == "raise"

  local function next_result()
    if part == nil or at == part.count then
      if part then
        part = nil
      end
      part, at = next_part(state), 0
      if part == nil then
        return nil
      end
    end
    at = at + 1
    state.in_flight = state.in_flight - 1
    local failure, index = part.failures[at], part.first + at - 1
    if failure == nil then
      local value = part.results[at]
      if value == nil then
        value = false
      end
      return value, nil, index
    elseif raises then
      local item = part.items[at]
      close(state)
      error(item_error(index, item, failure))
    end
    return false, outcome.shown(failure[1]), index
  end

  return next_result, nil, nil, setmetatable({ state = state }, handle_mt)
end

-- The pools of a state share their methods: those that came first stay, should this file be loaded
-- once more.
for name, method in next, methods do
  core.pool_methods[name] = core.pool_methods[name] or method
end

return pool
