--- Many items through one pipeline: process, map, imap.
--
-- The work is done by a crew of tasks, the workers. Each takes the next item, passes it through the
-- pipeline, puts the result in its place, and takes the next. One worker more than are busy is kept
-- in reserve, as far as the limits allow: so a function that never suspends is called for all items
-- by two tasks, and one that does has as many calls under way as it may.
--
-- A worker with nothing to do ends; whoever makes room or work for one hires another. No worker
-- ever waits for room. So an imap that is left without being closed blocks nobody, its parent task
-- neither.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local outcome = require "opero.outcome"

local batch = {}

---@class opero.batch.Crew
---@field name string "process", "map" or "imap"
---@field pipeline opero.Layer
---@field take fun(): boolean, any, function? the next item and its function; false at the end
---@field put fun(crew, index: integer, ok: boolean, value: any, item: any)
---@field total number how many items there are; infinity while that is not known
---@field started integer how many were taken
---@field consumed integer how many the loop over an imap has had
---@field window number how many may be started and not consumed
---@field limit number how many workers may live
---@field alive integer how many do
---@field idle integer how many of these have no item: not begun, or reading
---@field is_reading boolean one is in `take`
---@field scope table? the scope of the workers
---@field host table? imap: the task of that scope
---@field previous table? imap: the one before it, which may have a turn to go

---@type opero.check.Spec
local map_options = {
  fields = {
    on_error = { type = "enum", values = { "raise", "collect" }, default = "raise" },
    max_in_flight = { type = "integer", min = 1 },
  },
}

-- How far an imap is ahead of its loop when nothing else says so.
local WINDOW <const> = 64

-- ---- the crew -----------------------------------------------------------------------------------

local function has_work(crew)
  return crew.started < crew.total
    and crew.started - crew.consumed < crew.window
    and not crew.is_reading
end

local hire

local function work(crew)
  local pipeline, take, put = crew.pipeline, crew.take, crew.put
  while has_work(crew) do
    -- Reading may suspend. The reader counts as idle meanwhile, so nobody is hired to read too.
    crew.is_reading = true
    local more, item, fn = take()
    crew.is_reading = false
    if not more or crew.started >= crew.total then -- the end, or a failure meanwhile
      crew.total = crew.started
      break
    end
    local index = crew.started + 1
    crew.started = index
    crew.idle = crew.idle - 1
    hire(crew)
    local ok, value = pipeline(fn, item)
    crew.idle = crew.idle + 1
    put(crew, index, ok, value, item)
  end
  crew.idle = crew.idle - 1
  crew.alive = crew.alive - 1
end

function hire(crew)
  if crew.idle == 0 and crew.alive < crew.limit and has_work(crew) then
    crew.idle = 1
    crew.alive = crew.alive + 1
    crew.scope:spawn(work, crew)
  end
end

-- Somebody cancelled a worker, and nothing else: its item would be lost without a word.
local function lost_worker(name)
  return errors.CancelledError(name .. ": a task that worked on its items was cancelled")
end

--- The error that says which item has failed.
---@param index integer
---@param item any
---@param err any its error
---@param fields table further fields; `traceback` is that of err where it is left out
---@return opero.Error
function batch.item_error(index, item, err, fields)
  fields.index, fields.item, fields.cause = index, item, err
  fields.traceback = fields.traceback or core.traceback(err)
  return errors.ItemError(("item %d: %s"):format(index, errors.summary(err)), fields)
end

local function item_error(crew, index, item, err)
  return batch.item_error(index, item, err, crew.place and crew.place(index) or {})
end

-- ---- what to read -------------------------------------------------------------------------------

local function take_from_list(items, fn, total)
  local index = 0
  return function()
    index = index + 1
    return index <= total, items[index], fn
  end
end

local function take_from_iterator(iterate, fn)
  return function()
    local item = iterate()
    return item ~= nil, item, fn
  end
end

--- The length of a list: its n if it has one. Raises ConfigError.
---@param items table
---@param path string
---@return integer
function batch.length_of(items, path)
  local n = items.n
  if n == nil then
    return #items
  end
  local length = math.type(n) and math.tointeger(n)
  if not length or length < 0 then
    check.fail(path .. ".n", n, "an integer >= 0")
  end
  return length
end

local function options_for(name, given)
  if given == nil then
    given = {}
  end
  return check.options(map_options, given, name)
end

