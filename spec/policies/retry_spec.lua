-- What retries have beside attempts and waits, for which see spec/retry_spec.lua.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, failing, raised = support.broken, support.failing, support.raised
local refused, simulated = support.refused, support.simulated

local function echo(...) return ... end

local function orchestrator(retry_config, more)
  local config = more or {}
  config.retry_config = retry_config
  return opero.Orchestrator(config)
end

-- Options with waits of `wait` seconds.
local function every(wait, more)
  local config = more or {}
  config.wait_min, config.wait_max = wait, wait
  return config
end

local function path_of(config)
  return refused(opero.RetryConfig, config).path
end

describe("backoff", function()
  it("is a function of the attempt, its error and the wait before", simulated(function()
    local seen = {}
    local fn, times = failing("a", nil, false)
    orchestrator({ max_attempts = 9, backoff = function(...)
      seen[#seen + 1] = table.pack(...)
      return #seen * 0.5
    end }):execute(fn)
    assert.same({
      { n = 3, 1, "a", nil }, { n = 3, 2, nil, 0.5 }, { n = 3, 3, false, 1 },
    }, seen)
    assert.same({ 0, 0.5, 1.5, 3 }, times)
  end))

  it("is not limited by wait_max, but what an error asks for is", simulated(function()
    local fn, times = failing({ retry_after = 50 }, "x", { retry_after = 1 })
    orchestrator({ max_attempts = 9, wait_max = 20, backoff = opero.backoff.constant(100) })
      :execute(fn)
    assert.same({ 0, 20, 120, 121 }, times)
  end))

  it("may suspend, and its error is that of the call", simulated(function()
    local fn, times = failing "x"
    orchestrator({ backoff = function()
      opero.sleep(2)
      return 1
    end }):execute(fn)
    assert.same({ 0, 3 }, times)
    for _, err in ipairs { "bad backoff", { "bad" }, false } do
      local calls
      fn, calls = broken "x"
      local orch = orchestrator { backoff = function() error(err, 0) end }
      assert.equal(err, raised(orch.execute, orch, fn))
      assert.equal(1, #calls)
    end
  end))

  it("that gives no seconds is refused when it does", simulated(function()
    for _, bad in ipairs { -1, 0 / 0, math.huge, "1", {}, false } do
      local fn, calls = broken "x"
      local orch = orchestrator { backoff = function() return bad end }
      local err = refused(orch.execute, orch, fn)
      assert.equal("retry_config.backoff", err.path)
      assert.equal("a function that returns finite seconds >= 0", err.allowed)
      assert.equal(1, #calls)
    end
  end))

  it("stands alone: what says otherwise is refused", function()
    local backoff = opero.backoff.constant(1)
    local err = refused(opero.RetryConfig, { backoff = backoff, wait_min = 0 })
    assert.equal("RetryConfig.wait_min: expected nothing beside backoff, which says how long the "
      .. "waits are, got 0", err.message)
    assert.equal("RetryConfig.wait_multiplier", path_of { backoff = backoff, wait_multiplier = 2 })
    assert.equal("RetryConfig.jitter", path_of { backoff = backoff, jitter = "full" })
    for _, bad in ipairs { 1, "exponential", {}, true } do
      assert.equal("RetryConfig.backoff", path_of { backoff = bad })
    end
  end)

  it("makes a completed table that passes again", function()
    local backoff = opero.backoff.linear()
    local config = opero.RetryConfig { backoff = backoff }
    assert.equal(backoff, config.backoff)
    assert.same(config, opero.RetryConfig(config))
    config = opero.RetryConfig {}
    assert.same({ 1, 60, 1, "none" },
      { config.wait_min, config.wait_max, config.wait_multiplier, config.jitter })
    assert.same(config, opero.RetryConfig(config))
  end)
end)

describe("opero.backoff", function()
  local backoff = opero.backoff

  -- The waits after attempts 1 to n.
  local function waits(generator, n)
    local list = {}
    for attempt = 1, n do
      list[attempt] = generator(attempt, "x", list[attempt - 1])
    end
    return list
  end

  it("constant waits always the same", function()
    assert.same({ 2, 2, 2 }, waits(backoff.constant(2), 3))
    assert.same({ 0 }, waits(backoff.constant(0), 1))
    assert.same({ 3 }, waits(backoff.constant { wait = 3 }, 1))
  end)

  it("linear adds as much each time, to its maximum", function()
    assert.same({ 1, 2, 3 }, waits(backoff.linear(), 3))
    assert.same({ 0.5, 2.5, 4.5, 5, 5 },
      waits(backoff.linear { first = 0.5, step = 2, max = 5 }, 5))
    assert.equal(60, backoff.linear()(math.maxinteger))
  end)

  it("exponential multiplies each time, between its bounds", function()
    assert.same({ 1, 2, 4, 8 }, waits(backoff.exponential(), 4))
    assert.same({ 2, 2, 6, 10 },
      waits(backoff.exponential { first = 2 / 3, factor = 3, min = 2, max = 10 }, 4))
    assert.same({ 3, 3 }, waits(backoff.exponential { first = 3, factor = 1 }, 2))
    assert.same({ 0, 0 }, waits(backoff.exponential { first = 0 }, 2))
    assert.equal(60, backoff.exponential()(1e6))
  end)

  it("exponential has jitter that keeps within the bounds", simulated(function()
    for jitter, lowest in pairs { full = 0.25, equal = 2 } do
      local wait = backoff.exponential { min = 0.25, jitter = jitter }
      local low, high = math.huge, 0
      for _ = 1, 500 do
        local seconds = wait(3)
        low, high = math.min(low, seconds), math.max(high, seconds)
      end
      assert.is_true(low >= lowest and high <= 4)
      assert.near(lowest, low, 0.05)
      assert.near(4, high, 0.05)
    end
  end))

  it("decorrelated goes up to three times the wait before", simulated(function()
    local wait = backoff.decorrelated { min = 0.5, max = 10 }
    for previous, highest in pairs { [false] = 1.5, [0.1] = 1.5, [2] = 6, [9] = 10 } do
      local low, high = math.huge, 0
      for _ = 1, 500 do
        local seconds = wait(1, "x", previous or nil)
        low, high = math.min(low, seconds), math.max(high, seconds)
      end
      assert.is_true(low >= 0.5 and high <= highest)
      assert.near(0.5, low, 0.1)
      assert.near(highest, high, 0.1)
    end
    assert.equal(3, backoff.decorrelated { min = 3, max = 3 }(1))
  end))

  it("works in the loop", simulated(function()
    for name, expected in pairs {
      constant = { 0, 1, 2, 3 }, linear = { 0, 1, 3, 6 }, exponential = { 0, 1, 3, 7 },
    } do
      local generator = name == "constant" and backoff.constant(1) or backoff[name]()
      local began = opero.now()
      local fn, times = failing(1, 2, 3)
      orchestrator({ max_attempts = 4, backoff = generator }):execute(fn)
      for i, time in ipairs(times) do
        assert.equal(expected[i], time - began)
      end
    end
  end))

  it("refuses wrong options", function()
    assert.equal("backoff.constant.wait: expected a number >= 0, got nil",
      (refused(backoff.constant).message:gsub("finite ", "")))
    for _, bad in ipairs { -1, "1", 0 / 0, math.huge, false } do
      assert.equal("backoff.constant.wait", refused(backoff.constant, bad).path)
      assert.equal("backoff.linear.step", refused(backoff.linear, { step = bad }).path)
      assert.equal("backoff.exponential.first", refused(backoff.exponential, { first = bad }).path)
      assert.equal("backoff.decorrelated.max", refused(backoff.decorrelated, { max = bad }).path)
    end
    assert.equal("backoff.exponential.factor", refused(backoff.exponential, { factor = 0.5 }).path)
    assert.equal("backoff.exponential.jitter",
      refused(backoff.exponential, { jitter = "decorrelated" }).path)
    assert.equal("backoff.linear.steps", refused(backoff.linear, { steps = 1 }).path)
    assert.equal("backoff.linear", refused(backoff.linear, 5).path)
  end)

  it("refuses a maximum below the least wait", function()
    assert.equal("backoff.linear.max: expected a number >= first, which is 1, got 0.5",
      refused(backoff.linear, { max = 0.5 }).message)
    assert.equal("backoff.exponential.max: expected a number >= min, which is 2, got 1",
      refused(backoff.exponential, { min = 2, max = 1 }).message)
    assert.equal("backoff.decorrelated.max: expected a number >= min, which is 1, got 0.5",
      refused(backoff.decorrelated, { max = 0.5 }).message)
  end)
end)

describe("max_elapsed", function()
  it("lets no attempt begin whose wait would end later", simulated(function()
    for limit, expected in pairs {
      [0.5] = { 0 }, [2.9] = { 0, 1 }, [3] = { 0, 1, 3 }, [6.9] = { 0, 1, 3 },
    } do
      local began = opero.now()
      local fn, times = broken "x"
      local orch = orchestrator { max_attempts = 9, max_elapsed = limit }
      assert.equal("x", raised(orch.execute, orch, fn))
      assert.equal(#expected, #times)
      assert.equal(expected[#expected], opero.now() - began) -- it does not wait in vain
    end
  end))

  it("is not lost by rounding", simulated(function()
    local fn, times = broken "x"
    local orch = orchestrator(every(0.1, { max_attempts = 9, max_elapsed = 0.3 }))
    raised(orch.execute, orch, fn)
    assert.equal(4, #times)
  end))

  it("counts the time of attempts, and from the first of each execution", simulated(function()
    local calls = 0
    local orch = orchestrator(every(1, { max_attempts = 9, max_elapsed = 5 }))
    for round = 1, 2 do
      raised(orch.execute, orch, function()
        calls = calls + 1
        opero.sleep(2)
        error "x"
      end)
      assert.equal(2 * round, calls)
    end
    assert.equal(10, opero.now())
  end))

  it("hands all arguments and results through", simulated(function()
    local orch = orchestrator { max_elapsed = 50, budget = {} }
    assert.same({ n = 4, nil, nil, 3, nil }, table.pack(orch:execute(echo, nil, nil, 3, nil)))
    assert.same({ n = 3, 7, nil, nil }, table.pack(orch:execute((failing "x"), 7, nil, nil)))
    assert.same({ n = 0 }, table.pack(orch:execute(echo)))
  end))

  it("with reraise = false raises a RetryError", simulated(function()
    local orch = orchestrator { max_attempts = 9, max_elapsed = 2, reraise = false }
    local err = raised(orch.execute, orch, (broken "x"))
    assert.is_true(errors.is(err, errors.RetryError))
    assert.equal(2, err.attempts)
    assert.equal("x", err.cause)
  end))

  it("has to be a number > 0, and within the total timeout", function()
    for _, bad in ipairs { 0, -1, "1", math.huge, {}, false } do
      assert.equal("RetryConfig.max_elapsed", path_of { max_elapsed = bad })
    end
    local err = refused(opero.Orchestrator,
      { retry_config = { max_elapsed = 3 }, timeout_config = { total = 2 } })
    assert.equal("config.retry_config.max_elapsed: expected a number <= timeout_config.total, "
      .. "which is 2 and ends all, got 3", err.message)
  end)
end)

describe("a total timeout", function()
  it("lets no retry begin whose wait would end after it", simulated(function()
    local fn, times = broken "x"
    local orch = orchestrator({ max_attempts = 9 }, { timeout_config = { total = 6 } })
    assert.equal("x", raised(orch.execute, orch, fn))
    assert.same({ 0, 1, 3 }, times)
    assert.equal(3, opero.now())
  end))

  it("is one of opero.timeout, too, of which the nearest counts", simulated(function()
    for _, seconds in ipairs { { 6, 50 }, { 50, 6 } } do
      local began = opero.now()
      local fn, times = broken "x"
      local orch = orchestrator { max_attempts = 9 }
      assert.equal("x", raised(opero.timeout, seconds[1], function()
        opero.timeout(seconds[2], orch.execute, orch, fn)
      end))
      assert.equal(3, opero.now() - began)
      assert.equal(3, #times)
    end
  end))

  it("around the parent counts for the task it waits for", simulated(function()
    local fn, times = broken "x"
    local orch = orchestrator { max_attempts = 9 }
    assert.equal("x", raised(opero.timeout, 6, function()
      opero.scope(function(scope) scope:spawn(orch.execute, orch, fn):await() end)
    end))
    assert.same({ 0, 1, 3 }, times)
  end))

  it("does not count within a shield", simulated(function()
    local fn, times = failing(1, 2, 3)
    local orch = orchestrator { max_attempts = 9 }
    raised(opero.timeout, 6, opero.shield, orch.execute, orch, fn)
    assert.same({ 0, 1, 3, 7 }, times)
  end))

  it("does so for what an error asks for", simulated(function()
    local fn, times = broken { retry_after = 10 }
    local orch = orchestrator({ max_attempts = 9 }, { timeout_config = { total = 10 } })
    raised(orch.execute, orch, fn)
    assert.same({ 0 }, times)
  end))

  it("still leaves time for fallbacks", simulated(function()
    local orch = orchestrator({}, { timeout_config = { total = 0.5 }, fallbacks = echo })
    assert.equal(5, orch:execute((broken "x"), 5))
    assert.equal(0, opero.now())
  end))

  it("works in the main chunk", function()
    local fn, times = broken "x"
    local orch = orchestrator({}, { timeout_config = { total = 0.9 } })
    assert.equal("x", raised(orch.execute, orch, fn))
    assert.equal(1, #times)
  end)
end)

describe("on_retry", function()
  it("is called before each wait, with the attempt, its error and the wait", simulated(function()
    local seen = {}
    local orch = orchestrator { on_retry = function(...)
      seen[#seen + 1] = { opero.now(), table.pack(...) }
    end }
    raised(orch.execute, orch, (failing("a", nil, false)))
    assert.same({ { 0, { n = 3, 1, "a", 1 } }, { 1, { n = 3, 2, nil, 2 } } }, seen)
  end))

  it("may suspend, and its error is that of the call", simulated(function()
    local fn, times = failing "x"
    orchestrator({ on_retry = function() opero.sleep(5) end }):execute(fn)
    assert.same({ 0, 6 }, times)
    local calls
    fn, calls = broken "x"
    local orch = orchestrator { on_retry = function() error("bad hook", 0) end }
    assert.equal("bad hook", raised(orch.execute, orch, fn))
    assert.equal(1, #calls)
  end))

  it("has to be a function", function()
    assert.equal("RetryConfig.on_retry: expected a function, got 5",
      refused(opero.RetryConfig, { on_retry = 5 }).message)
  end)
end)

describe("retry_if_result", function()
  -- Returns each of these in turn, then the last one again; and how often it was called.
  local function returning(...)
    local results, calls = table.pack(...), { n = 0 }
    return function()
      calls.n = calls.n + 1
      return table.unpack(results[math.min(calls.n, results.n)])
    end, calls
  end

  local function is_pending(state)
    return state == "pending"
  end

  it("says which results are worth another attempt", simulated(function()
    local fn, calls = returning({ "pending" }, { "pending" }, { "done" })
    local orch = orchestrator { retry_if_result = is_pending }
    assert.equal("done", (orch:execute(fn)))
    assert.equal(3, calls.n)
    assert.equal(3, opero.now())
  end))

  it("is given all results, and does not change them", simulated(function()
    local seen = {}
    local orch = orchestrator { retry_if_result = function(...)
      seen[#seen + 1] = table.pack(...)
    end }
    assert.same({ n = 4, nil, nil, 3, nil }, table.pack(orch:execute(echo, nil, nil, 3, nil)))
    assert.same({ n = 0 }, table.pack(orch:execute(echo)))
    assert.same({ { n = 4, nil, nil, 3, nil }, { n = 0 } }, seen)
  end))

  it("leaves the last result when there are no attempts left", simulated(function()
    local fn, calls = returning({ "pending" })
    local orch = orchestrator { retry_if_result = is_pending }
    assert.equal("pending", (orch:execute(fn)))
    assert.equal(3, calls.n)
    assert.same({ n = 3, "pending", nil, nil },
      table.pack(orch:execute(echo, "pending", nil, nil)))
  end))

  it("with reraise = false raises a RetryError that has the result", simulated(function()
    local orch = orchestrator {
      retry_if_result = is_pending, reraise = false, max_attempts = 2,
    }
    local err = raised(orch.execute, orch, echo, "pending")
    assert.is_true(errors.is(err, errors.RetryError))
    assert.equal("2 attempts had a result that was not wanted", err.message)
    assert.equal(2, err.attempts)
    assert.equal("pending", err.result)
    assert.is_nil(err.cause)
  end))

  it("is not asked of failures, which retry_on decides on", simulated(function()
    local asked = 0
    local orch = orchestrator {
      max_attempts = 9, retry_on = "again",
      retry_if_result = function(x)
        asked = asked + 1
        return x == "pending"
      end,
    }
    local step = 0
    assert.equal("stop", raised(orch.execute, orch, function()
      step = step + 1
      if step == 1 then
        return nil, "again"
      elseif step == 2 then
        return "pending"
      end
      return nil, "stop"
    end))
    assert.equal(3, step)
    assert.equal(1, asked)
  end))

  it("gives events, on_retry and backoff no error", simulated(function()
    local told, hooked, waited = {}, {}, {}
    local orch = orchestrator({
      retry_if_result = is_pending, max_attempts = 2,
      on_retry = function(...) hooked = table.pack(...) end,
      backoff = function(...)
        waited = table.pack(...)
        return 1
      end,
    }, {
      on = {
        retry = function(e) told[#told + 1] = e end,
        retries_exhausted = function(e) told[#told + 1] = e end,
      },
    })
    orch:execute(echo, "pending")
    assert.same({ n = 3, 1, nil, 1 }, hooked)
    assert.same({ n = 3, 1, nil, nil }, waited)
    assert.same({
      { event = "retry", attempt = 1, max_attempts = 2, wait = 1 },
      { event = "retries_exhausted", attempts = 2 },
    }, told)
  end))

  it("that fails makes its error that of the call, which is not made again", simulated(function()
    for _, err in ipairs { "bad judge", { "bad" }, false } do
      local calls = 0
      local orch = orchestrator { retry_if_result = function() error(err, 0) end, reraise = false }
      assert.equal(err, raised(orch.execute, orch, function() calls = calls + 1 end))
      assert.equal(1, calls)
    end
    local orch = orchestrator { retry_if_result = function() error(nil, 0) end }
    assert.is_nil(raised(orch.execute, orch, echo))
  end))

  it("may suspend, and be cancelled", simulated(function()
    local orch = orchestrator { retry_if_result = function() opero.sleep(5) end }
    assert.equal(1, orch:execute(echo, 1))
    assert.equal(5, opero.now())
    local task = opero.spawn(orch.execute, orch, echo)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(6, opero.now())
  end))

  it("has to be a function", function()
    assert.equal("RetryConfig.retry_if_result", path_of { retry_if_result = true })
  end)
end)

describe("a CircuitOpenError", function()
  it("is not retried unless it is asked for", simulated(function()
    local Derived = errors.class("Derived", errors.CircuitOpenError)
    for _, err in ipairs { errors.CircuitOpenError "open", Derived "open" } do
      local fn, times = broken(err)
      local orch = orchestrator { reraise = false }
      assert.equal(err, raised(orch.execute, orch, fn))
      assert.equal(1, #times)
      fn, times = broken(err)
      orch = orchestrator { retry_on = errors.CircuitOpenError }
      assert.equal(err, raised(orch.execute, orch, fn))
      assert.equal(3, #times)
    end
  end))
end)

describe("a retry budget", function()
  local function fail(orch, count)
    for _ = 1, count do
      raised(orch.execute, orch, (broken "x"))
    end
  end

  local at_once = { max_attempts = 100, backoff = opero.backoff.constant(0) }
  local function with_budget(budget, more)
    local config = { budget = budget }
    for key, value in pairs(at_once) do
      config[key] = value
    end
    return orchestrator(config, more)
  end

  it("lets no more than its ratio of the calls be retries", simulated(function()
    local budget = opero.RetryBudget { ratio = 0.29, min_per_second = 0, window = 1e6 }
    local orch = with_budget(budget)
    for _ = 1, 100 do
      orch:execute(echo)
    end
    fail(orch, 1)
    assert.same({ calls = 101, retries = 29, left = 0 }, budget:stats())
    fail(orch, 3)
    assert.same({ calls = 104, retries = 30, left = 0 }, budget:stats())
  end))

  it("gives so many a second freely", simulated(function()
    local budget = opero.RetryBudget { ratio = 0, min_per_second = 0.5, window = 10 }
    local orch = with_budget(budget)
    fail(orch, 1)
    assert.same({ calls = 1, retries = 5, left = 0 }, budget:stats())
    opero.sleep(9.9)
    fail(orch, 1)
    assert.equal(5, budget:stats().retries)
    opero.sleep(0.1)
    assert.same({ calls = 1, retries = 0, left = 5 }, budget:stats())
    fail(orch, 1)
    assert.equal(5, budget:stats().retries)
  end))

  it("forgets the calls before its window, however long nothing came", simulated(function()
    local budget = opero.RetryBudget { ratio = 1, min_per_second = 0, window = 10 }
    for _, pause in ipairs { 0, 3, 10, 1e3, 1e9, 1e9 } do
      opero.sleep(pause)
      budget:note_call()
      assert.equal(pause == 3 and 2 or 1, budget:stats().calls)
    end
    assert.is_true(budget:try_retry())
    assert.is_false(budget:try_retry())
  end))

  it("may have the smallest of windows at the latest of times", simulated(function()
    local budget = opero.RetryBudget { window = 1e-300 }
    opero.sleep(1e9)
    budget:note_call()
    assert.equal(1, budget:stats().calls)
    opero.sleep(1e-4)
    assert.equal(0, budget:stats().calls)
  end))

  it("by default has a fifth of the calls, and ten a second", simulated(function()
    local budget = opero.RetryBudget()
    assert.same({ ratio = 0.2, min_per_second = 10, window = 10 }, budget.config)
    assert.equal(100, budget:stats().left)
    for _ = 1, 50 do
      budget:note_call()
    end
    assert.equal(110, budget:stats().left)
  end))

  it("may be shared; options make one for each orchestrator", simulated(function()
    local budget = opero.RetryBudget { ratio = 0, min_per_second = 1, window = 3 }
    local a, b = with_budget(budget), with_budget(budget)
    fail(a, 1)
    fail(b, 1)
    assert.same({ calls = 2, retries = 3, left = 0 }, budget:stats())
    assert.equal(0, b:stats().events.retry or 0)

    local config = opero.RetryConfig {
      max_attempts = 100, backoff = opero.backoff.constant(0),
      budget = { ratio = 0, min_per_second = 1, window = 3 },
    }
    a, b = orchestrator(config), orchestrator(config)
    fail(a, 1)
    fail(b, 1)
    assert.equal(3, a:stats().events.retry)
    assert.equal(3, b:stats().events.retry)
  end))

  it("that is used up leaves the last error, or a RetryError", simulated(function()
    local refusals = {}
    local orch = with_budget({ ratio = 0, min_per_second = 0 }, {
      on = { retry_refused = function(e) refusals[#refusals + 1] = e end },
    })
    local last = { "last" }
    assert.equal(last, raised(orch.execute, orch, (broken(last))))
    assert.same({
      { event = "retry_refused", attempts = 1, wait = 0, reason = "budget", error = last },
    }, refusals)
  end))

  it("is not paid for a retry for which there is no time", simulated(function()
    local budget = opero.RetryBudget { ratio = 0, min_per_second = 1, window = 10 }
    local orch = orchestrator({ budget = budget, max_elapsed = 0.5 })
    fail(orch, 1)
    assert.equal(0, budget:stats().retries)
    orch = orchestrator({ budget = budget }, { timeout_config = { total = 0.5 } })
    fail(orch, 1)
    assert.equal(0, budget:stats().retries)
  end))

  it("starts afresh under another clock", function()
    local budget = opero.RetryBudget { ratio = 0, min_per_second = 1, window = 3 }
    local orch = with_budget(budget)
    fail(orch, 1)
    assert.equal(0, budget:stats().left)
    for _ = 1, 2 do
      opero.simulate(function()
        assert.equal(3, budget:stats().left)
        fail(orch, 1)
        assert.equal(0, budget:stats().left)
      end)
    end
  end)

  it("refuses wrong options", function()
    for name, bad in pairs { ratio = -1, min_per_second = "1", window = 0, seconds = 1 } do
      assert.equal("RetryBudget." .. name, refused(opero.RetryBudget, { [name] = bad }).path)
      assert.equal("RetryConfig.budget." .. name, path_of { budget = { [name] = bad } })
    end
    assert.equal("RetryBudget", refused(opero.RetryBudget, 5).path)
    assert.equal("RetryConfig.budget", path_of { budget = 0.2 })
    assert.equal("RetryConfig.budget", path_of { budget = true })
  end)
end)

describe("retry tells", function()
  it("why there is no further attempt", simulated(function()
    local reasons = {}
    local function listen(config)
      config.on = { retry_refused = function(e)
        reasons[#reasons + 1] = { e.reason, e.attempts, e.wait, e.error }
      end }
      return opero.Orchestrator(config)
    end
    for _, config in ipairs {
      { retry_config = { max_elapsed = 1.5 } },
      { retry_config = {}, timeout_config = { total = 1.5 } },
      { retry_config = { budget = { ratio = 0, min_per_second = 0 } } },
    } do
      local orch = listen(config)
      raised(orch.execute, orch, (broken "x"))
      assert.equal(1, orch:stats().events.retry_refused)
    end
    assert.same({
      { "max_elapsed", 2, 2, "x" }, { "timeout", 2, 2, "x" }, { "budget", 1, 1, "x" },
    }, reasons)
  end))
end)
