--- Matchers say which errors a policy is for.
--
-- A matcher is an error class, a Lua pattern for errors that are strings, a predicate, or a list of
-- these. It is compiled once, where the option is checked, to a plain predicate.

local check = require "opero.check"
local errors = require "opero.errors"

---@alias opero.Matcher opero.ErrorClass|string|(fun(err: any): any)|opero.Matcher[]

local matcher = {}

local ALLOWED <const> =
  "an error class, a Lua pattern, a predicate, or a list of these that is not empty"

-- Lists in lists, deeper than anyone writes them: one of them contains itself.
local MAX_DEPTH <const> = 32

local MAX_CAPTURES <const> = 32 -- Lua's own limit

-- Where the set that begins behind the "[" at `i` ends, or nil for one that does not.
local function after_set(pattern, i)
  if pattern:sub(i, i) == "^" then
    i = i + 1
  end
  repeat
    if i > #pattern then
      return nil
    elseif pattern:sub(i, i) == "%" then
      i = i + 1
    end
    i = i + 1
  until pattern:sub(i, i) == "]"
  return i + 1
end

-- string.find notices a malformed item only when the matching gets that far, which would be while
-- an error is being handled. So the pattern is read through here.
local function is_pattern(pattern)
  local i, opened, open, closed = 1, 0, {}, {}
  while i <= #pattern do
    local item, following = pattern:sub(i, i), pattern:sub(i + 1, i + 1)
    if item == "%" then
      if following == "" or following == "b" and i + 3 > #pattern then
        return false
      elseif following == "b" then
        i = i + 4
      elseif following == "f" then
        if pattern:sub(i + 2, i + 2) ~= "[" then
          return false
        end
        i = i + 2
      elseif following:find("%d") then
        if not closed[tonumber(following)] then
          return false
        end
        i = i + 2
      else
        i = i + 2
      end
    elseif item == "[" then
      i = after_set(pattern, i + 1)
      if not i then
        return false
      end
    else
      if item == "(" then
        opened = opened + 1
        open[#open + 1] = opened
      elseif item == ")" then
        if #open == 0 then
          return false
        end
        closed[table.remove(open)] = true
      end
      i = i + 1
    end
  end
  return #open == 0 and opened <= MAX_CAPTURES
end

--- Matches every error. Cancellation never comes to a matcher: the policies let it pass before.
---@return boolean
function matcher.any()
  return true
end

local function compile(spec, path, depth)
  if errors.is_class(spec) then
    return function(err)
      return errors.is(err, spec)
    end
  elseif type(spec) == "function" then
    return spec
  elseif check.is_callable(spec) then
    return function(err)
      return spec(err)
    end
  elseif type(spec) == "string" then
    if not is_pattern(spec) then
      check.fail(path, spec, "a well-formed Lua pattern")
    end
    return function(err)
      return type(err) == "string" and err:find(spec) ~= nil
    end
  end
  if type(spec) ~= "table" or next(spec) == nil or depth > MAX_DEPTH
    or errors.is(spec, errors.OperoError) then
    check.fail(path, spec, ALLOWED)
  end
  local predicates = {}
  for i = 1, check.last_index(spec, path) do
    predicates[i] = compile(spec[i], check.join(path, i), depth + 1)
  end
  return function(err)
    for _, matches in ipairs(predicates) do
      if matches(err) then
        return true
      end
    end
    return false
  end
end

--- Makes a predicate of a matcher. Raises ConfigError for what is none.
---@param spec opero.Matcher
---@param path string? names the option in messages
---@return fun(err: any): any matches
function matcher.compile(spec, path)
  return compile(spec, path or "matcher", 0)
end

return matcher
