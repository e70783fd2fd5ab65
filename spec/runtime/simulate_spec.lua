local opero = require "opero"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

-- The order in which ten tasks run that are all ready, for five rounds.
local function order_with(options)
  local order = {}
  opero.simulate(function()
    for i = 1, 10 do
      opero.spawn(function()
        for _ = 1, 5 do
          order[#order + 1] = i
          opero.yield()
        end
      end)
    end
  end, options)
  return table.concat(order, " ")
end

describe("opero.simulate", function()
  it("runs a function and returns its results", function()
    assert.same({ 1, nil, 3, n = 3 }, table.pack(opero.simulate(function() return 1, nil, 3 end)))
    assert.equal(0, select("#", opero.simulate(function() end)))
  end)

  it("raises its error unchanged", function()
    local err = {}
    assert.equal(err, raised(opero.simulate, function()
      opero.sleep(1)
      error(err)
    end))
  end)

  it("has a clock of its own that starts at 0", function()
    for _ = 1, 2 do
      opero.simulate(function()
        assert.equal(0, opero.now())
        opero.sleep(1.5)
        assert.equal(1.5, opero.now())
      end)
    end
  end)

  it("lets sleeps take no real time", function()
    local before = opero.now()
    opero.simulate(function()
      for _ = 1, 1000 do
        opero.sleep(3600)
      end
      assert.equal(3600000, opero.now())
    end)
    assert.is_true(opero.now() - before < 60)
  end)

  it("lets time stand still while anything is ready", simulated(function()
    local done = false
    opero.spawn(function()
      opero.sleep(1e-9)
      done = true
    end)
    for _ = 1, 1000 do
      opero.yield()
      assert.equal(0, opero.now())
    end
    assert.is_false(done)
  end))

  it("jumps from deadline to deadline, to the nanosecond", simulated(function()
    local times = {}
    for _, seconds in ipairs { 3, 1, 2, 0.25, 1e-9, 100.000000001 } do
      opero.spawn(function()
        opero.sleep(seconds)
        times[#times + 1] = opero.now()
      end)
    end
    opero.sleep(1000)
    assert.same({ 1e-9, 0.25, 1, 2, 3, 100.000000001 }, times)
  end))

  it("fires equal deadlines in the order in which they were set", simulated(function()
    local order = {}
    for i = 1, 1000 do
      opero.spawn(function()
        opero.sleep(5)
        order[#order + 1] = i
      end)
    end
    opero.sleep(6)
    for i = 1, 1000 do
      assert.equal(i, order[i])
    end
  end))

  it("is the same each time", function()
    assert.equal(order_with(nil), order_with(nil))
    assert.equal(order_with({}), order_with(nil))
    assert.matches("^1 2 3 4 5 6 7 8 9 10 1 2 3", order_with(nil))
  end)

  it("with a seed shuffles the order of ready tasks", function()
    local orders, different = {}, 0
    for seed = 1, 20 do
      local order = order_with { seed = seed }
      if not orders[order] then
        orders[order] = true
        different = different + 1
      end
    end
    assert.equal(20, different)
  end)

  it("with the same seed is the same run", function()
    for _, seed in ipairs { 0, 1, -1, 42, math.maxinteger, math.mininteger } do
      assert.equal(order_with { seed = seed }, order_with { seed = seed })
    end
    assert.not_equal(order_with { seed = 0 }, order_with { seed = 1 })
    assert.not_equal(order_with { seed = 0 }, order_with(nil))
  end)

  it("with a seed finds a race", function()
    -- Two tasks that read, wait, and write back: correct only in some orders.
    local function race()
      local balance = 100
      opero.scope(function(s)
        s:spawn(function() balance = balance + 10 end)
        s:spawn(function() balance = balance * 2 end)
      end)
      return balance
    end
    local seen = {}
    for seed = 1, 20 do
      seen[opero.simulate(race, { seed = seed })] = true
    end
    assert.same({ [220] = true, [210] = true }, seen)
  end)

  it("with a seed makes every choice of the runtime the same", function()
    local function trace(seed)
      local lines = {}
      opero.simulate(function()
        local channel, semaphore = opero.channel(1), opero.semaphore(2)
        for i = 1, 5 do
          opero.spawn(function()
            semaphore:acquire()
            channel:send(i)
            opero.sleep(i % 2)
            semaphore:release()
            lines[#lines + 1] = ("sent %d at %g"):format(i, opero.now())
          end)
          opero.spawn(function()
            local message = channel:receive()
            lines[#lines + 1] = ("%d got %d at %g"):format(i, message, opero.now())
          end)
        end
      end, { seed = seed })
      return table.concat(lines, "\n")
    end
    assert.equal(trace(7), trace(7))
    assert.not_equal(trace(7), trace(8))
  end)

  it("refuses unknown options and seeds that are no integers", function()
    assert.matches("unknown option 'sed'", raised(opero.simulate, print, { sed = 1 }))
    assert.matches("unknown option '1'", raised(opero.simulate, print, { 5 }))
    for _, seed in ipairs { 1.5, "1", true, {} } do
      assert.matches("'seed' takes an integer", raised(opero.simulate, print, { seed = seed }))
    end
    assert.matches("table expected", raised(opero.simulate, print, 5))
    assert.matches("function expected", raised(opero.simulate, 5))
    assert.matches("expected", raised(opero.simulate))
  end)

  it("is refused inside a task and inside another", function()
    assert.matches("opero.simulate cannot be called in a task", raised(opero.run, function()
      opero.simulate(print)
    end))
    assert.matches("opero.simulate cannot be called in a task", raised(opero.simulate, function()
      opero.simulate(print)
    end))
  end)

  it("leaves the real clock and its tasks alone", function()
    local event = opero.event()
    local task = opero.spawn(function()
      event:wait()
      return "real"
    end)
    opero.step()
    local before = opero.now()
    opero.simulate(function()
      assert.equal(1, #opero.tasks())
      opero.sleep(1000)
    end)
    assert.is_true(opero.now() - before < 100)
    assert.equal("suspended", task:status())
    event:set()
    assert.equal("real", task:await())
  end)

  it("may wake tasks of the real clock, which go on after it", function()
    local channel, semaphore, event = opero.channel(0), opero.semaphore(0), opero.event()
    local tasks = {
      opero.spawn(channel.receive, channel), opero.spawn(semaphore.acquire, semaphore),
      opero.spawn(event.wait, event), opero.spawn(opero.sleep, 1e6),
    }
    opero.step()
    opero.simulate(function()
      channel:send("from the simulation")
      semaphore:release()
      event:set()
      tasks[4]:cancel()
      opero.sleep(1)
      assert.equal("ready", tasks[1]:status())
    end)
    assert.equal("from the simulation", tasks[1]:await())
    assert.is_true(tasks[2]:await())
    assert.is_true(tasks[3]:await())
    raised_class("CancelledError", tasks[4].await, tasks[4])
  end)

  it("that awaits a task of the real clock is in a deadlock", function()
    local task = opero.spawn(opero.yield)
    raised_class("DeadlockError", opero.simulate, function() task:await() end)
    task:await()
  end)

  it("is not a deadlock as long as anything sleeps", simulated(function()
    local event = opero.event()
    opero.spawn(function()
      opero.sleep(1e9)
      event:set()
    end)
    event:wait()
  end))
end)

describe("a deadlock in a simulation", function()
  it("lists each waiting task: its name, what it waits for, and where", function()
    local event, semaphore, channel = opero.event(), opero.semaphore(0), opero.channel(0)
    local waits = {
      { "event:wait", function() event:wait() end },
      { "semaphore:acquire", function() semaphore:acquire() end },
      { "channel:receive", function() channel:receive() end },
      { "channel:send", function() opero.channel(0):send(1) end },
      { "opero.await %(a callback%)", function() opero.await(function() end) end },
      { "opero.sleep", function() opero.sleep(math.huge) end },
    }
    local err = raised_class("DeadlockError", opero.simulate, function()
      opero.current():name("root")
      for i, wait in ipairs(waits) do
        opero.spawn(wait[2]):name("task " .. i)
      end
      opero.spawn(function() event:wait() end) -- has no name
      opero.scope(function() opero.spawn(event.wait, event):name("child") end)
    end)

    assert.equal(#waits + 3, #err.waiters)
    local by_name = {}
    for _, waiter in ipairs(err.waiters) do
      by_name[waiter.name] = waiter
    end
    for i, wait in ipairs(waits) do
      local waiter = by_name["task " .. i]
      assert.matches(wait[1], waiter.waiting_for)
      local line = debug.getinfo(wait[2], "S").linedefined
      assert.matches("simulate_spec.lua:" .. line .. "$", waiter.at)
      assert.matches(("task 'task %d' waits for %s at .*simulate_spec.lua:%d"):format(
        i, wait[1], line), err.message)
    end
    assert.matches("the tasks of its scope", by_name.root.waiting_for)
    assert.equal("event:wait", by_name.child.waiting_for)
    local unnamed = 0
    for name, waiter in pairs(by_name) do
      if name:match("simulate_spec.lua:%d+$") then
        unnamed = unnamed + 1
        assert.equal("event:wait", waiter.waiting_for)
      end
    end
    assert.equal(1, unnamed)
  end)

  it("says whom a task awaits, and that one waits for its children", function()
    local err = raised_class("DeadlockError", opero.simulate, function()
      local parent = opero.spawn(function()
        opero.spawn(function() opero.event():wait() end):name("child")
      end)
      parent:name("parent")
      opero.current():name("root")
      parent:await()
    end)
    assert.matches("task 'root' waits for task:await %('parent'%)", err.message)
    assert.matches("task 'parent' waits for its children", err.message)
    assert.matches("task 'child' waits for event:wait", err.message)
  end)

  it("is found after time has passed, too", function()
    raised_class("DeadlockError", opero.simulate, function()
      opero.spawn(opero.sleep, 100)
      opero.event():wait()
    end)
  end)

  it("lets every task clean up", function()
    local closed = 0
    raised_class("DeadlockError", opero.simulate, function()
      for _ = 1, 5 do
        opero.spawn(function()
          local _ <close> = support.closing(function()
            opero.shield(opero.sleep, 1)
          end)
          local _ <close> = support.closing(function() closed = closed + 1 end)
          opero.event():wait()
        end)
      end
    end)
    assert.equal(5, closed)
  end)

  it("gives tasks that even then wait for ever a cancellation for an outcome", function()
    local stubborn
    raised_class("DeadlockError", opero.simulate, function()
      stubborn = opero.spawn(opero.shield, function() opero.event():wait() end)
    end)
    assert.equal("cancelled", stubborn:status())
    raised_class("CancelledError", stubborn.await, stubborn)
    assert.same({}, opero.tasks())
  end)

  it("can be caught, and the next simulation is none the worse", function()
    for _ = 1, 20 do
      raised_class("DeadlockError", opero.simulate, function()
        opero.spawn(opero.shield, function() opero.event():wait() end)
        opero.event():wait()
      end)
      assert.equal(1, opero.simulate(function()
        opero.sleep(1)
        return opero.now()
      end))
    end
  end)
end)

describe("a simulation that waits for a descriptor", function()
  it("lets its clock stand still while real time passes", function()
    local r, w = unistd.pipe()
    local writer = unistd.fork()
    if writer == 0 then
      require "posix.time".nanosleep { tv_sec = 0, tv_nsec = 20000000 }
      unistd.write(w, "x")
      unistd._exit(0)
    end
    local real_before = opero.now()
    opero.simulate(function()
      opero.sleep(5)
      local slept = false
      opero.spawn(function()
        opero.sleep(3600) -- an hour is not what the writer takes
        slept = true
      end):name("sleeper")
      assert.equal("r", opero.wait(r, "r"))
      assert.equal(5, opero.now())
      assert.is_false(slept)
    end)
    assert.is_true(opero.now() - real_before >= 0.015)
    require "posix.sys.wait".wait(writer)
    unistd.close(r)
    unistd.close(w)
  end)

  it("jumps on when nothing came in as much real time", function()
    local r, w = unistd.pipe()
    local before = opero.now()
    opero.simulate(function()
      raised_class("TimeoutError", opero.wait, r, "r", 0.01)
      assert.equal(0.01, opero.now())
    end)
    assert.is_true(opero.now() - before >= 0.01)
    unistd.close(r)
    unistd.close(w)
  end)

  it("takes what is ready without any time passing", simulated(function()
    local r, w = unistd.pipe()
    unistd.write(w, "x")
    assert.equal("r", opero.wait(r, "r"))
    assert.equal("w", opero.wait(w, "w"))
    assert.equal(0, opero.now())
    unistd.close(r)
    unistd.close(w)
  end))
end)
