--- What the specs of the pool's faults share. Workers load it too: what tasks and `init` functions
--- use of it travels by name.

local dirent = require "posix.dirent"
local errors = require "opero.errors"
local opero = require "opero"
local stdlib = require "posix.stdlib"
local time = require "posix.time"
local unistd = require "posix.unistd"

local faults = {}

faults.backends = { "fork", "spawn" }

--- Under AddressSanitizer some things end differently, take more memory, and all takes longer.
faults.is_sanitized = (os.getenv("LD_PRELOAD") or ""):find("asan", 1, true) ~= nil

--- How much longer things take.
faults.slowness = faults.is_sanitized and 5 or 1

-- ---- waiting ---------------------------------------------------------------------------------

--- Lets the loop run until the condition holds; an error when it does not within so many seconds.
---@param what string
---@param condition fun(): any
---@param seconds number? default 5
---@return any holds what the condition returned
function faults.wait_until(what, condition, seconds)
  local deadline = opero.now() + (seconds or 5) * faults.slowness
  repeat
    local holds = condition()
    if holds then
      return holds
    end
    opero.sleep(0.001)
  until opero.now() > deadline
  error("waited in vain until " .. what, 2)
end

--- Waits while the loop of this process stands still; not for ever.
---@param condition fun(): any
function faults.stand_still_until(condition)
  local turns = 0
  while not condition() and turns < 5000 do
    time.nanosleep { tv_sec = 0, tv_nsec = 1000000 }
    turns = turns + 1
  end
end

--- A test that runs as a task, and fails when it does not come to an end.
function faults.task(fn)
  return function()
    opero.run(function()
      opero.timeout(30 * faults.slowness, fn)
    end)
  end
end

-- ---- processes -------------------------------------------------------------------------------

---@class spec.Process
---@field pid integer
---@field state string "Z" for a zombie
---@field parent integer
---@field session integer

--- The process of this number, nil when there is none, not even a zombie.
---@return spec.Process?
function faults.process(pid)
  local file <close> = io.open(("/proc/%d/stat"):format(pid))
  local state, parent, session =
    (file and file:read("a") or ""):match("^%d+ %(.*%) (%a) (%d+) %d+ (%d+)")
  return state and { pid = pid, state = state, parent = tonumber(parent),
    session = tonumber(session) }
end

--- All processes of which the condition holds.
local function processes(condition)
  local list = {}
  for name in dirent.files("/proc") do
    local process = name:find("^%d+$") and faults.process(tonumber(name))
    if process and condition(process) then
      list[#list + 1] = process
    end
  end
  return list
end

--- Whether the process runs no more. As a zombie it may wait for whoever inherited it.
function faults.is_gone(pid)
  local process = faults.process(pid)
  return process == nil or process.state == "Z" or process.state == "X"
end

--- The children of this process, zombies too.
---@return spec.Process[]
function faults.children()
  local own = unistd.getpid()
  return processes(function(process)
    return process.parent == own
  end)
end

--- Whether nobody is left in the session of a program, within a second of its end.
function faults.is_deserted(session)
  return pcall(faults.wait_until, "all are gone", function()
    return #processes(function(process)
      return process.session == session and process.state ~= "Z" and process.state ~= "X"
    end) == 0
  end, 1)
end

function faults.descriptors()
  local count = 0
  for _ in dirent.files("/proc/self/fd") do
    count = count + 1
  end
  return count
end

---@class spec.Mark
---@field children integer
---@field descriptors integer

