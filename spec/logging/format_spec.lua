-- What lines look like: the formats text, plain, logfmt and json.

local log_support = require "spec.logging.support"
local opero = require "opero"
local runtime_support = require "spec.runtime.support"
local support = require "spec.support"
local values = require "spec.fuzz.values"

local FORMATS <const> = { "text", "plain", "logfmt", "json" }

-- A function that decodes JSON, with `null` for null; nil where no module is installed that can.
local null = setmetatable({}, { __name = "null" })
local function decoder()
  local ok, json = pcall(require, "cjson")
  if ok then
    null = json.null
    return json.decode
  end
  ok, json = pcall(require, "dkjson")
  return ok and function(text)
    local value, _, err = json.decode(text, 1, null)
    return err and error(err) or value
  end or nil
end

-- The text with U+FFFD for each byte that is no UTF-8.
local function to_utf8(text)
  local parts, at = {}, 1
  while at <= #text do
    local length = utf8.len(text, at, at) and #utf8.char(utf8.codepoint(text, at)) or 0
    parts[#parts + 1] = length == 0 and "\u{fffd}" or text:sub(at, at + length - 1)
    at = at + math.max(length, 1)
  end
  return table.concat(parts)
end

describe("lines", function()
  local records, log, format

  local function configure(options)
    format = options.format
    records = log_support.record(options)
  end

  before_each(function()
    log = opero.get_logger "app"
  end)

  after_each(log_support.restore)

  -- The line of what the logger is told, or of what is told to another one.
  local function line_of(...)
    log:info(...)
    return records[#records].line
  end

  -- What follows the message in a line of this format.
  local function fields_of(fields)
    local line = line_of("m", fields)
    if format == "json" then
      return assert(line:match('"message":"m",(.*)}$'), line)
    elseif format == "logfmt" then
      return assert(line:match(" msg=m (.*)$"), line)
    end
    return assert(line:match("app: m  (.*)$"), line)
  end

  describe("are one to a record:", function()
    -- In a simulation, so that the time is known.
    local function at_one(...)
      local arguments = table.pack(...)
      opero.simulate(function()
        opero.sleep(1.25)
        log:warning(table.unpack(arguments, 1, arguments.n))
      end)
      return records[#records].line
    end

    local fields <const> = { url = "/a b", size = 3, ok = true, list = { 1, "x" } }

    it("text", function()
      configure { format = "text" }
      assert.equal('1970-01-01T00:00:01.250000Z WARNING  app: fetched 3 bytes  list=[1,"x"] '
        .. 'ok=true size=3 url="/a b"', at_one("fetched %d bytes", 3, fields))
      assert.equal("1970-01-01T00:00:01.250000Z WARNING  app: m", at_one("m"))
    end)

    it("plain", function()
      configure { format = "plain" }
      assert.equal('app: fetched 3 bytes  list=[1,"x"] ok=true size=3 url="/a b"',
        at_one("fetched %d bytes", 3, fields))
      assert.equal("app: m", at_one("m"))
    end)

    it("logfmt", function()
      configure { format = "logfmt" }
      assert.equal('time=1970-01-01T00:00:01.250000Z level=warning logger=app '
        .. 'msg="fetched 3 bytes" list="[1,\\"x\\"]" ok=true size=3 url="/a b"',
        at_one("fetched %d bytes", 3, fields))
      assert.equal("time=1970-01-01T00:00:01.250000Z level=warning logger=app msg=m",
        at_one("m"))
    end)

    it("json", function()
      configure { format = "json" }
      assert.equal('{"time":"1970-01-01T00:00:01.250000Z","level":"warning","logger":"app",'
        .. '"message":"fetched 3 bytes","list":[1,"x"],"ok":true,"size":3,"url":"/a b"}',
        at_one("fetched %d bytes", 3, fields))
      assert.equal('{"time":"1970-01-01T00:00:01.250000Z","level":"warning","logger":"app",'
        .. '"message":"m"}', at_one("m"))
    end)

    it("text unless it is said otherwise", function()
      configure {}
      assert.equal("1970-01-01T00:00:01.250000Z WARNING  app: m", at_one("m"))
    end)

    it("text has the levels in columns", function()
      configure { format = "text", level = "debug" }
      opero.simulate(function()
        for _, level in ipairs { "debug", "info", "warning", "error", "critical" } do
          log:log(level, "m")
        end
      end)
      local lines = {}
      for i, record in ipairs(records) do
        lines[i] = record.line:match("Z (.*)$")
      end
      assert.same({
        "DEBUG    app: m", "INFO     app: m", "WARNING  app: m", "ERROR    app: m",
        "CRITICAL app: m",
      }, lines)
    end)

    it("what a function is given has no line end, nor has a file's line more than one", function()
      for _, name in ipairs(FORMATS) do
        local path = os.tmpname()
        finally(function() os.remove(path) end)
        local lines = {}
        opero.configure_logging { format = name, sinks = {
          { output = function(line) lines[#lines + 1] = line end }, { output = { file = path } },
        } }
        log:info("one", { a = 1 })
        log:info("two\n")
        local file <close> = assert(io.open(path))
        assert.equal(table.concat(lines, "\n") .. "\n", file:read("a"))
        os.remove(path)
      end
    end)
  end)

  describe("have times", function()
    it("as RFC 3339 has them, in UTC, with microseconds", function()
      for _, name in ipairs { "text", "logfmt", "json" } do
        configure { format = name }
        local from = os.time()
        local line = line_of("m")
        local to = os.time() + 1 -- its clock may be some milliseconds slow
        local whole, fraction = line:match("(%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d)%.(%d+)Z")
        assert.is_string(whole, line)
        assert.equal(6, #fraction)
        assert.is_true(whole >= os.date("!%Y-%m-%dT%H:%M:%S", from))
        assert.is_true(whole <= os.date("!%Y-%m-%dT%H:%M:%S", to))
        local time = records[1].time
        assert.equal(os.date("!%Y-%m-%dT%H:%M:%S", time // 1 | 0), whole)
        assert.near(tonumber("0." .. fraction), time % 1, 2e-6)
      end
    end)

    it("of the virtual clock in a simulation", function()
      configure { format = "text" }
      opero.simulate(function()
        for _, seconds in ipairs {
          0, 0.000001, 59.999998, 1, 86400 - 61, 58 * 86400, 86400 * 365, 86400 * 10957,
        } do
          opero.sleep(seconds)
          log:info("m")
          assert.near(opero.now(), records[#records].time, 1e-6)
        end
      end)
      local times = {}
      for i, record in ipairs(records) do
        times[i] = record.line:match("^%S+")
      end
      assert.same({
        "1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000001Z",
        "1970-01-01T00:00:59.999999Z", "1970-01-01T00:01:00.999999Z",
        "1970-01-01T23:59:59.999999Z", "1970-02-28T23:59:59.999999Z",
        "1971-02-28T23:59:59.999999Z", "2001-02-27T23:59:59.999999Z",
      }, times)
      assert.not_matches("^1970", line_of("m"))
    end)

    it("with the right date on every day", function()
      configure { format = "plain" }
      local dates = {}
      opero.configure_logging { format = "logfmt", output = function(line)
        dates[#dates + 1] = line:match("^time=(%d+%-%d+%-%d+)T00:00:00%.000000Z ")
      end }
      local day = 0
      opero.simulate(function()
        while day < 366 * 140 do -- to 2110, and so over 2000, and 2100, which is no leap year
          log:info("m")
          local days = day % 400 < 60 and 1 or 17
          opero.sleep(days * 86400)
          day = day + days
          assert.equal(os.date("!%Y-%m-%d", day * 86400 - days * 86400), dates[#dates])
        end
      end)
    end)
  end)

  describe("are one, in valid UTF-8, whatever is logged:", function()
    local nasty <const> = {
      "a\nb", "a\r\nb", "\r", "\n", "\0", "a\0b", "\27[31mred\27[0m", "\27]0;title\7",
      "\t", "\b\f\v", "\127", "\u{80}", "\u{85}", "\u{9b}31m", "\u{2028}", "\u{2029}",
      "\u{202e}evil", "\u{202a}",
      "\u{2066}", "\u{2069}", "\u{200e}", "\u{200f}", "\u{61c}", "\u{feff}", "\xff", "\xfe\xff",
      "\xc3", "é\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
      "\x80\x80", "\xf8\x88\x80\x80\x80", "2026-01-01 ERROR forged", '"', "\\", "=", " ", "a=b c=d",
      '","level":"error', "{}", "']]", "%s%n", "é", "€", "😀", "日本", "",
    }

    local harmful <const> = {
      "[%z\1-\31\127]", "\xc2[\x80-\x9f]", -- controls
      "\xe2\x80[\xa8\xa9]", -- separators of lines and paragraphs
      "\xd8\x9c", "\xe2\x80[\x8e\x8f\xaa-\xae]", "\xe2\x81[\xa6-\xa9]", "\xef\xbb\xbf",
    }

    local function check(line)
      local is_harmless = utf8.len(line)
      for _, pattern in ipairs(harmful) do
        is_harmless = is_harmless and not line:find(pattern)
      end
      if not is_harmless then
        error(("this line does harm: %q"):format(line), 2)
      end
    end

    for _, name in ipairs(FORMATS) do
      it(name, function()
        configure { format = name }
        local adapter = opero.ContextAdapter(log, { ["adapter\n"] = "\n\27" })
        for _, text in ipairs(nasty) do
          for _, fields in ipairs {
            {}, { a = text }, { [text] = 1 }, { a = { text } }, { a = { [text] = { text } } },
            { [text] = { [text] = text } },
          } do
            check(line_of(text, fields))
            check(line_of("%s", { text, [text] = fields }))
            adapter:info("%s", text, fields)
            check(records[#records].line)
          end
          if text ~= "" and not text:find("%c") then
            opero.get_logger("app." .. text):info("m")
            check(records[#records].line)
          end
        end
      end)

      it(name .. ", bytes at random", function()
        configure { format = name }
        local int = values.generator(1).int
        for _ = 1, 300 do
          local bytes = {}
          for i = 1, int(1, 40) do
            bytes[i] = string.char(int(1, 3) == 1 and int(0, 127) or int(128, 255))
          end
          local text = table.concat(bytes)
          check(line_of(text, { a = text, [text] = { [text] = text } }))
        end
      end)
    end

    it("with escapes for what must not stand in it", function()
      local shown <const> = { -- in text, plain and logfmt; in json
        { "a\nb\r\t", "a\\nb\\r\\t", "a\\nb\\r\\t" },
        { "\0\1\27[1m", "\\x00\\x01\\x1b[1m", "\\u0000\\u0001\\u001b[1m" },
        { "\b\f", "\\x08\\x0c", "\\b\\f" },
        { "\127\u{85}", "\\x7f\\x85", "\\u007f\\u0085" },
        { "\u{2028}\u{202e}", "\\u2028\\u202e", "\\u2028\\u202e" },
        { "\xff\xc3", "\\xff\\xc3", "\\ufffd\\ufffd" },
        { "é 日本 😀", "é 日本 😀", "é 日本 😀" },
      }
      for _, case in ipairs(shown) do
        configure { format = "plain" }
        assert.equal("app: " .. case[2], line_of(case[1]))
        assert.equal(('a="x %s"'):format(case[2]), fields_of { a = "x " .. case[1] })
        configure { format = "text" }
        assert.equal("app: " .. case[2], line_of(case[1]):match("INFO     (.*)$"))
        configure { format = "logfmt" }
        assert.equal(('a="x %s"'):format(case[3]), fields_of { a = "x " .. case[1] })
        assert.matches(('msg="x %s"'):format(case[3]), line_of("x " .. case[1]), 1, true)
        configure { format = "json" }
        assert.equal(('"a":"x %s"'):format(case[3]), fields_of { a = "x " .. case[1] })
        assert.matches(('"message":"x %s"'):format(case[3]), line_of("x " .. case[1]), 1, true)
      end
    end)

    it("with a mark for each byte that is no UTF-8, of sequences that are too long, too", function()
      configure { format = "json" }
      for _, bytes in ipairs {
        "\x80", "\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "\xc3", "\xe2\x82", "\xf0\x9f\x98", "\xff\xfe",
      } do
        assert.equal(('"a":"<%s>"'):format(("\\ufffd"):rep(#bytes)),
          fields_of { a = "<" .. bytes .. ">" })
      end
      assert.equal('"a":"\\ufffdé\\ufffda"', fields_of { a = "\xc3é\xc3a" })
      assert.equal('"a":"\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}"',
        fields_of { a = "\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}" })
    end)
  end)

  describe("have fields", function()
    it("in the order of their names, whatever the order they were given in", function()
      local names = { "a", "a.b", "a_", "aa", "b", "B", "z", "é", "10", "9" }
      local expected = {}
      for i, name in ipairs(names) do
        expected[i] = name .. "=1"
      end
      table.sort(expected, function(x, y)
        return x:match("^[^=]*") < y:match("^[^=]*")
      end)
      configure { format = "plain" }
      for shift = 1, #names do
        local fields = {}
        for i = 1, #names do
          fields[names[(i + shift) % #names + 1]] = 1
        end
        assert.equal(table.concat(expected, " "), fields_of(fields))
        assert.equal("map={" .. table.concat(expected, ","):gsub("([^=,]+)=", '"%1":') .. "}",
          fields_of { map = fields })
      end
    end)

    it("of the context, then of the adapter, then the record's", function()
      for name, expected in pairs {
        plain = "app: m  a=1 z=2 b=3 y=4 c=5 x=6",
        json = '"a":1,"z":2,"b":3,"y":4,"c":5,"x":6}',
      } do
        configure { format = name }
        local adapter = opero.ContextAdapter(log, { y = 4, b = 3 })
        opero.log_context(log, { z = 2, a = 1 }, function()
          adapter:info("m", { x = 6, c = 5 })
        end)
        local line = records[1].line
        assert.equal(expected, line:sub(-#expected))
      end
    end)

    it("of which of several of one name the last counts, in its place", function()
      configure { format = "plain" }
      local adapter = opero.ContextAdapter(log, { a = "adapter", b = "adapter", d = "adapter" })
      opero.log_context(log, { a = "context", b = "context", c = "context" }, function()
        for _ = 1, 2 do
          adapter:info("m", { a = "record" })
          adapter:info("m")
          log:info("m")
        end
      end)
      for i = 0, 3, 3 do
        assert.equal("app: m  c=context b=adapter d=adapter a=record", records[i + 1].line)
        assert.equal("app: m  c=context a=adapter b=adapter d=adapter", records[i + 2].line)
        assert.equal("app: m  a=context b=context c=context", records[i + 3].line)
      end
    end)

    it("of the context the same for sinks of several formats", function()
      local path = os.tmpname()
      finally(function() os.remove(path) end)
      local expected, sinks = {}, {}
      for i, case in ipairs {
        { "plain", "m  a=[\"x\"] pw=***" }, { "json", 'm","a":["x"],"pw":"***"}' },
        { "logfmt", 'm a="[\\"x\\"]" pw=***' }, { "plain", "m  a=[\"x\"] pw=***" },
        { "text", "m  a=[\"x\"] pw=***" },
      } do
        sinks[i] = { output = { file = path }, format = case[1] }
        expected[i], expected[i + 5] = case[2], case[2]
      end
      opero.configure_logging { redact = { "pw" }, sinks = sinks }
      opero.log_context(log, { a = { "x" }, pw = 2 }, function()
        log:info("m")
        log:info("m")
      end)
      local shown = {}
      for line in io.lines(path) do
        shown[#shown + 1] = line:match('m[" ].*$')
      end
      assert.same(expected, shown)
    end)

    local RESERVED <const> = { "level", "logger", "message", "msg", "time" }

    it("that have the names of the record's own parts as fields.NAME", function()
      local fields = { ["fields.x"] = 1, ["fields."] = 2, fields = 3, pid = 4, Level = 5 }
      for _, name in ipairs(RESERVED) do
        fields[name] = "mine"
      end
      configure { format = "plain" }
      local plain = "Level=5 fields=3 fields.fields.=2 fields.fields.x=1 fields.level=mine "
        .. "fields.logger=mine fields.message=mine fields.msg=mine pid=4 fields.time=mine"
      assert.equal(plain, fields_of(fields))
      assert.same(fields, records[1].fields)
      configure { format = "text" }
      assert.equal(plain, fields_of(fields))
      configure { format = "logfmt" }
      assert.equal(plain, fields_of(fields))
      configure { format = "json" }
      assert.equal('{"' .. plain:gsub("mine", '"mine"'):gsub(" ", ',"'):gsub("=", '":') .. "}",
        "{" .. fields_of(fields) .. "}")
    end)

    it("with these names within others as they are", function()
      configure { format = "json" }
      assert.equal('"map":{"fields.x":1,"level":2,"time":3}',
        fields_of { map = { level = 2, time = 3, ["fields.x"] = 1 } })
    end)

    it("whose names in text, plain and logfmt are words", function()
      for _, name in ipairs { "text", "plain", "logfmt" } do
        configure { format = name }
        assert.equal("a_b=1", fields_of { ["a b"] = 1 })
        assert.equal("a_b=1", fields_of { ["a=b"] = 1 })
        assert.equal("a_b_=1", fields_of { ['a"b\\'] = 1 })
        assert.equal("_=1", fields_of { [""] = 1 })
        assert.equal("__x=1", fields_of { ["\n\xffx"] = 1 })
        assert.equal("é.日-本=1", fields_of { ["é.日-本"] = 1 })
      end
      configure { format = "json" }
      assert.equal('"":1', fields_of { [""] = 1 })
      assert.equal('"a\\"b\\\\=":1', fields_of { ['a"b\\='] = 1 })
    end)

    it("whose values in text, plain and logfmt have quotes when they need them", function()
      for _, name in ipairs { "text", "plain", "logfmt" } do
        configure { format = name }
        for _, word in ipairs { "a", "/a/b?c", "é", "a,b", "[1]", "true", "5", "'", "😀" } do
          assert.equal("a=" .. word, fields_of { a = word })
        end
        for _, case in ipairs {
          { "", '""' }, { " ", '" "' }, { "a=b", '"a=b"' }, { 'a"b', '"a\\"b"' },
          { "a\\b", '"a\\\\b"' }, { "a\nb", '"a\\nb"' },
        } do
          assert.equal("a=" .. case[2], fields_of { a = case[1] })
        end
      end
    end)
  end)

  describe("show numbers", function()
    it("that are whole as integers or as floats, as they are", function()
      for _, name in ipairs(FORMATS) do
        configure { format = name }
        for _, case in ipairs {
          { 0, "0" }, { -1, "-1" }, { math.maxinteger, "9223372036854775807" },
          { math.mininteger, "-9223372036854775808" }, { 1.0, "1.0" }, { -0.0, "-0.0" },
          { 0.1, "0.1" }, { 2 ^ 53, "9007199254740992.0" }, { 1e300, "1e+300" },
          { 5e-324, "4.94065645841247e-324" }, { 1 / 3, "0.3333333333333333" },
          { -123456.75, "-123456.75" },
        } do
          local shown = fields_of { a = case[1] }
          assert.equal(case[2], shown:match("[=:](.*)$"))
        end
      end
    end)

    it("so that they can be read back, whichever they are", function()
      local int = values.generator(7).int
      configure { format = "json" }
      for _ = 1, 2000 do
        local value = int(1, 4) == 1 and int(math.mininteger >> 1 | math.mininteger, -1)
          or string.unpack("n", string.pack("i4i4", int(-2 ^ 31 | 0, 2 ^ 31 - 1 | 0),
            int(-2 ^ 31 | 0, 2 ^ 31 - 1 | 0)))
        if value == value and value ~= 1 / 0 and value ~= -1 / 0 then
          local back = tonumber(fields_of({ a = value }):match(":(.*)$"))
          assert.equal(value, back)
          assert.equal(math.type(value), math.type(back))
        end
      end
    end)

    it("that JSON has none of as strings", function()
      local fields = { a = 0 / 0, b = 1 / 0, c = -1 / 0, d = { 0 / 0, { x = 1 / 0 } } }
      configure { format = "json" }
      assert.equal('"a":"NaN","b":"Infinity","c":"-Infinity","d":["NaN",{"x":"Infinity"}]',
        fields_of(fields))
      configure { format = "logfmt" }
      assert.equal(
        'a=NaN b=Infinity c=-Infinity d="[\\"NaN\\",{\\"x\\":\\"Infinity\\"}]"',
        fields_of(fields))
      for _, name in ipairs { "text", "plain" } do
        configure { format = name }
        assert.equal('a=NaN b=Infinity c=-Infinity d=["NaN",{"x":"Infinity"}]',
          fields_of(fields))
      end
      local given = records[1].fields
      assert.is_true(given.a ~= given.a)
      assert.equal(1 / 0, given.b)
      assert.equal(-1 / 0, given.c)
    end)

    it("with a point, whatever the locale", function()
      local before = os.setlocale(nil, "numeric")
      finally(function() os.setlocale(before, "numeric") end)
      for _, locale in ipairs { "de_DE.UTF-8", "fr_FR.UTF-8", "de_DE", "C" } do
        if os.setlocale(locale, "numeric") then
          configure { format = "json" }
          assert.equal('"a":1.5', fields_of { a = 1.5 })
          assert.equal("1.5 1.0", line_of("%s %s", 1.5, 1.0):match('"message":"(.-)"'))
        end
      end
    end)
  end)

  describe("of json", function()
    local decode = decoder()

    -- Whether the decoded value is what was logged, with what JSON cannot tell apart.
    local function is_back(given, back)
      if type(given) == "number" and given ~= given then
        return back == "NaN"
      elseif given == 1 / 0 or given == -1 / 0 then
        return back == (given > 0 and "Infinity" or "-Infinity")
      elseif type(given) == "number" then
        return type(back) == "number" and given + 0.0 == back + 0.0
      elseif type(given) == "string" then
        return back == to_utf8(given)
      elseif type(given) ~= "table" then
        return back == given
      elseif type(back) ~= "table" then
        return false
      end
      local count = 0
      for key, value in pairs(given) do
        count = count + 1
        local name = type(key) == "string" and to_utf8(key) or #given == 0 and tostring(key) or key
        if not is_back(value, back[name]) then
          return false
        end
      end
      for _ in pairs(back) do
        count = count - 1
      end
      return count == 0
    end

    -- A value whose names do not fall together: no invalid UTF-8 in them, no numbers for names.
    local function any_value(int, depth)
      local choice = int(1, depth > 0 and 10 or 7)
      if choice == 1 then
        return int(0, 1) == 1
      elseif choice == 2 then
        return int(-1000, 1000)
      elseif choice == 3 then
        return ({ 0.5, -0.0, 1e300, 0 / 0, 1 / 0, -1 / 0, 2 ^ 60, 1e-9 })[int(1, 8)]
      elseif choice <= 7 then
        local bytes = {}
        for i = 1, int(0, int(1, 20) == 1 and 2000 or 12) do
          bytes[i] = int(1, 6) > 1 and string.char(int(0, 255)) or utf8.char(int(0, 0xd7ff))
        end
        return table.concat(bytes)
      end
      local result = {}
      for i = 1, int(0, 6) do
        local key = choice == 8 and i or utf8.char(int(0, 0x2fff)) .. i
        result[key] = any_value(int, depth - 1)
      end
      return result
    end

    it("decode to what was logged", function()
      if not decode then
        pending("neither lua-cjson nor dkjson is installed")
        return
      end
      configure { format = "json" }
      local int = values.generator(3).int
      for i = 1, 400 do
        local fields = { list = { 1 } }
        for n = 1, int(0, 5) do
          fields["n" .. n] = any_value(int, int(0, 4))
        end
        local message = any_value(int, 0)
        log:info("%s", message, fields)
        local line = records[i].line
        local back = decode(line)
        local own = {}
        for _, part in ipairs { "time", "level", "logger", "message" } do
          own[part], back[part] = back[part], nil
        end
        if not is_back(fields, back) then
          assert.same({ line = line, fields = fields }, back)
        end
        assert.equal("info", own.level)
        assert.equal("app", own.logger)
        assert.matches("^%d+%-%d+%-%d+T%d+:%d+:%d+%.%d+Z$", own.time)
        assert.equal(to_utf8(records[i].message), own.message)
        assert.is_true(type(message) ~= "string" or own.message == to_utf8(message))
      end
    end)

    it("decode where the bounds of records are", function()
      if not decode then
        pending("neither lua-cjson nor dkjson is installed")
        return
      end
      configure { format = "json" }
      local deep = { "bottom" }
      for _ = 1, 20 do
        deep = { deep, { x = deep } }
      end
      deep.self = deep
      local wide = {}
      for i = 1, 300 do
        wide[i] = ("\xff\n\"" .. i):rep(100)
      end
      for _, fields in ipairs {
        { a = deep }, { a = wide }, wide, { a = ("é"):rep(9000) }, { [("\n"):rep(300)] = {} },
        { a = print, b = io.stdout, c = opero.errors.OperoError "x" },
        { a = { [true] = 1, [1.5] = 2, [print] = 3 } },
      } do
        assert.is_table(decode(line_of("%s", fields, fields)))
        assert.is_table(decode(line_of(("\xf0\x9f\x98\x80"):rep(5000), fields)))
      end
      assert.equal(null, decode(line_of("m", { a = { 1, nil, 3 } })).a[2])
    end)
  end)

  describe("of logfmt", function()
    -- The pairs of a line; what is quoted has JSON's escapes.
    local function parse(line)
      local pairs_of, at = {}, 1
      local short = { n = "\n", r = "\r", t = "\t", b = "\b", f = "\f" }
      while at <= #line do
        local name, from = line:match('^([^ ="]+)=()', at)
        assert(name, line:sub(at))
        local value, to
        if line:sub(from, from) == '"' then
          to = from + 1
          while line:sub(to, to) ~= '"' do
            to = to + (line:sub(to, to) == "\\" and 2 or 1)
            assert(to <= #line, line)
          end
          value = line:sub(from + 1, to - 1)
            :gsub("\\u(%x%x%x%x)", function(code)
              return code == "005c" and "\\u005c" or utf8.char(tonumber(code, 16))
            end)
            :gsub("\\(.)", function(letter) return short[letter] or letter end)
          to = to + 1
        else
          value, to = line:match("^([^ ]*)()", from)
        end
        assert(line:sub(to, to) == " " or to == #line + 1, line)
        pairs_of[#pairs_of + 1] = { name, value }
        at = to + 1
      end
      return pairs_of
    end

    it("can be taken apart again", function()
      configure { format = "logfmt" }
      local int = values.generator(11).int
      for i = 1, 500 do
        local texts = {}
        for n = 1, 3 do
          local parts = {}
          for k = 1, int(0, 12) do
            local choice = int(1, 3)
            parts[k] = choice == 1 and utf8.char(int(0, 0x2fff)) or choice == 2 and "x"
              or ({ " ", '"', "=", "\n", "\xff", "," })[int(1, 6)]
          end
          texts[n] = table.concat(parts)
        end
        log:info("%s", texts[1], { a = texts[2], b = { 5 }, c = texts[3] })
        local parsed = parse(records[i].line)
        assert.equal("time", parsed[1][1])
        table.remove(parsed, 1)
        assert.same({
          { "level", "info" }, { "logger", "app" }, { "msg", to_utf8(texts[1]) },
          { "a", to_utf8(texts[2]) }, { "b", "[5]" }, { "c", to_utf8(texts[3]) },
        }, parsed)
      end
    end)
  end)

  describe("hide what is to be redacted", function()
    it("at any depth, in upper or lower case, in every format", function()
      local user = { name = "ann", password = "secret", Token = { "secret", a = "secret" } }
      local fields = {
        PASSWORD = "secret", passwords = "shown", pass = "shown", list = { user, { user } },
        user = user, token = "secret",
      }
      local masked = { name = "ann", password = "***", Token = "***" }
      local json = '{"Token":"***","name":"ann","password":"***"}'
      for _, name in ipairs(FORMATS) do
        configure { format = name, redact = { "password", "TOKEN" } }
        local line = line_of("m", fields)
        assert.not_matches("secret", line)
        assert.matches("***", line, 1, true)
        assert.matches("ann", line)
        assert.same({
          PASSWORD = "***", passwords = "shown", pass = "shown", list = { masked, { masked } },
          user = masked, token = "***",
        }, records[1].fields)
      end
      configure { format = "plain", redact = { "password", "TOKEN" } }
      assert.equal(("PASSWORD=*** list=[%s,[%s]] pass=shown passwords=shown token=*** user=%s")
        :format(json, json, json), fields_of(fields))
      configure { format = "json", redact = { "password", "TOKEN" } }
      assert.equal('"a":1,"password":"***"', fields_of { a = 1, password = { x = 1 } })
    end)

    it("in tables in messages", function()
      configure { format = "plain", redact = { "password" } }
      local user = { a = 1, Password = "secret" }
      for _, arguments in ipairs {
        { "%s", user }, { "m", user, 1 }, { user }, { "%d", user }, { "%s", { { x = user } } },
        { "%40s", user }, { "%-99s", { user } },
      } do
        log:info(table.unpack(arguments))
        assert.not_matches("secret", records[#records].line)
        assert.not_matches("secret", records[#records].message)
      end
      assert.equal('app: {"Password":"***","a":1}', line_of("%s", user))
    end)

    it("in the context, the adapter's fields, and those of reserved names", function()
      for _, name in ipairs(FORMATS) do
        configure { format = name, redact = { "password", "time", "message" } }
        local adapter = opero.ContextAdapter(log, { PassWord = "secret" })
        opero.log_context(log, { password = "secret", user = { password = "secret" } }, function()
          adapter:info("said", { time = "secret", message = "secret" })
          log:info("said")
        end)
        for _, record in ipairs(records) do
          assert.not_matches("secret", record.line)
          assert.matches("said", record.line)
          assert.equal("said", record.message)
          assert.equal("***", record.fields.password)
          assert.equal("***", record.fields.user.password)
        end
        assert.same({ time = "***", message = "***", PassWord = "***", password = "***",
          user = { password = "***" } }, records[1].fields)
      end
    end)

    it("from the next record on, and no longer than it is configured", function()
      local adapter = opero.ContextAdapter(log, { b = 2 })
      opero.log_context(log, { a = 1 }, function()
        for _, case in ipairs {
          { {}, "a=1 b=2 c=3" }, { { "a" }, "a=*** b=2 c=3" }, { { "b", "C" }, "a=1 b=*** c=***" },
          { {}, "a=1 b=2 c=3" },
        } do
          configure { format = "plain", redact = case[1] }
          for _ = 1, 2 do
            adapter:info("m", { c = 3 })
            assert.equal("app: m  " .. case[2], records[#records].line)
          end
        end
      end)
    end)

    it("and refuse what is no name", function()
      configure { format = "plain" }
      for path, given in pairs {
        ["configure_logging.redact"] = "password",
        ["configure_logging.redact[1]"] = { 5 },
        ["configure_logging.redact[2]"] = { "a", "" },
        ["configure_logging.redact.a"] = { a = "b" },
      } do
        assert.equal(path, support.refused(opero.configure_logging, { redact = given }).path)
      end
      assert.equal("app: m  a=1", line_of("m", { a = 1 }))
    end)
  end)

  describe("have colours", function()
    local program <const> = [[
      local opero = require "opero"
      %s
      local log = opero.get_logger "app"
      log:info("m", { a = 1 })
      log:error "m"
    ]]

    -- What a program that logs writes to a terminal, without the times.
    local function on_terminal(environment, configuration)
      local first = 0
      while arg[first - 1] do
        first = first - 1
      end
      local path = os.tmpname()
      local _ <close> = runtime_support.closing(function() os.remove(path) end)
      do
        local file <close> = assert(io.open(path, "w"))
        file:write(program:format(configuration or ""))
      end
      -- Sanitizers are for the interpreter alone.
      local pipe <close> = assert(io.popen(([[
        export TERM=xterm preload="$LD_PRELOAD"
        unset NO_COLOR LD_PRELOAD
        env %s script -qec 'LD_PRELOAD="$preload" %s %s' /dev/null </dev/null 2>&1
      ]]):format(environment or "", arg[first], path)))
      return (pipe:read("a"):gsub("\r", ""):gsub("%d%d%d%d%-%d%d%-%d%dT[%d:.]+Z", "TIME"))
    end

    local plain <const> = "TIME INFO     app: m  a=1\nTIME ERROR    app: m\n"
    local coloured <const> = "TIME \27[32mINFO\27[0m     app: m  \27[2ma=\27[0m1\n"
      .. "TIME \27[31mERROR\27[0m    app: m\n"

    local has_script = os.execute("command -v script >/dev/null 2>&1")

    local function each(cases)
      if not has_script then
        pending("there is no program called script")
        return
      end
      for _, case in ipairs(cases) do
        assert.equal(case[3], on_terminal(case[1], case[2]))
      end
    end

    it("on a terminal, in text alone", function()
      each {
        { "", nil, coloured },
        { "", 'opero.configure_logging { output = "stdout" }', coloured },
        { "", 'opero.configure_logging { format = "plain" }', "app: m  a=1\napp: m\n" },
        { "", 'opero.configure_logging { format = "logfmt" }',
          "time=TIME level=info logger=app msg=m a=1\ntime=TIME level=error logger=app msg=m\n" },
        { "", 'opero.configure_logging { output = { file = "/dev/tty" } }', coloured },
        { "", "opero.configure_logging { output = function(line) print(line) end }", plain },
      }
    end)

    it("unless NO_COLOR is set, or the terminal is dumb", function()
      each {
        { "NO_COLOR=1", nil, plain },
        { "NO_COLOR=", nil, coloured },
        { "TERM=dumb", nil, plain },
        { "TERM=dumb", 'opero.configure_logging { output = "stdout" }', plain },
      }
    end)

    it("nowhere else", function()
      local outcome = runtime_support.run_program(program:format ""
        .. 'opero.configure_logging { output = "stdout" } log:critical "m"',
        "env -u NO_COLOR TERM=xterm")
      assert.equal(0, outcome.code)
      assert.not_matches("\27", outcome.out .. outcome.err, 1, true)
      assert.matches("INFO     app: m  a=1\n", outcome.err)
      assert.matches("CRITICAL app: m\n", outcome.out)
    end)
  end)
end)
