--- What the specs of the pool share. Workers load it too: what submitted functions use of it
--- travels by name.

local core = require "opero.core"
local dirent = require "posix.dirent"
local errors = require "opero.errors"
local opero = require "opero"
local runtime_support = require "spec.runtime.support"
local shared = require "spec.support"
local signal = require "posix.signal"
local unistd = require "posix.unistd"

-- busted loads modules anew for each file of specs. Then the error classes are not the first of
-- their names any more, as they are in a fresh interpreter, and do not travel to one and back.
if core.encode(errors.OperoError):find("OperoError#", 1, true) then
  error("the specs of the pool want opero to be loaded once, before busted (tools/busted.lua)", 0)
end

local support = {
  closing = runtime_support.closing,
  is_cancellation = runtime_support.is_cancellation,
  raised = shared.raised,
  raised_class = runtime_support.raised_class,
  recorder = shared.recorder,
  refused = shared.refused,
}

--- Under AddressSanitizer there is no limiting of address space, and all takes longer.
support.is_sanitized = (os.getenv("LD_PRELOAD") or ""):find("asan", 1, true) ~= nil

local slowness <const> = support.is_sanitized and 5 or 1

--- Seconds within which something happens that does not have to be waited for.
support.soon = 3 * slowness

-- How long something is waited for that has to happen.
local PATIENCE <const> = 10 * slowness

-- ---- pools -------------------------------------------------------------------------------------

--- Calls `define` with the name of each backend, to define the same specs for all.
---@param define fun(backend: string)
function support.each_backend(define)
  for _, backend in ipairs { "fork", "spawn" } do
    define(backend)
  end
end

--- A pool of that backend, of at most two workers unless the options say otherwise.
---@param backend string
---@param options table?
function support.pool(backend, options)
  local all = { backend = backend, max_workers = 2 }
  for name, value in pairs(options or {}) do
    all[name] = value
  end
  return opero.Pool(all)
end

--- The numbers in its stats, without the pids.
---@return table<string, integer>
function support.counts(pool)
  local stats = pool:stats()
  stats.pids = nil
  return stats
end

--- The pid of its only worker.
---@return integer
function support.only_pid(pool)
  local pids = pool:stats().pids
  assert(#pids == 1, ("expected one worker, there are %d"):format(#pids))
  return pids[1]
end

--- The squares of the numbers from 1 on.
---@return integer[]
function support.squares(count)
  local list = {}
  for i = 1, count do
    list[i] = i * i
  end
  return list
end

-- ---- waiting -----------------------------------------------------------------------------------

--- A test that runs as a task, in real time, and fails when it does not come to an end.
function support.task(fn)
  return function()
    opero.run(opero.timeout, 2 * PATIENCE, fn)
  end
end

--- Lets the loop run until the condition holds; an error when it does not within so many seconds.
---@param condition fun(): any
---@param seconds number? default: so many that it never will
---@return any what the condition returned
function support.eventually(condition, seconds)
  local deadline = opero.now() + (seconds or PATIENCE)
  repeat
    local holds = condition()
    if holds then
      return holds
    end
    opero.sleep(0.001)
  until opero.now() > deadline
  error("what should have come to hold never did", 2)
end

--- Waits until that many tasks of the pool have begun.
function support.until_running(pool, count)
  support.eventually(function()
    return pool:stats().running == count
  end)
end

--- Waits until there is nothing that the pool has to do.
function support.until_unemployed(pool)
  support.eventually(function()
    local stats = pool:stats()
    return stats.running == 0 and stats.queued == 0
  end)
end

-- ---- processes ---------------------------------------------------------------------------------

--- Is there a process of this number, be it a zombie?
---@param pid integer
---@return boolean
function support.is_alive(pid)
  return signal.kill(pid, 0) == 0
end

--- Waits until the process has ended and nobody has to wait for it any more.
function support.until_gone(pid)
  support.eventually(function()
    return not support.is_alive(pid)
  end)
end

--- The child processes of this one, zombies too.
---@return integer[] pids
function support.children()
  local own, pids = unistd.getpid(), {}
  for name in dirent.files("/proc") do
    local file <close> = name:find("^%d+$") and io.open(("/proc/%s/stat"):format(name)) or nil
    local parent = file and (file:read("a") or ""):match("^%d+ %(.*%) %a (%d+)")
    if tonumber(parent) == own then
      pids[#pids + 1] = tonumber(name)
    end
  end
  return pids
end

--- How many open descriptors this process has.
---@return integer
function support.descriptors()
  local count = 0
  for name in dirent.files("/proc/self/fd") do
    if name:find("^%d+$") then
      count = count + 1
    end
  end
  return count
end

--- The niceness of this process.
---@return integer
function support.niceness()
  local file <close> = assert(io.open("/proc/self/stat"))
  local fields = {} -- from number 3 of proc(5) on
  for field in file:read("a"):match("^.*%) (.*)$"):gmatch("%S+") do
    fields[#fields + 1] = field
  end
  return math.tointeger(tonumber(fields[19 - 2]))
end

--- The program that runs the specs.
---@return string
function support.interpreter()
  local first = 0
  while arg[first - 1] do
    first = first - 1
  end
  return arg[first]
end

-- ---- files: how tasks in different processes hear of each other ---------------------------------

local temporary = {}

--- The path of an empty file, removed by clean_up.
---@return string
function support.file()
  local path = os.tmpname()
  temporary[#temporary + 1] = path
  return path
end

function support.clean_up()
  for _, path in ipairs(temporary) do
    os.remove(path)
  end
  temporary = {}
end

--- Appends a line to the file, with tabs between the values. Any process may do so at any time.
---@param path string
---@param ... any
function support.note(path, ...)
  local texts = table.pack(...)
  for i = 1, texts.n do
    texts[i] = tostring(texts[i])
  end
  local file <close> = assert(io.open(path, "a"))
  assert(file:write(table.concat(texts, "\t") .. "\n"))
end

--- The lines of the file.
---@return string[]
function support.lines(path)
  local list = {}
  for line in io.lines(path) do
    list[#list + 1] = line
  end
  return list
end

--- Waits until there are that many lines in the file, one if it is not said; an error when they do
--- not come.
---@param path string
---@param count integer?
---@return string "open"
function support.wait_for(path, count)
  local deadline = opero.now() + PATIENCE
  while #support.lines(path) < (count or 1) do
    if opero.now() > deadline then
      error("waited in vain for " .. path, 0)
    end
    opero.sleep(0.001)
  end
  return "open"
end

--- Ends the wait of all who wait for the file.
function support.open(path)
  support.note(path, "open")
end

--- Notes the process's number in the file, and waits until that many have done so.
---@return integer pid
function support.meet(path, count)
  support.note(path, unistd.getpid())
  support.wait_for(path, count)
  return unistd.getpid()
end

--- A value for a `<close>` variable that notes why it is closed: "cancelled", or the error.
function support.noting_close(path)
  return support.closing(function(err)
    support.note(path, support.is_cancellation(err) and "cancelled" or tostring(err))
  end)
end

return support
