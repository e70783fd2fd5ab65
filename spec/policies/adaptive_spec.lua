local core = require "opero.core"
local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, simulated = support.raised, support.simulated

-- The seconds a call takes when nobody is in its way, give or take a part of it.
local MEAN = 0.1

local function service_time(spread)
  return MEAN * (1 + spread * (2 * core.random() - 1))
end

-- Works at so many calls at once; the others queue.
local function queueing_server(capacity, spread)
  local server, places = {}, opero.semaphore(capacity)
  local place = setmetatable({}, { __close = function() places:release() end })
  function server.call()
    places:acquire()
    local _ <close> = place
    opero.sleep(service_time(spread))
  end
  function server.set_capacity(new)
    for _ = new + 1, capacity do
      places:acquire()
    end
    for _ = capacity + 1, new do
      places:release()
    end
    capacity = new
  end
  return server
end

-- Works at so many calls at once; the others fail, after so many seconds.
local function failing_server(capacity, spread, patience)
  local server, busy = {}, 0
  function server.call()
    if busy >= capacity then
      opero.sleep(patience)
      error("busy", 0)
    end
    busy = busy + 1
    opero.sleep(service_time(spread))
    busy = busy - 1
  end
  function server.set_capacity(new, new_patience)
    capacity, patience = new, new_patience or patience
  end
  return server
end

-- So many callers, each with one call after the other, for as long as the function takes.
local function under_load(callers, orch, server, fn)
  opero.scope(function(scope)
    for _ = 1, callers do
      scope:spawn(function()
        while true do
          orch:try(server.call)
        end
      end)
    end
    fn()
    scope:cancel()
  end)
end

-- The limit on average, over so many seconds.
local function average(bulkhead, seconds)
  local sum, count = 0, 0
  for _ = 1, seconds / 0.037 do
    opero.sleep(0.037)
    sum, count = sum + bulkhead:stats().limit, count + 1
  end
  return sum / count
end

local function assert_found(capacity, found)
  if math.abs(found / capacity - 1) > 0.1 then
    error(("the capacity is %d, and %.2f was found"):format(capacity, found), 2)
  end
end

local function finds(algorithm, new_server, capacity, spread, seed)
  opero.simulate(function()
    local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = algorithm }
    local orch = opero.Orchestrator { concurrency_config = bulkhead }
    local server, half = new_server(capacity, spread, 0.01), (capacity + 1) // 2
    under_load(2 * capacity, orch, server, function()
      opero.sleep(20)
      assert_found(capacity, average(bulkhead, 10))
      server.set_capacity(half)
      opero.sleep(10)
      assert_found(half, average(bulkhead, 10))
      if capacity < 100 then
        server.set_capacity(capacity)
        opero.sleep(15)
        assert_found(capacity, average(bulkhead, 10))
      end
    end)
    assert.equal(0, bulkhead:stats().in_flight)
  end, { seed = seed })
end

describe("an adaptive limit finds the capacity of a server within a tenth, and follows it when "
  .. "it is halved and when it is back:", function()
  for _, capacity in ipairs { 5, 20, 100 } do
    for seed = 1, capacity < 100 and 3 or 1 do
      it(("gradient, by how long calls take (%d at once, seed %d)"):format(capacity, seed),
        function()
          finds("gradient", queueing_server, capacity, 0.2, seed)
        end)

      it(("aimd, by failures (%d at once, seed %d)"):format(capacity, seed), function()
        finds("aimd", failing_server, capacity, 0.2, seed)
      end)
    end
  end

  it("gradient, where all calls take the same time", function()
    finds("gradient", queueing_server, 20, 0, 1)
  end)

  it("gradient, where some take three times as long as others", function()
    finds("gradient", queueing_server, 20, 0.5, 1)
  end)
end)

describe("gradient", function()
  it("does not take a server that has got slower for one that is full", simulated(function()
    local bulkhead = opero.Bulkhead { limit = "adaptive" }
    local orch = opero.Orchestrator { concurrency_config = bulkhead }
    local server, factor = queueing_server(20, 0.2), 1
    local work = server.call
    function server.call()
      work()
      if factor > 1 then
        opero.sleep(MEAN * (factor - 1)) -- elsewhere, where there is no queue
      end
    end
    under_load(100, orch, server, function()
      opero.sleep(20)
      assert_found(20, average(bulkhead, 10))
      factor = 2 -- each call takes twice as long, so twice as many are worth while
      opero.sleep(40)
      assert_found(40, average(bulkhead, 20))
    end)
  end))

  it("goes by successes: failures that are quick say nothing", simulated(function()
    local bulkhead = opero.Bulkhead { limit = "adaptive" }
    local orch = opero.Orchestrator { concurrency_config = bulkhead }
    local server, number = queueing_server(20, 0.2), 0
    local work = server.call
    function server.call()
      number = number + 1
      if number % 10 == 0 then
        error("not found", 0)
      end
      work()
    end
    under_load(60, orch, server, function()
      opero.sleep(20)
      assert_found(20, average(bulkhead, 20))
    end)
  end))

  it("... but those that were cut off do", simulated(function()
    local bulkhead = opero.Bulkhead { limit = "adaptive" }
    local orch = opero.Orchestrator {
      concurrency_config = bulkhead, timeout_config = { attempt = 5 * MEAN },
    }
    local server = queueing_server(60, 0.2)
    under_load(100, orch, server, function()
      opero.sleep(15)
      assert_found(60, average(bulkhead, 5))
      server.set_capacity(6) -- of 60 calls at once hardly one is in time
      opero.sleep(20)
      assert_found(6, average(bulkhead, 20))
    end)
  end))
end)

