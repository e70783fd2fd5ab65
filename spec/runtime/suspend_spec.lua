-- Where a task can be suspended, and what happens where it cannot.

local opero = require "opero"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

-- A suspension that is seen: time passes, and others run.
local function pause()
  opero.sleep(1)
  return "paused"
end

describe("a task is suspended", function()
  local function each_takes_a_second(title, fn)
    it(title, simulated(function()
      local ticks = 0
      local ticker = opero.spawn(function()
        while true do
          opero.sleep(1)
          ticks = ticks + 1
        end
      end)
      local before = opero.now()
      fn()
      assert.is_true(opero.now() > before)
      opero.sleep(0.5)
      assert.equal(math.floor(opero.now()), ticks)
      ticker:cancel()
    end))
  end

  each_takes_a_second("inside pcall", function()
    assert.same({ true, "paused" }, { pcall(pause) })
    assert.same({ false, "broken" }, { pcall(function()
      pause()
      error("broken", 0)
    end) })
    assert.same({ true, true, true, "paused" }, { pcall(pcall, pcall, pause) })
  end)

  each_takes_a_second("inside xpcall, and keeps its message handler", function()
    assert.same({ true, "paused" }, { xpcall(pause, debug.traceback) })
    local ok, message = xpcall(function()
      pause()
      error("broken", 0)
    end, function(err) return "handled " .. err end)
    assert.is_false(ok)
    assert.equal("handled broken", message)
  end)

  each_takes_a_second("inside metamethods", function()
    local mt = { __close = pause, __call = pause, __index = pause, __tostring = nil }
    for _, event in ipairs {
      "add", "sub", "mul", "div", "mod", "pow", "unm", "idiv", "band", "bor", "bxor", "shl", "shr",
      "bnot", "concat", "len", "eq", "lt", "le", "newindex",
    } do
      mt["__" .. event] = pause
    end
    local a, b = setmetatable({}, mt), setmetatable({}, mt)
    local results = {
      a + b, a - b, a * b, a / b, a % b, a ^ b, -a, a // b, a & b, a | b, a ~ b, a << b, a >> b,
      ~a, a .. b, #a, a.field, a(),
    }
    assert.equal(18, #results)
    for _, result in ipairs(results) do
      assert.equal("paused", result)
    end
    assert.is_true(a == b)
    assert.is_true(a < b)
    assert.is_true(a <= b)
    assert.is_true(a > b)
    a.new = 1
    do
      local _ <close> = a
    end
    assert.equal(24, opero.now())
  end)

  each_takes_a_second("inside a chain of concatenations and comparisons", function()
    local mt = {
      __concat = function(x, y)
        pause()
        return (type(x) == "table" and x.text or x) .. (type(y) == "table" and y.text or y)
      end,
    }
    local function text(s) return setmetatable({ text = s }, mt) end
    assert.equal("abcd", text "a" .. "b" .. text "c" .. "d")
  end)

  each_takes_a_second("inside iterators", function()
    local sum = 0
    for i in function(_, i)
      pause()
      i = (i or 0) + 1
      return i <= 3 and i or nil
    end do
      sum = sum + i
    end
    assert.equal(6, sum)
    for key, value in pairs(setmetatable({}, {
      __pairs = function(t)
        pause()
        return next, { key = "value" }, t and nil
      end,
    })) do
      assert.same({ "key", "value" }, { key, value })
    end
  end)

  each_takes_a_second("inside the closing value of a for loop", function()
    local closed
    for i in function(_, i) return (i or 0) + 1 end, nil, nil, support.closing(function()
      pause()
      closed = true
    end) do
      if i == 3 then
        break
      end
    end
    assert.is_true(closed)
  end)

  each_takes_a_second("inside <close>, on each way out of the block", function()
    local closed = 0
    local function block(leave)
      local _ <close> = support.closing(function()
        pause()
        closed = closed + 1
      end)
      return leave()
    end
    assert.equal("returned", block(function() return "returned" end))
    assert.equal("broken", raised(block, function() error("broken", 0) end))
    for i = 1, 3 do
      local _ <close> = support.closing(function()
        pause()
        closed = closed + 1
      end)
      if i == 2 then
        break
      end
    end
    assert.equal(4, closed)
  end)

  each_takes_a_second("inside <close> while a cancellation passes, in a shield", function()
    local closed = false
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() opero.shield(function()
        pause()
        closed = true
      end) end)
      opero.sleep(100)
    end)
    opero.yield()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.is_true(closed)
  end)

  each_takes_a_second("inside dofile, require and load", function()
    _G.opero_spec_pause = pause
    local _ <close> = support.closing(function()
      _G.opero_spec_pause = nil
      package.preload.opero_spec_module = nil
      package.loaded.opero_spec_module = nil
    end)
    local path = os.tmpname()
    do
      local file <close> = assert(io.open(path, "w"))
      file:write("return opero_spec_pause()")
    end
    assert.equal("paused", dofile(path))
    os.remove(path)
    assert.equal("paused", assert(load("return opero_spec_pause()"))())
  end)

  each_takes_a_second("inside table.unpack's and select's arguments, deep in a call", function()
    assert.equal("paused", (select(1, pause(), pause())))
    assert.same({ "paused", "paused" }, { pause(), (pause()) })
  end)
