-- Coroutines resumed in turn by a loop in Lua: no timers, no descriptors, no cancellation.
local measure = require "measure"

local create, resume, yield = coroutine.create, coroutine.resume, coroutine.yield

local rows = {}

---Resumes each of the list in turn until all of them have ended.
local function loop(list)
  local n = #list
  while n > 0 do
    local kept = 0
    for i = 1, n do
      local co = list[i]
      assert(resume(co))
      if coroutine.status(co) ~= "dead" then
        kept = kept + 1
        list[kept] = co
      end
    end
    for i = kept + 1, n do
      list[i] = nil
    end
    n = kept
  end
end

-- The processor's time serves as a clock here: this loop never waits.
function rows.spawn(n)
  local function work()
    yield()
  end
  local start = os.clock()
  local list = {}
  for i = 1, n do
    list[i] = create(work)
  end
  loop(list)
  measure.report { rate = n / (os.clock() - start) }
end

function rows.switch(tasks, total)
  local rounds = total // tasks
  local list = {}
  for i = 1, tasks do
    list[i] = create(function()
      for _ = 1, rounds do
        yield()
      end
    end)
  end
  local start = os.clock()
  loop(list)
  measure.report { rate = rounds * tasks / (os.clock() - start) }
end

function rows.memory(n)
  local list = table.move({}, 1, n, 1)
  local before = measure.rss()
  local function work()
    yield()
  end
  for i = 1, n do
    local co = create(work)
    resume(co)
    list[i] = co
  end
  measure.report { bytes = (measure.rss() - before) / n }
end

function rows.call(n)
  local function work(x)
    return x
  end
  local start = os.clock()
  for i = 1, n do
    pcall(work, i)
  end
  measure.report { ns = (os.clock() - start) / n * 1e9 }
end

measure.main(rows)
