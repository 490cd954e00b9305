"""What goes wrong while training, and goes on: checkpoints, preemption, hangs, corrupt clips, bad nodes."""
