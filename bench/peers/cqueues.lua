local measure = require "measure"
local ok, cqueues = pcall(require, "cqueues")
if not ok then
  measure.missing "the cqueues module is not installed"
end

local now, poll, sleep = cqueues.monotime, cqueues.poll, cqueues.sleep

local rows = {}

---n tasks that exist at the same time, each suspended once.
function rows.spawn(n)
  local cq = cqueues.new()
  local start = now()
  local function work()
    poll(0)
  end
  for _ = 1, n do
    cq:wrap(work)
  end
  assert(cq:loop())
  measure.report { rate = n / (now() - start) }
end

function rows.empty(n)
  local cq = cqueues.new()
  local start = now()
  local function nothing() end
  for _ = 1, n do
    cq:wrap(nothing)
  end
  assert(cq:loop())
  measure.report { rate = n / (now() - start) }
end

function rows.beside(alive, total)
  local cq = cqueues.new()
  local never = require("cqueues.condition").new()
  local function work()
    poll(0)
  end
  cq:wrap(function()
    for _ = 1, alive do
      cq:wrap(function()
        never:wait()
      end)
    end
    poll(0)
    local start = now()
    for _ = 1, total // 100 do
      for _ = 1, 100 do
        cq:wrap(work)
      end
      poll(0)
      poll(0)
    end
    measure.report { rate = total / (now() - start) }
    os.exit(true)
  end)
  assert(cq:loop())
end

function rows.switch(tasks, total)
  local cq = cqueues.new()
  local rounds = total // tasks
  for _ = 1, tasks do
    cq:wrap(function()
      for _ = 1, rounds do
        poll(0)
      end
    end)
  end
  local start = now()
  assert(cq:loop())
  measure.report { rate = rounds * tasks / (now() - start) }
end

function rows.timers(n, lead)
  local cq = cqueues.new()
  local lateness, delay = measure.timers(n, lead, now)
  for i = 1, n do
    cq:wrap(function()
      local seconds = delay(i)
      local due = now() + seconds
      sleep(seconds)
      lateness[i] = now() - due
    end)
  end
  assert(cq:loop())
  measure.report_lateness(lateness)
end

function rows.memory(n)
  local cq = cqueues.new()
  local before = measure.rss()
  local function work()
    sleep(3600)
  end
  for _ = 1, n do
    cq:wrap(work)
  end
  assert(cq:step(0))
  measure.report { bytes = (measure.rss() - before) / n }
end

measure.main(rows)
