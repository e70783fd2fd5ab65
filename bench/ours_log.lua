-- Opero's side of the measurements of logging; peers/logging_peer.py and peers/lualogging.lua do
-- the same with other libraries.
local measure = require "measure"
local opero = require "opero"

local now = opero.now
local log = opero.ContextAdapter(opero.get_logger("shop"))

local rows = {}

function rows.disabled(n)
  opero.configure_logging { level = "info" }
  measure.report(opero.run(function()
    local start = now()
    for i = 1, n do
      log:debug("x %d", i)
    end
    return { ns = (now() - start) / n * 1e9 }
  end))
end

---@param format "text"|"json"|"logfmt"
---@param n integer
function rows.record(format, n)
  measure.records(n, function(path)
    opero.configure_logging { output = { file = path }, format = format }
    return opero.run(function()
      log:add_context(measure.FIELDS)
      local start = now()
      for i = 1, n do
        log:info("fetched %d bytes", i)
      end
      return now() - start
    end)
  end)
end

measure.main(rows)
