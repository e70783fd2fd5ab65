local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.semaphore", function()
  it("gives as many permits as it has", simulated(function()
    local semaphore = opero.semaphore(2)
    assert.equal(2, semaphore:available())
    assert.is_true(semaphore:acquire())
    assert.is_true(semaphore:try_acquire())
    assert.equal(0, semaphore:available())
    assert.is_false(semaphore:try_acquire())
    semaphore:release()
    assert.is_true(semaphore:try_acquire())
  end))

  it("makes others wait for one to be released", simulated(function()
    local semaphore = opero.semaphore(1)
    local inside, most = 0, 0
    opero.scope(function(s)
      for _ = 1, 10 do
        s:spawn(function()
          semaphore:acquire()
          inside = inside + 1
          most = math.max(most, inside)
          opero.sleep(1)
          inside = inside - 1
          semaphore:release()
        end)
      end
    end)
    assert.equal(1, most)
    assert.equal(10, opero.now())
    assert.equal(1, semaphore:available())
  end))

  it("serves those who wait in their order", simulated(function()
    local semaphore, order = opero.semaphore(0), {}
    for i = 1, 5 do
      opero.spawn(function()
        semaphore:acquire()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    assert.equal(5, semaphore:waiting())
    for _ = 1, 5 do
      semaphore:release()
    end
    -- The permits are theirs already: nobody may come in between.
    assert.is_false(semaphore:try_acquire())
    assert.equal(0, semaphore:available())
    opero.yield()
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end))

  it("takes permits beyond the first number", simulated(function()
    local semaphore = opero.semaphore(0)
    semaphore:release()
    semaphore:release()
    assert.equal(2, semaphore:available())
  end))

  it("raises TimeoutError when a permit does not come in time", simulated(function()
    local semaphore = opero.semaphore(0)
    raised_class("TimeoutError", semaphore.acquire, semaphore, 1)
    assert.equal(1, opero.now())
    assert.equal(0, semaphore:waiting())
    semaphore:release()
    assert.equal(1, semaphore:available())
    assert.is_true(semaphore:acquire(1))
    opero.sleep(10)
  end))

  it("refuses what is no number of permits", function()
    for _, permits in ipairs { -1, 1.5, math.huge, "1", {}, true } do
      assert.matches("integer >= 0", raised(opero.semaphore, permits))
    end
    assert.matches("integer >= 0", raised(opero.semaphore))
    assert.matches("integer >= 0", raised(opero.semaphore, 0 / 0))
    assert.equal(3, opero.semaphore(3.0):available())
  end)

  it("refuses to be mistaken for something else", simulated(function()
    local semaphore = opero.semaphore(1)
    for _, method in ipairs { "acquire", "try_acquire", "release", "available", "waiting" } do
      assert.matches("opero.Semaphore expected", raised(semaphore[method], opero.event()))
    end
  end))

  it("forgets nobody among many", simulated(function()
    local semaphore, count = opero.semaphore(3), 0
    opero.scope(function(s)
      for _ = 1, 10000 do
        s:spawn(function()
          semaphore:acquire()
          count = count + 1
          opero.yield()
          semaphore:release()
        end)
      end
    end)
    assert.equal(10000, count)
    assert.equal(3, semaphore:available())
  end))
end)

describe("a semaphore whose waiter is cancelled", function()
  it("serves the others as if it had never waited", simulated(function()
    local semaphore, order, tasks = opero.semaphore(0), {}, {}
    for i = 1, 5 do
      tasks[i] = opero.spawn(function()
        semaphore:acquire()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    tasks[1]:cancel()
    tasks[3]:cancel()
    tasks[5]:cancel()
    assert.equal(2, semaphore:waiting())
    semaphore:release()
    semaphore:release()
    opero.yield()
    assert.same({ 2, 4 }, order)
    semaphore:release()
    assert.equal(1, semaphore:available())
  end))

  it("in the turn in which it was given the permit gives it to the next", simulated(function()
    local semaphore, order, tasks = opero.semaphore(0), {}, {}
    for i = 1, 3 do
      tasks[i] = opero.spawn(function()
        semaphore:acquire()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    semaphore:release()
    tasks[1]:cancel()
    opero.yield()
    assert.same({ 2 }, order)
    assert.equal("cancelled", tasks[1]:status())
    semaphore:release()
    opero.yield()
    assert.same({ 2, 3 }, order)
  end))

  it("in that turn, with nobody next, has the permit back", simulated(function()
    local semaphore = opero.semaphore(0)
    local task = opero.spawn(semaphore.acquire, semaphore)
    opero.yield()
    semaphore:release()
    assert.equal(0, semaphore:available())
    task:cancel()
    assert.equal(1, semaphore:available())
    raised_class("CancelledError", task.await, task)
    assert.equal(1, semaphore:available())
  end))

  it("in that turn, one after the other, passes the permit down the queue", simulated(function()
    local semaphore, tasks, order = opero.semaphore(0), {}, {}
    for i = 1, 100 do
      tasks[i] = opero.spawn(function()
        semaphore:acquire()
        order[#order + 1] = i
      end)
    end
    opero.yield()
    semaphore:release()
    for i = 1, 99 do
      tasks[i]:cancel()
    end
    opero.yield()
    assert.same({ 100 }, order)
    assert.equal(0, semaphore:available())
  end))

  it("with its scope, in that turn, leaves the permit to those outside", simulated(function()
    local semaphore = opero.semaphore(0)
    opero.scope(function(s)
      for _ = 1, 5 do
        s:spawn(semaphore.acquire, semaphore)
      end
      opero.yield()
      semaphore:release()
      semaphore:release()
      s:cancel()
    end)
    assert.equal(2, semaphore:available())
    assert.equal(0, semaphore:waiting())

    local outsider = opero.spawn(function()
      opero.yield()
      return semaphore:acquire()
    end)
    semaphore:acquire()
    semaphore:acquire()
    opero.scope(function(s)
      s:spawn(semaphore.acquire, semaphore)
      opero.yield()
      opero.yield()
      assert.equal(2, semaphore:waiting())
      semaphore:release()
      s:cancel()
    end)
    assert.is_true(outsider:await())
    assert.equal(0, semaphore:available())
  end))

  it("keeps count whatever happens in whatever order", function()
    -- Seeds shuffle the order of the tasks, so release, timeout and cancellation meet in all ways.
    for seed = 1, 200 do
      opero.simulate(function()
        local semaphore, held, tasks = opero.semaphore(2), 0, {}
        for i = 1, 12 do
          tasks[i] = opero.spawn(function()
            local ok = pcall(semaphore.acquire, semaphore, i % 3 == 0 and 2 or nil)
            if ok then
              held = held + 1
              assert.is_true(held <= 2)
              local _ <close> = support.closing(function()
                held = held - 1
                semaphore:release()
              end)
              opero.sleep(1)
            end
          end)
        end
        for i = 1, 12, 2 do
          opero.spawn(function()
            opero.sleep(i % 4)
            tasks[i]:cancel()
          end)
        end
        for i = 1, 12 do
          pcall(tasks[i].await, tasks[i])
        end
        assert.equal(0, held)
        assert.equal(2, semaphore:available())
        assert.equal(0, semaphore:waiting())
      end, { seed = seed })
    end
  end)
end)
