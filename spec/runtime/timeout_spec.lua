local opero = require "opero"
local support = require "spec.runtime.support"

local is_cancellation = support.is_cancellation
local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.timeout", function()
  it("returns what the function does in time", simulated(function()
    assert.same({ "a", nil, "c", n = 3 }, table.pack(opero.timeout(2, function(...)
      opero.sleep(1)
      return ...
    end, "a", nil, "c")))
    assert.equal(1, opero.now())
    opero.sleep(5) -- and is forgotten
  end))

  it("cancels the function when the time is up and raises TimeoutError", simulated(function()
    local seen
    local err = raised_class("TimeoutError", opero.timeout, 1, function()
      local _ <close> = support.closing(function(e) seen = e end)
      opero.sleep(10)
    end)
    assert.is_true(is_cancellation(seen))
    assert.equal(1, err.timeout)
    assert.matches("timed out after 1 s", tostring(err))
    assert.equal(1, opero.now())
    opero.sleep(1) -- it is over, and nobody is cancelled any more
  end))

  it("cancels all that the function has spawned", simulated(function()
    local cancelled = 0
    local function nest(depth)
      local _ <close> = support.closing(function() cancelled = cancelled + 1 end)
      if depth > 0 then
        opero.spawn(nest, depth - 1)
      end
      opero.sleep(10)
    end
    raised_class("TimeoutError", opero.timeout, 1, nest, 3)
    assert.equal(4, cancelled)
    assert.equal(1, opero.now())
  end))

  it("covers the children that outlive the function", simulated(function()
    raised_class("TimeoutError", opero.timeout, 1, function()
      opero.spawn(opero.sleep, 10)
      return "result"
    end)
    assert.equal(1, opero.now())
  end))

  it("cancels what it waits for, wherever that is", simulated(function()
    local semaphore, channel, event = opero.semaphore(0), opero.channel(0), opero.event()
    local other = opero.spawn(event.wait, event)
    for _, wait in ipairs {
      function() semaphore:acquire() end,
      function() channel:receive() end,
      function() channel:send(1) end,
      function() event:wait() end,
      function() other:await() end,
      function() opero.await(function() end) end,
      function() opero.sleep(math.huge) end,
      function() while true do opero.sleep(0.1) end end,
      function() opero.run(opero.sleep, 10) end,
    } do
      local before = opero.now()
      raised_class("TimeoutError", opero.timeout, 1, wait)
      assert.equal(before + 1, opero.now())
    end
    assert.equal(0, semaphore:waiting())
    event:set()
  end))

  it("raises the errors of the function unchanged", simulated(function()
    local err = { "broken" }
    assert.equal(err, raised(opero.timeout, 1, function()
      opero.yield()
      error(err)
    end))
    assert.same({ false, nil, n = 2 }, table.pack(pcall(opero.timeout, 1, error)))
  end))

  it("leaves the results of a function that swallows the cancellation", simulated(function()
    assert.same({ "late", "results" }, { opero.timeout(1, function()
      pcall(opero.sleep, 10)
      return "late", "results"
    end) })
    assert.equal(1, opero.now())
  end))

  it("leaves an error raised in cleanup", simulated(function()
    assert.equal("in cleanup", raised(opero.timeout, 1, function()
      local _ <close> = support.closing(function() error("in cleanup", 0) end)
      opero.sleep(10)
    end))
    assert.equal("in a child's cleanup", raised(opero.timeout, 1, function()
      opero.spawn(function()
        local _ <close> = support.closing(function() error("in a child's cleanup", 0) end)
        opero.sleep(10)
      end)
      opero.sleep(10)
    end))
  end))

  it("comes again to a function that swallows it and goes on", simulated(function()
    raised_class("TimeoutError", opero.timeout, 1, function()
      pcall(opero.sleep, 10)
      opero.sleep(10)
    end)
    assert.equal(1, opero.now())
  end))

  it("does not touch a function that never waits", simulated(function()
    assert.equal(1, opero.timeout(0, function() return 1 end))
    assert.equal(1, opero.timeout(-1, function() return 1 end))
  end))

  it("of zero is up at the first suspension", simulated(function()
    for _, seconds in ipairs { 0, -1, -math.huge } do
      raised_class("TimeoutError", opero.timeout, seconds, opero.sleep, 1)
      raised_class("TimeoutError", opero.timeout, seconds, function()
        for _ = 1, 3 do
          opero.yield()
        end
      end)
    end
    assert.equal(0, opero.now())
  end))

  it("of math.huge is none", simulated(function()
    assert.equal(1, opero.timeout(math.huge, function()
      opero.sleep(1e9)
      return 1
    end))
    assert.equal(1, opero.timeout(1e300, function()
      opero.sleep(1)
      return 1
    end))
  end))

  it("refuses what is no number of seconds, and what cannot be called", simulated(function()
    assert.matches("NaN", raised(opero.timeout, 0 / 0, print))
    for _, seconds in ipairs { "1", {}, true } do
      assert.matches("number of seconds expected", raised(opero.timeout, seconds, print))
    end
    assert.matches("number of seconds expected", raised(opero.timeout, nil, print))
    assert.matches("number of seconds expected", raised(opero.timeout))
    assert.matches("function expected", raised(opero.timeout, 1))
    assert.matches("function expected", raised(opero.timeout, 1, {}))
  end))

  it("takes integers and fractions", simulated(function()
    raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 10)
    raised_class("TimeoutError", opero.timeout, 0.25, opero.sleep, 10)
    assert.equal(1.25, opero.now())
  end))
