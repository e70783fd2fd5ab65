-- Ctrl-C in a plain `lua5.4 script.lua`: opero.run ends at once with "interrupted!", and cleanup
-- runs. Real signals, sent to programs of their own.

local support = require "spec.runtime.support"

local run_program = support.run_program

-- `interrupt()` sends SIGINT to the program itself, which is delivered before it returns;
-- `interrupt_when_waiting()` has another process send it once this one is blocked in the kernel.
local prelude = [[
local opero = require "opero"
local signal, unistd = require "posix.signal", require "posix.unistd"
io.stdout:setvbuf "full"
local function interrupt()
  signal.kill(unistd.getpid(), signal.SIGINT)
end
local function interrupt_when_waiting()
  local program = unistd.getpid()
  if unistd.fork() == 0 then
    local path = ("/proc/%d/stat"):format(program)
    repeat
      require "posix.time".nanosleep { tv_sec = 0, tv_nsec = 2000000 }
      local file <close> = assert(io.open(path))
      local state = file:read("a"):match "%) (%a)"
    until state == "S"
    signal.kill(program, signal.SIGINT)
    unistd._exit(0)
  end
end
local function closing(text)
  return setmetatable({}, { __close = function(_, err)
    io.write(text, " ", tostring(err), "\n")
  end })
end
]]

local function interrupted(source)
  local outcome = run_program(prelude .. source)
  assert.equal(1, outcome.code, outcome.err)
  assert.matches("^[^\n]*: interrupted!\n", outcome.err)
  return outcome.out
end

