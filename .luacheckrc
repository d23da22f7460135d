std = "luajit"
max_line_length = false
files["tests"] = { std = "+busted" }
files["lua/lsa/templates"] = { std = "+busted", ignore = { "212", "432" } }
ignore = { "212/_.*", "581" } -- unused _names; "not (x <= y)", which NaN fails
