-- Every pair of policies, in random orders of events: functions that return at once, suspend, fail
-- by raising or by nil and an error, or get cancelled, through one orchestrator. Each seed is a
-- simulation of its own, and the same in every run.

local errors = require "opero.errors"
local opero = require "opero"

local SEEDS <const> = 20      -- for each pair
local MORE_SEEDS <const> = 200 -- of more policies than two
local AGAIN <const> = 10      -- each so manieth seed is tried twice, to see whether it is the same
local CALLERS <const> = 10
local ITEMS <const> = 3       -- of a map beside them
local EPSILON <const> = 1e-6

-- Random numbers apart from the runtime's, so that what a seed makes does not hang on those.
local function generator(seed)
  local state = seed * 0x9e3779b97f4a7c15 + 1
  return function(n)
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % n
  end
end

-- ---- the policies: each puts its options in -----------------------------------------------------

local policies = {}

function policies.attempt_timeout(config, random)
  config.timeout_config = config.timeout_config or {}
  config.timeout_config.attempt = (1 + random(6)) / 4
end

function policies.total_timeout(config, random)
  config.timeout_config = config.timeout_config or {}
  config.timeout_config.total = (7 + random(20)) / 4
end

function policies.concurrency(config, random)
  config.concurrency_config = {
    limit = 1 + random(4),
    max_queue = random(3) == 0 and random(5) or nil,
  }
  if random(4) == 0 then
    config.concurrency_config.limit, config.concurrency_config.max = "adaptive", 1 + random(5)
    config.concurrency_config.algorithm = random(2) == 0 and "aimd" or nil
  end
  if config.concurrency_config.max_queue ~= 0 then
    config.concurrency_config.queue_timeout = random(3) == 0 and 0.25 + random(8) / 4 or nil
    config.concurrency_config.priority = random(3) == 0 and function(item)
      return item % 3
    end or nil
  end
end

function policies.fallbacks(config, random, fn)
  config.fallbacks = ({
    { fn }, { opero.value("value", nil) }, { fn, fn }, { fn, opero.value("value", nil) },
  })[1 + random(4)]
  config.arg_fallback = random(3) == 0 and { values = { 901, 902 } } or nil
  config.fallback_on = random(3) == 0 and "again" or nil
end

function policies.retry(config, random)
  config.retry_config = config.retry_config or {}
  local options = config.retry_config
  options.max_attempts, options.wait_min = 1 + random(3), 0
  options.wait_multiplier, options.jitter = random(4) / 10, random(2) == 0 and "full" or nil
  options.reraise = random(4) ~= 0
  options.retry_if_result = random(3) == 0 and function(_, state)
    return state == "pending"
  end or nil
end

function policies.budget(config, random)
  config.retry_config = config.retry_config or { wait_min = 0, wait_multiplier = random(4) / 10 }
  config.retry_config.budget = opero.RetryBudget {
    ratio = random(5) / 4, min_per_second = 0, window = 1e6,
  }
end

function policies.hedge(config, random)
  config.hedge_config = {
    delay = random(4) == 0 and { percentile = 0.5 } or random(4) / 8, max = 1 + random(2),
  }
end

function policies.circuit_breaker(config, random)
  config.circuit_breaker_config = {
    open_for = (1 + random(4)) / 4, half_open_calls = 1 + random(2),
    key = random(3) == 0 and function(item) return item % 2 end or nil,
    slow_call = random(4) == 0 and 0.5 or nil,
  }
  if random(2) == 0 then
    config.circuit_breaker_config.failures = 1 + random(3)
  else
    config.circuit_breaker_config.failure_rate, config.circuit_breaker_config.min_calls = 0.5, 3
    config.circuit_breaker_config.window = random(2) == 0 and { seconds = 1 } or { calls = 5 }
  end
end

function policies.rate_limit(config, random)
  config.rate_limit_config = { rate = 2 + random(8), burst = 1 + random(3) }
  if random(3) == 0 then
    config.rate_limit_config.mode = "reject"
  elseif random(3) == 0 then
    config.rate_limit_config.max_wait = random(4) / 4
  end
end

function policies.cache(config, random)
  config.cache_config = {
    ttl = (1 + random(8)) / 4, max_entries = 1 + random(4),
    negative_ttl = random(3) / 8, stale_while_error = random(3) / 2,
  }
end

function policies.chaos(config, random)
  config.chaos_config = {
    error_rate = random(3) / 8, error = random(2) == 0 and "again, chaos" or nil,
    latency_rate = random(3) / 8, latency = random(4) / 8,
    result_rate = random(3) / 8, result = "chaos",
  }
end

