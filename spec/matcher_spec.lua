local errors = require "opero.errors"
local matcher = require "opero.matcher"

local Refused = errors.class("Refused")
local Busy = errors.class("Busy", Refused)

local function refused(spec)
  local ok, err = pcall(matcher.compile, spec, "config.retry_on")
  assert.is_false(ok)
  assert.is_true(errors.is(err, errors.ConfigError), tostring(err))
  return err
end

describe("a matcher", function()
  it("of a class matches its errors and those of classes derived from it", function()
    local matches = matcher.compile(Refused)
    assert.is_true(matches(Refused "x"))
    assert.is_true(matches(Busy "x"))
    assert.is_false(matches(errors.TimeoutError "x"))
    assert.is_false(matches("Refused"))
    assert.is_false(matches(nil))
  end)

  it("of a pattern matches strings alone", function()
    local matches = matcher.compile("^[%w_/.]+:%d+: timed? ?out$")
    assert.is_true(matches("a/b.lua:12: timeout"))
    assert.is_false(matches("a/b.lua:12: closed"))
    assert.is_false(matches(Refused "a.lua:1: timeout"))
    assert.is_false(matches(5))
    assert.is_false(matches(nil))
  end)

  it("of a predicate asks it, with errors of any type", function()
    local seen = {}
    local matches = matcher.compile(function(err)
      seen[#seen + 1] = tostring(err)
      return err == false
    end)
    assert.is_true(matches(false))
    assert.is_false(matches(nil))
    assert.is_false(matches("x"))
    assert.same({ "false", "nil", "x" }, seen)
  end)

  it("of an object with a __call asks that", function()
    local object = setmetatable({ wanted = 7 }, {
      __call = function(self, err) return err == self.wanted end,
    })
    assert.is_true(matcher.compile(object)(7))
    assert.is_false(matcher.compile(object)(8))
  end)

  it("of a list matches what one of its elements matches, lists in it included", function()
    local matches = matcher.compile { Busy, "timeout", { function(err) return err == 5 end } }
    assert.is_true(matches(Busy "x"))
    assert.is_true(matches("a timeout"))
    assert.is_true(matches(5))
    assert.is_false(matches(Refused "x"))
    assert.is_false(matches("closed"))
    assert.is_false(matches(6))
  end)

  it("is not changed by what becomes of the list later", function()
    local list = { Busy }
    local matches = matcher.compile(list)
    list[1] = "timeout"
    assert.is_true(matches(Busy "x"))
    assert.is_false(matches("timeout"))
  end)

  it("compiled once may be compiled again", function()
    local matches = matcher.compile(Refused)
    assert.equal(matches, matcher.compile(matches))
  end)

  it("by default matches everything", function()
    assert.is_true(matcher.any(nil))
    assert.is_true(matcher.any(Refused "x"))
  end)
end)

describe("what is no matcher", function()
  local allowed = "an error class, a Lua pattern, a predicate, or a list of these that is not empty"

  it("is refused with its path", function()
    for _, bad in ipairs { 5, true, false, {}, io.stdout } do
      local err = refused(bad)
      assert.equal("config.retry_on", err.path)
      assert.equal(allowed, err.allowed)
      assert.equal(bad, err.value)
    end
    assert.equal("matcher: expected " .. allowed .. ", got nil",
      select(2, pcall(matcher.compile, nil)).message)
  end)

  it("is refused inside a list, a hole there too", function()
    assert.equal("config.retry_on[2]", refused({ Refused, 5 }).path)
    assert.equal("config.retry_on[1]", refused({ nil, Refused }).path)
    assert.equal("config.retry_on[2][1]", refused({ Refused, { {} } }).path)
    assert.equal("config.retry_on.class", refused({ Refused, class = Busy }).path)
  end)

  it("is a list that contains itself", function()
    local list = {}
    list[1] = list
    assert.equal(allowed, refused(list).allowed)
  end)

  it("is an error object where its class is meant", function()
    assert.equal(allowed, refused(Refused "x").allowed)
  end)
end)

describe("a pattern", function()
  local malformed = {
    "%", "a%", "[", "[]", "[^]", "[a", "[a%]", "(", "a(b", ")", "(a))", "%b", "%bx", "%f", "%fa",
    "%1", "%0", "(a%1)", "(a(b)%1)", "((a)%2)%3", ("(x)"):rep(33),
  }

  it("that is malformed is refused when it is given, not when an error comes", function()
    for _, pattern in ipairs(malformed) do
      local err = refused(pattern)
      assert.equal("a well-formed Lua pattern", err.allowed)
      assert.equal(pattern, err.value)
    end
  end)

  local sound = {
    "", "a", "^a$", "%%", "%a+", "[]]", "[^]]", "[%]]", "[a-z%-]*", "%b()", "%f[%w]%w+", "(a)%1",
    "()", "((a)(b))%1%2%3", "((a)%2)", "a-b?", "[(]", "%(", "%)", "$", "^", ("(x)"):rep(32),
  }

  it("that is sound is taken", function()
    for _, pattern in ipairs(sound) do
      assert.is_function(matcher.compile(pattern), pattern)
    end
  end)

  it("is judged as string.find judges it", function()
    -- string.find sees a fault only on the way to it, so it may miss one, never invent one.
    local letters = { "a", "%", "[", "]", "^", "(", ")", "b", "f", "1", "-", "x" }
    local faults, agreed = 0, 0
    local subject = ("axb1-"):rep(4)
    local state = 1
    for _ = 1, 2000 do
      local pattern = {}
      for i = 1, 6 do
        state = (state * 1103515245 + 12345) % 2147483648
        pattern[i] = letters[state // 65536 % #letters + 1]
      end
      pattern = table.concat(pattern)
      local ours = pcall(matcher.compile, pattern)
      local theirs = pcall(string.find, subject, pattern)
      if not theirs then
        faults = faults + 1
        agreed = agreed + (ours and 0 or 1)
      end
    end
    assert.is_true(faults > 500)
    assert.equal(faults, agreed)
  end)
end)
