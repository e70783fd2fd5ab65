local errors = require "opero.errors"

describe("an error class", function()
  local Refused = errors.class("Refused")

  it("makes objects that bear a message and the fields given", function()
    local cause = {}
    local fields = { cause = cause, retry_after = 2, [1] = "x" }
    local e = Refused("no service", fields)
    assert.equal("no service", e.message)
    assert.equal(cause, e.cause)
    assert.equal(2, e.retry_after)
    assert.equal("x", e[1])
    assert.same({ cause = cause, retry_after = 2, [1] = "x" }, fields)
  end)

  it("gives its objects a traceback of where they were made", function()
    local function deep()
      return (Refused("here"))
    end
    local e = deep()
    assert.matches("errors_spec%.lua:%d+: in local 'deep'", e.traceback)
    assert.not_matches("construct", e.traceback)
  end)

  it("keeps a traceback it is given", function()
    assert.equal("elsewhere", Refused("x", { traceback = "elsewhere" }).traceback)
  end)

  it("spares cancellations the traceback, those of derived classes too", function()
    assert.is_nil(errors.CancelledError("stop").traceback)
    assert.is_nil(errors.class("Stopped", errors.CancelledError)("stop").traceback)
  end)

  it("takes nothing but a string for the message", function()
    for _, bad in ipairs { {}, 1, true, print } do
      assert.error_matches(function() Refused(bad) end,
        "^Refused: the message must be a string, got " .. type(bad))
    end
    assert.error_matches(function() Refused() end, "the message must be a string, got nil")
  end)

  it("takes nothing but a table for the fields", function()
    assert.error_matches(function() Refused("x", 1) end,
      "Refused: the fields must be a table, got number")
  end)

  it("keeps its message when a field bears that name", function()
    assert.equal("mine", Refused("mine", { message = "other" }).message)
  end)

  it("tells its name and parent, and its objects tell them too", function()
    local Closed = errors.class("Closed", Refused)
    assert.equal("Closed", Closed.name)
    assert.equal(Refused, Closed.parent)
    assert.equal(errors.OperoError, Refused.parent)
    assert.is_nil(errors.OperoError.parent)
    assert.equal("Closed", Closed("x").name)
    assert.equal("Closed", getmetatable(Closed("x")).__name)
    assert.equal("error class Closed", tostring(Closed))
  end)

  it("hands methods and fields down to objects and derived classes", function()
    local Http = errors.class("Http")
    Http.status = 500
    function Http:is_server_fault()
      return self.status >= 500
    end
    local NotFound = errors.class("NotFound", Http)
    NotFound.status = 404
    assert.is_true(Http("x"):is_server_fault())
    assert.is_false(NotFound("x"):is_server_fault())
    assert.equal(503, NotFound("x", { status = 503 }).status)
  end)

  it("may print in a way of its own, and so do the classes derived from it", function()
    local Http = errors.class("Http2")
    function Http:__tostring()
      return "HTTP " .. self.status
    end
    assert.equal("HTTP 503", tostring(Http("x", { status = 503 })))
    assert.equal("HTTP 404", tostring(errors.class("NotFound2", Http)("x", { status = 404 })))
    assert.equal("Refused: a\ncaused by: HTTP 503",
      tostring(Refused("a", { cause = Http("x", { status = 503 }) })))
  end)

  it("is refused without a name or with a parent that is no class", function()
    local nameless = "the name must be a string that is not empty"
    assert.error_matches(function() errors.class() end, nameless .. ", got nil")
    assert.error_matches(function() errors.class("") end, nameless)
    local orphan = "the parent of X must be an error class"
    assert.error_matches(function() errors.class("X", {}) end, orphan .. ", got table")
    assert.error_matches(function() errors.class("X", Refused("no")) end, orphan)
  end)
end)