describe("Ctrl-C", function()
  it("ends opero.run while it waits", function()
    assert.matches("^cleanup CancelledError[^\n]*\n$", interrupted [[
      interrupt_when_waiting()
      opero.run(function()
        local _ <close> = closing "cleanup"
        opero.sleep(50)
        io.write "not reached\n"
      end)
    ]])
  end)

  it("ends opero.run while it waits for a descriptor", function()
    assert.matches("^cleanup CancelledError", interrupted [[
      local r, w = unistd.pipe()
      interrupt_when_waiting()
      opero.run(function()
        local _ <close> = closing "cleanup"
        opero.wait(r, "r")
      end)
    ]])
  end)

  it("ends opero.run while it waits for ever", function()
    assert.matches("^cleanup CancelledError", interrupted [[
      interrupt_when_waiting()
      opero.run(function()
        local _ <close> = closing "cleanup"
        opero.sleep(math.huge)
      end)
    ]])
  end)

  it("ends opero.run while it switches between tasks", function()
    local output = interrupted [[
      local turns = 0
      opero.run(function()
        local _ <close> = closing "root"
        opero.spawn(function()
          local _ <close> = closing "child"
          while true do opero.yield() end
        end)
        while true do
          turns = turns + 1
          if turns == 100 then interrupt() end
          if turns > 110 then io.write "too late\n" end
          opero.yield()
        end
      end)
    ]]
    assert.matches("root CancelledError", output)
    assert.matches("child CancelledError", output)
    assert.not_matches("too late", output)
  end)

  it("ends opero.run when the signal comes from elsewhere while it switches", function()
    local output = interrupted [[
      local program = unistd.getpid()
      opero.run(function()
        local _ <close> = closing "cleanup"
        opero.spawn(function() while true do opero.yield() end end)
        opero.sleep(0.001)
        if unistd.fork() == 0 then
          signal.kill(program, signal.SIGINT)
          unistd._exit(0)
        end
        while true do opero.yield() end
      end)
    ]]
    assert.matches("^cleanup CancelledError", output)
  end)

  it("ends a wait of the main chunk's own", function()
    interrupted [[
      interrupt_when_waiting()
      opero.sleep(50)
    ]]
    interrupted [[
      local event = opero.event()
      opero.spawn(function() interrupt() opero.sleep(50) end)
      event:wait()
    ]]
  end)

  it("lets a cleanup take its time", function()
    assert.equal("cleaned up\n", interrupted [[
      opero.run(function()
        local _ <close> = setmetatable({}, { __close = function()
          opero.shield(function()
            opero.sleep(0.01)
            io.write "cleaned up\n"
          end)
        end })
        interrupt()
        opero.sleep(50)
      end)
    ]])
  end)

  it("reaches all tasks of the run, in scopes and timeouts too", function()
    local output = interrupted [[
      opero.run(function()
        opero.scope(function(s)
          for i = 1, 3 do
            s:spawn(function()
              local _ <close> = closing("task " .. i)
              opero.timeout(50, opero.event().wait, opero.event())
            end)
          end
          opero.yield()
          interrupt()
        end)
      end)
    ]]
    for i = 1, 3 do
      assert.matches("task " .. i .. " CancelledError", output)
    end
  end)

  it("is an error that can be caught, and the program goes on", function()
    assert.equal("false interrupted!\nagain 1\n", support.output_of(prelude .. [[
      io.write(("%s %s\n"):format(pcall(opero.run, function()
        interrupt()
        opero.sleep(50)
      end)))
      io.write(("again %d\n"):format(opero.run(function()
        opero.sleep(0.001)
        return 1
      end)))
    ]]))
  end)

  it("comes through a pcall around what waits in the task", function()
    -- The task sees its cancellation; the interruption is the run's error.
    assert.equal("swallowed\n", interrupted [[
      opero.run(function()
        opero.spawn(interrupt)
        pcall(opero.sleep, 50)
        io.write "swallowed\n"
      end)
    ]])
  end)

  it("loses no error of the cleanup", function()
    local outcome = run_program(prelude .. [[
      opero.run(function()
        local _ <close> = setmetatable({}, { __close = function() error("in cleanup", 0) end })
        interrupt()
        opero.sleep(50)
      end)
    ]])
    assert.equal(1, outcome.code)
    assert.matches("interrupted!", outcome.err)
    assert.matches("in cleanup", outcome.err)
  end)

  it("in a simulation ends that", function()
    assert.matches("^cleanup CancelledError", interrupted [[
      opero.simulate(function()
        local _ <close> = closing "cleanup"
        interrupt()
        while true do opero.sleep(1) end
      end)
    ]])
  end)

  it("while opero.step runs a task is raised by the step", function()
    assert.equal("false interrupted!\n", support.output_of(prelude .. [[
      local task = opero.spawn(function()
        interrupt()
        opero.sleep(50)
      end)
      io.write(("%s %s\n"):format(pcall(opero.step)))
      task:cancel()
      opero.step()
    ]]))
  end)

  it("ends opero.run that was called in a coroutine", function()
    assert.matches("^cleanup CancelledError", interrupted [[
      coroutine.wrap(function()
        opero.run(function()
          local _ <close> = closing "cleanup"
          interrupt()
          opero.sleep(50)
        end)
      end)()
    ]])
  end)

  it("that came just before a wait in a coroutine is not lost", function()
    -- There only the main thread's hook would tell, and the main thread does not run.
    assert.equal("", interrupted [[
      coroutine.wrap(function()
        interrupt()
        opero.sleep(0.05)
        io.write "too late\n"
      end)()
    ]])
  end)

  it("leaves hooks of the user's own in place", function()
    assert.matches("hooked", support.output_of(prelude .. [[
      local count = 0
      debug.sethook(function() count = count + 1 end, "l")
      opero.run(function()
        for _ = 1, 10 do opero.yield() end
      end)
      assert(debug.gethook() ~= nil)
      local before = count
      local x = 1
      x = x + 1
      assert(count > before)
      debug.sethook()
      io.write "hooked\n"
    ]]))
  end)
end)

describe("other signals", function()
  it("do not end a wait", function()
    assert.equal("slept handled\n", support.output_of(prelude .. [[
      local program, handled = unistd.getpid(), ""
      signal.signal(signal.SIGUSR1, function() handled = "handled" end)
      if unistd.fork() == 0 then
        for _ = 1, 5 do
          require "posix.time".nanosleep { tv_sec = 0, tv_nsec = 2000000 }
          signal.kill(program, signal.SIGUSR1)
        end
        unistd._exit(0)
      end
      local before = opero.now()
      opero.run(function() opero.sleep(0.05) end)
      assert(opero.now() - before >= 0.05)
      io.write("slept ", handled, "\n")
    ]]))
  end)
end)
