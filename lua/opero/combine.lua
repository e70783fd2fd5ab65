--- Several functions or tasks at once: all of them, any of them, or a race.
--
-- As everywhere in Opero a call fails when it raises and when it returns nil and an error. Those
-- that are no longer needed are cancelled, and have ended when all, any or race returns.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local outcome = require "opero.outcome"

local combine = {}

local function is_task(value)
  local mt = type(value) == "userdata" and debug.getmetatable(value)
  return mt and mt.__name == "opero.Task" or false
end

-- A list of the entries, each checked.
local function check_entries(entries, name, at_least)
  if type(entries) ~= "table" or check.is_callable(entries) then
    check.fail(name, entries, "a list of functions or tasks")
  end
  local list = {}
  for i = 1, check.last_index(entries, name) do
    local entry = entries[i]
    if not is_task(entry) and not check.is_callable(entry) then
      check.fail(check.join(name, i), entry, "a function or a task")
    end
    list[i] = entry
  end
  if #list < at_least then
    check.fail(name, entries, "at least one function or task")
  end
  return list
end

local function call(entry)
  if is_task(entry) then
    return core.invoke(entry.await, entry)
  end
  return core.invoke(entry)
end

-- Closing it ends the tasks that were given and are still running: no scope here is their home.
local tasks_mt = {
  __close = function(tasks)
    for _, task in ipairs(tasks) do
      task:cancel()
    end
    core.shield(function()
      for _, task in ipairs(tasks) do
        pcall(task.await, task)
      end
    end)
  end,
}

local function tasks_among(entries)
  local tasks = {}
  for _, entry in ipairs(entries) do
    if is_task(entry) then
      tasks[#tasks + 1] = entry
    end
  end
  return #tasks > 0 and setmetatable(tasks, tasks_mt) or nil
end

-- Somebody cancelled an entry alone, which the others did not notice.
local function raise_cancelled(failure, name)
  core.reraise(failure and failure[1] or errors.CancelledError(name .. ": an entry was cancelled"))
end

--- Runs all at once and waits for all. The first failure cancels the rest and is raised unchanged.
--- Raises ConfigError for an entry that is neither a function nor a task.
---@param entries (function|opero.Task)[]
---@return table results the first result of each, in order, with n
function combine.all(entries)
  entries = check_entries(entries, "all", 0)
  local results, missing, failure = { n = #entries }, #entries, nil
  local _ <close> = tasks_among(entries)
  core.scope(function(scope)
    for i, entry in ipairs(entries) do
      scope:spawn(function()
        local ok, value = call(entry)
        if ok then
          results[i] = value
          missing = missing - 1
        elseif not failure then
          failure = { value } -- what fails from now on fails because of this
          if core.is_cancelled(value) then
            core.yield() -- where an entry that was cancelled itself leaves
          end
          core.reraise(value)
        end
      end)
    end
  end)
  if missing > 0 then
    raise_cancelled(failure, "all")
  end
  return results
end

-- Runs all at once until `judge(i, results, err)` has returned a decision, and cancels what still
-- runs then. Returns nil when all have ended and there is none.
local function run_until_decided(entries, name, judge)
  local decision, missing, failure = nil, #entries, nil
  local _ <close> = tasks_among(entries)
  core.scope(function(scope)
    for i, entry in ipairs(entries) do
      scope:spawn(function()
        local results, err = outcome.keep(call(entry))
        if core.is_cancelled(err) then
          failure = failure or { err }
          core.yield() -- where an entry that was cancelled itself leaves
        end
        missing = missing - 1
        if not decision then
          decision = judge(i, results, err)
          if decision then
            scope:cancel()
          end
        end
      end)
    end
  end)
  if missing > 0 and not decision then
    raise_cancelled(failure, name)
  end
  return decision
end

--- Runs all at once and returns the results of the first that succeeds; the others are cancelled.
--- Raises AllFailedError when all have failed, ConfigError for an empty list or a wrong entry.
---@param entries (function|opero.Task)[]
---@return any ...
function combine.any(entries)
  entries = check_entries(entries, "any", 1)
  local failures = { n = #entries }
  local results = run_until_decided(entries, "any", function(i, results, err)
    failures[i] = err
    return results
  end)
  if not results then
    core.reraise(outcome.all_failed(failures))
  end
  return table.unpack(results, 1, results.n)
end

--- Runs all at once and does as the first does that ends: returns its results or raises its error,
--- unchanged. The others are cancelled. Raises ConfigError for an empty list or a wrong entry.
---@param entries (function|opero.Task)[]
---@return any ...
function combine.race(entries)
  entries = check_entries(entries, "race", 1)
  local first = run_until_decided(entries, "race", function(_, results, err)
    return results or { failed = true, err = err }
  end)
  if first.failed then
    core.reraise(first.err)
  end
  return table.unpack(first, 1, first.n)
end

return combine