describe("tostring of an error", function()
  local A, B = errors.class("A"), errors.class("B")

  it("gives class and message", function()
    assert.equal("A: it broke", tostring(A("it broke")))
  end)

  it("adds a line for each cause", function()
    local e = A("outer", { cause = B("middle", { cause = "inner" }) })
    assert.equal("A: outer\ncaused by: B: middle\ncaused by: inner", tostring(e))
  end)

  it("shows a cause of false", function()
    assert.equal("A: outer\ncaused by: false", tostring(A("outer", { cause = false })))
  end)

  it("ends for causes that go round in a circle", function()
    local a, b = A("a"), B("b")
    a.cause, b.cause = b, a
    assert.equal("A: a\ncaused by: B: b\ncaused by: the same error again", tostring(a))
  end)

  it("cuts a chain of causes that has no end in sight", function()
    local e
    for i = 1, 100 do
      e = A(tostring(i), { cause = e })
    end
    local lines = select(2, tostring(e):gsub("\n", "\n"))
    assert.equal(17, lines)
    assert.matches("^A: 100\ncaused by: A: 99\n.*\ncaused by: %.%.%.$", tostring(e))
  end)

  it("survives a cause that cannot be printed and a message that was replaced", function()
    local bad = setmetatable({}, { __tostring = function() error "no" end })
    assert.equal("A: x\ncaused by: (a table that cannot be shown)",
      tostring(A("x", { cause = bad })))
    local e = A("x")
    e.message = 5
    assert.equal("A: 5", tostring(e))
  end)
end)

describe("errors.is", function()
  local Parent = errors.class("Parent")
  local Child = errors.class("Child", Parent)

  it("holds for the class and all above it, and no other", function()
    local e = Child("x")
    assert.is_true(errors.is(e, Child))
    assert.is_true(errors.is(e, Parent))
    assert.is_true(errors.is(e, errors.OperoError))
    assert.is_false(errors.is(e, errors.TimeoutError))
    assert.is_false(errors.is(Parent("x"), Child))
  end)

  it("is false for whatever is no error object", function()
    local odd = {
      0, "Parent", true, false, {}, print, Parent, coroutine.create(print), io.stdout,
      setmetatable({}, { __metatable = "hidden" }), setmetatable({}, { __metatable = 0 / 0 }),
      setmetatable({}, { __index = function() error "never" end }),
    }
    for _, value in ipairs(odd) do
      assert.is_false(errors.is(value, Parent))
    end
    assert.is_false(errors.is(nil, Parent))
  end)

  it("raises for a class that is none", function()
    for _, bad in ipairs { "Parent", {}, Parent("x"), 5, false } do
      assert.error_matches(function() errors.is(Parent("x"), bad) end,
        "^errors%.is: expected an error class as second argument")
    end
    assert.error_matches(function() errors.is(Parent("x"), nil) end,
      "expected an error class as second argument, got nil")
  end)
end)

describe("the classes of Opero", function()
  local names = {
    "ConfigError", "RetryError", "AllFailedError", "TimeoutError", "CancelledError",
    "CircuitOpenError", "QueueFullError", "WorkerCrashedError", "SerializationError",
    "DeadlockError", "AggregateError", "ClosedError", "ItemError",
  }

  it("are there, each an OperoError of its own name", function()
    for _, name in ipairs(names) do
      local e = errors[name]("x")
      assert.equal(name .. ": x", tostring(e))
      assert.is_true(errors.is(e, errors.OperoError))
    end
  end)

  it("are found by name when the core raises one", function()
    local e = errors.make("TimeoutError", "too long", { timeout = 3 })
    assert.is_true(errors.is(e, errors.TimeoutError))
    assert.equal(3, e.timeout)
    assert.error_matches(function() errors.make("NoSuchError", "x") end,
      "there is no class NoSuchError")
    assert.error_matches(function() errors.make("is", "x") end, "there is no class is")
  end)
end)

describe("errors.summary", function()
  it("is one line, for errors of any type", function()
    assert.equal("boom", errors.summary(errors.OperoError("boom\nmore", { cause = "x" })))
    assert.equal("a.lua:1: boom", errors.summary("a.lua:1: boom\nmore"))
    assert.equal("nil", errors.summary(nil))
    assert.equal("false", errors.summary(false))
    assert.equal("", errors.summary(""))
    assert.equal("(a table that cannot be shown)",
      errors.summary(setmetatable({}, { __tostring = function() return {} end })))
  end)
end)
