local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("task:await", function()
  it("waits for the task and returns its results", simulated(function()
    local task = opero.spawn(function()
      opero.sleep(1)
      return "a", nil, "c"
    end)
    assert.same({ "a", nil, "c", n = 3 }, table.pack(task:await()))
    assert.equal(1, opero.now())
    assert.equal("done", task:status())
  end))

  it("gives no result, one nil, and a table as what they are", simulated(function()
    local results = { n = 3 }
    for _, case in ipairs {
      { function() end, { n = 0 } },
      { function() return nil end, { nil, n = 1 } },
      { function() return nil, nil end, { nil, nil, n = 2 } },
      { function() return results end, { results, n = 1 } },
      { function() return results, false end, { results, false, n = 2 } },
    } do
      local task = opero.spawn(case[1])
      assert.same(case[2], table.pack(task:await()))
      assert.same(case[2], table.pack(task:await()))
    end
  end))

  it("raises the error of the task, each time", simulated(function()
    local err = {}
    local task = opero.spawn(function()
      opero.sleep(1)
      error(err)
    end)
    assert.equal(err, raised(task.await, task))
    assert.equal(err, raised(task.await, task))
    assert.equal("failed", task:status())
  end))

  it("waits for the children of the task, too", simulated(function()
    local task = opero.spawn(function()
      opero.spawn(opero.sleep, 5)
      return "result"
    end)
    opero.sleep(1)
    assert.equal("suspended", task:status())
    assert.equal("result", task:await())
    assert.equal(5, opero.now())
  end))

  it("by ten thousand tasks gives each of them the result", simulated(function()
    local task = opero.spawn(function()
      opero.sleep(1)
      return "result"
    end)
    local count, order_kept = 0, true
    opero.scope(function(s)
      for i = 1, 10000 do
        s:spawn(function()
          assert.equal("result", (task:await()))
          count = count + 1
          order_kept = order_kept and count == i
        end)
      end
    end)
    assert.equal(10000, count)
    assert.is_true(order_kept)
  end))

  it("by ten thousand tasks gives each of them the error, the same one", simulated(function()
    local err = { "broken" }
    local task = opero.spawn(function()
      opero.sleep(1)
      error(err)
    end)
    local count = 0
    opero.scope(function(s)
      for _ = 1, 10000 do
        s:spawn(function()
          local _, e = pcall(task.await, task)
          count = count + (e == err and 1 or 0)
        end)
      end
    end)
    assert.equal(10000, count)
  end))

  it("by ten thousand tasks, every other one cancelled, forgets none", simulated(function()
    local event, awaiters = opero.event(), {}
    local task = opero.spawn(function()
      event:wait()
      return 1
    end)
    for i = 1, 10000 do
      awaiters[i] = opero.spawn(task.await, task)
    end
    opero.yield()
    for i = 1, 10000, 4 do
      awaiters[i]:cancel()
    end
    event:set()
    opero.yield()
    -- These are woken, but have not run yet.
    for i = 3, 10000, 4 do
      awaiters[i]:cancel()
    end
    local sum = 0
    for i = 2, 10000, 2 do
      sum = sum + awaiters[i]:await()
    end
    assert.equal(5000, sum)
    assert.equal("cancelled", awaiters[1]:status())
    assert.equal("cancelled", awaiters[3]:status())
  end))

  it("of oneself is an error, not a hang", simulated(function()
    local task
    task = opero.spawn(function() task:await() end)
    assert.matches("a task cannot await itself", raised(task.await, task))
    assert.matches("a task cannot await itself", raised(function() opero.current():await() end))
  end))

  it("of one's parent, or of any above, is an error, not a hang", simulated(function()
    local top = opero.spawn(function()
      local me = opero.current()
      opero.spawn(function()
        opero.spawn(function()
          assert.matches("cannot await one above it", raised(me.await, me))
          assert.matches("cannot await one above it", raised(me.await, me, 1))
        end)
      end)
    end)
    top:await()
    assert.equal(0, opero.now())
  end))

  it("in a circle is a deadlock", function()
    local err = raised_class("DeadlockError", opero.simulate, function()
      local first, second
      first = opero.spawn(function() second:await() end)
      second = opero.spawn(function() first:await() end)
      first:name("first")
      second:name("second")
    end)
    assert.matches("task 'first' waits for task:await %('second'%)", tostring(err))
    assert.matches("task 'second' waits for task:await %('first'%)", tostring(err))
  end)

  it("gives up after a timeout, and leaves the task alone", simulated(function()
    local task = opero.spawn(function()
      opero.sleep(5)
      return "result"
    end)
    raised_class("TimeoutError", task.await, task, 1)
    assert.equal(1, opero.now())
    assert.equal("suspended", task:status())
    assert.equal("result", task:await(10))
    assert.equal(5, opero.now())
  end))

  it("of a task that has ended does not suspend", simulated(function()
    local task = opero.spawn(function() return 1 end)
    task:await()
    local other_ran = false
    opero.spawn(function() other_ran = true end)
    assert.equal(1, task:await())
    assert.equal(1, task:await(0))
    assert.is_false(other_ran)
  end))

  it("of a cancelled task raises its cancellation", simulated(function()
    local task = opero.spawn(opero.sleep, 10)
    local awaiter = opero.spawn(function()
      return raised_class("CancelledError", task.await, task)
    end)
    opero.yield()
    task:cancel("reason")
    assert.equal("reason", awaiter:await().reason)
  end))

  it("works in a <close>", simulated(function()
    local result
    do
      local task = opero.spawn(function()
        opero.sleep(1)
        return "result"
      end)
      local _ <close> = support.closing(function() result = task:await() end)
    end
    assert.equal("result", result)
    assert.equal(1, opero.now())
  end))

  it("works across scopes, and for tasks of the main chunk", function()
    local task = opero.spawn(function()
      opero.yield()
      return "main's"
    end)
    assert.equal("main's", opero.run(function()
      return opero.scope(function(s)
        return s:spawn(function() return task:await() end):await()
      end)
    end))
    assert.equal("main's", task:await())
  end)

  it("in the main chunk raises the task's error, and once is enough", function()
    local task = opero.spawn(function()
      opero.yield()
      error("broken", 0)
    end)
    assert.equal("broken", raised(task.await, task))
    opero.run(function() end) -- it does not surface again
  end)

  it("keeps a task's results for as long as the task is kept", simulated(function()
    local held = setmetatable({}, { __mode = "v" })
    local task = opero.spawn(function()
      local result = { "result" }
      held.result = result
      return result
    end)
    task:await()
    collectgarbage()
    assert.same({ "result" }, (task:await()))
    task = nil -- luacheck: ignore
    collectgarbage()
    assert.is_nil(held.result)
  end))
end)

