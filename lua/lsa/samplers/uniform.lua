-- Chunks that are not golden, each as likely.
return function(sample)
  return sample:uniform(sample.want)
end, {}
