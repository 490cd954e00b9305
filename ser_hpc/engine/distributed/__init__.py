"""Connect the ranks of a trial: rendezvous, collectives, and strategies that share a model (DDP, ZeRO)."""