end)

describe("nested timeouts", function()
  it("end with the inner one when that is shorter", simulated(function()
    local inner
    assert.equal("went on", opero.timeout(10, function()
      inner = raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 100)
      opero.sleep(1)
      return "went on"
    end))
    assert.equal(1, inner.timeout)
    assert.equal(2, opero.now())
  end))

  it("end with the outer one when that is shorter", simulated(function()
    local seen
    local err = raised_class("TimeoutError", opero.timeout, 1, function()
      local ok
      ok, seen = pcall(opero.timeout, 10, opero.sleep, 100)
      assert.is_false(ok)
      error(seen, 0)
    end)
    assert.equal(1, err.timeout)
    assert.is_true(is_cancellation(seen), "the inner one passes the cancellation on")
    assert.equal(1, opero.now())
  end))

  it("of the same length end with the outer one, which was set first", simulated(function()
    local err = raised_class("TimeoutError", opero.timeout, 1, function()
      local _, seen = pcall(opero.timeout, 1, opero.sleep, 100)
      assert.is_true(is_cancellation(seen))
      error(seen, 0)
    end)
    assert.equal(1, err.timeout)
    assert.equal(1, opero.now())
  end))

  it("in which the inner one swallows what the outer one raises", simulated(function()
    raised_class("TimeoutError", opero.timeout, 1, function()
      assert.equal("swallowed", opero.timeout(10, function()
        pcall(opero.sleep, 100)
        return "swallowed"
      end))
      opero.sleep(100) -- here it comes again
    end)
    assert.equal(1, opero.now())
  end))

  it("twenty deep end with the shortest", simulated(function()
    local depth_reached = 0
    local function nest(depth)
      if depth == 20 then
        opero.sleep(1000)
      end
      local ok, err = pcall(opero.timeout, depth == 10 and 1 or 100 - depth, nest, depth + 1)
      if opero.errors.is(err, opero.errors.TimeoutError) then
        depth_reached = depth
        assert.equal(1, err.timeout)
      elseif not ok then
        error(err, 0)
      end
    end
    opero.timeout(300, nest, 1)
    assert.equal(10, depth_reached)
    assert.equal(1, opero.now())
  end))
end)