-- What two of them together must not have, or cannot be judged with.
local function reconcile(config)
  local times, hedging, faults = config.timeout_config, config.hedge_config, config.chaos_config
  if times and times.attempt and hedging and type(hedging.delay) == "number" then
    hedging.delay = math.min(hedging.delay, times.attempt / 2)
  end
  if config.rate_limit_config and faults then
    faults.latency_rate = 0 -- or calls would begin at other times than they had their permits
  end
end

-- ---- one seed -----------------------------------------------------------------------------------

-- Keeps what does not hold: an error would be mended by the policies.
local function checker()
  local faults = {}
  return function(holds, what, ...)
    if not holds then
      faults[#faults + 1] = what:format(...)
    end
  end, faults
end

-- At most burst + rate * t calls began in any stretch of t seconds.
local function check_rate(check, options, times)
  for i = 1, #times do
    for j = i, #times do
      local most = options.burst + options.rate * (times[j] - times[i])
      check(j - i + 1 <= most + EPSILON, "%d calls from %s to %s, where %s is the limit",
        j - i + 1, times[i], times[j], most)
    end
  end
end

-- What must hold while it runs.
local function limits_of(config)
  local times, bulkhead, retries = config.timeout_config, config.concurrency_config,
    config.retry_config
  local limit = bulkhead and (bulkhead.limit == "adaptive" and bulkhead.max or bulkhead.limit)
    or math.huge
  local hedges = config.hedge_config and config.hedge_config.max or 0
  local functions = 1 + #(config.fallbacks or {})
    + (config.arg_fallback and #config.arg_fallback.values or 0)
  return {
    executions = limit,
    calls = limit * (1 + hedges),
    calls_for_each = functions * (1 + hedges) * (retries and retries.max_attempts or 3),
    attempt = times and times.attempt or math.huge,
    total = times and times.total or math.huge,
    -- a call begins as soon as the breaker lets it through
    breaker_is_seen = config.circuit_breaker_config and not config.circuit_breaker_config.key
      and not config.fallbacks -- which do not pass it
      and not config.rate_limit_config and not config.chaos_config,
  }
end

-- One of all the ways a function may go.
local function behave(random, item, seed)
  local kind = random(15)
  if kind >= 6 then
    opero.sleep(random(6) / 8)
  end
  if kind == 0 or kind == 6 then
    error("again", 0)
  elseif kind == 1 or kind == 7 then
    return nil, "again"
  elseif kind == 2 then
    error(({ false, { item }, errors.OperoError "x" })[1 + random(3)], 0)
  elseif kind == 3 then
    return item, "pending"
  elseif kind == 4 and random(3) == 0 then
    error(nil)
  elseif kind == 8 then
    error({ retry_after = random(4) / 8 })
  elseif kind == 9 then
    opero.sleep(random(40))
  elseif kind == 10 then
    opero.spawn(opero.sleep, random(6) / 8):await()
  elseif kind == 11 and random(3) == 0 then
    local other = opero.spawn(opero.sleep, 9)
    other:cancel()
    other:await()
  end
  return item, nil, seed, nil
end

-- Returns what happened, as a text; raises what should not have.
local function try_seed(names, seed)
  local random, check, faults = generator(seed), checker()
  local config, limits, orch = {}, nil, nil
  local running, times, log = 0, {}, {}

  local function leave(call)
    running = running - 1
    local seconds = opero.now() - call.began
    check(seconds <= limits.attempt + EPSILON, "a call took %s s", seconds)
  end
  local call_mt = { __close = leave }

  local function fn(item)
    local _ <close> = setmetatable({ began = opero.now() }, call_mt)
    times[#times + 1], running = opero.now(), running + 1
    log[#log + 1] = ("%g: call of %s"):format(opero.now(), item)
    check(running <= limits.calls, "%d calls run, where %s is the limit", running, limits.calls)
    local stats = orch:stats()
    if stats.concurrency then
      check(stats.concurrency.in_flight <= limits.executions,
        "%d executions, where %s is the limit", stats.concurrency.in_flight, limits.executions)
    end
    check(not limits.breaker_is_seen or stats.circuit_breaker.state ~= "open",
      "the circuit breaker is open")
    return behave(random, item, seed)
  end

  for _, name in ipairs(names) do
    policies[name](config, random, fn)
  end
  reconcile(config)
  if random(4) == 0 then
    config.on = { retry = function() opero.yield() end, queued = function() opero.yield() end }
  end
  limits, orch = limits_of(config), opero.Orchestrator(config)

  local counts = { succeeded = 0, failed = 0, cancelled = 0, begun = 0 }

  -- Each comes to one of: its own results, those of something instead, an error.
  local function note(item, began, kind, value, more, third, ...)
    counts[kind] = counts[kind] + 1
    log[#log + 1] = ("%g: %d %s"):format(opero.now(), item, kind)
    local seconds = opero.now() - began
    check(seconds <= limits.total + EPSILON, "an execution took %s s", seconds)
    if kind == "succeeded" and value == item then
      check(more == "pending" or more == nil and third == seed and select("#", ...) == 1,
        "the results of %s came out changed", item)
    elseif kind == "succeeded" then
      check(value == "value" or value == "chaos" or value == 901 or value == 902,
        "%s has the result %s", item, value)
    end
  end

  local cancelled_at = {} -- by task

  local function noted(item, began, ok, ...)
    if ok then
      note(item, began, "succeeded", ...)
    elseif errors.is(..., errors.CancelledError) then
      note(item, began, "cancelled")
      local time = cancelled_at[opero.current()] or opero.now()
      check(opero.now() <= time, "a caller that was cancelled at %s went on", time)
      error((...), 0)
    else
      note(item, began, "failed")
    end
  end

  local function caller(item)
    opero.sleep(random(12) / 8)
    counts.begun = counts.begun + 1
    noted(item, opero.now(), pcall(orch.execute, orch, fn, item))
  end

  local callers = {}
  for i = 1, CALLERS do
    callers[i] = opero.spawn(caller, random(5))
  end
  local killer = opero.spawn(function()
    for _ = 1, random(5) do
      opero.sleep(random(12) / 8)
      local task = callers[1 + random(CALLERS)]
      if task:cancel() then
        cancelled_at[task] = cancelled_at[task] or opero.now()
      end
    end
  end)
  local results, failures = orch:map(fn, { 5, 6, 7 }, { on_error = "collect" })
  check(results.n == ITEMS and failures.n == ITEMS, "map has lost items")
  for i = 1, ITEMS do
    check((results[i] == nil) ~= (failures[i] == nil), "item %d has not one outcome", i)
  end
  for _, task in ipairs(callers) do
    local ok, err = pcall(task.await, task)
    check(ok or errors.is(err, errors.CancelledError), "a caller failed: %s", tostring(err))
  end
  killer:await()

  check(running == 0, "%d calls still run", running)
  check(#opero.tasks() == 1, "%d tasks are left", #opero.tasks() - 1)
  local stats = orch:stats()
  check(counts.succeeded + counts.failed + counts.cancelled == counts.begun,
    "%d executions began, and have %d, %d and %d outcomes", counts.begun, counts.succeeded,
    counts.failed, counts.cancelled)
  check(stats.executions == counts.begun + ITEMS, "%d executions were counted, not %d",
    stats.executions, counts.begun + ITEMS)
  check(#times <= stats.executions * limits.calls_for_each, "%d calls were made", #times)
  if stats.concurrency then
    check(stats.concurrency.in_flight == 0, "%d permits are lost", stats.concurrency.in_flight)
    check(stats.concurrency.waiting == 0, "%d still wait", stats.concurrency.waiting)
  end
  if config.rate_limit_config then
    check_rate(check, config.rate_limit_config, times)
  end
  local budget = config.retry_config and config.retry_config.budget
  if budget then
    local spent = budget:stats()
    check(spent.retries <= budget.config.ratio * spent.calls, "%d retries of %d calls",
      spent.retries, spent.calls)
    check(spent.retries == (stats.events.retry or 0), "%d retries were paid, %d were told of",
      spent.retries, stats.events.retry or 0)
  end
  for _, name in ipairs { "succeeded", "failed", "cancelled" } do
    log[#log + 1] = ("%s: %d"):format(name, stats[name])
  end
  if faults[1] then
    error(faults[1], 0)
  end
  return table.concat(log, "\n")
end

local function simulate(names, seed)
  local transcript
  opero.simulate(function()
    transcript = try_seed(names, seed)
  end, { seed = seed })
  return transcript
end

local function try(names, seed)
  local ok, transcript = pcall(simulate, names, seed)
  if not ok then
    error(("seed %d of %s: %s"):format(seed, table.concat(names, ", "), tostring(transcript)), 0)
  elseif seed % AGAIN == 0 then
    assert.equal(transcript, simulate(names, seed), "seed " .. seed)
  end
end

-- ---- all pairs ----------------------------------------------------------------------------------

local all = {}
for name in pairs(policies) do
  all[#all + 1] = name
end
table.sort(all)

describe("limits hold, permits balance, each item has one outcome, no task is left:", function()
  local seed = 0
  for i, first in ipairs(all) do
    for j = i + 1, #all do
      local from = seed
      seed = seed + SEEDS
      it(("%s with %s"):format(first, all[j]), function()
        for n = from + 1, from + SEEDS do
          try({ first, all[j] }, n)
        end
      end)
    end
  end

  it("more of them", function()
    for n = seed + 1, seed + MORE_SEEDS do
      local random, names = generator(-n), {}
      for _, name in ipairs(all) do
        if random(2) == 0 then
          names[#names + 1] = name
        end
      end
      try(names, n)
    end
  end)
end)
