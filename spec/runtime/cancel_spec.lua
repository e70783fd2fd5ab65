local opero = require "opero"
local support = require "spec.runtime.support"

local is_cancellation = support.is_cancellation
local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("task:cancel", function()
  it("raises an error where the task is suspended", simulated(function()
    local seen
    local task = opero.spawn(function()
      local _, err = pcall(opero.sleep, 10)
      seen = err
      error(err, 0)
    end)
    opero.sleep(1)
    assert.is_true(task:cancel())
    local err = raised_class("CancelledError", task.await, task)
    assert.equal(seen, err)
    assert.equal("cancelled", task:status())
    assert.equal(1, opero.now())
  end))

  it("carries the reason, of any type", simulated(function()
    for _, reason in ipairs { "not needed", 42, { "why" }, true } do
      local task = opero.spawn(opero.sleep, 10)
      opero.yield()
      task:cancel(reason)
      assert.equal(reason, raised_class("CancelledError", task.await, task).reason)
    end
    local task = opero.spawn(opero.sleep, 10)
    task:cancel("not needed")
    assert.matches("cancelled: not needed", tostring(raised(task.await, task)))
  end))

  it("runs pcall handlers, <close> variables and cleanup, innermost first", simulated(function()
    local order = {}
    local function note(what)
      return support.closing(function(err)
        order[#order + 1] = what
        assert.is_true(is_cancellation(err))
      end)
    end
    local task = opero.spawn(function()
      local _ <close> = note "outer"
      local ok, err = pcall(function()
        local _ <close> = note "inner"
        opero.sleep(10)
      end)
      order[#order + 1] = ok and "returned" or "caught"
      error(err, 0)
    end)
    opero.yield()
    task:cancel()
    pcall(task.await, task)
    assert.same({ "inner", "caught", "outer" }, order)
  end))

  it("takes effect when the task runs next, not at once", simulated(function()
    local ended = false
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() ended = true end)
      opero.sleep(10)
    end)
    opero.yield()
    task:cancel()
    assert.is_false(ended)
    opero.yield()
    assert.is_true(ended)
  end))

  it("before the task began keeps its function from being called", simulated(function()
    local called = false
    local task = opero.spawn(function() called = true end, "some", "arguments")
    assert.is_true(task:cancel("too late"))
    assert.equal("too late", raised_class("CancelledError", task.await, task).reason)
    assert.is_false(called)
    assert.equal("cancelled", task:status())
  end))

  it("of a task that has ended does nothing", simulated(function()
    local done = opero.spawn(function() return "result" end)
    local failed = opero.spawn(error, "broken", 0)
    local cancelled = opero.spawn(opero.sleep, 1)
    cancelled:cancel("first")
    pcall(failed.await, failed)
    pcall(cancelled.await, cancelled)
    for _, task in ipairs { done, failed, cancelled } do
      local status = task:status()
      assert.is_false(task:cancel("second"))
      assert.equal(status, task:status())
    end
    assert.equal("result", done:await())
    assert.equal("broken", raised(failed.await, failed))
    assert.equal("first", raised(cancelled.await, cancelled).reason)
  end))

  it("twice is the same as once: the first reason stands", simulated(function()
    local errors_seen = 0
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() errors_seen = errors_seen + 1 end)
      opero.sleep(10)
    end)
    opero.yield()
    assert.is_true(task:cancel("first"))
    assert.is_true(task:cancel("second"))
    assert.equal("first", raised(task.await, task).reason)
    assert.equal(1, errors_seen)
  end))

  it("is not an error that surfaces in the parent", simulated(function()
    opero.run(function()
      local task = opero.spawn(opero.sleep, 10)
      opero.yield()
      task:cancel()
    end)
    assert.equal(0, opero.now())
  end))

  it("comes again at the next suspension if the task swallows it", simulated(function()
    local count = 0
    local task = opero.spawn(function()
      for _ = 1, 3 do
        local ok, err = pcall(opero.sleep, 10)
        assert.is_false(ok)
        assert.is_true(is_cancellation(err))
        count = count + 1
      end
      return "its own result"
    end)
    opero.yield()
    task:cancel()
    assert.equal("its own result", task:await())
    assert.equal(3, count)
    assert.equal("done", task:status())
    assert.equal(0, opero.now())
  end))

  it("comes again at every kind of suspension", simulated(function()
    local never, full = opero.event(), opero.channel(0)
    local other = opero.spawn(never.wait, never)
    local suspensions = {
      function() opero.sleep(1) end,
      function() opero.sleep(0) end,
      function() opero.sleep(math.huge) end,
      function() opero.yield() end,
      function() never:wait() end,
      function() never:wait(1) end,
      function() opero.semaphore(0):acquire() end,
      function() full:send("message") end,
      function() full:receive() end,
      function() opero.await(function() end) end,
      function() other:await() end,
      function() opero.run(opero.sleep, 1) end,
      function() opero.timeout(1, opero.yield) end,
      function() opero.scope(function() opero.yield() end) end,
    }
    local task = opero.spawn(function()
      pcall(opero.sleep, 1)
      for i, suspend in ipairs(suspensions) do
        local ok, err = pcall(suspend)
        assert.is_false(ok, i)
        assert.is_true(is_cancellation(err), i)
      end
      return #suspensions
    end)
    opero.yield()
    task:cancel()
    assert.equal(#suspensions, task:await())
    assert.equal(0, opero.now())
    never:set()
  end))

  it("lets the others run although a task swallows it again and again", simulated(function()
    local other_ran, rounds = false, 0
    local stubborn = opero.spawn(function()
      repeat
        pcall(opero.sleep, 1)
        rounds = rounds + 1
      until other_ran
    end)
    opero.yield()
    stubborn:cancel()
    opero.spawn(function()
      for _ = 1, 10 do
        opero.yield()
      end
      other_ran = true
    end)
    stubborn:await()
    assert.is_true(rounds >= 10)
  end))

  it("lets a task that never suspends again end with its results", simulated(function()
    local task
    task = opero.spawn(function()
      task:cancel()
      return "result"
    end)
    assert.equal("result", task:await())
    assert.equal("done", task:status())
  end))

  it("gives way to an error of the cleanup", simulated(function()
    for _, fail in ipairs {
      function()
        local _ <close> = support.closing(function() error("cleanup failed", 0) end)
        opero.sleep(1)
      end,
      function()
        pcall(opero.sleep, 1)
        error("cleanup failed", 0)
      end,
    } do
      local parent = opero.spawn(function()
        local task = opero.spawn(fail)
        opero.yield()
        task:cancel()
      end)
      -- Nobody awaits the task, so its error is the parent's.
      assert.equal("cleanup failed", raised(parent.await, parent))
    end
  end))

  it("leaves room for a cleanup that suspends in a shield", simulated(function()
    local steps = {}
    local task = opero.spawn(function()
      local _ <close> = support.closing(function()
        opero.shield(function()
          opero.sleep(2)
          steps[#steps + 1] = opero.now()
        end)
      end)
      opero.sleep(10)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ 3 }, steps)
  end))
end)

