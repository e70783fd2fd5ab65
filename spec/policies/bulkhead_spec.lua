-- What came to the limit of concurrency beside waiting in line; that is in concurrency_spec.lua.
-- Limits that adapt are in adaptive_spec.lua.

local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused, simulated = support.raised, support.refused, support.simulated

local function limited(options, config)
  config = config or {}
  config.concurrency_config = options
  return opero.Orchestrator(config)
end

local function is_full(err)
  return errors.is(err, errors.QueueFullError)
end

describe("max_queue", function()
  it("is how many may wait; one more fails at once", simulated(function()
    local orch = limited { limit = 2, max_queue = 1 }
    local tasks = {}
    for i = 1, 3 do
      tasks[i] = opero.spawn(orch.execute, orch, opero.sleep, 10)
    end
    opero.yield()
    local err = raised(orch.execute, orch, opero.sleep, 10)
    assert.is_true(is_full(err))
    assert.same({ 2, 1 }, { err.limit, err.max_queue })
    assert.equal("2 executions are under way and 1 wait: no more are taken", err.message)
    assert.equal(0, opero.now())
    opero.sleep(10) -- the third has begun
    tasks[4] = opero.spawn(orch.execute, orch, opero.sleep, 10)
    for i = 1, 4 do
      tasks[i]:await()
    end
    assert.equal(20, opero.now())
  end))

  it("may be 0: nobody waits", simulated(function()
    local orch = limited { limit = 1, max_queue = 0 }
    local task = opero.spawn(orch.execute, orch, opero.sleep, 10)
    opero.yield()
    assert.is_true(is_full(raised(orch.execute, orch, opero.sleep, 10)))
    task:await()
    assert.equal(1, orch:execute(function() return 1 end))
  end))

  it("counts those who were cancelled no more", simulated(function()
    local orch = limited { limit = 1, max_queue = 2 }
    local tasks = {}
    for i = 1, 3 do
      tasks[i] = opero.spawn(orch.execute, orch, opero.sleep, 10)
    end
    opero.yield()
    tasks[2]:cancel()
    raised(tasks[2].await, tasks[2])
    local last = opero.spawn(orch.execute, orch, opero.sleep, 10)
    opero.yield()
    assert.is_true(is_full(raised(orch.execute, orch, opero.sleep, 10)))
    last:await()
    assert.equal(30, opero.now())
  end))

  it("stands outside of fallbacks and retries", simulated(function()
    local orch = limited({ limit = 1, max_queue = 0 },
      { retry_config = {}, fallbacks = opero.value "instead" })
    opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    assert.is_true(is_full(raised(orch.execute, orch, opero.sleep, 1)))
  end))
end)

describe("queue_timeout", function()
  it("fails who waits longer, and gives up the place", simulated(function()
    local bulkhead = opero.Bulkhead { limit = 1, queue_timeout = 3 }
    local orch = limited(bulkhead)
    local first = opero.spawn(orch.execute, orch, opero.sleep, 10)
    opero.yield()
    local err = raised(orch.execute, orch, opero.sleep, 1)
    assert.is_true(errors.is(err, errors.TimeoutError))
    assert.equal(3, err.timeout)
    assert.equal("timed out after 3 s in the queue of 1 executions at once", err.message)
    assert.equal(3, opero.now())
    assert.same({ limit = 1, in_flight = 1, waiting = 0 }, bulkhead:stats())
    opero.sleep(5) -- 8: two seconds before the end of the first
    assert.equal(1, orch:execute(function() return 1 end))
    assert.equal(10, opero.now())
    first:await()
  end))

  it("does not count the execution itself", simulated(function()
    local orch = limited { limit = 1, queue_timeout = 3 }
    orch:execute(opero.sleep, 10)
    assert.equal(10, opero.now())
  end))

  it("that ends as the permit comes takes it or leaves it to the next", function()
    for seed = 1, 20 do
      opero.simulate(function()
        local bulkhead = opero.Bulkhead { limit = 1, queue_timeout = 3 }
        local orch = limited(bulkhead)
        opero.scope(function(scope)
          scope:spawn(orch.execute, orch, opero.sleep, 3)
          opero.yield()
          for _ = 1, 3 do
            scope:spawn(function() pcall(orch.execute, orch, opero.sleep, 1) end)
          end
        end)
        assert.same({ limit = 1, in_flight = 0, waiting = 0 }, bulkhead:stats())
        assert.is_true(opero.now() <= 4)
      end, { seed = seed })
    end
  end)
end)

