-- What came to rate limits beside waiting in line; that is in spec/rate_limit_spec.lua.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local NANOSECOND = 1e-9

local function limited(options, config)
  config = config or {}
  config.rate_limit_config = options
  return opero.Orchestrator(config)
end

local function stamp() return opero.now() end

local function is_limited(err)
  return errors.is(err, errors.RateLimitError)
end

-- The times at which calls with these arguments were made, all at once; or their errors.
local function at_once(orch, arguments)
  local outcomes = {}
  opero.scope(function(scope)
    for i, argument in ipairs(arguments) do
      scope:spawn(function()
        local _, result = pcall(orch.execute, orch, stamp, argument)
        outcomes[i] = result
      end)
    end
  end)
  return outcomes
end

describe('mode = "reject"', function()
  it("fails a call at once when there is no permit, and says when there will be one",
    simulated(function()
      local orch = limited { rate = 2, burst = 2, mode = "reject" }
      assert.equal(0, orch:execute(stamp))
      assert.equal(0, orch:execute(stamp))
      local err = raised(orch.execute, orch, stamp)
      assert.is_true(is_limited(err))
      assert.equal(0.5, err.retry_after)
      assert.equal("the rate limit of 2 a second is reached: a permit would be there in 0.500 s",
        err.message)
      opero.sleep(0.2)
      assert.near(0.3, raised(orch.execute, orch, stamp).retry_after, NANOSECOND)
      opero.sleep(0.3)
      assert.equal(0.5, orch:execute(stamp))
    end))

  it("is a failure that retries and fallbacks see; retries wait as long as it says",
    simulated(function()
      local orch = limited({ rate = 0.5, mode = "reject" }, { retry_config = { wait_min = 0 } })
      assert.equal(0, orch:execute(stamp))
      assert.equal(2, orch:execute(stamp))
      orch = limited({ rate = 0.5, mode = "reject" }, { fallbacks = opero.value "instead" })
      assert.equal(2, orch:execute(stamp))
      assert.equal("instead", orch:execute(stamp))
    end))
end)

describe("max_wait", function()
  it("fails the calls at once that would wait longer", simulated(function()
    local orch = limited { rate = 10, max_wait = 0.3 }
    local outcomes = at_once(orch, { 1, 2, 3, 4, 5, 6 })
    for i = 1, 4 do -- the fourth waits just as long
      assert.near((i - 1) / 10, outcomes[i], NANOSECOND)
    end
    for i = 5, 6 do
      assert.is_true(is_limited(outcomes[i]))
      assert.near(0.4, outcomes[i].retry_after, NANOSECOND)
    end
    assert.near(0.3, opero.now(), NANOSECOND)
  end))

  it("counts those who have left the line no more", simulated(function()
    local orch = limited { rate = 1, max_wait = 2 }
    orch:execute(stamp)
    local tasks = { opero.spawn(orch.execute, orch, stamp), opero.spawn(orch.execute, orch, stamp) }
    opero.yield()
    assert.is_true(is_limited(raised(orch.execute, orch, stamp)))
    tasks[1]:cancel()
    raised(tasks[1].await, tasks[1])
    assert.equal(2, orch:execute(stamp))
    assert.equal(1, tasks[2]:await())
  end))

  it("may be nothing", simulated(function()
    local orch = limited { rate = 1, max_wait = 0 }
    assert.equal(0, orch:execute(stamp))
    assert.is_true(is_limited(raised(orch.execute, orch, stamp)))
  end))
end)

