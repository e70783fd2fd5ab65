local core = require "opero.core"
local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function limited(times, config)
  config = config or {}
  config.timeout_config = times
  return opero.Orchestrator(config)
end

local function is_timeout(err)
  return errors.is(err, errors.TimeoutError)
end

-- Takes so long in its calls, one after the other, and returns which call it was.
local function taking(...)
  local times, calls = { ... }, 0
  return function()
    calls = calls + 1
    local call = calls
    opero.sleep(times[call])
    return call
  end
end

describe("the attempt timeout", function()
  it("cuts an attempt off, which is a failure that retries see", simulated(function()
    local orch = limited({ attempt = 2 }, { retry_config = { wait_min = 1, wait_max = 1 } })
    assert.equal(3, orch:execute(taking(10, 10, 1)))
    assert.equal(2 + 1 + 2 + 1 + 1, opero.now())
  end))

  it("... and fallbacks, each with a time of its own", simulated(function()
    local orch = limited({ attempt = 2 }, { fallbacks = { taking(1.5) } })
    assert.equal(1, orch:execute(taking(10)))
    assert.equal(3.5, opero.now())
  end))

  it("raises a TimeoutError that says how long it was", simulated(function()
    local err = raised(limited({ attempt = 0.5 }).execute, limited({ attempt = 0.5 }), taking(1))
    assert.is_true(is_timeout(err))
    assert.equal(0.5, err.timeout)
    assert.equal(0.5, opero.now())
  end))

  it("does not count the wait for a permit", simulated(function()
    local orch = limited({ attempt = 0.5 }, { rate_limit_config = { rate = 1 } })
    for i = 1, 3 do
      assert.equal(i, orch:execute(function() return i end))
    end
    assert.equal(2, opero.now())
  end))

  it("cancels the function where it is suspended, and all that it has started",
    simulated(function()
      local orch, ended = limited { attempt = 1 }, {}
      local function until_cancelled(name)
        local _ <close> = setmetatable({}, { __close = function() ended[name] = opero.now() end })
        opero.sleep(100)
      end
      raised(orch.execute, orch, function()
        opero.spawn(until_cancelled, "task")
        until_cancelled "function"
      end)
      assert.same({ ["function"] = 1, task = 1 }, ended)
    end))

  it("lets a result count that the function returns all the same", simulated(function()
    local orch = limited { attempt = 1 }
    assert.equal("late", orch:execute(function()
      pcall(opero.sleep, 5)
      return "late"
    end))
    assert.equal(1, opero.now())
  end))
end)

