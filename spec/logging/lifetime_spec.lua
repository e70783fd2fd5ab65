-- Logging at the edges of a program's life: after the state has begun to close, and at Ctrl-C.

local output_of = require "spec.runtime.support".output_of

describe("logging", function()
  it("by finalizers that run after the library's own does nothing, and no harm", function()
    assert.equal("", output_of [[
      local log, lib
      KEPT = setmetatable({}, { __gc = function()
        log:error("late")
        log:add_context { late = true }
        log:set_level("debug")
        lib.get_logger("other"):critical("late too")
        lib.log_context(log, { a = 1 }, log.error, log, "late")
        lib.correlation_id()
        assert(log:context().late == nil)
        assert(not log:enabled("critical"))
        assert(not pcall(lib.configure_logging))
      end })
      lib = require "opero"
      log = lib.get_logger("app")
      log:add_context { early = true }
    ]])
  end)

  it("by finalizers before that is as ever", function()
    assert.matches("ERROR    app: last  early=true\n$", output_of [[
      local lib = require "opero"
      lib.configure_logging { output = "stdout" }
      local log = lib.get_logger("app")
      log:add_context { early = true }
      KEPT = setmetatable({}, { __gc = function() log:error("last") end })
    ]])
  end)

  it("takes names with very many dots", function()
    assert.equal("499\n", output_of [[
      local lib = require "opero"
      local log = lib.get_logger(("a."):rep(249) .. "a")
      print(#log:name())
    ]])
  end)

  it("does not swallow Ctrl-C", function()
    local out = output_of [[
      local lib = require "opero"
      local unix, signal = require "posix.unistd", require "posix.signal"
      local sent = false
      lib.configure_logging { output = function()
        if not sent then
          sent = true
          signal.kill(unix.getpid(), signal.SIGINT)
          for _ = 1, 1000 do end
        end
      end }
      local log = lib.get_logger("app")
      print(pcall(log.info, log, "m"))
      os.exit(0)
    ]]
    assert.matches("^false\t[^\n]*interrupted!\n$", out)
  end)
end)