-- A new crew for the items, which are a list or an iterator.
local function crew_for(name, pipeline, fn, items)
  check.callable(fn, name .. ".fn")
  local path = name .. ".items"
  local crew = {
    name = name, pipeline = pipeline,
    total = math.huge, window = math.huge, limit = math.huge,
    started = 0, consumed = 0, alive = 0, idle = 0, is_reading = false,
  }
  if check.is_callable(items) then
    crew.take = take_from_iterator(items, fn)
  elseif type(items) == "table" then
    crew.total = batch.length_of(items, path)
    crew.take = take_from_list(items, fn, crew.total)
  else
    check.fail(path, items, "a list or an iterator function")
  end
  return crew
end

-- ---- all at once: map and process ---------------------------------------------------------------

-- Sends the crew through all items. Returns their results, and their errors if these are collected.
local function finish(crew, limit, options)
  local results, failures = {}, options.on_error == "collect" and {} or nil
  crew.limit = math.min(limit or math.huge, options.max_in_flight or math.huge)

  function crew.put(_, index, ok, value, item)
    if ok then
      results[index] = value
    elseif failures then
      if core.is_cancelled(value) then
        core.yield() -- where a cancelled worker is told again, and leaves
      end
      failures[index] = outcome.shown(value)
    else
      crew.total = 0 -- no other item is begun
      local err = item_error(crew, index, item, value)
      core.yield() -- a cancelled worker leaves here: its failure came later, or because of that
      error(err)
    end
  end

  core.scope(function(scope)
    crew.scope = scope
    hire(crew)
  end)

  if crew.alive > 0 then
    error(lost_worker(crew.name))
  end
  results.n = crew.started
  if failures then
    failures.n = crew.started
  end
  return results, failures
end

---@param pipeline opero.Layer
---@param limit integer? of the concurrency
---@param fn function
---@param items table|function
---@param options opero.MapOptions?
---@return table results
---@return table? errors
function batch.map(pipeline, limit, fn, items, options)
  local crew = crew_for("map", pipeline, fn, items)
  return finish(crew, limit, options_for("map", options))
end

-- The functions of process, and the options that stand beside them.
local function functions_of(given)
  if check.is_callable(given) or type(given) ~= "table" then
    return check.callables(given, "process"), options_for("process")
  end
  local list, options = {}, {}
  for key, value in next, given do
    (type(key) == "string" and options or list)[key] = value
  end
  return check.callables(list, "process"), options_for("process", options)
end

