-- libCacheSim 0.3.5's hits on the traces of tests/traces.lua; written by
-- experiments/peers/libcachesim_counts.py --write.
return {
  accesses = 20000, seed = 88675123,
  decode = {
    [20] = {FIFO = 6652, LRU = 7435, SLRU = 8551, LFU = 5061, Clock = 7667, Clock2 = 7904, Sieve = 8270, S3FIFO = 8734, ARC = 8386, Belady = 11882},
    [60] = {FIFO = 10968, LRU = 11793, SLRU = 12976, LFU = 8386, Clock = 11988, Clock2 = 12350, Sieve = 12945, S3FIFO = 12954, ARC = 12629, Belady = 15786},
    [200] = {FIFO = 16960, LRU = 17695, SLRU = 17963, LFU = 12791, Clock = 17790, Clock2 = 17936, Sieve = 18060, S3FIFO = 18024, ARC = 17697, Belady = 18883},
    [1000] = {FIFO = 19487, LRU = 19487, SLRU = 19487, LFU = 19487, Clock = 19487, Clock2 = 19487, Sieve = 19487, S3FIFO = 19487, ARC = 19487, Belady = 19487},
  },
  drift = {
    [20] = {FIFO = 3807, LRU = 4388, SLRU = 6763, LFU = 2347, Clock = 4729, Clock2 = 5084, Sieve = 6973, S3FIFO = 7203, ARC = 6851, Belady = 9014},
    [60] = {FIFO = 6641, LRU = 7701, SLRU = 9260, LFU = 3505, Clock = 8015, Clock2 = 8378, Sieve = 9430, S3FIFO = 9732, ARC = 9650, Belady = 11886},
    [200] = {FIFO = 10389, LRU = 11435, SLRU = 11771, LFU = 7029, Clock = 11684, Clock2 = 11878, Sieve = 11115, S3FIFO = 12183, ARC = 12339, Belady = 14768},
    [1000] = {FIFO = 15968, LRU = 16318, SLRU = 15867, LFU = 15372, Clock = 16288, Clock2 = 16033, Sieve = 15372, S3FIFO = 15838, ARC = 16250, Belady = 17599},
  },
  loop = {
    [20] = {FIFO = 0, LRU = 0, SLRU = 990, LFU = 0, Clock = 0, Clock2 = 0, Sieve = 0, S3FIFO = 1188, ARC = 0, Belady = 1254},
    [60] = {FIFO = 0, LRU = 0, SLRU = 2970, LFU = 0, Clock = 0, Clock2 = 0, Sieve = 0, S3FIFO = 3564, ARC = 0, Belady = 3894},
    [200] = {FIFO = 0, LRU = 0, SLRU = 9900, LFU = 0, Clock = 0, Clock2 = 0, Sieve = 0, S3FIFO = 7694, ARC = 0, Belady = 13134},
    [1000] = {FIFO = 19700, LRU = 19700, SLRU = 19700, LFU = 19700, Clock = 19700, Clock2 = 19700, Sieve = 19700, S3FIFO = 19700, ARC = 19700, Belady = 19700},
  },
  scan = {
    [20] = {FIFO = 2257, LRU = 2609, SLRU = 4119, LFU = 4326, Clock = 2806, Clock2 = 3004, Sieve = 4387, S3FIFO = 4422, ARC = 4180, Belady = 5425},
    [60] = {FIFO = 3883, LRU = 4450, SLRU = 5709, LFU = 5769, Clock = 4606, Clock2 = 4711, Sieve = 5962, S3FIFO = 6030, ARC = 5925, Belady = 7160},
    [200] = {FIFO = 5705, LRU = 6031, SLRU = 7310, LFU = 7630, Clock = 6050, Clock2 = 6396, Sieve = 7630, S3FIFO = 7599, ARC = 7697, Belady = 8891},
    [1000] = {FIFO = 7467, LRU = 8133, SLRU = 8883, LFU = 9084, Clock = 8353, Clock2 = 8551, Sieve = 9084, S3FIFO = 9079, ARC = 9137, Belady = 10353},
  },
  sparse = {
    [20] = {FIFO = 495, LRU = 509, SLRU = 1497, LFU = 1483, Clock = 527, Clock2 = 526, Sieve = 1537, S3FIFO = 1886, ARC = 1570, Belady = 3549},
    [60] = {FIFO = 1299, LRU = 1412, SLRU = 3381, LFU = 3563, Clock = 1487, Clock2 = 1527, Sieve = 3591, S3FIFO = 3728, ARC = 3529, Belady = 5792},
    [200] = {FIFO = 3191, LRU = 3679, SLRU = 6044, LFU = 6049, Clock = 3961, Clock2 = 4296, Sieve = 6067, S3FIFO = 6452, ARC = 6323, Belady = 8754},
    [1000] = {FIFO = 7685, LRU = 8760, SLRU = 9739, LFU = 9954, Clock = 9068, Clock2 = 9336, Sieve = 9954, S3FIFO = 10153, ARC = 10099, Belady = 12448},
  },
  zipf = {
    [20] = {FIFO = 2809, LRU = 3272, SLRU = 5823, LFU = 5921, Clock = 3523, Clock2 = 3809, Sieve = 6089, S3FIFO = 6237, ARC = 5894, Belady = 7638},
    [60] = {FIFO = 5086, LRU = 5984, SLRU = 8196, LFU = 8281, Clock = 6322, Clock2 = 6658, Sieve = 8351, S3FIFO = 8501, ARC = 8292, Belady = 10151},
    [200] = {FIFO = 8037, LRU = 9053, SLRU = 10670, LFU = 10841, Clock = 9313, Clock2 = 9634, Sieve = 10841, S3FIFO = 11019, ARC = 10847, Belady = 12737},
    [1000] = {FIFO = 12426, LRU = 13257, SLRU = 13708, LFU = 13842, Clock = 13424, Clock2 = 13575, Sieve = 13842, S3FIFO = 13908, ARC = 13919, Belady = 15445},
  },
}
