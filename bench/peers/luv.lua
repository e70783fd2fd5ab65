-- libuv has no tasks: coroutines resumed from its handles, as its users write them.
local measure = require "measure"
local ok, uv = pcall(require, "luv")
if not ok then
  measure.missing "the luv module is not installed"
end

local create, resume, running, yield =
  coroutine.create, coroutine.resume, coroutine.running, coroutine.yield

local function now()
  return uv.hrtime() / 1e9
end

---@param co thread
local function step(co)
  local fine, err = resume(co)
  if not fine then
    error(debug.traceback(co, err))
  end
end

-- What is ready to run: an idle handle drains it once a turn of the loop.
local ready, count = {}, 0
local idle = uv.new_idle()

local function drain()
  local list, n = ready, count
  ready, count = {}, 0
  for i = 1, n do
    step(list[i])
  end
  if count == 0 then
    idle:stop()
  end
end

local function pause()
  count = count + 1
  ready[count] = running()
  return yield()
end

local function spawn(fn)
  step(create(fn))
end

local function sleep(seconds)
  local co = running()
  local timer = uv.new_timer()
  timer:start(math.max(0, math.ceil(seconds * 1000)), 0, function()
    timer:close()
    step(co)
  end)
  return yield()
end

local rows = {}

function rows.spawn(n)
  local function work()
    pause()
  end
  local start = now()
  for _ = 1, n do
    spawn(work)
  end
  idle:start(drain)
  uv.run()
  measure.report { rate = n / (now() - start) }
end

function rows.beside(alive, total)
  local waiting = {} -- nobody resumes them
  for i = 1, alive do
    waiting[i] = create(yield)
    step(waiting[i])
  end
  local function work()
    pause()
  end
  spawn(function()
    local start = now()
    for _ = 1, total // 100 do
      for _ = 1, 100 do
        spawn(work)
      end
      pause()
      pause()
    end
    measure.report { rate = total / (now() - start), waiting = #waiting }
    os.exit(true)
  end)
  idle:start(drain)
  uv.run()
end

function rows.switch(tasks, total)
  local rounds = total // tasks
  for _ = 1, tasks do
    spawn(function()
      for _ = 1, rounds do
        pause()
      end
    end)
  end
  local start = now()
  idle:start(drain)
  uv.run()
  measure.report { rate = rounds * tasks / (now() - start) }
end

function rows.timers(n, lead)
  local lateness, delay = measure.timers(n, lead, now)
  for i = 1, n do
    spawn(function()
      local seconds = delay(i)
      local due = now() + seconds
      -- Timers count from the loop's clock, which stands still while callbacks run.
      uv.update_time()
      sleep(seconds)
      lateness[i] = now() - due
    end)
  end
  uv.run()
  measure.report_lateness(lateness)
end

function rows.memory(n)
  local before = measure.rss()
  local function work()
    sleep(3600)
  end
  for _ = 1, n do
    spawn(work)
  end
  uv.run("nowait")
  measure.report { bytes = (measure.rss() - before) / n }
end

measure.main(rows)