---@param pipeline opero.Layer
---@param limit integer? of the concurrency
---@param given function|table
---@param ... any the items
---@return table results
---@return table? errors
function batch.process(pipeline, limit, given, ...)
  local functions, options = functions_of(given)
  if #functions == 0 then
    check.fail("process", given, "at least one function")
  end
  local items, count = { ... }, select("#", ...)
  local function place(index)
    return {
      function_index = (index - 1) // count + 1,
      item_index = (index - 1) % count + 1,
    }
  end
  local crew = crew_for("process", pipeline, functions[1], { n = #functions * count })
  crew.place = place
  local index = 0
  function crew.take()
    index = index + 1
    if index > crew.total then
      return false
    end
    local at = place(index)
    return true, items[at.item_index], functions[at.function_index]
  end
  return finish(crew, limit, options)
end

-- ---- one by one: imap ---------------------------------------------------------------------------

-- What a place in the ring holds once its item has ended.
local DONE <const>, FAILED <const> = 1, 2

local ENDED <const> = { done = true, failed = true, cancelled = true }

local function await_end(task)
  if task and not ENDED[task:status()] then
    core.shield(pcall, task.await, task)
  end
end

-- The task in which the workers of an imap live, as long as there are any. The last worker of the
-- previous one may be gone, and yet that task have a turn to go: it is not to outlive this one.
local function run_host(crew, previous)
  local ok, err = pcall(core.scope, function(scope)
    crew.scope = scope
    work(crew)
  end)
  await_end(previous)
  if crew.alive > 0 then
    crew.arrival:set()
  end
  if not ok then
    core.reraise(err)
  end
end

-- Workers never fail, but they may have been cancelled: by a cancellation that the loop's task was
-- given too and swallowed, for one. It must not wait for them then.
local function raise_if_broken(crew)
  if crew.alive > 0 and ENDED[crew.host:status()] then
    crew.host:await()
    error(lost_worker(crew.name))
  end
end

local function hire_for_imap(crew)
  if crew.alive > 0 then
    hire(crew)
  elseif has_work(crew) then
    crew.idle, crew.alive = 1, 1
    crew.previous = crew.host
    crew.host = core.spawn(run_host, crew, crew.previous)
  end
end

-- Notes how an item ended, and wakes the loop if that is the one it waits for.
local function put_into_ring(crew, index, ok, value, item)
  local slot = (index - 1) % crew.window + 1
  if ok then
    crew.values[slot] = value
  else
    if core.is_cancelled(value) then
      core.yield() -- where a cancelled worker is told again, and leaves
    end
    crew.values[slot] = { item = item, err = value }
    if not crew.collects then
      crew.total = crew.started -- the loop ends at this item, none behind it is begun
    end
  end
  crew.marks[slot] = ok and DONE or FAILED
  if crew.is_awaited and index == crew.consumed + 1 then
    crew.is_awaited = false
    crew.arrival:set()
  end
end

-- The loop has to come to the items before the one that could not be read.
local function take_guarded(crew, iterate, fn)
  return function()
    local ok, item = pcall(iterate)
    if not ok then
      core.yield() -- a cancelled worker leaves here
      crew.source_error = { item }
      item = nil
    end
    if item == nil then
      crew.arrival:set()
      return false
    end
    return true, item, fn
  end
end

-- Cancels what is in flight and waits until it has ended.
local function close(crew)
  crew.is_closed = true
  crew.total = 0
  local host = crew.host
  if host and not ENDED[host:status()] and crew.alive > 0 then
    host:cancel()
  end
  await_end(host)
  await_end(crew.previous) -- a host that is cancelled before it began does not wait for it
  for slot in pairs(crew.marks) do
    crew.marks[slot] = nil
    crew.values[slot] = nil
  end
end

-- What a loop over an imap holds. The workers do not, so it can be collected while they work.
local handle_mt = {
  __name = "opero.imap",
  __close = function(handle)
    close(handle.crew)
  end,
  __gc = function(handle)
    if handle.crew.alive > 0 then
      handle.crew.host:cancel()
    end
  end,
}

-- Waits until the next item has ended. Returns false at the end of the items.
local function wait_for_next(crew)
  while not crew.is_closed do
    local next_index = crew.consumed + 1
    if crew.marks[(next_index - 1) % crew.window + 1] then
      return true
    elseif next_index > crew.total then
      close(crew)
      if crew.source_error then
        core.reraise(crew.source_error[1])
      end
      break
    end
    raise_if_broken(crew)
    hire_for_imap(crew)
    crew.is_awaited = true
    crew.arrival:clear()
    crew.arrival:wait()
  end
  return false
end

---@param pipeline opero.Layer
---@param limit integer? of the concurrency
---@param fn function
---@param items table|function
---@param options opero.MapOptions?
---@return function next_result
---@return nil
---@return nil
---@return table handle to be closed
function batch.imap(pipeline, limit, fn, items, options)
  local crew = crew_for("imap", pipeline, fn, items)
  options = options_for("imap", options)
  local window = options.max_in_flight or math.max(WINDOW, 2 * (limit or 0))
  local marks, values = {}, {}
  crew.window, crew.limit = window, math.min(limit or math.huge, window)
  crew.collects = options.on_error == "collect"
  crew.marks, crew.values, crew.put = marks, values, put_into_ring
  crew.arrival = core.event()
  if crew.total == math.huge then
    crew.take = take_guarded(crew, items, fn)
  end
  local handle = setmetatable({ crew = crew }, handle_mt)

  local function next_result()
    local slot = crew.consumed % window + 1
    local mark = marks[slot]
    if not mark then
      if not wait_for_next(handle.crew) then
        return nil
      end
      slot = crew.consumed % window + 1
      mark = marks[slot]
    end
    local index, value = crew.consumed + 1, values[slot]
    crew.consumed = index
    marks[slot] = nil
    values[slot] = nil
    if mark == FAILED and not crew.collects then
      close(crew)
      error(item_error(crew, index, value.item, value.err))
    end
    if crew.idle == 0 then
      hire_for_imap(crew)
    end
    if mark == FAILED then
      return false, outcome.shown(value.err), index
    elseif value == nil then
      return false, nil, index
    end
    return value, nil, index
  end

  return next_result, nil, nil, handle
end

return batch
