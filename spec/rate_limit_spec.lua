local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local broken, raised, simulated = support.broken, support.raised, support.simulated

local NANOSECOND = 1e-9

local function limited(rate, burst)
  return opero.Orchestrator { rate_limit_config = { rate = rate, burst = burst } }
end

local function stamp() return opero.now() end

-- The times at which n calls, one after the other, got their permit.
local function one_by_one(orch, n)
  local times = {}
  for i = 1, n do
    times[i] = orch:execute(stamp)
  end
  return times
end

-- The same for n calls that are made at once.
local function at_once(orch, n)
  return orch:map(stamp, { n = n })
end

describe("n calls at rate r with burst b", function()
  for _, case in ipairs {
    { n = 1, rate = 1, burst = 1 }, { n = 10, rate = 1, burst = 1 },
    { n = 10, rate = 4, burst = 3 }, { n = 50, rate = 3, burst = 1 },
    { n = 1000, rate = 7, burst = 5 },
    { n = 1000, rate = 0.3, burst = 2 }, { n = 20, rate = 10, burst = 20 },
    { n = 3000, rate = 1e6, burst = 1 }, { n = 300, rate = 123456.789, burst = 7 },
  } do
    local expected = math.max(0, case.n - case.burst) / case.rate
    local name = ("for n = %d, r = %s, b = %d"):format(case.n, case.rate, case.burst)

    it("take (n - b) / r seconds one after the other, " .. name, simulated(function()
      local times = one_by_one(limited(case.rate, case.burst), case.n)
      for i, time in ipairs(times) do
        assert.near(math.max(0, i - case.burst) / case.rate, time, NANOSECOND)
      end
      assert.near(expected, opero.now(), NANOSECOND)
    end))

    it("take (n - b) / r seconds at once, " .. name, simulated(function()
      local times = at_once(limited(case.rate, case.burst), case.n)
      for i, time in ipairs(times) do
        assert.near(math.max(0, i - case.burst) / case.rate, time, NANOSECOND)
      end
      assert.near(expected, opero.now(), NANOSECOND)
    end))
  end

  it("drift by nothing over many", simulated(function()
    -- A third of a second is no whole number of nanoseconds.
    local orch = limited(3)
    for _ = 1, 100000 do
      orch:execute(stamp)
    end
    assert.near(99999 / 3, opero.now(), NANOSECOND)
  end))
end)

