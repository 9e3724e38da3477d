"""One page that a clinician can read, made from run folders alone; nothing here needs torch."""
