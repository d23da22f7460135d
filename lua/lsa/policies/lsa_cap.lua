-- Another name of lsa_threshold.
return require "lsa.policies.lsa_threshold", {theta = 0.5}
