local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.run", function()
  it("runs a function as a task and returns its results", function()
    assert.same({ 1, nil, "three", nil, n = 4 }, table.pack(opero.run(function(...)
      assert.equal("running", opero.current():status())
      return ...
    end, 1, nil, "three", nil)))
    assert.equal(0, select("#", opero.run(function() end)))
    assert.same({ n = 1 }, table.pack(opero.run(function() return nil end)))
  end)

  it("passes on very many arguments and results", function()
    local list = {}
    for i = 1, 5000 do
      list[i] = i
    end
    local results = table.pack(opero.run(function(...)
      opero.yield()
      return ...
    end, table.unpack(list)))
    assert.equal(5000, results.n)
    assert.equal(5000, results[5000])
  end)

  it("calls whatever can be called", function()
    local callable = setmetatable({}, {
      __call = function(_, x)
        opero.yield()
        return x + 1
      end,
    })
    assert.equal(2, opero.run(callable, 1))
    assert.equal("x", opero.run(string.lower, "X"))
  end)

  it("refuses what cannot be called", function()
    for _, value in ipairs { 1, "x", {}, true } do
      assert.matches("function expected", raised(opero.run, value))
    end
    assert.matches("function expected", raised(opero.run))
  end)

  it("raises the error of the function unchanged", function()
    local err = { "an error" }
    assert.equal(err, raised(opero.run, function()
      opero.yield()
      error(err)
    end))
  end)

  it("is, inside a task, a child that is awaited", simulated(function()
    local outer = opero.current()
    assert.same({ "a", "b" }, { opero.run(function(...)
      assert.not_equal(outer, opero.current())
      opero.sleep(1)
      return ...
    end, "a", "b") })
    assert.equal(1, opero.now())
    assert.equal("broken", raised(opero.run, function() error("broken", 0) end))
  end))

  it("nests to any depth inside tasks", simulated(function()
    local function nest(depth)
      if depth == 0 then
        opero.sleep(1)
        return 0
      end
      return opero.run(nest, depth - 1) + 1
    end
    assert.equal(1000, nest(1000))
  end))

  it("inside another opero.run lets the other tasks go on", function()
    local order = {}
    opero.run(function()
      opero.spawn(function()
        for i = 1, 3 do
          order[#order + 1] = i
          opero.yield()
        end
      end)
      opero.run(function()
        opero.yield()
        opero.yield()
        order[#order + 1] = "inner"
      end)
    end)
    assert.equal(4, #order)
    assert.not_equal("inner", order[1])
  end)

  it("ends its child when the caller is cancelled", simulated(function()
    local ended = false
    local task = opero.spawn(opero.run, function()
      local _ <close> = support.closing(function() ended = true end)
      opero.sleep(10)
    end)
    opero.sleep(1)
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.is_true(ended)
    assert.equal(1, opero.now())
  end))

  it("works in a coroutine of the main chunk", function()
    local generate = coroutine.wrap(function()
      for i = 1, 3 do
        coroutine.yield(opero.run(function()
          opero.sleep(0)
          return i
        end))
      end
    end)
    assert.same({ 1, 2, 3 }, { generate(), generate(), generate() })
  end)

  it("waits for the children of its function", simulated(function()
    local done = false
    opero.run(function()
      opero.spawn(function()
        opero.sleep(5)
        done = true
      end)
    end)
    assert.is_true(done)
    assert.equal(5, opero.now())
  end))

  it("is over when something called it that cannot be suspended", simulated(function()
    assert.matches("C%-call boundary", raised(table.sort, { 2, 1 }, function(a, b)
      return opero.run(function() return a < b end)
    end))
  end))

  it("can be called again and again, and leaves nothing behind", function()
    for i = 1, 100 do
      assert.equal(i, opero.run(function() return i end))
      raised(opero.run, error, "x")
    end
    assert.same({}, opero.tasks())
  end)

  it("raises a deadlock when nothing is left to wake anybody", function()
    local err = raised_class("DeadlockError", opero.run, function()
      opero.event():wait()
    end)
    assert.matches("event:wait", tostring(err))
    assert.same({}, opero.tasks())
  end)

  it("lets the tasks clean up before it raises a deadlock", function()
    local seen, slept
    raised_class("DeadlockError", opero.run, function()
      local _ <close> = support.closing(function(err)
        seen = err
        opero.shield(function()
          opero.sleep(0.001)
          slept = true
        end)
      end)
      opero.event():wait()
    end)
    assert.is_true(support.is_cancellation(seen))
    assert.is_true(slept)
  end)

  it("loses no error raised while a deadlock is cleaned up", function()
    local err = raised_class("AggregateError", opero.run, function()
      local _ <close> = support.closing(function() error("in cleanup", 0) end)
      opero.event():wait()
    end)
    assert.equal(2, #err.errors)
    assert.is_true(errors.is(err.errors[1], errors.DeadlockError))
    assert.equal("in cleanup", err.errors[2])
  end)

  it("does not hang when the cleanup waits for what cannot come", function()
    local closed = {}
    local function stubborn()
      local _ <close> = support.closing(function() closed[#closed + 1] = "closed" end)
      opero.shield(function() opero.event():wait() end)
    end
    raised_class("DeadlockError", opero.run, function()
      opero.spawn(stubborn)
      stubborn()
    end)
    assert.same({ "closed", "closed" }, closed)
    assert.same({}, opero.tasks())
  end)
end)

describe("every entry point", function()
  -- Outside a task each runs the loop until it is done.
  it("works from the main chunk", function()
    local before = opero.now()
    opero.sleep(0.002)
    assert.is_true(opero.now() - before >= 0.002)
    opero.yield()
    assert.equal(3, opero.timeout(1, function(x)
      opero.sleep(0.001)
      return x
    end, 3))
    assert.equal("shielded", opero.shield(function()
      opero.yield()
      return "shielded"
    end))
    assert.equal("scope", opero.scope(function(s)
      s:spawn(opero.yield)
      return "scope"
    end))
    assert.equal("resumed", opero.await(function(resume) resume("resumed") end))
    assert.equal(7, opero.spawn(function()
      opero.sleep(0.001)
      return 7
    end):await())

    local semaphore = opero.semaphore(0)
    opero.spawn(function() semaphore:release() end)
    assert.is_true(semaphore:acquire())
    local channel = opero.channel(0)
    opero.spawn(function() channel:send("message") end)
    assert.equal("message", channel:receive())
    opero.spawn(function() channel:receive() end)
    assert.is_true(channel:send("message"))
    local event = opero.event()
    opero.spawn(function() event:set() end)
    assert.is_true(event:wait())
    assert.same({}, opero.tasks())
  end)

  it("works there even where a task could not be suspended", function()
    local list = { 3, 1, 2 }
    table.sort(list, function(a, b)
      opero.sleep(0)
      return opero.run(function()
        opero.yield()
        return a < b
      end)
    end)
    assert.same({ 1, 2, 3 }, list)
    local slept = 0
    setmetatable({}, { __gc = function()
      opero.sleep(0)
      slept = slept + 1
    end })
    collectgarbage()
    assert.equal(1, slept)
  end)

  it("raises its timeout there too", function()
    local event = opero.event()
    raised_class("TimeoutError", event.wait, event, 0.001)
    raised_class("TimeoutError", opero.timeout, 0.001, event.wait, event)
    raised_class("DeadlockError", event.wait, event)
  end)

  it("is refused where the scheduler itself calls Lua", function()
    local refusal
    local factory = errors.make
    opero.run(function()
      local _ <close> = support.closing(function()
        require "opero.core".set_error_factory(factory)
      end)
      require "opero.core".set_error_factory(function(...)
        if refusal == nil then
          refusal = false -- the call below may come back here
          refusal = select(2, pcall(opero.sleep, 1))
        end
        return factory(...)
      end)
      refusal = nil
      pcall(opero.timeout, 0.001, opero.sleep, 1)
    end)
    assert.matches("opero.sleep cannot suspend here", refusal)
  end)
end)

describe("opero.spawn", function()
  it("returns a task that begins when others suspend", simulated(function()
    local begun = false
    local task = opero.spawn(function() begun = true end)
    assert.is_false(begun)
    assert.equal("ready", task:status())
    opero.yield()
    assert.is_true(begun)
    assert.equal("done", task:status())
  end))

  it("passes arguments on and gives results to whoever awaits them", simulated(function()
    local task = opero.spawn(function(...)
      opero.sleep(1)
      return ...
    end, "a", nil, "c")
    for _ = 1, 3 do
      assert.same({ "a", nil, "c", n = 3 }, table.pack(task:await()))
    end
  end))

  it("refuses what cannot be called", simulated(function()
    assert.matches("function expected", raised(opero.spawn, {}))
    assert.matches("function expected", raised(opero.spawn))
  end))

  it("runs tasks in the order of their spawning", simulated(function()
    local order = {}
    for i = 1, 10 do
      opero.spawn(function() order[#order + 1] = i end)
    end
    opero.yield()
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, order)
  end))

  it("in the main chunk makes a task that advances whenever the main chunk waits", function()
    local steps = 0
    local task = opero.spawn(function()
      for _ = 1, 3 do
        steps = steps + 1
        opero.yield()
      end
      return "all"
    end)
    assert.equal(0, steps)
    opero.yield()
    assert.is_true(steps > 0)
    opero.run(opero.yield)
    assert.equal("all", task:await())
    assert.equal(3, steps)
  end)

  it("in the main chunk makes a child of no task: runs do not wait for it", function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.run(opero.yield)
    assert.equal("suspended", task:status())
    event:set()
    assert.is_true(task:await())
  end)

  it("nests a hundred thousand deep", simulated(function()
    local deepest = 0
    local function nest(depth)
      deepest = math.max(deepest, depth)
      if depth < 100000 then
        opero.spawn(nest, depth + 1)
      end
    end
    opero.spawn(nest, 1):await()
    assert.equal(100000, deepest)
  end))
end)

describe("a task", function()
  it("has its own frames: a stack overflow is its error alone", simulated(function()
    local function endless()
      return 1 + endless()
    end
    local task = opero.spawn(endless)
    assert.matches("stack overflow", raised(task.await, task))
    assert.equal("failed", task:status())
    assert.equal(1, opero.spawn(function() return 1 end):await())
  end))

  it("shares nothing with the one whose coroutine it goes on with", simulated(function()
    -- Finished coroutines are reused; nothing of the first life may be seen in the second.
    local function count(...)
      opero.yield()
      if select("#", ...) % 5 == 0 then
        error(select("#", ...), 0)
      end
      return select("#", ...), ...
    end
    for i = 1, 100 do
      local task = opero.spawn(count, table.unpack({}, 1, i))
      local results = table.pack(pcall(task.await, task))
      assert.equal(i, results[2])
      assert.equal(i % 5 == 0 and 2 or i + 2, results.n)
    end
  end))

  it("can be told by its name and status", simulated(function()
    local task = opero.spawn(function() opero.sleep(1) end)
    assert.matches("^opero%.Task: .*run_spec%.lua:%d+ %(ready%)$", tostring(task))
    assert.equal(task, task:name("worker"))
    assert.equal("worker", task:name())
    opero.yield()
    assert.equal("opero.Task: worker (suspended)", tostring(task))
    task:await()
    assert.equal("opero.Task: worker (done)", tostring(task))
    assert.matches("string expected", raised(task.name, task, 5))
  end))

  it("is protected from being mistaken for something else", simulated(function()
    local task = opero.spawn(function() end)
    for _, method in ipairs { "await", "cancel", "status", "name", "traceback" } do
      assert.matches("opero.Task expected", raised(task[method], io.stdout))
      assert.matches("opero.Task expected", raised(task[method]))
    end
    assert.equal("protected", getmetatable(task))
  end))
end)

describe("opero.current", function()
  it("is the running task, and nil outside any", function()
    assert.is_nil((opero.current()))
    assert.equal(1, select("#", opero.current()))
    local task
    task = opero.spawn(function()
      assert.equal(task, opero.current())
      opero.yield()
      assert.equal(task, opero.current())
    end)
    task:await()
  end)
end)