end)

describe("calls nested deeper than Lua's limit for C calls", function()
  it("fail with an error, and leave the task in order", simulated(function()
    local nest
    local calls = {
      function(depth) return opero.scope(function() return nest(depth) end) end,
      function(depth) return opero.timeout(100, nest, depth) end,
      function(depth) return opero.shield(nest, depth) end,
      function(depth) return opero.wrap(nest)(depth) end,
    }
    for _, call in ipairs(calls) do
      function nest(depth)
        opero.spawn(opero.yield)
        if depth > 0 then
          return call(depth - 1) + 1
        end
        pause()
        return 0
      end
      assert.equal(50, nest(50))
      assert.matches("C stack overflow", raised(nest, 1000))
      assert.equal("paused", pause())
      assert.equal("paused", opero.spawn(pause):await())
    end
  end))
end)

describe("a suspension where Lua cannot suspend", function()
  local suspensions = {
    ["opero.sleep"] = function() opero.sleep(1) end,
    ["opero.yield"] = function() opero.yield() end,
    ["opero.wait"] = function() opero.wait(0, "r") end,
    ["opero.await"] = function() opero.await(function() end) end,
    ["opero.scope"] = function() opero.scope(function() end) end,
    ["opero.timeout"] = function() opero.timeout(1, function() end) end,
    ["opero.shield"] = function() opero.shield(function() end) end,
    ["opero.run"] = function() opero.run(function() end) end,
    ["semaphore:acquire"] = function() opero.semaphore(0):acquire() end,
    ["channel:send"] = function() opero.channel(0):send(1) end,
    ["channel:receive"] = function() opero.channel(0):receive() end,
    ["event:wait"] = function() opero.event():wait() end,
    ["task:await"] = function() opero.spawn(function() end):await() end,
  }

  it("is refused, naming what it was and why", simulated(function()
    for name, suspend in pairs(suspensions) do
      local err = raised(table.sort, { 2, 1 }, suspend)
      assert.matches(name .. " cannot suspend across a C%-call boundary", err)
      assert.matches("table.sort", err)
    end
  end))

  it("is refused in everything of Lua's that calls back", simulated(function()
    table.insert(package.searchers, 1, pause)
    local _ <close> = support.closing(function() table.remove(package.searchers, 1) end)
    local function refused(fn, ...)
      assert.matches("opero.sleep cannot suspend across a C%-call boundary", raised(fn, ...))
    end
    refused(table.sort, { 3, 2, 1 }, function() pause() end)
    refused(string.gsub, "text", "%w", pause)
    refused(table.concat, setmetatable({}, { __len = function() return pause() and 1 end }))
    refused(tostring, setmetatable({}, { __tostring = pause }))
    refused(function() assert(load(function() return pause() end)) end)
    refused(require, "a module whose searcher waits")
  end))

  it("is refused in a finalizer", simulated(function()
    local err
    setmetatable({}, { __gc = function() err = raised(pause) end })
    collectgarbage()
    assert.matches("opero.sleep cannot suspend", err)
  end))

  it("is refused in a hook", simulated(function()
    local err
    debug.sethook(function()
      debug.sethook()
      err = raised(pause)
    end, "l")
    local _ = 1
    assert.matches("opero.sleep cannot suspend", err)
  end))

  it("is refused in a message handler", simulated(function()
    local ok, err = xpcall(error, function()
      local _, refusal = pcall(pause)
      return refusal
    end, "broken")
    assert.is_false(ok)
    assert.matches("opero.sleep cannot suspend", err)
    assert.is_false((xpcall(error, pause, "broken")))
    assert.equal(0, opero.now())
  end))

  it("is refused where a coroutine that is no task's would be suspended", simulated(function()
    for name, suspend in pairs(suspensions) do
      local wrapped = raised(coroutine.wrap(suspend))
      assert.matches(name .. " cannot suspend inside a coroutine", wrapped)
      assert.matches("opero.wrap", wrapped)
      local ok, err = coroutine.resume(coroutine.create(suspend))
      assert.is_false(ok)
      assert.matches("opero.wrap", err)
    end
  end))

  it("leaves the task in order: it can be suspended elsewhere", simulated(function()
    pcall(table.sort, { 2, 1 }, pause)
    pcall(coroutine.wrap(pause))
    assert.equal("paused", pause())
    assert.equal(1, opero.now())
  end))

  it("does not concern what need not wait", simulated(function()
    local semaphore, channel, event = opero.semaphore(1), opero.channel(1), opero.event()
    local task = opero.spawn(function() return "result" end)
    task:await()
    event:set()
    table.sort({ 2, 1 }, function(a, b)
      assert.is_true(semaphore:acquire())
      semaphore:release()
      assert.is_true(channel:send("message"))
      assert.equal("message", channel:receive())
      assert.is_true(event:wait())
      assert.equal("result", task:await())
      opero.spawn(function() end)
      return a < b
    end)
    coroutine.wrap(function()
      assert.is_true(semaphore:acquire())
      assert.equal("result", task:await())
    end)()
  end))
end)

