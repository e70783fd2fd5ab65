local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function echo(...) return ... end

local function orchestrator(chaos_config, more)
  local config = more or {}
  config.chaos_config = chaos_config
  return opero.Orchestrator(config)
end

-- How many of `count` calls failed, were delayed, and returned something else.
local function tally(orch, count)
  local failed, delayed, replaced = 0, 0, 0
  for i = 1, count do
    local began = opero.now()
    local value, err = orch:try(echo, i)
    failed = failed + (err and 1 or 0)
    delayed = delayed + (opero.now() > began and 1 or 0)
    replaced = replaced + (not err and value ~= i and 1 or 0)
  end
  return failed, delayed, replaced
end

describe("chaos", function()
  it("without rates changes nothing", simulated(function()
    local orch = orchestrator {}
    assert.same({ n = 4, 1, nil, false, nil }, table.pack(orch:execute(echo, 1, nil, false, nil)))
    assert.same({ n = 0 }, table.pack(orch:execute(echo)))
    assert.equal(0, opero.now())
  end))

  it("makes its part of the calls fail, be late, and return something else", simulated(function()
    local failed, delayed, replaced = tally(orchestrator {
      error_rate = 0.1, latency_rate = 0.3, latency = 2, result_rate = 0.4, result = "other",
    }, 2000)
    assert.near(200, failed, 60)
    assert.near(600, delayed, 90)
    assert.near(800, replaced, 100)
    assert.equal(2 * delayed, opero.now())
  end))

  it("with rates of 1 does so always, and does not call the function", simulated(function()
    local calls = 0
    local function fn() calls = calls + 1 end
    local orch = orchestrator { error_rate = 1 }
    local err = raised(orch.execute, orch, fn)
    assert.equal("OperoError: a fault was injected", tostring(err))
    assert.equal(5, orchestrator { result_rate = 1, result = 5 }:execute(fn))
    assert.same({ n = 1, nil }, table.pack(orchestrator { result_rate = 1 }:execute(fn)))
    assert.equal(0, calls)
    orchestrator { latency_rate = 1 }:execute(fn)
    assert.equal(1, calls)
    assert.equal(1, opero.now())
  end))

  it("has errors of any type, of a class, and of a function's making", simulated(function()
    local object, made = {}, 0
    for _, err in ipairs { "text", 5, false, object, errors.OperoError "x" } do
      local orch = orchestrator { error_rate = 1, error = err }
      assert.equal(err, raised(orch.execute, orch, echo))
    end
    local orch = orchestrator { error_rate = 1, error = function()
      made = made + 1
      return made
    end }
    assert.equal(1, raised(orch.execute, orch, echo))
    assert.equal(2, raised(orch.execute, orch, echo))
    orch = orchestrator { error_rate = 1, error = function() end }
    assert.is_nil(raised(orch.execute, orch, echo))
    orch = orchestrator { error_rate = 1, error = errors.CircuitOpenError }
    local err = raised(orch.execute, orch, echo)
    assert.equal("CircuitOpenError: a fault was injected", tostring(err))
  end))

  it("has results of a function's making, many of them too", simulated(function()
    local function pair() return nil, "no error" end
    assert.same({ n = 2, nil, "no error" },
      table.pack(orchestrator { result_rate = 1, result = pair }:execute(echo)))
    assert.same({ n = 3, 1, nil, nil }, table.pack(
      orchestrator { result_rate = 1, result = opero.value(1, nil, nil) }:execute(echo)))
    assert.is_false(orchestrator { result_rate = 1, result = false }:execute(echo))
  end))

  it("may hang, until it is cancelled", simulated(function()
    local orch = orchestrator({ latency_rate = 1, latency = math.huge }, {
      timeout_config = { attempt = 5 },
    })
    assert.is_true(errors.is(raised(orch.execute, orch, echo), errors.TimeoutError))
    assert.equal(5, opero.now())
  end))

  it("has latencies of a function's making, which have to be some", simulated(function()
    local orch = orchestrator { latency_rate = 1, latency = function() return 0.25 end }
    orch:execute(echo)
    assert.equal(0.25, opero.now())
    for _, bad in ipairs { -1, 0 / 0, "1", {}, false } do
      orch = orchestrator { latency_rate = 1, latency = function() return bad end }
      local err = refused(orch.execute, orch, echo)
      assert.equal("chaos_config.latency", err.path)
      assert.equal("a function that returns seconds >= 0", err.allowed)
    end
  end))

  it("is switched by `enabled`", simulated(function()
    local is_on = true
    assert.equal(1, orchestrator { error_rate = 1, enabled = false }:execute(echo, 1))
    local orch = orchestrator { error_rate = 1, enabled = function() return is_on end }
    raised(orch.execute, orch, echo)
    is_on = false
    assert.equal(1, orch:execute(echo, 1))
    is_on = nil
    assert.equal(1, orch:execute(echo, 1))
  end))

  it("makes the error of a function of its options that of the call", simulated(function()
    for name, rate in pairs {
      error = "error_rate", latency = "latency_rate", result = "result_rate",
      enabled = "error_rate",
    } do
      for _, err in ipairs { "bad function", false } do
        local orch = orchestrator { [name] = function() error(err, 0) end, [rate] = 1 }
        assert.equal(err, raised(orch.execute, orch, echo))
      end
    end
  end))

  it("stands innermost: its faults are mended like others", simulated(function()
    local events = {}
    local orch = orchestrator({ error_rate = 1, error = "chaos" }, {
      retry_config = { max_attempts = 2 }, fallbacks = opero.value "copy",
      circuit_breaker_config = { failures = 2 },
      on = {
        retry = function(e) events[#events + 1] = e.error end,
        breaker_open = function(e) events[#events + 1] = e.error end,
      },
    })
    assert.equal("copy", orch:execute(echo))
    assert.same({ "chaos", "chaos" }, events)
  end))

  it("tells of each fault", simulated(function()
    local told = {}
    local function listen(config)
      return orchestrator(config, { on = { chaos = function(e) told[#told + 1] = e end } })
    end
    listen { latency_rate = 1, latency = 2, error_rate = 1, error = "x" }:try(echo)
    listen { result_rate = 1 }:execute(echo)
    assert.same({
      { event = "chaos", fault = "latency", latency = 2 },
      { event = "chaos", fault = "error", error = "x" },
      { event = "chaos", fault = "result" },
    }, told)
  end))

  it("is cancelled while it delays", simulated(function()
    local orch = orchestrator { latency_rate = 1, latency = 9 }
    local task = opero.spawn(orch.execute, orch, echo)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(1, opero.now())
  end))

  it("works in the main chunk", function()
    local orch = orchestrator { latency_rate = 1, latency = 0.001, error_rate = 1, error = "x" }
    assert.equal("x", select(2, orch:try(echo)))
  end)
end)

describe("the faults of chaos", function()
  local function pattern(orch)
    local list = {}
    for i = 1, 40 do
      list[i] = orch:try(echo, 1) and "." or "x"
    end
    return table.concat(list)
  end

  it("are the same in every simulation", function()
    local config = { error_rate = 0.5 }
    local shared, seen = orchestrator(config), {}
    for i = 1, 4 do
      opero.simulate(function()
        seen[i] = pattern(i % 2 == 0 and shared or orchestrator(config))
      end)
    end
    assert.same({ seen[1], seen[1], seen[1], seen[1] }, seen)
  end)

  it("with a seed are those of the seed, in every simulation and outside", function()
    local shared, seen = opero.Chaos { error_rate = 0.5, seed = 7 }, {}
    local orch = orchestrator(shared)
    for _ = 1, 2 do
      opero.simulate(function() seen[pattern(orch)] = true end, { seed = 3 })
    end
    opero.simulate(function()
      opero.Orchestrator { retry_config = { jitter = "full" } }:try(error)
      seen[pattern(orchestrator { error_rate = 0.5, seed = 7 })] = true
    end)
    seen[pattern(orchestrator { error_rate = 0.5, seed = 7 })] = true
    assert.is_string(next(seen))
    assert.is_nil(next(seen, (next(seen))))
    assert.not_equal((next(seen)), pattern(orchestrator { error_rate = 0.5, seed = 8 }))
  end)

  it("with a seed are evenly spread", simulated(function()
    for _, seed in ipairs { 0, 1, -1, math.maxinteger, math.mininteger } do
      local failed = tally(orchestrator { error_rate = 0.3, seed = seed }, 1000)
      assert.near(300, failed, 60)
    end
  end))
end)

describe("opero.Chaos", function()
  it("may be shared, and stand in a pipeline", simulated(function()
    local chaos = opero.Chaos { error_rate = 1, error = "x" }
    assert.equal("x", select(2, orchestrator(chaos):try(echo)))
    assert.equal("x", select(2, orchestrator(chaos):try(echo)))
    local pipeline = opero.pipeline { chaos }
    assert.equal("x", raised(pipeline.execute, pipeline, echo))
    assert.is_true(opero.Chaos().config.enabled)
  end))

  it("refuses wrong options", function()
    for _, name in ipairs { "error_rate", "latency_rate", "result_rate" } do
      for _, bad in ipairs { -0.1, 1.1, "1", 0 / 0, true } do
        assert.equal("Chaos." .. name, refused(opero.Chaos, { [name] = bad }).path)
      end
    end
    for _, bad in ipairs { -1, 0 / 0, "1", {}, true } do
      assert.equal("Chaos.latency: expected a number >= 0, or a function",
        refused(opero.Chaos, { latency_rate = 1, latency = bad }).message:match("^[^\n]*function"))
    end
    for _, bad in ipairs { 1, "yes", {} } do
      assert.equal("true, false or a function", refused(opero.Chaos, { enabled = bad }).allowed)
    end
    assert.equal("Chaos.seed", refused(opero.Chaos, { seed = 1.5 }).path)
    assert.equal("Chaos", refused(opero.Chaos, false).path)
    assert.equal("config.chaos_config.error_rte: unknown option; did you mean \"error_rate\"?",
      refused(opero.Orchestrator, { chaos_config = { error_rte = 1 } }).message)
  end)

  it("refuses rates that exceed 1 together", function()
    local err = refused(opero.Chaos, { error_rate = 0.75, result_rate = 0.5 })
    assert.equal("Chaos.result_rate: expected a number <= 0.25: together with error_rate it cannot "
      .. "exceed 1, got 0.5", err.message)
    assert.is_table(opero.Chaos { error_rate = 0.75, result_rate = 0.25, latency_rate = 1 })
  end)

  it("completes options that pass again", function()
    local config = opero.Chaos({ error_rate = 0.5 }).config
    assert.same({
      enabled = true, error_rate = 0.5, latency = 1, latency_rate = 0, result_rate = 0,
    }, config)
    assert.same(config, opero.Chaos(config).config)
  end)
end)
