-- The end of a lua_State whose tasks have not ended: their <close> variables run, nothing leaks
-- (which the sanitizers' runs of these programs see), nothing crashes.

local support = require "spec.runtime.support"

local output_of, run_program = support.output_of, support.run_program

-- What the programs here begin with.
local prelude = [[
local opero = require "opero"
io.stdout:setvbuf "full"
local function closing(text)
  return setmetatable({}, { __close = function(_, err)
    io.write(text, " ", tostring(err), "\n")
  end })
end
]]

local function lines(text)
  local list = {}
  for line in text:gmatch "[^\n]+" do
    list[#list + 1] = line
  end
  return list
end

describe("lua_close with suspended tasks", function()
  it("runs their <close> variables, innermost first", function()
    assert.same({ "main chunk is over", "inner nil", "outer nil" }, lines(output_of(prelude .. [[
      opero.spawn(function()
        local _ <close> = closing "outer"
        pcall(function()
          local _ <close> = closing "inner"
          opero.sleep(10)
        end)
        io.write "not reached\n"
      end)
      opero.yield()
      io.write "main chunk is over\n"
    ]])))
  end)

  it("does so whatever they wait for", function()
    local output = lines(output_of(prelude .. [[
      local event, semaphore, channel = opero.event(), opero.semaphore(0), opero.channel(0)
      local r, w = require "posix.unistd".pipe()
      local sleeper = opero.spawn(opero.sleep, 100)
      for name, wait in pairs {
        sleep = function() opero.sleep(100) end,
        forever = function() opero.sleep(math.huge) end,
        event = function() event:wait() end,
        semaphore = function() semaphore:acquire(50) end,
        receive = function() channel:receive() end,
        send = function() opero.channel(0):send {} end,
        descriptor = function() opero.wait(r, "r") end,
        callback = function() opero.await(function() end) end,
        task = function() sleeper:await() end,
        scope = function() opero.scope(function() opero.sleep(100) end) end,
        joining = function() opero.scope(function(s) s:spawn(opero.sleep, 100) end) end,
        timeout = function() opero.timeout(50, opero.sleep, 100) end,
        shield = function() opero.shield(opero.sleep, 100) end,
        run = function() opero.run(opero.sleep, 100) end,
        generator = function() opero.wrap(function() opero.sleep(100) end)() end,
        generators = function()
          opero.wrap(function() opero.wrap(function() opero.sleep(100) end)() end)()
        end,
        ready = function() opero.yield() opero.yield() opero.yield() end,
      } do
        opero.spawn(function()
          local _ <close> = closing(name)
          wait()
        end)
      end
      opero.step()
      opero.step()
    ]]))
    table.sort(output)
    assert.same({
      "callback nil", "descriptor nil", "event nil", "forever nil", "generator nil",
      "generators nil", "joining nil", "ready nil", "receive nil", "run nil", "scope nil",
      "semaphore nil", "send nil", "shield nil", "sleep nil", "task nil", "timeout nil",
    }, output)
  end)

  it("runs those inside a generator that has suspended its task", function()
    assert.same({ "inner nil", "generator nil", "task nil" }, lines(output_of(prelude .. [[
      opero.spawn(function()
        local _ <close> = closing "task"
        opero.wrap(function()
          local _ <close> = closing "generator"
          opero.wrap(function()
            local _ <close> = closing "inner"
            opero.sleep(10)
          end)()
        end)()
      end)
      opero.yield()
    ]])))
  end)

  it("says nothing of tasks that have not begun, or have returned", function()
    assert.equal("", output_of(prelude .. [[
      opero.spawn(function() local _ <close> = closing "not begun" end)
    ]]))
    assert.equal("returned nil\n", output_of(prelude .. [[
      opero.spawn(function()
        local _ <close> = closing "returned"
        opero.spawn(opero.sleep, 100)
      end)
      opero.step()
    ]]))
  end)

  it("lets a <close> use what the task had, files included", function()
    assert.equal("written in close\n", output_of(prelude .. [[
      local path = os.tmpname()
      setmetatable({ path }, { __gc = function() os.remove(path) end })
      local shown = setmetatable({}, { __close = function()
        io.write(io.open(path):read "a")
      end })
      opero.spawn(function()
        local _ <close> = shown
        local file <close> = assert(io.open(path, "w"))
        local _ <close> = setmetatable({}, { __close = function()
          file:write "written in close\n"
        end })
        opero.sleep(10)
      end)
      opero.yield()
    ]]))
  end)

  it("refuses what would have to wait, and goes on with the other tasks", function()
    local output = output_of(prelude .. [[
      local semaphore, event = opero.semaphore(0), opero.event()
      local function try(name, fn, ...)
        local ok, err = pcall(fn, ...)
        io.write(name, " ", ok and "ok" or tostring(err), "\n")
      end
      for i = 1, 3 do
        opero.spawn(function()
          local _ <close> = setmetatable({}, { __close = function()
            try("sleep", opero.sleep, 1)
            try("spawn", opero.spawn, print)
            try("run", opero.run, print)
            try("step", opero.step)
            try("simulate", opero.simulate, print)
            try("scope", opero.scope, print)
            try("timeout", opero.timeout, 1, print)
            try("acquire", semaphore.acquire, semaphore)
            try("wait", opero.wait, 0, "r")
            try("release", semaphore.release, semaphore)
            try("set", event.set, event)
            try("tasks", opero.tasks)
            try("now", opero.now)
            try("pollfd", opero.pollfd)
            try("deadline", opero.deadline)
            try("current", opero.current)
          end })
          if i == 1 then semaphore:acquire() end
          if i == 2 then event:wait() end
          opero.sleep(10)
        end)
      end
      opero.yield()
    ]])
    local counts = {}
    for name, result in output:gmatch "(%w+) ([^\n]*)" do
      counts[name] = (counts[name] or 0) + 1
      if name == "sleep" or name == "spawn" or name == "run" then
        assert.matches("the runtime is closed", result)
      end
    end
    assert.equal(3, counts.sleep)
    assert.equal(3, counts.current)
  end)

  it("lets one task's <close> cancel, wake and message others", function()
    assert.equal("last closed\nfirst closed\n", output_of(prelude .. [[
      local channel, semaphore, event = opero.channel(0), opero.semaphore(0), opero.event()
      local tasks, resume_later = {}, nil
      local function meddle(name)
        local _ <close> = setmetatable({}, { __close = function()
          pcall(channel.send, channel, "message")
          semaphore:release()
          event:set()
          resume_later "value"
          for _, task in ipairs(tasks) do
            task:cancel()
            task:status()
          end
          channel:close()
          io.write(name, " closed\n")
        end })
        opero.sleep(10)
      end
      opero.spawn(meddle, "first")
      tasks[1] = opero.spawn(channel.receive, channel)
      tasks[2] = opero.spawn(semaphore.acquire, semaphore)
      tasks[3] = opero.spawn(event.wait, event)
      tasks[4] = opero.spawn(opero.sleep, 100)
      tasks[5] = opero.spawn(opero.await, function(resume) resume_later = resume end)
      tasks[6] = opero.spawn(tasks[4].await, tasks[4])
      opero.spawn(meddle, "last")
      opero.yield()
    ]]))
  end)

  it("loses no other <close> when one raises an error, and warns of it", function()
    local outcome = run_program(prelude .. [[
      warn "@on"
      for i = 1, 3 do
        opero.spawn(function()
          local _ <close> = closing("task " .. i)
          local _ <close> = setmetatable({}, { __close = function() error("broken " .. i, 0) end })
          opero.sleep(10)
        end)
      end
      opero.yield()
    ]])
    assert.equal(0, outcome.code)
    local output = lines(outcome.out)
    table.sort(output)
    assert.same({ "task 1 broken 1", "task 2 broken 2", "task 3 broken 3" }, output)
    for i = 1, 3 do
      assert.matches("warning:.*broken " .. i, outcome.err)
    end
  end)

  it("does not mind finalizers that come after it", function()
    output_of([[
      -- Made before the runtime, it is finalized after it.
      local opero
      local late = setmetatable({}, { __gc = function()
        for _, fn in ipairs {
          function() opero.sleep(1) end, function() opero.spawn(print) end, opero.tasks, opero.now,
          opero.pollfd, opero.deadline, opero.step, opero.current,
          function() opero.run(print) end, function() opero.simulate(print) end,
          function() opero.semaphore(1):acquire() end, function() opero.channel(1):send(1) end,
          function() local e = opero.event() e:set() e:wait() end,
          function() opero.wrap(function() opero.sleep(1) end)() end,
          function() saved:cancel() end, function() saved:await() end,
          function() saved:name() end, function() tostring(saved) end,
          function() saved:traceback() end, function() scope:spawn(print) end,
          function() semaphore:release() end,
        } do
          pcall(fn)
        end
      end })
      opero = require "opero"
      semaphore = opero.semaphore(0)
      saved = opero.spawn(function()
        opero.scope(function(s)
          scope = s
          semaphore:acquire()
        end)
      end)
      opero.yield()
    ]])
  end)

  it("closes ten thousand", function()
    assert.equal("10000\n", output_of(prelude .. [[
      local count = 0
      setmetatable({}, { __gc = function() end })
      local last = setmetatable({}, { __close = function()
        count = count + 1
        if count == 10000 then io.write(count, "\n") end
      end })
      for i = 1, 10000 do
        opero.spawn(function()
          local _ <close> = last
          opero.sleep(100)
        end)
      end
      opero.yield()
    ]]))
  end)

  it("closes a tree of tasks a thousand deep", function()
    assert.equal("1000\n", output_of(prelude .. [[
      local count, deepest = 0, 0
      local function nest(depth)
        deepest = depth
        local _ <close> = setmetatable({}, { __close = function()
          count = count + 1
          if count == 1000 then io.write(count, "\n") end
        end })
        if depth < 1000 then opero.spawn(nest, depth + 1):await() end
        opero.sleep(100)
      end
      opero.spawn(nest, 1)
      repeat opero.step() until deepest == 1000
    ]]))
  end)

  it("reports nothing of failures nobody came to see", function()
    -- A warning would be noise: the program has ended of its own will.
    local outcome = run_program(prelude .. [[
      opero.spawn(error, "never seen", 0)
      pcall(opero.run, function() opero.yield() error() end)
    ]])
    assert.equal(0, outcome.code)
  end)
end)

describe("os.exit(status, true) inside a task", function()
  it("runs the <close> variables of the others", function()
    local outcome = run_program(prelude .. [[
      opero.run(function()
        opero.spawn(function()
          local _ <close> = closing "other"
          opero.sleep(10)
        end)
        opero.yield()
        os.exit(7, true)
      end)
      io.write "not reached\n"
    ]])
    assert.equal(7, outcome.code)
    assert.equal("", outcome.err)
    assert.equal("other nil\n", outcome.out)
  end)

  it("works from deep inside: scopes, timeouts, generators, closes", function()
    local outcome = run_program(prelude .. [[
      opero.run(function()
        opero.spawn(function()
          local _ <close> = closing "other"
          opero.scope(function(s)
            s:spawn(opero.sleep, 10)
            opero.sleep(10)
          end)
        end)
        opero.timeout(10, function()
          opero.scope(function(s)
            s:spawn(function()
              opero.yield()
              opero.shield(function()
                opero.wrap(function()
                  local _ <close> = setmetatable({}, { __close = function() os.exit(3, true) end })
                  opero.yield()
                end)()
              end)
            end)
          end)
        end)
      end)
    ]])
    assert.equal(3, outcome.code)
    assert.equal("", outcome.err)
    assert.equal("other nil\n", outcome.out)
  end)

  it("works in a simulation", function()
    local outcome = run_program(prelude .. [[
      opero.spawn(function()
        local _ <close> = closing "of the real clock"
        opero.sleep(10)
      end)
      opero.step()
      opero.simulate(function()
        opero.spawn(function()
          local _ <close> = closing "simulated"
          opero.sleep(10)
        end)
        opero.sleep(1)
        os.exit(4, true)
      end)
    ]])
    assert.equal(4, outcome.code)
    assert.equal("", outcome.err)
    local output = lines(outcome.out)
    table.sort(output)
    assert.same({ "of the real clock nil", "simulated nil" }, output)
  end)

  it("without true ends at once", function()
    local outcome = run_program(prelude .. [[
      opero.run(function()
        opero.spawn(function()
          local _ <close> = closing "other"
          opero.sleep(10)
        end)
        opero.yield()
        io.stdout:flush()
        os.exit(5)
      end)
    ]])
    assert.equal(5, outcome.code)
    assert.equal("", outcome.out)
  end)
end)

describe("an uncaught error in a script", function()
  it("is shown with its message, and the tasks left are closed", function()
    local outcome = run_program(prelude .. [[
      opero.spawn(function()
        local _ <close> = closing "orphan"
        opero.sleep(10)
      end)
      opero.run(function()
        opero.yield()
        error "broken"
      end)
    ]])
    assert.equal(1, outcome.code)
    assert.matches("broken", outcome.err)
    assert.equal("orphan nil\n", outcome.out)
  end)

  it("of an error object shows what that says", function()
    local outcome = run_program(prelude .. [[ opero.timeout(0.001, opero.sleep, 10) ]])
    assert.equal(1, outcome.code)
    assert.matches("TimeoutError: timed out after 0.001 s", outcome.err)
  end)
end)
