"""Whether FedGS is for a hospital, before anything is trained: counts that can be exchanged, and advice."""
