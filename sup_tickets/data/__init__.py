"""Data sets, and batches of them on the devices. They know nothing of masks."""