describe("coroutines of the user's own", function()
  it("work inside tasks as ever, as long as they do not suspend the task", simulated(function()
    local generate = coroutine.wrap(function(a)
      local b = coroutine.yield(a + 1)
      local c = coroutine.yield(b + 1)
      return c + 1
    end)
    assert.equal(2, generate(1))
    opero.sleep(1)
    assert.equal(3, generate(2))
    opero.sleep(1)
    assert.equal(4, generate(3))
  end))

  it("can be shared among tasks", simulated(function()
    local generate = coroutine.wrap(function()
      for i = 1, 6 do
        coroutine.yield(i)
      end
    end)
    local seen = {}
    opero.scope(function(s)
      for _ = 1, 3 do
        s:spawn(function()
          for _ = 1, 2 do
            seen[#seen + 1] = generate()
            opero.yield()
          end
        end)
      end
    end)
    assert.same({ 1, 2, 3, 4, 5, 6 }, seen)
  end))

  it("are left alone in the main chunk: there each call runs the loop", function()
    local generate = coroutine.wrap(function()
      opero.sleep(0.001)
      coroutine.yield(1)
      opero.sleep(0.001)
      return 2
    end)
    assert.equal(1, generate())
    assert.equal(2, generate())
  end)
end)

describe("coroutine.yield directly in a task", function()
  it("fails the task with an error that says what to do", simulated(function()
    local task = opero.spawn(function() coroutine.yield("value") end)
    assert.matches("opero.yield", raised(task.await, task))
    assert.equal("failed", task:status())
  end))

  it("closes what the task has open", simulated(function()
    local closed = false
    local child
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() closed = true end)
      opero.scope(function(s)
        child = s:spawn(opero.sleep, 10)
        coroutine.yield()
      end)
    end)
    assert.matches("attempt to yield", raised(task.await, task))
    assert.is_true(closed)
    assert.not_equal("suspended", child:status())
  end))

  it("does not lose an error in a <close>", simulated(function()
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() error("in close", 0) end)
      coroutine.yield()
    end)
    assert.matches("in close", tostring(raised(task.await, task)))
  end))
end)