describe("cancelling oneself", function()
  it("takes effect at the next suspension", simulated(function()
    local reached = false
    local task = opero.spawn(function()
      opero.current():cancel("enough")
      reached = true
      opero.sleep(1)
      reached = "too far"
    end)
    assert.equal("enough", raised_class("CancelledError", task.await, task).reason)
    assert.is_true(reached)
  end))

  it("works in the root task too", function()
    local err = raised_class("CancelledError", opero.run, function()
      opero.current():cancel("enough")
      opero.yield()
    end)
    assert.equal("enough", err.reason)
  end)
end)

describe("cancelling one's parent", function()
  it("cancels oneself along with it", simulated(function()
    local order = {}
    local parent = opero.spawn(function()
      local me = opero.current()
      local _ <close> = support.closing(function() order[#order + 1] = "parent" end)
      opero.spawn(function()
        local _ <close> = support.closing(function() order[#order + 1] = "child" end)
        me:cancel()
        order[#order + 1] = "goes on until it suspends"
        opero.sleep(1)
      end)
      opero.sleep(10)
    end)
    raised_class("CancelledError", parent.await, parent)
    assert.equal("goes on until it suspends", order[1])
    assert.equal(3, #order)
    assert.equal(0, opero.now())
  end))

  it("works when the parent has returned and waits for its children", simulated(function()
    local parent, child
    parent = opero.spawn(function()
      child = opero.spawn(function()
        opero.sleep(1)
        parent:cancel("by my child")
        opero.sleep(10)
      end)
      return "result"
    end)
    -- It will not be whole: its results do not stand.
    assert.equal("by my child", raised_class("CancelledError", parent.await, parent).reason)
    assert.equal("cancelled", child:status())
    assert.equal(1, opero.now())
  end))

  it("is the same whichever task above is cancelled", simulated(function()
    local parent
    local grandparent = opero.spawn(function()
      parent = opero.spawn(function()
        opero.spawn(opero.sleep, 10)
        return "result"
      end)
      opero.sleep(10)
    end)
    opero.sleep(1)
    grandparent:cancel("all of it")
    raised_class("CancelledError", grandparent.await, grandparent)
    assert.equal("cancelled", parent:status())
    assert.equal("all of it", raised_class("CancelledError", parent.await, parent).reason)
  end))
end)

describe("cancellation", function()
  it("reaches all that the task has spawned", simulated(function()
    local order = {}
    local function nest(depth)
      local _ <close> = support.closing(function() order[#order + 1] = depth end)
      if depth < 4 then
        opero.spawn(nest, depth + 1)
        opero.spawn(opero.sleep, 10)
      end
      opero.sleep(10)
    end
    local task = opero.spawn(nest, 1)
    opero.sleep(1)
    task:cancel("the tree")
    assert.equal("the tree", raised_class("CancelledError", task.await, task).reason)
    table.sort(order)
    assert.same({ 1, 2, 3, 4 }, order)
    assert.equal(1, opero.now())
  end))

  it("reaches children of tasks whose own function has ended", simulated(function()
    local cancelled = 0
    local task = opero.spawn(function()
      opero.spawn(function()
        opero.spawn(function()
          local _ <close> = support.closing(function() cancelled = cancelled + 1 end)
          opero.sleep(10)
        end)
      end)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.equal(1, cancelled)
    assert.equal(1, opero.now())
  end))

  it("does not reach siblings or the parent", simulated(function()
    local sibling = opero.spawn(function()
      opero.sleep(2)
      return "sibling"
    end)
    local task = opero.spawn(opero.sleep, 10)
    opero.sleep(1)
    task:cancel()
    raised(task.await, task)
    assert.equal("sibling", sibling:await())
  end))

  it("applies from the start to what a cancelled task spawns", simulated(function()
    local called = false
    local child
    local task = opero.spawn(function()
      pcall(opero.sleep, 10)
      child = opero.spawn(function() called = true end)
    end)
    opero.yield()
    task:cancel("no more")
    task:await()
    assert.equal("cancelled", child:status())
    assert.equal("no more", raised_class("CancelledError", child.await, child).reason)
    assert.is_false(called)
  end))

  it("applies from the start to what is spawned in a <close> after it", simulated(function()
    local child
    local called = false
    local task = opero.spawn(function()
      local _ <close> = support.closing(function()
        child = opero.spawn(function() called = true end)
        raised_class("CancelledError", child.await, child)
      end)
      opero.sleep(10)
    end)
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.equal("cancelled", child:status())
    assert.is_false(called)
  end))

  it("of one who awaits does not touch the task that is awaited", simulated(function()
    local worker = opero.spawn(function()
      opero.sleep(2)
      return "work"
    end)
    local awaiter = opero.spawn(worker.await, worker)
    opero.sleep(1)
    awaiter:cancel()
    raised_class("CancelledError", awaiter.await, awaiter)
    assert.equal("work", worker:await())
  end))

  it("of an awaited task fails the one who awaits, who was not cancelled", simulated(function()
    local worker = opero.spawn(opero.sleep, 10)
    local awaiter = opero.spawn(function() return pcall(worker.await, worker) end)
    opero.sleep(1)
    worker:cancel("gone")
    local ok, err = awaiter:await()
    assert.is_false(ok)
    assert.equal("gone", err.reason)
    assert.equal("done", awaiter:status())
  end))

  it("can come from a <close> variable of another that is being cancelled", simulated(function()
    local second = opero.spawn(opero.sleep, 10)
    local first = opero.spawn(function()
      local _ <close> = support.closing(function() second:cancel("by the first") end)
      opero.sleep(10)
    end)
    opero.yield()
    first:cancel()
    assert.equal("by the first", raised(second.await, second).reason)
    raised(first.await, first)
  end))

  it("can come from the task's own cleanup", simulated(function()
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() opero.current():cancel("again") end)
      opero.sleep(10)
    end)
    opero.yield()
    task:cancel("first")
    assert.equal("first", raised_class("CancelledError", task.await, task).reason)
  end))

  it("of one task by another that it cancels in turn ends both", simulated(function()
    local first, second
    first = opero.spawn(function()
      local _ <close> = support.closing(function() second:cancel("second") end)
      opero.sleep(10)
    end)
    second = opero.spawn(function()
      local _ <close> = support.closing(function() first:cancel("first") end)
      opero.sleep(10)
    end)
    opero.yield()
    first:cancel("outside")
    assert.equal("outside", raised(first.await, first).reason)
    assert.equal("second", raised(second.await, second).reason)
  end))

  it("in the turn in which the task ends by itself comes too late", simulated(function()
    local task = opero.spawn(function()
      opero.sleep(1)
      return "result"
    end)
    local late
    opero.spawn(function()
      opero.sleep(1)
      late = task:cancel()
    end)
    assert.equal("result", task:await())
    support.settle()
    assert.is_false(late)
  end))

  it("in the turn in which a sleep is over comes in time", simulated(function()
    local task
    opero.spawn(function()
      opero.sleep(1)
      assert.is_true(task:cancel())
    end)
    task = opero.spawn(function()
      opero.sleep(1)
      return "result"
    end)
    raised_class("CancelledError", task.await, task)
  end))

  it("of a hundred thousand nested tasks takes them all, in linear time #deep", simulated(function()
    local count = 0
    local function nest(depth)
      local _ <close> = support.closing(function() count = count + 1 end)
      if depth < 100000 then
        opero.spawn(nest, depth + 1)
      end
      opero.sleep(10)
    end
    local task = opero.spawn(nest, 1)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.equal(100000, count)
  end))
end)

describe("CancelledError", function()
  it("raised by a task that was not cancelled is an error like any other", simulated(function()
    local foreign = opero.errors.CancelledError("not mine")
    local parent = opero.spawn(function()
      opero.spawn(function()
        opero.yield()
        error(foreign)
      end)
    end)
    assert.equal(foreign, raised(parent.await, parent))
    assert.equal("failed", parent:status())
  end))
end)
