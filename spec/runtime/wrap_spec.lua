-- opero.wrap: coroutine.wrap through which a task can be suspended.

local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

-- Yields the numbers up to `count`, each after a second.
local function slow_count(count)
  return opero.wrap(function()
    for i = 1, count do
      opero.sleep(1)
      coroutine.yield(i)
    end
  end)
end

describe("opero.wrap", function()
  it("makes a generator that calls opero.sleep work", simulated(function()
    local seen = {}
    for i in slow_count(3) do
      seen[#seen + 1] = { i, opero.now() }
    end
    assert.same({ { 1, 1 }, { 2, 2 }, { 3, 3 } }, seen)
  end))

  it("passes arguments and results like coroutine.wrap", simulated(function()
    local generate = opero.wrap(function(...)
      local a = table.pack(...)
      opero.sleep(1)
      local b = table.pack(coroutine.yield(table.unpack(a, 1, a.n)))
      opero.sleep(1)
      local c = table.pack(coroutine.yield())
      return a.n, b.n, c.n
    end)
    assert.same({ 1, nil, nil, n = 3 }, table.pack(generate(1, nil, nil)))
    assert.same({ n = 0 }, table.pack(generate(nil, nil)))
    assert.same({ 3, 2, 0, n = 3 }, table.pack(generate()))
    assert.matches("dead coroutine", raised(generate))
  end))

  it("waits in every way a task can", simulated(function()
    local semaphore, channel, event = opero.semaphore(0), opero.channel(0), opero.event()
    opero.spawn(function()
      opero.sleep(1)
      semaphore:release()
      channel:send("message")
      assert.equal("from the generator", channel:receive())
      event:set()
    end)
    local generate = opero.wrap(function()
      semaphore:acquire()
      coroutine.yield "acquired"
      coroutine.yield(channel:receive())
      channel:send("from the generator")
      event:wait()
      coroutine.yield "set"
      coroutine.yield(opero.spawn(function()
        opero.sleep(1)
        return "awaited"
      end):await())
      coroutine.yield(opero.await(function(resume) opero.spawn(resume, "resumed") end))
      coroutine.yield(opero.timeout(1, function()
        opero.yield()
        return "in time"
      end))
      coroutine.yield(raised_class("TimeoutError", opero.timeout, 1, opero.sleep, 5).timeout)
      coroutine.yield(opero.scope(function(s)
        s:spawn(opero.sleep, 1)
        return "scope"
      end))
      coroutine.yield(opero.shield(function()
        opero.sleep(1)
        return "shielded"
      end))
      return opero.run(function()
        opero.sleep(1)
        return "run"
      end)
    end)
    local seen = {}
    for _ = 1, 10 do
      seen[#seen + 1] = generate()
    end
    assert.same({
      "acquired", "message", "set", "awaited", "resumed", "in time", 1, "scope", "shielded", "run",
    }, seen)
  end))

  it("nests", simulated(function()
    local function tree(depth)
      return opero.wrap(function()
        if depth == 0 then
          opero.sleep(1)
          coroutine.yield "leaf"
          return
        end
        for _ = 1, 2 do
          for leaf in tree(depth - 1) do
            coroutine.yield(leaf)
          end
        end
      end)
    end
    local count = 0
    for leaf in tree(5) do
      assert.equal("leaf", leaf)
      count = count + 1
    end
    assert.equal(32, count)
    assert.equal(32, opero.now())
  end))

  it("lets other tasks run meanwhile", simulated(function()
    local order = {}
    opero.spawn(function()
      opero.sleep(0.5)
      order[#order + 1] = "other"
    end)
    slow_count(1)()
    order[#order + 1] = "generator"
    assert.same({ "other", "generator" }, order)
  end))

  it("raises the errors of its function unchanged", simulated(function()
    for _, err in ipairs { "text", { "table" }, false } do
      local closed = false
      local generate = opero.wrap(function()
        local _ <close> = support.closing(function() closed = true end)
        opero.sleep(1)
        error(err, 0)
      end)
      local ok, e = pcall(generate)
      assert.is_false(ok)
      assert.equal(err, e)
      assert.is_true(closed)
      assert.matches("dead coroutine", raised(generate))
    end
  end))

  it("is cancelled with its task, inside out", simulated(function()
    local order = {}
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() order[#order + 1] = "task" end)
      local generate = opero.wrap(function()
        local _ <close> = support.closing(function(err)
          assert.is_true(support.is_cancellation(err))
          order[#order + 1] = "generator"
        end)
        opero.sleep(10)
      end)
      generate()
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ "generator", "task" }, order)
  end))

  it("lets its function catch a cancellation", simulated(function()
    local task = opero.spawn(function()
      return opero.wrap(function()
        return pcall(opero.sleep, 10)
      end)()
    end)
    opero.yield()
    task:cancel()
    assert.is_false((task:await()))
  end))

  it("lets a <close> wait, whatever passes it", simulated(function()
    local closed = {}
    local function generator(name, fn)
      return opero.wrap(function()
        local _ <close> = support.closing(function()
          opero.shield(opero.sleep, 1)
          closed[#closed + 1] = name
        end)
        return fn()
      end)
    end
    assert.equal("result", generator("returned", function() return "result" end)())
    assert.equal("broken", raised(generator("failed", function() error("broken", 0) end)))
    local task = opero.spawn(generator("cancelled", function() opero.sleep(10) end))
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ "returned", "failed" }, closed) -- the shield has raised the cancellation again
    assert.equal(3, opero.now())
  end))

  it("can be left in the middle", simulated(function()
    for i in slow_count(10) do
      if i == 2 then
        break
      end
    end
    assert.equal(2, opero.now())
    collectgarbage()
    opero.sleep(1)
  end))

  it("goes on in another task than it began in", simulated(function()
    local generate = slow_count(4)
    local seen = {}
    for _ = 1, 4 do
      opero.spawn(function()
        local value = generate()
        seen[#seen + 1] = value
      end):await()
    end
    assert.same({ 1, 2, 3, 4 }, seen)
    assert.equal(4, opero.now())
  end))

  it("refuses to be called by one task while it has suspended another", simulated(function()
    local generate = slow_count(2)
    local first = opero.spawn(generate)
    opero.yield()
    assert.matches("suspended on behalf of another task", raised(generate))
    assert.equal(1, first:await())
    assert.equal(2, generate())
  end))

  it("refuses to be called by itself", simulated(function()
    local generate
    generate = opero.wrap(function() return generate() end)
    assert.matches("non%-suspended coroutine", raised(generate))
  end))

  it("is of no help across a C function that cannot suspend", simulated(function()
    local generate = slow_count(1)
    assert.matches("C%-call boundary", raised(table.sort, { 2, 1 }, function() generate() end))
    assert.equal(1, slow_count(1)())
  end))

  it("inside a coroutine that was not made by it, says so", simulated(function()
    local generate = slow_count(1)
    assert.matches("opero.wrap", raised(coroutine.wrap(function() generate() end)))
  end))

  it("works in the main chunk, where each suspension runs the loop", function()
    local generate = opero.wrap(function()
      for i = 1, 2 do
        opero.sleep(0.001)
        coroutine.yield(i)
      end
    end)
    assert.same({ 1, 2 }, { generate(), generate() })
  end)

  it("begun in the main chunk goes on in a task", function()
    local generate = opero.wrap(function()
      for i = 1, 2 do
        opero.sleep(0.001)
        coroutine.yield(i)
      end
    end)
    assert.equal(1, generate())
    assert.equal(2, opero.run(generate))
  end)

  it("shows plain yields to its caller, suspensions to the runtime alone", simulated(function()
    local inner = opero.wrap(function()
      coroutine.yield "inner"
      opero.yield()
      coroutine.yield "after a suspension"
    end)
    local outer = opero.wrap(function()
      coroutine.yield(inner())
      opero.yield()
      coroutine.yield(inner())
    end)
    assert.equal("inner", outer())
    opero.yield()
    assert.equal("after a suspension", outer())
  end))

  it("refuses to yield out of a scope, timeout or shield it has opened", simulated(function()
    -- Those belong to the task, whose code they surround; a yield would leave them open around its
    -- caller's.
    for _, enter in ipairs {
      function(fn) opero.scope(fn) end,
      function(fn) opero.timeout(5, fn) end,
      function(fn) opero.timeout(5, opero.timeout, 6, fn) end,
      function(fn) opero.shield(fn) end,
      function(fn) opero.shield(opero.scope, fn) end,
    } do
      local closed, child
      local generate = opero.wrap(function()
        enter(function()
          local _ <close> = support.closing(function() closed = true end)
          child = opero.spawn(opero.sleep, 3)
          coroutine.yield "out of it"
        end)
      end)
      local before = opero.now()
      opero.spawn(function()
        opero.timeout(100, function()
          assert.matches("cannot yield", raised(generate))
          assert.is_true(closed)
          assert.is_false(pcall(generate))
          collectgarbage()
          opero.sleep(50) -- no timeout of the generator's, and no cancellation, comes here
        end)
      end):await()
      assert.equal(before + 50, opero.now())
      assert.is_true(child:status() == "cancelled" or child:status() == "done")
    end
  end))

  it("yields inside what its caller has opened, and between what it opens", simulated(function()
    local generate = opero.wrap(function()
      for i = 1, 3 do
        opero.timeout(5, opero.sleep, 1)
        coroutine.yield(i)
      end
    end)
    opero.timeout(10, function()
      opero.scope(function()
        assert.equal(1, generate())
        assert.equal(2, opero.shield(generate))
      end)
      assert.equal(3, generate())
    end)
    assert.equal(3, opero.now())
  end))

  it("carries very many values", simulated(function()
    local list = {}
    for i = 1, 2000 do
      list[i] = i
    end
    local generate = opero.wrap(function(...)
      opero.yield()
      coroutine.yield(...)
      return ...
    end)
    assert.equal(2000, select("#", generate(table.unpack(list))))
  end))

  it("refuses what is no function", function()
    assert.matches("function expected", raised(opero.wrap, {}))
    assert.matches("function expected", raised(opero.wrap))
  end)
end)

describe("a generator that was refused to leave a scope", function()
  it("leaves its caller as it was: neither cancelled nor with other children", simulated(function()
    local child_ended = false
    local guest = opero.wrap(function()
      opero.spawn(function() -- a child of the task, made while the generator ran
        opero.sleep(2)
        child_ended = true
      end)
      opero.timeout(5, coroutine.yield)
    end)
    assert.matches("cannot yield out of", select(2, pcall(guest)))
    opero.sleep(10)
    assert.equal(10, opero.now())
    assert.is_true(child_ended)
  end))
end)