describe("the total timeout", function()
  it("covers attempts, waits between them and waits for permits", simulated(function()
    local orch = limited({ total = 5 }, {
      retry_config = { max_attempts = 10, wait_min = 1, wait_max = 1 },
    })
    local fn, times = support.broken "no"
    assert.equal("no", raised(orch.execute, orch, fn))
    assert.same({ 0, 1, 2, 3, 4 }, times)
    assert.equal(4, opero.now())

    orch = limited({ total = 5 }, { rate_limit_config = { rate = 0.1 } })
    orch:execute(function() end)
    assert.is_true(is_timeout(raised(orch.execute, orch, function() end)))
    assert.equal(9, opero.now())

    orch = limited({ total = 5 }, { concurrency_config = { limit = 1 } })
    local first = opero.spawn(orch.execute, orch, opero.sleep, 4.5)
    opero.yield()
    assert.is_true(is_timeout(raised(orch.execute, orch, opero.sleep, 4.5)))
    assert.equal(14, opero.now())
    first:await()
  end))

  it("... and the fallbacks", simulated(function()
    local orch = limited({ total = 5 }, { fallbacks = { taking(10) } })
    assert.is_true(is_timeout(raised(orch.execute, orch, function()
      opero.sleep(3)
      error "no"
    end)))
    assert.equal(5, opero.now())
  end))

  it("lets no retry begin whose wait would end after it", simulated(function()
    local refusals = {}
    local orch = limited({ total = 5 }, {
      retry_config = { max_attempts = 10, wait_min = 2, wait_max = 2 },
      on = { retry_refused = function(e) refusals[#refusals + 1] = e end },
    })
    local fn, times = support.broken "no"
    assert.equal("no", raised(orch.execute, orch, fn)) -- its error, and at once
    assert.same({ 0, 2, 4 }, times)
    assert.equal(4, opero.now())
    assert.equal("timeout", refusals[1].reason)
    assert.equal(2, refusals[1].wait)
  end))

  it("stands beside the other one: whichever is over first", simulated(function()
    local orch = limited({ attempt = 2, total = 5.5 }, {
      retry_config = { max_attempts = 10, wait_min = 1, wait_max = 1 },
    })
    local err = raised(orch.execute, orch, taking(10, 10, 10))
    assert.is_true(is_timeout(err))
    assert.equal(5, opero.now()) -- 2, 1, 2: another wait would end too late
    assert.equal(2, err.timeout)
  end))
end)

describe("both timeouts", function()
  it("hand arguments, results and errors through as they are", simulated(function()
    local orch = limited { attempt = 1, total = 2 }
    local function echo(...) return ... end
    assert.same({ n = 4, 1, nil, false }, table.pack(orch:execute(echo, 1, nil, false, nil)))
    assert.same({ n = 0 }, table.pack(orch:execute(echo)))
    assert.same({ n = 200, table.unpack({}, 1, 200) },
      table.pack(orch:execute(echo, table.unpack({}, 1, 200))))
    for _, err in ipairs { "text", 5, false, {} } do
      assert.equal(err, raised(orch.execute, orch, error, err, 0))
    end
    assert.is_nil(raised(orch.execute, orch, error, nil))
    -- a result that looks like a failure, from where results are not looked at any more
    orch = limited({ total = 2 }, { fallbacks = opero.value(nil, "no failure") })
    assert.same({ n = 2, nil, "no failure" }, table.pack(orch:execute(error, "x")))
  end))

  it("let the caller be cancelled, and its own timeouts be", simulated(function()
    local orch = limited({ attempt = 5, total = 10 }, { fallbacks = opero.value "instead" })
    local task = opero.spawn(orch.execute, orch, opero.sleep, 3)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    local err = raised(opero.timeout, 2, orch.execute, orch, opero.sleep, 3)
    assert.is_true(is_timeout(err))
    assert.equal(2, err.timeout)
    assert.equal(3, opero.now())
  end))

  it("work in the main chunk", function()
    local orch = limited { attempt = 0.001, total = 1 }
    assert.equal(7, orch:execute(function() return 7 end))
    assert.is_true(is_timeout(raised(orch.execute, orch, opero.sleep, 60)))
  end)

  it("tell of it once, each of its own", simulated(function()
    local told = {}
    local function note(e) told[#told + 1] = { e.event, e.kind, e.timeout } end
    local orch = limited({ attempt = 1, total = 10 }, {
      retry_config = { max_attempts = 2, wait_min = 0, wait_max = 0 }, on = { timeout = note },
    })
    raised(orch.execute, orch, taking(5, 5))
    assert.same({ { "timeout", "attempt", 1 }, { "timeout", "attempt", 1 } }, told)

    told = {}
    orch = limited({ total = 2 }, { on = { timeout = note } })
    raised(orch.execute, orch, opero.sleep, 3)
    assert.same({ { "timeout", "total", 2 } }, told)
    assert.equal(1, orch:stats().events.timeout)

    told = {} -- not of those that are the function's own
    raised(orch.execute, orch, opero.timeout, 1, opero.sleep, 2)
    raised(orch.execute, orch, error, errors.TimeoutError "of another kind")
    assert.same({}, told)
  end))

  it("pass on a cancellation that comes while they tell of it", simulated(function()
    local orch = limited({ attempt = 1 }, { on = { timeout = function() opero.sleep(10) end } })
    local task = opero.spawn(orch.execute, orch, opero.sleep, 100)
    opero.sleep(5)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(5, opero.now())
  end))

  it("are checked", function()
    for _, wrong in ipairs { 0, -1, "1", 0 / 0, math.huge, true } do
      local err = refused(opero.TimeoutConfig, { attempt = wrong })
      assert.equal("TimeoutConfig.attempt", err.path)
      assert.equal("a finite number > 0", err.allowed)
      assert.equal("config.timeout_config.total",
        refused(opero.Orchestrator, { timeout_config = { total = wrong } }).path)
    end
    assert.matches("unknown option; did you mean \"attempt\"",
      refused(opero.TimeoutConfig, { attempts = 1 }).message)
    assert.equal("TimeoutConfig.attempt: expected a number <= total, which is 2: an attempt cannot "
      .. "take longer than all of it, got 3",
      refused(opero.TimeoutConfig, { attempt = 3, total = 2 }).message)
    assert.same({ attempt = 2, total = 2 }, opero.TimeoutConfig { attempt = 2, total = 2 })
    assert.same({}, opero.TimeoutConfig())
  end)

  it("are a policy each, that stands alone", simulated(function()
    local timeout = require "opero.timeout"
    local layer = timeout.layer(timeout.config { attempt = 1, total = 3 }, core.invoke)
    assert.same({ n = 3, true, nil, nil }, table.pack(layer(function() return nil, nil end)))
    local ok, err = layer(opero.sleep, 5)
    assert.is_false(ok)
    assert.equal(1, err.timeout)
    assert.equal(core.invoke, timeout.layer(timeout.config(), core.invoke))
  end))
end)