describe("priority", function()
  local function by_rank(rank) return rank end

  local function order_of(orch, ranks)
    local order = {}
    opero.scope(function(scope)
      scope:spawn(orch.execute, orch, opero.sleep, 1)
      opero.yield()
      for i, rank in ipairs(ranks) do
        scope:spawn(orch.execute, orch, function()
          order[#order + 1] = i
          opero.sleep(1)
        end, rank)
      end
    end)
    return order
  end

  it("says who goes first of those who wait; of equal ones who came first", simulated(function()
    local orch = limited { limit = 1, priority = by_rank }
    assert.same({ 3, 4, 2, 5, 1, 6 }, order_of(orch, { 0, 1, 2, 2, 1, -math.huge }))
  end))

  it("... of any number of them, some of whom leave", function()
    for seed = 1, 30 do
      opero.simulate(function()
        local random = require "opero.core".random
        local orch, order, tasks = limited { limit = 1, priority = by_rank }, {}, {}
        local first = opero.spawn(orch.execute, orch, opero.sleep, 1)
        opero.yield()
        for i = 1, 50 do
          local rank = random() * 10 // 1
          tasks[i] = opero.spawn(orch.execute, orch, function()
            order[#order + 1] = { rank = rank, number = i }
          end, rank)
          opero.yield()
        end
        local cancelled = 0
        for _, task in ipairs(tasks) do
          if random() < 0.3 then
            cancelled = cancelled + 1
            task:cancel()
          end
        end
        for _, task in ipairs(tasks) do
          pcall(task.await, task)
        end
        first:await()
        assert.equal(50 - cancelled, #order)
        for i = 2, #order do
          local a, b = order[i - 1], order[i]
          assert.is_true(a.rank > b.rank or a.rank == b.rank and a.number < b.number)
        end
      end, { seed = seed })
    end
  end)

  it("is asked only for calls that have to wait", simulated(function()
    local asked = 0
    local orch = limited { limit = 1, priority = function()
      asked = asked + 1
      return 0
    end }
    orch:execute(function() end)
    assert.equal(0, asked)
    order_of(orch, { 1, 2 })
    assert.equal(2, asked)
  end))

  it("fails a call when its function does, or says no number", simulated(function()
    local bulkhead = opero.Bulkhead { limit = 1, priority = function(x)
      if x == "raise" then
        error("broken function", 0)
      end
      return x
    end }
    local orch = limited(bulkhead)
    local first = opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    assert.equal("broken function", raised(orch.execute, orch, print, "raise"))
    for _, wrong in ipairs { "1", 0 / 0, false, {} } do
      local err = refused(orch.execute, orch, print, wrong)
      assert.equal("concurrency_config.priority", err.path)
      assert.equal("a function that returns a number", err.allowed)
    end
    assert.same({ limit = 1, in_flight = 1, waiting = 0 }, bulkhead:stats())
    first:await()
    assert.same({ limit = 1, in_flight = 0, waiting = 0 }, bulkhead:stats())
  end))

  it("may suspend, and the permit be free when it is done", simulated(function()
    local orch = limited { limit = 1, priority = function()
      opero.sleep(5)
      return 0
    end }
    local first = opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    assert.equal(1, orch:execute(function() return 1 end))
    assert.equal(5, opero.now())
    first:await()
  end))
end)

describe("Bulkhead", function()
  it("tells its state by stats", simulated(function()
    local bulkhead = opero.Bulkhead { limit = 2 }
    local orch = limited(bulkhead)
    assert.same({ limit = 2, in_flight = 0, waiting = 0 }, bulkhead:stats())
    for _ = 1, 5 do
      opero.spawn(orch.execute, orch, opero.sleep, 1)
    end
    opero.yield()
    assert.same({ limit = 2, in_flight = 2, waiting = 3 }, bulkhead:stats())
    assert.same(bulkhead:stats(), orch:stats().concurrency)
    opero.sleep(2.5)
    assert.same({ limit = 2, in_flight = 1, waiting = 0 }, bulkhead:stats())
    opero.sleep(1)
    assert.same({ limit = 2, in_flight = 0, waiting = 0 }, bulkhead:stats())
  end))

  it("may be given to several orchestrators", simulated(function()
    local bulkhead = opero.Bulkhead { limit = 1 }
    local one, other = limited(bulkhead), limited(bulkhead)
    opero.all {
      function() one:execute(opero.sleep, 1) end, function() other:execute(opero.sleep, 1) end,
      function() one:execute(opero.sleep, 1) end,
    }
    assert.equal(3, opero.now())
    local config = { limit = 1 } -- while options make one for each
    one, other = limited(config), limited(config)
    opero.all {
      function() one:execute(opero.sleep, 1) end, function() other:execute(opero.sleep, 1) end,
    }
    assert.equal(4, opero.now())
  end))

  it("starts afresh under another clock", function()
    local bulkhead = opero.Bulkhead { limit = 1 }
    local orch = limited(bulkhead)
    for _ = 1, 3 do
      assert.equal("end", raised(opero.simulate, function()
        assert.same({ limit = 1, in_flight = 0, waiting = 0 }, bulkhead:stats())
        opero.spawn(orch.execute, orch, opero.sleep, 100)
        opero.spawn(orch.execute, orch, opero.sleep, 100)
        opero.yield()
        assert.same({ limit = 1, in_flight = 1, waiting = 1 }, bulkhead:stats())
        error("end", 0)
      end))
    end
    assert.same({ limit = 1, in_flight = 0, waiting = 0 }, bulkhead:stats())
    assert.equal(1, orch:execute(function() -- in the main chunk
      assert.equal(1, bulkhead:stats().in_flight)
      return 1
    end))
  end)

  it("gives every permit back exactly once, whatever ends calls and waits", function()
    for seed = 1, 60 do
      opero.simulate(function()
        local random = require "opero.core".random
        local bulkhead = opero.Bulkhead {
          limit = 3, max_queue = 5, queue_timeout = 0.5, priority = function(rank) return rank end,
        }
        local orch, running = limited(bulkhead), 0
        opero.scope(function(scope)
          for _ = 1, 60 do
            scope:spawn(function()
              opero.sleep(random() * 5)
              local task = opero.spawn(orch.try, orch, function()
                running = running + 1
                assert.is_true(running <= 3)
                local _ <close> = setmetatable({}, { __close = function()
                  running = running - 1
                end })
                opero.sleep(random())
                return random() < 0.5 and 1 or error("no", 0)
              end, random() * 3 // 1)
              opero.sleep(random() * 2)
              task:cancel()
              pcall(task.await, task)
            end)
          end
        end)
        assert.same({ limit = 3, in_flight = 0, waiting = 0 }, bulkhead:stats())
      end, { seed = seed })
    end
  end)
end)

describe("the events of a bulkhead", function()
  it("tell of waits, refusals and timeouts", simulated(function()
    local told = {}
    local function note(e)
      e.at = opero.now()
      told[#told + 1] = e
    end
    local orch = limited({ limit = 1, max_queue = 1, queue_timeout = 2 },
      { on = { queued = note, queue_full = note, timeout = note } })
    opero.scope(function(scope)
      for _ = 1, 3 do
        scope:spawn(orch.try, orch, opero.sleep, 5)
      end
    end)
    assert.same({
      { event = "queued", limit = 1, waiting = 1, at = 0 },
      { event = "queue_full", limit = 1, max_queue = 1, at = 0 },
      { event = "timeout", kind = "queue", timeout = 2, at = 2 },
    }, told)
  end))

  it("may be listened to by functions that suspend, and be cancelled there", simulated(function()
    local bulkhead = opero.Bulkhead { limit = 1 }
    local orch = limited(bulkhead, { on = { queued = function() opero.sleep(5) end } })
    local first = opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    local second = opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.sleep(0.5)
    assert.equal(1, bulkhead:stats().waiting)
    second:cancel()
    assert.is_true(errors.is(raised(second.await, second), errors.CancelledError))
    assert.equal(0, bulkhead:stats().waiting)
    first:await()
    local third = opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    orch:execute(function() end) -- has its permit while it tells, at 2, and goes on at 6
    assert.equal(6, opero.now())
    third:await()
  end))
end)

describe("results and errors", function()
  it("are handed through as they are", simulated(function()
    for _, options in ipairs { { limit = 1 }, { limit = "adaptive" } } do
      support.hands_through(limited(options))
    end
  end))
end)

describe("the options of a bulkhead", function()
  it("have defaults", function()
    assert.same({ limit = 3 }, opero.ConcurrencyConfig { limit = 3.0 })
    local config = opero.ConcurrencyConfig { limit = "adaptive" }
    assert.same({ limit = "adaptive", min = 1, max = 1000, algorithm = "gradient" }, config)
    assert.same(config, opero.ConcurrencyConfig(config))
  end)

  for _, case in ipairs {
    { {}, "limit", 'an integer >= 1, or "adaptive"' },
    { { limit = 0 }, "limit", 'an integer >= 1, or "adaptive"' },
    { { limit = 1.5 }, "limit", 'an integer >= 1, or "adaptive"' },
    { { limit = "automatic" }, "limit", 'an integer >= 1, or "adaptive"' },
    { { limit = 1, max_queue = -1 }, "max_queue", "an integer >= 0" },
    { { limit = 1, queue_timeout = 0 }, "queue_timeout", "a finite number > 0" },
    { { limit = 1, priority = 5 }, "priority", "a function" },
    { { limit = 1, max_queue = 0, queue_timeout = 1 }, "queue_timeout",
      "nothing with max_queue = 0, where nobody waits" },
    { { limit = 1, max_queue = 0, priority = print }, "priority",
      "nothing with max_queue = 0, where nobody waits" },
    { { limit = 1, min = 1 }, "min", 'nothing without limit = "adaptive"' },
    { { limit = 1, max = 1 }, "max", 'nothing without limit = "adaptive"' },
    { { limit = 1, algorithm = "aimd" }, "algorithm", 'nothing without limit = "adaptive"' },
    { { limit = "adaptive", min = 0 }, "min", "an integer >= 1" },
    { { limit = "adaptive", min = 5, max = 4 }, "max", "an integer >= min, which is 5" },
    { { limit = "adaptive", algorithm = "vegas" }, "algorithm", 'one of "aimd", "gradient"' },
  } do
    local given, name, allowed = table.unpack(case)
    it(("are checked: %s, %s"):format(name, allowed), function()
      local err = refused(opero.ConcurrencyConfig, given)
      assert.equal("ConcurrencyConfig." .. name, err.path)
      assert.equal(allowed, err.allowed)
      assert.equal("Bulkhead." .. name, refused(opero.Bulkhead, given).path)
      assert.equal("config.concurrency_config." .. name,
        refused(opero.Orchestrator, { concurrency_config = given }).path)
    end)
  end
end)
