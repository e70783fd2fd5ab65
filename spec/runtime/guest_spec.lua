-- A good guest: the runtime leaves the process it lives in as it found it.

local support = require "spec.runtime.support"

local prelude = [[
local dirent = require "posix.dirent"
local function process()
  local facts = {}
  for line in io.lines "/proc/self/status" do
    local key, value = line:match "^(%w+):%s*(.*)$"
    if key == "Threads" or key and key:match "^Sig[BIC]" then
      facts[#facts + 1] = key .. " " .. value
    end
  end
  local fds = {}
  for name in dirent.files "/proc/self/fd" do -- with the one that reads the list, in each list
    fds[#fds + 1] = name
  end
  table.sort(fds)
  facts[#facts + 1] = table.concat(fds, " ")
  return table.concat(facts, "\n")
end
local function globals()
  local names = {}
  for name in pairs(_G) do names[#names + 1] = tostring(name) end
  table.sort(names)
  return table.concat(names, " ")
end
]]

describe("the runtime", function()
  it("opens nothing, handles no signal, makes no thread and no global when required", function()
    assert.equal("same\tsame\n", support.output_of(prelude .. [[
      local names, facts = globals(), process()
      require "opero"
      print(globals() == names and "same" or globals(), process() == facts and "same" or process())
    ]]))
  end)

  it("does not either while tasks sleep and talk to each other", function()
    assert.equal("same\n", support.output_of(prelude .. [[
      local opero = require "opero"
      local facts = process()
      local inside
      opero.run(function()
        local channel = opero.channel(0)
        opero.spawn(function() channel:send(1) end)
        channel:receive()
        opero.sleep(0.001)
        inside = process()
      end)
      opero.simulate(function() opero.sleep(1) end)
      print(inside == facts and process() == facts and "same" or process())
    ]]))
  end)

  it("holds at most one descriptor of its own, once descriptors are waited for", function()
    assert.equal("at most one\n", support.output_of([[
      local opero, unistd = require "opero", require "posix.unistd"
      local function count()
        local names = 0
        for _ in require("posix.dirent").files("/proc/self/fd") do
          names = names + 1
        end
        return names
      end
      local r, w = unistd.pipe()
      local before = count()
      unistd.write(w, "x")
      for _ = 1, 20 do
        opero.wait(r, "r")
        opero.simulate(function() opero.wait(r, "r") end)
      end
      opero.pollfd()
      print(count() - before <= 1 and "at most one" or count() - before)
    ]]))
  end)

  it("is quiet", function()
    local outcome = support.run_program [[
      local opero = require "opero"
      pcall(opero.run, function()
        opero.spawn(error, "seen by nobody")
        opero.spawn(opero.sleep, 10):cancel()
        error "broken"
      end)
      pcall(opero.simulate, function() opero.event():wait() end)
      pcall(opero.timeout, 0.001, opero.sleep, 10)
    ]]
    assert.equal(0, outcome.code)
    assert.equal("", outcome.out .. outcome.err)
  end)
end)