describe("a timeout that expires in the turn of the result", function()
  -- Both are due at the same time; what was set first comes first.
  it("set before the sleep, wins", simulated(function()
    raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 1)
  end))

  it("of a sleep that was set before it, loses no permit", simulated(function()
    local semaphore = opero.semaphore(0)
    opero.spawn(function()
      opero.sleep(1)
      semaphore:release()
    end)
    opero.yield()
    raised_class("TimeoutError", opero.timeout, 1, semaphore.acquire, semaphore)
    support.settle()
    assert.equal(1, semaphore:available())
    assert.equal(0, semaphore:waiting())
  end))

  it("of a method's own, loses no permit either", simulated(function()
    local semaphore = opero.semaphore(0)
    opero.spawn(function()
      opero.sleep(1)
      semaphore:release()
    end)
    opero.yield()
    raised_class("TimeoutError", semaphore.acquire, semaphore, 1)
    support.settle()
    assert.equal(1, semaphore:available())
  end))

  it("of await, leaves the results to be had", simulated(function()
    local task = opero.spawn(function()
      opero.sleep(1)
      return "result"
    end)
    opero.yield()
    raised_class("TimeoutError", task.await, task, 1)
    assert.equal("result", task:await())
  end))

  it("of await, leaves the error to be had", simulated(function()
    local parent = opero.spawn(function()
      local task = opero.spawn(function()
        opero.sleep(1)
        error("broken", 0)
      end)
      opero.yield()
      raised_class("TimeoutError", task.await, task, 1)
    end)
    assert.equal("broken", raised(parent.await, parent))
  end))

  it("of a receive, leaves the message", simulated(function()
    local channel = opero.channel(0)
    local sender = opero.spawn(function()
      opero.sleep(1)
      channel:send("message")
    end)
    opero.yield()
    raised_class("TimeoutError", channel.receive, channel, 1)
    assert.equal("message", channel:receive())
    sender:await()
  end))

  it("loses to what was there a turn before", simulated(function()
    local event = opero.event()
    event:set()
    assert.is_true(opero.timeout(0, event.wait, event))
    local task = opero.spawn(function() return "result" end)
    opero.yield()
    assert.equal("result", opero.timeout(0, task.await, task))
    assert.equal("result", task:await(0))
  end))
end)

describe("a timeout argument", function()
  it("is checked by every method that takes one", simulated(function()
    local semaphore, channel, event = opero.semaphore(0), opero.channel(0), opero.event()
    local task = opero.spawn(event.wait, event)
    for _, call in ipairs {
      function(timeout) semaphore:acquire(timeout) end,
      function(timeout) channel:send(1, timeout) end,
      function(timeout) channel:receive(timeout) end,
      function(timeout) event:wait(timeout) end,
      function(timeout) task:await(timeout) end,
      function(timeout) opero.wait(0, "r", timeout) end,
    } do
      assert.matches("number of seconds expected", raised(call, "1"))
      assert.matches("number of seconds expected", raised(call, {}))
      assert.matches("NaN", raised(call, 0 / 0))
    end
    event:set()
  end))

  it("says what timed out, and after how long", simulated(function()
    local semaphore, channel, event = opero.semaphore(0), opero.channel(0), opero.event()
    local task = opero.spawn(event.wait, event)
    for name, call in pairs {
      ["semaphore:acquire"] = function() semaphore:acquire(0.5) end,
      ["channel:send"] = function() channel:send(1, 0.5) end,
      ["channel:receive"] = function() channel:receive(0.5) end,
      ["event:wait"] = function() event:wait(0.5) end,
      ["task:await"] = function() task:await(0.5) end,
    } do
      local before = opero.now()
      local err = raised_class("TimeoutError", call)
      assert.equal(name .. " timed out after 0.5 s", err.message)
      assert.equal(0.5, err.timeout)
      assert.near(before + 0.5, opero.now(), 1e-9)
    end
    event:set()
  end))

  it("of zero or less asks without waiting", simulated(function()
    local event = opero.event()
    for _, timeout in ipairs { 0, -1, -math.huge } do
      raised_class("TimeoutError", event.wait, event, timeout)
    end
    assert.equal(0, opero.now())
  end))

  it("of math.huge waits for ever", simulated(function()
    local event = opero.event()
    opero.spawn(function()
      opero.sleep(1e9)
      event:set()
    end)
    assert.is_true(event:wait(math.huge))
  end))
end)
