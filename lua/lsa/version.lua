return "0.2"