describe("cost", function()
  it("is how many permits a call takes", simulated(function()
    local orch = limited { rate = 2, burst = 4, cost = function(n) return n end }
    assert.same({ 0, 0, 1, 1.5, 3.5 }, at_once(orch, { 3, 1, 2, 1, 4 }))
    opero.sleep(100)
    assert.same({ 103.5, 103.5, 103.75 }, at_once(orch, { 3.5, 0.5, 0.5 }))
  end))

  it("keeps the order: a cheap call does not get past a dear one", simulated(function()
    local orch = limited { rate = 1, burst = 10, cost = function(n) return n end }
    assert.same({ 0, 8, 9 }, at_once(orch, { 9, 9, 1 }))
  end))

  it("never lets more than burst + rate * t through in any stretch of t seconds", function()
    for seed = 1, 30 do
      opero.simulate(function()
        local random = require "opero.core".random
        local orch, taken = limited { rate = 3, burst = 5, cost = function(n) return n end }, {}
        opero.scope(function(scope)
          for _ = 1, 60 do
            scope:spawn(function()
              opero.sleep(random() * 20)
              local cost = 5 * (1 - random())
              pcall(opero.timeout, random() * 10, orch.execute, orch, function()
                taken[#taken + 1] = { opero.now(), cost }
              end, cost)
            end)
          end
        end)
        assert.is_true(#taken > 10)
        for i = 1, #taken do
          local sum = 0
          for j = i, #taken do
            sum = sum + taken[j][2]
            assert.is_true(sum <= 5 + 3 * (taken[j][1] - taken[i][1]) + 1e-6)
          end
        end
        local start = opero.now() + 100 -- and nothing was lost
        opero.sleep(100)
        assert.near(start, at_once(orch, { 5 })[1], NANOSECOND)
        assert.near(start + 1, at_once(orch, { 3 })[1], NANOSECOND)
      end, { seed = seed })
    end
  end)

  it("is checked at each call", simulated(function()
    local orch = limited { rate = 1, burst = 2, cost = function(n) return n end }
    for _, wrong in ipairs { 0, -1, 0 / 0, math.huge, 2.5, "1", true } do
      local err = refused(orch.execute, orch, stamp, wrong)
      assert.equal("rate_limit_config.cost", err.path)
      assert.equal("a number > 0 and at most burst, which is 2", err.allowed)
    end
    orch = limited { rate = 1, cost = function(x) return x.cost end }
    assert.matches("attempt to index a nil value", raised(orch.execute, orch, stamp, nil))
    assert.equal(0, orch:execute(stamp, {})) -- one, if the function says nothing
    assert.equal(1, orch:execute(stamp, { cost = 1 }))
  end))
end)

describe("key", function()
  local function identity(key) return key end

  it("gives each key a limit of its own", simulated(function()
    local orch = limited { rate = 1, key = identity }
    assert.same({ 0, 0, 1, 1, 2 }, at_once(orch, { "a", "b", "a", "b", "a" }))
  end))

  it("is told by refusals", simulated(function()
    local orch = limited { rate = 1, key = identity, mode = "reject" }
    orch:execute(stamp, "a")
    assert.equal("a", raised(orch.execute, orch, stamp, "a").key)
    assert.equal(0, orch:execute(stamp, "b"))
  end))

  it("may be nil or NaN: those have one limit together", simulated(function()
    local orch = limited { rate = 1, key = identity }
    assert.equal(0, orch:execute(stamp, nil))
    assert.equal(1, orch:execute(stamp, 0 / 0))
    assert.equal(2, orch:execute(stamp))
    assert.equal(2, orch:execute(stamp, false))
  end))

  it("fails a call when its function raises", simulated(function()
    local orch = limited { rate = 1, key = function(x) return x.host end }
    assert.matches("attempt to index a nil value", raised(orch.execute, orch, stamp, nil))
    assert.equal(0, orch:execute(stamp, { host = "h" }))
  end))

  it("leaves a bounded number of idle keys", simulated(function()
    local limiter = opero.RateLimiter { rate = 100, key = identity, max_keys = 100 }
    local orch = opero.Orchestrator { rate_limit_config = limiter }
    for i = 1, 10000 do
      orch:execute(stamp, i)
      opero.sleep(0.01) -- full again, so idle
      assert.is_true(limiter:stats().keys <= 100)
    end
    assert.equal(0, limiter:stats(5).waiting)
    assert.is_true(limiter:stats().keys <= 100) -- looking at one does not make it

    local small = opero.RateLimiter { rate = 100, max_keys = 1 }
    for i = 1, 100 do
      small:acquire(1, i)
      opero.sleep(0.01)
    end
    assert.equal(1, small:stats().keys)
  end))

  it("... while those that are in use stay, however many", simulated(function()
    local limiter = opero.RateLimiter { rate = 0.1, key = identity, max_keys = 10 }
    local orch = opero.Orchestrator { rate_limit_config = limiter }
    for round = 0, 2 do
      local keys = {}
      for i = 1, 1000 do
        keys[i] = i
      end
      for _, time in ipairs(at_once(orch, keys)) do
        assert.equal(round * 10, time)
      end
    end
    assert.is_true(limiter:stats().keys >= 1000)
    opero.sleep(10)
    for i = 1, 3000 do -- all are idle; most calls later they are gone
      orch:execute(stamp, -i)
      opero.sleep(10)
    end
    assert.is_true(limiter:stats().keys <= 10)
  end))
end)

describe("RateLimiter", function()
  it("gives permits by acquire and try_acquire", simulated(function()
    local limiter = opero.RateLimiter { rate = 1, burst = 2 }
    assert.is_true(limiter:try_acquire())
    limiter:acquire()
    assert.is_false(limiter:try_acquire())
    limiter:acquire()
    assert.equal(1, opero.now())
    limiter:acquire(2)
    assert.equal(3, opero.now())
    assert.is_false(limiter:try_acquire(1))
    opero.sleep(0.5)
    assert.is_true(limiter:try_acquire(0.5))
    assert.is_true(limiter:try_acquire(2, "a key"))
    assert.is_false(limiter:try_acquire(2, "a key"))
    assert.equal("rate_limit_config.cost", refused(limiter.acquire, limiter, 3).path)
    assert.equal("rate_limit_config.cost", refused(limiter.try_acquire, limiter, 0).path)
  end))

  it("gives nobody a permit before those who wait", simulated(function()
    local limiter = opero.RateLimiter { rate = 1 }
    limiter:acquire()
    local waiting = opero.spawn(limiter.acquire, limiter)
    opero.sleep(1) -- there is a permit for it
    assert.is_false(limiter:try_acquire())
    waiting:await()
    assert.equal(1, opero.now())
  end))

  it("raises a RateLimitError as its mode says", simulated(function()
    local limiter = opero.RateLimiter { rate = 1, mode = "reject" }
    limiter:acquire(1, "k")
    local err = raised(limiter.acquire, limiter, 1, "k")
    assert.is_true(is_limited(err))
    assert.same({ 1, "k" }, { err.retry_after, err.key })
  end))

  it("tells its state by stats", simulated(function()
    local limiter = opero.RateLimiter { rate = 2, burst = 4 }
    assert.same({ available = 4, waiting = 0, keys = 0 }, limiter:stats())
    limiter:acquire(3)
    assert.same({ available = 1, waiting = 0, keys = 0 }, limiter:stats())
    opero.sleep(0.25)
    assert.same({ available = 1.5, waiting = 0, keys = 0 }, limiter:stats())
    local task = opero.spawn(limiter.acquire, limiter, 4)
    opero.yield()
    assert.equal(1, limiter:stats().waiting)
    task:cancel()
    raised(task.await, task)
    assert.same({ available = 1.5, waiting = 0, keys = 0 }, limiter:stats())
    opero.sleep(100)
    assert.equal(4, limiter:stats().available)
    limiter:acquire(1, "key")
    assert.same({ available = 3, waiting = 0, keys = 1 }, limiter:stats "key")
  end))

  it("may be given to several orchestrators", simulated(function()
    local limiter = opero.RateLimiter { rate = 1 }
    local one, other = limited(limiter), limited(limiter)
    assert.equal(0, one:execute(stamp))
    assert.equal(1, other:execute(stamp))
    limiter:acquire()
    assert.equal(3, one:execute(stamp))
    local config = { rate = 1 } -- while options make one for each
    one, other = limited(config), limited(config)
    assert.equal(3, one:execute(stamp))
    assert.equal(3, other:execute(stamp))
  end))

  it("starts afresh under another clock, with its keys", function()
    local limiter = opero.RateLimiter { rate = 0.001 }
    for _ = 1, 2 do
      assert.equal("end", raised(opero.simulate, function()
        limiter:acquire()
        limiter:acquire(1, "k")
        assert.is_false(limiter:try_acquire())
        assert.is_false(limiter:try_acquire(1, "k"))
        assert.equal(1, limiter:stats().keys)
        opero.spawn(limiter.acquire, limiter)
        opero.yield()
        assert.equal(1, limiter:stats().waiting)
        error("end", 0) -- with one in line
      end))
    end
    assert.is_true(limiter:try_acquire()) -- in the main chunk
    assert.equal(0, limiter:stats().keys)
  end)
end)

describe("the events of a rate limit", function()
  it("tell of waits and of refusals", simulated(function()
    local told = {}
    local function note(e) told[#told + 1] = e end
    local on = { rate_limited = note, rate_rejected = note }
    local orch = limited({ rate = 2, key = function(key) return key end }, { on = on })
    orch:execute(stamp, "k")
    orch:execute(stamp, "k")
    orch = limited({ rate = 2, mode = "reject" }, { on = on })
    orch:execute(stamp)
    orch:try(stamp)
    assert.same({
      { event = "rate_limited", rate = 2, wait = 0.5, key = "k" },
      { event = "rate_rejected", rate = 2, retry_after = 0.5 },
    }, told)
  end))

  it("may be listened to by functions that suspend, and be cancelled there", simulated(function()
    for _, mode in ipairs { "wait", "reject" } do
      local function slowly() opero.sleep(5) end
      local limiter = opero.RateLimiter { rate = 1, mode = mode }
      local orch = limited(limiter, { on = { rate_limited = slowly, rate_rejected = slowly } })
      orch:execute(stamp)
      local task = opero.spawn(orch.execute, orch, stamp)
      opero.sleep(0.5)
      task:cancel()
      assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
      assert.equal(0, limiter:stats().waiting)
      opero.sleep(0.5)
      assert.is_true(limiter:try_acquire())
    end
  end))
end)

describe("results and errors", function()
  it("are handed through as they are", simulated(function()
    local function identity(x) return x end
    for _, options in ipairs { { rate = 1e6 }, { rate = 1e6, key = identity },
      { rate = 1e6, cost = function() return 1 end } } do
      support.hands_through(limited(options))
    end
  end))
end)

describe("the options of a rate limit", function()
  it("have defaults", function()
    local config = opero.RateLimitConfig { rate = 5 }
    assert.same({ rate = 5, burst = 1, mode = "wait", max_keys = 10000 }, config)
    assert.same(config, opero.RateLimitConfig(config))
  end)

  for _, case in ipairs {
    { {}, "rate", "a finite number > 0" },
    { { rate = 0 }, "rate", "a finite number > 0" },
    { { rate = 1, burst = 0 }, "burst", "an integer >= 1" },
    { { rate = 1, mode = "drop" }, "mode", 'one of "wait", "reject"' },
    { { rate = 1, max_wait = -1 }, "max_wait", "a finite number >= 0" },
    { { rate = 1, mode = "reject", max_wait = 5 }, "max_wait",
      'nothing beside mode = "reject", which never waits' },
    { { rate = 1, key = "host" }, "key", "a function" },
    { { rate = 1, cost = 2 }, "cost", "a function" },
    { { rate = 1, max_keys = 0 }, "max_keys", "an integer >= 1" },
  } do
    local given, name, allowed = table.unpack(case)
    it(("are checked: %s, %s"):format(name, allowed), function()
      local err = refused(opero.RateLimitConfig, given)
      assert.equal("RateLimitConfig." .. name, err.path)
      assert.equal(allowed, err.allowed)
      assert.equal("RateLimiter." .. name, refused(opero.RateLimiter, given).path)
      assert.equal("config.rate_limit_config." .. name,
        refused(opero.Orchestrator, { rate_limit_config = given }).path)
    end)
  end
end)