--- How many children and descriptors there are, to compare with later on.
---@return spec.Mark
function faults.mark()
  collectgarbage()
  return { children = #faults.children(), descriptors = faults.descriptors() }
end

--- What is there now that was not when the mark was made, in words.
---@param mark spec.Mark
---@return string left "nothing" if all is as it was
function faults.left_since(mark)
  collectgarbage()
  local left, children = {}, faults.children()
  if #children > mark.children then
    for i, child in ipairs(children) do
      left[i] = ("child %d (%s)"):format(child.pid, child.state)
    end
  end
  local more = faults.descriptors() - mark.descriptors
  if more > 0 then
    left[#left + 1] = ("%d descriptors"):format(more)
  end
  return #left == 0 and "nothing" or table.concat(left, ", ")
end

--- A pool has been used here: what a process needs once for all of them is there.
function faults.warm_up(backend)
  local pool = opero.Pool { backend = backend, max_workers = 1 }
  pool:call(faults.square, 1)
  pool:close()
end

-- ---- files -----------------------------------------------------------------------------------

local temporary = {}

--- The path of an empty file, removed by clean_up.
function faults.file()
  local path = os.tmpname()
  temporary[#temporary + 1] = path
  return path
end

--- The path of an empty folder, removed by clean_up.
function faults.folder()
  local path = assert(stdlib.mkdtemp("/tmp/opero-spec-XXXXXX"))
  temporary[#temporary + 1] = path
  return path
end

function faults.clean_up()
  for _, path in ipairs(temporary) do
    os.execute("rm -rf " .. path)
  end
  temporary = {}
end

function faults.write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end

--- What is in the file, "" when there is none.
function faults.read(path)
  local file <close> = io.open(path)
  return file and file:read("a") or ""
end

--- Adds a line to a file. Several processes may do so at once.
function faults.note(path, value)
  local file <close> = assert(io.open(path, "a"))
  file:write(tostring(value) .. "\n")
end

--- How often each integer was noted in the file.
---@return table<integer, integer>
function faults.notes(path)
  local counts = {}
  for number in faults.read(path):gmatch("(%d+)\n") do
    number = math.tointeger(number)
    counts[number] = (counts[number] or 0) + 1
  end
  return counts
end

--- How many notes there are.
function faults.count_notes(path)
  return select(2, faults.read(path):gsub("\n", ""))
end

--- What `notes` returns when each of 1 to `last` was noted once.
function faults.once_each(last)
  local counts = {}
  for i = 1, last do
    counts[i] = 1
  end
  return counts
end

-- ---- tasks -----------------------------------------------------------------------------------

--- The list of the integers from 1 to `last`.
function faults.numbers(last)
  local list = {}
  for i = 1, last do
    list[i] = i
  end
  return list
end

function faults.square(x)
  return x * x
end

--- The same, and notes the number.
function faults.noted_square(path, x)
  faults.note(path, x)
  return x * x
end

--- Notes its first argument and waits for a signal.
function faults.note_and_sleep(number, path)
  faults.note(path, number)
  opero.sleep(60)
end

--- Notes its first argument and works.
function faults.note_and_work(number, path)
  faults.note(path, number)
  while true do end
end

local notes, turns

--- Called by `init`: where `noted_work` notes, and how long it works.
function faults.prepare_work(path, for_turns)
  notes, turns = assert(io.open(path, "a")), for_turns
  notes:setvbuf("no") -- each note is one write, whole even if its writer is killed
end

--- What `noted_work` returns.
function faults.worked(number)
  return number * 3 + 1
end

function faults.noted_work(number)
  notes:write(("%d\n"):format(number))
  for _ = 1, turns do end
  return faults.worked(number)
end

function faults.is_crash(err)
  return errors.is(err, errors.WorkerCrashedError)
end

--- The WorkerCrashedError with which the task ends.
function faults.crash_of(task)
  local ok, err = pcall(task.await, task)
  if ok or not faults.is_crash(err) then
    error("expected a WorkerCrashedError, got " .. tostring(err), 2)
  end
  return err
end

local function expect(what, expected, actual)
  if expected ~= actual then
    error(("%s: expected %s, got %s"):format(what, expected, actual), 3)
  end
end

--- Submits ten tasks; the function returned checks that each ran once, and that the pool goes on.
--- One of them may have begun before the fault was found out, and ended with it, when `check` is
--- called with true.
---@return fun(may_have_begun: boolean?) check
function faults.queue_behind(pool)
  local log, tasks = faults.file(), {}
  for i = 1, 10 do
    tasks[i] = pool:submit(faults.noted_square, log, i)
  end
  return function(may_have_begun)
    local crashed
    for i = 1, 10 do
      local ok, result = pcall(tasks[i].await, tasks[i])
      if ok then
        expect("the result of a task queued behind", i * i, result)
      elseif may_have_begun and not crashed and faults.is_crash(result) then
        crashed = i
      else
        error(result, 0)
      end
    end
    local counts = faults.notes(log)
    for i = 1, 10 do
      if i ~= crashed then
        expect("how often a task queued behind ran", 1, counts[i])
      end
    end
    expect("the result of a later task", 49, (pool:call(faults.square, 7)))
    local stats = pool:stats()
    expect("tasks queued in the end", 0, stats.queued)
    expect("tasks running in the end", 0, stats.running)
  end
end

--- Awaits the task: its result is whole, or its worker has crashed.
function faults.check_whole_or_crash(task, whole)
  local ok, result = pcall(task.await, task)
  if ok and result ~= whole then
    error("the result is not what the task returned", 2)
  elseif not ok and not faults.is_crash(result) then
    error("expected a WorkerCrashedError, got " .. tostring(result), 2)
  end
end

-- ---- programs of their own -------------------------------------------------------------------

local function interpreter()
  local first = 0
  while arg[first - 1] do
    first = first - 1
  end
  return arg[first]
end

---@class spec.ProgramOutcome
---@field code integer its exit status, or 128 and the number of the signal that ended it
---@field out string
---@field err string
---@field session integer it and its workers were in
---@field seconds number it took

local COMMAND <const> = [[exec timeout -k 1 60 setsid sh -c 'echo $$ >%s; exec "$@"' sh %s %s %s ]]
  .. ">%s 2>%s <%s"

--- Runs a Lua program in an interpreter and a session of its own.
---@param source string
---@param arguments string[]
---@param input string? for its stdin, which is a file
---@return spec.ProgramOutcome
function faults.run_program(source, arguments, input)
  local script, session, out, err = faults.file(), faults.file(), faults.file(), faults.file()
  local stdin = faults.file()
  faults.write(script, source)
  faults.write(stdin, input or "")
  local before = opero.now()
  local _, how, code = os.execute(COMMAND:format(session, interpreter(), script,
    table.concat(arguments, " "), out, err, stdin))
  return {
    code = how == "signal" and code + 128 or code,
    out = faults.read(out),
    err = faults.read(err),
    session = assert(tonumber(faults.read(session))),
    seconds = opero.now() - before,
  }
end

--- The same for a program that must end well and quietly, and leave nobody behind; returns what it
--- printed.
function faults.output_of(source, arguments, input)
  local outcome = faults.run_program(source, arguments, input)
  if outcome.code ~= 0 or outcome.err ~= "" then
    error(("the program ended with %d and said:\n%s%s"):format(
      outcome.code, outcome.out, outcome.err), 2)
  elseif not faults.is_deserted(outcome.session) then
    error("the program left somebody behind", 2)
  end
  return outcome.out
end

return faults
