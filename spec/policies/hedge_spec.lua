local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function hedged(options, config)
  config = config or {}
  config.hedge_config = options
  return opero.Orchestrator(config)
end

-- A function whose calls take these seconds, or fail after them with an error: { 3, "error" }.
-- Returns which call it was. And when the calls began, and how they ended.
local function server(...)
  local plan, began, ended = { ... }, {}, {}
  return function()
    local call = #began + 1
    began[call] = opero.now()
    local step = plan[call]
    local seconds, err = step, nil
    if type(step) == "table" then
      seconds, err = step[1], step[2]
    end
    local guard <close> = setmetatable({ how = "cut off" }, {
      __close = function(guard) ended[call] = { guard.how, opero.now() } end,
    })
    opero.sleep(seconds)
    guard.how = "done"
    if err ~= nil then
      error(err, 0)
    end
    return call
  end, began, ended
end

describe("a hedge", function()
  it("does nothing while the first attempt is quick enough", simulated(function()
    local fn, began = server(0.5)
    assert.equal(1, hedged { delay = 1 }:execute(fn))
    assert.equal(0.5, opero.now())
    assert.equal(1, #began)
    assert.equal(1, #opero.tasks())
  end))

  it("starts another attempt when the first is slow; the first success counts, and the rest is "
    .. "cancelled", simulated(function()
    local fn, began, ended = server(10, 0.5)
    assert.equal(2, hedged { delay = 1 }:execute(fn))
    assert.equal(1.5, opero.now())
    assert.same({ 0, 1 }, began)
    assert.same({ { "cut off", 1.5 }, { "done", 1.5 } }, ended)
    assert.equal(1, #opero.tasks())

    fn, began, ended = server(2, 10)
    assert.equal(1, hedged { delay = 1 }:execute(fn))
    assert.equal(3.5, opero.now())
    assert.same({ 1.5, 2.5 }, began)
    assert.same({ { "done", 3.5 }, { "cut off", 3.5 } }, ended)
  end))

  it("starts max of them at most, one by default, each a delay after the one before",
    simulated(function()
      local fn, began = server(100, 100, 100, 100)
      assert.equal(1, hedged { delay = 1 }:execute(fn))
      assert.same({ 0, 1 }, began)
      fn, began = server(100, 100, 100, 2)
      opero.sleep(100) -- 200
      assert.equal(4, hedged { delay = 1, max = 3 }:execute(fn))
      assert.same({ 200, 201, 202, 203 }, began)
      assert.equal(205, opero.now())
    end))

  it("may start it at once", simulated(function()
    local fn, began = server(5, 3)
    assert.equal(2, hedged { delay = 0 }:execute(fn))
    assert.same({ 0, 0 }, began)
    assert.equal(3, opero.now())
  end))

  it("hands arguments, results and errors through as they are", simulated(function()
    local orch = hedged { delay = 1 }
    local function echo(seconds, ...)
      opero.sleep(seconds)
      return ...
    end
    for _, seconds in ipairs { 0, 0.5, 2 } do
      assert.same({ n = 4, 1, nil, false },
        table.pack(orch:execute(echo, seconds, 1, nil, false, nil)))
      assert.same({ n = 0 }, table.pack(orch:execute(echo, seconds)))
      assert.equal(200, select("#", orch:execute(echo, seconds, table.unpack({}, 1, 200))))
      for _, err in ipairs { "text", 5, false, {} } do
        assert.equal(err, raised(orch.execute, orch, function()
          opero.sleep(seconds)
          error(err, 0)
        end))
      end
      assert.is_nil(raised(orch.execute, orch, function()
        opero.sleep(seconds)
        error(nil)
      end))
    end
  end))

  it("works in the main chunk", function()
    local calls = 0
    assert.equal(2, hedged { delay = 0.001 }:execute(function()
      calls = calls + 1
      if calls == 1 then
        opero.sleep(60)
      end
      return calls
    end))
    assert.equal(7, hedged { delay = 0.001 }:execute(function() return 7 end))
  end)
end)

describe("a failure", function()
  it("of a quick attempt is that of the call: it is for the retries", simulated(function()
    local fn, began = server({ 0.5, "no" }, 0.5)
    assert.equal("no", raised(hedged({ delay = 1 }).execute, hedged { delay = 1 }, fn))
    assert.equal(0.5, opero.now())
    assert.equal(1, #began)

    fn, began = server({ 0.5, "no" }, 10, 0.5)
    local orch = hedged({ delay = 1 }, { retry_config = { wait_min = 1, wait_max = 1 } })
    assert.equal(3, orch:execute(fn))
    assert.same({ 0.5, 2, 3 }, began)
  end))

  it("of one does not end the others", simulated(function()
    local fn = server({ 2, "no" }, 2)
    assert.equal(2, hedged { delay = 1 }:execute(fn))
    assert.equal(3, opero.now())
    fn = server(4, { 1, "no" })
    assert.equal(1, hedged { delay = 1 }:execute(fn))
    assert.equal(7, opero.now())
  end))

  it("... nor does it move the next one", simulated(function()
    local fn, began = server({ 1.5, "no" }, 10, 1)
    assert.equal(3, hedged { delay = 1, max = 2 }:execute(fn))
    assert.same({ 0, 1, 2 }, began)
  end))

  it("of all is the first one", simulated(function()
    local fn = server({ 3, "one" }, { 1, "two" })
    assert.equal("two", raised(hedged({ delay = 1 }).execute, hedged { delay = 1 }, fn))
    assert.equal(3, opero.now())
    local began
    fn, began = server({ 1.5, "one" }, { 0.25, "two" }, 1)
    -- at 1.5 there is none left, so there is nothing that is slow
    assert.equal("two", raised(hedged({ delay = 1 }).execute, hedged { delay = 1, max = 5 }, fn))
    assert.equal(4.5, opero.now())
    assert.equal(2, #began)
  end))
end)

describe("cancelling", function()
  it("the caller cancels all attempts, and waits for their ends", simulated(function()
    local fn, _, ended = server(100, 100, 100)
    local orch = hedged({ delay = 1, max = 2 }, { fallbacks = opero.value "instead" })
    local task = opero.spawn(orch.execute, orch, fn)
    opero.sleep(1.5)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.same({ { "cut off", 1.5 }, { "cut off", 1.5 } }, ended)
    assert.equal(1, #opero.tasks())
  end))

  it("by a timeout as well", simulated(function()
    local fn, began = server(100, 100)
    local orch = hedged({ delay = 1 }, { timeout_config = { total = 5 } })
    assert.is_true(errors.is(raised(orch.execute, orch, fn), errors.TimeoutError))
    assert.equal(5, opero.now())
    assert.equal(2, #began)
  end))

  it("that an attempt raises itself ends the call", simulated(function()
    local orch = hedged({ delay = 1 }, { retry_config = {}, fallbacks = opero.value "instead" })
    local calls = 0
    local err = raised(orch.execute, orch, function()
      calls = calls + 1
      if calls == 2 then
        error(errors.CancelledError "of something else")
      end
      opero.sleep(100)
    end)
    assert.equal("of something else", err.message)
    assert.equal(1, opero.now())
  end))

  it("leaves nothing behind, whenever it comes", function()
    for i = 0, 40 do
      opero.simulate(function()
        local fn, began, ended = server(2, { 0.5, "no" }, 1)
        local orch = hedged { delay = 0.5, max = 2 }
        local task = opero.spawn(orch.execute, orch, fn)
        opero.sleep(i * 0.05)
        task:cancel()
        pcall(task.await, task)
        assert.equal(#began, #ended)
        assert.equal(1, #opero.tasks())
      end, { seed = i })
    end
  end)
end)

describe("attempts", function()
  it("have a timeout, a permit and a circuit breaker each", simulated(function()
    local breaker = opero.CircuitBreaker { failures = 2 }
    local orch = hedged({ delay = 1 }, {
      timeout_config = { attempt = 3 },
      rate_limit_config = { rate = 0.5 },
      circuit_breaker_config = breaker,
    })
    local fn, began = server(10, 10)
    assert.is_true(errors.is(raised(orch.execute, orch, fn), errors.TimeoutError))
    assert.same({ 0, 2 }, began)
    assert.equal(5, opero.now())
    assert.equal("open", breaker:state())
  end))

  it("of a hedge and those of retries are told apart by the events", simulated(function()
    local told = {}
    local orch = hedged({ delay = 1, max = 2 }, {
      on = { hedge = function(e)
        told[#told + 1] = { e.event, e.attempt, e.delay, opero.now() }
      end },
    })
    orch:execute(server(10, 10, 1))
    assert.same({ { "hedge", 2, 1, 1 }, { "hedge", 3, 1, 2 } }, told)
    assert.equal(2, orch:stats().events.hedge)
  end))

  it("begin whatever listeners do meanwhile", simulated(function()
    local fn, began = server(10, 1)
    local orch = hedged({ delay = 1 }, { on = { hedge = function() opero.sleep(50) end } })
    assert.equal(2, orch:execute(fn))
    assert.same({ 0, 1 }, began)
    assert.equal(2, opero.now())
  end))
end)

describe("a delay that is a percentile", function()
  it("is the time that so great a part of the attempts took at most", simulated(function()
    local orch = hedged { delay = { percentile = 0.9 } }
    for i = 1, 100 do
      orch:execute(opero.sleep, i % 10 < 9 and 1 or 5)
    end
    local start = opero.now()
    local fn, began = server(100, 1)
    assert.equal(2, orch:execute(fn))
    assert.near(1, began[2] - start, 0.02)
  end))

  it("is not there until twenty were measured, and failures are not", simulated(function()
    local orch = hedged { delay = { percentile = 0.5 } }
    for _ = 1, 19 do
      orch:execute(opero.sleep, 1)
      orch:try(function() error "no" end)
    end
    local fn, began = server(100)
    orch:execute(fn) -- the twentieth
    assert.equal(1, #began)
    fn, began = server(100, 1)
    orch:execute(fn)
    assert.equal(2, #began)
  end))

  it("stays where it is when hedges win: slow attempts count although they were cut off",
    simulated(function()
      local orch, hedges = hedged { delay = { percentile = 0.9 } }, 0
      orch:on("hedge", function() hedges = hedges + 1 end)
      local calls = 0
      for i = 1, 1000 do
        local is_first = true
        orch:execute(function()
          calls = calls + 1
          local seconds = is_first and i % 20 == 0 and 10 or 1 + i % 7 / 10
          is_first = false
          opero.sleep(seconds)
        end)
      end
      assert.is_true(hedges > 40 and hedges < 160, hedges)
    end))

  it("follows when attempts take longer from now on", simulated(function()
    local orch, hedges = hedged { delay = { percentile = 0.9 } }, 0
    orch:on("hedge", function() hedges = hedges + 1 end)
    for _ = 1, 1500 do
      orch:execute(opero.sleep, 1)
    end
    assert.equal(0, hedges)
    for _ = 1, 2500 do
      orch:execute(opero.sleep, 2)
    end
    hedges = 0
    for _ = 1, 100 do
      orch:execute(opero.sleep, 2)
    end
    assert.equal(0, hedges)
  end))

  it("starts afresh under another clock", function()
    local orch = hedged { delay = { percentile = 0.5 } }
    for _ = 1, 2 do
      opero.simulate(function()
        for _ = 1, 20 do
          local fn, began = server(1)
          orch:execute(fn)
          assert.equal(1, #began)
        end
        local fn, began = server(10, 1)
        orch:execute(fn)
        assert.equal(2, #began)
      end)
    end
  end)
end)

describe("the options of a hedge", function()
  it("have defaults", function()
    assert.same({ delay = { percentile = 0.95 }, max = 1 }, opero.HedgeConfig())
    local config = opero.HedgeConfig { delay = 0, max = 2 }
    assert.same(config, opero.HedgeConfig(config))
  end)

  it("are checked", function()
    for _, wrong in ipairs { -1, "1", 0 / 0, math.huge, true } do
      local err = refused(opero.HedgeConfig, { delay = wrong })
      assert.equal("HedgeConfig.delay", err.path)
      assert.equal("a finite number >= 0, or { percentile = 0 to 1 }", err.allowed)
    end
    for _, wrong in ipairs { -0.1, 1.1, 95, "0.9" } do
      assert.equal("HedgeConfig.delay.percentile",
        refused(opero.HedgeConfig, { delay = { percentile = wrong } }).path)
    end
    assert.equal("HedgeConfig.delay.percentile",
      refused(opero.HedgeConfig, { delay = {} }).path)
    assert.equal("HedgeConfig.max", refused(opero.HedgeConfig, { max = 0 }).path)
    assert.equal("config.hedge_config.max",
      refused(opero.Orchestrator, { hedge_config = { max = 1.5 } }).path)
    assert.matches('did you mean "delay"', refused(opero.HedgeConfig, { delya = 1 }).message)
  end)

  it("agree with the attempt timeout", function()
    local err = refused(opero.Orchestrator,
      { hedge_config = { delay = 5 }, timeout_config = { attempt = 5 } })
    assert.equal("config.hedge_config.delay", err.path)
    assert.matches("before that delay every attempt has ended", err.message)
  end)
end)
