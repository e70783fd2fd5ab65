-- Idle costs nothing: while all tasks wait, the runtime is blocked in one system call.

local support = require "spec.runtime.support"

local seconds = 0.25

-- SETTING, and then one sleep between two marks.
local program = [[
local opero = require "opero"
local r, w = require "posix.unistd".pipe()
local function switches()
  for line in io.lines "/proc/self/status" do
    local count = line:match "^voluntary_ctxt_switches:%s*(%d+)"
    if count then return tonumber(count) end
  end
end
opero.sleep(0.001)
SETTING
local cpu, before = os.clock(), switches()
io.stderr:write "begin\n"
opero.sleep(SECONDS)
io.stderr:write "end\n"
print(switches() - before, os.clock() - cpu)
os.exit(0)
]]

local settings = {
  { "one sleeping task", "" },
  { "a thousand tasks that wait for other things", [[
    local event = opero.event()
    for i = 1, 1000 do
      opero.spawn(event.wait, event)
      opero.spawn(opero.sleep, 1000 + i)
    end
    opero.step()
  ]] },
  { "a descriptor that is not ready", [[
    opero.spawn(opero.wait, r, "r")
    opero.step()
    opero.step()
  ]], looks = 10 }, -- to see that it is still the same file, after code has run
}

-- strace would not get on with the preloaded sanitizers.
local has_strace = not os.getenv "LD_PRELOAD" and os.execute "command -v strace >/dev/null"
  and os.execute "strace -o /dev/null true 2>/dev/null"

describe("a runtime with", function()
  for _, case in ipairs(settings) do
    local name = case[1]
    local source = program:gsub("SECONDS", seconds):gsub("SETTING", case[2])

    it(name .. " sleeps through to its deadline", function()
      local outcome = support.run_program(source)
      assert.equal(0, outcome.code, outcome.err)
      local switches, cpu = outcome.out:match "(%d+)%s+(%S+)"
      -- One for the wait itself; the others the system may have had reasons of its own for. A
      -- runtime that looks about every 10 ms would have 25.
      assert.is_true(tonumber(switches) <= 5, switches .. " context switches")
      assert.is_true(tonumber(cpu) < seconds / 3, cpu .. " seconds of processor time")
    end)

    if has_strace then
      it(name .. " makes one system call until then", function()
        local trace = os.tmpname()
        local _ <close> = support.closing(function() os.remove(trace) end)
        local outcome = support.run_program(source, "strace -f -T -o " .. trace)
        assert.equal(0, outcome.code, outcome.err)
        local waits, others, watching = 0, {}, false
        for line in io.lines(trace) do
          if line:match '"begin\\n"' then
            watching = true
          elseif line:match '"end\\n"' then
            watching = false
          elseif watching and not line:match "clock_gettime" then
            if line:match "poll" and tonumber(line:match "<(%S+)>$") > seconds / 2 then
              waits = waits + 1
            else
              others[#others + 1] = line
            end
          end
        end
        assert.equal(1, waits)
        assert.is_true(#others <= (case.looks or 0), table.concat(others, "\n"))
      end)
    end
  end
end)
