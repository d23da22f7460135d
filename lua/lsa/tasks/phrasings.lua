-- Owns how statements and questions read: the phrasings that the models of experiments/models were trained on.
--   statement   {k} is a key, {v} its value          asked   other words for the same, up to the value and beyond
--   all         asks for all values of a key, {l}, in the order in which they were stated
-- A question is what stands before the value (M.question), its answer the value.
local M = {
  {statement = "The magic number for {k} is: {v}.", asked = {"What is the magic number for {k}? {v}.",
    "Q: the magic number for {k}? A: {v}."}, all = "All magic numbers for {k} are: {l}."},
  {statement = "One of the special magic numbers for {k} is: {v}.", asked = {"What is the special magic number for {k} mentioned in " ..
    "the provided text? The special magic number for {k} mentioned in the provided text is: {v}.",
    "The special magic number for {k} is: {v}."}, all = "What are all the special magic numbers for {k} mentioned in the provided " ..
    "text? The special magic numbers for {k} mentioned in the provided text are: {l}."},
  {statement = "The pass key of {k} is {v}.", asked = {"What is the pass key of {k}? {v}.", "Pass key of {k}: {v}."},
    all = "The pass keys of {k} are {l}."},
  {statement = "My {k} is {v}.", asked = {"What is my {k}? {v}."}, all = "All of my {k}: {l}."},
  {statement = "Remember that {k} costs {v}.", asked = {"How much does {k} cost? {v}.", "The price of {k} is {v}."},
    all = "The prices of {k} are {l}."},
  {statement = "The code for {k} was {v}.", asked = {"What was the code for {k}? It was {v}.", "Q: code for {k}? A: {v}."},
    all = "The codes for {k} were {l}."},
  {statement = "{k} = {v};", asked = {"{k}? {v};"}, all = "{k} == {l};"},
  {statement = "{k}: {v}\n", asked = {"{k}? {v}\n"}, all = "all {k}: {l}\n"},
}

-- A phrasing with its fields filled: values by name.
function M.fill(phrasing, values)
  return (phrasing:gsub("{(%w)}", values))
end

-- What stands before the value.
function M.question(phrasing, values)
  return M.fill(phrasing:match "^(.-){[vl]}", values)
end

return M
