"""What runs say together: which arm helps small lesions, and how sure that is."""
