-- Some distributions install copas, which is pure Lua, for Lua 5.1 only: look there too.
package.path = package.path .. ";" .. package.path:gsub("5%.4", "5.1")

local measure = require "measure"
local ok, copas = pcall(require, "copas")
if not ok then
  measure.missing "the copas module is not installed"
end
local now = require("socket").gettime

-- Version 2 called it sleep, version 4 pause; version 1 has threads that wait for sockets only.
local pause = copas.pause or copas.sleep
if not pause then
  measure.missing((copas._VERSION or "this version") .. " can only wait for sockets")
end

local rows = {}

function rows.spawn(n)
  local function work()
    pause(0)
  end
  local start = now()
  for _ = 1, n do
    copas.addthread(work)
  end
  copas.loop()
  measure.report { rate = n / (now() - start) }
end

function rows.switch(tasks, total)
  local rounds = total // tasks
  for _ = 1, tasks do
    copas.addthread(function()
      for _ = 1, rounds do
        pause(0)
      end
    end)
  end
  local start = now()
  copas.loop()
  measure.report { rate = rounds * tasks / (now() - start) }
end

function rows.timers(n, lead)
  local lateness, delay = measure.timers(n, lead, now)
  for i = 1, n do
    copas.addthread(function()
      local seconds = delay(i)
      local due = now() + seconds
      pause(seconds)
      lateness[i] = now() - due
    end)
  end
  copas.loop()
  measure.report_lateness(lateness)
end

function rows.memory(n)
  local before = measure.rss()
  local function work()
    pause(3600)
  end
  for _ = 1, n do
    copas.addthread(work)
  end
  copas.step(0)
  measure.report { bytes = (measure.rss() - before) / n }
end

measure.main(rows)