describe("aimd", function()
  it("takes failures of calls that began before it was lowered for one", simulated(function()
    local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = "aimd", min = 1, max = 100 }
    local orch = opero.Orchestrator { concurrency_config = bulkhead }
    local server = failing_server(1000, 0, 0.01)
    under_load(200, orch, server, function()
      opero.sleep(10)
      assert.equal(100, bulkhead:stats().limit)
      server.set_capacity(0, 1)
      opero.sleep(1.5)
      assert.equal(90, bulkhead:stats().limit)
      opero.sleep(1)
      assert.equal(81, bulkhead:stats().limit)
    end)
  end))

  it("bears failures that come late", function()
    opero.simulate(function()
      local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = "aimd" }
      local orch = opero.Orchestrator { concurrency_config = bulkhead }
      local server = failing_server(20, 0.2, 3 * MEAN)
      under_load(100, orch, server, function()
        opero.sleep(30)
        local found = average(bulkhead, 20)
        assert.is_true(found > 18 and found < 30, found) -- the failing calls have places, too
      end)
    end, { seed = 1 })
  end)
end)

describe("both", function()
  for _, algorithm in ipairs { "gradient", "aimd" } do
    it("begin with min, and stay between min and max: " .. algorithm, simulated(function()
      local bulkhead = opero.Bulkhead {
        limit = "adaptive", algorithm = algorithm, min = 4, max = 16,
      }
      local orch = opero.Orchestrator { concurrency_config = bulkhead }
      assert.equal(4, bulkhead:stats().limit)
      local server = algorithm == "aimd" and failing_server(1000, 0.2, 0.01)
        or queueing_server(1000, 0.2)
      under_load(100, orch, server, function()
        local least, most = math.huge, 0
        for _ = 1, 400 do
          opero.sleep(0.05)
          local limit = bulkhead:stats().limit
          least, most = math.min(least, limit), math.max(most, limit)
          assert.equal("integer", math.type(limit))
        end
        assert.equal(16, most)
        assert.is_true(least >= 4)
        server.set_capacity(1)
        opero.sleep(20)
        least = math.huge
        for _ = 1, 200 do
          opero.sleep(0.05)
          least = math.min(least, bulkhead:stats().limit)
        end
        assert.equal(4, least)
      end)
    end))

    it("do not grow beyond what is asked for: " .. algorithm, simulated(function()
      local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = algorithm }
      local orch = opero.Orchestrator { concurrency_config = bulkhead }
      under_load(3, orch, queueing_server(1000, 0.2), function()
        opero.sleep(100)
        assert.is_true(bulkhead:stats().limit <= 5, bulkhead:stats().limit)
      end)
    end))

    it("never let more through than the limit, and all of it: " .. algorithm, function()
      for seed = 1, 10 do
        opero.simulate(function()
          local random = core.random
          local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = algorithm, max = 8 }
          local orch = opero.Orchestrator { concurrency_config = bulkhead }
          opero.scope(function(scope)
            for _ = 1, 200 do
              scope:spawn(function()
                opero.sleep(random() * 20)
                pcall(opero.timeout, random() * 2, orch.execute, orch, function()
                  opero.sleep(random())
                  return random() < 0.9 and 1 or error("no", 0)
                end)
              end)
            end
            scope:spawn(function()
              for _ = 1, 200 do
                opero.sleep(0.1)
                local stats = bulkhead:stats()
                assert.is_true(stats.in_flight <= 8)
                assert.is_true(stats.waiting == 0 or stats.in_flight >= stats.limit)
              end
            end)
          end)
          assert.equal(0, bulkhead:stats().in_flight)
          assert.equal(0, bulkhead:stats().waiting)
        end, { seed = seed })
      end
    end)

    it("start afresh under another clock: " .. algorithm, function()
      local bulkhead = opero.Bulkhead { limit = "adaptive", algorithm = algorithm }
      local orch = opero.Orchestrator { concurrency_config = bulkhead }
      for _ = 1, 2 do
        opero.simulate(function()
          assert.equal(1, bulkhead:stats().limit)
          under_load(20, orch, queueing_server(10, 0.2), function()
            opero.sleep(20)
            assert.is_true(bulkhead:stats().limit > 5)
          end)
        end)
      end
      assert.equal(1, bulkhead:stats().limit)
      assert.equal(7, orch:execute(function() return 7 end)) -- in the main chunk
    end)

    it("tell of every change of the limit: " .. algorithm, simulated(function()
      local last = 1
      local orch = opero.Orchestrator {
        concurrency_config = { limit = "adaptive", algorithm = algorithm },
        on = {
          limit_changed = function(e)
            assert.equal(last, e.before)
            assert.not_equal(e.before, e.limit)
            last = e.limit
          end,
        },
      }
      under_load(20, orch, queueing_server(10, 0.2), function()
        opero.sleep(20)
      end)
      assert.equal(orch:stats().concurrency.limit, last)
      assert.is_true(orch:stats().events.limit_changed > 3)
    end))

    it("give a permit back when who listens to that is cancelled: " .. algorithm,
      simulated(function()
        local orch = opero.Orchestrator {
          concurrency_config = { limit = "adaptive", algorithm = algorithm },
          on = { limit_changed = function() opero.sleep(100) end },
        }
        local task
        repeat
          task = opero.spawn(orch.execute, orch, opero.sleep, 1)
          opero.sleep(2)
        until task:status() ~= "done"
        task:cancel()
        assert.is_true(errors.is(raised(task.await, task), errors.CancelledError))
        assert.equal(0, orch:stats().concurrency.in_flight)
      end))
  end
end)
