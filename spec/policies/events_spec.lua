local errors = require "opero.errors"
local events = require "opero.events"
local opero = require "opero"
local support = require "spec.support"

local broken, failing, raised = support.broken, support.failing, support.raised
local refused, simulated = support.refused, support.simulated

local function echo(...) return ... end

-- Calls fn, and returns what was warned of meanwhile.
local function warnings(fn)
  local original, said = _G.warn, {}
  _G.warn = function(...) said[#said + 1] = table.concat { ... } end
  local ok, err = pcall(fn)
  _G.warn = original
  assert(ok, err)
  return said
end

local function retrying(more)
  local config = more or {}
  config.retry_config = config.retry_config or { max_attempts = 2, wait_min = 1, wait_max = 1 }
  return opero.Orchestrator(config)
end

describe("listeners", function()
  it("are called with the event's fields", simulated(function()
    local told = {}
    local orch = retrying { on = { retry = function(...) told = table.pack(...) end } }
    orch:execute((failing "x"))
    assert.same({
      n = 1, { event = "retry", attempt = 1, max_attempts = 2, wait = 1, error = "x" },
    }, told)
  end))

  it("may be added, of which all are called in order", simulated(function()
    local told = {}
    local function tell(name)
      return function(e) told[#told + 1] = name .. " " .. e.event end
    end
    local orch = retrying { on = { retry = tell "a", retries_exhausted = tell "a" } }
    orch:on("retry", tell "b")
    orch:on("retry", tell "c")
    raised(orch.execute, orch, (broken "x"))
    assert.same({ "a retry", "b retry", "c retry", "a retries_exhausted" }, told)
  end))

  it("may be added by a listener, and are called from the next event on", simulated(function()
    local told = {}
    local orch
    orch = retrying { on = { retry = function()
      told[#told + 1] = "first"
      orch:on("retry", function() told[#told + 1] = "added" end)
    end } }
    orch:execute((failing "x"))
    assert.same({ "first" }, told)
    orch:execute((failing "x"))
    assert.same({ "first", "first", "added" }, told)
  end))

  it("are told of successes and failures, not of cancellations", simulated(function()
    local told = {}
    local function tell(e) told[#told + 1] = { e.event, e.seconds, e.error } end
    local orch = opero.Orchestrator { on = { success = tell } }
    orch:on("failure", tell)
    assert.same({ n = 3, 1, nil, nil }, table.pack(orch:execute(echo, 1, nil, nil)))
    orch:execute(opero.sleep, 2)
    assert.is_false(raised(orch.execute, orch, (broken(false))))
    orch:try(function() return nil, "no" end)
    local task = opero.spawn(orch.execute, orch, opero.sleep, 9)
    opero.sleep(1)
    task:cancel()
    raised(task.await, task)
    assert.same({
      { "success", 0 }, { "success", 2 }, { "failure", 0, false }, { "failure", 0, "no" },
    }, told)
    assert.equal(2, orch:stats().events.success)
    assert.equal(2, orch:stats().events.failure)
  end))

  it("may suspend, and call the orchestrator", simulated(function()
    local orch
    orch = retrying { on = { retry = function()
      opero.sleep(5)
      assert.equal("inner", orch:execute(echo, "inner"))
    end } }
    assert.equal(7, orch:execute((failing "x"), 7))
    assert.equal(6, opero.now())
  end))

  it("that fail are reported, and break nothing, not those after them either", simulated(function()
    local unprintable = setmetatable({}, { __tostring = function() error "no" end })
    for said, err in pairs {
      ["opero: a listener failed: no disk"] = "no disk",
      ["opero: a listener failed: false"] = false,
      ["opero: a listener failed: first line"] = "first line\nsecond",
      ["opero: a listener failed: Refused it"] = errors.OperoError "Refused it",
      ["opero: a listener failed: (a table that cannot be shown)"] = unprintable,
    } do
      local called = false
      local orch = retrying { on = { retry = function() error(err, 0) end } }
      orch:on("retry", function() called = true end)
      assert.same({ said }, warnings(function()
        assert.equal(7, orch:execute((failing "x"), 7))
      end))
      assert.is_true(called)
    end
  end))

  it("may be objects that can be called", simulated(function()
    local called = 0
    local object = setmetatable({}, { __call = function(_, e)
      assert.equal("retry", e.event)
      called = called + 1
    end })
    local orch = retrying { on = { retry = object } }
    orch:on("retry", object)
    orch:execute((failing "x"))
    assert.equal(2, called)
  end))

  it("do not share their fields with the logger", simulated(function()
    local logger, records = support.recorder()
    local orch = retrying {
      logger = logger, on = { retry = function(e) e.attempt, e.mark = nil, true end },
    }
    orch:execute((failing "x"))
    assert.same({ attempt = 1, max_attempts = 2, wait = 1, error = "x" }, records[1][3])
  end))

  it("work in the main chunk", function()
    local told = 0
    local orch = opero.Orchestrator {
      on = { retry = function() told = told + 1 end },
      retry_config = { wait_min = 0, wait_multiplier = 0 },
    }
    orch:execute((failing "x"))
    assert.equal(1, told)
  end)

  it("refuse wrong names and listeners", function()
    local orch = opero.Orchestrator {}
    for _, bad in ipairs { "retries", "", 5, false, {} } do
      local err = refused(orch.on, orch, bad, echo)
      assert.equal("on.name", err.path)
      assert.matches("^the name of an event: breaker_close, breaker_half_open, ", err.allowed)
    end
    assert.equal("on.name", refused(orch.on, orch).path)
    assert.equal("on.listener: expected a function, got nil",
      refused(orch.on, orch, "retry").message)
    assert.equal("config.on", refused(opero.Orchestrator, { on = echo }).path)
    assert.equal("config.on", refused(opero.Orchestrator, { on = { retries = echo } }).path)
    assert.equal("config.on.retry: expected a function, got 5",
      refused(opero.Orchestrator, { on = { retry = 5 } }).message)
  end)

  it("are not changed by what becomes of the table later", simulated(function()
    local told = 0
    local listeners = { retry = function() told = told + 1 end }
    local orch = retrying { on = listeners }
    listeners.retry = nil
    orch:execute((failing "x"))
    assert.equal(1, told)
  end))
end)

describe("a cancellation in a listener", function()
  -- For each event something that makes it happen, in an execution of 100 s that it suspends.
  local function trial(config) -- a breaker that lets the next one through
    config.circuit_breaker_config = { failures = 1, open_for = 0.1 }
    local orch = opero.Orchestrator(config)
    orch:try((broken "x"))
    opero.sleep(0.2)
    return orch, echo
  end

  local makers = {
    success = function(config) return opero.Orchestrator(config), echo end,
    failure = function(config) return opero.Orchestrator(config), (broken "x") end,
    retry = function(config) return retrying(config), (failing "x") end,
    retries_exhausted = function(config) return retrying(config), (broken "x") end,
    retry_refused = function(config)
      config.retry_config = { max_elapsed = 0.1 }
      return retrying(config), (broken "x")
    end,
    fallback = function(config)
      config.fallbacks = echo
      return opero.Orchestrator(config), (broken "x")
    end,
    fallbacks_exhausted = function(config)
      config.fallbacks = (broken "y")
      return opero.Orchestrator(config), (broken "x")
    end,
    timeout = function(config)
      config.timeout_config = { attempt = 0.5 }
      return opero.Orchestrator(config), function() opero.sleep(9) end
    end,
    rate_limited = function(config)
      config.rate_limit_config = { rate = 1, burst = 1 }
      local orch = opero.Orchestrator(config)
      orch:execute(echo)
      return orch, echo
    end,
    rate_rejected = function(config)
      config.rate_limit_config = { rate = 1, burst = 1, mode = "reject" }
      local orch = opero.Orchestrator(config)
      orch:execute(echo)
      return orch, echo
    end,
    queued = function(config)
      config.concurrency_config = { limit = 1 }
      local orch = opero.Orchestrator(config)
      opero.spawn(orch.execute, orch, opero.sleep, 0.25)
      opero.yield()
      return orch, echo
    end,
    queue_full = function(config)
      config.concurrency_config = { limit = 1, max_queue = 0 }
      local orch = opero.Orchestrator(config)
      opero.spawn(orch.execute, orch, opero.sleep, 0.25)
      opero.yield()
      return orch, echo
    end,
    limit_changed = function(config)
      config.concurrency_config = { limit = "adaptive", algorithm = "aimd" }
      return opero.Orchestrator(config), echo
    end,
    breaker_open = function(config)
      config.circuit_breaker_config = { failures = 1 }
      return opero.Orchestrator(config), (broken "x")
    end,
    breaker_rejected = function(config)
      config.circuit_breaker_config = { failures = 1 }
      local orch = opero.Orchestrator(config)
      orch:try((broken "x"))
      return orch, echo
    end,
    breaker_half_open = trial,
    breaker_close = trial,
    hedge = function(config)
      config.hedge_config = { delay = 0.1 }
      return opero.Orchestrator(config), function() opero.sleep(50) end
    end,
    cache_hit = function(config)
      config.cache_config = { ttl = 9 }
      local orch = opero.Orchestrator(config)
      orch:execute(echo)
      return orch, echo
    end,
    cache_miss = function(config)
      config.cache_config = { ttl = 9 }
      return opero.Orchestrator(config), echo
    end,
    cache_shared = function(config)
      config.cache_config = { ttl = 9 }
      local orch = opero.Orchestrator(config)
      local function fn() opero.sleep(0.25) end
      opero.spawn(orch.execute, orch, fn)
      opero.yield()
      return orch, fn
    end,
    cache_stale = function(config)
      config.cache_config = { ttl = 0.1, stale_while_error = 9 }
      local orch, fails = opero.Orchestrator(config), false
      local function fn()
        if fails then
          error "x"
        end
      end
      orch:execute(fn)
      fails = true
      opero.sleep(0.2)
      return orch, fn
    end,
    chaos = function(config)
      config.chaos_config = { error_rate = 1 }
      return opero.Orchestrator(config), echo
    end,
  }

  for name in pairs(events.kinds) do
    it("ends the call, and nothing else: " .. name, simulated(function()
      local is_told, suspends = 0, false
      local config = { on = { [name] = function()
        if suspends then
          is_told = is_told + 1
          opero.sleep(100)
        end
      end } }
      local orch, fn = makers[name](config)
      suspends = true
      local began = opero.now()
      local task = opero.spawn(orch.execute, orch, fn)
      opero.sleep(3)
      assert.equal("suspended", task:status())
      assert.equal(1, is_told)
      task:cancel()
      assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
      assert.equal("cancelled", task:status())
      assert.equal(began + 3, opero.now())
      suspends = false
      local stats = orch:stats()
      assert.equal(1, stats.cancelled)
      if stats.concurrency then
        assert.same({ 0, 0 }, { stats.concurrency.in_flight, stats.concurrency.waiting })
      end
      assert.equal(1, #opero.tasks())
      assert.is_nil(opero.correlation_id())
    end))
  end

  it("by Ctrl-C passes through", simulated(function()
    local orch = retrying {
      on = { retry = function() error("interrupted!", 0) end }, fallbacks = echo,
    }
    assert.same({}, warnings(function()
      assert.equal("interrupted!", raised(orch.execute, orch, (broken "x")))
    end))
  end))
end)

describe("the logger", function()
  it("is told by the level of each event", simulated(function()
    local logger, records = support.recorder()
    local orch = opero.Orchestrator {
      logger = logger, circuit_breaker_config = { failures = 1 },
    }
    orch:try((broken "x"))
    orch:try(echo)
    assert.same({ "warning", "circuit breaker opened", { open_for = 60, error = "x" } }, records[1])
    assert.same({ "debug", "circuit breaker open, rejected", { retry_after = 60 } }, records[2])
  end))

  it("that says by `enabled` that it is quiet is not told", simulated(function()
    local logger, records = support.recorder()
    local asked = {}
    function logger.enabled(_, level)
      asked[level] = true
      return level ~= "info"
    end
    local orch = retrying { logger = logger }
    orch:execute((failing "x"))
    assert.same({}, records)
    assert.same({ info = true }, asked)
    assert.equal(1, orch:stats().events.retry)
  end))

  it("whose `enabled` fails breaks nothing", simulated(function()
    local logger = support.recorder()
    function logger.enabled() error("broken", 0) end
    local orch = retrying { logger = logger }
    local said = warnings(function() orch:execute((failing "x")) end)
    assert.equal("opero: the logger failed: broken", said[1])
  end))

  it("has to have all methods", function()
    local logger = support.recorder()
    logger.warning = nil
    assert.equal("config.logger", refused(opero.Orchestrator, { logger = logger }).path)
    for _, bad in ipairs { 5, "x", {}, true } do
      assert.equal("config.logger", refused(opero.Orchestrator, { logger = bad }).path)
    end
  end)
end)

describe("when nobody listens", function()
  it("no fields are put together", simulated(function()
    local logger = support.recorder()
    function logger.enabled(_, level) return level == "warning" end
    local told = events.new(logger)
    assert.is_false(told:note("retry"))
    assert.is_true(told:note("breaker_open"))
    told:on("retry", echo)
    assert.is_true(told:note("retry"))
    assert.same({ retry = 2, breaker_open = 1 }, told.counts)
  end))

  it("a call that succeeds allocates nothing for it", function()
    local function growth(orch)
      local function call()
        for _ = 1, 1000 do
          orch:execute(echo, 1)
        end
      end
      call()
      collectgarbage()
      collectgarbage "stop"
      local before = collectgarbage "count"
      call()
      local grown = collectgarbage "count" - before
      collectgarbage "restart"
      return grown
    end
    local orch = opero.Orchestrator { retry_config = {}, fallbacks = echo }
    assert.is_true(growth(orch) < 1)
    orch:on("retry", echo)
    assert.is_true(growth(orch) < 1)
  end)
end)
