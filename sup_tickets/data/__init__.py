"""Data sets, and batches of them on the devices. They know nothing of masks."""

from sup_tickets.data.datasets import DATASETS, Dataset, load_dataset
from sup_tickets.data.files import DataNotPrepared, Split

__all__ = ["DATASETS", "DataNotPrepared", "Dataset", "Split", "load_dataset"]
