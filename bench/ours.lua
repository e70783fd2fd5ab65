-- Opero's side of each measurement; the files in peers/ do the same with other libraries.
local measure = require "measure"
local opero = require "opero"

local now, sleep, spawn, yield = opero.now, opero.sleep, opero.spawn, opero.yield

local rows = {}

function rows.spawn(n)
  local function work()
    yield()
  end
  local start = now()
  opero.run(function()
    for _ = 1, n do
      spawn(work)
    end
  end)
  measure.report { rate = n / (now() - start) }
end

function rows.empty(n)
  local function nothing() end
  local start = now()
  opero.run(function()
    for _ = 1, n do
      spawn(nothing)
    end
  end)
  measure.report { rate = n / (now() - start) }
end

-- As in a server: `alive` tasks wait while short-lived ones come and go, a hundred at a time.
function rows.beside(alive, total)
  local function work()
    yield()
  end
  opero.run(function()
    local never = opero.event()
    for _ = 1, alive do
      spawn(function()
        never:wait()
      end)
    end
    yield()
    local start = now()
    for _ = 1, total // 100 do
      for _ = 1, 100 do
        spawn(work)
      end
      yield()
      yield()
    end
    measure.report { rate = total / (now() - start) }
    os.exit(true)
  end)
end

function rows.switch(tasks, total)
  local rounds = total // tasks
  local start
  opero.run(function()
    for _ = 1, tasks do
      spawn(function()
        for _ = 1, rounds do
          yield()
        end
      end)
    end
    start = now()
  end)
  measure.report { rate = rounds * tasks / (now() - start) }
end

function rows.timers(n, lead)
  local lateness, delay = measure.timers(n, lead, now)
  opero.run(function()
    for i = 1, n do
      spawn(function()
        local seconds = delay(i)
        local due = now() + seconds
        sleep(seconds)
        lateness[i] = now() - due
      end)
    end
  end)
  measure.report_lateness(lateness)
end

function rows.memory(n)
  local function work()
    sleep(3600)
  end
  opero.run(function()
    local before = measure.rss()
    for _ = 1, n do
      spawn(work)
    end
    yield()
    measure.report { bytes = (measure.rss() - before) / n }
    os.exit(true)
  end)
end

-- What Lua has allocated, and the entry of each task in the runtime's heap of timers (24 bytes, in
-- an array that doubles); without what the allocator adds to each block.
function rows.asked(n)
  local function work()
    sleep(3600)
  end
  opero.run(function()
    collectgarbage()
    local before = collectgarbage("count")
    for _ = 1, n do
      spawn(work)
    end
    yield()
    collectgarbage()
    local timers = 24 * 2 ^ math.ceil(math.log(n, 2))
    measure.report { bytes = ((collectgarbage("count") - before) * 1024 + timers) / n }
    os.exit(true)
  end)
end

local function primary(x)
  return x
end

local function fallback() end

local RETRY = { max_attempts = 3, wait_min = 0.1, wait_max = 5 }

-- Each gives a function to be called with the item: what users write, made once.
local policies = {
  pcall = function()
    return function(x)
      return pcall(primary, x)
    end
  end,
  chain = function()
    return opero.FallbackChain(primary, fallback)
  end,
  retry = function()
    local orch = opero.Orchestrator { retry_config = RETRY, fallbacks = { fallback } }
    return function(x)
      return orch:execute(primary, x)
    end
  end,
  decorator = function()
    return opero.orchestrate { retry_config = RETRY, fallbacks = { fallback } }(primary)
  end,
  all = function()
    local orch = opero.Orchestrator {
      retry_config = RETRY,
      fallbacks = { fallback },
      rate_limit_config = { rate = 1e9, burst = 1000000000 },
      concurrency_config = { limit = 100 },
    }
    return function(x)
      return orch:execute(primary, x)
    end
  end,
}

---@param kind string a key of policies
---@param n integer
---@param where "main"|"task"
function rows.call(kind, n, where)
  local call = policies[kind]()
  local function loop()
    local start = now()
    for i = 1, n do
      call(i)
    end
    measure.report { ns = (now() - start) / n * 1e9 }
  end
  if where == "task" then
    opero.run(loop)
  else
    loop()
  end
end

-- What each policy is measured with: nothing fails, nothing waits.
local single = {
  ["retry"] = { retry_config = RETRY },
  ["retry budget"] = { retry_config = { budget = {} } },
  ["fallbacks"] = { fallbacks = { fallback } },
  ["timeout"] = { timeout_config = { attempt = 10 } },
  ["circuit breaker"] = { circuit_breaker_config = {} },
  ["failure rate"] = { circuit_breaker_config = { failure_rate = 0.5 } },
  ["hedge"] = { hedge_config = { delay = 10 } },
  ["cache hit"] = { cache_config = { ttl = math.huge, key = function() return 1 end } },
  ["rate limit"] = { rate_limit_config = { rate = 1e9, burst = 1000000000 } },
  ["concurrency"] = { concurrency_config = { limit = 100 } },
  ["adaptive limit"] = { concurrency_config = { limit = "adaptive", min = 10 } },
  ["chaos"] = { chaos_config = {} },
}

---What one policy costs a call: how much longer it takes than through an orchestrator of none.
---@param n integer
---@param name string a key of `single`, its words joined by "_"
function rows.policy(n, name)
  local function time(orch)
    local start = now()
    for i = 1, n do
      orch:execute(primary, i)
    end
    return (now() - start) / n * 1e9
  end
  local config = assert(single[name:gsub("_", " ")], name)
  opero.run(function()
    local bare, whole = opero.Orchestrator(), opero.Orchestrator(config)
    time(bare)
    time(whole)
    local least = math.huge -- of several pairs: what disturbs makes only one of the two longer
    for _ = 1, 5 do
      local before = time(bare)
      least = math.min(least, time(whole) - before)
    end
    measure.report { ns = math.max(least, 1) }
  end)
end

function rows.imap(n)
  local orch = opero.Orchestrator { concurrency_config = { limit = 16 } }
  local i = 0
  local function items()
    i = i + 1
    return i <= n and i or nil
  end
  opero.run(function()
    local before = measure.rss()
    local start, peak, count = now(), before, 0
    for _ in orch:imap(primary, items) do
      count = count + 1
      if count % 500000 == 0 then
        peak = math.max(peak, measure.rss(true))
      end
    end
    local seconds = now() - start
    assert(count == n, "imap lost items")
    measure.report {
      rate = n / seconds, seconds = seconds, before = before, after = measure.rss(), peak = peak,
    }
  end)
end

measure.main(rows)