describe("a task's coroutine in the hands of other code", function()
  -- coroutine.running() hands it out, so it can be tampered with.
  it("resumed by hand, waits on undisturbed", simulated(function()
    local r, w = unistd.pipe()
    for i, suspend in ipairs {
      pause,
      function() return opero.timeout(10, pause) end,
      function() return opero.scope(pause) end,
      function() return opero.shield(pause) end,
      function() return opero.run(pause) end,
      function() return opero.spawn(pause):await() end,
      function() return opero.spawn(pause):await(5) end,
      function() return opero.wrap(pause)() end,
      function() return opero.wrap(function() return opero.wrap(pause)() end)() end,
      function()
        raised_class("TimeoutError", opero.wait, r, "r", 0.001)
        return "paused"
      end,
      function()
        raised_class("TimeoutError", opero.semaphore(0).acquire, opero.semaphore(0), 1)
        return "paused"
      end,
      function()
        raised_class("TimeoutError", opero.channel(0).send, opero.channel(0), "message", 1)
        return "paused"
      end,
      function()
        local channel = opero.channel(0)
        opero.spawn(function() channel:send(pause()) end)
        return channel:receive()
      end,
      function()
        return opero.await(function(resume)
          opero.spawn(function() resume(pause()) end)
        end)
      end,
      function()
        local event = opero.event()
        opero.spawn(function()
          pause()
          event:set()
        end)
        return event:wait() and "paused"
      end,
      function()
        for _ = 1, 10 do
          opero.yield()
        end
        return "paused"
      end,
    } do
      local thread
      local task = opero.spawn(function()
        thread = coroutine.running()
        return suspend()
      end)
      opero.yield()
      opero.yield()
      coroutine.resume(thread)
      coroutine.resume(thread, "tampered", "with")
      coroutine.wrap(function() coroutine.resume(thread, "from another coroutine") end)()
      opero.spawn(coroutine.resume, thread, "from another task"):await()
      assert.same({ "paused", n = 1 }, table.pack(task:await()), i)
    end
    unistd.close(r)
    unistd.close(w)
  end))

  it("resumed by hand once it has been handed something, keeps that", simulated(function()
    for _, wrap in ipairs { function(fn) return fn end, opero.wrap } do
      local channel, threads, tasks = opero.channel(0), {}, {}
      for i = 1, 3 do
        tasks[i] = opero.spawn(function()
          threads[i] = coroutine.running()
          return wrap(function() return channel:receive() end)()
        end)
      end
      opero.yield()
      for i = 1, 3 do
        channel:send(i)
        coroutine.resume(threads[i], "tampered", "with", "this")
        coroutine.resume(threads[i])
      end
      tasks[2]:cancel()
      assert.same({ 1, n = 1 }, table.pack(tasks[1]:await()))
      assert.same({ 3, n = 1 }, table.pack(tasks[3]:await()))
      assert.equal(2, channel:receive())
    end
  end))

  it("resumed by hand as well as cancelled, is cancelled", simulated(function()
    local thread
    local task = opero.spawn(function()
      thread = coroutine.running()
      return pause()
    end)
    opero.yield()
    task:cancel()
    coroutine.resume(thread)
    raised_class("CancelledError", task.await, task)
  end))

  it("cannot be closed without the task's noticing", simulated(function()
    local thread
    local closed = 0
    local task = opero.spawn(function()
      local _ <close> = support.closing(function() closed = closed + 1 end)
      thread = coroutine.running()
      return pause()
    end)
    opero.yield()
    pcall(coroutine.close, thread)
    local ok, result = pcall(task.await, task)
    assert.equal(1, closed)
    if ok then
      assert.equal("paused", result)
    else
      assert.matches("coroutine", tostring(result))
    end
  end))

  it("is not resumed while it is running, or before it began", simulated(function()
    local thread
    local task = opero.spawn(function()
      thread = coroutine.running()
      assert.is_false((coroutine.resume(thread)))
      assert.equal("running", coroutine.status(thread))
      return "result"
    end)
    assert.equal("result", task:await())
    -- Afterwards it may belong to the next task; that one must not be hurt.
    local next_task = opero.spawn(function() return "next" end)
    coroutine.resume(thread, "tampered")
    local ok, result = pcall(next_task.await, next_task)
    assert.is_true(not ok and result ~= nil or result == "next")
  end))
end)

describe("a task whose coroutine is closed by hand", function()
  it("ends in an error, also when it had been handed a message", simulated(function()
    local channel, thread = opero.channel(), nil
    local receiver = opero.spawn(function()
      thread = coroutine.running()
      return channel:receive()
    end)
    opero.yield()
    channel:send("message")
    coroutine.close(thread)
    local ok, err = pcall(receiver.await, receiver)
    assert.is_false(ok)
    assert.matches("dead coroutine", err)
  end))
end)