describe("opero.await", function()
  it("returns what the callback was given", simulated(function()
    assert.same({ 1, nil, "c", nil, n = 4 }, table.pack(opero.await(function(resume)
      opero.spawn(function()
        opero.sleep(1)
        resume(1, nil, "c", nil)
      end)
    end)))
    assert.equal(1, opero.now())
    assert.equal(0, select("#", opero.await(function(resume) resume() end)))
  end))

  it("returns at once when resumed at once", simulated(function()
    local other_ran = false
    opero.spawn(function() other_ran = true end)
    assert.equal("now", opero.await(function(resume) resume("now") end))
    assert.is_false(other_ran)
  end))

  it("heeds the first call only", simulated(function()
    local answers = {}
    assert.equal("first", opero.await(function(resume)
      answers[1] = resume("first")
      answers[2] = resume("second")
      opero.spawn(function() answers[3] = resume("third") end)
    end))
    opero.yield()
    assert.same({ true, false, false }, answers)
  end))

  it("takes very many values", simulated(function()
    local list = {}
    for i = 1, 3000 do
      list[i] = i
    end
    local results = table.pack(opero.await(function(resume)
      opero.spawn(resume, table.unpack(list))
    end))
    assert.equal(3000, results.n)
    assert.equal(3000, results[3000])
  end))

  it("raises the error of its function", simulated(function()
    local err, resume_later = {}, nil
    assert.equal(err, raised(opero.await, function(resume)
      resume_later = resume
      error(err)
    end))
    resume_later("too late") -- does no harm
    opero.yield()
  end))

  it("lets its function suspend, and be resumed meanwhile", simulated(function()
    assert.equal("early", opero.await(function(resume)
      opero.spawn(resume, "early")
      opero.sleep(2)
    end))
    assert.equal(2, opero.now())
  end))

  it("is cancelled like any suspension; the callback then comes too late", simulated(function()
    local resume_later
    local task = opero.spawn(opero.await, function(resume) resume_later = resume end)
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.is_false(resume_later("too late"))
  end))

  it("is cancelled in the turn in which the callback came, too", simulated(function()
    local resume_later
    local task = opero.spawn(opero.await, function(resume) resume_later = resume end)
    opero.yield()
    assert.is_true(resume_later("value"))
    task:cancel()
    raised_class("CancelledError", task.await, task)
  end))

  it("can be resumed from the main chunk, between steps", function()
    local resume_later
    local task = opero.spawn(opero.await, function(resume) resume_later = resume end)
    opero.step()
    resume_later("from the host")
    assert.equal("from the host", task:await())
  end)

  it("can be resumed from a finalizer, and from inside table.sort", simulated(function()
    assert.equal("collected", opero.await(function(resume)
      setmetatable({}, { __gc = function() resume("collected") end })
      collectgarbage()
    end))
    local resume_later
    local task = opero.spawn(opero.await, function(resume) resume_later = resume end)
    opero.yield()
    table.sort({ 2, 1 }, function(a, b)
      resume_later("sorted")
      return a < b
    end)
    assert.equal("sorted", task:await())
  end))

  it("keeps its task alive and is collected after it", simulated(function()
    local weak = setmetatable({}, { __mode = "k" })
    do
      local task = opero.spawn(opero.await, function(resume) weak[resume] = true end)
      opero.yield()
      task:cancel()
      pcall(task.await, task)
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil((next(weak)))
  end))

  it("that nobody will ever resume is a deadlock", function()
    local err = raised_class("DeadlockError", opero.simulate, function()
      opero.await(function() end)
    end)
    assert.matches("opero%.await", tostring(err))
  end)

  it("refuses what cannot be called", simulated(function()
    assert.matches("function expected", raised(opero.await))
    assert.matches("function expected", raised(opero.await, 1))
  end))
end)
