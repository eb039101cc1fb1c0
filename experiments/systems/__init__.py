"""What KSM, SoftNet and STAMP compute with, one seed at a time."""
