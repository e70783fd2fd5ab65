-- Two processes, forked by luaposix, that are told nothing and tell nothing: what the machine can
-- give to a pool.
local measure = require "measure"
local ok, unistd = pcall(require, "posix.unistd")
if not ok then
  measure.missing "the luaposix module is not installed"
end
local wait = require("posix.sys.wait").wait
local now = measure.clock()

local PROCESSES = 2

local function burn(steps)
  local x = 1
  for _ = 1, steps do
    x = (x * 1103515245 + 12345) % 2147483648
  end
  return x
end

---Runs fn in each process, and waits for all of them.
local function together(fn)
  for _ = 1, PROCESSES do
    if assert(unistd.fork()) == 0 then
      fn()
      unistd._exit(0)
    end
  end
  for _ = 1, PROCESSES do
    assert(wait())
  end
end

local rows = {}

function rows.cpu(tasks, steps, turns)
  local function share(processes)
    for _ = 1, tasks // processes do
      burn(steps)
    end
  end
  local ratios = {}
  for turn = 1, turns do
    local start = now()
    share(1)
    local middle = now()
    together(function()
      share(PROCESSES)
    end)
    ratios[turn] = (middle - start) / (now() - middle)
  end
  measure.report { speedup = measure.percentile(ratios, 50) }
end

function rows.start(n)
  local times = {}
  for i = 1, n do
    local start = now()
    together(function() end)
    times[i] = now() - start
  end
  measure.report { ms = measure.percentile(times, 50) * 1e3 }
end

measure.main(rows)