describe("the rate limit", function()
  it("lets a burst of one through by default", simulated(function()
    assert.same({ 0, 1, 2 }, one_by_one(limited(1), 3))
  end))

  it("refills while nobody calls, up to the burst", simulated(function()
    local orch = limited(1, 3)
    assert.same({ 0, 0, 0, 1 }, one_by_one(orch, 4))
    opero.sleep(1.5) -- 2.5: one and a half permits
    assert.same({ 2.5, 3 }, one_by_one(orch, 2))
    opero.sleep(100) -- full, and no fuller
    assert.same({ 103, 103, 103, 104, 105 }, one_by_one(orch, 5))
  end))

  it("never lets more than burst + rate * t through in any stretch of t seconds",
    simulated(function()
      local orch, times = limited(2, 4), {}
      opero.scope(function(scope)
        for i = 0, 99 do
          scope:spawn(function()
            opero.sleep(i * i * 7 % 50)
            orch:execute(function() times[#times + 1] = opero.now() end)
          end)
        end
      end)
      assert.equal(100, #times)
      for i = 1, #times do
        for j = i, #times do
          assert.is_true(j - i + 1 <= 4 + 2 * (times[j] - times[i]) + 1e-6)
        end
      end
    end))

  it("serves those who wait in the order in which they came", simulated(function()
    local orch, order = limited(1), {}
    opero.scope(function(scope)
      for i = 1, 6 do
        scope:spawn(function()
          opero.sleep((7 - i) * 0.01)
          orch:execute(function() order[#order + 1] = i end)
        end)
      end
    end)
    assert.same({ 6, 5, 4, 3, 2, 1 }, order)
  end))

  it("lets nobody who comes later past those who wait", simulated(function()
    local orch, order = limited(1), {}
    local function call(name, at)
      return function()
        opero.sleep(at)
        orch:execute(function() order[#order + 1] = { name, opero.now() } end)
      end
    end
    opero.all {
      call("a", 0), call("b", 0.1), call("c", 0.2),
      call("d", 1), -- at the very moment at which there is a permit for b
      call("e", 2),
    }
    assert.same({ { "a", 0 }, { "b", 1 }, { "c", 2 }, { "d", 3 }, { "e", 4 } }, order)
  end))

  it("holds for every attempt and every fallback", simulated(function()
    local fn, times = broken "x"
    local fallback, fallback_times = broken "y"
    local orch = opero.Orchestrator {
      rate_limit_config = { rate = 0.1 },
      retry_config = { max_attempts = 3, wait_min = 1, wait_max = 1 },
      fallbacks = { fallback },
    }
    raised(orch.execute, orch, fn)
    assert.same({ 0, 10, 20 }, times)
    assert.same({ 30, 40, 50 }, fallback_times)
  end))

  it("does not slow down what is slow by itself", simulated(function()
    local orch = limited(1)
    for _ = 1, 5 do
      orch:execute(opero.sleep, 3)
    end
    assert.equal(15, opero.now())
  end))

  it("starts afresh under another clock", function()
    local orch = limited(0.001)
    for _ = 1, 3 do
      opero.simulate(function()
        assert.same({ 0, 1000 }, one_by_one(orch, 2))
      end)
    end
    -- The simulation was ended while two were waiting in it.
    raised(opero.simulate, function()
      orch:execute(stamp)
      opero.spawn(orch.execute, orch, stamp)
      opero.spawn(orch.execute, orch, stamp)
      opero.sleep(1)
      error "end"
    end)
    opero.simulate(function()
      assert.same({ 0, 1000 }, one_by_one(orch, 2))
    end)
    assert.is_number(orch:execute(stamp)) -- and on the real one, without a wait
  end)

  it("passes results through, nil and none included, and needs no task while there are permits",
    function()
      local orch = limited(1e-9, 3)
      assert.same({ n = 3, 1, nil, nil }, table.pack(orch:execute(function(...) return ... end, 1,
        nil, nil)))
      assert.same({ n = 0 }, table.pack(coroutine.wrap(function()
        return orch:execute(function() end)
      end)()))
    end)

  it("takes rates from very low to very high", simulated(function()
    local high = limited(1e308, 1)
    for _ = 1, 1000 do
      high:execute(stamp)
    end
    assert.equal(0, opero.now())
    local low = limited(1e-300, 2)
    assert.same({ 0, 0 }, one_by_one(low, 2))
    local err = raised(opero.timeout, 1e6, low.execute, low, stamp)
    assert.is_true(errors.is(err, errors.TimeoutError))
  end))
end)

describe("a call that is cancelled while it waits for its permit", function()
  it("takes none: those behind it move up", simulated(function()
    local orch, times = limited(1), {}
    local tasks = {}
    for i = 1, 5 do
      tasks[i] = opero.spawn(function()
        times[i] = orch:execute(stamp)
      end)
    end
    opero.sleep(0.5)
    tasks[2]:cancel() -- the first in line, which sleeps until 1
    tasks[4]:cancel() -- stands behind it
    for _, i in ipairs { 2, 4 } do
      assert.is_true(errors.is(raised(tasks[i].await, tasks[i]), errors.CancelledError))
    end
    assert.equal(0.5, opero.now())
    tasks[5]:await()
    assert.same({ [1] = 0, [3] = 1, [5] = 2 }, times)
    assert.equal(3, orch:execute(stamp))
  end))

  it("takes none at the very moment it is there either", simulated(function()
    local orch, second = limited(1), nil
    orch:execute(stamp)
    local canceller = opero.spawn(function()
      opero.sleep(1) -- wakes before the one in line, which began to sleep later
      second:cancel()
    end)
    opero.yield()
    second = opero.spawn(orch.execute, orch, stamp)
    local third = opero.spawn(orch.execute, orch, stamp)
    assert.equal(1, third:await())
    canceller:await()
    assert.is_true(errors.is(raised(second.await, second), errors.CancelledError))
    assert.equal("cancelled", second:status())
  end))

  it("by a timeout takes none as well", simulated(function()
    local orch = limited(0.1)
    orch:execute(stamp)
    assert.is_true(errors.is(raised(opero.timeout, 3, orch.execute, orch, stamp),
      errors.TimeoutError))
    assert.equal(3, opero.now())
    assert.equal(10, orch:execute(stamp))
  end))

  it("keeps the count right in any mixture of retries and cancellations", function()
    for seed = 1, 200 do
      opero.simulate(function()
        local orch = opero.Orchestrator {
          rate_limit_config = { rate = 4, burst = 3 },
          retry_config = { max_attempts = 3, wait_min = 0, wait_max = 0.3, wait_multiplier = 0.1 },
        }
        local times, tasks = {}, {}
        local state = seed
        local function random(n)
          state = (state * 1103515245 + 12345) % 2147483648
          return state // 65536 % n
        end
        for i = 1, 30 do
          local fails, patience = random(3), random(10)
          tasks[i] = opero.spawn(function()
            opero.sleep(random(20) / 10)
            pcall(opero.timeout, patience, orch.execute, orch, function()
              times[#times + 1] = opero.now()
              if fails > 0 then
                fails = fails - 1
                error "again"
              end
            end)
          end)
        end
        for i = 1, 30 do
          if random(4) == 0 then
            opero.sleep(random(10) / 10)
            tasks[i]:cancel()
          end
        end
        for _, task in ipairs(tasks) do
          pcall(task.await, task)
        end
        assert.is_true(#times > 0)
        for i = 1, #times do
          for j = i, #times do
            assert.is_true(j - i + 1 <= 3 + 4 * (times[j] - times[i]) + 1e-6)
          end
        end
        -- Nothing was lost: after a rest the bucket is full, and not fuller.
        local now = opero.now() + 100
        opero.sleep(100)
        for i, time in ipairs(one_by_one(orch, 5)) do
          assert.near(now + math.max(0, i - 3) / 4, time, NANOSECOND)
        end
      end, { seed = seed })
    end
  end)
end)
