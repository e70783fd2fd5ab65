local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, failing, raised = support.broken, support.failing, support.raised
local refused, simulated = support.refused, support.simulated

local function echo(...) return ... end

-- All four policies, none of which ever has to wait.
local function all_policies()
  return opero.Orchestrator {
    retry_config = { max_attempts = 2 },
    fallbacks = { function() return "fallback" end },
    rate_limit_config = { rate = 1e6, burst = 1000000 },
    concurrency_config = { limit = 2 },
  }
end

describe("execute", function()
  for name, make in pairs {
    ["without policies"] = opero.Orchestrator,
    ["with all policies"] = all_policies,
  } do
    it(name .. " returns all results", simulated(function()
      local orch = make()
      assert.same({ n = 0 }, table.pack(orch:execute(echo)))
      assert.same({ n = 1 }, table.pack(orch:execute(echo, nil)))
      assert.same({ n = 4, false, nil, 3 }, table.pack(orch:execute(echo, false, nil, 3, nil)))
      assert.same({ n = 1, false }, table.pack(orch:execute(echo, false)))
    end))

    it(name .. " works in the main chunk, whether the function suspends or not", function()
      local orch = make()
      assert.equal(1, orch:execute(echo, 1))
      assert.equal(2, orch:execute(function(x)
        opero.yield()
        opero.sleep(0)
        return x
      end, 2))
    end)

    it(name .. " runs in the calling task", simulated(function()
      local orch, me = make(), opero.current()
      orch:execute(function()
        assert.equal(me, opero.current())
        assert.equal(1, #opero.tasks())
        opero.sleep(1)
        assert.equal(me, opero.current())
      end)
    end))

    it(name .. " can be nested", simulated(function()
      local orch, other = make(), make()
      assert.equal("deep", orch:execute(function()
        return other:execute(function()
          return orch:execute(echo, "deep")
        end)
      end))
    end))
  end

  it("raises errors of any type unchanged", simulated(function()
    local orch = opero.Orchestrator { retry_config = { max_attempts = 2 } }
    for _, err in ipairs { "text", 5, false, { "table" }, errors.OperoError "x", print } do
      assert.equal(err, raised(orch.execute, orch, (broken(err))))
    end
    assert.is_nil(raised(orch.execute, orch, (broken(nil))))
  end))

  it("takes nil and an error for a failure", simulated(function()
    local orch = opero.Orchestrator {}
    assert.equal("why", raised(orch.execute, orch, function() return nil, "why", 3 end))
    assert.is_false(raised(orch.execute, orch, function() return nil, false end))
    assert.same({ n = 3, nil, nil, 3 }, table.pack(orch:execute(echo, nil, nil, 3)))
    assert.same({ n = 2, false, "why" }, table.pack(orch:execute(echo, false, "why")))
  end))

  it("keeps the traceback of where the error was raised", simulated(function()
    local orch = opero.Orchestrator { retry_config = { max_attempts = 2, wait_min = 0 } }
    local function deep_trouble()
      error("trouble", 0)
    end
    local err = raised(orch.execute, orch, function()
      deep_trouble()
      return 1
    end)
    assert.matches("deep_trouble", opero.traceback(err))
  end))

  it("refuses what cannot be called, before any policy", simulated(function()
    local orch = all_policies()
    for _, bad in ipairs { 5, "x", {}, true } do
      assert.equal("execute.fn", refused(orch.execute, orch, bad).path)
      assert.equal("try.fn", refused(orch.try, orch, bad).path)
    end
    assert.equal("execute.fn: expected a function, got nil",
      refused(orch.execute, orch).message)
    assert.equal(0, opero.now())
  end))

  it("calls objects that have a __call", simulated(function()
    local object = setmetatable({}, { __call = function(_, x) return x + 1 end })
    assert.equal(6, all_policies():execute(object, 5))
  end))

  it("ends at once when its task is cancelled, wherever it stands", simulated(function()
    local orch = opero.Orchestrator {
      concurrency_config = { limit = 2 },
      rate_limit_config = { rate = 0.01 },
      retry_config = { max_attempts = 5, wait_min = 50, retry_on = function() return true end },
      fallbacks = { echo },
    }
    local calls = 0
    local in_attempt = opero.spawn(orch.execute, orch, function()
      calls = calls + 1
      opero.sleep(1000)
    end)
    opero.yield()
    local for_rate = opero.spawn(orch.execute, orch, echo)
    opero.yield()
    local for_permit = opero.spawn(orch.execute, orch, echo)
    local in_backoff = opero.spawn(function()
      opero.Orchestrator({ config = { retry_config = orch.config.retry_config, fallbacks = echo } })
        :execute((broken "x"))
    end)
    opero.sleep(1)
    for _, task in ipairs { for_permit, for_rate, in_attempt, in_backoff } do
      assert.equal("suspended", task:status())
      task:cancel()
      assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
      assert.equal("cancelled", task:status())
    end
    assert.equal(1, opero.now())
    assert.equal(1, calls)
    assert.equal(1, #opero.tasks())
    -- Both permits and all rate slots but one are there again.
    assert.equal(1, orch:execute(echo, 1))
    assert.equal(100, opero.now())
    opero.all {
      function() orch:execute(opero.sleep, 500) end,
      function() orch:execute(opero.sleep, 500) end,
    }
    assert.equal(800, opero.now())
  end))
end)

describe("the layers", function()
  it("stand in the documented order: concurrency, fallback, retry, rate limit", simulated(function()
    local orch = opero.Orchestrator {
      concurrency_config = { limit = 1 },
      rate_limit_config = { rate = 1 / 10 },
      retry_config = { max_attempts = 2, wait_min = 1, wait_max = 1 },
      fallbacks = { echo },
    }
    local log = {}
    local function note(name)
      return function(x)
        log[#log + 1] = { name, x, opero.now() }
        error(name, 0)
      end
    end
    opero.all {
      function() assert.equal("A", orch:execute(note "a", "A")) end,
      function() assert.equal("B", orch:execute(note "b", "B")) end,
    }
    -- Every attempt and the fallback (at 20) took a rate slot; b waited for the only permit.
    assert.same({ { "a", "A", 0 }, { "a", "A", 10 }, { "b", "B", 30 }, { "b", "B", 40 } }, log)
    assert.equal(50, opero.now())
  end))

  it("that are not configured are not there", function()
    local core = require "opero.core"
    for _, config in ipairs { {}, { fallbacks = {} } } do
      -- but for the one around all, which gives each execution its correlation id
      local within = select(2, debug.getupvalue(opero.Orchestrator(config).pipeline, 4))
      assert.equal(core.invoke, within)
    end
  end)
end)

describe("try", function()
  it("returns the results", simulated(function()
    assert.same({ n = 3, 1, nil, nil }, table.pack(all_policies():try(echo, 1, nil, nil)))
  end))

  it("returns nil and the error where execute raises", simulated(function()
    local orch = opero.Orchestrator { retry_config = { max_attempts = 2 } }
    for _, err in ipairs { "text", 5, false, { "table" } } do
      assert.same({ n = 2, nil, err }, table.pack(orch:try((broken(err)))))
    end
    local ok, err = orch:try(function() return nil, "no" end)
    assert.is_nil(ok)
    assert.equal("no", err)
  end))

  it("never returns nil for an error", simulated(function()
    local ok, err = opero.Orchestrator({}):try((broken(nil)))
    assert.is_nil(ok)
    assert.equal("OperoError: nil was raised", tostring(err))
  end))

  it("works in the main chunk", function()
    assert.equal("x", select(2, opero.Orchestrator({}):try((broken "x"))))
    local cancelled = errors.CancelledError "by hand"
    assert.equal(cancelled, select(2, opero.Orchestrator({}):try((broken(cancelled)))))
  end)

  it("raises the cancellation of its own task", simulated(function()
    local reached = false
    local task = opero.spawn(function()
      opero.Orchestrator({}):try(opero.sleep, 100)
      reached = true
    end)
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.is_false(reached)
  end))

  it("raises that of a timeout around it, and returns that of one inside", simulated(function()
    local orch = opero.Orchestrator {}
    local err = raised(opero.timeout, 2, orch.try, orch, opero.sleep, 100)
    assert.is_true(errors.is(err, errors.TimeoutError))
    local ok, inner = orch:try(opero.timeout, 3, opero.sleep, 100)
    assert.is_nil(ok)
    assert.is_true(errors.is(inner, errors.TimeoutError))
    assert.equal(5, opero.now())
  end))

  it("returns the cancellation of another task that was awaited", simulated(function()
    local other = opero.spawn(opero.sleep, 100)
    other:cancel()
    local ok, err = opero.Orchestrator({}):try(function() return other:await() end)
    assert.is_nil(ok)
    assert.is_true(errors.is(err, errors.CancelledError))
    opero.sleep(1) -- this task goes on
  end))
end)

describe("Ctrl-C", function()
  -- What the stand-alone interpreter raises in the main chunk.
  for _, err in ipairs { "interrupted!", "job.lua:7: interrupted!" } do
    it("is not retried, mended or returned as an error: " .. err, function()
      local fn, times = broken(err)
      local orch = opero.Orchestrator { retry_config = {}, fallbacks = { echo } }
      assert.equal(err, raised(orch.execute, orch, fn))
      assert.equal(err, raised(orch.try, orch, fn))
      assert.equal(2, #times)
    end)
  end
end)

describe("a logger", function()
  it("is told of retries, fallbacks, and of giving up", simulated(function()
    local logger, records = support.recorder()
    local orch = opero.Orchestrator {
      logger = logger,
      retry_config = { max_attempts = 2 },
      fallbacks = { (broken "b") },
    }
    raised(orch.execute, orch, (broken "a"))
    local said = {}
    for i, record in ipairs(records) do
      said[i] = record[1] .. ": " .. record[2]
    end
    assert.same({
      "info: attempt failed, will retry",
      "info: all attempts failed",
      "info: function failed, will fall back",
      "info: attempt failed, will retry",
      "info: all attempts failed",
      "info: all fallbacks failed",
    }, said)
    assert.same({ attempt = 1, max_attempts = 2, wait = 1, error = "a" }, records[1][3])
    assert.same({ fallback = 1, error = "a" }, records[3][3])
    assert.same({ functions = 2, error = "b" }, records[6][3])
  end))

  it("is told nothing when all goes well", simulated(function()
    local logger, records = support.recorder()
    local orch = opero.Orchestrator { logger = logger, retry_config = {}, fallbacks = { echo } }
    orch:execute(echo)
    orch:map(echo, { 1, 2, 3 })
    assert.same({}, records)
  end))

  it("may suspend", simulated(function()
    local logger = support.recorder()
    logger.info = function() opero.sleep(5) end
    local orch = opero.Orchestrator { logger = logger, retry_config = {} }
    assert.equal(1, orch:execute((failing "x"), 1))
    assert.equal(6, opero.now())
  end))

  it("that fails breaks nothing", simulated(function()
    local logger = support.recorder()
    logger.info = function() error "disk full" end
    local orch = opero.Orchestrator { logger = logger, retry_config = {} }
    assert.equal(1, orch:execute((failing "x"), 1))
  end))

  it("does not swallow a cancellation", simulated(function()
    local logger = support.recorder()
    logger.info = function() opero.sleep(100) end
    local orch = opero.Orchestrator { logger = logger, retry_config = {} }
    local task = opero.spawn(orch.execute, orch, (failing "x"))
    opero.sleep(1)
    task:cancel()
    assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
    assert.equal(1, opero.now())
  end))
end)

describe("in any order of events", function()
  -- Random policies, items, waits and cancellations, for many seeds, which shuffle the tasks too.
  local function pseudo_random(seed)
    local state = seed
    return function(n)
      state = (state * 6364136223846793005 + 1442695040888963407)
      return (state >> 33) % n
    end
  end

  local function try_seed(seed)
    local random = pseudo_random(seed)
    local limit, burst, rate = 1 + random(4), 1 + random(3), 1 + random(5)
    local orch = opero.Orchestrator {
      concurrency_config = { limit = limit },
      rate_limit_config = { rate = rate, burst = burst },
      retry_config = { max_attempts = 1 + random(3), wait_min = 0, wait_multiplier = 0.1,
        jitter = "full" },
      fallbacks = random(2) == 0 and {} or { function(item)
        if item.fallback_fails then
          return nil, "fallback"
        end
        return item.name
      end },
    }
    local running, times, outcomes = 0, {}, {}
    local leave = setmetatable({}, { __close = function() running = running - 1 end })
    local function fn(item)
      times[#times + 1] = opero.now()
      running = running + 1
      local _ <close> = leave
      assert(running <= limit)
      if item.wait > 0 then
        opero.sleep(item.wait)
      end
      if item.failures > 0 then
        item.failures = item.failures - 1
        error "again"
      end
      return item.name
    end
    local items = {}
    for i = 1, 20 do
      items[i] = { name = i, wait = random(4) / 4, failures = random(4),
        fallback_fails = random(2) == 0 }
    end
    local entries = {
      function()
        local results, failures = orch:map(fn, items, { on_error = "collect" })
        for i = 1, 20 do
          assert.is_true((results[i] == i) ~= (failures[i] ~= nil))
        end
        outcomes[#outcomes + 1] = "map"
      end,
      function()
        local count = 0
        for result, err, index in orch:imap(fn, items, {
          on_error = "collect", max_in_flight = 1 + random(5),
        }) do
          count = count + 1
          assert.equal(count, index)
          assert.is_true((result == index) ~= (err ~= nil))
        end
        assert.equal(20, count)
        outcomes[#outcomes + 1] = "imap"
      end,
      function()
        for _ = 1, 5 do
          -- Whoever is cut short at any moment leaves nothing behind.
          pcall(opero.timeout, random(20) / 4, orch.map, orch, fn, items)
        end
        outcomes[#outcomes + 1] = "timeouts"
      end,
    }
    opero.all(entries)
    assert.equal(3, #outcomes)
    assert.equal(0, running)
    assert.equal(1, #opero.tasks())
    for i = 1, #times do
      local last = math.min(#times, i + 40)
      for j = i, last do
        assert(j - i + 1 <= burst + rate * (times[j] - times[i]) + 1e-6)
      end
    end
    -- All permits and no more are there, and the bucket is full and no fuller.
    opero.sleep(100)
    local start, ends = opero.now(), {}
    orch:map(function() ends[#ends + 1] = opero.now() - start end, { n = burst + 2 })
    for i, time in ipairs(ends) do
      assert.near(math.max(0, i - burst) / rate, time, 1e-6)
    end
    local begun = 0
    local function begin_many()
      orch:map(function()
        begun = begun + 1
        opero.sleep(1e6)
      end, { n = 9 })
    end
    pcall(opero.timeout, 1000, opero.all, { begin_many, begin_many })
    assert.equal(limit, begun)
  end

  it("limits hold, permits balance, each item has one outcome, no task is left", function()
    for seed = 1, 150 do
      local ok, err = pcall(opero.simulate, function() try_seed(seed) end, { seed = seed })
      assert.is_true(ok, ("seed %d: %s"):format(seed, tostring(err)))
    end
  end)
end)
